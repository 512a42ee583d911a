"""Transposed convolution: the gradient of a convolution, so its own gradients are that convolution again."""

from __future__ import annotations

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp
from onnxopt.gradients.rules.conv_weights import weight_gradient
from onnxopt.gradients.rules.windows import Windows, split_padding


@vjp("ConvTranspose")
def _conv_transpose(at: Backward) -> Gradients:
    """``y[m, i] = b[m] + Σ x[c, o] · w[c, m, k]`` over ``i = o·s + k·d − p``: ``dx`` is the convolution of ``g`` with
    ``w``, ``dw`` the correlation of ``g`` with ``x``, ``db = Σ g``."""
    x, w = at.inputs[:2]
    windows, group = _windows(at), at.attribute("group", 1)
    g, written = at.g, at.shape(at.outputs[0])
    if windows.size != written[2:]:
        ends = at.ints(*windows.size)
        axes = range(2, 2 + windows.rank)
        g = at.op("Slice", g, at.ints(*[0] * windows.rank), ends, at.ints(*axes))
    dx = dw = None
    if at.wants(0):
        strides, dilations = windows.strides, windows.dilations
        dx = at.op("Conv", g, w, group=group, strides=strides, dilations=dilations, pads=windows.pads)
    if at.wants(1):
        dw = weight_gradient(at, g, x, windows, (*written[:2], *windows.size), at.shape(w), group)
    db = at.sum(at.g, 0, *range(2, 2 + windows.rank), keepdims=False) if at.wants(2) else None
    return dx, dw, db


def _windows(at: Backward) -> Windows:
    """Those of the convolution that reads the output and writes the input. Its size is less than that of the output
    where ``output_padding`` adds elements that no window reaches."""
    out, kernel = at.shape(at.inputs[0])[2:], at.shape(at.inputs[1])[2:]
    size = at.shape(at.outputs[0])[2:]
    ones = (1,) * len(size)
    strides, dilations = tuple(at.attribute("strides", ones)), tuple(at.attribute("dilations", ones))
    added = tuple(at.attribute("output_padding", (0,) * len(size)))
    auto = at.attribute("auto_pad", "NOTSET")
    pads = tuple(at.attribute("pads", (0, 0) * len(size))) if auto == "NOTSET" else (0, 0) * len(size)
    begin, end = pads[: len(size)], pads[len(size) :]
    reach = Windows(size, out, kernel, strides, dilations, begin, end).reach
    if at.attribute("output_shape") or auto in ("SAME_UPPER", "SAME_LOWER"):
        totals = [max(0, r + a - n) for r, a, n in zip(reach, added, size, strict=True)]
        begin, end = split_padding(totals, auto == "SAME_UPPER")
    # the last window ends where the padding does, or the output is cut to where it ends
    end = tuple(max(0, r - b - n) for r, b, n in zip(reach, begin, size, strict=True))
    size = tuple(min(n, r - b) for n, r, b in zip(size, reach, begin, strict=True))
    return Windows(size, out, kernel, strides, dilations, begin, end)
