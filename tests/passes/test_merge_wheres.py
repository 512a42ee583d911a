"""merge-wheres."""

import numpy as np
import pytest

from onnxopt.passes.cleanup.merge_wheres import MergeWheres
from onnxopt.passes.cleanup.remove_dead import RemoveDead
from tests.support import graph, ops, run

SIGNATURE = "g (bool[N, 4] c, float[N, 4] a, float[N, 4] b, float[N, 4] d) => (float[N, 4] y)"


@pytest.mark.parametrize(
    "nodes",
    [
        "n = Not(c) y = Where(n, a, b)",
        "n = Not(c) m = Not(n) k = Not(m) y = Where(k, a, b)",
        "w = Where(c, b, d) y = Where(c, a, w)",
        "w = Where(c, a, b) y = Where(c, w, d)",
        "n = Not(c) w = Where(n, a, b) y = Where(c, d, w)",
        "v = Where(c, a, b) w = Where(c, v, b) y = Where(c, w, d)",
    ],
)
def test_one_where_is_left(nodes: str) -> None:
    before = graph(f"{SIGNATURE} {{ {nodes} }}")
    after = before
    for _ in range(4):
        after, report = run(MergeWheres(), after)
    assert report.changed == 0
    assert ops(run(RemoveDead(), after)[0]) == ["Where"]


def test_the_mask_of_shifted_windows() -> None:
    before = graph(
        """g (float[W, 4, 1] a, float[W, 1, 4] b) => (float[W, 4, 4] y) {
            d = Sub(a, b) same = Equal(d, zero) other = Not(same)
            m = Where(other, low, d) y = Where(same, zero, m)
        }""",
        zero=np.float32(0),
        low=np.float32(-100),
    )
    after = run(MergeWheres(), run(MergeWheres(), before)[0])[0]
    assert ops(run(RemoveDead(), after)[0]) == ["Sub", "Equal", "Where"]


@pytest.mark.parametrize(
    "nodes",
    [
        "w = Where(e, b, d) y = Where(c, a, w)",  # another condition
        "w = Where(c, t, one) y = Where(c, a, w)",  # what would be dropped enlarges the shape
    ],
)
def test_refuses(nodes: str) -> None:
    signature = SIGNATURE.replace("bool[N, 4] c", "bool[N, 1] c, bool[N, 4] e, float[N, 4] t")
    signature = signature.replace("float[N, 4] a", "float[N, 1] a")
    assert run(MergeWheres(), graph(f"{signature} {{ {nodes} }}", one=np.float32(1)))[1].changed == 0


def test_a_neighbour_keeps_the_inner_choice() -> None:
    before = graph(f"{SIGNATURE[:-1]}, float[N, 4] z) {{ w = Where(c, b, d) y = Where(c, a, w) z = Relu(w) }}")
    after, report = run(MergeWheres(), before)
    assert report.changed == 1
    assert ops(after) == ["Where", "Where", "Relu"]
