"""Activations that are ``x`` times a gate."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp
from onnxopt.gradients.rules.activations import cast


@vjp("Gelu", domain="com.microsoft")
@vjp("Gelu")
def _gelu(at: Backward) -> Gradients:
    """``y = x · Φ(x)``, where ``Φ`` and ``φ`` are the distribution and density of the normal distribution: ``dx = g ·
    (Φ(x) + x · φ(x))``. Or ``y`` is the approximation by tanh."""
    x = at.inputs[0]
    return [_tanh_gelu(at, x) if at.attribute("approximate", "none") == "tanh" else _exact_gelu(at, x)]


@vjp("BiasGelu", domain="com.microsoft")
def _bias_gelu(at: Backward) -> Gradients:
    """``y = Gelu(a + b)``: what ``da`` is, ``db`` is too."""
    a, b = at.inputs
    dx = _exact_gelu(at, at.op("Add", a, b))
    return at.unbroadcast(dx, a), at.unbroadcast(dx, b)


@vjp("FastGelu", domain="com.microsoft")
def _fast_gelu(at: Backward) -> Gradients:
    """``y = Gelu(x + bias)`` by tanh, with the bias left out or not: what ``dx`` is, ``dbias`` is too."""
    x, bias = at.inputs[0], at.input(1)
    if bias is None:
        return [_tanh_gelu(at, x)]
    dx = _tanh_gelu(at, at.op("Add", x, bias))
    return dx, at.unbroadcast(dx, bias)


def _exact_gelu(at: Backward, x: ir.Value) -> ir.Value:
    """``g · (Φ(x) + x · φ(x))`` with ``s = x / √2``, ``Φ = (1 + erf s) / 2`` and ``φ = e^(-s²) / √(2π)``."""
    s = at.op("Mul", x, at.number(math.sqrt(0.5)))
    below = at.op("HardSigmoid", at.op("Erf", s), alpha=0.5, beta=0.5)
    density = at.op("Exp", at.op("Sub", at.number(-0.5 * math.log(2 * math.pi)), at.op("Mul", s, s)))
    return at.op("Mul", at.g, at.op("Add", below, at.op("Mul", x, density)))


def _tanh_gelu(at: Backward, x: ir.Value) -> ir.Value:
    """``y = x · s`` with ``s = σ(u)`` and ``u = c · (x + 0.044715 x³)``: ``g · (s + (y - y · s) · u')``."""
    y, c = at.outputs[0], math.sqrt(8 / math.pi)
    square = at.op("Mul", x, x)
    inner = at.op("Add", at.op("Mul", square, at.number(0.044715 * c)), at.number(c))
    slope = at.op("Add", at.op("Mul", square, at.number(3 * 0.044715 * c)), at.number(c))
    s = at.op("Sigmoid", at.op("Mul", x, inner))
    return at.op("Mul", at.g, at.op("Add", at.op("Mul", at.op("Sub", y, at.op("Mul", y, s)), slope), s))


@vjp("QuickGelu", domain="com.microsoft")
@vjp("Swish")
def _swish(at: Backward) -> Gradients:
    """``y = x · s`` with ``s = σ(αx)``: ``dx = g · (s + α · (y - y · s))``."""
    x, y = at.inputs[0], at.outputs[0]
    alpha = at.attribute("alpha", 1.702 if at.node.op_type == "QuickGelu" else 1.0)
    s = at.op("Sigmoid", x if alpha == 1 else at.op("Mul", x, at.number(alpha)))
    change = at.op("Sub", y, at.op("Mul", y, s))
    if alpha != 1:
        change = at.op("Mul", change, at.number(alpha))
    return [at.op("Mul", at.g, at.op("Add", s, change))]


@vjp("HardSwish")
def _hard_swish(at: Backward) -> Gradients:
    """``y = x · h`` with ``h = x / 6 + 1/2``, cut to 0 … 1: ``dx = g · h``, and ``g · (2h - 1/2)`` where ``h > h²``."""
    h = at.op("HardSigmoid", at.inputs[0], alpha=1 / 6, beta=0.5)
    inside = cast(at, at.op("Greater", h, at.op("Mul", h, h)))
    change = at.op("Mul", inside, at.op("Sub", h, at.number(0.5)))
    return [at.op("Mul", at.g, at.op("Add", h, change))]


@vjp("Mish")
def _mish(at: Backward) -> Gradients:
    """``y = x · tanh(log(1 + e^x))``. With ``e = e^x``, ``n = e² + 2e`` and ``d = n + 2`` the gate is ``n / d``, and
    ``dx = g · (n + 4x · (n - e) / d) / d``, which needs no Softplus: that is slow in ONNX Runtime. Beyond 20 the slope
    is 1."""
    x = at.op("Min", at.inputs[0], at.number(20))
    e = at.op("Exp", x)
    n = at.op("Mul", e, at.op("Add", e, at.number(2)))
    d = at.op("Add", n, at.number(2))
    change = at.op("Div", at.op("Mul", at.op("Mul", x, at.number(4)), at.op("Sub", n, e)), d)
    return [at.op("Mul", at.g, at.op("Div", at.op("Add", n, change), d))]
