"""What a model file says of itself: nodes, interface, size, metadata.

Written against raw protobuf and apart from the product, so that it counts the same way for everybody and
cannot share the product's mistakes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

Dim = int | str | None
"""A declared dimension: a number, a symbol, or nothing."""


@dataclass(frozen=True)
class Port:
    """One input or output of the graph as declared."""

    name: str
    elem_type: int
    """Zero for a sequence, a map or an optional."""
    dims: tuple[Dim, ...] | None
    kind: str = "tensor"
    """For what is no plain tensor: its type, spelled out."""

    @property
    def rank(self) -> int | None:
        return None if self.dims is None else len(self.dims)


def load(path: Path) -> ModelProto:
    """The model without its external data: structure is all that this module reads."""
    return onnx.load(str(path), load_external_data=False)


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def walk(nodes: Any) -> Iterator[NodeProto]:
    """Every node, with those in the bodies of If, Loop and Scan."""
    for node in nodes:
        yield node
        for body in subgraphs(node):
            yield from walk(body.node)


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and every body below it."""
    yield graph
    for node in graph.node:
        for body in subgraphs(node):
            yield from graphs(body)


def used_functions(model: ModelProto) -> list[FunctionProto]:
    """Local functions that are reachable from the main graph; an unused one costs nobody anything at
    run time."""
    by_key = {(f.domain, f.name, f.overload): f for f in model.functions}
    found: dict[tuple[str, str, str], FunctionProto] = {}
    todo = list(walk(model.graph.node))
    while todo:
        node = todo.pop()
        key = (node.domain, node.op_type, node.overload)
        if key in by_key and key not in found:
            found[key] = by_key[key]
            todo.extend(walk(by_key[key].node))
    return list(found.values())


def all_nodes(model: ModelProto) -> list[NodeProto]:
    nodes = list(walk(model.graph.node))
    for function in used_functions(model):
        nodes.extend(walk(function.node))
    return nodes


def count_nodes(model: ModelProto) -> int:
    """Nodes of the main graph, of every body and of used local functions; ``Constant`` is data, like
    an initializer."""
    return sum(node.op_type != "Constant" for node in all_nodes(model))


def op_counts(model: ModelProto) -> dict[str, int]:
    counts = Counter(f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in all_nodes(model))
    return dict(sorted(counts.items()))


def external_files(path: Path) -> list[Path]:
    """The data files that a model refers to."""
    names: set[str] = set()
    model = load(path)
    for graph in graphs(model.graph):
        for tensor in graph.initializer:
            names.update(e.value for e in tensor.external_data if e.key == "location")
    for node in all_nodes(model):
        for attribute in node.attribute:
            names.update(e.value for e in attribute.t.external_data if e.key == "location")
    return [path.parent / name for name in sorted(names)]


def file_size(path: Path) -> int:
    return path.stat().st_size + sum(f.stat().st_size for f in external_files(path) if f.exists())


def port(value: ValueInfoProto) -> Port:
    if value.type.WhichOneof("value") not in (None, "tensor_type"):
        return Port(value.name, 0, None, _type_text(value.type))
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return Port(value.name, tensor.elem_type, None)
    return Port(value.name, tensor.elem_type, tuple(_dim(d) for d in tensor.shape.dim))


def _type_text(type_: Any) -> str:
    """The nesting of sequences, maps and optionals; shapes inside are hints that nobody relies on."""
    kind = type_.WhichOneof("value")
    inner = getattr(type_, kind)
    if kind in ("tensor_type", "sparse_tensor_type"):
        return f"{kind}({inner.elem_type})"
    if kind == "map_type":
        return f"{kind}({inner.key_type}, {_type_text(inner.value_type)})"
    return f"{kind}({_type_text(inner.elem_type)})" if hasattr(inner, "elem_type") else str(kind)


def _dim(dim: Any) -> Dim:
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    return str(dim.dim_param) or None


def inputs(model: ModelProto) -> list[Port]:
    """What a caller must feed: graph inputs that no initializer gives a default."""
    defaults = {t.name for t in model.graph.initializer}
    return [port(v) for v in model.graph.input if v.name not in defaults]


def outputs(model: ModelProto) -> list[Port]:
    return [port(v) for v in model.graph.output]


def overridable(model: ModelProto) -> set[str]:
    """Initializers that a caller may override since they are graph inputs too (optional from IR
    version 4 on)."""
    return {t.name for t in model.graph.initializer} & {v.name for v in model.graph.input}


@dataclass(frozen=True)
class Metadata:
    """What a careful tool leaves alone although no output depends on it."""

    model: dict[str, str] = field(default_factory=dict)
    props: dict[str, str] = field(default_factory=dict)
    node_props: dict[str, str] = field(default_factory=dict)
    """By the first output of the node: names of nodes are often missing."""
    node_docs: dict[str, str] = field(default_factory=dict)
    values: frozenset[str] = frozenset()
    initializers: frozenset[str] = frozenset()
    node_names: frozenset[str] = frozenset()


def metadata(model: ModelProto) -> Metadata:
    nodes = [n for n in all_nodes(model) if n.op_type != "Constant"]
    graph = model.graph
    said = {
        "producer_name": model.producer_name,
        "producer_version": model.producer_version,
        "domain": model.domain,
        "model_version": str(model.model_version or ""),
        "doc_string": model.doc_string,
        "graph name": graph.name,
        "graph doc_string": graph.doc_string,
    }
    said |= {f"doc_string of {v.name}": v.doc_string for v in (*graph.input, *graph.output)}
    tensors: list[TensorProto] = [t for g in graphs(graph) for t in g.initializer]
    return Metadata(
        model={k: v for k, v in said.items() if v},
        props={p.key: p.value for p in model.metadata_props},
        node_props={n.output[0]: _props(n) for n in nodes if n.output and n.metadata_props},
        node_docs={n.output[0]: n.doc_string for n in nodes if n.output and n.doc_string},
        values=frozenset(o for n in nodes for o in n.output if o),
        initializers=frozenset(t.name for t in tensors),
        node_names=frozenset(n.name for n in nodes if n.name),
    )


def _props(node: NodeProto) -> str:
    return "\n".join(f"{p.key}={p.value}" for p in sorted(node.metadata_props, key=lambda p: p.key))


@dataclass(frozen=True)
class Kept:
    """How much of the original's metadata a candidate still has."""

    lost_model_fields: list[str]
    lost_props: list[str]
    node_props: float | None
    """Of surviving values whose node had metadata: the share whose node still has the same; None if
    none had."""
    node_docs: float | None
    value_names: float
    """Share of the candidate's values that the original knew by the same name."""
    initializer_names: float
    node_names: float | None


def kept(original: ModelProto, candidate: ModelProto) -> Kept:
    before, after = metadata(original), metadata(candidate)
    return Kept(
        lost_model_fields=[k for k, v in before.model.items() if after.model.get(k) != v],
        lost_props=[k for k, v in before.props.items() if after.props.get(k) != v],
        node_props=_survivors(before.node_props, after.node_props, after.values),
        node_docs=_survivors(before.node_docs, after.node_docs, after.values),
        value_names=_share(after.values, before.values),
        initializer_names=_share(after.initializers, before.initializers | before.values | _constants(original)),
        node_names=_share(after.node_names, before.node_names) if before.node_names else None,
    )


def _constants(model: ModelProto) -> frozenset[str]:
    """A ``Constant`` may become an initializer under the name of its value."""
    return frozenset(o for n in all_nodes(model) if n.op_type == "Constant" for o in n.output)


def _survivors(before: dict[str, str], after: dict[str, str], alive: frozenset[str]) -> float | None:
    names = [n for n in before if n in alive]
    return sum(after.get(n) == before[n] for n in names) / len(names) if names else None


def _share(part: frozenset[str], whole: frozenset[str]) -> float:
    return len(part & whole) / len(part) if part else 1.0
