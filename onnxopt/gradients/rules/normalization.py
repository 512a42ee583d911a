"""Normalization by norms, by means and variances over any axes, and by what neighbouring channels hold."""

from __future__ import annotations

import math

import numpy as np

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp


@vjp("LpNormalization")
def _lp_normalization(at: Backward) -> Gradients:
    """``y = x / n`` with ``n`` the norm of order ``p`` along an axis: ``dx = (g − s · Σ g · y) / n``, where ``s`` is
    the gradient of ``n``: ``y`` for ``p = 2``, ``sign(x)`` for ``p = 1``. It is 0 where ``n`` is."""
    x, y = at.inputs[0], at.outputs[0]
    axis, p = at.ints(at.attribute("axis", -1)), at.attribute("p", 2)
    norm = at.op(f"ReduceL{p}", x, axis, keepdims=1)
    inverse = at.op("Where", at.op("Equal", norm, at.number(0)), at.number(0), at.op("Reciprocal", norm))
    along = at.op("ReduceSum", at.op("Mul", at.g, y), axis, keepdims=1)
    slope = y if p == 2 else at.op("Sign", x)
    return [at.op("Mul", at.op("Sub", at.g, at.op("Mul", slope, along)), inverse)]


@vjp("MeanVarianceNormalization")
def _mean_variance_normalization(at: Backward) -> Gradients:
    """``y = (x − mean) / σ`` over axes: ``dx = (g − mean g − y · mean(g · y)) / σ``."""
    x, y = at.inputs[0], at.outputs[0]
    axes = at.attribute("axes", (0, 2, 3))
    count = math.prod(at.shape(x)[axis] for axis in axes)
    centred = at.op("Sub", x, at.op("ReduceMean", x, at.ints(*axes)))
    variance = at.op("Div", at.op("ReduceSumSquare", centred, at.ints(*axes)), at.number(count))
    inverse = at.op("Reciprocal", at.op("Sqrt", variance))
    along = at.op("Mul", y, at.op("ReduceMean", at.op("Mul", at.g, y), at.ints(*axes)))
    rest = at.op("Sub", at.op("Sub", at.g, at.op("ReduceMean", at.g, at.ints(*axes))), along)
    return [at.op("Mul", rest, inverse)]


@vjp("LRN")
def _lrn(at: Backward) -> Gradients:
    """``y = x · t^−β`` with ``t = bias + α / size · Σ x²`` over near channels:
    ``dx = g · t^−β − 2αβ / size · x · Σ g · y / t``, the sum over the channels that this one is near to."""
    x, y = at.inputs[0], at.outputs[0]
    n, c, *sizes = at.shape(x)
    size, alpha, beta = at.attribute("size"), at.attribute("alpha", 1e-4), at.attribute("beta", 0.75)
    distance = np.arange(c) - np.arange(c)[:, None]
    near = ((distance >= -((size - 1) // 2)) & (distance <= size // 2)).astype(at.dtype(x).numpy())
    squares = at.reshape(at.op("Mul", x, x), n, c, math.prod(sizes))
    scaled = at.op("MatMul", at.const(near * near.dtype.type(alpha / size)), squares)
    base = at.op("Add", at.reshape(scaled, n, c, *sizes), at.number(at.attribute("bias", 1.0)))
    share = at.reshape(at.op("Div", at.op("Mul", at.g, y), base), n, c, math.prod(sizes))
    near_to = at.const(near.T * near.dtype.type(2 * alpha * beta / size))
    back = at.op("Mul", x, at.reshape(at.op("MatMul", near_to, share), n, c, *sizes))
    return [at.op("Sub", at.op("Mul", at.g, at.op("Pow", base, at.number(-beta))), back)]
