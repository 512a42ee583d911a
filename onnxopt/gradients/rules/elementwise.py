"""Functions of each element by itself. Where ``y`` gives the derivative, it is not computed again from ``x``."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp


@vjp("Abs")
def _abs(at: Backward) -> Gradients:
    """``y = |x|``: ``dx = g · sign x``."""
    return [at.op("Mul", at.g, at.op("Sign", at.inputs[0]))]


@vjp("Sqrt")
def _sqrt(at: Backward) -> Gradients:
    """``y = √x``: ``dx = g / 2y``."""
    return [at.op("Div", at.op("Mul", at.g, at.number(0.5)), at.outputs[0])]


@vjp("Reciprocal")
def _reciprocal(at: Backward) -> Gradients:
    """``y = 1 / x``: ``dx = -g · y²``."""
    y = at.outputs[0]
    return [at.op("Mul", at.op("Neg", at.g), at.op("Mul", y, y))]


@vjp("Exp")
def _exp(at: Backward) -> Gradients:
    """``y = e^x``: ``dx = g · y``."""
    return [at.op("Mul", at.g, at.outputs[0])]


@vjp("Log")
def _log(at: Backward) -> Gradients:
    """``y = log x``: ``dx = g / x``."""
    return [at.op("Div", at.g, at.inputs[0])]


@vjp("Erf")
def _erf(at: Backward) -> Gradients:
    """``y = erf x``: ``dx = g · 2/√π · e^(-x²)``, with the factor in the exponent."""
    x = at.inputs[0]
    exponent = at.op("Sub", at.number(math.log(2 / math.sqrt(math.pi))), at.op("Mul", x, x))
    return [at.op("Mul", at.g, at.op("Exp", exponent))]


@vjp("Sin")
def _sin(at: Backward) -> Gradients:
    """``y = sin x``: ``dx = g · cos x``."""
    return [at.op("Mul", at.g, at.op("Cos", at.inputs[0]))]


@vjp("Cos")
def _cos(at: Backward) -> Gradients:
    """``y = cos x``: ``dx = -g · sin x``."""
    return [at.op("Mul", at.op("Neg", at.g), at.op("Sin", at.inputs[0]))]


@vjp("Tan")
def _tan(at: Backward) -> Gradients:
    """``y = tan x``: ``dx = g · (1 + y²)``."""
    return [at.op("Mul", at.g, at.op("Add", _square(at, at.outputs[0]), at.number(1)))]


@vjp("Sinh")
def _sinh(at: Backward) -> Gradients:
    """``y = sinh x``: ``dx = g · cosh x``."""
    return [at.op("Mul", at.g, at.op("Cosh", at.inputs[0]))]


@vjp("Cosh")
def _cosh(at: Backward) -> Gradients:
    """``y = cosh x``: ``dx = g · sinh x``."""
    return [at.op("Mul", at.g, at.op("Sinh", at.inputs[0]))]


@vjp("Asin")
def _asin(at: Backward) -> Gradients:
    """``y = asin x``: ``dx = g / √(1 - x²)``."""
    return [at.op("Div", at.g, at.op("Sqrt", _one_minus_square(at)))]


@vjp("Acos")
def _acos(at: Backward) -> Gradients:
    """``y = acos x``: ``dx = -g / √(1 - x²)``."""
    return [at.op("Div", at.op("Neg", at.g), at.op("Sqrt", _one_minus_square(at)))]


@vjp("Atan")
def _atan(at: Backward) -> Gradients:
    """``y = atan x``: ``dx = g / (1 + x²)``."""
    return [at.op("Div", at.g, at.op("Add", _square(at, at.inputs[0]), at.number(1)))]


@vjp("Asinh")
def _asinh(at: Backward) -> Gradients:
    """``y = asinh x``: ``dx = g / √(1 + x²)``."""
    return [at.op("Div", at.g, at.op("Sqrt", at.op("Add", _square(at, at.inputs[0]), at.number(1))))]


@vjp("Acosh")
def _acosh(at: Backward) -> Gradients:
    """``y = acosh x``: ``dx = g / √(x² - 1)``."""
    return [at.op("Div", at.g, at.op("Sqrt", at.op("Sub", _square(at, at.inputs[0]), at.number(1))))]


@vjp("Atanh")
def _atanh(at: Backward) -> Gradients:
    """``y = atanh x``: ``dx = g / (1 - x²)``."""
    return [at.op("Div", at.g, _one_minus_square(at))]


def _square(at: Backward, x: ir.Value) -> ir.Value:
    return at.op("Mul", x, x)


def _one_minus_square(at: Backward) -> ir.Value:
    """``1 - x²``."""
    return at.op("Sub", at.number(1), _square(at, at.inputs[0]))
