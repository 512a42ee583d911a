"""Convolution.

Which form of a gradient is fastest depends on the shapes. Measured on ONNX Runtime, one core:

- input, few positions a channel: one product with the weights as they lie, then ``Col2Im``; 5 times faster than
  ``ConvTranspose`` on 2 × 2 maps of 512 channels, whose weights it would repack for each image;
- input, windows of one element or many more channels in than out: a ``Conv`` with the weights turned round;
- input, otherwise: ``ConvTranspose``.

Those of the weights are in ``conv_weights``, both of one filter a channel on small maps in ``conv_depthwise``.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp
from onnxopt.gradients.rules import conv_depthwise
from onnxopt.gradients.rules.conv_weights import weight_gradient
from onnxopt.gradients.rules.windows import Windows, windows_of

_FEW_POSITIONS = 16


@vjp("Conv")
def _conv(at: Backward) -> Gradients:
    """``y[m, o] = b[m] + Σ_ck w[m, c, k] · x[c, o·s + k·d − p]``: ``dx`` is ``g`` spread by ``w``, ``dw`` the
    correlation of ``x`` with ``g``, ``db = Σ g``."""
    x, w = at.inputs[:2]
    windows = windows_of(at, at.shape(w)[2:])
    group = at.attribute("group", 1)
    return (
        _input_gradient(at, at.g, w, windows, group) if at.wants(0) else None,
        weight_gradient(at, x, at.g, windows, at.shape(x), at.shape(w), group) if at.wants(1) else None,
        at.sum(at.g, 0, *range(2, 2 + windows.rank), keepdims=False) if at.wants(2) else None,
    )


def _input_gradient(at: Backward, g: ir.Value, w: ir.Value, windows: Windows, group: int) -> ir.Value:
    m, per_group = at.shape(w)[:2]
    # Col2Im of ONNX Runtime 1.32 is wrong on dilated windows in other than two dimensions
    spreads = windows.rank == 2 or all(d == 1 for d in windows.dilations)
    if group == 1 and math.prod(windows.out) <= _FEW_POSITIONS and spreads:
        return _by_product(at, g, w, windows)
    depthwise = conv_depthwise.is_depthwise((m, per_group), group)
    if depthwise and conv_depthwise.is_small(windows):
        return conv_depthwise.input_gradient(at, g, w, windows, at.shape(at.inputs[0])[0])
    fits = windows.is_dense and all(p < e for p, e in zip(windows.pads, windows.extent * 2, strict=True))
    if fits and group == 1 and (windows.is_pointwise or 2 * m <= per_group):
        return _by_conv(at, g, w, windows)
    return at.op(
        "ConvTranspose",
        g,
        w,
        strides=windows.strides,
        dilations=windows.dilations,
        group=group,
        pads=windows.pads,
        output_padding=windows.missed,
    )


def _by_product(at: Backward, g: ir.Value, w: ir.Value, windows: Windows) -> ir.Value:
    """Every window's share of the input by one product, (positions × m) @ (m × c·k), then added up where they lie."""
    batch, channels = at.shape(at.inputs[0])[:2]
    m, positions = at.shape(w)[0], math.prod(windows.out)
    rows = at.reshape(at.transpose(g, 0, *range(2, 2 + windows.rank), 1), batch * positions, m)
    shares = at.op("Gemm", rows, at.reshape(w, m, channels * math.prod(windows.kernel)))
    shares = at.transpose(at.reshape(shares, batch, positions, -1), 0, 2, 1)
    if windows.is_pointwise:
        return at.reshape(shares, batch, channels, *windows.size)
    return at.op(
        "Col2Im",
        shares,
        at.ints(*windows.size),
        at.ints(*windows.kernel),
        strides=windows.strides,
        dilations=windows.dilations,
        pads=windows.pads,
    )


def _by_conv(at: Backward, g: ir.Value, w: ir.Value, windows: Windows) -> ir.Value:
    """For windows that start at each element: a convolution with the weights back to front."""
    axes = range(2, 2 + windows.rank)
    w = at.transpose(w, 1, 0, *axes)
    if any(k > 1 for k in windows.kernel):
        ones = [-1] * windows.rank
        w = at.op("Slice", w, at.ints(*ones), at.ints(*[-(2**31)] * windows.rank), at.ints(*axes), at.ints(*ones))
    begin = [e - 1 - b for e, b in zip(windows.extent, windows.begin, strict=True)]
    end = [e - 1 - b + m for e, b, m in zip(windows.extent, windows.end, windows.missed, strict=True)]
    return at.op("Conv", g, w, dilations=windows.dilations, pads=(*begin, *end))
