"""Nodes that lay out what windows read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import onnx_ir as ir

from onnxopt.gradients.node import Backward
from onnxopt.gradients.rules.windows import Windows


def channels_last(at: Backward, value: ir.Value, rank: int) -> ir.Value:
    """(n, c, sizes) as (n, sizes, c), of ``rank`` sizes."""
    return at.transpose(value, 0, *range(2, 2 + rank), 1)


def channels_first(at: Backward, value: ir.Value, rank: int) -> ir.Value:
    """(n, sizes, c) as (n, c, sizes), of ``rank`` sizes."""
    return at.transpose(value, 0, 1 + rank, *range(1, 1 + rank))


def pad(
    at: Backward,
    value: ir.Value,
    begin: Sequence[int],
    end: Sequence[int],
    *,
    axis: int = 1,
    value_outside: ir.Value | None = None,
) -> ir.Value:
    """``value`` with zeros, or ``value_outside``, around its spatial axes, which begin at ``axis``: 1 where channels
    are last, 2 where they are first."""
    if not any((*begin, *end)):
        return value
    before, behind = [0] * axis, [0] * (2 - axis)
    pads = at.ints(*before, *begin, *behind, *before, *end, *behind)
    return at.op("Pad", value, pads, *([] if value_outside is None else [value_outside]))


def slices(at: Backward, padded: ir.Value, windows: Windows, *, axis: int = 1) -> list[ir.Value]:
    """What each place of the window reads of the ``padded`` input, whose spatial axes begin at ``axis``."""
    axes, steps = at.ints(*range(axis, axis + windows.rank)), at.ints(*windows.strides)
    found = []
    for place in product(*map(range, windows.kernel)):
        starts = [k * d for k, d in zip(place, windows.dilations, strict=True)]
        stops = [a + (o - 1) * s + 1 for a, o, s in zip(starts, windows.out, windows.strides, strict=True)]
        found.append(at.op("Slice", padded, at.ints(*starts), at.ints(*stops), axes, steps))
    return found


def flat_index(reads: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    """Of an array of ``sizes``, flattened, the elements at all combinations of ``reads``, (out, kernel) for each axis:
    of shape (all outs, all kernels)."""
    index = np.zeros((1, 1), np.int64)
    for each, size in zip(reads, sizes, strict=True):
        out, kernel = len(index) * len(each), index.shape[1] * each.shape[1]
        index = (index[:, None, :, None] * size + each[None, :, None, :]).reshape(out, kernel)
    return index
