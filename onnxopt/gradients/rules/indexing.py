"""Operators that read or write the elements that indices name.

Elements that are read several times get the sum of the gradients. Indices have no gradient.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp
from onnxopt.gradients.rules.reads import Dims, add_rows, undo_reads


@vjp("Gather")
def _gather(at: Backward) -> Gradients:
    """``y = x[:, indices]``: ``dx[:, j] = Σ g`` over the places that name ``j``."""
    x, indices = at.inputs
    shape = at.shape(x)
    axis = at.attribute("axis", 0) % len(shape)
    dims = math.prod(shape[:axis]), math.prod(at.shape(indices)), math.prod(shape[axis + 1 :])
    return [at.reshape(_undo(at, dims, indices, shape[axis]), *shape)]


def _undo(at: Backward, dims: Dims, indices: ir.Value, size: int) -> ir.Value:
    """The gradient of reading ``indices``, which may be negative, along an axis of ``size``."""
    if (known := at.constant(indices)) is not None:
        return undo_reads(at, at.g, dims, known.reshape(-1).astype(np.int64) % size, size)
    return add_rows(at, at.g, dims, _int64(at, indices), size)


def _int64(at: Backward, indices: ir.Value) -> ir.Value:
    return indices if at.dtype(indices) == ir.DataType.INT64 else at.op("Cast", indices, to=ir.DataType.INT64)


@vjp("GatherElements")
def _gather_elements(at: Backward) -> Gradients:
    """``y[i, k] = x[indices[i, k], k]``: ``dx[j, k] = Σ g[i, k]`` over all ``i`` with ``indices[i, k] = j``."""
    x, indices = at.inputs
    return [at.op("ScatterElements", at.zeros(x), indices, at.g, axis=at.attribute("axis", 0), reduction="add")]


@vjp("GatherND")
def _gather_nd(at: Backward) -> Gradients:
    """``y[b, i] = x[b, indices[b, i]]``, where the last axis of the indices names a place in several axes of ``x``:
    ``dx`` is as that of Gather from the rows that these axes hold when they are flattened."""
    x, indices = at.inputs
    shape, places = at.shape(x), at.shape(indices)
    batch, depth = at.attribute("batch_dims", 0), places[-1]
    sizes = shape[batch : batch + depth]
    strides = [math.prod(sizes[i + 1 :]) for i in range(depth)]
    rows = math.prod(shape[: batch + depth])
    # each place of the batch has rows of its own
    count = math.prod(places[:batch])
    first = np.arange(count).repeat(math.prod(places[batch:-1])).reshape(places[:-1]) * math.prod(sizes)
    dims = 1, first.size, math.prod(shape[batch + depth :])
    if (known := at.constant(indices)) is not None:
        flat = (known % np.array(sizes)) @ np.array(strides, np.int64) + first
        return [at.reshape(undo_reads(at, at.g, dims, flat.reshape(-1), rows), *shape)]
    inside = at.op("Mod", indices, at.ints(*sizes))
    index = at.sum(at.op("Mul", inside, at.ints(*strides)), -1, keepdims=False)
    if count > 1:
        index = at.op("Add", index, at.const(first))
    return [at.reshape(add_rows(at, at.g, dims, index, rows), *shape)]


@vjp("ScatterElements")
def _scatter_elements(at: Backward) -> Gradients:
    """``y = x`` but ``y[indices[i, k], k] = u[i, k]``, or ``+= u[i, k]``: ``du[i, k] = g[indices[i, k], k]``, and
    ``dx`` is ``g``, without the overwritten elements. As in ONNX, no element is overwritten twice."""
    _, indices, updates = at.inputs
    reduction, axis = at.attribute("reduction", "none"), at.attribute("axis", 0) % at.rank(indices)
    if reduction in ("min", "max"):
        return _scattered_extremes(at, axis)
    adds = _adds(at)
    dx = at.g
    if not adds and at.wants(0):
        dx = at.op("ScatterElements", at.g, indices, at.zeros(updates), axis=axis)
    return dx, None, _read_elements(at, at.g, axis) if at.wants(2) else None


def _scattered_extremes(at: Backward, axis: int) -> Gradients:
    """``y`` is the greatest, or least, of ``x`` and all ``u`` of its index: those that are equal to it share ``g``."""
    x, indices, updates = at.inputs
    y, dtype = at.outputs[0], at.dtype(at.outputs[0])
    keeps = at.op("Cast", at.op("Equal", x, y), to=dtype)
    takes = at.op("Cast", at.op("Equal", updates, _read_elements(at, y, axis)), to=dtype)
    count = at.op("ScatterElements", keeps, indices, takes, axis=axis, reduction="add")
    share = at.op("Div", at.g, count)
    return at.op("Mul", share, keeps), None, at.op("Mul", _read_elements(at, share, axis), takes)


def _read_elements(at: Backward, value: ir.Value, axis: int) -> ir.Value:
    """What ``value``, of the shape of the output, holds where the updates are written."""
    indices = at.inputs[1]
    whole, part = list(at.shape(at.outputs[0])), at.shape(indices)
    whole[axis] = part[axis]
    if axes := [i for i, size in enumerate(whole) if size != part[i]]:
        value = at.op("Slice", value, at.ints(*[0] * len(axes)), at.ints(*[part[i] for i in axes]), at.ints(*axes))
    return at.op("GatherElements", value, indices, axis=axis)


@vjp("ScatterND")
def _scatter_nd(at: Backward) -> Gradients:
    """``y = x`` but ``y[indices[i]] = u[i]``, or ``+= u[i]``: ``du[i] = g[indices[i]]``, and ``dx`` is ``g``, without
    the overwritten elements. As in ONNX, no element is overwritten twice."""
    _, indices, updates = at.inputs
    adds = _adds(at)
    dx = at.g
    if not adds and at.wants(0):
        dx = at.op("ScatterND", at.g, indices, at.zeros(updates))
    return dx, None, at.op("GatherND", at.g, indices) if at.wants(2) else None


def _adds(at: Backward) -> bool:
    """Whether updates are added to what is there, and do not overwrite it."""
    reduction = at.attribute("reduction", "none")
    if reduction not in ("none", "add"):
        raise at.error(f"there is no rule for the reduction {reduction!r}")
    return bool(reduction == "add")


@vjp("TopK")
def _top_k(at: Backward) -> Gradients:
    """``y = x[indices]``, the largest or smallest along an axis: ``dx`` holds ``g`` there, zeros elsewhere."""
    x, indices = at.inputs[0], at.outputs[1]
    return [at.op("ScatterElements", at.zeros(x), indices, at.g, axis=at.attribute("axis", -1))]


@vjp("Compress")
def _compress(at: Backward) -> Gradients:
    """``y`` holds the slices of ``x`` for which the condition is true: ``dx`` holds ``g`` there, zeros elsewhere."""
    x, condition = at.inputs
    if (known := at.constant(condition)) is None:
        raise at.error(f"its condition {condition.name!r}, and so the size of its output, is known at run time only")
    reads, shape, axis = np.flatnonzero(known), at.shape(x), at.attribute("axis")
    if axis is None:
        return [at.reshape(undo_reads(at, at.g, (1, len(reads), 1), reads, math.prod(shape)), *shape)]
    axis %= len(shape)
    dims = math.prod(shape[:axis]), len(reads), math.prod(shape[axis + 1 :])
    return [at.reshape(undo_reads(at, at.g, dims, reads, shape[axis]), *shape)]


@vjp("ReverseSequence")
def _reverse_sequence(at: Backward) -> Gradients:
    """``y`` holds the beginnings of the sequences in reverse: ``dx`` holds those of ``g`` in reverse."""
    axes = {name: at.attribute(name, default) for name, default in (("batch_axis", 1), ("time_axis", 0))}
    return [at.op("ReverseSequence", at.g, at.inputs[1], **axes)]
