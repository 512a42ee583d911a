"""fold-shapes."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.graph import Editor
from onnxopt.pass_base import Context
from onnxopt.passes.cleanup.fold_shapes import FoldShapes
from onnxopt.passes.cleanup.remove_dead import RemoveDead
from tests.support import graph, ops, run


def folded(body: str, **initializers: Any) -> tuple[ir.Model, list[str]]:
    """The model after fold-shapes, and its operators once dead nodes are gone."""
    after, _ = run(FoldShapes(), graph(body, **initializers))
    return after, ops(run(RemoveDead(), after)[0])


def shape_input(model: ir.Model, op: str) -> list[int]:
    node = next(node for node in model.graph if node.op_type == op)
    value = node.inputs[2 if op == "Slice" else 1]
    assert value is not None
    assert value.const_value is not None
    return list(value.const_value.numpy())


SPLIT_HEADS = """g (float[batch, seq, 768] x) => (float[batch, seq, 12, 64] y) {
    shape = Shape(x)
    b = Gather<axis = 0>(shape, zero)  s = Gather<axis = 0>(shape, one)
    bu = Unsqueeze(b, axis)  su = Unsqueeze(s, axis)
    target = Concat<axis = 0>(bu, su, heads, size)
    y = Reshape(x, target)
}"""
NUMBERS: dict[str, Any] = {
    "zero": np.array(0), "one": np.array(1), "axis": np.array([0]), "heads": np.array([12]), "size": np.array([64])
}  # fmt: skip


def test_dims_at_their_place_are_copied() -> None:
    model, left = folded(SPLIT_HEADS, **NUMBERS)
    assert left == ["Reshape"]
    assert shape_input(model, "Reshape") == [0, 0, 12, 64]


def test_one_unknown_dim_is_computed() -> None:
    body = """g (float[batch, seq, 8] x) => (float[M, 8] y) {
        shape = Shape(x) b = Gather(shape, i0) s = Gather(shape, i1) p = Mul(b, s) t = Concat<axis = 0>(p, eight)
        y = Reshape(x, t)
    }"""
    model, left = folded(body, i0=np.array([0]), i1=np.array([1]), eight=np.array([8]))
    assert left == ["Reshape"]
    assert shape_input(model, "Reshape") == [-1, 8]


def test_two_unknown_dims_stay() -> None:
    body = """g (float[a, b, c] x) => (float[P, Q] y) {
        s = Shape(x) t = Gather(s, i)  d = Gather(s, j) q = Mul(d, two) u = Div(q, two)  v = Concat<axis = 0>(t, u)
        y = Reshape(x, v)
    }"""
    before = graph(body, i=np.array([2]), j=np.array([0]), two=np.array([2]))
    _, report = run(FoldShapes(), before, {"x": np.zeros((2, 1, 3), np.float32)})
    assert report.changed == 0


def test_a_static_shape_becomes_a_constant() -> None:
    body = """g (float[2, 3] x, float[N] z) => (float[N, 2, 3] y) {
        s = Shape(x) n = Shape(z) t = Concat<axis = 0>(n, s) e = Expand(x, t) y = Identity(e)
    }"""
    after, report = run(FoldShapes(), graph(body))
    assert report.changed == 1
    assert ops(run(RemoveDead(), after)[0]) == ["Shape", "Concat", "Expand", "Identity"]


def test_a_known_dim_is_folded_though_the_batch_is_not() -> None:
    body = """g (float[N, 5] x) => (float[N, 5] y) {
        s = Shape(x) w = Gather<axis = 0>(s, one) f = Cast<to = 1>(w) y = Div(x, f)
    }"""
    model, left = folded(body, one=np.array(1))
    assert left == ["Cast", "Div"]
    assert any(v.const_value is not None and v.const_value.numpy() == 5 for v in model.graph.initializers.values())


def test_expand_keeps_dims_that_are_there() -> None:
    body = """g (float[N, 1, 4] x) => (float[N, 3, 4] y) {
        s = Shape(x) n = Gather(s, zero) t = Concat<axis = 0>(n, rest) y = Expand(x, t)
    }"""
    model, left = folded(body, zero=np.array([0]), rest=np.array([3, 4]))
    assert left == ["Expand"]
    assert shape_input(model, "Expand") == [1, 3, 4]


def test_expand_to_a_dim_of_another_tensor_stays() -> None:
    body = """g (float[1, 4] x, float[M] z) => (float[M, 4] y) {
        m = Shape(z) t = Concat<axis = 0>(m, four) y = Expand(x, t)
    }"""
    assert run(FoldShapes(), graph(body, four=np.array([4])))[1].changed == 0


def test_torchs_expand_of_minus_one() -> None:
    """Where(shape == −1, 1, shape): a dim is never −1."""
    body = """g (float[N, 1] x) => (float[N, 7] y) {
        s = Shape(x) n = Gather(s, zero) t = Concat<axis = 0>(n, seven) e = Equal(t, minus) u = Where(e, ones, t)
        y = Expand(x, u)
    }"""
    numbers: dict[str, Any] = {"zero": np.array([0]), "seven": np.array([7])}
    numbers |= {"minus": np.array(-1), "ones": np.array([1, 1])}
    model, left = folded(body, **numbers)
    assert left == ["Expand"]
    assert shape_input(model, "Expand") == [1, 7]


def test_slice_to_the_size_of_its_axis() -> None:
    body = """g (float[N, 4] x) => (float[M, 4] y) {
        s = Shape(x) n = Gather(s, zero) y = Slice(x, one, n, zero)
    }"""
    model, left = folded(body, zero=np.array([0]), one=np.array([1]))
    assert left == ["Slice"]
    assert shape_input(model, "Slice") == [np.iinfo(np.int64).max]


@pytest.mark.parametrize("steps", [np.array([-1]), np.array([2])])
def test_slice_with_steps_stays(steps: np.ndarray[Any, Any]) -> None:
    body = """g (float[N, 4] x) => (float[M, 4] y) {
        s = Shape(x) n = Gather(s, zero) y = Slice(x, one, n, zero, steps)
    }"""
    assert run(FoldShapes(), graph(body, zero=np.array([0]), one=np.array([1]), steps=steps))[1].changed == 0


def test_stale_value_info_is_not_believed() -> None:
    model = graph(SPLIT_HEADS, **NUMBERS)
    for node in model.graph:
        node.outputs[0].shape = ir.Shape([7])
    FoldShapes().run(Context(Editor(model)))
    assert shape_input(model, "Reshape") == [0, 0, 12, 64]


def test_zeros_of_allowzero_stay() -> None:
    body = "g (float[N, 0] x) => (float[0, M] y) { s = Shape(x) t = Gather(s, i) y = Reshape<allowzero = 1>(x, t) }"
    before = graph(body, i=np.array([1, 0]))
    assert run(FoldShapes(), before, {"x": np.zeros((3, 0), np.float32)})[1].changed == 0


def test_in_a_body() -> None:
    body = """g (bool c, float[N, 6] x) => (float[N, 2, 3] y) {
        s = Shape(x) n = Gather(s, zero)
        y = If (c) <
            then_branch = t () => (float[N, 2, 3] a) { p = Concat<axis = 0>(n, two, three) a = Reshape(x, p) },
            else_branch = e () => (float[N, 2, 3] b) { q = Concat<axis = 0>(n, two, three) b = Reshape(x, q) }
        >
    }"""
    numbers: dict[str, Any] = {"zero": np.array([0]), "two": np.array([2]), "three": np.array([3])}
    after, report = run(FoldShapes(), graph(body, **numbers))
    assert report.changed == 2
    assert ops(run(RemoveDead(), after)[0]) == ["If"]


def test_a_shape_that_the_caller_gives_is_the_callers() -> None:
    body = "g (float[2, 3] x, int64[1] s) => (float[6] y) { y = Reshape(x, s) }"
    feeds = {"x": np.ones((2, 3), np.float32), "s": np.array([6])}
    assert run(FoldShapes(), graph(body), feeds)[1].changed == 0


def test_the_same_dims_are_computed_once() -> None:
    body = """g (float[batch, seq, 8] x, float[M] z) => (float[A, B] y, float[C, D] w) {
        h = Relu(x) s = Shape(x) a = Gather(s, zero) t = Shape(h) b = Gather(t, zero) u = Shape(z) c = Gather(u, zero)
        d = Concat<axis = 0>(a, c) y = ConstantOfShape(d) e = Concat<axis = 0>(b, c) f = Concat<axis = 0>(e, e)
        g = Slice(f, zero, two) w = ConstantOfShape(g)
    }"""
    after, report = run(FoldShapes(), graph(body, zero=np.array([0]), two=np.array([2])))
    assert "as s is already" in str(report.changes[0])
    left = ops(run(RemoveDead(), after)[0])
    assert left == ["Shape", "Gather", "Shape", "Concat", "ConstantOfShape", "ConstantOfShape"]


def test_evaluates_the_paddings_that_torch_writes() -> None:
    """``F.pad`` counts its paddings from the last axis backwards; the exporter turns them round in the graph."""
    before = graph(
        """g (float[N, M] x) => (float[P, Q] y) {
            given = Constant<value = int64[4] {1, 2, 0, 3}>()
            two = Constant<value = int64[2] {-1, 2}>()
            last = Constant<value = int64[1] {-1}>()
            first = Constant<value = int64[1] {-9223372036854775807}>()
            axis = Constant<value = int64[1] {0}>()
            flat = Constant<value = int64[1] {-1}>()
            pairs = Reshape(given, two)
            turned = Slice(pairs, last, first, axis, last)
            rows = Transpose<perm = [1, 0]>(turned)
            pads = Reshape(rows, flat)
            y = Pad(x, pads)
        }"""
    )
    after, report = run(FoldShapes(), before)
    assert report.changed
    assert shape_input(after, "Pad") == [0, 1, 3, 2]


@pytest.mark.parametrize(
    ("nodes", "rank"),
    [
        ("f = Flatten(x) r = Reshape(f, s)", 3),
        ("p = Concat<axis = 0>(s, one) r = ConstantOfShape(p)", 4),
    ],
)
def test_what_computed_shapes_say_is_told_to_inference(nodes: str, rank: int) -> None:
    """In old opsets onnx does not follow a shape to the node that reads it."""
    before = graph(
        f"g (float[N, M, 4] x) => (float[P] y) {{ s = Shape(x) {nodes} t = Relu(r) u = Mul(t, w) y = ReduceSum(u) }}",
        opset=11, one=np.array([4]), w=np.ones(4, np.float32),
    )  # fmt: skip
    editor = Editor(before)
    product = next(node for node in before.graph if node.op_type == "Mul")
    known = editor.shape(product.inputs[0])
    assert known is None or 4 not in known
    FoldShapes().run(Context(editor))
    editor.refresh()
    told = editor.shape(product.inputs[0])
    assert told is not None
    assert len(told) == rank
    assert told[-1] == 4


def test_a_chain_of_computed_shapes_is_followed_to_its_end_in_one_run() -> None:
    """Each slice is as long as the one before it is, which nobody knows before that one is known."""
    steps = " ".join(
        f"s{i} = Shape(x{i}) d{i} = Gather(s{i}, one) n{i} = Sub(d{i}, one) x{i + 1} = Slice(x{i}, zero, n{i}, one)"
        for i in range(40)
    )
    before = graph(
        f"g (float[N, 64] x0) => (float[A, B] y) {{ {steps} y = Relu(x40) }}", zero=np.array([0]), one=np.array([1])
    )
    editor = Editor(before)
    report = FoldShapes().run(Context(editor))
    assert sum("reads the constant" in str(change) for change in report.changes) == 40
    assert editor.shape(before.graph.outputs[0]) == ("N", 24)
