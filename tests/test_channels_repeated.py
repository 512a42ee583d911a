"""Channels along axes of unknown size: group normalizations over images of any size, heads in one axis with samples.

Where zeros are no oracle, since statistics change, it is the same model written with smaller weights.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.channels import ChannelGraph
from onnxopt.channels._reshape import factors
from onnxopt.graph import Editor
from tests.channels_cases import Case, arrays, image, rows
from tests.channels_oracle import assert_removal_is_zeroing, free, groups, remove
from tests.support import assert_same_outputs, graph

Array = np.ndarray[Any, Any]


def drawn(*dims: int) -> Array:
    return np.random.default_rng(0).standard_normal(dims).astype(np.float32)


# -- group normalization -----------------------------------------------------------------------------------------

SPLIT = "r = Reshape(a, split)\n n = InstanceNormalization(r, one, zero)\n"
AFFINE = "q = Reshape(n, s)\n m = Mul(q, scale)\n b = Add(m, bias)"
FORMS = {
    "Reshape to the shape of before": f"{SPLIT} s = Shape(a)\n {AFFINE}",
    "Reshape to sizes put together": (
        f"{SPLIT} n0 = Shape<end = 1>(x)\n hw = Shape<start = 2>(a)\n s = Concat<axis = 0>(n0, rest, hw)\n {AFFINE}"
    ),
    "GroupNormalization": "b = GroupNormalization<num_groups = {groups}>(a, s1, b1)",
}


def group_norm(form: str, weights: dict[str, Any], count: int) -> ir.Model:
    """A convolution, a normalization in ``count`` groups, and a convolution that reads it; images are of any size."""
    extra: dict[str, Any] = {
        "one": np.ones(count, np.float32),
        "zero": np.zeros(count, np.float32),
        "split": np.array([0, count, -1]),
        "rest": np.array([len(weights["w"])]),
    }
    vectors = {"s1": weights["scale"].reshape(-1), "b1": weights["bias"].reshape(-1)}
    body = FORMS[form].format(groups=count)
    return graph(
        f"g (float[N,3,H,W] x) => (float[N,M,P,Q] y) {{ a = Conv(x, w)\n {body}\n y = Conv(b, v) }}",
        opset=21,
        ir_version=10,
        **weights,
        **{name: array for name, array in (extra | vectors).items() if name in body},
    )


def eight() -> dict[str, Any]:
    return arrays({"w": (8, 3, 1, 1), "v": (2, 8, 1, 1), "scale": (8, 1, 1), "bias": (8, 1, 1)})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("x", [drawn(1, 3, 4, 6), drawn(3, 3, 5, 2)], ids=["wide", "tall"])
def test_channels_inside_groups(form: str, x: Array) -> None:
    weights = eight()
    model = group_norm(form, weights, 2)
    (group,) = [group for group in groups(model) if not group.frozen]
    assert (group.size, group.exact) == (4, False)
    kept = [1, 5]
    left = {name: array[:, kept] if name == "v" else array[kept] for name, array in weights.items()}
    small = remove(model, {group.number: [0, 2, 3]})
    assert_same_outputs(group_norm(form, left, 2), small, {"x": x})


@pytest.mark.parametrize("form", FORMS)
def test_each_group_is_a_channel(form: str) -> None:
    model = group_norm(form, eight(), 8)
    assert free(model) == "w[0]:8"
    for x in (drawn(1, 3, 4, 6), drawn(3, 3, 5, 2)):
        assert assert_removal_is_zeroing(model, feeds={"x": x}) == 4


BY_GROUPS = "{}\n t = Reshape(c, split)\n p = Softmax<axis = 2>(t)\n b = Reshape(p, merge)"
"""What is behind the normalization allows whole groups only."""
SHAPES: dict[str, Any] = {"split": [0, 4, 2, 4, 4], "merge": [0, 8, 4, 4]}
WHOLE = {
    "of opset 21": image(BY_GROUPS.format("c = GroupNormalization<num_groups = 4>(a, s, o)"), free="w[0]:4",
                         s=(8,), o=(8,), opset=21, by_members=False, **SHAPES),
    "of opset 18": image(BY_GROUPS.format("c = GroupNormalization<num_groups = 4>(a, s, o)"), free="w[0]:4",
                         s=(4,), o=(4,), by_members=False, **SHAPES),
    "by Reshape": image(
        BY_GROUPS.format("h = Reshape(a, by_group)\n n = InstanceNormalization(h, s, o)\n g = Shape(a)\n"
                         "c = Reshape(n, g)"), free="w[0]:4",
        by_group=[0, 4, -1], s=(4,), o=(4,), by_members=False, **SHAPES),
}  # fmt: skip


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in WHOLE.items()])
def test_whole_groups(case: Case) -> None:
    model = case.model()
    assert free(model) == case.free
    assert all(group.exact for group in groups(model) if not group.frozen)
    assert assert_removal_is_zeroing(model, by_members=False) == 2


# -- what the parts of axes are -----------------------------------------------------------------------------------

SMALL = st.lists(st.sampled_from((1, 2, 3)), min_size=1, max_size=6)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(SMALL, st.data())
def test_factors_are_the_same_places_of_both_shapes(parts: list[int], data: st.DataObject) -> None:
    """Shapes are products of the same parts, and some of their dims are not told."""

    def grouped(name: str) -> list[int]:
        cuts = sorted(data.draw(st.sets(st.integers(1, len(parts))), name)) or [len(parts)]
        cuts = [*cuts[:-1], len(parts)]
        return [math.prod(parts[a:b]) for a, b in zip([0, *cuts[:-1]], cuts, strict=True)]

    before, after = grouped("before"), grouped("after")
    hidden = [data.draw(st.lists(st.booleans(), min_size=len(dims), max_size=len(dims))) for dims in (before, after)]
    told = [[None if hide else d for d, hide in zip(dims, own, strict=True)]
            for dims, own in zip((before, after), hidden, strict=True)]  # fmt: skip
    found = factors(*told)
    places = np.arange(math.prod(parts))
    for factor in found:
        if factor.source is None or factor.target is None:
            continue
        source, target = (
            _digit(places, dims, axis, [f.size for f in same], same.index(factor))
            for dims, axis, same in (
                (before, factor.source, [f for f in found if f.source == factor.source]),
                (after, factor.target, [f for f in found if f.target == factor.target]),
            )
        )
        if source is not None and target is not None:
            np.testing.assert_array_equal(source, target)


def _digit(places: Array, dims: list[int], axis: int, sizes: list[int | None], at: int) -> Array | None:
    """For each element, where it is along one part of an axis; ``None`` if the sizes of the parts are not clear."""
    if sizes.count(None) > 1:
        return None
    known = math.prod(size for size in sizes if size is not None)
    assert dims[axis] % known == 0
    whole = [dims[axis] // known if size is None else size for size in sizes]
    assert math.prod(whole) == dims[axis]
    along = places // math.prod(dims[axis + 1 :]) % dims[axis]
    return np.asarray(along // math.prod(whole[at + 1 :]) % whole[at])


# -- heads in one axis with samples --------------------------------------------------------------------------------

SIZES = "t0 = Shape<end = 1>(x)\n n0 = Shape<start = 1, end = 2>(x)\n n1 = Mul(n0, heads)\n"
HEADS = (
    f"{SIZES} sh = Concat<axis = 0>(t0, n1, each)\n"
    "k = MatMul(x, wk)\n u = MatMul(x, wv)\n"
    "q1 = Reshape(a, sh)\n k1 = Reshape(k, sh)\n v1 = Reshape(u, sh)\n"
    "q2 = Transpose<perm = [1, 0, 2]>(q1)\n k2 = Transpose<perm = [1, 2, 0]>(k1)\n"
    "v2 = Transpose<perm = [1, 0, 2]>(v1)\n"
)
SCORES = "s = MatMul(q2, k2)\n p = Softmax<axis = -1>(s)\n c = MatMul(p, v2)\n"
BACK = "d = Transpose<perm = [1, 0, 2]>(c)\n tn = Concat<axis = 0>(t0, n0, all)\n b = Reshape(d, tn)"
WEIGHTS: dict[str, Any] = {"wk": (5, 12), "wv": (5, 12), "heads": [4], "each": [3], "all": [-1]}
TOGETHER = {
    "multiplied together": rows(HEADS + SCORES + BACK, free="w[1]:4", unit="head", **WEIGHTS),
    "taken apart for the scores": rows(
        HEADS + "ah = Concat<axis = 0>(all, heads, t0, each)\n q3 = Reshape(q2, ah)\n v3 = Reshape(v2, ah)\n"
        "at = Concat<axis = 0>(all, heads, each, t0)\n k3 = Reshape(k2, at)\n"
        "s = MatMul(q3, k3)\n p = Softmax<axis = -1>(s)\n e = MatMul(p, v3)\n ntd = Shape(q2)\n c = Reshape(e, ntd)\n"
        + BACK,
        free="w[1]:4", unit="head", **WEIGHTS,
    ),
    "samples counted at their axis": rows(
        HEADS + SCORES + "d = Transpose<perm = [1, 0, 2]>(c)\n i = Shape<start = 0, end = 1>(c)\n j = Div(i, heads)\n"
        "tn = Concat<axis = 0>(t0, j, all)\n b = Reshape(d, tn)",
        free="w[1]:4", unit="head", **WEIGHTS,
    ),
    "with a bias of each head": rows(
        HEADS + "z = Concat<axis = 0>(n0, one, t0, t0)\n m0 = Expand(bias, z)\n nt = Concat<axis = 0>(all, t0, t0)\n"
        "m = Reshape(m0, nt)\n s0 = MatMul(q2, k2)\n s = Add(s0, m)\n p = Softmax<axis = -1>(s)\n"
        "c = MatMul(p, v2)\n" + BACK,
        free="bias[1]:4", unit="head", **WEIGHTS, bias=(1, 4, 1, 1), one=[1],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in TOGETHER.items()])
@pytest.mark.parametrize("samples", [1, 2, 3])
def test_heads_together_with_samples(case: Case, samples: int) -> None:
    model = case.model()
    # names of the dims in the text: the first axis is that of places
    found = [group for group in groups(model, "head") if not group.frozen]
    assert [(group.size, group.heads, group.exact) for group in found] == [(4, True, True)]
    assert assert_removal_is_zeroing(model, unit="head", feeds={"x": drawn(2, samples, 5)}, by_members=False) == 2


def test_features_of_heads_together_with_samples() -> None:
    model = TOGETHER["multiplied together"].model()
    assert free(model) == "w[1]:3 wv[1]:3"
    assert assert_removal_is_zeroing(model, feeds={"x": drawn(2, 3, 5)}) > 0


def test_a_shape_written_for_one_number_of_samples() -> None:
    text = HEADS.replace("sh = Concat<axis = 0>(t0, n1, each)", "sh = Concat<axis = 0>(t0, twelve, each)")
    back = "d = Transpose<perm = [1, 0, 2]>(c)\n b = Reshape(d, back)"
    model = rows(text + SCORES + back, unit="head", **WEIGHTS, twelve=[12], back=[0, -1, 12]).model()
    assert free(model, "head") == "w[1]:4"
    assert assert_removal_is_zeroing(model, unit="head", feeds={"x": drawn(2, 3, 5)}, by_members=False) == 2


def test_what_meets_an_input_is_frozen() -> None:
    case = rows(HEADS + "q4 = Add(q2, z)\n" + SCORES.replace("q2", "q4") + BACK, unit="head", **WEIGHTS)
    model = replace(case, body=case.body.replace("x) =>", "x, float[K,N,3] z) =>", 1)).model()
    stuck = ChannelGraph(Editor(model), "head").stuck_heads
    assert len(stuck) == 2
    assert all("a size is not known" in whys[0] for whys in stuck.values())


def test_what_nobody_follows_is_frozen() -> None:
    # the rows of samples and heads are turned over one by one
    case = rows(
        HEADS + SCORES + "lens = Expand(two, n1)\n c2 = ReverseSequence<batch_axis = 0, time_axis = 1>(c, lens)\n"
        + BACK.replace("(c)", "(c2)"), unit="head", **WEIGHTS, two=[2],
    )  # fmt: skip
    stuck = ChannelGraph(Editor(case.model()), "head").stuck_heads
    assert all("a size is not known" in whys[0] for whys in stuck.values())
    assert len(stuck) == 2
