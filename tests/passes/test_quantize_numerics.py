"""Grids and ranges: plain numerics, against ONNX Runtime, brute force and scipy."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx.reference
import pytest

from onnxopt.model import to_proto
from onnxopt.passes.quantize._grid import (
    Grid,
    bias_grid,
    dequantize,
    fake_quantize,
    grid_of_range,
    quantize,
    weight_grid,
    within,
)
from onnxopt.passes.quantize._hard import grid_from_knee
from onnxopt.passes.quantize._ranges import (
    METHODS,
    Bounds,
    bounds,
    by_entropy,
    by_mse,
    by_percentile,
    choose,
    expected_error,
    signal_to_noise,
)
from onnxopt.passes.quantize._targets import detect, names, target
from onnxopt.stats import BINS, Histogram, Range
from tests.support import graph, outputs

RNG = np.random.default_rng(0)
TYPES = ("uint8", "int8", "uint16", "int16")


def histogram(x: np.ndarray[Any, Any]) -> Histogram:
    counts, edges = np.histogram(x, BINS, (x.min(), x.max()))
    width = float(edges[1] - edges[0])
    first = float(edges[0]) / width
    ends = seen(x)
    return Histogram(ends.low, ends.high, ends.mean_low, ends.mean_high, ends.finite, first, width, counts)


def seen(x: np.ndarray[Any, Any]) -> Range:
    return Range(float(x.min()), float(x.max()), float(x.min()) / 2, float(x.max()) / 2, finite=True)


def error_on(x: np.ndarray[Any, Any], range_: Bounds) -> float:
    grid = grid_of_range(*range_, "uint8", symmetric=False)
    return float(np.mean((x - fake_quantize(x, grid)) ** 2))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("symmetric", [False, True])
def test_quantizes_as_onnx_runtime_does(dtype: str, symmetric: bool) -> None:
    x = (RNG.standard_normal(1000) * 3).astype(np.float32)
    grid = grid_of_range(-2.5, 7.0, dtype, symmetric)  # values beyond both ends too
    model = graph(
        f"g (float[N] x) => ({dtype}[N] q, float[N] y)"
        "{ q = QuantizeLinear(x, scale, zero) y = DequantizeLinear(q, scale, zero) }",
        opset=21,
        ir_version=10,
        scale=grid.scale,
        zero=grid.zero_point,
    )
    q, y = outputs(model, {"x": x})
    np.testing.assert_array_equal(quantize(x, grid), q)
    np.testing.assert_array_equal(dequantize(q, grid), y)


@pytest.mark.parametrize("axis", [0, 1])
def test_quantizes_along_an_axis_as_the_reference_does(axis: int) -> None:
    w = RNG.standard_normal((3, 5)).astype(np.float32) * np.array([[1], [10], [0.01]], np.float32)
    grid = weight_grid(w, axis, "int8", symmetric=True)
    model = graph(
        f"g (float[3,5] w) => (float[3,5] y)"
        f"{{ q = QuantizeLinear <axis = {axis}> (w, s, z) y = DequantizeLinear <axis = {axis}> (q, s, z) }}",
        opset=19,
        ir_version=9,
        s=grid.scale,
        z=grid.zero_point,
    )
    expected: Any = onnx.reference.ReferenceEvaluator(to_proto(model)).run(None, {"w": w})
    np.testing.assert_allclose(fake_quantize(w, grid), expected[0], rtol=1e-6)


@pytest.mark.parametrize("dtype", [*TYPES, ml_dtypes.int4])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("range_", [(-1.0, 3.0), (0.0, 6.0), (2.0, 5.0), (-7.0, -1.0), (-1e30, 1e-30), (0.0, 1e-40)])
def test_every_grid_holds_zero_and_covers_its_range(dtype: Any, symmetric: bool, range_: Bounds) -> None:
    grid = grid_of_range(*range_, dtype, symmetric)
    assert fake_quantize(np.zeros(1, np.float32), grid)[0] == 0.0
    ends = np.array(range_, np.float64)
    off = np.abs(fake_quantize(ends.astype(np.float32), grid) - ends)
    assert (off <= float(grid.scale) * 1.001).all(), "an end may be off by a rounding of the zero point"
    assert float(grid.scale) > 0


def test_degenerate_ranges() -> None:
    nothing = grid_of_range(0.0, 0.0, "uint8", symmetric=False)
    assert float(nothing.scale) == 1.0
    assert int(nothing.zero_point) == 0
    with pytest.raises(ValueError, match="not finite"):
        grid_of_range(0.0, np.inf, "uint8", symmetric=False)
    with pytest.raises(ValueError, match="not finite"):
        grid_of_range(np.nan, 1.0, "uint8", symmetric=False)
    assert weight_grid(np.zeros((0, 3), np.float32), 1, "int8", symmetric=True).scale.shape == (3,)


def test_a_channel_of_zeros_gets_a_fine_scale() -> None:
    """Its bias is quantized by it, and 1 would be much too coarse."""
    w = np.array([[0.0, 0.0], [0.5, -1.0]], np.float32)
    scale = weight_grid(w, 0, "int8", symmetric=True).scale
    assert scale[0] == scale[1] == np.float32(1 / 127)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_seven_bits_never_saturate_sixteen(dtype: str, symmetric: bool) -> None:
    """The exact sum of two products with any unsigned activations, as CPUs without VNNI form it."""
    w = RNG.standard_normal((64, 32)).astype(np.float32)
    grid = weight_grid(w, None, dtype, symmetric, reduce_range=True)
    centred = quantize(w, grid).astype(np.int64) - int(grid.zero_point)
    assert np.ptp(centred) <= 128
    if symmetric:
        pairs = 255 * (np.abs(centred[:, ::2]) + np.abs(centred[:, 1::2]))
        assert pairs.max() <= 2**15 - 1
    full = quantize(w, weight_grid(w, None, "int8", symmetric=True)).astype(np.int64)
    assert (255 * (np.abs(full[:, ::2]) + np.abs(full[:, 1::2]))).max() > 2**15 - 1, "the test tests nothing"


def test_within_keeps_the_ends_inside_the_limits() -> None:
    for low, high in ((0.0, 6.0), (-1.0, 1.0), (-0.3, 2.0), (0.0, np.inf)):
        grid = within(grid_of_range(max(low, -5), min(high, 5.9999), "uint8", symmetric=False), low, high)
        ends = dequantize(np.array([0, 255], np.uint8), grid)
        assert ends[0] >= low
        assert ends[1] <= high
        assert ends[1] - ends[0] > 0.97 * (min(high, 5.9999) - max(low, -5))


def test_bias_grid_is_that_of_the_sums() -> None:
    weight = Grid(np.array([0.5, 0.25], np.float32), np.zeros(2, np.int8), np.dtype(np.int8), 0)
    grid = bias_grid(0.1, weight)
    np.testing.assert_array_equal(grid.scale, np.float32(0.1) * weight.scale)
    assert (grid.dtype, grid.axis) == (np.dtype(np.int32), 0)


@pytest.mark.parametrize("high", [0.0, 0.1, 3.0, 3.1, 10.0, 900.0])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_a_grid_from_the_knee_begins_there(high: float, dtype: str) -> None:
    grid = grid_from_knee(3.0, high, np.dtype(dtype))
    least, greatest = grid.limits
    ends = dequantize(np.array([least, greatest]).astype(dtype), grid)
    assert ends[0] == pytest.approx(-3.0, rel=1e-6)
    assert ends[1] >= min(high, 254 * 3.0) * (1 - 1e-6)


def test_minmax_and_average() -> None:
    x = RNG.standard_normal(1000)
    assert bounds("minmax", seen(x), None, 256, 0.0) == (x.min(), x.max())
    assert bounds("average", seen(x), None, 256, 0.0) == (x.min() / 2, x.max() / 2)


def test_percentile_leaves_out_its_share() -> None:
    x = RNG.standard_normal(100_000)
    low, high = by_percentile(histogram(x), 99.0)
    step = (x.max() - x.min()) / BINS
    assert abs(low - np.percentile(x, 0.5)) < 2 * step
    assert abs(high - np.percentile(x, 99.5)) < 2 * step
    assert by_percentile(histogram(x), 100.0) == pytest.approx((x.min(), x.max()))


@pytest.mark.parametrize("kind", ["normal", "relu", "laplace", "outlier"])
def test_mse_is_near_the_best_that_brute_force_finds(kind: str) -> None:
    x = RNG.standard_normal(20_000).astype(np.float32)
    if kind == "relu":
        x = np.maximum(x, 0)
    elif kind == "laplace":
        x = RNG.laplace(size=20_000).astype(np.float32)
    elif kind == "outlier":
        x[0] = 300.0
    found = error_on(x, by_mse(histogram(x), 256))
    shares = np.linspace(0.02, 1, 50)
    best = min(error_on(x, (x.min() * a, x.max() * b)) for a in shares for b in shares)
    assert found <= 1.1 * best
    assert found <= error_on(x, (x.min(), x.max())) * 1.001


def test_expected_error_is_the_error() -> None:
    x = np.maximum(RNG.standard_normal(100_000), 0).astype(np.float32)
    for range_ in ((0.0, float(x.max())), (0.0, 2.0), (0.0, 1.0)):
        assert expected_error(histogram(x), range_, 256) == pytest.approx(error_on(x, range_), rel=0.05)
    power = float(np.mean(x**2))
    assert signal_to_noise(histogram(x), (0.0, 2.0), 256) == pytest.approx(
        10 * np.log10(power / error_on(x, (0.0, 2.0))), abs=0.3
    )


def test_entropy_clips_an_outlier() -> None:
    x = RNG.standard_normal(100_000)
    x[0] = 60.0
    low, high = by_entropy(histogram(x), 256)
    assert high < 30.0
    assert low == x.min(), "it is one threshold for both signs"


def test_choose_judges_by_the_other_half() -> None:
    """A spike that the held-out half has too is worth covering; noise without spikes is not clipped."""
    calm = RNG.standard_normal(50_000)
    spiky = calm.copy()
    spiky[:50] = 40.0
    method, range_ = choose(seen(spiky), histogram(spiky), histogram(spiky), 256, symmetric=False)
    assert range_[1] >= 39.0, method
    lonely = calm.copy()
    lonely[0] = 400.0
    method, range_ = choose(seen(lonely), histogram(lonely), histogram(calm), 256, symmetric=False)
    assert method != "minmax"
    assert range_[1] < 100.0
    _, symmetric = choose(seen(calm), histogram(calm), histogram(calm), 256, symmetric=True)
    assert symmetric[0] == -symmetric[1]


def test_a_constant_tensor_has_a_range_by_every_method() -> None:
    x = np.full(100, 2.5)
    flat = Histogram(2.5, 2.5, 2.5, 2.5, finite=True, first=5.0, width=0.5, counts=np.array([100]))
    for method in METHODS[1:]:
        low, high = bounds(method, flat, flat, 256, 99.0)
        grid = grid_of_range(low, high, "uint8", symmetric=False)
        assert fake_quantize(x.astype(np.float32), grid) == pytest.approx(x, rel=0.01), method


def test_profiles_are_complete() -> None:
    cpus = {"ort-cpu-vnni", "ort-cpu-avx2", "ort-cpu-arm", "mobile"}
    assert set(names()) == cpus | {"tensorrt", "openvino", "generic"}
    assert detect() in names()
    for name in names():
        assert {"Conv", "MatMul", "Gemm"} <= target(name).operators.keys()
    assert target("tensorrt").symmetric
    assert [name for name in names() if target(name).saturates] == ["ort-cpu-avx2"]


def test_of_ranges_that_are_as_good_the_widest_is_chosen() -> None:
    """Outliers do more harm than their share of the squared error says; where it is next to nothing, none is cut."""
    x = RNG.standard_normal(20_000)
    fitted, held_out = histogram(x), histogram(RNG.standard_normal(20_000))
    _, (low, high) = choose(seen(x), fitted, held_out, 256, symmetric=False)
    least = min(expected_error(held_out, bounds(m, fitted, fitted, 256, 99.99), 256) for m in METHODS[1:])
    assert expected_error(held_out, (low, high), 256) <= least / 0.97
    for other in (by_percentile(fitted, 99.9), by_percentile(fitted, 99.99), by_mse(fitted, 256)):
        if expected_error(held_out, other, 256) <= 1.01 * least:
            assert other[1] - other[0] <= high - low
