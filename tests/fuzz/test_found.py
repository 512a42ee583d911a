"""What random graphs have found, in its smallest form, so that it stays found."""

from __future__ import annotations

import numpy as np
import onnx.checker
import onnx.parser

import onnxopt
from onnxopt.graph import Editor
from onnxopt.model import from_proto, to_proto
from tests.conformance import oracle


def test_a_slice_of_opset_10_is_no_no_op() -> None:
    """For ``x[1:2]`` along a symbol onnx infers that symbol again, in this opset alone."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 10]> g (float[N,M] x) => (float[?,?] y)
        <int64[1] start = {1}, int64[1] end = {2}, int64[1] axis = {0}>
        { a = Relu(x) b = Slice(a, start, end, axis) y = Neg(b) }"""
    )
    editor = Editor(from_proto(model))
    x, a, b = editor.model.graph.inputs[0], *(node.outputs[0] for node in list(editor.model.graph)[:2])
    assert editor.shape(a) == editor.shape(x) == ("N", "M")
    cut, kept = editor.shape(b) or ()
    assert cut != "N"
    assert kept == "M"
    feeds = [{"x": np.ones((3, 2), dtype=np.float32)}]
    after = onnxopt.optimize(model, verify="off").model
    assert oracle.difference(oracle.by_runtime(model, feeds), oracle.by_runtime(after, feeds)) is None


def test_symbols_made_up_in_two_inferences_are_told_apart() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]> g (float[N] x) => (int64[?,?] y) { y = NonZero(x) }"""
    )
    editor = Editor(from_proto(model))
    value = editor.model.graph.outputs[0]
    first = editor.shape(value)
    editor.facts.infer()
    assert first is not None
    assert first != editor.shape(value)


def test_a_constant_for_a_model_whose_initializers_are_inputs() -> None:
    """Below IR version 4, an initializer that is no input makes the model invalid."""
    model = from_proto(
        onnx.parser.parse_model(
            """<ir_version: 3, opset_import: ["" : 8]> g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}>
            { y = Add(x, w) }"""
        )
    )
    editor = Editor(model)
    node = next(iter(model.graph))
    node.replace_input_with(1, editor.add_constant(node, np.array([3, 4], dtype=np.float32), "v"))
    onnx.checker.check_model(to_proto(model), full_check=True)
