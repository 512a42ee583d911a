"""Replace a written-out layer normalization by one ``LayerNormalization``.

``y = (x − μ) / √(σ² + ε) · scale + bias``, with mean ``μ`` and variance ``σ²`` over the last axes. Found in the
forms of PyTorch (``ReduceMean, Sub, Pow, ReduceMean, Add, Sqrt, Div, Mul, Add``), TensorFlow and Keras (with
``d·d``, a reciprocal root, and the scale folded into it as ``x·i + (bias − μ·i)``), and in models in half with
the casts that keep the variance in float. Exact, up to rounding, where scale and bias have just the shape of
the normalised dims. ``LayerNormalization`` needs opset 17.

    ReduceMean → Sub → Pow(2) → ReduceMean → Add(ε) → Sqrt → Div → Mul → Add   becomes   LayerNormalization

On ONNX Runtime 1.32 (CPU) as fast as before: it fuses the first of these forms itself.

Source: Ba, Kiros and Hinton, "Layer Normalization", arXiv:1607.06450.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxopt.pass_base import Refuse
from onnxopt.passes.cleanup._normalizations import (
    folded_affine,
    identity_scale,
    in_float,
    mean,
    over_root,
    parameter,
    placed,
    standardized,
    trailing_dims,
)
from onnxopt.patterns import Op, Pattern
from onnxopt.rewrite import Match, RewritePass, Rule, rule

_OP = "LayerNormalization"


def _standardized(op: Op, x: Pattern) -> Pattern:
    """All forms without scale and bias, those in half with casts included."""
    difference = op.Sub(x, mean(op, x))
    return op.any(
        standardized(op, x),
        op.Cast(standardized(op, in_float(op, x))),
        op.Div(
            difference,
            op.Cast(op.Sqrt(op.Add(mean(op, op.square(in_float(op, difference))), op.number("epsilon")))),
        ),
    )


def _cast_inside(op: Op, x: Pattern) -> Pattern:
    """The difference taken in half and all else in float, which is also the type of the result."""
    difference = in_float(op, op.Sub(x, mean(op, x)))
    return over_root(op, difference, mean(op, op.square(difference)))


@rule(
    lambda op, x, scale, bias: op.Add(op.Mul(_standardized(op, x), scale), bias),
    lambda op, x, scale, bias: op.Add(op.Mul(_cast_inside(op, x), scale), bias),
    folded_affine,
)
def _with_scale_and_bias(match: Match) -> ir.Value:
    return _fuse(match, ("scale", "bias"))


@rule(
    lambda op, x, scale: op.Mul(_standardized(op, x), scale),
    lambda op, x, scale: op.Mul(_cast_inside(op, x), scale),
)
def _with_scale(match: Match) -> ir.Value:
    return _fuse(match, ("scale",))


@rule(_standardized)
def _plain(match: Match) -> ir.Value:
    return _fuse(match, ())


def _fuse(match: Match, names: tuple[str, ...]) -> ir.Value:
    match.requires(_OP, opset=17)
    dims = trailing_dims(match, _OP)
    found = [parameter(match, name, dims, _OP) for name in names]
    ones = None if names else identity_scale(match, dims, _OP)
    x, dtype = match["x"], match.dtype()
    if match.editor.dtype(x) != dtype:
        if dtype != ir.DataType.FLOAT:
            raise Refuse("its casts make the element type narrower")
        x = match.insert("Cast", [x], {"to": dtype.value})
    if ones is not None:
        given = [match.constant(ones, f"{match.root.outputs[0].name}_scale")]
    else:
        given = [placed(match, each, name) for each, name in zip(found, names, strict=True)]
    return match.insert(_OP, [x, *given], {"axis": -len(dims), "epsilon": match.number("epsilon")})


@dataclass(frozen=True, kw_only=True)
class FuseLayerNorm(RewritePass):
    """Replace a written-out layer normalization by one ``LayerNormalization``."""

    name: ClassVar[str] = "fuse-layer-norm"
    exact: ClassVar[bool] = True
    rules: ClassVar[tuple[Rule, ...]] = (_with_scale_and_bias, _with_scale, _plain)
