"""Reductions, over every way to give axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import helper

from onnxopt.errors import GradientError
from onnxopt.gradients import gradient_graph
from tests import support
from tests.gradients.checks import Array, check, check_node

_RNG = np.random.default_rng(0)
_OPS = [
    "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd",
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare",
]  # fmt: skip
_SIGNED = _RNG.permutation(np.linspace(-1.5, 1.6, 24)).reshape(2, 3, 4)
"""Numbers far enough apart that no step of finite differences changes their order, none of them near 0."""


def _input(op: str) -> Array:
    return np.abs(_SIGNED) if op == "ReduceLogSum" else _SIGNED


@pytest.mark.parametrize("op", _OPS)
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [[1], [-1], [0, 2], [-1, 0], [0, 1, 2]])
def test_axes(op: str, keepdims: int, axes: list[int]) -> None:
    check_node(op, _input(op), np.array(axes), keepdims=keepdims)


@pytest.mark.parametrize("op", _OPS)
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("noop", [0, 1])
@pytest.mark.parametrize("given", [(), (np.array([], np.int64),), (None,)])
def test_no_axes(op: str, keepdims: int, noop: int, given: tuple[Any, ...]) -> None:
    check_node(op, _input(op), *given, keepdims=keepdims, noop_with_empty_axes=noop)


@pytest.mark.parametrize("op", _OPS)
def test_default_attributes(op: str) -> None:
    for opset in (18, 20, 23, 26):
        check_node(op, _input(op), opset=opset)
        check_node(op, _input(op), np.array([1, 2]), opset=opset)


@pytest.mark.parametrize("op", _OPS)
def test_axes_that_are_computed(op: str) -> None:
    """From a shape, as exporters write the last axis: rank - 1."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Size", ["shape"], ["rank"]),
        helper.make_node("Sub", ["rank", "one"], ["axes"]),
        helper.make_node(op, ["x", "axes"], ["y"], keepdims=0),
    ]
    check(nodes, {"x": _input(op), "one": np.array([1])}, ["x"], ["y"], constants=["one"])


def test_axes_that_a_run_tells() -> None:
    model = support.graph(
        "g (float[2,3] x, int64[2] axes) => (float loss) { y = ReduceMean(x, axes) loss = Reshape(y, scalar) }",
        scalar=np.array([], np.int64),
    )
    with pytest.raises(GradientError, match="the shape of 'y' is not known"):
        gradient_graph(model, "loss", ["x"])


@pytest.mark.parametrize("op", [op for op in _OPS if op != "ReduceLogSumExp"])  # which fails in the reference
def test_a_scalar(op: str) -> None:
    check_node(op, np.array(1.3))


@pytest.mark.parametrize("zeros", [[0], [1, 5], [0, 1, 4]])
def test_products_with_zeros(zeros: list[int]) -> None:
    x = _SIGNED.reshape(6, 4).copy()
    x.reshape(-1)[zeros] = 0
    for axes in ([0], [1], [0, 1]):
        check_node("ReduceProd", x, np.array(axes))


def _gradient(op: str, x: Sequence[Sequence[float]]) -> Array:
    """Of the sum of ``op`` along the last axis, times 6."""
    model = support.graph(
        f"g (float[{len(x)},{len(x[0])}] x) => (float loss)"
        f" {{ y = {op}(x, axes) z = Mul(y, six) loss = ReduceSum<keepdims = 0>(z) }}",
        axes=np.array([1]),
        six=np.array(6, np.float32),
    )
    found = support.outputs(gradient_graph(model, "loss", ["x"]).model, {"x": np.array(x, np.float32)})[1]
    assert isinstance(found, np.ndarray)
    return found


def test_equal_extremes_share() -> None:
    x: list[list[float]] = [[1, 2, 2], [3, 3, 3], [0, 1, 2]]
    np.testing.assert_allclose(_gradient("ReduceMax", x), [[0, 3, 3], [2, 2, 2], [0, 0, 6]])
    np.testing.assert_allclose(_gradient("ReduceMin", x), [[6, 0, 0], [2, 2, 2], [6, 0, 0]])


def test_norms_of_zeros() -> None:
    for op in ("ReduceL1", "ReduceL2"):
        np.testing.assert_allclose(_gradient(op, [[0, 0], [0, 2]]), [[0, 0], [0, 6]])


def test_sums_of_exponentials_of_large_numbers() -> None:
    np.testing.assert_allclose(_gradient("ReduceLogSumExp", [[100, 100], [-100, 0]]), [[3, 3], [0, 6]], atol=1e-4)


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_cum_sum(exclusive: int, reverse: int, axis: int) -> None:
    check_node("CumSum", _SIGNED, np.array(axis), exclusive=exclusive, reverse=reverse)


def test_cum_sum_without_attributes() -> None:
    check_node("CumSum", _SIGNED, np.array(1), opset=26)


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("k", [None, -1, 0, 2])
@pytest.mark.parametrize("opset", [18, 26])
def test_trilu(upper: int, k: int | None, opset: int) -> None:
    check_node("Trilu", _SIGNED, *([] if k is None else [np.array(k)]), upper=upper, opset=opset)


def test_trilu_without_attributes() -> None:
    check_node("Trilu", _SIGNED)


@pytest.mark.parametrize("shapes", [((3, 4),), ((3, 4), (4,)), ((1,), (2, 1), (2, 3), ())])
def test_sum(shapes: tuple[tuple[int, ...], ...]) -> None:
    check_node("Sum", *(np.asarray(_RNG.standard_normal(shape)) for shape in shapes))
