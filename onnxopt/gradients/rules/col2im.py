"""Columns that are added up where the windows they stand for overlap."""

from __future__ import annotations

import math

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp
from onnxopt.gradients.rules.window_reads import pad, slices
from onnxopt.gradients.rules.windows import Windows


@vjp("Col2Im")
def _col2im(at: Backward) -> Gradients:
    """``y[c, o·s + k·d − p] += x[(c, k), o]``: ``dx`` holds what each place ``k`` of the windows reads of ``g``."""
    size, kernel = (tuple(at.numbers(value)) for value in at.inputs[1:])
    ones = (1,) * len(size)
    strides, dilations = (tuple(at.attribute(name, ones)) for name in ("strides", "dilations"))
    pads = tuple(at.attribute("pads", (0, 0) * len(size)))
    begin, end = pads[: len(size)], pads[len(size) :]
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    out = tuple(
        (n + b + e - reach) // s + 1 for n, b, e, reach, s in zip(size, begin, end, extent, strides, strict=True)
    )
    windows = Windows(size, out, kernel, strides, dilations, begin, end)
    n, c = at.shape(at.outputs[0])[:2]
    read = slices(at, pad(at, at.g, begin, end, axis=2), windows, axis=2)
    columns = [at.reshape(each, n, c, 1, math.prod(out)) for each in read]
    return [at.reshape(at.op("Concat", *columns, axis=2), *at.shape(at.inputs[0]))]
