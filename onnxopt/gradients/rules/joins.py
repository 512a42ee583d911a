"""Operators that put tensors together or take parts of them."""

from __future__ import annotations

import math
from itertools import accumulate

import numpy as np
import onnx_ir as ir

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp
from onnxopt.gradients.rules.reads import undo_reads


@vjp("Concat")
def _concat(at: Backward) -> Gradients:
    """``y = [a, b, …]``: each gets its part of ``g``."""
    axis = at.attribute("axis") % at.rank(at.outputs[0])
    sizes = [at.shape(value)[axis] for value in at.inputs]
    wanted = [i for i in range(len(sizes)) if at.wants(i)]
    if len(wanted) == len(sizes) > 1:
        return at.ops("Split", at.g, at.ints(*sizes), outputs=len(sizes), axis=axis)
    ends = list(accumulate(sizes))
    found: list[ir.Value | None] = [None] * len(sizes)
    for i in wanted:
        found[i] = at.op("Slice", at.g, at.ints(ends[i] - sizes[i]), at.ints(ends[i]), at.ints(axis))
    return found


@vjp("Split")
def _split(at: Backward) -> Gradients:
    """``x = [y, z, …]``: ``dx = [dy, dz, …]``, zeros where an output is not read."""
    x = at.inputs[0]
    axis = at.attribute("axis", 0) % at.rank(x)
    shapes = [list(at.shape(x)) for _ in at.outputs]
    for shape, size in zip(shapes, _sizes(at, at.shape(x)[axis]), strict=True):
        shape[axis] = size
    parts = [
        at.op("Expand", at.number(0, x), at.ints(*shape)) if gradient is None else gradient
        for gradient, shape in zip(at.gradients, shapes, strict=True)
    ]
    return [at.op("Concat", *parts, axis=axis) if len(parts) > 1 else parts[0]]


def _sizes(at: Backward, size: int) -> list[int]:
    """How long each output of Split is along its axis, of which the input has ``size``."""
    if (given := at.input(1)) is not None:
        return at.numbers(given)
    count = len(at.outputs)
    part = -(-size // count)
    return [max(0, min(part, size - i * part)) for i in range(count)]


@vjp("Slice")
def _slice(at: Backward) -> Gradients:
    """``y`` holds each ``step``-th element of ``x`` along some axes: ``dx`` holds ``g`` there, zeros elsewhere."""
    x, dx = at.inputs[0], at.g
    shape, sizes = list(at.shape(at.outputs[0])), at.shape(x)
    begin, end = [0] * len(shape), [0] * len(shape)
    for axis, places in _slices(at).items():
        if places.step == 1:
            begin[axis], end[axis] = places.start, sizes[axis] - places.start - len(places)
        else:
            dims = math.prod(shape[:axis]), len(places), math.prod(shape[axis + 1 :])
            dx = undo_reads(at, dx, dims, np.array(places, np.int64), sizes[axis])
            shape[axis] = sizes[axis]
            dx = at.reshape(dx, *shape)
    return [at.op("Pad", dx, at.ints(*begin, *end)) if any((*begin, *end)) else dx]


def _slices(at: Backward) -> dict[int, range]:
    """The places that Slice reads along each of its axes."""
    sizes = at.shape(at.inputs[0])
    starts, ends = at.numbers(at.inputs[1]), at.numbers(at.inputs[2])
    given, steps = at.input(3), at.input(4)
    axes = range(len(starts)) if given is None else at.numbers(given)
    found = {}
    for i, axis in enumerate(axes):
        step = 1 if steps is None else at.numbers(steps)[i]
        size = sizes[axis]
        found[axis % len(sizes)] = range(*slice(starts[i], ends[i], step).indices(size))
    return found
