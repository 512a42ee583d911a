"""Quantization grids: the affine map between floats and integers.

``x ≈ scale · (q − zero_point)`` with ``q = clip(round(x / scale) + zero_point)``, rounding half to even, as
QuantizeLinear and DequantizeLinear of ONNX define it. A grid has one scale for a tensor, or one for each index
along ``axis``. Every grid holds 0.0 exactly, since padding and Relu produce it.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", CVPR 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, Any]

# The smallest scale: a quotient by it must stay finite, and ONNX Runtime flushes subnormal numbers to zero.
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Grid:
    """Scale (float32) and zero point (``dtype``): scalars, or vectors along ``axis``."""

    scale: Array
    zero_point: Array
    dtype: np.dtype[Any]
    axis: int | None = None

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest integer of ``dtype``."""
        return integer_limits(self.dtype)

    def aligned(self, rank: int) -> tuple[Array, Array]:
        """Scale and zero point (int64), shaped to broadcast over a tensor of this rank."""
        zero = self.zero_point.astype(np.int64)
        if self.axis is None:
            return self.scale, zero
        shape = [1] * rank
        shape[self.axis] = -1
        return self.scale.reshape(shape), zero.reshape(shape)

    def same(self, other: Grid) -> bool:
        """Whether both map every float to the same integer."""
        return (
            self.dtype == other.dtype
            and self.axis == other.axis
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )


def integer_limits(dtype: np.dtype[Any]) -> tuple[int, int]:
    """The smallest and the largest integer of a type; also of int4 and uint4."""
    info = ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]
    return int(info.min), int(info.max)


def grid_of_range(low: Any, high: Any, dtype: Any, symmetric: bool, axis: int | None = None) -> Grid:
    """The grid that covers ``[low, high]`` (scalars, or vectors along ``axis``), widened to contain 0.

    A symmetric grid has its zero point in the middle of the type. A range of no width gets scale 1. Raises
    ``ValueError`` if a bound is not finite.
    """
    dtype = np.dtype(dtype)
    least, greatest = integer_limits(dtype)
    low = np.minimum(np.asarray(low, np.float64), 0.0)
    high = np.maximum(np.asarray(high, np.float64), 0.0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError("a range that is not finite has no grid")
    if symmetric:
        middle = 0 if least < 0 else (greatest + 1) // 2
        scale = _scale(np.maximum(-low, high), greatest - middle)
        zero = np.full(scale.shape, middle)
    else:
        scale = _scale(high - low, greatest - least)
        zero = np.asarray(np.clip(np.rint(least - low / scale.astype(np.float64)), least, greatest), np.int64)
    return Grid(scale, np.asarray(zero).astype(dtype), dtype, axis)


def weight_grid(w: Array, axis: int | None, dtype: Any, symmetric: bool, reduce_range: bool = False) -> Grid:
    """The grid over the exact range of ``w``, one scale a slice along ``axis``, or one in all.

    ``reduce_range`` leaves one bit unused, so that the sum of two products with unsigned 8-bit activations
    stays inside 16 bits (255 · 64 · 2 < 2¹⁵): CPUs without VNNI saturate there.
    """
    low, high = slice_range(w, axis)
    if reduce_range:
        # Twice the range on the full type uses half of it: −64…64 (symmetric), or 128 of 256 steps.
        half = 127 / 64 if symmetric else 255 / 127
        low, high = low * half, high * half
    return grid_of_range(low, high, dtype, symmetric, axis)


def within(grid: Grid, low: float, high: float) -> Grid:
    """The grid, shrunk until its ends lie inside limits around 0, as integers that replace a Clip must."""
    least, greatest = grid.limits
    zero, scale = int(grid.zero_point), np.float32(grid.scale)
    below, above = np.float32(least - zero), np.float32(greatest - zero)
    if below * scale < low:
        scale = np.float32(low / below)
    if above * scale > high:
        scale = np.float32(high / above)
    while below * scale < low or above * scale > high:
        scale = np.nextafter(scale, np.float32(0))
    return Grid(np.asarray(scale), grid.zero_point, grid.dtype)


def slice_range(w: Array, axis: int | None) -> tuple[Array, Array]:
    """The minimum and maximum of ``w``, of each slice along ``axis`` or in all; 0 where there is no element."""
    others = None if axis is None else tuple(i for i in range(w.ndim) if i != axis % w.ndim)
    wide = w.astype(np.float64)
    return np.asarray(np.min(wide, axis=others, initial=0.0)), np.asarray(np.max(wide, axis=others, initial=0.0))


def quantize(x: Array, grid: Grid) -> Array:
    """The integers nearest to ``x`` on the grid, clipped to its type; ``x`` must be finite."""
    scale, zero = grid.aligned(x.ndim)
    least, greatest = grid.limits
    q = np.rint(x.astype(np.float32) / scale)
    return np.asarray(np.clip(q + zero, least, greatest).astype(np.int64).astype(grid.dtype))


def dequantize(q: Array, grid: Grid) -> Array:
    """The floats (float32) that the integers stand for."""
    scale, zero = grid.aligned(q.ndim)
    return np.asarray((q.astype(np.int64) - zero) * scale, np.float32)


def fake_quantize(x: Array, grid: Grid) -> Array:
    """``x`` rounded to the grid: what QuantizeLinear and DequantizeLinear make of it."""
    return dequantize(quantize(x, grid), grid)


def bias_grid(input_scale: float | np.float32, weight: Grid) -> Grid:
    """The INT32 grid of a bias, which an integer kernel adds to its sums: scale ``s_x · s_w``, zero point 0."""
    scale = np.asarray(np.float32(input_scale) * weight.scale, np.float32)
    return Grid(scale, np.zeros(scale.shape, np.int32), np.dtype(np.int32), None if scale.ndim == 0 else 0)


def _scale(width: Array, steps: int) -> Array:
    """The step for each width; where the width is 0 any would do: the smallest of the others, or 1.

    The step of a weight also is the step of its bias, which may well not be 0.
    """
    width = np.asarray(width, np.float64)
    some = width[width > 0]
    scale = np.maximum(np.where(width > 0, width, some.min() if some.size else steps) / steps, _TINY)
    return np.asarray(scale, np.float32)
