"""Operators that work along some axes only: channels along the others go through, and along these they stay."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.channels import Unit
from tests.channels_cases import Case, arrays, image, rows
from tests.channels_oracle import assert_removal_is_zeroing, free, groups, members, reasons
from tests.support import graph

GRID = np.random.default_rng(0).uniform(-1, 1, (2, 3, 5, 2)).astype(np.float32)
ROIS = np.array([[0, 0, 2, 3], [1, 0, 3, 3], [0, 1, 3, 2]], np.float32)
PLACES = np.array([[1, 0, 1], [0, 0, 1]])
"""For 2 samples, 3 of 2 places."""
SPREAD = "s = Concat<axis = 0>(n, picked, wide)\n"
BATCH = "n = Shape<end = 1>(a)\n"

CASES = {
    "GridSample": image("b = GridSample(a, grid)", grid=GRID),
    "RoiAlign": image(
        "b = RoiAlign<output_height = 2, output_width = 3>(a, rois, of)", rois=ROIS, of=np.array([0, 1, 1])
    ),
    "MaxRoiPool": image(
        "b = MaxRoiPool<pooled_shape = [2, 2]>(a, rois)",
        rois=np.concatenate([np.array([[0], [1], [1]], np.float32), ROIS], axis=1),
    ),
    "ReverseSequence": rows("b = ReverseSequence<batch_axis = 0, time_axis = 1>(a, lens)", lens=[1, 2]),
    "Trilu of places": rows("t = Transpose<perm = [2, 0, 1]>(a)\n u = Trilu(t)\n b = Transpose<perm = [1, 2, 0]>(u)"),
    "Compress of places": image("b = Compress<axis = 2>(a, which)", which=np.array([True, False, True, False])),
    "GatherElements of places": rows(
        f"i = Unsqueeze(places, last)\n {BATCH} {SPREAD} e = Expand(i, s)\n b = GatherElements<axis = 1>(a, e)",
        places=PLACES, last=[2], picked=[3], wide=[12],
    ),
    "GatherElements of places, the last axis counted from the back": image(
        f"{BATCH} s = Concat<axis = 0>(n, wide)\n e = Expand(at, s)\n b = GatherElements<axis = -1>(a, e)",
        at=np.array([[3, 0]]), wide=[8, 4, 2],
    ),
    "ScatterElements of places": rows(
        f"i = Unsqueeze(places, last)\n {BATCH} {SPREAD} e = Expand(i, s)\n"
        "c = MatMul(x, w2)\n g = GatherElements<axis = 1>(c, e)\n"
        'b = ScatterElements<axis = 1, reduction = "add">(a, e, g)',
        places=PLACES, last=[2], picked=[3], wide=[12], w2=(5, 12),
    ),
    "GatherND of places": rows("b = GatherND<batch_dims = 1>(a, places)", places=PLACES[:, :, None]),
    "GatherND of samples and places": rows("b = GatherND(a, at)", at=np.array([[[0, 1], [1, 1]]])),
    "ScatterND of places": rows(
        "c = MatMul(x, w2)\n b = ScatterND(a, at, c)", w2=(5, 12), at=np.array([[[0, 1], [1, 1]], [[0, 0], [1, 0]]])
    ),
    "CumSum over places": rows("b = CumSum(a, one)", one=np.array(1)),
    "TopK of places": image("b, i = TopK<axis = 2>(a, k)", k=[2]),
    "order of places": rows(
        "v0, i = TopK<axis = 1>(a, k)\n f = Cast<to = 1>(i)\n b = Mul(f, s)", k=[2], s=(12,), by_members=False
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
def test_operator(case: Case) -> None:
    model = case.model()
    assert free(model, case.unit) == case.free
    assert all(group.exact for group in groups(model) if not group.frozen)
    for seed in (0, 1):
        assert assert_removal_is_zeroing(model, seed, by_members=case.by_members) > 0


@pytest.mark.parametrize("unit", ["channel", "head"])
def test_a_bias_of_each_head_taken_by_position(unit: Unit) -> None:
    # as in Swin: the table has a column a head, and its rows go to pairs of places
    model = graph(
        "g (float[N,2,5] x) => (float[N,2,3] y) <int64[4] by_head = {0, 0, 4, 3}, int64[3] flat = {0, 0, 12},"
        "int64[4,1] at = {0, 2, 1, 0}, int64[3] pairs = {2, 2, 4}, int64[1] first = {0}> {"
        "q0 = MatMul(x, wq)\n q1 = Reshape(q0, by_head)\n q = Transpose<perm = [0, 2, 1, 3]>(q1)\n"
        "v0 = MatMul(x, wv)\n v1 = Reshape(v0, by_head)\n v = Transpose<perm = [0, 2, 1, 3]>(v1)\n"
        "k = Transpose<perm = [0, 1, 3, 2]>(q)\n s0 = MatMul(q, k)\n t0 = GatherND(table, at)\n"
        "t1 = Reshape(t0, pairs)\n t2 = Transpose<perm = [2, 0, 1]>(t1)\n t = Unsqueeze(t2, first)\n"
        "s = Add(s0, t)\n p = Softmax(s)\n c = MatMul(p, v)\n c1 = Transpose<perm = [0, 2, 1, 3]>(c)\n"
        "f = Reshape(c1, flat)\n y = MatMul(f, wo) }",
        **arrays({"wq": (5, 12), "wv": (5, 12), "table": (3, 4), "wo": (12, 3)}),
    )  # fmt: skip
    if unit == "head":
        assert members(model, unit) == [{"wq[1]", "wv[1]", "table[1]", "wo[0]"}]
    assert assert_removal_is_zeroing(model, unit=unit) > 0


FROZEN = {
    "GridSample of features": (
        rows("g = Unsqueeze(a, one)\n t = GridSample(g, grid)\n b = Squeeze(t, one)", 5, grid=GRID, one=[1]), "w[1]"),
    "GridSample of features as rows": (
        rows("s = Transpose<perm = [0, 2, 1]>(a)\n g = Unsqueeze(s, one)\n t = GridSample(g, grid)\n"
             "b = Squeeze(t, one)", 5, grid=GRID, one=[1]), "w[1]"),
    "RoiAlign along features": (
        rows("u = Unsqueeze(a, one)\n r = RoiAlign<output_height = 2, output_width = 3>(u, rois, of)\n"
             "b = Squeeze(r, one)", 3, rois=ROIS, of=np.array([0, 1, 1]), one=[1]), "w[1]"),
    "ReverseSequence of features": (
        rows("b = ReverseSequence<batch_axis = 0, time_axis = 2>(a, lens)", lens=[1, 2]), "w[1]"),
    "Trilu of features": (rows("b = Trilu(a)"), "w[1]"),
    "Compress of features": (
        rows("b = Compress<axis = -1>(a, which)", 6, which=np.array([True, False] * 6)), "w[1]"),
    "Compress of all": (image("c = Compress(a, which)\n b = Reshape(c, back)", 1, which=np.ones(2, bool),
                              back=[1, 1, 1, 2]), "w[0]"),
    "GatherElements of features": (
        rows("b = GatherElements<axis = 2>(a, at)", 3, at=np.zeros((2, 2, 3), np.int64)), "w[1]"),
    "GatherElements of fewer features": (
        rows("b = GatherElements<axis = 1>(a, at)", 5, at=np.zeros((2, 3, 5), np.int64)), "w[1]"),
    "GatherElements of one feature": (
        rows("b = GatherElements<axis = 1>(a, at)", 1, at=np.zeros((2, 3, 1), np.int64)), "w[1]"),
    "ScatterElements of fewer features": (
        rows("b = ScatterElements<axis = 1>(a, at, u)", at=np.zeros((2, 1, 5), np.int64), u=(2, 1, 5)), "w[1]"),
    "GatherND of features": (rows("b = GatherND<batch_dims = 2>(a, at)", 2, at=np.zeros((2, 2, 1), np.int64)), "w[1]"),
    "ScatterND of features": (
        rows("b = ScatterND(a, at, u)", at=np.array([[0, 1, 2]]), u=(1,)), "w[1]"),
    "CumSum over features": (rows("b = CumSum(a, last)", last=np.array(-1)), "w[1]"),
    "what suppression reads": (
        rows("t = Transpose<perm = [0, 2, 1]>(a)\n i = NonMaxSuppression(boxes, t, k)\n f = Cast<to = 1>(i)\n"
             "z = ReduceSum<keepdims = 0>(f)\n b = Add(a, z)", k=[3], boxes=(2, 2, 4)), "w[1]"),
}  # fmt: skip


@pytest.mark.parametrize(("case", "member"), [pytest.param(*each, id=name) for name, each in FROZEN.items()])
def test_frozen_along_these_axes(case: Case, member: str) -> None:
    assert member in reasons(case.model())
