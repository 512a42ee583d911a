"""Rounding to integers, with the gradient of what it rounds: the straight-through estimator.

``QuantizeLinear`` gives ``y = clip(round(x / s) + z, low, high)``, ``DequantizeLinear`` of it ``x' = s · (y − z)``.
Rounding has a derivative of zero nearly everywhere; taken as one instead,

    dx = g where low ≤ x / s + z ≤ high, else 0,
    ds = Σ g · (x' / s − x / s where x passes, else x' / s),

the second as in learned step size quantization. Between the two nodes the gradient is in units of the integer, so that
each has a rule of its own: ``dy = s · g`` and ``dx = dy / s``; where both have one scale neither is written.

Sources: Bengio, Léonard and Courville, "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
Computation", 2013; Esser, McKinstry, Bablani, Appuswamy and Modha, "Learned Step Size Quantization", ICLR 2020.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp

_ROUND = ("QuantizeLinear", "DynamicQuantizeLinear")
_LIMITS = {
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT16: (-32768, 32767),
    ir.DataType.UINT16: (0, 65535),
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
}


@vjp("QuantizeLinear")
def _quantize(at: Backward) -> Gradients:
    """``y = clip(round(x / s) + z)``: ``dx = g / s`` where ``x`` is not clipped, ``ds = −Σ dx · x / s``."""
    x, scale = at.inputs[:2]
    if at.dtype(at.outputs[0]) not in _LIMITS:
        raise at.error(f"it rounds to {at.dtype(at.outputs[0]).name}, no integer")
    steps = _along(at, scale, x)
    low, high = (_zero_based(at, limit, x) for limit in _LIMITS[at.dtype(at.outputs[0])])
    clipped = at.op("Min", at.op("Max", x, at.op("Mul", steps, low)), at.op("Mul", steps, high))
    passes = at.op("Cast", at.op("Equal", clipped, x), to=at.dtype(x))
    passing = at.op("Mul", at.g, passes)
    in_place = passing if _is_one_scale(at.node) else at.op("Div", passing, steps)
    if not at.wants(1):
        return [in_place]
    moved = at.op("Neg", at.op("Div", at.op("Mul", passing, x), steps))
    return [in_place, _reduced(at, moved if _is_one_scale(at.node) else at.op("Div", moved, steps), scale, x)]


@vjp("DynamicQuantizeLinear")
def _dynamic_quantize(at: Backward) -> Gradients:
    """``y = round(x / s) + z``, with a range that clips no ``x``, and counts as a constant: ``dx = g / s``."""
    return [at.g if _is_one_scale(at.node) else at.op("Div", at.g, at.outputs[1])]


@vjp("DequantizeLinear")
def _dequantize(at: Backward) -> Gradients:
    """``x = s · (y − z)``: ``dy = s · g``, ``ds = Σ g · (y − z)``."""
    y, scale = at.inputs[:2]
    steps = _along(at, scale, y)
    maker = y.producer()
    is_pair = maker is not None and maker.op_type in _ROUND and _is_one_scale(maker)
    through = None
    if at.wants(0):
        through = at.g if is_pair else at.op("Mul", at.g, steps)
    if not at.wants(1):
        return [through]
    counts = at.op("Div", at.outputs[0], steps)
    return [through, _reduced(at, at.op("Mul", at.g, counts), scale, y)]


def _is_one_scale(quantize: ir.Node) -> bool:
    """Whether all that reads what is quantized dequantizes it by the same scale."""
    y = quantize.outputs[0]
    scale = quantize.inputs[1] if quantize.op_type == "QuantizeLinear" else quantize.outputs[1]
    return not y.is_graph_output() and all(
        use.node.op_type == "DequantizeLinear" and use.node.inputs[1] is scale for use in y.uses()
    )


def _along(at: Backward, parameter: ir.Value, x: ir.Value) -> ir.Value:
    """A scale as it is broadcast to ``x``: one, one for each slice of an axis, or one for each block along it."""
    return _spread(at, parameter, at.shape(parameter), x)


def _spread(at: Backward, value: ir.Value, own: tuple[int, ...], x: ir.Value) -> ir.Value:
    """``value``, of the shape ``own`` that scales have, as it is broadcast to ``x``."""
    shape, block = at.shape(x), at.attribute("block_size", 0)
    if math.prod(own) == 1:
        return at.reshape(value) if own else value
    axis = at.attribute("axis", 1) % len(shape)
    if block:
        return at.op("Gather", value, at.const(np.arange(shape[axis]) // block), axis=axis)
    return at.reshape(value, *(size if i == axis else 1 for i, size in enumerate(shape)))


def _zero_based(at: Backward, limit: int, x: ir.Value) -> ir.Value:
    """``limit − z``, as it is broadcast to ``x``."""
    zero = at.input(2)
    if zero is None:
        return at.number(limit, x)
    if (known := at.constant(zero)) is not None:
        whole = at.const((limit - known.astype(np.int64)).astype(at.dtype(x).numpy()))
    else:
        whole = at.op("Sub", at.number(limit, x), at.op("Cast", zero, to=at.dtype(x)))
    return _spread(at, whole, at.shape(zero), x)


def _reduced(at: Backward, gradient: ir.Value, scale: ir.Value, x: ir.Value) -> ir.Value:
    """The sum of ``gradient``, of the shape of ``x``, over what each scale stands for."""
    own, shape, block = at.shape(scale), at.shape(x), at.attribute("block_size", 0)
    if math.prod(own) == 1:
        total = at.sum(gradient, *range(len(shape)), keepdims=False)
    elif block:
        axis = at.attribute("axis", 1) % len(shape)
        if (missing := own[axis] * block - shape[axis]) > 0:
            gradient = at.op("Pad", gradient, at.ints(0, missing), None, at.ints(axis))
        blocks = at.reshape(gradient, *own[: axis + 1], block, *own[axis + 1 :])
        total = at.sum(blocks, axis + 1, keepdims=False)
    else:
        kept = at.attribute("axis", 1) % len(shape)
        total = at.sum(gradient, *(i for i in range(len(shape)) if i != kept), keepdims=False)
    return at.reshape(total, *own)
