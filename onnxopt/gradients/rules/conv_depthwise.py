"""Depthwise convolution: one filter a channel.

On small maps each filter is written out as the matrix by which it maps a whole channel, (positions × elements), and
both gradients are one product a channel over the batch. On ONNX Runtime that is up to 15 times faster on maps of 8 × 8
and less than a ``Conv`` of as many groups, which works through images and channels one by one. The matrix is the filter
times a constant that says which position reads which element at which place of the window.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxopt.gradients.node import Backward
from onnxopt.gradients.rules.window_reads import channels_last, pad, slices
from onnxopt.gradients.rules.windows import Dims, Windows

_LARGEST_MATRIX = 4096


def is_depthwise(w_shape: Dims, group: int) -> bool:
    """Whether each channel has one filter of its own."""
    return group > 1 and w_shape[0] == group and w_shape[1] == 1


def is_small(windows: Windows) -> bool:
    """Whether a filter is to be written out as a matrix."""
    return math.prod(windows.size) * math.prod(windows.out) <= _LARGEST_MATRIX


def input_gradient(at: Backward, g: ir.Value, w: ir.Value, windows: Windows, batch: int) -> ir.Value:
    """Of small maps: ``g``, a row an image, times the matrix of its channel."""
    c, places = at.shape(w)[0], math.prod(windows.kernel)
    positions, elements = math.prod(windows.out), math.prod(windows.size)
    reads = at.reshape(_reads(at, windows), places, positions * elements)
    matrices = at.reshape(at.op("MatMul", at.reshape(w, c, places), reads), c, positions, elements)
    rows = at.transpose(at.reshape(g, batch, c, positions), 1, 0, 2)
    return at.reshape(at.transpose(at.op("MatMul", rows, matrices), 1, 0, 2), batch, c, *windows.size)


def weight_gradient(at: Backward, x: ir.Value, g: ir.Value, windows: Windows, batch: int, w_shape: Dims) -> ir.Value:
    """``dw[c, k] = Σ_no g[n, c, o] · x[n, c, o·s + k·d − p]``."""
    c, places = w_shape[0], math.prod(windows.kernel)
    positions, elements = math.prod(windows.out), math.prod(windows.size)
    if is_small(windows):
        rows = at.transpose(at.reshape(g, batch, c, positions), 1, 2, 0)
        matrices = at.op("MatMul", rows, at.transpose(at.reshape(x, batch, c, elements), 1, 0, 2))
        reads = at.transpose(at.reshape(_reads(at, windows), places, positions * elements), 1, 0)
        return at.reshape(at.op("MatMul", at.reshape(matrices, c, positions * elements), reads), *w_shape)
    g = channels_last(at, g, windows.rank)
    axes = range(windows.rank + 1)
    copies = slices(at, pad(at, channels_last(at, x, windows.rank), windows.begin, windows.end), windows)
    found = [at.sum(at.op("Mul", g, copy), *axes, keepdims=False) for copy in copies]
    stacked = at.op("Concat", *[at.op("Unsqueeze", each, at.ints(1)) for each in found], axis=1)
    return at.reshape(stacked, *w_shape)


def _reads(at: Backward, windows: Windows) -> ir.Value:
    """(places, positions, elements): 1 where the position reads the element at that place of the window."""
    found = np.ones((1, 1, 1))
    for axis, (size, out, kernel) in enumerate(zip(windows.size, windows.out, windows.kernel, strict=True)):
        one = windows.reads(axis).T[:, :, None] == np.arange(size)
        shape = [a * b for a, b in zip(found.shape, (kernel, out, size), strict=True)]
        found = np.einsum("kos,abc->akbocs", one, found).reshape(shape)
    return at.const(found.astype(at.dtype(at.outputs[0]).numpy()))
