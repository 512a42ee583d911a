"""Replace a written-out softplus by one ``Softplus``.

``softplus(x) = log(1 + eˣ)``, also written ``max(x, 0) + log(1 + e^−|x|)``. Exact wherever ``eˣ`` is finite.
Beyond (``x > 88`` in float, ``x > 11`` in half) the short form overflows to infinity, and ``Softplus``
gives the true value, ``x``.

    Exp(x) → Add(1) → Log   becomes   Softplus(x)

Not in the cleanup recipe: the kernel of ONNX Runtime 1.32 (CPU) is not vectorised, and takes 3 to 9 times as
long as the three nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxopt.rewrite import Match, RewritePass, Rule, rule


@rule(
    lambda op, x: op.Log(op.Add(op.Exp(x), 1.0)),
    lambda op, x: op.Add(
        op.any(op.Relu(x), op.Max(x, 0.0)), op.Log(op.Add(op.Exp(op.Neg(op.Abs(x))), 1.0))
    ),
)
def _softplus(match: Match) -> ir.Value:
    match.requires("Softplus", opset=1)
    return match.insert("Softplus", [match["x"]])


@dataclass(frozen=True, kw_only=True)
class FuseSoftplus(RewritePass):
    """Replace a written-out softplus by one ``Softplus``."""

    name: ClassVar[str] = "fuse-softplus"
    exact: ClassVar[bool] = False
    rules: ClassVar[tuple[Rule, ...]] = (_softplus,)
