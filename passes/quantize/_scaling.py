"""Find the places in a model where each channel may be scaled without changing what the model computes.

``relu(s · x) = s · relu(x)`` for every ``s > 0``, so the scale of a channel can be moved from the layers that
make it to the layers that read it: ``W₂ relu(W₁ x) = (W₂ S⁻¹) relu(S W₁ x)`` with a positive diagonal ``S``. The same
holds across pooling, padding with zeros and reshaping, and across additions if all terms are scaled alike. A
``Group`` is a set of tensors that have to be scaled together, with the layers that make them and the layers
that read them; if anything else makes or reads one, there is no group, and the reason is given.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, eq. 7–9.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, constant_tensor, label
from onnxopt.pass_base import Refuse
from onnxopt.passes.cleanup._linear import Layer, layer_behind, layer_of, per_channel
from onnxopt.passes.cleanup._operands import axes, input_at, is_read, normalised, padding, permutation, write_constant
from onnxopt.passes.quantize._grid import Array

_POINTWISE = frozenset({"Relu", "LeakyRelu", "PRelu", "Abs", "Identity"})
_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
_REDUCTIONS = frozenset({"ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum"})
_SUMS = frozenset({"Add", "Sub", "Sum", "Max", "Min"})
_BOUNDED = frozenset({"Sigmoid", "HardSigmoid", "Softmax", "Clip"})
_NORMS = frozenset({"LayerNormalization", "RMSNormalization"})


@dataclass(frozen=True)
class Place:
    """Where the channels lie in a tensor: along ``axis``, ``inner`` neighbours belonging to one channel."""

    axis: int
    inner: int = 1


@dataclass(frozen=True)
class Reader:
    """A layer that reads scaled channels, ``inner`` neighbouring inputs to a channel."""

    layer: Layer
    inner: int


@dataclass
class Group:
    """Tensors that must be scaled together, by one factor a channel."""

    channels: int
    layers: list[Layer] = field(default_factory=list)
    """The layers whose outputs are scaled."""
    affine: list[ir.Node] = field(default_factory=list)
    """Normalizations, and products and sums with a constant, whose parameters take the scale as well."""
    readers: list[Reader] = field(default_factory=list)

    def nodes(self) -> list[ir.Node]:
        """The nodes whose weights change."""
        return [*(layer.node for layer in self.layers), *self.affine, *(r.layer.node for r in self.readers)]

    def scale(self, by: Array, editor: Editor) -> None:
        """Multiply channel ``c`` by ``by[c]`` where it is made, and divide by it where it is read."""
        none = np.zeros(self.channels)
        for layer in self.layers:
            layer.put(*layer.fitted(*layer.scaled_out(by, none), ()), editor)
        for node in self.affine:
            for value in _parameters(node):
                array = editor.constant(value)
                assert array is not None
                write_constant(value, (array.astype(np.float64) * by.reshape(_like(array))).astype(array.dtype), editor)
        for reader in self.readers:
            spread = np.repeat(1 / by, reader.inner)
            layer = reader.layer
            layer.put(*layer.fitted(*layer.scaled_in(spread, np.zeros(spread.size)), ()), editor)


def _like(array: Array) -> tuple[int, ...]:
    return tuple(-1 if d != 1 else 1 for d in array.shape) if array.size > 1 else array.shape


def group_behind(value: ir.Value, channels: int, axis: int, editor: Editor) -> Group:
    """The group that ``value`` belongs to, whose channels lie along ``axis`` (counted from the front).

    Raises ``Refuse`` with the reason if its channels cannot be scaled.
    """
    found = _Closure(editor, channels)
    found.add(value, Place(axis))
    return found.run()


class _Closure:
    """Collects what is tied to a tensor, until nothing new turns up."""

    def __init__(self, editor: Editor, channels: int) -> None:
        self._editor = editor
        self._places: dict[ir.Value, Place] = {}
        self._todo: list[ir.Value] = []
        self._gates: list[ir.Node] = []
        self._group = Group(channels)

    def add(self, value: ir.Value | None, place: Place) -> None:
        """Note that ``value`` is scaled along ``place`` too."""
        if value is None or constant_tensor(value) is not None:
            raise Refuse("a constant is added to its channels")
        shape = self._editor.shape(value)
        if shape is None or place.axis >= len(shape) or shape[place.axis] != self._group.channels * place.inner:
            raise Refuse(f"the channels of {value.name!r} cannot be followed")
        if self._places.setdefault(value, place) != place:
            raise Refuse(f"the channels of {value.name!r} meet in two orders")
        if value not in self._todo:
            self._todo.append(value)

    def run(self) -> Group:
        for value in self._todo:  # a list that grows meanwhile
            self._made(value, self._places[value])
            if value.is_graph_output():
                raise Refuse(f"{value.name!r} is an output of its graph")
            for use in value.uses():
                self._read(use.node, use.idx, value, self._places[value])
        for node in self._gates:
            if sum(other in self._places for other in node.inputs if other is not None) != 1:
                raise Refuse(f"{label(node)!r} multiplies its channels with each other")
        if not self._group.readers:
            raise Refuse("no layer reads its channels")
        return self._group

    def _made(self, value: ir.Value, place: Place) -> None:
        node = value.producer()
        if node is None or node.domain:
            raise Refuse(f"{value.name!r} is not made by a layer")
        rank = self._editor.rank(value)
        assert rank is not None
        layer = layer_behind(value, self._editor)
        if layer is not None:
            self._check(layer, layer.channels_out, rank + layer.channel_axis == place.axis and place.inner == 1, value)
            if layer.node not in [other.node for other in self._group.layers]:
                self._group.layers.append(layer)
            return
        if node.op_type in _NORMS or (node.op_type == "Mul" and _has_vector(node)):
            self._affine(node, place, rank)
            return
        source = node.inputs[0] if node.inputs else None
        if node.op_type in _POINTWISE | _POOLS:
            self.add(source, place)
        elif node.op_type in _SUMS:
            self._sum(node, place, rank)
        elif node.op_type == "Mul":
            plain = [v for v in node.inputs if v is not None and not _is_gate(v)]
            if len(plain) != 1:
                raise Refuse(f"it is not clear which input of {label(node)!r} carries its scale")
            self.add(plain[0], place)
        elif source is None or source not in self._places:
            raise Refuse(f"{node.op_type} {label(node)!r} makes its channels")

    def _sum(self, node: ir.Node, place: Place, rank: int) -> None:
        """All terms of a sum are scaled alike, the constant ones too."""
        if any(constant_tensor(value) is not None for value in node.inputs):
            self._affine(node, place, rank)
        for value in node.inputs:
            if constant_tensor(value) is None:
                self.add(value, place)

    def _affine(self, node: ir.Node, place: Place, rank: int) -> None:
        name = label(node)
        if node.op_type in _NORMS and int(attribute(node, "axis", -1)) % rank != rank - 1:
            raise Refuse(f"{name!r} normalizes over several axes")
        for value in _parameters(node):
            array = self._editor.constant(value)
            if array is None or len(value.uses()) != 1 or value.is_graph_output():
                raise Refuse(f"the parameter {value.name!r} of {name!r} is shared, or not constant")
            along = per_channel(array, self._group.channels, rank, place.axis - rank)
            if along is None or array.size != along.size or place.inner != 1 or array.dtype != np.float32:
                raise Refuse(f"the parameter {value.name!r} of {name!r} has not one float32 a channel")
        if any(is_read(out) for out in node.outputs[1:]):
            raise Refuse(f"the statistics that {name!r} makes are read")
        if node not in self._group.affine:
            self._group.affine.append(node)

    def _check(self, layer: Layer, channels: int, in_place: bool, value: ir.Value) -> None:
        """Refuse a layer whose weights cannot take the scale."""
        name = label(layer.node)
        if not in_place or channels != self._group.channels * self._places[value].inner:
            raise Refuse(f"the channels of {value.name!r} are not those of {name!r}")
        bias = constant_tensor(layer.bias)
        weight = constant_tensor(layer.weight)
        if len(layer.weight.uses()) != 1 or (layer.bias is not None and len(layer.bias.uses()) != 1):
            raise Refuse(f"{name!r} shares its weights")
        if weight is None or weight.dtype != ir.DataType.FLOAT:
            raise Refuse(f"the weights of {name!r} are not float32")
        if bias is not None and bias.size != layer.channels_out:
            raise Refuse(f"{name!r} has not one bias a channel")

    def _read(self, node: ir.Node, at: int, value: ir.Value, place: Place) -> None:
        editor = self._editor
        if node.domain or node.graph is not value.graph:
            raise Refuse(f"{label(node)!r}, in another graph or domain, reads it")
        rank, out = editor.rank(value), node.outputs[0]
        layer = layer_of(node, editor) if at == 0 else None
        if layer is not None and rank is not None:
            whole = layer_behind_product(node, editor) or layer
            at_channels = rank + layer.channel_axis == place.axis and not attribute(node, "transA", 0)
            self._check(whole, layer.channels_in, at_channels, value)
            self._group.readers.append(Reader(whole, place.inner))
        elif at == 0 and node.op_type in _POINTWISE:
            self.add(out, place)
        elif node.op_type in _POOLS and place.axis == 1 and place.inner == 1:
            if any(is_read(other) for other in node.outputs[1:]):
                raise Refuse(f"{label(node)!r} also gives places")
            self.add(out, place)
        elif node.op_type in _SUMS and rank is not None:
            self._sum(node, place, rank)
            self.add(out, place)
        elif node.op_type == "Mul" or (node.op_type == "Div" and at == 0):
            self._gates.append(node)
            self.add(out, place)
        else:
            new = self._moved(node, at, value, place)
            if new is None:
                raise Refuse(f"{node.op_type} {label(node)!r} reads it")
            self.add(out, new)

    def _moved(self, node: ir.Node, at: int, value: ir.Value, place: Place) -> Place | None:
        """Where the channels are behind a node that moves them, or reduces other axes; ``None`` if unknown."""
        editor = self._editor
        if at != 0:
            return None
        rank = editor.rank(value)
        if node.op_type == "Transpose":
            perm = permutation(node, editor)
            return None if perm is None else Place(perm.index(place.axis), place.inner)
        if node.op_type == "Pad":
            found = padding(node, editor)
            zeros = found is not None and found.mode == "constant" and found.value == 0
            where = found.axes if found is not None else ()
            pads = {axis: found.before[i] or found.after[i] for i, axis in enumerate(where)} if found else {}
            return place if zeros and not pads.get(place.axis, 0) else None
        if node.op_type in _REDUCTIONS and rank is not None:
            written = axes(node, editor)
            reduced = normalised(written, rank) if written else None
            if reduced is None or place.axis in reduced:
                return None
            kept = bool(attribute(node, "keepdims", 1))
            return place if kept else Place(place.axis - sum(axis < place.axis for axis in reduced), place.inner)
        if node.op_type in ("Flatten", "Reshape", "Squeeze"):
            return self._reshaped(value, node.outputs[0], place)
        return None

    def _reshaped(self, value: ir.Value, out: ir.Value, place: Place) -> Place | None:
        """Channels that are followed by ``k`` elements each become ``k`` neighbours when these axes are merged."""
        before, after = self._editor.shape(value), self._editor.shape(out)
        if before is None or after is None:
            return None
        if any(not isinstance(d, int) for d in before[place.axis :]):
            return None
        tail = [d for d in before[place.axis + 1 :] if isinstance(d, int)]
        inner = place.inner * int(np.prod(tail, dtype=np.int64))
        head = [d for d in before[: place.axis] if d != 1]
        for axis, dim in enumerate(after):
            before_axis = [d for d in after[:axis] if d != 1]
            rest = [d for d in after[axis + 1 :] if d != 1]
            if len(before_axis) != len(head) or (head and None in (*head, *before_axis)):
                continue
            if dim == self._group.channels * inner and not rest:
                return Place(axis, inner)
            if dim == self._group.channels * place.inner and rest == [d for d in tail if d != 1]:
                return Place(axis, place.inner)
        return None


def layer_behind_product(node: ir.Node, editor: Editor) -> Layer | None:
    """A ``MatMul`` together with the ``Add`` that alone reads it, if that brings a bias."""
    uses = node.outputs[0].uses()
    if node.op_type != "MatMul" or len(uses) != 1:
        return None
    adding = next(iter(uses)).node
    return layer_behind(adding.outputs[0], editor) if adding.op_type == "Add" and not adding.domain else None


def _parameters(node: ir.Node) -> list[ir.Value]:
    """The constants of ``node`` that have to be scaled with its output."""
    if node.op_type in _NORMS:
        return [value for value in (input_at(node, 1), input_at(node, 2)) if value is not None]
    return [value for value in node.inputs if value is not None and constant_tensor(value) is not None]


def _has_vector(node: ir.Node) -> bool:
    """Whether ``Mul`` multiplies with a constant that is no scalar."""
    return any(tensor is not None and tensor.size > 1 for tensor in map(constant_tensor, node.inputs))


def _is_gate(value: ir.Value) -> bool:
    """Whether ``value`` lies between 0 and 1 or is constant, and so weighs what it is multiplied with."""
    producer = value.producer()
    return constant_tensor(value) is not None or (producer is not None and producer.op_type in _BOUNDED)
