"""Operators that read or write the elements that indices name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from onnxopt.errors import GradientError
from onnxopt.gradients import gradient_graph
from tests import support
from tests.gradients.checks import check

_RNG = np.random.default_rng(0)
_Array = np.ndarray[Any, Any]


def _random(*shape: int) -> _Array:
    return _RNG.standard_normal(shape)


def _indices(size: int, *shape: int) -> _Array:
    return _RNG.integers(-size, size, shape)


def _check(op: str, arrays: dict[str, _Array], constant: bool, **attributes: Any) -> None:
    """Check ``op`` in its float inputs, with indices that are constants, or inputs of the graph."""
    arrays = {name: np.asarray(x) for name, x in arrays.items()}
    floats = [name for name, x in arrays.items() if x.dtype.kind == "f"]
    fixed = [name for name in arrays if name not in floats] if constant else []
    check([helper.make_node(op, list(arrays), ["y"], **attributes)], arrays, floats, ["y"], constants=fixed)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize(("axis", "places"), [(0, (4,)), (1, (2, 7)), (-1, (1,)), (2, ()), (1, (0,))])
def test_gather(axis: int, places: tuple[int, ...], constant: bool) -> None:
    x = _random(3, 5, 4)
    _check("Gather", {"x": x, "i": _indices(x.shape[axis], *places)}, constant, axis=axis)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_gather_from_a_long_axis(axis: int, constant: bool) -> None:
    shape = [3, 2, 4]
    shape[axis] = 200
    _check("Gather", {"x": _random(*shape), "i": _indices(200, 6, 50)}, constant, axis=axis)


@pytest.mark.parametrize(
    "reads",
    [
        pytest.param(np.array(2), id="scalar"),
        pytest.param(np.array([[1, 2], [3, 4]]), id="range"),
        pytest.param(np.array([0, 1, 2, 3, 4, 5]), id="all"),
        pytest.param(np.array([5, 3, 1]), id="backwards"),
        pytest.param(np.array([0, 3]), id="strided"),
        pytest.param(np.array([-1, 0, -2]), id="once"),
        pytest.param(np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]), id="repeated"),
        pytest.param(np.array([0, 1, 2, 3, 4, 5] * 3), id="tiled"),
        pytest.param(np.array([0, 1, 2, 3, 4, 5, 5, 4, 3]), id="twice"),
        pytest.param(np.array([2, 2, 2]), id="one"),
        pytest.param(np.array([2, 2, 3, 2]), id="often"),
    ],
)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_gather_of_known_places(axis: int, reads: _Array) -> None:
    shape = [2, 3, 2]
    shape[axis] = 6
    _check("Gather", {"x": _random(*shape), "i": reads}, True, axis=axis)


def test_gather_with_int32_indices() -> None:
    _check("Gather", {"x": _random(4, 3), "i": _indices(4, 6).astype(np.int32)}, False)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather_elements(axis: int, constant: bool) -> None:
    x = _random(3, 5, 4)
    places = list(x.shape)
    places[axis] = 7
    _check("GatherElements", {"x": x, "i": _indices(x.shape[axis], *places)}, constant, axis=axis)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize(
    ("shape", "places", "batch_dims"),
    [
        ((3, 4), (5, 2), 0),
        ((3, 4), (5, 1), 0),
        ((3, 4, 2), (2, 3, 2), 0),
        ((3, 4, 2), (3, 1), 1),
        ((3, 4, 2), (3, 6, 1), 1),
        ((3, 4, 2), (3, 6, 2), 1),
        ((2, 3, 4, 2), (2, 3, 5, 1), 2),
        ((30, 10), (40, 2), 0),
    ],
)
def test_gather_nd(shape: tuple[int, ...], places: tuple[int, ...], batch_dims: int, constant: bool) -> None:
    sizes = shape[batch_dims : batch_dims + places[-1]]
    indices = np.stack([_indices(size, *places[:-1]) for size in sizes], axis=-1)
    _check("GatherND", {"x": _random(*shape), "i": indices}, constant, batch_dims=batch_dims)


def _once(size: int, *shape: int, axis: int) -> _Array:
    """Indices that differ along an axis, some of them negative."""
    found = np.argsort(_RNG.random([size if i == axis else n for i, n in enumerate(shape)]), axis=axis)
    return np.asarray(found.take(range(shape[axis]), axis=axis) - size * _RNG.integers(0, 2, shape))


@pytest.mark.parametrize("wrt", [["x"], ["u"], ["x", "u"]])
@pytest.mark.parametrize(
    ("axis", "places"), [(0, (2, 5, 4)), (1, (3, 2, 4)), (-1, (3, 5, 4)), (2, (2, 4, 3)), (0, (3, 1, 1))]
)
@pytest.mark.parametrize("reduction", [None, "none", "add", "min", "max"])
def test_scatter_elements(axis: int, places: tuple[int, ...], reduction: str | None, wrt: list[str]) -> None:
    x = _random(3, 5, 4)
    indices = _once(x.shape[axis], *places, axis=axis % 3)
    if reduction in ("add", "min", "max"):
        indices = _indices(x.shape[axis], *places)
    attributes: dict[str, Any] = {"axis": axis} if reduction is None else {"axis": axis, "reduction": reduction}
    arrays = {"x": x, "i": indices, "u": _random(*places)}
    check([helper.make_node("ScatterElements", ["x", "i", "u"], ["y"], **attributes)], arrays, wrt, ["y"])


@pytest.mark.parametrize("wrt", [["x"], ["u"], ["x", "u"]])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("reduction", [None, "none", "add"])
def test_scatter_nd(depth: int, reduction: str | None, wrt: list[str]) -> None:
    sizes = [6, 5, 4]
    indices = np.stack([_once(size, 2, 2, axis=1) for size in sizes[:depth]], axis=-1)
    indices[..., 0] = [[0, 1], [-3, -1]]
    if reduction == "add":
        indices[1] = indices[0]
    arrays = {"x": _random(*sizes), "i": indices, "u": _random(2, 2, *sizes[depth:])}
    attributes = {} if reduction is None else {"reduction": reduction}
    check([helper.make_node("ScatterND", ["x", "i", "u"], ["y"], **attributes)], arrays, wrt, ["y"])


@pytest.mark.parametrize("reduction", ["min", "max"])
def test_equal_extremes_share_the_gradient(reduction: str) -> None:
    model = support.graph(
        f"g (float[3] x, float[4] u) => (float loss) {{ y = ScatterElements<reduction = \"{reduction}\">(x, i, u)"
        " p = Mul(y, w) loss = ReduceSum<keepdims = 0>(p) }",
        i=np.array([0, 0, 0, 1]), w=np.array([6, 2, 5], np.float32),
    )  # fmt: skip
    sign = 1 if reduction == "max" else -1
    feeds = {"x": sign * np.array([3, 1, 0], np.float32), "u": sign * np.array([3, 3, 2, 4], np.float32)}
    (_, dx, du) = support.outputs(gradient_graph(model, "loss", ["x", "u"]).model, feeds)
    np.testing.assert_allclose(dx, [2, 0, 5], rtol=1e-6)
    np.testing.assert_allclose(du, [2, 2, 0, 2], rtol=1e-6)


@pytest.mark.parametrize(
    ("op", "reduction"), [("ScatterElements", "mul"), ("ScatterND", "mul"), ("ScatterND", "min"), ("ScatterND", "max")]
)
def test_other_reductions_are_refused(op: str, reduction: str) -> None:
    arrays = {"x": _random(3, 1), "i": np.array([[1]]), "u": _random(1, 1)}
    with pytest.raises(GradientError, match=f"no rule for the reduction '{reduction}'"):
        _check(op, arrays, True, reduction=reduction)


@pytest.mark.parametrize("opset", [18, 24])
@pytest.mark.parametrize("attributes", [{}, {"axis": 0, "largest": 0}])
def test_top_k(attributes: dict[str, Any], opset: int) -> None:
    nodes = [helper.make_node("TopK", ["x", "k"], ["y", "i"], **attributes)]
    check(nodes, {"x": _random(4, 5, 3), "k": np.array([2])}, ["x"], ["y"], constants=["k"], opset=opset)


def test_top_k_in_any_order() -> None:
    nodes = [
        helper.make_node("TopK", ["x", "k"], ["top", "i"], axis=1, sorted=0),
        helper.make_node("ReduceSum", ["top", "axis"], ["y"]),
    ]
    arrays = {"x": _random(4, 5, 3), "k": np.array([2]), "axis": np.array([1])}
    check(nodes, arrays, ["x"], ["y"], constants=["k", "axis"])


@pytest.mark.parametrize("axis", [None, 0, -2])
@pytest.mark.parametrize("condition", [(True, False, True, True), (False, True), (False, False)])
def test_compress(condition: tuple[bool, ...], axis: int | None) -> None:
    attributes = {} if axis is None else {"axis": axis}
    _check("Compress", {"x": _random(4, 4, 3), "c": np.array(condition)}, True, **attributes)


def test_compress_by_what_a_run_tells_is_refused() -> None:
    with pytest.raises(GradientError, match="not known"):
        _check("Compress", {"x": _random(4, 2), "c": np.array([True, False])}, False, axis=0)


@pytest.mark.parametrize("attributes", [{}, {"batch_axis": 0, "time_axis": 1}])
def test_reverse_sequence(attributes: dict[str, int]) -> None:
    _check("ReverseSequence", {"x": _random(4, 4, 3), "lengths": np.array([1, 4, 3, 2])}, False, **attributes)
