"""Sums, means, extremes and norms over axes.

Where no axes are reduced, as ``noop_with_empty_axes`` may say, the equations hold of each element.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp


@vjp("Sum")
def _sum(at: Backward) -> Gradients:
    """``y = a + b + …``: each gets ``g``."""
    return [at.unbroadcast(at.g, value) for value in at.inputs]


@vjp("ReduceSum")
def _reduce_sum(at: Backward) -> Gradients:
    """``y = Σ x``: ``dx = g``, the same all along the axes."""
    x = at.inputs[0]
    return [at.op("Expand", _with_axes(at, at.g), at.ints(*at.shape(x)))]


@vjp("ReduceMean")
def _reduce_mean(at: Backward) -> Gradients:
    """``y = Σ x / n``: ``dx = g / n``, the same all along the axes."""
    shape = at.shape(at.inputs[0])
    count = max(1, math.prod(shape[axis] for axis in _axes(at)))
    share = at.op("Mul", _with_axes(at, at.g), at.number(1 / count))
    return [at.op("Expand", share, at.ints(*shape))]


@vjp("ReduceMax", "ReduceMin")
def _reduce_extreme(at: Backward) -> Gradients:
    """``y = max x``: the elements that equal ``y`` share ``g`` equally."""
    x = at.inputs[0]
    found = at.op("Cast", at.op("Equal", x, _with_axes(at, at.outputs[0])), to=at.dtype(x))
    share = at.op("Div", _with_axes(at, at.g), at.sum(found, *_axes(at)))
    return [at.op("Mul", found, share)]


@vjp("ReduceProd")
def _reduce_prod(at: Backward) -> Gradients:
    """``y = Π x``: ``dx`` is ``g`` times the product of the others. That is ``Π x / x`` with the zeros left out, or 0
    where one of the others is 0."""
    x, axes, zero = at.inputs[0], _axes(at), at.number(0)
    if not axes:
        return [at.g]
    zeros = at.op("Cast", at.op("Equal", x, zero), to=at.dtype(x))
    nonzero = at.op("Add", x, zeros)
    product = at.op("ReduceProd", nonzero, at.ints(*axes))
    is_moving = at.op("Cast", at.op("Equal", at.sum(zeros, *axes), zeros), to=at.dtype(x))
    return [at.op("Mul", at.op("Div", at.op("Mul", _with_axes(at, at.g), product), nonzero), is_moving)]


@vjp("ReduceL1")
def _reduce_l1(at: Backward) -> Gradients:
    """``y = Σ |x|``: ``dx = g · sign x``."""
    return [at.op("Mul", at.op("Sign", at.inputs[0]), _with_axes(at, at.g))]


@vjp("ReduceL2")
def _reduce_l2(at: Backward) -> Gradients:
    """``y = √(Σ x²)``: ``dx = g / y · x``, and 0 where ``y`` is."""
    y = at.outputs[0]
    nonzero = at.op("Add", y, at.op("Cast", at.op("Equal", y, at.number(0)), to=at.dtype(y)))
    return [at.op("Mul", at.inputs[0], _with_axes(at, at.op("Div", at.g, nonzero)))]


@vjp("ReduceSumSquare")
def _reduce_sum_square(at: Backward) -> Gradients:
    """``y = Σ x²``: ``dx = 2g · x``."""
    return [at.op("Mul", at.inputs[0], _with_axes(at, at.op("Mul", at.g, at.number(2))))]


@vjp("ReduceLogSum")
def _reduce_log_sum(at: Backward) -> Gradients:
    """``y = log Σ x``: ``dx = g / Σ x``, the same all along the axes."""
    share = at.op("Mul", at.g, at.op("Exp", at.op("Neg", at.outputs[0])))
    return [at.op("Expand", _with_axes(at, share), at.ints(*at.shape(at.inputs[0])))]


@vjp("ReduceLogSumExp")
def _reduce_log_sum_exp(at: Backward) -> Gradients:
    """``y = log Σ e^x``: ``dx = g · e^(x - y)``."""
    part = at.op("Exp", at.op("Sub", at.inputs[0], _with_axes(at, at.outputs[0])))
    return [at.op("Mul", part, _with_axes(at, at.g))]


@vjp("CumSum")
def _cum_sum(at: Backward) -> Gradients:
    """``y`` is the sum of ``x`` up to each place: ``dx`` is the sum of ``g`` from there on."""
    exclusive, reverse = at.attribute("exclusive", 0), at.attribute("reverse", 0)
    return [at.op("CumSum", at.g, at.inputs[1], exclusive=exclusive, reverse=1 - reverse)]


@vjp("Trilu")
def _trilu(at: Backward) -> Gradients:
    """``y = x`` on one side of a diagonal, else 0: ``dx`` is ``g`` on that side."""
    return [at.op("Trilu", at.g, *at.inputs[1:], upper=at.attribute("upper", 1))]


def _axes(at: Backward) -> list[int]:
    """The axes that are reduced: an attribute, or an input."""
    rank = at.rank(at.inputs[0])
    given = at.input(1)
    axes = list(at.attribute("axes", ())) if given is None else at.numbers(given)
    if not axes:
        return [] if at.attribute("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(axis % rank for axis in axes)


def _with_axes(at: Backward, value: ir.Value) -> ir.Value:
    """``value``, of the shape of the output, with the reduced axes back as 1."""
    if at.attribute("keepdims", 1):
        return value
    axes = _axes(at)
    return at.reshape(value, *(1 if i in axes else d for i, d in enumerate(at.shape(at.inputs[0]))))
