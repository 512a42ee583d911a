"""remove-no-ops."""

import numpy as np
import pytest

from onnxopt.passes.cleanup.remove_no_ops import RemoveNoOps
from tests.support import count_ops, graph, ops, run

REMOVED = [  # opset, signature, nodes; the Relu in front keeps the result a node's
    (18, "(float[N] x) => (float[N] y)", "y = Identity(a)"),
    (7, "(float[N] x) => (float[N] y)", "y = Dropout<ratio = 0.5>(a)"),
    (6, "(float[N] x) => (float[N] y)", "y = Dropout<ratio = 0.5, is_test = 1>(a)"),
    (11, "(float[N] x) => (float[N] y)", "y, mask = Dropout(a)"),
    (13, "(float[N] x) => (float[N] y)", "y = Dropout(a)"),
    (18, "(float[N] x) => (float[N] y)", "t = Constant<value = bool {0}>() y = Dropout(a, , t)"),
    (9, "(float[N] x) => (float[N] y)", "y = Cast<to = 1>(a)"),
    (18, "(float[N] x, float[2] like) => (float[N] y)", "y = CastLike(a, like)"),
    (18, "(float[N,M] x) => (float[N,M] y)", "y = Transpose<perm = [0, 1]>(a)"),
    (18, "(float[N] x) => (float[N] y)", "y = Transpose(a)"),
    (18, "(float[N,1,1] x) => (float[N,1,1] y)", "y = Transpose<perm = [0, 2, 1]>(a)"),
    (9, "(float[N,5,8] x) => (float[N,5,8] y)", "s = Constant<value = int64[3] {0, -1, 8}>() y = Reshape(a, s)"),
    (18, "(float[N,5] x) => (float[N,5] y)", "y = Flatten(a)"),
    (18, "(float[3,5] x) => (float[3,5] y)", "s = Shape(x) y = Expand(a, s)"),
    (18, "(float[N,5] x) => (float[N,5] y)", "s = Constant<value_ints = [1, 1]>() y = Tile(a, s)"),
    (10, "(float[N,5] x) => (float[N,5] y)", "y = Pad<pads = [0, 0, 0, 0]>(a)"),
    (18, "(float[N,5] x) => (float[N,5] y)", "p = Constant<value_ints = [0, 0, 0, 0]>() y = Pad(a, p)"),
    (9, "(float[N,5] x) => (float[N,5] y)", "y = Slice<starts = [0], ends = [2147483647], axes = [0]>(a)"),
    (18, "(float[N,5] x) => (float[N,5] y)", "b = Constant<value_ints = [-5]>() e = Constant<value_ints = [9]>()"
     "c = Constant<value_ints = [1]>() y = Slice(a, b, e, c)"),
    (9, "(float[N,512,256] x) => (float[N,512,256] y)",  # a longer axis would not fit into any memory
     "y = Slice<starts = [0, 0], ends = [1000000000, 512], axes = [0, 1]>(a)"),
    (18, "(float[N,C,4,4] x) => (float[N,C,4,4] y)", "s = Constant<value_floats = [1.0, 1.0, 1.0, 1.0]>()"
     "y = Resize<mode = \"linear\">(a, , s)"),
    (9, "(float[N,C,4,4] x) => (float[N,C,4,4] y)", "s = Constant<value = float[4] {1, 1, 1, 1}>() y = Upsample(a, s)"),
    (7, "(float[N,C,4,4] x) => (float[N,C,4,4] y)", "y = Upsample<scales = [1.0, 1.0, 1.0, 1.0]>(a)"),
    (12, "(float[N,1] x) => (float[N,1] y)", "y = ReduceMean<axes = [1]>(a)"),
    (18, "(float[N,C,5] x) => (float[N,C,5] y)", "y = MaxPool<kernel_shape = [1]>(a)"),
    (18, "(float[N,3,1,1] x) => (float[N,3,1,1] y)", "y = GlobalAveragePool(a)"),
    (18, "(float[N] x) => (float[N] y)", "y = Concat<axis = 0>(a)"),
    (8, "(float[N] x) => (float[N] y)", "y = Sum(a)"),
    (18, "(float[6] x) => (float[6] y)", "y = Split<axis = 0, num_outputs = 1>(a)"),
    (7, "(float[N,2] x) => (float[N,2] y)", "o = Constant<value = float[1,1] {1}>() y = Mul(o, a)"),
    (18, "(float[N,2] x) => (float[N,2] y)", "o = Constant<value = float[2] {1, 1}>() y = Div(a, o)"),
    (18, "(float16[N] x) => (float16[N] y)", "o = Constant<value = float16 {0}>() y = Add(o, a)"),
    (18, "(float[N] x) => (float[N] y)", "o = Constant<value = float {0}>() y = Sub(a, o)"),
    (18, "(float[N] x) => (float[N] y)", "o = Constant<value = int64 {1}>() y = Pow(a, o)"),
    (18, "(float[N] x, float[1] z) => (float[N] y)", "c = Constant<value = bool {1}>() y = Where(c, a, z)"),
    (18, "(int32[N] x) => (int32[N] y)", "y = Clip(a)"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("opset", "signature", "nodes"), REMOVED, ids=[f"{n.split(' = ')[-1]}-{o}" for o, _, n in REMOVED]
)
def test_removes(opset: int, signature: str, nodes: str) -> None:
    before = graph(f"g {signature} {{ a = {'Neg' if opset < 7 else 'Relu'}(x) {nodes} }}", opset=opset)
    after, report = run(RemoveNoOps(), before, verify=opset >= 7)  # what ONNX Runtime loads
    assert report.changed == 1
    left = [op for op in ops(after) if op not in ("Constant", "Shape")]
    assert left == ["Neg" if opset < 7 else "Relu"]
    assert [v.name for v in after.graph.outputs] == ["y"]


KEPT = [
    (18, "(float[N] x) => (float[N] y, bool[N] m)", "y, m = Dropout(a)"),
    (18, "(float[N] x) => (double[N] y)", "y = Cast<to = 11>(a)"),
    (18, "(float[N,1,M] x) => (float[N,M,1] y)", "y = Transpose<perm = [0, 2, 1]>(a)"),
    (18, "(float[4,4] x) => (float[4,4] y)", "y = Transpose(a)"),
    (18, "(float[N,M,8] x) => (float[A,B,8] y)", "s = Constant<value_ints = [-1, 5, 8]>() y = Reshape(a, s)"),
    (18, "(float[4,5] x) => (float[4,5] y)", "p = Constant<value_ints = [1, 0, -1, 0]>() y = Pad(a, p)"),
    (18, "(float[4] x) => (float[4] y)", "b = Constant<value_ints = [-1]>() e = Constant<value_ints = [-9]>()"
     "c = Constant<value_ints = [0]>() d = Constant<value_ints = [-1]>() y = Slice(a, b, e, c, d)"),
    (9, "(float[N,C] x) => (float[N,C] y)", "y = Slice<starts = [0], ends = [1000000000], axes = [0]>(a)"),
    (9, "(float[N,512,256] x) => (float[M,512,256] y)", "y = Slice<starts = [0], ends = [1000000], axes = [0]>(a)"),
    (18, "(float[1,1,5] x) => (float[1,1,5] y)", "s = Constant<value_floats = [1.0, 1.0, 1.1]>() y = Resize(a, , s)"),
    (18, "(float[N,C,5] x) => (float[N,C,5] y)", "y = MaxPool<kernel_shape = [2], pads = [0, 1]>(a)"),
    (18, "(float[N] x) => (float[1,N] y)", "o = Constant<value = float[1,1] {1}>() y = Mul(a, o)"),
    (18, "(float[N] x) => (float[M] y)", "o = Constant<value = float[3] {0, 0, 0}>() y = Add(a, o)"),
    (18, "(float[N] x) => (float[N] y)", "o = Constant<value = float {1}>() y = Div(o, a)"),
    (18, "(float[N] x) => (float[N] y)", "o = Constant<value = float {0}>() y = Sub(o, a)"),
    (18, "(float[1] x, float[N] z) => (float[N] y)", "c = Constant<value = bool {1}>() y = Where(c, a, z)"),
    (10, "(float[N] x) => (float[N] y)", "y = Clip<max = 3.0>(a)"),
    (18, "(float[N] x) => (float[N] y)", "y = Clip(a)"),
]  # fmt: skip


@pytest.mark.parametrize(("opset", "signature", "nodes"), KEPT)
def test_keeps(opset: int, signature: str, nodes: str) -> None:
    feeds = {"x": np.array([1.0], np.float32)} if "float[3] {" in nodes else None
    _, report = run(RemoveNoOps(), graph(f"g {signature} {{ a = Relu(x) {nodes} }}", opset=opset), feeds)
    assert report.changed == 0


def test_drops_the_empty_inputs_of_a_concat() -> None:
    before = graph(
        "g (float[N] x, float[M] z) => (float[K] y) {"
        " e = Constant<value = float[0] {}>() y = Concat<axis = 0>(x, e, z) }"
    )
    after, report = run(RemoveNoOps(), before)
    assert [note.text for note in report.changes] == ["dropped 1 empty input"]
    assert [v.name for v in after.graph[-1].inputs if v] == ["x", "z"]


def test_keeps_what_would_make_an_input_an_output() -> None:
    _, report = run(RemoveNoOps(), graph("g (float[N] x) => (float[N] y) { y = Identity(x) }"))
    assert report.changed == 0
    assert report.refusals == ()


def test_both_readers_get_the_value() -> None:
    before = graph("g (float[N] x) => (float[N] y, float[N] z) { a = Relu(x) b = Identity(a) y = Neg(b) z = Exp(b) }")
    after, report = run(RemoveNoOps(), before)
    assert report.changed == 1
    assert count_ops(after) == {"Relu": 1, "Neg": 1, "Exp": 1}


def test_the_value_and_its_copy_may_both_be_outputs() -> None:
    before = graph("g (float[N] x) => (float[N] a, float[N] b) { a = Relu(x) b = Identity(a) }")
    _, report = run(RemoveNoOps(), before)
    assert report.changed == 0


def test_inside_a_body_and_a_function() -> None:
    before = graph(
        """g (float[N] x, bool c) => (float[N] y) {
            y = If (c) <then_branch = t () => (float[N] p) { q = Relu(x) p = Identity(q) },
                        else_branch = e () => (float[N] r) { r = my.double(x) }>
        }
        <domain: "my", opset_import: ["" : 18]> double (v) => (w) { i = Identity(v) w = Add(i, i) }""",
        extra=', "my" : 1',
    )
    after, report = run(RemoveNoOps(), before)
    assert report.changed == 2
    assert count_ops(after)["Identity"] == 0


def test_an_overridable_initializer_is_no_constant() -> None:
    before = graph("g (float[N] x, float o = {1}) => (float[N] y) { a = Relu(x) y = Mul(a, o) }")
    _, report = run(RemoveNoOps(), before)
    assert report.changed == 0
