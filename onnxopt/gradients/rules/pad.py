"""Operators that add to the ends of axes, or crop them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp
from onnxopt.gradients.rules.reads import undo_reads


@vjp("Pad")
def _pad(at: Backward) -> Gradients:
    """``y`` is ``x`` with a constant ``c`` around it, or with elements of ``x`` once more: ``dx`` is ``g`` at the
    places of ``x``, plus what it is at their copies, and ``dc = Σ g`` over the places of ``c``. Negative pads crop."""
    mode, value, (begin, end) = at.attribute("mode", "constant"), at.input(2), _pads(at)
    if mode != "constant":
        return [_fold(at, mode, begin, end)]
    dx = _with_ends(at, [-n for n in begin], [-n for n in end])
    if value is None or not at.wants(2):
        return [dx]
    axes = range(at.rank(at.inputs[0]))
    outside = at.op("Sub", at.sum(at.g, *axes, keepdims=False), at.sum(dx, *axes, keepdims=False))
    return dx, None, at.reshape(outside, *at.shape(value))


def _pads(at: Backward) -> tuple[list[int], list[int]]:
    """What is added before and behind each axis."""
    rank, pads, axes = at.rank(at.inputs[0]), at.numbers(at.inputs[1]), at.input(3)
    begin, end = [0] * rank, [0] * rank
    given = range(rank) if axes is None else at.numbers(axes)
    for i, axis in enumerate(given):
        begin[axis], end[axis] = pads[i], pads[len(given) + i]
    return begin, end


def _with_ends(at: Backward, begin: Sequence[int], end: Sequence[int]) -> ir.Value:
    """``g`` with zeros before and behind its axes; cropped where these numbers are negative."""
    if max(*begin, *end, 0) > 0:
        return at.op("Pad", at.g, at.ints(*begin, *end))
    if not (axes := [axis for axis, ends in enumerate(zip(begin, end, strict=True)) if any(ends)]):
        return at.g
    starts = at.ints(*(-begin[axis] for axis in axes))
    stops = at.ints(*(at.shape(at.outputs[0])[axis] + end[axis] for axis in axes))
    return at.op("Slice", at.g, starts, stops, at.ints(*axes))


def _fold(at: Backward, mode: str, begin: Sequence[int], end: Sequence[int]) -> ir.Value:
    """The gradient of pads that copy elements of ``x``."""
    dx, shape, sizes = at.g, list(at.shape(at.outputs[0])), at.shape(at.inputs[0])
    for axis, (before, behind, size) in enumerate(zip(begin, end, sizes, strict=True)):
        if before or behind:
            kept = np.arange(max(0, -before), size - max(0, -behind))
            reads = np.pad(kept, (max(0, before), max(0, behind)), mode=mode)  # type: ignore[call-overload]
            dims = math.prod(shape[:axis]), len(reads), math.prod(shape[axis + 1 :])
            dx = undo_reads(at, dx, dims, reads, size)
            shape[axis] = size
    return at.reshape(dx, *sizes)


@vjp("CenterCropPad")
def _center_crop_pad(at: Backward) -> Gradients:
    """``y`` is the middle of ``x``, or has ``x`` in the middle of zeros: ``dx`` is ``g`` with zeros around it, or its
    middle."""
    before = [n - m for n, m in zip(at.shape(at.inputs[0]), at.shape(at.outputs[0]), strict=True)]
    # of an odd number of elements, the greater half is behind
    begin = [n // 2 if n > 0 else -(-n // 2) for n in before]
    return [_with_ends(at, begin, [n - b for n, b in zip(before, begin, strict=True)])]
