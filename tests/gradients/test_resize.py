"""Resize: modes, coordinates, ways to give the size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxopt.errors import GradientError
from onnxopt.gradients import gradient_graph
from onnxopt.model import from_proto
from tests import support
from tests.gradients.checks import check

_RNG = np.random.default_rng(0)
_Array = np.ndarray[Any, Any]
_COORDINATES = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"]


def _nodes(
    scales: Sequence[float] | None = None,
    sizes: Sequence[int] | None = None,
    roi: Sequence[float] | None = None,
    **attributes: Any,
) -> list[onnx.NodeProto]:
    given = {
        "roi": None if roi is None else np.array(roi, np.float32),
        "scales": None if scales is None else np.array(scales, np.float32),
        "sizes": None if sizes is None else np.array(sizes, np.int64),
    }
    constants = {name: onnx.numpy_helper.from_array(x) for name, x in given.items() if x is not None}
    nodes = [helper.make_node("Constant", [], [name], value=x) for name, x in constants.items()]
    inputs = ["x", *(name if name in constants else "" for name in given)]
    return [*nodes, helper.make_node("Resize", inputs, ["y"], **attributes)]


def _check(shape: tuple[int, ...], opset: int = 19, **call: Any) -> None:
    check(_nodes(**call), {"x": _RNG.standard_normal(shape)}, ["x"], ["y"], opset=opset)


def _check_in_runtime(shape: tuple[int, ...], opset: int = 19, **call: Any) -> None:
    """Check against ONNX Runtime itself, which differs from the reference: Resize is linear, so that ``dx · d`` is the
    difference of the losses at ``x + d`` and at ``x``, however long ``d`` is."""
    nodes = [
        *_nodes(**call),
        helper.make_node("Mul", ["y", "y"], ["square"]),
        helper.make_node("ReduceSum", ["square"], ["loss"], keepdims=0),
    ]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)
    loss = helper.make_tensor_value_info("loss", onnx.TensorProto.FLOAT, [])
    graph = helper.make_graph(nodes, "g", [x], [loss])
    model = from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10))
    found = gradient_graph(model, "loss", ["x"]).model
    for _ in range(5):
        at, step = _RNG.standard_normal((2, *shape)).astype(np.float32)
        gradient = support.outputs(found, {"x": at})[1]
        ahead, behind = (float(support.outputs(found, {"x": at + sign * step})[0]) for sign in (1, -1))
        # the central difference of a square is exact
        assert abs((ahead - behind) / 2 - float((gradient * step).sum())) <= 1e-5 * (ahead + behind)


@pytest.mark.parametrize("coordinates", _COORDINATES)
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("sizes", [(2, 3, 8, 10), (2, 3, 7, 3), (2, 3, 2, 4), (2, 3, 4, 9), (2, 3, 4, 5)])
def test_sizes(sizes: tuple[int, ...], mode: str, coordinates: str) -> None:
    _check((2, 3, 4, 5), sizes=sizes, mode=mode, coordinate_transformation_mode=coordinates)


@pytest.mark.parametrize("coordinates", _COORDINATES)
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("scales", [(1, 1, 2, 3), (1, 1, 0.6, 0.5)])
def test_scales(scales: tuple[float, ...], mode: str, coordinates: str) -> None:
    _check((2, 3, 5, 6), scales=scales, mode=mode, coordinate_transformation_mode=coordinates)


@pytest.mark.parametrize("coordinates", [*_COORDINATES, "tf_crop_and_resize"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("scales", [(1, 1, 1.1, 2.3), (1, 1, 0.7, 1), (1, 1, 1.1, 1.1), (1, 1, 2, 2)])
def test_scales_as_onnx_runtime_reads_them(scales: tuple[float, ...], mode: str, coordinates: str) -> None:
    roi = (0, 0, 0.1, 0.2, 1, 1, 0.8, 1.3)
    call: dict[str, Any] = {"scales": scales, "roi": roi, "coordinate_transformation_mode": coordinates}
    _check_in_runtime((2, 3, 5, 6), mode=mode, **call)


@pytest.mark.parametrize("coordinates", _COORDINATES)
@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("sizes", [(1, 2, 8, 10), (1, 2, 6, 3)])
def test_nearest(sizes: tuple[int, ...], rounding: str, coordinates: str) -> None:
    _check_in_runtime((1, 2, 4, 5), sizes=sizes, nearest_mode=rounding, coordinate_transformation_mode=coordinates)


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 5), (1, 2, 3, 2, 4)])
@pytest.mark.parametrize("opset", [18, 19, 23])
def test_nearest_by_whole_factors(shape: tuple[int, ...], opset: int) -> None:
    scales = (1, 1, 2, 3, 1)[: len(shape)]
    _check(shape, opset, scales=scales, nearest_mode="floor", coordinate_transformation_mode="asymmetric")


@pytest.mark.parametrize("scales", [(1, 2, 3, 1), (2, 1, 1, 2), (1, 3, 1, 1), (1, 0.5, 0.5, 1)])
def test_nearest_along_other_axes(scales: tuple[float, ...]) -> None:
    _check((2, 4, 6, 9), scales=scales, coordinate_transformation_mode="asymmetric", nearest_mode="floor")


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("scales", [(1, 1, 0.5, 0.4), (1, 1, 2, 3), (1, 1, 0.5, 2)])
@pytest.mark.parametrize("attributes", [{"antialias": 1}, {"antialias": 1, "exclude_outside": 1}])
def test_antialias(scales: tuple[float, ...], mode: str, attributes: dict[str, Any]) -> None:
    if mode == "linear":
        attributes = {"antialias": 1}
    _check_in_runtime((2, 3, 8, 10), scales=scales, mode=mode, **attributes)


@pytest.mark.parametrize("scales", [(1, 1, 0.5, 0.5), (1, 1, 2, 3)])
@pytest.mark.parametrize("attributes", [{"cubic_coeff_a": -0.5}, {"exclude_outside": 1}])
def test_cubic(scales: tuple[float, ...], attributes: dict[str, Any]) -> None:
    _check((2, 3, 8, 10), scales=scales, mode="cubic", **attributes)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("extrapolation", [0.0, 7.0])
def test_crop(mode: str, extrapolation: float) -> None:
    call: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": "tf_crop_and_resize"}
    roi = (0, 0, 0.4, 0.6, 1, 1, 1.2, 1.7)
    _check((2, 2, 8, 9), sizes=(2, 2, 6, 5), roi=roi, extrapolation_value=extrapolation, **call)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("axes", [(2, 3), (3, 2), (-1, -2), (2,)])
def test_axes(axes: tuple[int, ...], mode: str) -> None:
    _check_in_runtime((2, 2, 5, 6), scales=(2, 3)[: len(axes)], axes=axes, mode=mode)
    _check_in_runtime((2, 2, 5, 6), sizes=(7, 3)[: len(axes)], axes=axes, mode=mode)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
@pytest.mark.parametrize(("axes", "sizes"), [((2, 3), (7, 8)), ((3, 2), (11, 7)), ((3, 2), (4, 2)), ((2, 3), (6, 9))])
def test_policies(axes: tuple[int, ...], sizes: tuple[int, ...], policy: str, mode: str) -> None:
    _check_in_runtime((2, 2, 6, 9), sizes=sizes, axes=axes, mode=mode, keep_aspect_ratio_policy=policy)


@pytest.mark.parametrize(
    ("shape", "scales"),
    [((4, 5), (2, 1.5)), ((2, 4, 5), (1, 2, 1.5)), ((2, 4, 5, 3), (1, 2, 1.5, 1)), ((1, 2, 3, 4, 5), (1, 1, 2, 2, 2))],
)
def test_linear_of_any_rank(shape: tuple[int, ...], scales: tuple[float, ...]) -> None:
    _check(shape, scales=scales, mode="linear")


@pytest.mark.parametrize(("shape", "scales"), [((100, 2), (2, 1)), ((2, 70), (1, 3)), ((90, 70), (0.5, 1.5))])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_long_axes(shape: tuple[int, ...], scales: tuple[float, ...], mode: str) -> None:
    _check_in_runtime(shape, scales=scales, mode=mode)


def test_crop_that_leaves_much_unread() -> None:
    call: dict[str, Any] = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"}
    _check_in_runtime((2, 200), sizes=(2, 150), roi=(0, 0.3, 1, 0.4), **call)


def test_scales_that_a_run_decides_are_refused() -> None:
    arrays = {"x": _RNG.standard_normal((1, 1, 2, 2)), "scales": np.array([1, 1, 2, 2])}
    with pytest.raises(GradientError, match="not known"):
        check([helper.make_node("Resize", ["x", "", "scales"], ["y"])], arrays, ["x"], ["y"])
