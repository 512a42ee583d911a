"""What removing channels must equal: the same model with zeros in their place.

Two ways to put zeros, apart from the code that removes: in the slices of every member, or in the activations
wherever a group says that its channels appear.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import onnx_ir as ir

from onnxopt.channels import ChannelGraph, Group, Unit
from onnxopt.graph import Editor, constant_tensor
from onnxopt.model import copy, from_proto, to_proto
from onnxopt.runtime import Feeds
from onnxopt.traverse import graphs
from tests.support import assert_same_outputs, outputs

Choice = Mapping[int, Sequence[int]]
"""Group → the channels of it that are removed."""


def groups(model: ir.Model, unit: Unit = "channel") -> tuple[Group, ...]:
    """The groups of a model that stays as it is."""
    return ChannelGraph(Editor(copy(model)), unit).groups


def free(model: ir.Model, unit: Unit = "channel") -> str:
    """Of each free group, in order, the first member and the size, as ``"name[axis]:size"``."""
    return " ".join(f"{_members(group)[0]}:{group.size}" for group in groups(model, unit) if not group.frozen)


def members(model: ir.Model, unit: Unit = "channel") -> list[set[str]]:
    """The members of each free group, as ``"name[axis]"``."""
    return [set(_members(group)) for group in groups(model, unit) if not group.frozen]


def reasons(model: ir.Model, unit: Unit = "channel") -> dict[str, str]:
    """Why each member of frozen groups is frozen."""
    return {name: "; ".join(group.frozen) for group in groups(model, unit) if group.frozen for name in _members(group)}


def _members(group: Group) -> list[str]:
    return [f"{member.value.name}[{member.axis}]" for member in group.members]


def draw(found: Sequence[Group], seed: int, share: float = 0.5, *, exact: bool = False) -> dict[int, list[int]]:
    """A random share of the channels of each free group, but for one channel, or of those that are exact."""
    rng = np.random.default_rng(seed)
    chosen = {}
    for group in found:
        count = min(max(1, round(group.size * share)), group.size - 1)
        channels = sorted(rng.permutation(group.size)[:count].tolist())
        if not group.frozen and (group.exact or not exact):
            chosen[group.number] = channels
    return chosen


def remove(model: ir.Model, choice: Choice, unit: Unit = "channel") -> ir.Model:
    """A copy without these channels, which is a valid model."""
    result = copy(model)
    ChannelGraph(Editor(result), unit).remove(choice)
    onnx.shape_inference.infer_shapes(to_proto(result), check_type=True, strict_mode=True)
    return result


def zero_members(model: ir.Model, found: Sequence[Group], choice: Choice, roles: str = "in out") -> ir.Model:
    """A copy with zeros in the slices of all members of these channels."""
    result = copy(model)
    constants = {value.name: value for value in _values(result) if constant_tensor(value) is not None}
    for number, channels in choice.items():
        for member in (member for member in found[number].members if member.role in roles.split()):
            value = constants[member.value.name]
            tensor = constant_tensor(value)
            assert tensor is not None
            array = tensor.numpy().copy()
            array[(slice(None),) * member.axis + (member.index[np.array(channels)].reshape(-1),)] = 0
            _set(value, ir.Tensor(array, dtype=tensor.dtype, name=value.name))
    return result


def _set(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    node = value.producer()
    if node is None:
        value.const_value = tensor
    else:
        node.attributes.clear()
        node.attributes["value"] = ir.AttrTensor("value", tensor)


def zero_activations(model: ir.Model, found: Sequence[Group], choice: Choice, feeds: Feeds) -> ir.Model:
    """A copy in which every computed value holds zeros wherever a group says that these channels are; so do the
    weights that read them, which for what goes on inside an LSTM is the only way."""
    result = zero_members(model, found, choice, "in")
    editor, shapes = Editor(result), _shapes(model, feeds)
    values = {value.name: value for value in _values(result)}
    masks: dict[ir.Value, list[np.ndarray[Any, Any]]] = {}
    for number, channels in choice.items():
        for value, axis, index in found[number].outputs:
            mine = values[value.name]
            shape = shapes.get(mine.name) or editor.static_shape(mine)
            if shape is None:
                assert mine.graph is not result.graph, "only in bodies may sizes be unknown"
                continue
            mask = np.ones(shape[axis], dtype=np.bool_)
            mask[index[np.array(channels)].reshape(-1)] = False
            masks.setdefault(mine, []).append(mask.reshape([-1 if a == axis else 1 for a in range(len(shape))]))
    for value, own in masks.items():
        _mask(value, own, editor)
    return result


def _shapes(model: ir.Model, feeds: Feeds) -> dict[str | None, tuple[int, ...]]:
    """The shapes that the values of the main graph have for these inputs."""
    proto = to_proto(model)
    names = [name for node in proto.graph.node for name in node.output if name]
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    found = zip(names, outputs(from_proto(proto), feeds), strict=True)
    return {name: array.shape for name, array in found if isinstance(array, np.ndarray)}


def _mask(value: ir.Value, masks: Sequence[np.ndarray[Any, Any]], editor: Editor) -> None:
    """Let all readers of a value read zeros where one of the masks says so."""
    node, dtype = value.producer(), editor.dtype(value) or ir.DataType.FLOAT  # None: inference does not know it
    assert node is not None and node.graph is not None  # noqa: PT018
    readers, last = [*value.uses()], value
    zero = editor.add_constant(node, np.zeros((), dtype.numpy()), "zero")
    for mask in masks:
        by_number = editor.opset(node) < 9  # which has no Where
        constant = editor.add_constant(node, mask.astype(dtype.numpy()) if by_number else mask, "mask")
        if by_number or dtype == ir.DataType.BOOL:
            masked = ir.node("Mul" if by_number else "And", [constant, last])
        else:
            masked = ir.node("Where", [constant, last, zero])
        masked.outputs[0].name = editor.fresh("masked")
        node.graph.insert_after(node, masked)
        node, last = masked, masked.outputs[0]
    for reader in readers:
        reader.node.replace_input_with(reader.idx, last)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in graphs(model):
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs


def some_feeds(model: ir.Model) -> dict[str, Any]:
    """Inputs for a small graph, whose dynamic dims become 2."""
    rng = np.random.default_rng(1)
    shapes = {v.name: [d if isinstance(d, int) else 2 for d in v.shape or ()] for v in model.graph.inputs}
    return {
        v.name or "": rng.integers(0, 2, shapes[v.name]).astype(v.dtype.numpy())
        for v in model.graph.inputs
        if v.dtype is not None
    }


def assert_removal_is_zeroing(
    model: ir.Model,
    seed: int = 0,
    *,
    unit: Unit = "channel",
    share: float = 0.5,
    feeds: Mapping[str, Any] | None = None,
    by_members: bool = True,
) -> int:
    """Removing channels of all exact groups at once equals zeros in their place; how many were removed.

    Zeros in the members are not the same where an activation that does not keep zero, like Sigmoid, is read by no
    weight; then ``by_members`` is to be false.
    """
    found = groups(model, unit)
    choice = draw(found, seed, share, exact=True)
    if choice:
        small, feeds = remove(model, choice, unit), feeds or some_feeds(model)
        assert_same_outputs(zero_activations(model, found, choice, feeds), small, feeds)
        if by_members:
            assert_same_outputs(zero_members(model, found, choice), small, feeds)
    return sum(map(len, choice.values()))
