"""push-transposes."""

from typing import Any

import numpy as np
import pytest

from onnxopt.passes.cleanup.merge_transposes import MergeTransposes
from onnxopt.passes.cleanup.push_transposes import PushTransposes
from tests.support import count_ops, graph, run

IN, OUT = "t = Transpose<perm = [0, 2, 3, 1]>(x)", "y = Transpose<perm = [0, 3, 1, 2]>(z)"
RNG = np.random.default_rng(0)


def _left(model: Any) -> int:
    return count_ops(model)["Transpose"]


def _ints(name: str, *values: int) -> str:
    return f"{name} = Constant<value = int64[{len(values)}] {{{', '.join(map(str, values))}}}>()"


THROUGH = [  # between (N, H, W, C) and (N, H, W, C), or what it makes of it
    "z = Relu(t)",
    "a = Cast<to = 11>(t) z = Cast<to = 1>(a)",
    "z = Add(t, c)",
    "z = Mul(k, t)",
    "z = Sub(t, p)",
    "z = PRelu(t, c)",
    "a = Neg(t) z = Add(t, a)",
    "b = Greater(t, k) z = Where(b, t, c)",
    "z = Concat<axis = 3>(t, t)",
    "z = Concat<axis = -2>(t, t)",
    "a, b = Split<axis = -1>(t, halves) z = Mul(a, b)",
    "z = ReduceMax<axes = [1, -2]>(t)",
    "z = ReduceSum(t, spatial)",
    "z = Pad(t, pads)",
    "z = Slice(t, starts, ends)",
    "z = Slice(t, starts, ends, minus)",
    "z = Clip(t, k)",
    "z = Softmax<axis = 1>(t)",
    "a = Unsqueeze(t, one) b = Relu(a) z = Squeeze(b, one)",
    "z = Max(t, t, c)",
]
CONSTANTS = " ".join(
    [_ints("halves", 2, 2), _ints("spatial", 1, 2), _ints("pads", 0, 1, 0, 2, 0, 0, 3, 0), _ints("starts", 0, 1),
     _ints("ends", 1, 3),
     _ints("minus", -1, 1), _ints("one", 1), "k = Constant<value = float {0.5}>()"]
)  # fmt: skip
ARRAYS: dict[str, Any] = {
    "c": RNG.normal(size=4).astype(np.float32),
    "p": RNG.normal(size=(5, 1, 4)).astype(np.float32),
}


@pytest.mark.parametrize("nodes", THROUGH)
def test_through(nodes: str) -> None:
    arrays = {name: array for name, array in ARRAYS.items() if f" {name})" in nodes}
    before = graph(
        f"g (float[N,4,5,6] x) => (float[A,B,C,D] y) {{ {CONSTANTS} {IN} {nodes} {OUT} }}", opset=13, **arrays
    )
    after, report = run(PushTransposes(), before)
    assert report.changed == 1
    assert _left(after) == 0
    assert [v.name for v in after.graph.outputs] == ["y"]
    assert run(PushTransposes(), after)[1].changed == 0


OLD = ["z = Pad<pads = [0, 1, 0, 2, 0, 0, 3, 0]>(t)", "z = Slice<starts = [0, 1], ends = [1, 3], axes = [-1, 2]>(t)",
       "z = ReduceSum<axes = [1]>(t)", "a = Unsqueeze<axes = [0]>(t) b = Abs(a) z = Squeeze<axes = [0]>(b)",
       "z = Clip<min = 0.0>(t)", "a, b = Split<axis = 3>(t) z = Add(a, b)"]  # fmt: skip
NEW = [
    "a = Gelu(t) z = HardSwish(a)",
    "z = ReduceMean(t, spatial)",
    "z = Pad(t, two, , minus)",
    "z = ReduceSum<noop_with_empty_axes = 1>(t)",
]


@pytest.mark.parametrize(("opset", "nodes"), [*((7, n) for n in OLD), *((21, n) for n in NEW)])
def test_through_in_other_opsets(opset: int, nodes: str) -> None:
    constants = f"{CONSTANTS} {_ints('two', 1, 0, 2, 3)}" if opset > 9 else ""
    before = graph(f"g (float[N,4,5,6] x) => (float[A,B,C,D] y) {{ {constants} {IN} {nodes} {OUT} }}", opset=opset)
    assert _left(run(PushTransposes(), before)[0]) == 0


@pytest.mark.parametrize(
    ("nodes", "rank"),
    [("y = ReduceMean<axes = [1, 2], keepdims = 0>(t)", 2), ("y = ReduceMax<keepdims = 0>(t)", 0),
     ("a = ReduceMean<axes = [1, 2]>(t) b = Squeeze(a, spatial) y = Relu(b)", 2),
     ("y = ReduceMin(t)", 4), ("y = ArgMax<axis = 3, keepdims = 1>(t)", 4)],
)  # fmt: skip
def test_into_what_takes_the_axes_away(nodes: str, rank: int) -> None:
    kind = "int64" if "Arg" in nodes else "float"
    dims = f"[{','.join('ABCD'[:rank])}]" if rank else ""
    before = graph(f"g (float[N,4,5,6] x) => ({kind}{dims} y) {{ {CONSTANTS} {IN} {nodes} }}", opset=13)
    after, report = run(PushTransposes(), before)
    if "Arg" in nodes:  # the rest would have to be transposed still
        assert report.changed == 0
    else:
        assert _left(after) == 0


def test_through_a_reshape_that_moves_ones() -> None:
    before = graph(
        f"g (float[N,4,1,6] x) => (float[N,4,6] y) {{ {_ints('s', -1, 6, 4)} {IN} a = Reshape(t, s) b = Relu(a)"
        " y = Transpose<perm = [0, 2, 1]>(b) }"
    )
    after, _ = run(PushTransposes(), before)
    assert _left(after) == 0


def test_branches_that_meet() -> None:
    before = graph(
        "g (float[N,4,5,6] x, float[N,4,5,6] w) => (float[N,4,5,6] y, float[N,4,5,6] v) {"
        " t = Transpose<perm = [0, 2, 3, 1]>(x) u = Transpose<perm = [0, 2, 3, 1]>(w)"
        " a = Relu(t) b = Neg(u) z = Add(a, b) y = Transpose<perm = [0, 3, 1, 2]>(z) e = Exp(z)"
        " v = Transpose<perm = [0, 3, 1, 2]>(e) }"
    )
    after, report = run(PushTransposes(), before)
    assert [note.text for note in report.changes] == ["let 4 nodes work in the other order, 4 fewer remain"]
    assert _left(after) == 0


def test_adds_one_where_more_go() -> None:
    before = graph(f"g (float[N,4,5,6] x, float[N,5,6,4] w) => (float[N,4,5,6] y) {{ {IN} z = Add(t, w) {OUT} }}")
    after, _ = run(PushTransposes(), before)
    assert _left(after) == 1
    before = graph(
        f"g (float[N,4,5,6] x, float[N,5,6,1] s) => (float[N,4,5,6] y) {{ {IN} r = Relu(t) z = Mul(r, s) {OUT} }}"
    )
    assert _left(run(PushTransposes(), before)[0]) == 1


def test_a_reader_outside_keeps_the_name() -> None:
    before = graph(f"g (float[N,4,5,6] x) => (float[N,4,5,6] y, float[N,5,6,4] z) {{ {IN} z = Relu(t) {OUT} }}")
    after, report = run(PushTransposes(), before)
    assert report.changed == 1
    assert _left(after) == 1
    assert [v.name for v in after.graph.outputs] == ["y", "z"]


def test_an_exit_may_become_another_transposition() -> None:
    before = graph(
        f"g (float[N,4,5,6] x) => (float[N,4,5,6] y, float[A,B,C,D] v) {{"
        f" {IN} z = Relu(t) {OUT} v = Transpose<perm = [3, 2, 1, 0]>(z) }}"
    )
    after, _ = run(PushTransposes(), before)
    assert _left(after) == 1


def test_two_outputs_that_become_the_same_value() -> None:
    before = graph(
        f"g (float[N,4,5,6] x) => (float[N,4,5,6] y, float[N,4,5,6] v) {{"
        f" {IN} z = Relu(t) {OUT} v = Transpose<perm = [0, 3, 1, 2]>(z) }}"
    )
    after, _ = run(PushTransposes(), before)
    assert count_ops(after) == {"Relu": 1, "Identity": 1}


@pytest.mark.parametrize(
    "nodes",
    ["z = Relu(t) y = Neg(z)",
     "z = Softmax(t) y = Transpose<perm = [0, 3, 1, 2]>(z)",
     "z = MatMul(t, t2) y = Transpose<perm = [0, 3, 1, 2]>(z) t2 = Transpose<perm = [0, 1, 3, 2]>(t)",
     "u = Transpose<perm = [0, 2, 3, 1]>(x) a = Sub(t, u) b = Add(a, big) z = Relu(b) y = ReduceMax(z)",
     "z = Add(t, row) y = Transpose<perm = [0, 3, 1, 2]>(z)"],
)  # fmt: skip
def test_keeps(nodes: str) -> None:
    nodes = (
        "t2 = Transpose<perm = [0, 1, 3, 2]>(t) " + nodes.replace(" t2 = Transpose<perm = [0, 1, 3, 2]>(t)", "")
        if "t2" in nodes
        else nodes
    )
    before = graph(
        f"g (float[1,4,5,6] x, float[M,5,6,4] big, float[4] row) => (float[A,B,C,D] y) {{ {IN} {nodes} }}", opset=13
    )
    assert run(PushTransposes(), before)[1].changed == 0


def test_a_large_shared_constant_stays() -> None:
    shared = RNG.normal(size=(5, 6, 4)).astype(np.float32)
    before = graph(
        f"g (float[N,4,5,6] x) => (float[N,4,5,6] y, float[5,6,4] v) {{ {IN} z = Add(t, c) {OUT} v = Neg(c) }}",
        c=shared,
    )
    assert run(PushTransposes(), before)[1].changed == 0


def test_what_a_body_reads_is_transposed_for_it() -> None:
    before = graph(
        f"""g (float[N,4,5,6] x, bool c) => (float[N,4,5,6] y, float[N,4,5,6] q, float[N,5,6,4] u) {{
            {IN} z = Relu(t) {OUT} e = Exp(z) q = Transpose<perm = [0, 3, 1, 2]>(e)
            u = If (c) <then_branch = a () => (float[N,5,6,4] b) {{ b = Neg(z) }},
                        else_branch = d () => (float[N,5,6,4] f) {{ f = Abs(z) }}>
        }}"""
    )
    after, _ = run(PushTransposes(), before)
    assert _left(after) == 1


def test_inside_a_body_and_a_function() -> None:
    before = graph(
        f"""g (float[N,4,5,6] x, bool c) => (float[N,4,5,6] y) {{
            y = If (c) <then_branch = a () => (float[N,4,5,6] b) {{ {IN} z = Relu(t) {OUT.replace("y =", "b =")} }},
                        else_branch = d () => (float[N,4,5,6] f) {{ f = my.g(x) }}>
        }}
        <domain: "my", opset_import: ["" : 18]> g (x) => (y) {{ {IN} z = Neg(t) {OUT} }}""",
        extra=', "my" : 1',
    )
    after, report = run(PushTransposes(), before)
    assert report.changed == 2
    assert _left(after) == 0


def test_excluded_nodes_stay() -> None:
    before = graph(f"g (float[N,4,5,6] x) => (float[N,4,5,6] y) {{ {IN} z = Relu(t) {OUT} }}")
    assert run(PushTransposes(exclude=("Transpose",)), before)[1].changed == 0


def test_random_graphs() -> None:
    rng = np.random.default_rng(1)
    for _ in range(25):
        values, nodes = ["x", "w"], []
        for at in range(12):
            a, b = rng.choice(values[-4:], 2)
            kind = rng.integers(5)
            name = f"v{at}"
            if kind < 2:
                perm = ["0, 2, 1", "0, 1, 2", "1, 0, 2", "2, 1, 0", "1, 2, 0"][rng.integers(5)]
                nodes.append(f"{name} = Transpose<perm = [{perm}]>({a})")
            else:
                nodes.append(
                    [f"{name} = Add({a}, {b})", f"{name} = Tanh({a})", f"{name} = Softmax<axis = 1>({a})"][kind - 2]
                )
            values.append(name)
        before = graph(
            f"g (float[3,3,3] x, float[3,3,3] w) => (float[3,3,3] v11, float[3,3,3] v9) {{ {' '.join(nodes)} }}"
        )
        for _ in range(6):
            before, first = run(PushTransposes(), before)
            before, second = run(MergeTransposes(), before)
            if not first.changed + second.changed:
                break
        else:
            pytest.fail("no fixed point")
