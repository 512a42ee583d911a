"""Batch normalization.

What is affine in each channel is written as a ``BatchNormalization`` at inference, which is one pass over a map.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp


@vjp("BatchNormalization")
def _batch_normalization(at: Backward) -> Gradients:
    """``y = scale · (x − mean) / √(var + ε) + b``, per channel."""
    if any(at.gradients[1:]):
        raise at.error("the loss depends on its running mean or variance")
    return _training(at) if at.attribute("training_mode", 0) else _inference(at)


def _inference(at: Backward) -> Gradients:
    """``σ = √(var + ε)`` and ``x̂ = (x − mean) / σ``: ``dx = g · scale / σ``, ``dscale = Σ g · x̂``, ``db = Σ g``,
    ``dmean = −scale / σ · db``, ``dvar = −scale / 2σ² · dscale``."""
    x, scale, _, mean, var = at.inputs
    epsilon = at.attribute("epsilon", 1e-5)
    zero, one = _channels(at, 0), _channels(at, 1)
    dx = at.op("BatchNormalization", at.g, scale, zero, zero, var, epsilon=epsilon) if at.wants(0) else None
    if not any(at.wants(i) for i in (1, 2, 3, 4)):
        return [dx]
    axes = _axes(at)
    db = at.sum(at.g, *axes, keepdims=False)
    normalized = at.op("BatchNormalization", x, one, zero, mean, var, epsilon=epsilon)
    dscale = at.sum(at.op("Mul", at.g, normalized), *axes, keepdims=False)
    square = at.op("Add", var, at.number(epsilon))
    dmean = at.op("Neg", at.op("Div", at.op("Mul", scale, db), at.op("Sqrt", square)))
    dvar = at.op("Div", at.op("Mul", at.op("Mul", scale, dscale), at.number(-0.5)), square)
    return dx, dscale, db, dmean, dvar


def _training(at: Backward) -> Gradients:
    """``mean`` and ``var`` are those of the batch, of ``m`` elements a channel: ``dscale = Σ g · x̂``, ``db = Σ g``,
    ``dx = scale / σ · (g − db / m − x̂ · dscale / m)``."""
    x, scale = at.inputs[:2]
    epsilon, dtype = at.attribute("epsilon", 1e-5), at.dtype(scale).numpy()
    # ONNX Runtime writes the running mean and variance over those it is given, and merges constants that are equal:
    # with no momentum they do not count, so they are numbers that no other constant holds
    assert at.node.graph is not None
    unlike = float(2 + len(at.node.graph.initializers))
    normalized, _, var = at.ops(
        "BatchNormalization",
        x,
        *[at.const(np.full(at.shape(scale), number, dtype), shared=False) for number in (1, 0, unlike, unlike + 0.5)],
        outputs=3,
        training_mode=1,
        momentum=0.0,
        epsilon=epsilon,
    )
    axes = _axes(at)
    dscale = at.sum(at.op("Mul", at.g, normalized), *axes, keepdims=False)
    db = at.sum(at.g, *axes, keepdims=False)
    if not at.wants(0):
        return None, dscale, db
    shape = at.shape(x)
    count = at.number(math.prod(shape) // shape[1])
    factor = at.op("Div", scale, at.op("Sqrt", at.op("Add", var, at.number(epsilon))))
    share = at.op("Neg", at.op("Div", at.op("Mul", factor, dscale), count))
    dx = at.op("Add", _affine(at, at.g, factor, at.op("Div", db, count)), _affine(at, normalized, share, None))
    return dx, dscale, db


def _affine(at: Backward, value: ir.Value, factor: ir.Value, mean: ir.Value | None) -> ir.Value:
    """``factor · (value − mean)``, per channel."""
    zero, one = _channels(at, 0), _channels(at, 1)
    return at.op("BatchNormalization", value, factor, zero, mean or zero, one, epsilon=0.0)


def _channels(at: Backward, number: int) -> ir.Value:
    """The number for each channel."""
    return at.op("Expand", at.number(number), at.ints(*at.shape(at.inputs[1])))


def _axes(at: Backward) -> list[int]:
    """All but that of the channels."""
    return [axis for axis in range(at.rank(at.inputs[0])) if axis != 1]
