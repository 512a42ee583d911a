"""Sums, products, powers, extremes, choices: operators of one or several operands that are broadcast."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp


@vjp("Add")
def _add(at: Backward) -> Gradients:
    """``y = a + b``: ``da = g``, ``db = g``."""
    a, b = at.inputs
    return at.unbroadcast(at.g, a), at.unbroadcast(at.g, b)


@vjp("Sub")
def _sub(at: Backward) -> Gradients:
    """``y = a - b``: ``da = g``, ``db = -g``."""
    a, b = at.inputs
    return at.unbroadcast(at.g, a), at.op("Neg", at.unbroadcast(at.g, b)) if at.wants(1) else None


@vjp("Neg")
def _neg(at: Backward) -> Gradients:
    """``y = -x``: ``dx = -g``."""
    return [at.op("Neg", at.g)]


@vjp("Mul")
def _mul(at: Backward) -> Gradients:
    """``y = a · b``: ``da = g · b``, ``db = g · a``."""
    a, b = at.inputs
    return [
        at.unbroadcast(at.op("Mul", at.g, other), x) if at.wants(i) else None
        for i, (x, other) in enumerate([(a, b), (b, a)])
    ]


@vjp("Div")
def _div(at: Backward) -> Gradients:
    """``y = a / b``: ``da = g / b``, ``db = -da · y``."""
    a, b = at.inputs
    wide = at.op("Div", at.g, b)
    da = at.unbroadcast(wide, a)
    return da, at.op("Neg", at.unbroadcast(at.op("Mul", wide, at.outputs[0]), b)) if at.wants(1) else None


@vjp("Mod")
def _mod(at: Backward) -> Gradients:
    """``y = a - q · b`` with a whole number ``q``: ``da = g``, ``db = -q · g``."""
    a, b = at.inputs
    if not at.wants(1):
        return [at.unbroadcast(at.g, a)]
    minus_q = at.op("Round", at.op("Div", at.op("Sub", at.outputs[0], a), b))
    return at.unbroadcast(at.g, a), at.unbroadcast(at.op("Mul", minus_q, at.g), b)


@vjp("Mean")
def _mean(at: Backward) -> Gradients:
    """``y = (a + b + …) / n``: each gets ``g / n``."""
    share = at.op("Mul", at.g, at.number(1 / len(at.inputs)))
    return [at.unbroadcast(share, value) if at.wants(i) else None for i, value in enumerate(at.inputs)]


@vjp("Min", "Max")
def _extreme(at: Backward) -> Gradients:
    """``y = max(a, b, …)``: the first of the operands that equal ``y`` gets ``g``."""
    last = max(i for i in range(len(at.inputs)) if at.wants(i))
    found: list[ir.Value | None] = []
    left = at.g
    for i, x in enumerate(at.inputs[: last + 1]):
        if i == len(at.inputs) - 1:
            found.append(at.unbroadcast(left, x))
            break
        share = at.op("Mul", at.op("Cast", at.op("Equal", x, at.outputs[0]), to=at.dtype(x)), left)
        found.append(at.unbroadcast(share, x) if at.wants(i) else None)
        if i < last:
            left = at.op("Sub", left, share)
    return found


@vjp("Where")
def _where(at: Backward) -> Gradients:
    """``y = a`` where ``c`` holds, else ``b``: ``da = g · c``, ``db = g - g · c``. Where itself is slow in ONNX
    Runtime."""
    condition, a, b = at.inputs
    chosen = at.op("Mul", at.g, at.op("Cast", condition, to=at.dtype(at.outputs[0])))
    other = at.unbroadcast(at.op("Sub", at.g, chosen), b) if at.wants(2) else None
    return None, at.unbroadcast(chosen, a) if at.wants(1) else None, other


@vjp("OneHot")
def _one_hot(at: Backward) -> Gradients:
    """``y = values[h]`` with an ``h`` of 0 and 1: ``dvalues`` are ``Σ g · (1 - h)`` and ``Σ g · h``."""
    indices, depth, values = at.inputs
    if not at.wants(2):
        return []
    ends = at.const(np.array([0, 1], at.dtype(values).numpy()))
    h = at.op("OneHot", indices, depth, ends, axis=at.attribute("axis", -1))
    axes = range(at.rank(at.outputs[0]))
    on, total = (at.reshape(at.sum(x, *axes), 1) for x in (at.op("Mul", at.g, h), at.g))
    return None, None, at.op("Concat", at.op("Sub", total, on), on, axis=0)


@vjp("Identity")
def _identity(at: Backward) -> Gradients:
    """``y = x``: ``dx = g``."""
    return [at.g]


@vjp("Cast", "CastLike")
def _cast(at: Backward) -> Gradients:
    """``y = x`` in another type: ``dx = g`` in that of ``x``."""
    x = at.inputs[0]
    same = at.dtype(x) == at.dtype(at.outputs[0])
    return [at.g if same else at.op("Cast", at.g, to=at.dtype(x))]


@vjp("Dropout")
def _dropout(at: Backward) -> Gradients:
    """``y = x · kept / (1 - ratio)`` in training: ``dx`` is ``g`` times the same; ``y = x`` otherwise."""
    x, ratio, training = at.inputs[0], at.input(1), at.input(2)
    if at.wants(1):
        raise at.error("what is dropped depends on the ratio")
    if training is None:
        return [at.g]
    if (is_training := at.constant(training)) is None:
        raise at.error("training_mode is known at run time only")
    if not is_training:
        return [at.g]
    kept = at.op("Cast", at.output(1, ir.DataType.BOOL, at.shape(x)), to=at.dtype(x))
    known = np.array(0.5) if ratio is None else at.constant(ratio)
    if known is not None:
        scale = at.number(1 / (1 - float(known)), x)
    else:
        scale = at.op("Reciprocal", at.op("Sub", at.number(1), at.op("Cast", ratio, to=at.dtype(x))))
    return [at.op("Mul", at.op("Mul", at.g, kept), scale)]
