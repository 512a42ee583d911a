"""Powers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp


@vjp("Pow")
def _pow(at: Backward) -> Gradients:
    """``y = a ^ b``: ``da = g · b · a^(b-1)`` and ``db = g · y · log a``, which is 0 where ``a`` is."""
    a, b = at.inputs
    exponent = at.constant(b)
    da = db = None
    if at.wants(0):
        da = _by_number(at, float(exponent.item())) if exponent is not None and exponent.size == 1 else _by_tensor(at)
        da = at.unbroadcast(da, a)
    if at.wants(1):
        log = at.op("Log", at.op("Add", a, at.op("Cast", at.op("Equal", a, at.number(0)), to=at.dtype(a))))
        db = at.unbroadcast(at.op("Mul", at.op("Mul", at.g, at.outputs[0]), log), b)
        if at.dtype(b) != at.dtype(a):
            db = at.op("Cast", db, to=at.dtype(b))
    return da, db


def _by_number(at: Backward, b: float) -> ir.Value:
    """``g · b · a^(b-1)`` without Pow where that is slow: it is fast for exponents of 2 and 3."""
    a, y = at.inputs[0], at.outputs[0]
    if b == 0:
        return at.op("Mul", at.g, at.number(0))
    if b == 1:
        return at.g
    scaled = at.op("Mul", at.g, at.number(b))
    if b == 0.5:
        return at.op("Div", scaled, y)
    if b < 0:
        return at.op("Mul", scaled, at.op("Div", y, a))
    if b == 2:
        return at.op("Mul", scaled, a)
    return at.op("Mul", scaled, at.op("Pow", a, at.number(b - 1)))


def _by_tensor(at: Backward) -> ir.Value:
    """``g · b · a^(b-1)``; an exponent of 0 is kept, lest ``0 · 0^(-1)`` be no number."""
    a, b = at.inputs
    if (known := at.constant(b)) is not None:
        factor = at.const(known.astype(at.dtype(a).numpy()))
        lower = at.const(np.where(known == 0, 0, known - 1).astype(at.dtype(a).numpy()))
    else:
        factor = b if at.dtype(b) == at.dtype(a) else at.op("Cast", b, to=at.dtype(a))
        lower = at.op("Sub", factor, at.op("Cast", at.op("Not", at.op("Equal", factor, at.number(0))), to=at.dtype(a)))
    return at.op("Mul", at.op("Mul", at.g, factor), at.op("Pow", a, lower))
