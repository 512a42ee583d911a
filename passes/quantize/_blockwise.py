"""Block-wise quantization of a matrix: the numerics of 4- and 8-bit weights.

A weight ``w`` (n × k: a row for each output) is cut along its rows into blocks of ``block_size`` elements, and each
block gets a scale and a zero point of its own: ``w ≈ scale · (q − zero)`` with ``q`` in ``0 … 2^bits − 1``. This is
the form of MatMulNBits. A symmetric grid has its zero in the middle, and a scale of either sign, so that the
element of largest magnitude falls on the end of the grid that reaches farther (−8 of −8 … 7).

The best possible rounding of one element at a time is to the nearest. What is left to choose is the grid:

- *min/max*: it covers the block.
- *clipped*: of ranges shrunk in steps, the one with the least (weighted) squared error.
- *HQQ*: the grid that minimises ``‖w − ŵ‖ₚ`` with ``p < 1``, which lets few large errors be and makes the many small
  ones smaller. Half-quadratic splitting alternates between the errors, ``e = shrink(w − ŵ)``, and the grid that
  fits ``w − e`` best. The paper has fractional zero points; they cost ONNX Runtime its integer kernel (22 times
  slower at one row), so ours are rounded, and the scale is fitted as well.

Source: Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_SHRINK = np.linspace(1.0, 0.5, 21)
"""The shares of the full range that a clipped grid is chosen of."""
_P, _PENALTY, _ROUNDS = 0.7, 10.0, 20
"""Of HQQ: the norm, the weight of the penalty that splits the problem, and the rounds."""
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Form:
    """How a matrix is cut and rounded: ``block_size`` 0 makes one block of each row."""

    bits: int
    block_size: int
    symmetric: bool

    def width(self, k: int) -> int:
        """The number of elements in a block of a row of ``k``."""
        return self.block_size or max(k, 1)

    @property
    def top(self) -> int:
        """The largest integer."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero point of a symmetric grid."""
        return 1 << (self.bits - 1)


@dataclass(frozen=True)
class Blocks:
    """A quantized matrix: ``q`` (n × k, uint8), ``scale`` (float32) and ``zero`` (uint8), both n × blocks."""

    q: Array
    scale: Array
    zero: Array
    form: Form

    def weights(self) -> Array:
        """The matrix that it stands for (n × k, float32)."""
        width = self.form.width(self.q.shape[1])
        scale, zero = (np.repeat(a, width, axis=1)[:, : self.q.shape[1]] for a in (self.scale, self.zero))
        floats: Array = (self.q.astype(np.float32) - zero) * scale
        return floats


GridOf = Callable[[Array, Form], tuple[Array, Array]]
"""Scale and zero point of blocks: from (… × elements) to two arrays (…)."""


def min_max(blocks: Array, form: Form) -> tuple[Array, Array]:
    """The grid that covers each block (… × elements)."""
    return _grid(blocks.min(axis=-1), blocks.max(axis=-1), form)


def clipped(blocks: Array, form: Form, importance: Array | None = None) -> tuple[Array, Array]:
    """The grid over a shrunk range of each block with the least squared error.

    ``importance`` (broadcast against ``blocks``) weighs the squares.
    """
    low, high = blocks.min(axis=-1), blocks.max(axis=-1)
    best = np.full(low.shape, np.inf)
    scale, zero = _grid(low, high, form)
    for share in _SHRINK:
        s, z = _grid(low * share, high * share, form)
        square = (dequantize(quantize(blocks, s, z, form), s, z) - blocks) ** 2
        error = np.sum(square if importance is None else square * importance, axis=-1)
        better = error < best
        best = np.where(better, error, best)
        scale, zero = np.where(better, s, scale), np.where(better, z, zero)
    return scale, zero


def half_quadratic(blocks: Array, form: Form) -> tuple[Array, Array]:
    """The grid that about minimises the p-norm of the error of each block, p = 0.7."""
    scale, zero = min_max(blocks, form)
    best, least = (scale, zero), np.full(scale.shape, np.inf)
    for _ in range(_ROUNDS):
        q = quantize(blocks, scale, zero, form)
        error = blocks - dequantize(q, scale, zero)
        norm = np.sum(np.abs(error) ** _P, axis=-1)
        better = norm < least
        least = np.where(better, norm, least)
        best = np.where(better, scale, best[0]), np.where(better, zero, best[1])
        target = blocks - _shrink(error / scale[..., None]) * scale[..., None]
        if not form.symmetric:
            zero = np.clip(np.rint(np.mean(q - target / scale[..., None], axis=-1)), 0, form.top)
        steps = q - zero[..., None]
        power = np.sum(steps * steps, axis=-1)
        scale = _nonzero(np.where(power > 0, np.sum(steps * target, axis=-1) / np.maximum(power, 1), scale))
    return best


def _shrink(x: Array) -> Array:
    """The generalised soft threshold: about the proximal operator of ``|x|ᵖ``, ``x`` in steps of the grid."""
    size = np.abs(x)
    return np.sign(x) * np.maximum(size - np.maximum(size, 1e-8) ** (_P - 1) / _PENALTY, 0)


def cut(w: Array, form: Form) -> Array:
    """The blocks of ``w`` (n × k): n × blocks × width, float32, the last filled up with zeros."""
    width = form.width(w.shape[1])
    return np.pad(w.astype(np.float32), ((0, 0), (0, -w.shape[1] % width))).reshape(len(w), -1, width)


def round_to_nearest(w: Array, form: Form, grid_of: GridOf = min_max) -> Blocks:
    """``w`` (n × k) with every element rounded to the nearest point of its block's grid."""
    blocks = cut(w, form)
    scale, zero = grid_of(blocks, form)
    q = quantize(blocks, scale, zero, form).reshape(len(w), -1)[:, : w.shape[1]]
    return Blocks(q.astype(np.uint8), scale, zero.astype(np.uint8), form)


def quantize(x: Array, scale: Array, zero: Array, form: Form) -> Array:
    """The integers (as floats) nearest to ``x`` (… × elements) on grids (…)."""
    q: Array = np.clip(np.rint(x / scale[..., None]) + zero[..., None], 0, form.top)
    return q


def dequantize(q: Array, scale: Array, zero: Array) -> Array:
    """What the integers (… × elements) stand for on grids (…)."""
    floats: Array = (q - zero[..., None]) * scale[..., None]
    return floats


def _grid(low: Array, high: Array, form: Form) -> tuple[Array, Array]:
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    if form.symmetric:
        extreme = np.where(-low > high, low, high)
        scale = _nonzero(-extreme / form.middle)
        return scale, np.full(scale.shape, form.middle, np.float32)
    scale = _nonzero((high - low) / form.top)
    return scale, np.clip(np.rint(-low / scale), 0, form.top).astype(np.float32)


def _nonzero(scale: Array) -> Array:
    return np.where(np.abs(scale) < _TINY, 1.0, scale).astype(np.float32)


def pack(q: Array, bits: int) -> Array:
    """Integers (… × m) as bytes, two 4-bit ones in a byte, the first in its lower half."""
    if bits == 8:
        return q.astype(np.uint8)
    even = np.concatenate([q, np.zeros((*q.shape[:-1], q.shape[-1] % 2), q.dtype)], axis=-1).astype(np.uint8)
    return even[..., ::2] | (even[..., 1::2] << 4)


def unpack(packed: Array, bits: int, count: int) -> Array:
    """The first ``count`` integers (… × count) of packed bytes."""
    if bits == 8:
        return packed[..., :count]
    both = np.stack([packed & 15, packed >> 4], axis=-1)
    return both.reshape(*packed.shape[:-1], -1)[..., :count]


def output_error(w: Array, rounded: Array, gram: Array) -> float:
    """``‖(w − ŵ)·xᵀ‖ / ‖w·xᵀ‖`` over all rows ``x`` of the layer's input, whose ``xᵀx`` is ``gram`` (k × k)."""
    difference = w.astype(np.float64) - rounded
    noise = float(np.sum((difference @ gram) * difference))
    signal = float(np.sum((w @ gram) * w))
    return float(np.sqrt(max(noise, 0.0) / signal)) if signal > 0 else 0.0


def weight_error(w: Array, rounded: Array) -> float:
    """``‖w − ŵ‖ / ‖w‖``."""
    size = float(np.linalg.norm(w.astype(np.float64)))
    return float(np.linalg.norm(w.astype(np.float64) - rounded)) / size if size > 0 else 0.0
