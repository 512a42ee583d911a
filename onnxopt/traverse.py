"""Walk over a model: its graphs at every depth, and the tensors in them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TypeGuard

import onnx_ir as ir

from onnxopt.nodes import bodies


def is_external(tensor: ir.TensorProtocol) -> TypeGuard[ir.ExternalTensor]:
    """Whether the data of ``tensor`` are in a file. The classes of onnx-ir derive from a protocol, for which
    ``isinstance`` takes forty times as long, and this is asked of every tensor again and again."""
    return issubclass(type(tensor), ir.ExternalTensor)


def graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Every graph of the model: the main one, local functions, and the bodies inside all of these."""
    for holder in (model.graph, *(f.graph for f in model.functions.values())):
        yield holder
        yield from _inner(holder)


def _inner(graph: ir.Graph) -> Iterator[ir.Graph]:
    for node in graph:
        for attribute in node.attributes.data.values():  # the plain dict: this runs over every node all the time
            kind = attribute.type
            if (kind is not _GRAPH and kind is not _GRAPHS) or attribute.is_ref():
                continue
            for body in (attribute.value,) if kind is _GRAPH else tuple(attribute.value):
                yield body
                yield from _inner(body)


_GRAPH, _GRAPHS = ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS
_TENSOR, _TENSORS = ir.AttributeType.TENSOR, ir.AttributeType.TENSORS
_HOLDERS = frozenset({_GRAPH, _GRAPHS, _TENSOR, _TENSORS})


def weight_bytes(model: ir.Model) -> int:
    """Size of all initializers and constant attributes in bytes."""
    return sum(tensor.nbytes for tensor in tensors(model))


def tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every tensor stored in the model: initializers and node attributes, at any depth."""
    for holder in (model.graph, *(f.graph for f in model.functions.values())):
        yield from _tensors(holder)


def _tensors(graph: ir.Graph) -> Iterator[ir.TensorProtocol]:
    yield from (v.const_value for v in graph.initializers.values() if v.const_value is not None)
    for node in graph:
        for attribute in node.attributes.data.values():
            kind = attribute.type
            if kind not in _HOLDERS or attribute.is_ref():
                continue
            for held in (attribute.value,) if kind is _TENSOR or kind is _GRAPH else tuple(attribute.value):
                if kind is _TENSOR or kind is _TENSORS:
                    yield held
                else:
                    yield from _tensors(held)


def depths(model: ir.Model, counted: Collection[ir.Node]) -> dict[ir.Value, int]:
    """How many of the ``counted`` nodes lie on the longest way to each value, the one that makes it included."""
    found: dict[ir.Value, int] = {}

    def visit(graph: ir.Graph) -> None:
        for node in graph:
            before = [found.get(value, 0) for value in node.inputs if value is not None]
            for body in bodies(node):
                visit(body)
                before += [found.get(value, 0) for value in body.outputs]
            depth = max(before, default=0) + (node in counted)
            found.update((output, depth) for output in node.outputs)

    for holder in (model.graph, *(function.graph for function in model.functions.values())):
        visit(holder)
    return found
