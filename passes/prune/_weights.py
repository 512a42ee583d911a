"""The weights of a model that can be made sparse, each as matrices of a row for each output.

=============  ==================  ==============  =============  ========================
operator       weight              g               n              k, along which it sums
=============  ==================  ==============  =============  ========================
Conv           O × I/g × kernel    groups          O/g            kernel · I/g, I last
ConvTranspose  I × O/g × kernel    groups          O/g · kernel   I/g
Gemm, MatMul   (… ×) k × n         leading dims    n              k
RNN, GRU,      d × gates·h × k     directions      gates · h      inputs, or hidden units
LSTM
=============  ==================  ==============  =============  ========================

The input channels of a Conv go last, at each place of its kernel, since sparse kernels find their 2:4 along these.
A weight of integers is seen through its DequantizeLinear; its zeros are the zero point.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, constant_tensor, label
from onnxopt.pass_base import Refuse
from onnxopt.passes.cleanup._operands import write_constant
from onnxopt.passes.quantize._contrib import other_reader
from onnxopt.passes.quantize._grid import Array, quantize
from onnxopt.passes.quantize._products import Product
from onnxopt.passes.quantize._quantized_layers import Stored, stored

RECURRENT = frozenset({"RNN", "GRU", "LSTM"})
OPERATORS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}) | RECURRENT

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class View:
    """How a weight is seen as g × n × k: cut into ``dims``, put into the order ``perm``, merged to ``size``."""

    dims: tuple[int, ...]
    perm: tuple[int, ...]
    size: tuple[int, int, int]

    def matrix(self, weight: Array) -> Array:
        """The weight as g × n × k."""
        return np.ascontiguousarray(weight.reshape(self.dims).transpose(self.perm).reshape(self.size))

    def weight(self, matrix: Array, shape: tuple[int, ...]) -> Array:
        """The other way round."""
        cut = matrix.reshape([self.dims[axis] for axis in self.perm])
        return np.ascontiguousarray(cut.transpose(np.argsort(self.perm)).reshape(shape))

    def places(self, product: Product, shape: tuple[int, ...]) -> Array:
        """Which input of ``product``, which may order them in another way, is the first here, the second, …"""
        _, n, k = self.size
        here = np.broadcast_to(np.arange(k), (self.size[0], n, k))
        return np.argsort(product.matrix(self.weight(here, shape))[0, :, 0])


@dataclass(frozen=True, eq=False)
class Weight:
    """A constant, and the inputs of layers that read it."""

    value: ir.Value
    """The constant, or the output of the DequantizeLinear of one."""
    uses: tuple[tuple[ir.Node, int], ...]
    view: View
    shape: tuple[int, ...]
    integers: Stored | None

    @property
    def name(self) -> str:
        """What reports call it: the first node that reads it."""
        return label(self.uses[0][0])

    @property
    def title(self) -> str:
        """What it is to that node."""
        node, at = self.uses[0]
        return ("weight", "W", "R")[at] if node.op_type in RECURRENT else "weight"

    @property
    def constant(self) -> ir.Value:
        """The constant as it is stored."""
        value = self.value if self.integers is None else self.integers.reader.inputs[0]
        assert value is not None
        return value

    def names(self) -> Iterator[str]:
        """What globs may call it: its nodes, their operators, the constant."""
        for node, _ in self.uses:
            yield from (label(node), node.op_type)
        yield self.constant.name or ""

    def array(self, editor: Editor) -> Array:
        """What it holds, as floats."""
        array = self.integers.array if self.integers is not None else editor.constant(self.value)
        assert array is not None
        return array

    def matrix(self, editor: Editor) -> Array:
        """The same as g × n × k, in float32 (float64 if it is that)."""
        array = self.array(editor)
        return self.view.matrix(array if array.dtype == np.float64 else array.astype(np.float32))

    def write(self, matrix: Array, editor: Editor) -> None:
        """Put other numbers in their place, in the type that it has."""
        array = self.view.weight(matrix, self.shape)
        if self.integers is not None:
            self.integers.write(quantize(array, self.integers.grid), editor)
            return
        before = editor.constant(self.value)
        assert before is not None
        # What was not changed keeps its bits, also where the type is narrower than the one computed in.
        same = array == before.astype(array.dtype)
        write_constant(self.value, np.where(same, before, array.astype(before.dtype)), editor)


def find_weight(value: ir.Value, uses: tuple[tuple[ir.Node, int], ...], editor: Editor) -> Weight:
    """The weight ``value``, which these inputs of layers read. Raises ``Refuse`` if it cannot be made sparse."""
    tensor, integers = constant_tensor(value), None
    if tensor is None:
        integers = stored(value, editor)
        if integers is None:
            raise Refuse(_why_not_constant(value, uses[0][0]))
        shape = integers.integers.shape
    else:
        if tensor.dtype not in _FLOATS:
            raise Refuse(f"its weight is {tensor.dtype.name}, not a float type")
        shape = tuple(tensor.shape.numpy())
    if 0 in shape:
        raise Refuse("its weight is empty")
    views = {_view(node, at, shape) for node, at in uses}
    if len(views) > 1:
        raise Refuse("its weight is shared by layers that sum along different axes of it")
    weight = Weight(value, uses, views.pop(), shape, integers)
    if not np.isfinite(weight.matrix(editor)).all():
        raise Refuse("its weight holds NaN or infinity")
    return weight


def weight_inputs(node: ir.Node) -> tuple[int, ...]:
    """Which inputs of a layer are weights: of a MatMul the left one where that is the constant."""
    if node.op_type in RECURRENT:
        return 1, 2
    if node.op_type == "MatMul" and constant_tensor(node.inputs[0]) is not None:
        return (0,)
    return (1,)


def foreign_reader(weight: Weight, mine: Collection[tuple[ir.Node, int]]) -> str | None:
    """Who else reads the weight, and would get the zeros as well."""
    return other_reader(weight.value, mine)


def _view(node: ir.Node, at: int, shape: tuple[int, ...]) -> View:
    if node.op_type in ("Conv", "ConvTranspose"):
        g = attribute(node, "group", 1)
        if g is None:
            raise Refuse("its group is an attribute of its function; run inline-functions first")
        outer, inner, area = shape[0] // int(g), shape[1], math.prod(shape[2:])
        dims = (int(g), outer, inner, area)
        if node.op_type == "Conv":
            return View(dims, (0, 1, 3, 2), (dims[0], outer, area * inner))
        return View(dims, (0, 2, 3, 1), (dims[0], inner * area, outer))
    if len(shape) < 2:
        raise Refuse("its weight is a vector")
    size = (math.prod(shape[:-2]), shape[-2], shape[-1])
    by_rows = node.op_type in RECURRENT or (node.op_type == "MatMul" and at == 0)
    if node.op_type == "Gemm":
        transposed = attribute(node, "transB", 0)
        if transposed is None:
            raise Refuse("its transB is an attribute of its function; run inline-functions first")
        by_rows = bool(transposed)
    return View(size, (0, 1, 2), size) if by_rows else View(size, (0, 2, 1), (size[0], size[2], size[1]))


def _why_not_constant(value: ir.Value, node: ir.Node) -> str:
    producer = value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        return "its integer weight has blocks, or a scale or zero point that is computed; run dequantize first"
    if value.is_initializer():
        return "callers may override its weight, which is an input too; run drop-initializer-inputs first"
    if node.op_type in ("MatMul", "Gemm"):
        return "it multiplies two computed tensors, so it has no weight"
    source = "an input of the model" if producer is None else f"computed by {label(producer)}"
    return f"its weight is {source}; one that is computed from constants is stored by fold-constants"
