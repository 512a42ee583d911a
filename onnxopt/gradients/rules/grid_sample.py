"""Interpolation at places that a grid names.

Along each axis a point reads a few elements, its taps, with weights that depend on where between them it lies: one of
them by the nearest, two linearly, four by cubic convolution. Over all axes, the taps are the combinations and the
weights the products. A weight is a polynomial in ``t``, the distance of the point from the element before it.

Source: Keys, "Cubic Convolution Interpolation for Digital Image Processing", 1981, with ``a = −0.75``.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp

_A = -0.75
_POLYNOMIALS: dict[str, list[list[float]]] = {
    "nearest": [[1]],
    "linear": [[1, 0], [-1, 1]],
    "cubic": [[0, 1, 0, 0], [_A, 0, -_A, 0], [-2 * _A, -_A - 3, 2 * _A + 3, _A], [_A, _A + 2, -_A - 2, -_A]],
}
"""Of each mode, for each power of ``t`` its factor in the weight of each tap."""
_MODES = {"bilinear": "linear", "bicubic": "cubic"}
"""Names that they had before opset 20."""


@vjp("GridSample")
def _grid_sample(at: Backward) -> Gradients:
    """``y[p] = Σ w[p, k] · x[taps[p, k]]``: ``dx[j] = Σ w[p, k] · g[p]`` over all taps that are ``j``, and
    ``dgrid[p] = Σ g[p] · w′[p, k] · x[taps[p, k]]``. What reads the nearest element does not move with the grid."""
    n, c, *sizes = at.shape(at.inputs[0])
    rank, whole, points = len(sizes), math.prod(sizes), math.prod(at.shape(at.outputs[0])[2:])
    axes = [_taps(at, axis, size) for axis, size in enumerate(sizes)]
    count = len(_POLYNOMIALS[_mode(at)])
    strides = [at.ints(math.prod(sizes[i + 1 :])) for i in range(rank)]
    places = [at.op("Mul", axis.places, stride) for axis, stride in zip(axes, strides, strict=True)]
    flat = at.reshape(reduce(lambda a, b: at.op("Add", a, b), places), n, 1, points * count**rank)
    flat = at.op("Expand", flat, at.ints(n, c, points * count**rank))
    g = at.reshape(at.g, n, c, points, *[1] * rank)
    dx = dgrid = None
    if at.wants(0):
        weights = at.op("Unsqueeze", _product(at, [axis.weights for axis in axes]), at.ints(1))
        shares = at.op("Expand", at.op("Mul", g, weights), at.ints(n, c, points, *[count] * rank))
        zeros = at.op("Expand", at.number(0), at.ints(n, c, whole))
        shares = at.reshape(shares, n, c, points * count**rank)
        found = at.op("ScatterElements", zeros, flat, shares, axis=2, reduction="add")
        dx = at.reshape(found, n, c, *sizes)
    if at.wants(1) and _mode(at) != "nearest":
        read = at.op("GatherElements", at.reshape(at.inputs[0], n, c, whole), flat, axis=2)
        along = at.sum(at.op("Mul", g, at.reshape(read, n, c, points, *[count] * rank)), 1, keepdims=False)
        moved: list[ir.Value] = []
        for axis in axes:
            others = [other.weights for other in axes if other is not axis]
            summed = at.sum(_product(at, [along, axis.slopes, *others]), *range(2, 2 + rank), keepdims=False)
            moved.insert(0, at.reshape(summed, n, points, 1))  # the grid names the last axis first
        dgrid = at.reshape(at.op("Concat", *moved, axis=2), *at.shape(at.inputs[1]))
    return [dx, dgrid]


class _Taps(NamedTuple):
    """What the points read along one axis; of shapes that broadcast to (n, points, taps of the axes)."""

    places: ir.Value
    """int64, within the axis."""
    weights: ir.Value
    slopes: ir.Value
    """How the weights move with the grid."""


def _taps(at: Backward, axis: int, size: int) -> _Taps:
    """Those that are outside of the axis are padding: zeros, the element at the end, or what is reflected there."""
    rank, padding, mode = at.rank(at.inputs[0]) - 2, at.attribute("padding_mode", "zeros"), _mode(at)
    low, span = (0, size - 1) if at.attribute("align_corners", 0) else (-0.5, size)
    number = at.op("Gather", at.inputs[1], at.const(np.int64(rank - 1 - axis)), axis=-1)
    x = at.op("Add", at.op("Mul", number, at.number(span / 2)), at.number(low + span / 2))
    x = at.reshape(x, at.shape(at.inputs[0])[0], -1, *[1] * rank)
    before = at.op("Round" if mode == "nearest" else "Floor", x)
    t = at.op("Sub", x, before)
    factors = [np.array(row, np.float64).reshape(-1, *[1] * (rank - 1 - axis)) for row in _POLYNOMIALS[mode]]
    weights = _polynomial(at, t, factors)
    slopes = _polynomial(at, t, [i * row * span / 2 for i, row in enumerate(factors)][1:] or factors)
    offsets = np.arange(len(factors[0])) - (mode == "cubic")
    places = at.op("Add", before, _numbers(at, offsets.reshape(factors[0].shape)))
    if padding == "reflection":
        return _Taps(at.op("Cast", _reflected(at, places, low, span), to=ir.DataType.INT64), weights, slopes)
    inside = at.op("Clip", places, at.number(0), at.number(size - 1))
    if padding == "zeros":
        exists = at.op("Cast", at.op("Equal", inside, places), to=at.dtype(at.outputs[0]))
        weights, slopes = at.op("Mul", weights, exists), at.op("Mul", slopes, exists)
    return _Taps(at.op("Cast", inside, to=ir.DataType.INT64), weights, slopes)


def _mode(at: Backward) -> str:
    mode = str(at.attribute("mode", "linear"))
    return _MODES.get(mode, mode)


def _reflected(at: Backward, x: ir.Value, low: float, span: float) -> ir.Value:
    """``x`` reflected at ``low`` and ``low + span`` until it is between them."""
    if span == 0:
        return at.op("Mul", x, at.number(0))
    past = at.op("Sub", x, at.number(low))
    turns = at.op("Floor", at.op("Div", past, at.number(2 * span)))
    past = at.op("Sub", past, at.op("Mul", turns, at.number(2 * span)))
    return at.op("Sub", at.number(low + span), at.op("Abs", at.op("Sub", past, at.number(span))))


def _polynomial(at: Backward, t: ir.Value, factors: list[np.ndarray]) -> ir.Value:
    """``Σ factors[i] · tⁱ``."""
    value = _numbers(at, factors[-1])
    for row in reversed(factors[:-1]):
        value = at.op("Add", at.op("Mul", value, t), _numbers(at, row))
    return value


def _numbers(at: Backward, array: np.ndarray) -> ir.Value:
    return at.const(array.astype(at.dtype(at.outputs[0]).numpy()))


def _product(at: Backward, factors: list[ir.Value]) -> ir.Value:
    return reduce(lambda a, b: at.op("Mul", a, b), factors)
