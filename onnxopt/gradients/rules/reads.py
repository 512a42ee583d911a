"""The gradient of reading elements along an axis, ``y[:, i] = x[:, reads[i]]``: ``dx[:, j] = Σ g[:, i]`` over all ``i``
with ``reads[i] = j``.

Arrays are seen as (outer, count, inner), where the axis is the middle one. ScatterND with a reduction would be the
fastest form for places that only a run of the model tells, but the threads of ONNX Runtime's do not wait for one
another and lose what two of them add to one element.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.gradients.node import Backward

Dims = tuple[int, int, int]
Places = npt.NDArray[np.int64]
_FEW_ROWS = 256
"""Up to so many rows, a product with a one-hot matrix is faster than adding element by element."""
_SHORT_ROW = 8
"""Shorter rows are not worth a copy each."""
_SHORT_AXIS = 64
"""Along shorter axes a product with a matrix costs less than several passes over ``g``."""
_MAX_RUNS = 4
"""So many passes, each over a part of ``g``, are worth it."""
_MAX_LAYERS = 4
"""The same of passes over the whole of ``dx``."""


def undo_reads(at: Backward, g: ir.Value, dims: Dims, reads: Places, size: int) -> ir.Value:
    """The gradient, (outer, size, inner), for ``g`` with the elements of ``dims`` and known places from 0 to
    ``size`` - 1."""
    outer, count, inner = dims
    if count == 0:
        return at.op("Expand", at.number(0), at.ints(outer, size, inner))
    g = at.reshape(g, *dims)
    steps = set(np.diff(reads).tolist())
    if len(steps) <= 1 and 0 not in steps:
        return _undo_progression(at, g, dims, reads, size)
    runs = _runs(reads)
    if len(runs) <= _MAX_RUNS and (inner >= _SHORT_ROW or size > _SHORT_AXIS):
        return _undo_runs(at, g, dims, reads, runs, size)
    times = np.bincount(reads, minlength=size)
    if inner < _SHORT_ROW or times.max() > _MAX_LAYERS or size > _MAX_LAYERS * count:
        return add_rows(at, g, dims, at.const(reads), size)
    return _undo_layers(at, g, dims, reads, times)


def _undo_progression(at: Backward, g: ir.Value, dims: Dims, reads: Places, size: int) -> ir.Value:
    """Places at equal distances: ``g`` with zeros between and around."""
    outer, count, inner = dims
    step = int(reads[1] - reads[0]) if count > 1 else 1
    if step < 0:
        g = at.op("Slice", g, at.ints(-1), at.ints(-count - 1), at.ints(1), at.ints(-1))
    if abs(step) > 1:
        zeros = at.op("Expand", at.number(0), at.ints(outer, count, abs(step) - 1, inner))
        spread = at.op("Concat", at.reshape(g, outer, count, 1, inner), zeros, axis=2)
        count *= abs(step)
        g = at.reshape(spread, outer, count, inner)
    begin = int(reads.min())
    if (begin, size) == (0, count):
        return g
    return at.op("Pad", g, at.ints(0, begin, 0, 0, size - begin - count, 0))


def _runs(reads: Places) -> list[tuple[int, int]]:
    """Where the places go up by one, down by one, or stay: begin and end of each such part."""
    found, begin = [], 0
    steps = np.diff(reads)
    for end in range(1, len(reads) + 1):
        if end == len(reads) or abs(steps[end - 1]) > 1 or steps[end - 1] != steps[begin]:
            found.append((begin, end))
            begin = end
    return found


def _undo_runs(
    at: Backward, g: ir.Value, dims: Dims, reads: Places, runs: list[tuple[int, int]], size: int
) -> ir.Value:
    """The sum of what each run gives."""
    outer, _, inner = dims
    parts = []
    for begin, end in runs:
        part, places = at.op("Slice", g, at.ints(begin), at.ints(end), at.ints(1)), reads[begin:end]
        if len(places) > 1 and places[0] == places[1]:
            part, places = at.sum(part, 1), places[:1]
        parts.append(_undo_progression(at, part, (outer, len(places), inner), places, size))
    return at.op("Sum", *parts) if len(parts) > 1 else parts[0]


def _undo_layers(at: Backward, g: ir.Value, dims: Dims, reads: Places, times: Places) -> ir.Value:
    """For places that are read few ``times`` each: what is read first, plus what is read second, and so on."""
    count = dims[1]
    order = np.argsort(reads, kind="stable")
    nth = np.arange(count) - (np.cumsum(times) - times)[reads[order]]
    if times.min() < times.max():
        g = at.op("Pad", g, at.ints(0, 0, 0, 0, 1, 0))  # a row of zeros for what is not read as often
    layers = []
    for layer in range(times.max()):
        source = np.full(len(times), count)
        source[reads[order[nth == layer]]] = order[nth == layer]
        layers.append(at.op("Gather", g, at.const(source), axis=1))
    return at.op("Sum", *layers) if len(layers) > 1 else layers[0]


def add_rows(at: Backward, g: ir.Value, dims: Dims, index: ir.Value, size: int) -> ir.Value:
    """The gradient, (outer, size, inner), for ``g`` with the elements of ``dims`` and places that a run of the model
    tells: int64 of any shape, from -``size`` to ``size`` - 1."""
    outer, count, inner = dims
    if size > _FEW_ROWS:
        zeros = at.op("Expand", at.number(0), at.ints(outer, size, inner))
        places = at.op("Expand", at.reshape(index, count, 1), at.ints(*dims))
        return at.op("ScatterElements", zeros, places, at.reshape(g, *dims), axis=1, reduction="add")
    ends = at.const(np.array([0, 1], at.dtype(at.outputs[0]).numpy()))
    depth, flat = at.const(np.array(size)), at.reshape(index, count)
    if inner == 1:
        return at.reshape(
            at.op("MatMul", at.reshape(g, outer, count), at.op("OneHot", flat, depth, ends)), outer, size, 1
        )
    return at.op("MatMul", at.op("OneHot", flat, depth, ends, axis=0), at.reshape(g, *dims))
