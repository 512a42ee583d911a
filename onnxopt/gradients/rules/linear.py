"""Matrix products.

Of ``y = α · op(a) op(b)``, where ``op`` transposes or does not, each gradient is one product too:
``da = α · g op(b)ᵀ``, or its transpose, and ``db = α · op(a)ᵀ g``, or its transpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp


@dataclass(frozen=True)
class _Matrix:
    """A matrix, or a stack of them."""

    value: ir.Value
    shape: tuple[int, ...]
    """Of ``value``."""
    transposed: bool = False
    """Whether the matrix is ``valueᵀ``."""

    @property
    def t(self) -> _Matrix:
        return replace(self, transposed=not self.transposed)


_Product = Callable[[_Matrix, _Matrix], ir.Value]


@vjp("MatMul")
def _matmul(at: Backward) -> Gradients:
    """``y = a b``, batched: ``da = g bᵀ``, ``db = aᵀ g``, summed where batches were broadcast."""
    return _stacked(at, False, False, 1.0)


@vjp("FusedMatMul", domain="com.microsoft")
def _fused_matmul(at: Backward) -> Gradients:
    """``y = α · op(a) op(b)``, batched, where ``op`` transposes the last two axes or does not."""
    if at.attribute("transBatchA", 0) or at.attribute("transBatchB", 0):
        raise at.error("it transposes axes of the batch")
    return _stacked(at, bool(at.attribute("transA", 0)), bool(at.attribute("transB", 0)), at.attribute("alpha", 1.0))


@vjp("Gemm")
def _gemm(at: Backward) -> Gradients:
    """``y = α · op(a) op(b) + β · c``: ``da`` and ``db`` as of any product, ``dc = β · g``, summed."""
    a = _Matrix(at.inputs[0], at.shape(at.inputs[0]), bool(at.attribute("transA", 0)))
    b = _Matrix(at.inputs[1], at.shape(at.inputs[1]), bool(at.attribute("transB", 0)))
    found = _both(at, _Matrix(at.g, at.shape(at.outputs[0])), a, b, _by_gemm(at, at.attribute("alpha", 1.0)))
    if (c := at.input(2)) is not None and at.wants(2):
        found.append(_scaled(at, at.unbroadcast(at.g, c), at.attribute("beta", 1.0)))
    return found


def _stacked(at: Backward, trans_a: bool, trans_b: bool, alpha: float) -> Gradients:
    """The gradients of a product of stacks of matrices, or of vectors."""
    own_a, own_b = (at.shape(value) for value in at.inputs)
    rows_a = own_a if len(own_a) > 1 else (1, *own_a)
    rows_b = own_b if len(own_b) > 1 else (*own_b, 1)
    a = _Matrix(_shaped(at, at.inputs[0], own_a, rows_a), rows_a, trans_a and len(own_a) > 1)
    b = _Matrix(_shaped(at, at.inputs[1], own_b, rows_b), rows_b, trans_b and len(own_b) > 1)
    batch = np.broadcast_shapes(rows_a[:-2], rows_b[:-2])
    m, n = rows_a[-1 if a.transposed else -2], rows_b[-2 if b.transposed else -1]
    y = at.shape(at.outputs[0])
    if math.prod(rows_b[:-2]) == 1 and (math.prod(rows_a[:-2]) == 1 or not a.transposed):
        # One product of all rows: the batched form would give db of each matrix of the stack, and then their sum.
        flat_a, flat_b, flat_y = (math.prod(rows_a[:-1]), rows_a[-1]), rows_b[-2:], (math.prod(batch) * m, n)
        a = replace(a, value=_shaped(at, a.value, rows_a, flat_a), shape=flat_a)
        b = replace(b, value=_shaped(at, b.value, rows_b, flat_b), shape=flat_b)
        da, db = _both(at, _Matrix(_shaped(at, at.g, y, flat_y), flat_y), a, b, _by_gemm(at, alpha))
        return [da and _shaped(at, da, flat_a, own_a), db and _shaped(at, db, flat_b, own_b)]
    g = _Matrix(_scaled(at, _shaped(at, at.g, y, (*batch, m, n)), alpha), (*batch, m, n))
    da, db = _both(at, g, a, b, _by_matmul(at))
    if db is not None and len(own_b) == 1:
        db = _shaped(at, db, (*batch, *own_b, 1), (*batch, *own_b))
    return [
        da and at.unbroadcast(da, at.inputs[0], (*batch, *rows_a[-2:])),
        db and at.unbroadcast(db, at.inputs[1], (*batch, *(rows_b[-2:] if len(own_b) > 1 else own_b))),
    ]


def _both(at: Backward, g: _Matrix, a: _Matrix, b: _Matrix, product: _Product) -> list[ir.Value | None]:
    """The gradients, as ``a`` and ``b`` are stored, of the product of the matrices that they are."""
    da = db = None
    if at.wants(0):
        da = product(b, g.t) if a.transposed else product(g, b.t)
    if at.wants(1):
        db = product(g.t, a) if b.transposed else product(a.t, g)
    return [da, db]


def _by_gemm(at: Backward, alpha: float) -> _Product:
    """Transposes in the product itself."""
    return lambda x, y: at.op("Gemm", x.value, y.value, alpha=alpha, transA=int(x.transposed), transB=int(y.transposed))


def _by_matmul(at: Backward) -> _Product:
    """Of stacks; ONNX Runtime fuses the transposes into the product."""

    def stored(x: _Matrix) -> ir.Value:
        rank = len(x.shape)
        return at.transpose(x.value, *range(rank - 2), rank - 1, rank - 2) if x.transposed else x.value

    return lambda x, y: at.op("MatMul", stored(x), stored(y))


def _shaped(at: Backward, value: ir.Value, shape: tuple[int, ...], to: tuple[int, ...]) -> ir.Value:
    """``value``, of ``shape``, with the dims ``to``."""
    return value if shape == to else at.reshape(value, *to)


def _scaled(at: Backward, value: ir.Value, factor: float) -> ir.Value:
    return value if factor == 1 else at.op("Mul", value, at.number(factor))
