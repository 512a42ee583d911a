"""Products with weights of few bits, which have a scale for each block of them.

The weights themselves are constants, but what is before the product, the scales, zero points that are floats, and the
bias may move.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp


@vjp("MatMulNBits", domain="com.microsoft")
def _matmul_nbits(at: Backward) -> Gradients:
    """``y = a @ wᵀ + b`` with ``w = s · (q − z)``: ``da = g @ w``, ``dw = gᵀ @ a`` and, over each block,
    ``ds = Σ dw · (q − z)`` and ``dz = −s · Σ dw``; ``db = Σ g``."""
    a, scale, zero, bias = at.inputs[0], at.inputs[2], at.input(3), at.input(5)
    if at.input(4) is not None:
        raise at.error("its rows are in another order (g_idx)")
    n, k, size = at.attribute("N"), at.attribute("K"), at.attribute("block_size")
    blocks = -(-k // size)
    steps = _steps(at, n, blocks, size)
    factor = at.reshape(scale, n, blocks, 1)
    g = at.reshape(at.g, -1, n)
    da = ds = dz = db = None
    if at.wants(0):
        w = at.reshape(at.op("Mul", steps, factor), n, blocks * size)
        if blocks * size > k:
            w = at.op("Slice", w, at.ints(0), at.ints(k), at.ints(1))
        da = at.reshape(at.op("MatMul", g, w), *at.shape(a))
    if at.wants(2) or at.wants(3):
        dw = at.op("Gemm", g, at.reshape(a, -1, k), transA=1)
        if blocks * size > k:
            dw = at.op("Pad", dw, at.ints(0, 0, 0, blocks * size - k))
        dw = at.reshape(dw, n, blocks, size)
        ds = at.reshape(at.sum(at.op("Mul", dw, steps), 2), *at.shape(scale))
        if zero is not None and at.wants(3):
            moved = at.op("Neg", at.op("Mul", at.sum(dw, 2), factor))
            dz = at.reshape(moved, *at.shape(zero))
    if bias is not None and at.wants(5):
        db = at.sum(g, 0, keepdims=False)
    return [da, None, ds, dz, None, db]


def _steps(at: Backward, n: int, blocks: int, size: int) -> ir.Value:
    """``q − z`` in floats, of shape (n, blocks, size). Constant integers are kept as such, in one byte each."""
    bits, packed, zero = at.attribute("bits", 4), at.constant(at.inputs[1]), at.input(3)
    if packed is None or bits not in (2, 4, 8):
        raise at.error(f"its weights are {'known at run time only' if packed is None else f'of {bits} bits'}")
    q = _unpacked(packed.reshape(n, -1), bits, blocks * size).reshape(n, blocks, size)
    to = at.dtype(at.inputs[0])
    if zero is None:
        return at.op("Cast", at.const((q - (1 << (bits - 1))).astype(np.int8)), to=to)
    if at.dtype(zero) != ir.DataType.UINT8:
        return at.op("Sub", at.op("Cast", at.const(q), to=to), at.reshape(zero, n, blocks, 1))
    if (known := at.constant(zero)) is None:
        raise at.error("its zero points are known at run time only")
    z = _unpacked(known.reshape(n, -1), bits, blocks).reshape(n, blocks, 1).astype(to.numpy())
    return at.op("Sub", at.op("Cast", at.const(q), to=to), at.const(z))


def _unpacked(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first ``count`` numbers of each row of bytes, the lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    numbers = (packed[..., None] >> shifts) & ((1 << bits) - 1)
    return numbers.reshape(len(packed), -1)[:, :count].astype(np.uint8)
