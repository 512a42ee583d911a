"""Activations. At kinks the slope is that of one side.

Where is slow in ONNX Runtime, so choices are products with a condition that is cast to 0 and 1.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp


def cast(at: Backward, condition: ir.Value) -> ir.Value:
    """1 where ``condition`` holds, else 0."""
    return at.op("Cast", condition, to=at.dtype(at.outputs[0]))


@vjp("Relu")
def _relu(at: Backward) -> Gradients:
    """``y = max(x, 0)``: ``dx = g · [y > 0]``."""
    return [at.op("Mul", at.g, cast(at, at.op("Greater", at.outputs[0], at.number(0))))]


@vjp("ThresholdedRelu")
def _thresholded_relu(at: Backward) -> Gradients:
    """``y = x · [x > α]``: ``dx = g · [x > α]``."""
    alpha = at.number(at.attribute("alpha", 1.0))
    return [at.op("Mul", at.g, cast(at, at.op("Greater", at.inputs[0], alpha)))]


@vjp("LeakyRelu")
def _leaky_relu(at: Backward) -> Gradients:
    """``y = x`` where ``x ≥ 0``, else ``αx``: ``dx = g · max(α, [x ≥ 0])`` for ``α`` from 0 to 1."""
    alpha = at.attribute("alpha", 0.01)
    above = cast(at, at.op("GreaterOrEqual", at.inputs[0], at.number(0)))
    if 0 <= alpha <= 1:
        slope = at.op("Max", above, at.number(alpha))
    else:
        slope = at.op("Add", at.op("Mul", above, at.number(1 - alpha)), at.number(alpha))
    return [at.op("Mul", at.g, slope)]


@vjp("PRelu")
def _prelu(at: Backward) -> Gradients:
    """``y = x`` where ``x ≥ 0``, else ``sx``: ``dx = g · (1 + (s - 1) · [x < 0])`` and ``ds = g · min(x, 0)``."""
    x, s = at.inputs
    zero, one = at.number(0), at.number(1)
    dx = ds = None
    if at.wants(0):
        below = cast(at, at.op("Less", x, zero))
        dx = at.op("Mul", at.g, at.op("Add", at.op("Mul", below, at.op("Sub", s, one)), one))
    if at.wants(1):
        ds = at.unbroadcast(at.op("Mul", at.g, at.op("Min", x, zero)), s)
    return dx, ds


@vjp("Elu")
def _elu(at: Backward) -> Gradients:
    """``y = x`` where ``x > 0``, else ``α (e^x - 1)``: ``dx = g`` and ``dx = g · (y + α)``."""
    return [_exponential(at, at.attribute("alpha", 1.0), 1.0)]


@vjp("Selu")
def _selu(at: Backward) -> Gradients:
    """``y = γx`` where ``x > 0``, else ``γα (e^x - 1)``: ``dx = γg`` and ``dx = g · (y + γα)``."""
    gamma = at.attribute("gamma", 1.0507009873554805)
    return [_exponential(at, at.attribute("alpha", 1.6732632423543772) * gamma, gamma)]


def _exponential(at: Backward, scale: float, slope: float) -> ir.Value:
    """``g · slope`` where ``x > 0``, else ``g · (y + scale)``."""
    y = at.outputs[0]
    if scale == slope > 0:
        return at.op("Mul", at.g, at.op("Add", at.op("Min", y, at.number(0)), at.number(slope)))
    below = cast(at, at.op("LessOrEqual", at.inputs[0], at.number(0)))
    change = at.op("Mul", below, at.op("Add", y, at.number(scale - slope)))
    return at.op("Mul", at.g, at.op("Add", change, at.number(slope)))


@vjp("Celu")
def _celu(at: Backward) -> Gradients:
    """``y = max(x, 0) + min(α (e^(x/α) - 1), 0)``: ``dx = g · (min(y, 0) / α + 1)``."""
    below = at.op("Min", at.outputs[0], at.number(0))
    alpha = at.attribute("alpha", 1.0)
    scaled = below if alpha == 1 else at.op("Mul", below, at.number(1 / alpha))
    return [at.op("Mul", at.g, at.op("Add", scaled, at.number(1)))]


@vjp("Sigmoid")
def _sigmoid(at: Backward) -> Gradients:
    """``y = 1 / (1 + e^(-x))``: ``dx = g · (y - y²)``."""
    y = at.outputs[0]
    return [at.op("Mul", at.g, at.op("Sub", y, at.op("Mul", y, y)))]


@vjp("HardSigmoid")
def _hard_sigmoid(at: Backward) -> Gradients:
    """``y = αx + β``, cut to 0 … 1: ``dx = αg`` where ``y > y²``, that is, where ``0 < y < 1``."""
    y = at.outputs[0]
    inside = cast(at, at.op("Greater", y, at.op("Mul", y, y)))
    return [at.op("Mul", at.op("Mul", at.g, inside), at.number(at.attribute("alpha", 0.2)))]


@vjp("Tanh")
def _tanh(at: Backward) -> Gradients:
    """``y = tanh x``: ``dx = g · (1 - y²)``."""
    y = at.outputs[0]
    return [at.op("Mul", at.g, at.op("Sub", at.number(1), at.op("Mul", y, y)))]


@vjp("Softplus")
def _softplus(at: Backward) -> Gradients:
    """``y = log(1 + e^x)``: ``dx = g / (1 + e^(-x))``."""
    return [at.op("Mul", at.g, at.op("Sigmoid", at.inputs[0]))]


@vjp("Softsign")
def _softsign(at: Backward) -> Gradients:
    """``y = x / (1 + |x|)``: ``dx = g / (1 + |x|)²``."""
    size = at.op("Add", at.op("Abs", at.inputs[0]), at.number(1))
    return [at.op("Div", at.g, at.op("Mul", size, size))]


@vjp("Clip")
def _clip(at: Backward) -> Gradients:
    """``y = min(max(x, low), high)``: ``dx = g`` where ``y = x``; of the rest of ``g``, ``high`` has the sum where
    ``y = high`` and ``low`` that elsewhere."""
    x, low, high = at.inputs[0], at.input(1), at.input(2)
    y = at.outputs[0]
    dx = at.op("Mul", at.g, cast(at, at.op("Equal", x, y)))
    if not (at.wants(1) or at.wants(2)):
        return [dx]
    rest = at.op("Sub", at.g, dx)
    to_high = to_low = rest
    if low is not None and high is not None:
        to_high = at.op("Mul", rest, cast(at, at.op("Equal", y, high)))
        to_low = at.op("Sub", rest, to_high)
    return (
        dx,
        at.unbroadcast(to_low, low) if low is not None and at.wants(1) else None,
        at.unbroadcast(to_high, high) if high is not None and at.wants(2) else None,
    )


@vjp("Shrink")
def _shrink(at: Backward) -> Gradients:
    """``y = x ± bias`` where ``|x| > λ``, else 0: ``dx = g · [|x| > λ]``."""
    beyond = at.op("Greater", at.op("Abs", at.inputs[0]), at.number(at.attribute("lambd", 0.5)))
    return [at.op("Mul", at.g, cast(at, beyond))]
