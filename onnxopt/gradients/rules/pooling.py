"""Pooling over windows and over whole maps.

Sums over windows are linear, and along each axis a matrix of its own, (out × size), of what each output reads. Their
gradients are products with these matrices: for small maps one product with that of all axes together, else one an axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np
import onnx_ir as ir

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp
from onnxopt.gradients.rules.windows import Windows, windows_of

_LARGEST_MATRIX = 4096


@vjp("AveragePool")
def _average_pool(at: Backward) -> Gradients:
    """``y = Σ x / count`` over each window: ``dx`` is ``g / count`` at each place that a window has read."""
    windows = windows_of(at)
    tiled = windows.strides == windows.kernel and not any((*windows.pads, *windows.missed))
    if tiled and math.prod(windows.size) * math.prod(windows.out) > _LARGEST_MATRIX:
        share = at.op("Mul", at.g, at.number(1 / math.prod(windows.kernel)))
        return [_repeated(at, share)]
    matrices = []
    for axis, (size, begin, end) in enumerate(zip(windows.size, windows.begin, windows.end, strict=True)):
        reads = windows.reads(axis)
        inside = (reads >= 0) & (reads < size)
        counted = (reads >= -begin) & (reads < size + end) if at.attribute("count_include_pad", 0) else inside
        matrices.append(_matrix(reads, size) / counted.sum(axis=1, keepdims=True))
    return [_spread(at, at.g, windows, matrices)]


def _repeated(at: Backward, value: ir.Value) -> ir.Value:
    """Each element at every place of its window, for windows that tile the input."""
    sizes = at.ints(*at.shape(at.inputs[0]))
    attributes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return at.op("Resize", value, None, None, sizes, **attributes)


@vjp("LpPool")
def _lp_pool(at: Backward) -> Gradients:
    """``y = (Σ |x|ᵖ)^(1/p)`` over each window: ``dx = sign(x) · |x|ᵖ⁻¹ · Σ g / yᵖ⁻¹`` over those that read it."""
    windows = windows_of(at)
    matrices = [_matrix(windows.reads(axis), size) for axis, size in enumerate(windows.size)]
    return [_norm_gradient(at, lambda share: _spread(at, share, windows, matrices))]


@vjp("GlobalLpPool")
def _global_lp_pool(at: Backward) -> Gradients:
    """``y = (Σ |x|ᵖ)^(1/p)`` over each map: ``dx = sign(x) · |x|ᵖ⁻¹ · g / yᵖ⁻¹``."""
    return [_norm_gradient(at, lambda share: share)]


def _norm_gradient(at: Backward, spread: Callable[[ir.Value], ir.Value]) -> ir.Value:
    """Of a ``p``-norm, which has the gradient 0 where it is 0."""
    x, y, p = at.inputs[0], at.outputs[0], at.attribute("p", 2)
    if p == 1:
        return at.op("Mul", at.op("Sign", x), spread(at.g))
    scale = y if p == 2 else at.op("Pow", y, at.number(p - 1))
    share = at.op("Where", at.op("Equal", y, at.number(0)), at.number(0), at.op("Div", at.g, scale))
    if p == 2:
        return at.op("Mul", x, spread(share))
    slope = at.op("Mul", at.op("Sign", x), at.op("Pow", at.op("Abs", x), at.number(p - 1)))
    return at.op("Mul", slope, spread(share))


@vjp("GlobalAveragePool")
def _global_average_pool(at: Backward) -> Gradients:
    """``y = mean x`` over each map: ``dx = g / size``."""
    shape = at.shape(at.inputs[0])
    return [at.op("Expand", at.op("Mul", at.g, at.number(1 / math.prod(shape[2:]))), at.ints(*shape))]


@vjp("GlobalMaxPool")
def _global_max_pool(at: Backward) -> Gradients:
    """``y = max x`` over each map: ``dx`` is ``g`` at the first place of the maximum."""
    n, c, *sizes = at.shape(at.inputs[0])
    places = at.op("ArgMax", at.reshape(at.inputs[0], n, c, math.prod(sizes)), axis=2)
    zeros = at.op("Expand", at.number(0), at.ints(n, c, math.prod(sizes)))
    found = at.op("ScatterElements", zeros, places, at.reshape(at.g, n, c, 1), axis=2)
    return [at.reshape(found, n, c, *sizes)]


def _matrix(reads: np.ndarray, size: int) -> np.ndarray:
    """(out, size): how often each output reads each element."""
    return np.array([np.bincount(each[(each >= 0) & (each < size)], minlength=size) for each in reads], np.float64)


def _spread(at: Backward, g: ir.Value, windows: Windows, matrices: Sequence[np.ndarray]) -> ir.Value:
    """``g`` of (n, c, out) times the matrices, (out, size), of all axes."""
    n, c = at.shape(at.inputs[0])[:2]
    dtype = at.dtype(at.outputs[0]).numpy()
    if math.prod(windows.size) * math.prod(windows.out) <= _LARGEST_MATRIX:
        whole = at.const(reduce(np.kron, matrices).astype(dtype))
        return at.reshape(at.op("MatMul", at.reshape(g, n * c, math.prod(windows.out)), whole), n, c, *windows.size)
    sizes = list(windows.out)
    for axis, matrix in enumerate(matrices):
        behind = math.prod(sizes[axis + 1 :])
        if axis == windows.rank - 1:
            g = at.op("MatMul", at.reshape(g, -1, sizes[axis]), at.const(matrix.astype(dtype)))
        else:
            g = at.op("MatMul", at.const(matrix.T.astype(dtype)), at.reshape(g, -1, sizes[axis], behind))
        sizes[axis] = windows.size[axis]
    return at.reshape(g, n, c, *windows.size)
