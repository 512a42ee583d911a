"""Replace a group normalization made of ``InstanceNormalization`` by one ``GroupNormalization``.

PyTorch exports it as the instance normalization of ``x`` (N, C, …) seen as (N, G, rest), with scale 1 and bias 0,
seen as (N, C, …) again, times a scale and plus a bias for each channel. ``GroupNormalization`` of G groups is
that by definition from opset 21 on (before, it had a scale for each group). Exact, up to rounding.

    Reshape → InstanceNormalization → Reshape → Mul → Add   becomes   GroupNormalization<num_groups=G>

Not in the cleanup recipe: ONNX Runtime 1.32 (CPU) has no kernel for it, and what it expands it to takes 1.7 to
2 times as long.

Source: Wu and He, "Group Normalization", ECCV 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.graph import attribute
from onnxopt.pass_base import Refuse
from onnxopt.passes.cleanup._normalizations import own_constant, placed
from onnxopt.rewrite import Match, RewritePass, Rule, rule

_OP = "GroupNormalization"


@rule(
    lambda op, x, split, one, zero, joined, scale, bias: op.Add(
        op.Mul(op.Reshape(op.InstanceNormalization(op.Reshape(x, split), one, zero), joined), scale), bias
    )
)
def _group_norm(match: Match) -> ir.Value | None:
    editor, x = match.editor, match["x"]
    (inner,) = match.of("InstanceNormalization")
    one, zero = editor.constant(match["one"]), editor.constant(match["zero"])
    if one is None or zero is None or not np.all(one == 1) or np.any(zero):
        return None
    match.requires(_OP, opset=21)
    shape, grouped = editor.shape(x), editor.shape(inner.inputs[0])
    if shape is None or len(shape) < 3 or grouped is None or len(grouped) < 3 or not isinstance(shape[1], int):
        raise Refuse("the shape of what it normalises is unknown")
    batch, channels, groups = shape[0], shape[1], grouped[1]
    if batch is None or grouped[0] != batch or not isinstance(groups, int) or not groups or channels % groups:
        raise Refuse(f"{list(shape)} seen as {list(grouped)} is no split into groups of channels")
    if not _is_shape_of(match["joined"], x) and (
        None in shape or editor.shape(match.of("Reshape")[0].outputs[0]) != shape
    ):
        raise Refuse("the result has another shape than what it normalises")
    dims = (channels,) + (1,) * (len(shape) - 2)
    arrays = [(own_constant(match, name, dims, _OP).reshape(channels), name) for name in ("scale", "bias")]
    values = [placed(match, array, name) for array, name in arrays]
    epsilon = float(attribute(inner, "epsilon", 1e-5))
    return match.insert(_OP, [x, *values], {"num_groups": groups, "epsilon": epsilon})


def _is_shape_of(value: ir.Value, x: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type == "Shape" and node.inputs[0] is x and not node.attributes


@dataclass(frozen=True, kw_only=True)
class FuseGroupNorm(RewritePass):
    """Replace a group normalization made of ``InstanceNormalization`` by one ``GroupNormalization``."""

    name: ClassVar[str] = "fuse-group-norm"
    exact: ClassVar[bool] = True
    rules: ClassVar[tuple[Rule, ...]] = (_group_norm,)
