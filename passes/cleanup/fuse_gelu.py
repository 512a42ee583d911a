"""Replace a written-out GELU by one ``Gelu``.

``gelu(x) = x · ½(1 + erf(x / √2))``, and its approximation ``x · ½(1 + tanh(√(2/π) (x + 0.044715 x³)))``.
The products may be associated in any way, divisions may stand for multiplications by the reciprocal, and the
cube may be a power or products. Both are exact, up to rounding. ``Gelu`` needs opset 20.

    Div(x, 1.4142) → Erf → Add(1) → Mul(x) → Mul(0.5)   becomes   Gelu(x)

On ONNX Runtime 1.32 (CPU) the erf form takes as long as before, for it is fused there anyway, and the tanh
form 0.3 to 0.6 of the time.

Source: Hendrycks and Gimpel, "Gaussian Error Linear Units (GELUs)", arXiv:1606.08415.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxopt.patterns import Op, Pattern
from onnxopt.rewrite import Match, RewritePass, Rule, rule

_CUBIC = 0.044715


def _with_erf(op: Op, x: Pattern) -> Pattern:
    erf = op.Erf(op.product(x, math.sqrt(0.5)))
    return op.any(
        op.product(x, op.Add(erf, 1.0), 0.5),
        op.product(x, op.Add(op.product(erf, 0.5), 0.5)),
    )


def _with_tanh(op: Op, x: Pattern) -> Pattern:
    square = op.Pow(x, 2.0)
    cubic = op.any(
        op.product(op.Pow(x, 3.0), _CUBIC), op.product(x, square, _CUBIC), op.product(x, x, x, _CUBIC)
    )
    quadratic = op.any(op.product(square, _CUBIC), op.product(x, x, _CUBIC))
    root = math.sqrt(2 / math.pi)
    inner = op.any(op.product(op.Add(x, cubic), root), op.product(x, op.Add(quadratic, 1.0), root))
    tanh = op.Tanh(inner)
    return op.any(
        op.product(x, op.Add(tanh, 1.0), 0.5),
        op.product(x, op.Add(op.product(tanh, 0.5), 0.5)),
    )


@rule(_with_erf)
def _gelu(match: Match) -> ir.Value:
    match.requires("Gelu", opset=20)
    return match.insert("Gelu", [match["x"]])


@rule(_with_tanh)
def _gelu_by_tanh(match: Match) -> ir.Value:
    match.requires("Gelu", opset=20)
    return match.insert("Gelu", [match["x"]], {"approximate": "tanh"})


@dataclass(frozen=True, kw_only=True)
class FuseGelu(RewritePass):
    """Replace a written-out GELU by one ``Gelu``."""

    name: ClassVar[str] = "fuse-gelu"
    exact: ClassVar[bool] = True
    rules: ClassVar[tuple[Rule, ...]] = (_gelu, _gelu_by_tanh)
