"""Replace a written-out mish by one ``Mish``.

``mish(x) = x · tanh(softplus(x))``, by definition. ``Mish`` needs opset 18.

    Softplus(x) → Tanh → Mul(x)   becomes   Mish(x)

ONNX Runtime 1.32 (CPU) runs ``Mish`` as these three nodes, so it takes as long. A softplus written as
``log(1 + eˣ)`` is left as it is, since ONNX Runtime is faster with that; see ``fuse-softplus``.

Source: Misra, "Mish: A Self Regularized Non-Monotonic Activation Function", BMVC 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxopt.rewrite import Match, RewritePass, Rule, rule


@rule(lambda op, x: op.Mul(x, op.Tanh(op.Softplus(x))))
def _mish(match: Match) -> ir.Value:
    match.requires("Mish", opset=18)
    return match.insert("Mish", [match["x"]])


@dataclass(frozen=True, kw_only=True)
class FuseMish(RewritePass):
    """Replace a written-out mish by one ``Mish``."""

    name: ClassVar[str] = "fuse-mish"
    exact: ClassVar[bool] = True
    rules: ClassVar[tuple[Rule, ...]] = (_mish,)
