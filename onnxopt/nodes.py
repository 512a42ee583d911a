"""What is read off one node or one value: constants, attributes, labels, bodies, readers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of a constant (see ``Editor.constant``) without reading its data."""
    if value is None:
        return None
    node = value.producer()
    if node is None:
        if value.is_initializer() and not value.is_graph_input():
            return value.const_value
        return None
    if node.op_type != "Constant" or node.domain != "":
        return None
    for key, attribute in node.attributes.data.items():
        if attribute.is_ref():
            return None
        if key == "value":
            tensor: ir.TensorProtocol = attribute.value
            return tensor
        if key in _CONSTANT_TYPES and attribute.type != ir.AttributeType.UNDEFINED:
            return ir.Tensor(np.array(attribute.value, dtype=_CONSTANT_TYPES[key]))
    return None


_CONSTANT_TYPES = {
    "value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32
}  # fmt: skip


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """The value of an attribute, or ``default``; a reference to a function's attribute has no value: ``None``."""
    found = node.attributes.data.get(name)
    if found is None:
        return default
    return None if found.is_ref() else found.value


def label(node: ir.Node) -> str:
    """How reports and filters call a node: its name, else its first output, else its operator."""
    if node.name:
        return node.name
    return next((v.name for v in node.outputs if v.name), "") or node.op_type


def bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs in the attributes of ``node``."""
    for found in node.attributes.data.values():
        kind = found.type
        if kind is ir.AttributeType.GRAPH and not found.is_ref():
            yield found.as_graph()
        elif kind is ir.AttributeType.GRAPHS and not found.is_ref():
            yield from found.as_graphs()


def discard(graph: ir.Graph) -> None:
    """Take every node out of a body that has lost its place, so that none of them counts as a reader."""
    nodes = tuple(graph)
    for node in nodes:
        for at in range(len(node.inputs)):
            node.replace_input_with(at, None)
        for body in bodies(node):
            discard(body)
    graph.remove(nodes)


def sole_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads ``value``, if there is exactly one reading and it is no graph output."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    return next(iter(uses)).node
