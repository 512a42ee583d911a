"""Replace a written-out root-mean-square normalization by one ``RMSNormalization``.

``y = x / √(mean(x²) + ε) · scale``, the mean over the last axes; also with the casts by which models in half
compute the root in float, which is what ``RMSNormalization`` does by itself. Exact, up to rounding, where the
scale has just the shape of the normalised dims. ``RMSNormalization`` needs opset 23.

    Pow(x, 2) → ReduceMean → Add(ε) → Sqrt → Div(x) → Mul(scale)   becomes   RMSNormalization(x, scale)

On ONNX Runtime 1.32 (CPU): 0.4 to 1.0 of the time, depending on the form.

Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", NeurIPS 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxopt.pass_base import Refuse
from onnxopt.passes.cleanup._normalizations import (
    identity_scale,
    in_float,
    mean,
    over_root,
    parameter,
    placed,
    trailing_dims,
)
from onnxopt.patterns import Op, Pattern
from onnxopt.rewrite import Match, RewritePass, Rule, rule

_OP = "RMSNormalization"


def _normalized(op: Op, x: Pattern) -> Pattern:
    in_one_type = over_root(op, x, mean(op, op.square(x)))
    wide = in_float(op, x)
    return op.any(in_one_type, op.Cast(over_root(op, wide, mean(op, op.square(wide)))))


@rule(lambda op, x, scale: op.Mul(_normalized(op, x), scale))
def _with_scale(match: Match) -> ir.Value | None:
    return _fuse(match, has_scale=True)


@rule(_normalized)
def _plain(match: Match) -> ir.Value | None:
    return _fuse(match, has_scale=False)


def _fuse(match: Match, has_scale: bool) -> ir.Value | None:
    if _is_centered(match["x"]):
        return None
    match.requires(_OP, opset=23)
    dims = trailing_dims(match, _OP)
    if match.editor.dtype(match["x"]) != match.dtype():
        raise Refuse("its casts change the element type")
    if has_scale:
        scale = placed(match, parameter(match, "scale", dims, _OP), "scale")
    else:
        scale = match.constant(identity_scale(match, dims, _OP), f"{match.root.outputs[0].name}_scale")
    return match.insert(_OP, [match["x"], scale], {"axis": -len(dims), "epsilon": match.number("epsilon")})


def _is_centered(x: ir.Value) -> bool:
    """Whether ``x`` is a difference from a mean, which makes this a part of a layer normalization."""
    node = x.producer()
    mean_of = node.inputs[1] if node is not None and node.op_type == "Sub" else None
    producer = mean_of.producer() if mean_of is not None else None
    return producer is not None and producer.op_type == "ReduceMean"


@dataclass(frozen=True, kw_only=True)
class FuseRmsNorm(RewritePass):
    """Replace a written-out root-mean-square normalization by one ``RMSNormalization``."""

    name: ClassVar[str] = "fuse-rms-norm"
    exact: ClassVar[bool] = True
    rules: ClassVar[tuple[Rule, ...]] = (_with_scale, _plain)
