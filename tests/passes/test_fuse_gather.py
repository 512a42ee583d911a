"""fuse-gather."""

from typing import Any

import numpy as np
import pytest

from onnxopt.passes.cleanup.fuse_gather import FuseGather
from onnxopt.passes.cleanup.remove_dead import RemoveDead
from tests.support import graph, ops, run

NUMBERS = {"zero": 0, "three": 3, "six": 6, "end": 2**63 - 1, "axis": 1, "minus": -1}
CUTS: dict[str, Any] = {name: np.array([number]) for name, number in NUMBERS.items()}
ROLL = "first = Slice(x, three, end, axis) last = Slice(x, zero, three, axis) y = Concat<axis = -3>(first, last)"


def test_fuses_a_roll() -> None:
    before = graph(f"g (float[N, 9, H, 64] x) => (float[N, 9, H, 64] y) {{ {ROLL} }}", **CUTS)
    after, report = run(FuseGather(), before)
    assert report.changed == 1
    after = run(RemoveDead(), after)[0]
    assert ops(after) == ["Gather"]
    (indices,) = after.graph.initializers.values()
    assert indices.const_value is not None
    assert indices.const_value.numpy().tolist() == [3, 4, 5, 6, 7, 8, 0, 1, 2]


def test_fuses_cuts_of_every_kind() -> None:
    nodes = """a = Slice(x, minus, end, axis) b = Slice(x, zero, end, axis, three) c = Slice(x, far, end, axis)
        d = Slice(x, minus, minus, axis) y = Concat<axis = 1>(a, b, c, d)"""
    more: dict[str, Any] = {"far": np.array([70])}
    before = graph(f"g (float[2, 7, 64] x) => (float[2, 4, 64] y) {{ {nodes} }}", **CUTS, **more)
    after, report = run(FuseGather(), before)
    assert report.changed == 1
    assert ops(after) == ["Gather"]


@pytest.mark.parametrize(
    ("dims", "nodes", "why"),
    [
        ("N, 9, 63", ROLL.replace("-3", "1"), "slow for blocks of 63"),
        ("N, 9, H", ROLL.replace("-3", "1"), "slow for blocks of 1"),
        ("N, 900, 64", ROLL.replace("-3", "1"), "900 indices would make the file larger"),
    ],
)
def test_refuses(dims: str, nodes: str, why: str) -> None:
    _, report = run(FuseGather(), graph(f"g (float[{dims}] x) => (float[A, B, C] y) {{ {nodes} }}", **CUTS))
    assert report.changed == 0
    assert why in str(report.refusals[0])


@pytest.mark.parametrize(
    "nodes",
    [
        ROLL.replace("-3", "0").replace("end", "six"),  # along another axis
        ROLL.replace("-3", "1").replace("Slice(x, z", "Slice(w, z"),  # of two values
        ROLL.replace("-3", "1") + " z = Relu(last)",  # the neighbour needs the slice
        ROLL.replace("-3", "1").replace("first, last", "first, x"),
        ROLL.replace("-3", "1").replace("first, last", "first, first"),
        ROLL.replace("-3", "1").replace("end, axis", "zero, axis, minus"),  # backwards
    ],
)
def test_no_match(nodes: str) -> None:
    before = graph(
        f"g (float[N, 9, 64] x, float[N, 9, 64] w) => (float[A, B, C] y, float[D, E, F] z) {{ {nodes} "
        f"{'' if 'z = ' in nodes else 'z = Relu(w)'} }}",
        **CUTS,
    )
    feeds = {name: np.random.default_rng(0).normal(size=(2, 9, 64)).astype(np.float32) for name in "xw"}
    _, report = run(FuseGather(), before, feeds)
    assert report.changed == 0
    assert not report.refusals
