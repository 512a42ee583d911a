"""The editor: names, metadata and outputs survive edits; facts come from the inputs."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.graph import Editor, attribute, constant_tensor, label, sole_reader
from onnxopt.model import copy, load, save
from onnxopt.shape_values import ShapeValues
from tests.support import assert_same_outputs, graph, ops

BODY = "g (float[N, 4] x) => (float[N, 4] y) { a = Relu(x) b = Identity(a) y = Neg(b) }"


def node(model: ir.Model, op: str) -> ir.Node:
    return next(n for g in Editor(model).graphs() for n in g if n.op_type == op)


def test_replacing_a_node_keeps_name_metadata_and_declared_type() -> None:
    model = graph(BODY)
    old = node(model, "Neg")
    old.name, old.doc_string = "negate", "flips"
    old.metadata_props["k"] = "v"
    old.outputs[0].metadata_props["unit"] = "m"
    declared = old.outputs[0].shape
    new = Editor(model).replace_node(old, "Abs", old.inputs)
    assert ops(model) == ["Relu", "Identity", "Abs"]
    made = new.producer()
    assert made is not None
    assert (made.name, made.doc_string, made.metadata_props) == ("negate", "flips", {"k": "v"})
    assert model.graph.outputs[0] is new
    assert (new.name, new.shape, new.metadata_props) == ("y", declared, {"unit": "m"})


def test_redirecting_an_output_hands_its_name_to_the_producer() -> None:
    model = graph("g (float[N] x) => (float[N] y) { a = Relu(x) y = Identity(a) }")
    last = node(model, "Identity")
    assert Editor(model).redirect(last.outputs[0], last.inputs[0])  # type: ignore[arg-type]
    Editor(model).remove(last)
    assert [v.name for v in model.graph[0].outputs] == ["y"]


@pytest.mark.parametrize(
    "body",
    [
        "g (float[N] x) => (float[N] y) { y = Identity(x) }",
        "g (float[N] x) => (float[N] y, float[N] a) { a = Relu(x) y = Identity(a) }",
        "g (float[4] x) => (float[4] y, float[4] z) { z = Relu(x) y = Identity(w) }",
        """g (bool c, float[N] x) => (float[N] y) { y = If (c) <
            then_branch = t () => (float[N] a) { a = Identity(x) },
            else_branch = e () => (float[N] b) { b = Neg(x) }> }""",
    ],
    ids=["input to output", "output to output", "initializer to output", "outer value to body output"],
)
def test_redirect_changes_nothing_where_it_cannot(body: str) -> None:
    weights: dict[str, Any] = {"w": np.ones(4, np.float32)} if "(w)" in body else {}
    model = graph(body, **weights)
    before = copy(model)
    last = node(model, "Identity")
    assert not Editor(model).redirect(last.outputs[0], last.inputs[0])  # type: ignore[arg-type]
    assert_same_outputs(before, model)


def test_fresh_names_are_unique_across_scopes() -> None:
    model = graph("""g (bool c, float[N] x) => (float[N] y) { y = If (c) <
        then_branch = t () => (float[N] a) { a = Relu(x) }, else_branch = e () => (float[N] a_1) { a_1 = Neg(x) }> }""")
    editor = Editor(model)
    assert [editor.fresh("a"), editor.fresh("a"), editor.fresh("b"), editor.fresh("b")] == ["a_2", "a_3", "b", "b_1"]


def test_constants_in_functions_are_nodes() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18, "f" : 1]>
    g (float[N] x) => (float[N] y) { y = f.twice(x) }
    <domain: "f", opset_import: ["" : 18]> twice (x) => (y) { y = Add(x, x) }"""
    from tests.support import parse

    model = parse(text)
    editor = Editor(model)
    add = next(editor.nodes({"Add"}))
    value = editor.add_constant(add, np.float32(2), "two")
    editor.replace_node(add, "Mul", [add.inputs[0], value])
    assert_same_outputs(parse(text), model)
    assert editor.constant(value) == 2


def test_index_offers_new_nodes_and_drops_removed_ones() -> None:
    editor = Editor(graph("g (float[N] x) => (float[N] y) { a = Relu(x) b = Relu(a) y = Relu(b) }"))
    seen = 0
    for relu in editor.nodes({"Relu"}):
        seen += 1
        if seen == 1:
            editor.replace_node(relu, "Relu", relu.inputs)
    assert seen == 4, "three old nodes, of which one was replaced, and the new one"


def test_overridable_initializers_are_no_constants() -> None:
    model = graph("g (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }", w=np.ones(2, np.float32))
    assert constant_tensor(model.graph[0].inputs[1]) is None


def test_shapes_are_inferred_from_inputs_through_bodies_and_new_nodes() -> None:
    model = graph(
        """g (bool c, float[N, 8] x) => (float[N, 4] y) { h = MatMul(x, w) y = If (c) <
            then_branch = t () => (float[N, 4] a) { a = Relu(h) },
            else_branch = e () => (float[N, 4] b) { b = Neg(h) }> }""",
        w=np.zeros((8, 4), np.float32),
    )
    for n in model.graph:
        n.outputs[0].shape = ir.Shape([1, 1, 1])
    editor = Editor(model)
    relu = next(editor.nodes({"Relu"}))
    assert editor.shape(relu.outputs[0]) == ("N", 4)
    new = editor.insert(relu, "Transpose", relu.inputs, {"perm": [1, 0]})
    assert editor.shape(new) == (4, "N")
    assert editor.dtype(new) == ir.DataType.FLOAT
    assert editor.static_shape(new) is None


def test_minus_one_is_an_unknown_dim() -> None:
    model = graph("g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }")
    model.graph.inputs[0].shape = ir.Shape([-1, 4])
    shape = Editor(model).shape(model.graph[0].outputs[0])
    assert shape is not None
    assert not isinstance(shape[0], int)
    assert shape[1] == 4


def test_large_weights_stay_in_the_file(tmp_path: object) -> None:
    path = f"{tmp_path}/m.onnx"
    save(graph("g (float[N, 100] x) => (float[N, 100] y) { y = MatMul(x, w) }", w=np.eye(100, dtype=np.float32)), path)
    model = load(path)
    tensor = model.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.raw is None, "read though nobody asked"
    np.testing.assert_array_equal(tensor.numpy(), np.eye(100, dtype=np.float32))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("r = Shape(x)", ["N", 6, 4]),
        ("r = Shape<start = 1>(x)", [6, 4]),
        ("r = Shape<end = -1>(x)", ["N", 6]),
        ("s = Shape(x) r = Gather(s, i1)", [6]),
        ("s = Shape(x) r = Slice(s, i1, i3)", [6, 4]),
        ("s = Shape(x) r = Slice(s, i3, im9, i0, im1)", [4, 6, "N"]),
        ("s = Shape(x) r = Concat<axis = 0>(s, i3)", ["N", 6, 4, 3]),
        ("s = Shape(x) r = Mul(s, i1)", ["N", 6, 4]),
        ("s = Shape(x) r = Mul(s, i3)", [None, 18, 12]),
        ("s = Shape(x) r = Div(s, i3)", [None, 2, 1]),
        ("s = Shape(x) r = Sub(s, s)", [0, 0, 0]),
        ("s = Shape(x) r = Equal(s, im1)", [False, False, False]),
        ("s = Shape(x) r = Equal(s, i3)", [None, False, False]),
        ("s = Shape(x) c = Cast<to = 9>(s) r = Where(c, i1, i3)", [None, 1, 1]),
        ("s = Shape(x) r = Max(s, i3)", [None, 6, 4]),
        ("s = Shape(x) t = Gather(s, i1) r = ConstantOfShape<value = int64[1] {7}>(t)", [7] * 6),
        ("s = Shape(x) t = Slice(s, i1, i3) r = ReduceProd(t)", [24]),
        ("s = Shape(x) r = Cast<to = 6>(s)", ["N", 6, 4]),
    ],
)
def test_shape_arithmetic_on_symbols(code: str, expected: list[object]) -> None:
    numbers: dict[str, Any] = {f"i{n}".replace("-", "m"): np.array([n]) for n in (0, 1, 3, -1, -9)}
    model = graph(f"g (float[N, 6, 4] x) => (int64[K] y) {{ {code} y = Cast<to = 7>(r) }}", **numbers)
    editor = Editor(model)
    elements = ShapeValues(editor).of(model.graph[-1].inputs[0])
    assert elements is not None
    assert elements.tolist() == expected


def test_attributes_labels_and_readers() -> None:
    model = graph("g (float[N] x) => (float[N] y) { a = Relu(x) y = Add(a, a) }")
    relu, add = model.graph
    assert (label(relu), label(add)) == ("a", "y")
    relu.name = "first"
    assert label(relu) == "first"
    assert sole_reader(relu.outputs[0]) is None
    assert attribute(relu, "alpha", 0.5) == 0.5


def test_what_takes_the_place_of_a_value_tells_more_of_what_is_behind_it() -> None:
    model = graph("g (float[N, 4] x, int64[2] s) => (float[A, B] y) { r = Reshape(x, s) h = Relu(r) y = Neg(h) }")
    editor = Editor(model)
    reshape, relu, _ = model.graph
    assert 4 not in (editor.shape(relu.outputs[0]) or ())
    assert editor.redirect(reshape.outputs[0], model.graph.inputs[0])
    assert editor.refresh()
    assert editor.shape(relu.outputs[0]) == ("N", 4)
    assert not editor.refresh()


def test_what_becomes_constant_tells_more_of_what_reads_it() -> None:
    model = graph(
        "g (int64 n) => (int64[A] y) { r = Reshape(four, shape) f = Range(zero, r, one) y = Add(f, n) }",
        zero=np.array(0), one=np.array(1), four=np.array([4]), same=np.array(4), shape=np.zeros(0, np.int64),
    )  # fmt: skip
    editor = Editor(model)
    reshape, reader, _ = model.graph
    editor.facts.learn(reader.outputs[0], ir.DataType.INT64, (None,))
    assert editor.redirect(reshape.outputs[0], model.graph.initializers["same"])
    assert editor.refresh()
    assert editor.shape(reader.outputs[0]) == (4,)


def test_a_copied_editor_knows_the_same_and_edits_another_model() -> None:
    model = graph(
        "g (float[N, 4] x, bool c) => (float[N, 3] y) {"
        " a = MatMul(x, w) y = If(c) <then_branch = t () => (float[N, 3] p) { p = Relu(a) },"
        " else_branch = e () => (float[N, 3] q) { q = Neg(a) }> }",
        w=np.ones((4, 3), np.float32),
    )
    first = Editor(model)
    first.facts.learn(model.graph.node(0).outputs[0], ir.DataType.FLOAT, (7, 3))
    second = first.copy()
    assert second.model is not model
    for one, other in zip(first.graphs(), second.graphs(), strict=True):
        for node, twin in zip(one, other, strict=True):
            assert twin is not node
            assert second.shape(twin.outputs[0]) == first.shape(node.outputs[0])
            assert second.dtype(twin.outputs[0]) == first.dtype(node.outputs[0])
    assert second.shape(second.model.graph.node(0).outputs[0]) == (7, 3)
    second.replace_node(second.model.graph.node(0), "Gemm", second.model.graph.node(0).inputs)
    assert ops(model) == ["MatMul", "If"]
