"""The gradient of a convolution in its weights: the correlation of what it reads with the gradient of what it writes.

``dw[m, c, k] = Σ_no g[n, m, o] · x[n, c, o·s + k·d − p]`` is a product summed over positions, and its forms differ in
how they lay out the copies of ``x``, one a place of the window, that the product reads. Which is fastest depends on the
shapes; measured on ONNX Runtime, one core:

- few channels a group, or windows of one element: all copies side by side, channels first, and a product an image;
- many positions: a product an image and a place, so that the operands stay in the cache;
- fewer, stride 1: ``x`` shifted along the last axis alone and ``g`` along the others, so that both operands of one
  product hold few copies;
- few: all copies side by side, channels last, gathered row by row, and one product over the whole batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.gradients.node import Backward
from onnxopt.gradients.rules import conv_depthwise
from onnxopt.gradients.rules.window_reads import channels_last, flat_index, pad, slices
from onnxopt.gradients.rules.windows import Dims, Windows

_FEW_CHANNELS = 4
_MANY_POSITIONS = 512
_SOME_POSITIONS = 128
_FEW_POSITIONS = 32


def weight_gradient(
    at: Backward, x: ir.Value, g: ir.Value, windows: Windows, x_shape: Dims, w_shape: Dims, group: int
) -> ir.Value:
    """The gradient of shape ``w_shape``, (m, c / group, kernel), for ``x`` of ``x_shape``, (n, c, sizes), and ``g`` of
    (n, m, positions)."""
    if conv_depthwise.is_depthwise(w_shape, group):
        return conv_depthwise.weight_gradient(at, x, g, windows, x_shape[0], w_shape)
    form = _Correlation(at, x, g, windows, x_shape[0], x_shape[1], w_shape, group)
    positions = math.prod(windows.out)
    if group > 1 or w_shape[1] <= _FEW_CHANNELS or (windows.is_pointwise and positions > _FEW_POSITIONS):
        return form.by_columns()
    if windows.is_dense and positions >= _MANY_POSITIONS:
        return form.by_places()
    if windows.is_dense and positions >= _SOME_POSITIONS:
        return form.by_shifts()
    return form.by_rows()


@dataclass(frozen=True)
class _Correlation:
    at: Backward
    x: ir.Value
    g: ir.Value
    windows: Windows
    batch: int
    channels: int
    w_shape: Dims
    group: int

    def by_columns(self) -> ir.Value:
        """One product an image and a group, (m × o) @ (o × k·c)."""
        at, group, positions = self.at, self.group, math.prod(self.windows.out)
        m, c, *kernel = self.w_shape
        copies = [at.reshape(copy, self.batch, group, c, positions) for copy in self._copies()]
        columns = at.op("Concat", *copies, axis=2) if len(copies) > 1 else copies[0]
        g = at.reshape(self.g, self.batch, group, m // group, positions)
        summed = at.sum(at.op("MatMul", g, at.transpose(columns, 0, 1, 3, 2)), 0, keepdims=False)
        if math.prod(kernel) == 1:
            return at.reshape(summed, *self.w_shape)
        return self._places_last(at.reshape(summed, m, math.prod(kernel), c))

    def by_places(self) -> ir.Value:
        """One product an image and a place of the window, (m × o) @ (o × c)."""
        at, positions = self.at, math.prod(self.windows.out)
        g = at.reshape(self.g, self.batch, self.w_shape[0], positions)
        found = []
        for copy in self._copies():
            rows = at.transpose(at.reshape(copy, self.batch, self.channels, positions), 0, 2, 1)
            summed = at.sum(at.op("MatMul", g, rows), 0, keepdims=False)
            found.append(at.op("Unsqueeze", summed, at.ints(2)))
        return at.reshape(at.op("Concat", *found, axis=2), *self.w_shape)

    def by_shifts(self) -> ir.Value:
        """One product, (places along other axes · m × n·h·o) @ (n·h·o × places along the last axis · c), where h runs
        over the other axes of the input, along which the stride is 1, and o over the last one of the output."""
        at, windows, last = self.at, self.windows, self.windows.rank - 1
        m, c, *kernel = self.w_shape
        begin, end = (0,) * last + windows.begin[last:], (0,) * last + windows.end[last:]
        x = pad(at, channels_last(at, self.x, windows.rank), begin, end)
        x = at.op("Gather", x, at.const(windows.reads(last) + windows.begin[last]), axis=1 + last)
        g = at.reshape(self._shifted(), -1, math.prod(kernel[:-1]) * m)
        found = at.op("Gemm", g, at.reshape(x, -1, kernel[-1] * c), transA=1)
        split = at.reshape(found, math.prod(kernel[:-1]), m, kernel[-1], c)
        return at.reshape(at.transpose(split, 1, 3, 0, 2), *self.w_shape)

    def _shifted(self) -> ir.Value:
        """``g``, channels last, for each element of the input along all axes but the last, and each place of the window
        along these: what the window has written that reads that element at that place."""
        at, windows, last = self.at, self.windows, self.windows.rank - 1
        low, high, reads = [], [], []
        for axis in range(last):
            shifts = windows.begin[axis] - np.arange(windows.kernel[axis]) * windows.dilations[axis]
            reads.append(np.arange(windows.size[axis])[:, None] + shifts)
            low.append(max(0, -int(reads[-1].min())))
            high.append(max(0, int(reads[-1].max()) - windows.out[axis] + 1))
        g = pad(at, channels_last(at, self.g, windows.rank), (*low, 0), (*high, 0))
        sizes = [o + a + b for o, a, b in zip(windows.out, low, high, strict=False)]
        reads = [r + a for r, a in zip(reads, low, strict=True)]
        index = flat_index([*reads, np.arange(windows.out[-1])[:, None]], [*sizes, windows.out[-1]])
        rows = at.reshape(g, self.batch, math.prod(sizes) * windows.out[-1], self.w_shape[0])
        return at.op("Gather", rows, at.const(index), axis=1)

    def by_rows(self) -> ir.Value:
        """One product, (m × n·o) @ (n·o × k·c)."""
        at, windows = self.at, self.windows
        m, c, *kernel = self.w_shape
        x = channels_last(at, self.x, windows.rank)
        if not windows.is_pointwise:
            x = pad(at, x, windows.begin, windows.end)
            sizes = [n + b + e for n, b, e in zip(windows.size, windows.begin, windows.end, strict=True)]
            index = flat_index([windows.reads(axis) + b for axis, b in enumerate(windows.begin)], sizes)
            x = at.op("Gather", at.reshape(x, self.batch, math.prod(sizes), c), at.const(index), axis=1)
        g = at.reshape(channels_last(at, self.g, windows.rank), -1, m)
        rows, places = self.batch * math.prod(windows.out), math.prod(kernel)
        places_last = m > rows  # then the columns are smaller than the weights, and cheaper to transpose
        if places_last:
            x = at.transpose(at.reshape(x, rows, places, c), 0, 2, 1)
        found = at.op("Gemm", g, at.reshape(x, rows, places * c), transA=1)
        return at.reshape(found, *self.w_shape) if places_last else self._places_last(at.reshape(found, m, places, c))

    def _copies(self) -> list[ir.Value]:
        """``x`` as each place of the window reads it, (n, c, out)."""
        windows = self.windows
        if windows.is_pointwise:
            return [self.x]
        return slices(self.at, pad(self.at, self.x, windows.begin, windows.end, axis=2), windows, axis=2)

    def _places_last(self, found: ir.Value) -> ir.Value:
        """(m, k, c) as weights are."""
        return self.at.reshape(self.at.transpose(found, 0, 2, 1), *self.w_shape)
