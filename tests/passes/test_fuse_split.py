"""fuse-split."""

from typing import Any

import numpy as np
import pytest

from onnxopt.passes.cleanup.fuse_split import FuseSplit
from tests.support import count_ops, graph, ops, run

CHUNKS = """g (float[N, 6] x) => (float[N, A] y, float[N, B] z) {{
    s = SplitToSequence<axis = {axis}>(x, sizes) a = SequenceAt(s, {first}) b = SequenceAt(s, {second})
    y = Relu(a) z = Neg(b)
}}"""
NUMBERS: dict[str, Any] = {f"i{n}".replace("-", "m"): np.array(n) for n in (0, 1, 2, -1)}


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("sizes", [np.array([2, 4]), np.array(3), np.array(4)])
@pytest.mark.parametrize(("axis", "second"), [(1, "i1"), (-1, "im1")])
def test_becomes_split(opset: int, sizes: np.ndarray[Any, Any], axis: int, second: str) -> None:
    before = graph(CHUNKS.format(axis=axis, first="i0", second=second), opset=opset, sizes=sizes, **NUMBERS)
    after, report = run(FuseSplit(), before)
    assert report.changed == 1
    assert ops(after) == ["Split", "Relu", "Neg"]
    assert [v.name for v in after.graph[0].outputs] == ["a", "b"]


def test_parts_that_nobody_picks_stay_outputs_of_the_split() -> None:
    before = graph(CHUNKS.format(axis=1, first="i0", second="i2"), sizes=np.array([1, 2, 3]), **NUMBERS)
    after, _ = run(FuseSplit(), before)
    assert len(after.graph[0].outputs) == 3


def test_a_pick_may_be_an_output_of_the_graph() -> None:
    body = "g (float[N, 6] x) => (float[N, 3] y) { s = SplitToSequence<axis = 1>(x, sizes) y = SequenceAt(s, i1) }"
    after, _ = run(FuseSplit(), graph(body, sizes=np.array(3), **NUMBERS))
    assert ops(after) == ["Split"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (CHUNKS.format(axis=0, first="i0", second="i1"), "the length of the axis"),
        (CHUNKS.format(axis=1, first="i1", second="i1"), "picked twice"),
        (CHUNKS.format(axis=1, first="i0", second="i2"), "beyond the 2 parts"),
    ],
)
def test_refusals(body: str, reason: str) -> None:
    _, report = run(FuseSplit(), graph(body, sizes=np.array(3), **NUMBERS), verify=False)
    assert report.changed == 0
    assert reason in str(report.refusals[0])


def test_a_sequence_with_another_reader_stays() -> None:
    body = """g (float[N, 6] x) => (float[N, 3] y, int64 n) {
        s = SplitToSequence<axis = 1>(x, sizes) y = SequenceAt(s, i1) n = SequenceLength(s)
    }"""
    assert run(FuseSplit(), graph(body, sizes=np.array(3), **NUMBERS))[1].changed == 0


def test_in_a_body() -> None:
    body = """g (bool c, float[N, 6] x) => (float[N, 3] y) { y = If (c) <
        then_branch = t () => (float[N, 3] a) { s = SplitToSequence<axis = 1>(x, sizes) a = SequenceAt(s, i1) },
        else_branch = e () => (float[N, 3] b) { u = SplitToSequence<axis = 1>(x, sizes) b = SequenceAt(u, i0) }> }"""
    after, report = run(FuseSplit(), graph(body, sizes=np.array(3), **NUMBERS))
    assert report.changed == 2
    assert count_ops(after) == {"If": 1, "Split": 2}
