"""The walk back from the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from onnxopt.errors import GradientError
from onnxopt.gradients import differentiable_ops, gradient_graph
from onnxopt.gradients.registry import piecewise_constant, vjp
from onnxopt.model import from_proto, to_proto
from tests import support
from tests.gradients.checks import Array, check

X = np.array([1.0, -2.0, 3.0], np.float32)
A = np.array([0.5, 2.0, -1.0], np.float32)
LOSS = "loss = ReduceSum<keepdims=0>"


def _model(body: str, inputs: str = "float[3] x", **initializers: Any) -> ir.Model:
    return support.graph(f"g ({inputs}) => (float loss) {{ {body} }}", **initializers)


def _run(model: ir.Model, wrt: Sequence[str], keep: Sequence[str] = (), **feeds: Array) -> dict[str, Array]:
    """What the graph of gradients gives: loss, what was kept, and the gradients by the names of their values."""
    found = gradient_graph(model, "loss", wrt, keep=keep)
    names = [str(value.name) for value in found.model.graph.outputs]
    results = dict(zip(names, support.outputs(found.model, feeds), strict=True))
    assert names == ["loss", *keep, *(found.gradients[name] for name in wrt)]
    for name in wrt:
        results[f"d{name}"] = results[found.gradients[name]]
    return results


# -- which values ------------------------------------------------------------------------------------------------


def test_the_gradients_of_all_readers_are_added() -> None:
    model = _model(f"a = Mul(x, x) b = Neg(x) c = Mul(a, x) s = Sum(a, b, c, x) {LOSS}(s)")
    found = _run(model, ["x"], x=X)
    np.testing.assert_allclose(found["dx"], 2 * X - 1 + 3 * X**2 + 1, rtol=1e-6)
    assert found["loss"] == pytest.approx((X**2 + X**3).sum())


def test_a_value_that_is_read_twice_by_one_node() -> None:
    np.testing.assert_allclose(_run(_model(f"y = Mul(x, x) {LOSS}(y)"), ["x"], x=X)["dx"], 2 * X)


def test_input_initializer_and_intermediate_value() -> None:
    model = _model(f"h = Mul(x, a) y = Mul(h, h) {LOSS}(y)", a=A)
    found = _run(model, ["h", "a", "x"], x=X)
    np.testing.assert_allclose(found["dh"], 2 * X * A)
    np.testing.assert_allclose(found["da"], 2 * X * A * X)
    np.testing.assert_allclose(found["dx"], 2 * X * A * A)


def test_a_value_that_is_kept_and_differentiated() -> None:
    model = _model(f"h = Mul(x, a) y = Mul(h, h) {LOSS}(y)", a=A)
    found = _run(model, ["h"], ["h", "y"], x=X)
    np.testing.assert_allclose(found["h"], X * A)
    np.testing.assert_allclose(found["y"], (X * A) ** 2)
    np.testing.assert_allclose(found["dh"], 2 * X * A)


def test_nodes_before_an_intermediate_value_are_not_differentiated() -> None:
    model = _model(f"h = Unique(x) r = Reshape(h, three) y = Mul(r, r) {LOSS}(y)", three=np.array([3]))
    assert ("", "Unique") not in differentiable_ops()
    np.testing.assert_array_equal(_run(model, ["r"], x=X)["dr"], 2 * np.sort(X))


def test_each_output_is_there_once() -> None:
    model = _model(f"h = Mul(x, a) y = Mul(h, h) {LOSS}(y)", a=A)
    found = gradient_graph(model, "loss", ["x", "a", "x"], keep=["loss", "h", "x", "h"])
    names = ["loss", "h", "x", found.gradients["x"], found.gradients["a"]]
    assert [value.name for value in found.model.graph.outputs] == names
    results = dict(zip(names, support.outputs(found.model, {"x": X}), strict=True))
    np.testing.assert_allclose(results[found.gradients["x"]], 2 * X * A * A)


def test_outputs_have_types_and_shapes() -> None:
    found = gradient_graph(
        _model(f"h = MatMul(x, w) s = Softmax(h) {LOSS}(s)", w=np.eye(3, dtype=np.float32)),
        "loss",
        ["w", "h"],
        keep=["s"],
    )
    onnx.checker.check_model(to_proto(found.model), full_check=True)
    assert [list(value.shape or ()) for value in found.model.graph.outputs] == [[], [3], [3, 3], [3]]


def test_the_loss_itself() -> None:
    found = _run(_model(f"{LOSS}(x)"), ["loss", "x"], x=X)
    assert found["dloss"] == 1
    np.testing.assert_array_equal(found["dx"], np.ones(3))


def test_a_value_that_has_the_gradient_of_another() -> None:
    found = _run(_model(f"y = Add(x, a) {LOSS}(y)", a=A), ["x", "a", "y"], x=X)
    for name in ("dx", "da", "dy"):
        np.testing.assert_array_equal(found[name], np.ones(3))


@pytest.mark.parametrize("dims", ["[1]", "[1,1]"])
def test_a_loss_of_one_element(dims: str) -> None:
    axes = np.array([0, 1])
    target = "loss" if dims == "[1,1]" else "sum"
    rest = "" if dims == "[1,1]" else " one = Constant<value_ints=[1]>() loss = Reshape(sum, one)"
    model = support.graph(
        f"g (float[2,3] x) => (float{dims} loss) {{ {target} = ReduceSum(x, axes){rest} }}", axes=axes
    )
    np.testing.assert_array_equal(_run(model, ["x"], x=np.ones((2, 3), np.float32))["dx"], np.ones((2, 3)))


def test_what_no_output_needs_is_gone() -> None:
    model = _model(f"h = Mul(x, a) unread = Exp(h) y = Add(h, b) {LOSS}(y)", a=A, b=A + 1)
    found = gradient_graph(model, "loss", ["h"])
    assert "Exp" not in support.ops(found.model)
    found = gradient_graph(model, "loss", ["x"])
    assert support.count_ops(found.model)["Mul"] == 2


def test_the_model_itself_is_not_changed() -> None:
    model = _model(f"h = Mul(x, a) y = Mul(h, h) {LOSS}(y)", a=A)
    before = to_proto(model).SerializeToString(deterministic=True)
    gradient_graph(model, "loss", ["a", "x"], keep=["h"])
    assert to_proto(model).SerializeToString(deterministic=True) == before


# -- which paths -------------------------------------------------------------------------------------------------


def test_no_gradient_passes_integers_and_shapes() -> None:
    body = f"s = Shape(x) f = Cast<to=1>(s) i = Cast<to=7>(x) r = Cast<to=1>(i) m = Mul(x, r) n = Mul(m, f) {LOSS}(n)"
    found = _run(_model(body), ["x"], x=X)
    np.testing.assert_allclose(found["dx"], 3 * X)


def test_no_gradient_passes_steps() -> None:
    found = _run(_model(f"s = Sign(x) y = Mul(s, x) {LOSS}(y)"), ["x"], x=X)
    np.testing.assert_array_equal(found["dx"], np.sign(X))


@pytest.mark.parametrize(
    "body", ["i = Cast<to=7>(x) y = Cast<to=1>(i)", "y = Floor(x)", "s = Shape(x) y = Cast<to=1>(s)"]
)
def test_a_loss_behind_steps_only(body: str) -> None:
    with pytest.raises(GradientError, match="'loss' does not depend on 'x' in a differentiable way"):
        gradient_graph(_model(f"{body} {LOSS}(y)"), "loss", ["x"])


@pytest.mark.parametrize("used", ["a", "x"])
def test_a_value_that_the_loss_does_not_depend_on(used: str) -> None:
    unused = {"a": "x", "x": "a"}[used]
    model = _model(f"h = Mul({unused}, {unused}) y = Mul({used}, {used}) {LOSS}(y)", a=A)
    assert _run(model, [used], x=X)["loss"] > 0
    with pytest.raises(GradientError, match=f"'loss' does not depend on '{unused}'"):
        gradient_graph(model, "loss", [used, unused])


@pytest.mark.parametrize(("read", "want"), [("a", [2, 2, 0, 0]), ("b", [0, 0, 2, 2])])
def test_one_of_several_outputs(read: str, want: list[int]) -> None:
    model = _model(f"a, b = Split<num_outputs=2>(x) y = Mul({read}, {read}) {LOSS}(y)", "float[4] x")
    np.testing.assert_array_equal(_run(model, ["x"], x=np.ones(4, np.float32))["dx"], want)


def test_a_branch_that_reads_what_is_differentiated() -> None:
    branches = "then_branch = t () => (float[3] p) { p = Neg(x) }, else_branch = e () => (float[3] q) { q = Exp(x) }"
    model = _model(f"y = If<{branches}>(c) {LOSS}(y)", "float[3] x, bool c")
    with pytest.raises(GradientError, match=r"If .* has bodies that read what is to be differentiated"):
        gradient_graph(model, "loss", ["x"])


def test_a_branch_that_reads_other_values() -> None:
    branches = "then_branch = t () => (float[3] p) { p = Neg(a) }, else_branch = e () => (float[3] q) { q = Exp(a) }"
    model = _model(f"b = If<{branches}>(c) y = Mul(b, x) {LOSS}(y)", "float[3] x, bool c", a=A)
    found = _run(model, ["x"], x=X, c=np.array(True))
    np.testing.assert_array_equal(found["dx"], -A)


def test_a_branch_that_no_gradient_reaches() -> None:
    branches = "then_branch = t () => (float[3] p) { p = Neg(x) }, else_branch = e () => (float[3] q) { q = Exp(x) }"
    model = _model(f"f = If<{branches}>(c) y = Mul(x, x) {LOSS}(y)", "float[3] x, bool c")
    found = _run(model, ["x"], keep=["f"], x=X, c=np.array(True))
    np.testing.assert_array_equal(found["dx"], 2 * X)
    np.testing.assert_array_equal(found["f"], -X)


# -- what is refused ---------------------------------------------------------------------------------------------


def test_an_operator_without_a_rule_is_named_with_its_node() -> None:
    y = helper.make_node("Unheard", ["x"], ["y"], name="fifth", domain="ai.example")
    loss = helper.make_node("ReduceSum", ["y"], ["loss"], keepdims=0)
    model = _proto([y, loss], {"y": (1, [3])}, ("ai.example", 1))
    with pytest.raises(GradientError, match=r"Unheard 'fifth' of domain 'ai\.example' has no gradient rule"):
        gradient_graph(model, "loss", ["x"])


@pytest.mark.parametrize(("value", "shape"), [("y", r"\(3,\)"), ("i", r"\(\)")])
def test_a_loss_that_is_not_one_float(value: str, shape: str) -> None:
    model = _model(f"y = Mul(x, x) {LOSS}(y) i = Cast<to=7>(loss)")
    with pytest.raises(GradientError, match=f"loss '{value}' is not one float number: .*, shape {shape}"):
        gradient_graph(model, value, ["x"])


@pytest.mark.parametrize("arguments", [("nothing", ["x"], []), ("loss", ["nothing"], []), ("loss", ["x"], ["nothing"])])
def test_names_of_no_value(arguments: tuple[str, list[str], list[str]]) -> None:
    loss, wrt, keep = arguments
    with pytest.raises(GradientError, match="has no value 'nothing'"):
        gradient_graph(_model(f"y = Mul(x, x) {LOSS}(y)"), loss, wrt, keep=keep)


def test_nothing_asked_for() -> None:
    with pytest.raises(GradientError, match="no value is named"):
        gradient_graph(_model(f"{LOSS}(x)"), "loss", [])


def test_integers_have_no_gradients() -> None:
    model = _model(f"f = Cast<to=1>(i) y = Mul(x, f) {LOSS}(y)", "float[3] x, int64[3] i")
    with pytest.raises(GradientError, match="'i' is of INT64, and only floats"):
        gradient_graph(model, "loss", ["i"])


def test_sizes_that_are_no_numbers() -> None:
    with pytest.raises(GradientError, match="input 'x' has dims that are not numbers"):
        gradient_graph(_model(f"{LOSS}(x)", "float[N,3] x"), "loss", ["x"])


def test_opsets_before_18() -> None:
    model = support.graph(f"g (float[3] x) => (float loss) {{ {LOSS}(x) }}", opset=17)
    with pytest.raises(GradientError, match="of opset 17, gradients want 18 or later; run convert-opset"):
        gradient_graph(model, "loss", ["x"])


def test_local_functions() -> None:
    model = support.parse(
        '<ir_version: 8, opset_import: ["" : 18, "f" : 1]> g (float[3] x) => (float loss)'
        f" {{ y = f.square(x) {LOSS}(y) }}"
        ' <domain: "f", opset_import: ["" : 18]> square (x) => (y) { y = Mul(x, x) }'
    )
    with pytest.raises(GradientError, match="local functions; run inline-functions first"):
        gradient_graph(model, "loss", ["x"])


def test_one_rule_an_operator() -> None:
    with pytest.raises(ValueError, match="Add of domain '' has a rule already"):
        vjp("Add")(lambda at: [at.g])
    with pytest.raises(ValueError, match="Floor of domain '' has a rule already"):
        piecewise_constant("Floor")
    assert ("", "Add") in differentiable_ops()
    assert ("", "Floor") not in differentiable_ops()


# -- what is written ---------------------------------------------------------------------------------------------

TWO_LAYERS = f"h = MatMul(x, w) n = Softmax(h) o = MatMul(n, v) s = Mul(o, o) {LOSS}(s)"


def _two_layers() -> ir.Model:
    generator = np.random.default_rng(0)
    w, v = (generator.standard_normal((4, 4)).astype(np.float32) for _ in range(2))
    return _model(TWO_LAYERS, "float[2,4] x", w=w, v=v)


def test_the_same_bytes_each_time() -> None:
    first, second = (
        to_proto(gradient_graph(_two_layers(), "loss", ["w", "v"], keep=["h"]).model).SerializeToString()
        for _ in range(2)
    )
    assert first == second


def test_names_are_new() -> None:
    plain = gradient_graph(_two_layers(), "loss", ["w", "v"]).model
    taken = [str(value.name) for node in plain.graph for value in node.outputs if str(value.name).startswith("grad/")]
    taken += [str(name) for name in plain.graph.initializers if str(name).startswith("grad/")]
    assert taken
    model = _two_layers()
    last = model.graph[-1].outputs[0]
    for name in taken:  # nodes of these very names
        node = ir.node("Neg", [last], name=name)
        node.outputs[0].name = name
        model.graph.append(node)
    found = gradient_graph(model, "loss", ["w", "v"], keep=taken)
    names = [str(value.name) for node in found.model.graph for value in node.outputs]
    names += [str(name) for name in (*found.model.graph.initializers, *(v.name for v in found.model.graph.inputs))]
    assert len(names) == len(set(names))
    x = np.ones((2, 4), np.float32)
    want = support.outputs(plain, {"x": x})
    got = support.outputs(found.model, {"x": x})
    np.testing.assert_array_equal(got[-1], want[-1])
    np.testing.assert_array_equal(got[-2], want[-2])


# -- any graph ---------------------------------------------------------------------------------------------------

_UNARY = ["Neg", "Tanh", "Sigmoid", "Softmax", "LogSoftmax", "Identity"]
_BINARY = ["Add", "Sub", "Mul", "MatMul"]
_SHAPES = [(3, 3), (1, 3), (3, 1), (1, 1)]


@st.composite
def _graphs(draw: st.DrawFn) -> tuple[list[Any], dict[str, Array], list[str], list[str]]:
    """Nodes over matrices of three rows or columns, or one; arrays; what is asked for; and what the loss reads."""
    generator = np.random.default_rng(draw(st.integers(0, 2**16)))
    shapes = {f"x{i}": draw(st.sampled_from(_SHAPES)) for i in range(draw(st.integers(1, 3)))}
    arrays = {name: generator.uniform(-1, 1, shape) for name, shape in shapes.items()}
    nodes: list[Any] = []
    for i in range(draw(st.integers(1, 8))):
        op, name = draw(st.sampled_from([*_UNARY, *_BINARY, "Transpose", "ReduceSum"])), f"v{i}"
        a, b = (draw(st.sampled_from(sorted(shapes))) for _ in range(2))
        if op == "ReduceSum":
            nodes.append(helper.make_node(op, [a], [name]))
            shapes[name] = (1, 1)
        elif op == "MatMul" and shapes[a][1] != shapes[b][0]:
            nodes.append(helper.make_node("Sum", [a, b, a], [name]))
            shapes[name] = np.broadcast_shapes(shapes[a], shapes[b])
        elif op in _BINARY:
            nodes.append(helper.make_node(op, [a, b], [name]))
            is_product = op == "MatMul"
            shapes[name] = (shapes[a][0], shapes[b][1]) if is_product else np.broadcast_shapes(shapes[a], shapes[b])
        else:
            nodes.append(helper.make_node(op, [a], [name]))
            shapes[name] = shapes[a][::-1] if op == "Transpose" else shapes[a]
    outputs = draw(st.lists(st.sampled_from([n.output[0] for n in nodes]), min_size=1, max_size=2, unique=True))
    behind = set(outputs)
    for node in reversed(nodes):
        if node.output[0] in behind:
            behind.update(node.input)
    return nodes, arrays, sorted(behind & set(arrays)), outputs


@settings(max_examples=100, deadline=None, derandomize=True)
@given(_graphs())
def test_any_graph(drawn: tuple[list[Any], dict[str, Array], list[str], list[str]]) -> None:
    check(*drawn)


def _proto(nodes: Sequence[Any], known: dict[str, tuple[int, list[int]]], domain: tuple[str, int]) -> ir.Model:
    infos = [helper.make_tensor_value_info(name, element, shape) for name, (element, shape) in known.items()]
    x, loss = helper.make_tensor_value_info("x", 1, [3]), helper.make_tensor_value_info("loss", 1, [])
    graph = helper.make_graph(list(nodes), "g", [x], [loss], value_info=infos)
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(*domain)]
    return from_proto(helper.make_model(graph, opset_imports=imports, ir_version=8))
