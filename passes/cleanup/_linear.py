"""Layers that are linear in their input, and how a scale and a shift of each channel go into their weights.

For a layer ``y = W x + b``, a scale ``s`` and a shift ``t`` of its output channels give

    s · (W x + b) + t = (s W) x + (s b + t),

and a scale and a shift of its input channels give

    W (s · x + t) + b = (W s) x + (W t + b),

where ``W t`` sums over everything that one output sees. With zeros padded around ``x`` the second holds for
``t = 0`` only, since padding is not shifted. All is computed in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, constant_tensor, sole_reader
from onnxopt.pass_base import Refuse
from onnxopt.passes.cleanup._affine import FLOATS, PRECISION, Array, affine
from onnxopt.passes.cleanup._operands import input_at, numbers, write_constant

NODE_BYTES = 32
"""About what a node takes in the file, at least: a new constant may be larger than the old ones by so much."""


@dataclass(frozen=True)
class Layer:
    """A ``Conv``, ``ConvTranspose``, ``Gemm``, or ``MatMul`` with the ``Add`` behind it, with constant weights."""

    node: ir.Node
    adding: ir.Node | None
    """The ``Add`` that brings the bias to a ``MatMul``."""
    rank: int | None
    """The rank of input and output."""
    weight: ir.Value
    bias: ir.Value | None

    @property
    def output(self) -> ir.Value:
        """The result, bias included."""
        return (self.adding or self.node).outputs[0]

    @property
    def channel_axis(self) -> int:
        """The axis of channels in input and output, counted from the end."""
        if self.node.op_type in ("Conv", "ConvTranspose"):
            assert self.rank is not None
            return 1 - self.rank
        return -1

    @property
    def groups(self) -> int:
        """The number of groups of a convolution, 1 for others."""
        return int(attribute(self.node, "group", 1))

    @property
    def channels_out(self) -> int:
        """The number of output channels."""
        shape = self._weight_shape
        match self.node.op_type:
            case "Conv":
                return shape[0]
            case "ConvTranspose":
                return shape[1] * self.groups
            case "Gemm" if attribute(self.node, "transB", 0):
                return shape[0]
        return shape[-1]

    @property
    def channels_in(self) -> int:
        """The number of input channels."""
        shape = self._weight_shape
        match self.node.op_type:
            case "Conv":
                return shape[1] * self.groups
            case "Gemm" if attribute(self.node, "transB", 0):
                return shape[1]
        return shape[0]

    @property
    def pads(self) -> bool:
        """Whether zeros may be put around the input, or parts of the output see less of the input."""
        if self.node.op_type == "ConvTranspose":
            return True
        if self.node.op_type != "Conv":
            return False
        auto = attribute(self.node, "auto_pad", "NOTSET")
        pads = numbers(self.node, "pads")
        return pads is None or auto not in ("NOTSET", "VALID") or (auto == "NOTSET" and any(pads))

    @property
    def _weight_shape(self) -> tuple[int, ...]:
        tensor = constant_tensor(self.weight)
        assert tensor is not None
        return tuple(int(d) for d in tensor.shape.numpy())

    def weights(self) -> tuple[Array, Array]:
        """Copies of the weight, and of the bias as a vector over the output channels, in float64."""
        weight = constant_tensor(self.weight)
        assert weight is not None
        bias = constant_tensor(self.bias)
        if bias is None:
            return weight.numpy().astype(np.float64), np.zeros(self.channels_out)
        vector = np.broadcast_to(bias.numpy().astype(np.float64).reshape(-1), self.channels_out)
        return weight.numpy().astype(np.float64), vector * float(attribute(self.node, "beta", 1.0))

    def scaled_out(self, scale: Array, shift: Array) -> tuple[Array, Array]:
        """Weight and bias of the layer whose output is ``scale · y + shift``."""
        weight, bias = self.weights()
        match self.node.op_type:
            case "Conv":
                weight *= _along(scale, 0, weight.ndim)
            case "ConvTranspose":
                grouped = weight.reshape(self.groups, -1, *weight.shape[1:])
                grouped *= scale.reshape(self.groups, 1, -1, *[1] * (weight.ndim - 2))
            case "Gemm" if attribute(self.node, "transB", 0):
                weight *= scale[:, None]
            case _:
                weight *= scale
        return weight, bias * scale + shift

    def scaled_in(self, scale: Array, shift: Array) -> tuple[Array, Array]:
        """Weight and bias of the layer that sees ``x`` and computes what this one does of ``scale · x + shift``."""
        weight, bias = self.weights()
        moved = np.zeros(self.channels_out)
        match self.node.op_type:
            case "Conv":
                grouped = weight.reshape(self.groups, -1, *weight.shape[1:])
                sums = grouped.sum(axis=tuple(range(3, grouped.ndim)))
                moved = np.einsum("gmc,gc->gm", sums, shift.reshape(self.groups, -1)).reshape(-1)
                grouped *= scale.reshape(self.groups, 1, -1, *[1] * (weight.ndim - 2))
            case "ConvTranspose":  # every place of the output sees another part of the kernel
                assert not shift.any()
                weight *= _along(scale, 0, weight.ndim)
            case "Gemm" if attribute(self.node, "transB", 0):
                moved = weight @ shift
                weight *= scale
            case _:
                moved = shift @ weight
                weight *= scale[:, None]
        return weight, bias + moved * float(attribute(self.node, "alpha", 1.0))

    def fitted(self, weight: Array, bias: Array, freed: Iterable[ir.Value | None]) -> tuple[Array, Array | None]:
        """Weight and bias in the type of the layer; no bias if it has none and needs none.

        ``freed`` are the constants of the node that the layer swallows. Raises ``Refuse`` where the weight is
        shared, where numbers leave the range of the type, or where the file would grow.
        """
        old = constant_tensor(self.weight)
        assert old is not None
        if len(self.weight.uses()) != 1 or self.weight.is_graph_output():
            raise Refuse(f"the weight {self.weight.name!r} of {self.node.op_type} is shared")
        new_weight, new_bias = (_rounded(a, old.dtype, self.node.op_type) for a in (weight, bias))
        if self.bias is None and not np.any(bias != 0):
            return new_weight, None
        if new_bias.nbytes > spare_bytes((*freed, self.bias)) + NODE_BYTES:
            raise Refuse(f"the bias of {self.node.op_type} would be larger than what it replaces")
        return new_weight, new_bias

    def put(self, weight: Array, bias: Array | None, editor: Editor) -> None:
        """Give the layer other weights, which ``fitted`` has passed."""
        write_constant(self.weight, weight, editor)
        if bias is not None:
            self.put_bias(bias, editor)

    def put_bias(self, bias: Array, editor: Editor) -> None:
        """Give the layer another bias, or its first."""
        if self.bias is not None and len(self.bias.uses()) == 1 and not self.bias.is_graph_output():
            write_constant(self.bias, bias, editor)
        else:
            holder = self.adding or self.node
            name = self.bias.name if self.bias is not None else f"{self.weight.name}_bias"
            new = editor.add_constant(holder, bias, name or "bias")
            if self.adding is None:
                holder.resize_inputs(3)
                holder.replace_input_with(2, new)
            else:
                holder.replace_input_with(1 if holder.inputs[1] is self.bias else 0, new)
        if self.node.op_type == "Gemm":
            self.node.attributes.pop("beta", None)


def layer_behind(value: ir.Value | None, editor: Editor) -> Layer | None:
    """The layer whose output is ``value``, if there is one with constant weights."""
    node = value.producer() if value is not None else None
    if node is None or node.domain:
        return None
    if node.op_type != "Add":
        return layer_of(node, editor)
    found = affine(node, editor)
    inner = found.source.producer() if found is not None else None
    if found is None or inner is None or inner.op_type != "MatMul" or sole_reader(inner.outputs[0]) is not node:
        return None
    layer = layer_of(inner, editor)
    bias = found.constants[0]
    if layer is None or inner.graph is not node.graph:
        return None
    if per_channel(found.shift, layer.channels_out, layer.rank, -1) is None:
        return None
    return Layer(inner, node, layer.rank, layer.weight, bias)


def layer_before(value: ir.Value, editor: Editor) -> Layer | None:
    """The layer that alone reads ``value`` as its input, if there is one with constant weights."""
    node = sole_reader(value)
    if node is None or node.inputs[0] is not value or node.graph is not value.graph:
        return None
    layer = layer_of(node, editor)
    if layer is None or (node.op_type == "Gemm" and attribute(node, "transA", 0)):
        return None
    adding = sole_reader(node.outputs[0]) if node.op_type == "MatMul" else None
    whole = layer_behind(adding.outputs[0], editor) if adding is not None and adding.op_type == "Add" else None
    return layer if whole is None else whole


LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def layer_of(node: ir.Node, editor: Editor) -> Layer | None:
    """``node`` as a layer, if it is one with constant weights."""
    if node.domain or node.op_type not in LAYERS or len(node.outputs) != 1:
        return None
    if any(attribute.is_ref() for attribute in node.attributes.values()):
        return None
    weight = node.inputs[1]
    tensor = constant_tensor(weight)
    bias = input_at(node, 2)
    if weight is None or tensor is None or tensor.dtype not in FLOATS or constant_tensor(node.inputs[0]) is not None:
        return None
    dims = tuple(int(d) for d in tensor.shape.numpy())
    if bias is not None and constant_tensor(bias) is None:
        return None
    if node.op_type == "MatMul":
        return Layer(node, None, editor.rank(node.inputs[0]), weight, None) if len(dims) == 2 else None
    if node.op_type == "Gemm":
        if bias is not None and attribute(node, "beta", 1.0) == 0:
            return None
        layer = Layer(node, None, 2, weight, bias)
        shape = () if bias is None else constant_tensor(bias).shape.numpy()  # type: ignore[union-attr]
        rows = shape[0] if len(shape) == 2 else 1
        columns = shape[-1] if len(shape) else 1
        return layer if len(dims) == 2 and rows == 1 and columns in (1, layer.channels_out) else None
    return Layer(node, None, len(dims), weight, bias) if len(dims) > 2 else None


def per_channel(array: Array, channels: int, rank: int | None, axis: int) -> Array | None:
    """``array`` as a vector over the channels, if broadcasting it to ``rank`` dims makes it one.

    ``axis`` is the axis of the channels, counted from the end.
    """
    if array.ndim > (rank if rank is not None else 1):
        return None
    padded = array.reshape((1,) * max(0, -axis - array.ndim) + array.shape)
    along = padded.shape[axis]
    if along not in (1, channels) or padded.size != along:
        return None
    return np.broadcast_to(padded.reshape(-1), channels)


def _along(vector: Array, axis: int, rank: int) -> Array:
    return vector.reshape([-1 if at == axis else 1 for at in range(rank)])


def _rounded(array: Array, dtype: ir.DataType, op: str) -> Array:
    """``array`` in another type. Raises ``Refuse`` where that would lose more than the last place."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = array.astype(dtype.numpy())
        lost = rounded.astype(np.float64)
        lost -= array
        largest = max(np.max(array, initial=0.0), -np.min(array, initial=0.0))
        allowed = largest * 2.0 ** -PRECISION[dtype][0]
        fits = bool(np.all(lost <= allowed) and np.all(lost >= -allowed))  # not so where anything is not finite
    if not fits:
        raise Refuse(f"the weights of {op} would leave the range of {dtype.name}")
    return rounded


def spare_bytes(values: Iterable[ir.Value | None]) -> int:
    """How much the file loses when the one reader of each of ``values`` goes."""
    found = {id(v): v for v in values if v is not None and not v.is_graph_output() and len(v.uses()) == 1}
    return sum(tensor.nbytes for tensor in map(constant_tensor, found.values()) if tensor is not None)
