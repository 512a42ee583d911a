"""More layers as products of matrices: rows of what they read times their weight.

- A ``ConvTranspose`` multiplies the channels at each place of its input by its weight as a matrix (C × N·k…), and adds
  up what falls on the same place of its output. What is kept is what it adds up, not the sums.
- The ``Attention`` of ONNX Runtime makes queries, keys and values of its input by one matrix (k × 3n).
- A product ``W x`` with a constant on the left is ``xᵀ Wᵀ``: its rows are the columns of ``x``.
- A product with a stack of matrices (b… × k × n) is one product for each, as there is one for each group of a ``Conv``.

The outputs of none of these are rows times a matrix as they come, so the layer is to give its weight times what it
reads in the model as it was.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, constant_tensor
from onnxopt.pass_base import Refuse
from onnxopt.passes.cleanup._affine import FLOATS
from onnxopt.passes.cleanup._linear import Layer, layer_of
from onnxopt.passes.cleanup._operands import input_at
from onnxopt.passes.prune._least_squares import Array
from onnxopt.passes.prune._refits import Refit, dense_layer
from onnxopt.passes.quantize._products import Product


class InputProduct(Product):
    """Rows are the channels at each place of the input: axis 1 of a ``ConvTranspose``, else the last."""

    def __init__(self, op: str, shape: tuple[int, ...]) -> None:
        """For a weight of ``shape``, whose first axis is that of the channels."""
        self._op, self._shape, self._groups, self._trans_b = op, shape, 1, False


class LeftProduct(Product):
    """A constant (n × k) on the left: rows are the columns of what is on the right."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._op, self._shape, self._groups, self._trans_b = "MatMul", shape, 1, True

    @property
    def unfolding(self) -> Hashable:
        """What rows follow from besides the input."""
        return "columns"

    def count(self, x: Array) -> int:
        """How many rows there are."""
        return super().count(_columns(x))

    def rows(self, x: Array, places: Array) -> Array:
        """The rows at ``places`` (r indices into all rows), as 1 × r × k."""
        return super().rows(_columns(x), places)

    def mean_row(self, x: Array) -> Array:
        """The mean of all rows, 1 × k, in float64."""
        return super().mean_row(_columns(x))


def _columns(x: Array) -> Array:
    return x.swapaxes(-1, -2) if x.ndim > 1 else x


class StackProduct(Product):
    """A stack of constants (b… × k × n) on the right, each of which is a group."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape

    @property
    def unfolding(self) -> Hashable:
        """What rows follow from besides the input."""
        return self._shape[:-1]

    def matrix(self, weight: Array) -> Array:
        """The weight, or anything of its shape, as g × k × n."""
        return weight.reshape(-1, *self._shape[-2:])

    def weight(self, matrix: Array) -> Array:
        """The other way round."""
        return matrix.reshape(self._shape)

    def count(self, x: Array) -> int:
        """How many rows each matrix has."""
        return math.prod(self._by_matrix(x).shape[1:-1])

    def rows(self, x: Array, places: Array) -> Array:
        """The rows of each matrix at ``places`` (r indices into all of its rows), as g × r × k."""
        found = self._by_matrix(x)
        at: tuple[Any, ...] = (slice(None), *np.unravel_index(places, found.shape[1:-1]))
        return np.ascontiguousarray(found[at])

    def mean_row(self, x: Array) -> Array:
        """The mean of all rows, g × k, in float64."""
        found = self._by_matrix(x)
        mean: Array = found.mean(axis=tuple(range(1, found.ndim - 1)), dtype=np.float64)
        return mean

    def _by_matrix(self, x: Array) -> Array:
        """``x`` (… × m × k) as g × … × m × k: each of its matrices beside the one that multiplies it."""
        x, stack = np.atleast_2d(x), self._shape[:-2]
        whole = np.broadcast_to(x, (*np.broadcast_shapes(x.shape[:-2], stack), *x.shape[-2:]))
        axes = [whole.ndim - 2 - len(stack) + at for at, size in enumerate(stack) if size > 1]
        moved = np.moveaxis(whole, axes, range(len(axes)))
        return moved.reshape(-1, *moved.shape[len(axes) :])


@dataclass(frozen=True, eq=False)
class InputRefit(Refit):
    """A layer that is to give its weight times what it reads in the model as it was."""

    @property
    def input(self) -> str:
        """The tensor that it reads."""
        return self.layer.node.inputs[input_place(self.product)].name or ""  # type: ignore[union-attr]

    @property
    def target(self) -> str:
        """The same, in the model as it was."""
        return self.input

    @property
    def has_bias(self) -> bool:
        """Whether there is a place for a bias of the products: an ``Attention`` has one."""
        assert isinstance(self.layer, Layer)
        bias = self.layer.bias if self.layer.node.op_type == "Attention" else None
        return bias is not None and len(bias.uses()) == 1 and not bias.is_graph_output()

    def outputs(self, y: Array, places: Array) -> Array:
        """What the rows of ``y``, a tensor like its input, at ``places`` give (g × r × n)."""
        weight, bias = self.layer.weights()
        kind = np.promote_types(y.dtype, np.float32)
        rows: Array = self.product.rows(y, places).astype(kind) @ self.product.matrix(weight).astype(kind)
        return rows + bias if self.has_bias else rows


def input_place(product: object) -> int:
    """Which input of a node its rows are read from; the other one of the first two is its weight."""
    return 1 if isinstance(product, LeftProduct) else 0


def refit_of(node: ir.Node, editor: Editor) -> Refit:
    """``node``, to give what it gives itself. Raises ``Refuse`` if it is no product with a constant weight."""
    if node.op_type == "ConvTranspose":
        return _conv_transpose(node, editor)
    if node.op_type == "Attention":
        return _attention(node, editor)
    if node.op_type == "MatMul":
        left, right = (_float_shape(value) for value in node.inputs)
        if left is not None and right is None and len(left) == 2:
            layer = Layer(node, None, editor.rank(node.inputs[1]), _value(node, 0), None)
            return InputRefit(layer, LeftProduct(left), node)
        if left is None and right is not None and len(right) in (3, 4):
            layer = Layer(node, None, editor.rank(node.inputs[0]), _value(node, 1), None)
            return InputRefit(layer, StackProduct(right), node)
    return dense_layer(node, editor)


def _conv_transpose(node: ir.Node, editor: Editor) -> Refit:
    layer, shape = layer_of(node, editor), _float_shape(node.inputs[1])
    if layer is None or shape is None:
        raise Refuse("its weight is not a constant kernel behind its input")
    if layer.groups > 1:
        raise Refuse("it is a ConvTranspose in groups, which is not split")
    return InputRefit(layer, InputProduct("ConvTranspose", shape), node)


def _attention(node: ir.Node, editor: Editor) -> Refit:
    shape, bias = _float_shape(node.inputs[1]), input_at(node, 2)
    if shape is None or len(shape) != 2 or (bias is not None and constant_tensor(bias) is None):
        raise Refuse("its weight is not a constant matrix behind its input, with a constant bias")
    layer = Layer(node, None, editor.rank(node.inputs[0]), _value(node, 1), bias)
    return InputRefit(layer, InputProduct("Attention", shape), node)


def _float_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape of a constant of floats."""
    tensor = constant_tensor(value)
    return None if tensor is None or tensor.dtype not in FLOATS else tuple(int(d) for d in tensor.shape.numpy())


def _value(node: ir.Node, at: int) -> ir.Value:
    value = node.inputs[at]
    assert value is not None
    return value
