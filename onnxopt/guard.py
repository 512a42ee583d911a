"""Keep what onnx-ir 1.1 drops or refuses.

onnx-ir has no place for sparse initializers, training information, map and opaque types (every
scikit-learn classifier ends in one), sparse attributes, and string lists that are not UTF-8. They
are taken out of the ``ModelProto`` before onnx-ir reads it and put back after it has written one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx

_MARK = "\x01onnxopt.set-aside."


@dataclass
class SetAside:
    """What was taken out of a model, by the name under which it goes back."""

    training_info: list[onnx.TrainingInfoProto] = field(default_factory=list)
    types: dict[str, onnx.TypeProto] = field(default_factory=dict)
    sparse: dict[str, onnx.SparseTensorProto] = field(default_factory=dict)
    attributes: dict[str, onnx.AttributeProto] = field(default_factory=dict)


def set_aside(model: onnx.ModelProto) -> SetAside:
    """Take out of ``model``, in place, what onnx-ir cannot hold.

    A sparse initializer leaves a dense stand-in of its type and shape but without data; the loader
    makes its value opaque to passes.
    """
    aside = SetAside(training_info=list(model.training_info))
    del model.training_info[:]
    for graph in graphs(model):
        for info in (*graph.input, *graph.output, *graph.value_info):
            if _has_map(info.type):
                aside.types[info.name] = onnx.TypeProto.FromString(info.type.SerializeToString())
                info.ClearField("type")
        for sparse in graph.sparse_initializer:
            aside.sparse[sparse.values.name] = sparse
            stand_in = graph.initializer.add(name=sparse.values.name, data_type=sparse.values.data_type)
            stand_in.dims.extend(sparse.dims)
        if graph.sparse_initializer:
            aside.sparse = {name: onnx.SparseTensorProto.FromString(s.SerializeToString())
                            for name, s in aside.sparse.items()}  # fmt: skip
            del graph.sparse_initializer[:]
    for node in nodes(model):
        for attribute in node.attribute:
            if _is_strange(attribute):
                mark = f"{_MARK}{len(aside.attributes)}"
                aside.attributes[mark] = onnx.AttributeProto.FromString(attribute.SerializeToString())
                name = attribute.name
                attribute.Clear()
                attribute.name, attribute.type, attribute.s = name, onnx.AttributeProto.STRING, mark.encode()
    return aside


def restore(model: onnx.ModelProto, aside: SetAside) -> None:
    """Put back, in place, whatever of ``aside`` still has a place in ``model``."""
    model.training_info.extend(aside.training_info)
    if aside.types or aside.sparse:
        for graph in graphs(model):
            for info in (*graph.input, *graph.output, *graph.value_info):
                if info.name in aside.types:
                    info.type.CopyFrom(aside.types[info.name])
            if aside.sparse:
                _restore_sparse(graph, aside)
    if aside.attributes:
        for node in nodes(model):
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.STRING and attribute.s.startswith(_MARK.encode()):
                    attribute.CopyFrom(aside.attributes[attribute.s.decode()])


def _restore_sparse(graph: onnx.GraphProto, aside: SetAside) -> None:
    dense = {tensor.name for tensor in graph.initializer}
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for inner in inner_graphs(graph):
        read.update(name for node in inner.node for name in node.input)
    wanted = (read & aside.sparse.keys()) - dense
    for name in sorted(wanted):
        graph.sparse_initializer.add().CopyFrom(aside.sparse[name])


def graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph and every graph inside it and inside the local functions."""
    yield model.graph
    yield from inner_graphs(model.graph)
    for function in model.functions:
        yield from inner_graphs(function)


def inner_graphs(holder: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.GraphProto]:
    """Every graph that stands in an attribute of a node of ``holder``, at any depth."""
    for node in holder.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield attribute.g
                yield from inner_graphs(attribute.g)
            elif attribute.type == onnx.AttributeProto.GRAPHS:
                for graph in attribute.graphs:
                    yield graph
                    yield from inner_graphs(graph)


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of the model: main graph, inner graphs, local functions."""
    for graph in graphs(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def _has_map(type_: onnx.TypeProto) -> bool:
    kind = type_.WhichOneof("value")
    if kind == "sequence_type":
        return _has_map(type_.sequence_type.elem_type)
    if kind == "optional_type":
        return _has_map(type_.optional_type.elem_type)
    return kind in ("map_type", "opaque_type")


_SPARSE = (onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.SPARSE_TENSORS)
_STRINGS = onnx.AttributeProto.STRINGS
_TYPES = (onnx.AttributeProto.TYPE_PROTO, onnx.AttributeProto.TYPE_PROTOS)


def _is_strange(attribute: onnx.AttributeProto) -> bool:
    kind = attribute.type
    if kind in _SPARSE:
        return not attribute.ref_attr_name
    if kind == _STRINGS:
        return not all(_is_utf8(s) for s in attribute.strings)
    if kind in _TYPES:
        return any(_has_map(t) for t in (attribute.tp, *attribute.type_protos))
    return False


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
