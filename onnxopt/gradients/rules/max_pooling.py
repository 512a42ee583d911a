"""Maximum over windows.

``Indices`` say where each maximum was, but ONNX Runtime looks for them 20 to 30 times more slowly than it takes maxima.
For windows of few elements it is faster to compare each with the maximum afterwards.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp
from onnxopt.gradients.rules.window_reads import pad, slices
from onnxopt.gradients.rules.windows import Windows, windows_of

_FEW_PLACES = 4


@vjp("MaxPool")
def _max_pool(at: Backward) -> Gradients:
    """``y = max x`` over each window: ``dx`` is ``g`` at the first place of the maximum."""
    if at.gradients[0] is None:
        return [None]
    windows = windows_of(at)
    says_where = len(at.outputs) > 1 and bool(at.outputs[1].name)
    if math.prod(windows.kernel) <= _FEW_PLACES and windows.rank <= 2 and not says_where:
        return [_by_comparison(at, windows)]
    shape = at.shape(at.inputs[0])
    places = at.reshape(_indices(at, windows), -1)
    zeros = at.op("Expand", at.number(0), at.ints(math.prod(shape)))
    overlap = any(s < e for s, e in zip(windows.strides, windows.extent, strict=True))
    reduction = "add" if overlap else "none"
    found = at.op("ScatterElements", zeros, places, at.reshape(at.g, -1), axis=0, reduction=reduction)
    return [at.reshape(found, *shape)]


def _by_comparison(at: Backward, windows: Windows) -> ir.Value:
    """Place by place of the window: where ``x`` is the maximum, what is left of ``g`` goes there."""
    n, c = at.shape(at.inputs[0])[:2]
    positions, places = math.prod(windows.out), math.prod(windows.kernel)
    end = tuple(e + max(0, -m) for e, m in zip(windows.end, windows.missed, strict=True))
    x = pad(at, at.inputs[0], windows.begin, end, axis=2, value_outside=at.number(-np.inf))
    left, shares = at.g, []
    for copy in slices(at, x, windows, axis=2):
        is_maximum = at.op("Cast", at.op("Equal", copy, at.outputs[0]), to=int(at.dtype(at.outputs[0])))
        share = at.op("Mul", is_maximum, left)
        left = at.op("Sub", left, share)
        shares.append(at.reshape(share, n, c, 1, positions))
    columns = at.reshape(at.op("Concat", *shares, axis=2), n, c * places, positions)
    # in two dimensions always: Col2Im of ONNX Runtime 1.32 is wrong on dilated windows in one
    lead, fill = (1,) * (2 - windows.rank), (0,) * (2 - windows.rank)
    found = at.op(
        "Col2Im",
        columns,
        at.ints(*lead, *windows.size),
        at.ints(*lead, *windows.kernel),
        strides=(*lead, *windows.strides),
        dilations=(*lead, *windows.dilations),
        pads=(*fill, *windows.begin, *fill, *end),
    )
    return at.reshape(found, n, c, *windows.size) if fill else found


def _indices(at: Backward, windows: Windows) -> ir.Value:
    """Where each maximum is in the flattened input: of the node itself, which is made to say so if it does not."""
    if at.attribute("storage_order", 0):
        return at.ops(
            "MaxPool",
            at.inputs[0],
            outputs=2,
            kernel_shape=windows.kernel,
            strides=windows.strides,
            dilations=windows.dilations,
            pads=windows.pads,
            ceil_mode=at.attribute("ceil_mode", 0),
        )[1]
    return at.output(1, ir.DataType.INT64, at.shape(at.outputs[0]))
