"""Run a large model without its large weights.

Verification compares two models that share most of their weights, unchanged and in the same place of the same
file. What such a weight holds does not matter for the question whether the graphs around it compute the same,
so for the time of the comparison both models get the same matrix of rank one in its place, ``u·vᵀ``, as two
thin factors: ``x @ w`` becomes ``(x @ u) @ vᵀ``. Memory and time then follow the size of what was changed, not
of the model. Weights that a pass touched, and weights read by anything but MatMul, Gemm and Gather, are real.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxopt.guard import inner_graphs
from onnxopt.runtime import Snapshot

MIN_BYTES = 1024 * 1024
"""Smaller weights are not worth it."""

_FLOATS: dict[int, np.dtype[np.floating[Any]]] = {
    onnx.TensorProto.FLOAT: np.dtype(np.float32),
    onnx.TensorProto.DOUBLE: np.dtype(np.float64),
    onnx.TensorProto.FLOAT16: np.dtype(np.float16),
}


@dataclass(frozen=True)
class Weight:
    """A matrix in a file: equal weights hold the same data."""

    location: str
    offset: int
    length: int
    dims: tuple[int, int]
    data_type: int


def replaceable(snapshot: Snapshot) -> frozenset[Weight]:
    """The large weights of a model that stand-ins can take the place of."""
    return frozenset(_replaceable(onnx.ModelProto.FromString(snapshot.content)).values())


def with_stand_ins(snapshot: Snapshot, weights: Collection[Weight]) -> Snapshot:
    """The model with rank-one matrices in place of ``weights``; equal weights get equal ones."""
    if not weights:
        return snapshot
    model = onnx.ModelProto.FromString(snapshot.content)
    chosen = {name: weight for name, weight in _replaceable(model).items() if weight in weights}
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in chosen]
    factors = [factor for name, weight in chosen.items() for factor in _factors(name, weight)]
    nodes = [new for node in model.graph.node for new in _rewritten(node, chosen)]
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend([*kept, *factors])
    graph.node.extend(nodes)
    model.graph.CopyFrom(graph)
    return Snapshot(model.SerializeToString(), snapshot.directory)


def _replaceable(model: onnx.ModelProto) -> dict[str, Weight]:
    """By name, the weights that only nodes with a rule read."""
    found: dict[str, Weight] = {}
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL or tensor.data_type not in _FLOATS:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        length = int(entries.get("length", 0))
        if len(tensor.dims) == 2 and length >= MIN_BYTES:
            dims = tensor.dims[0], tensor.dims[1]
            found[tensor.name] = Weight(
                entries["location"], int(entries.get("offset", 0)), length, dims, tensor.data_type
            )
    readings = Counter(name for node in model.graph.node for name in node.input if name in found)
    readings.update(name for inner in inner_graphs(model.graph) for node in inner.node for name in node.input)
    readings.update(value.name for value in (*model.graph.output, *model.graph.input))
    known: Counter[str] = Counter()
    for node in model.graph.node:
        rule = _RULES.get(node.op_type) if node.domain == "" and _has_default_axis(node) else None
        places = rule.places if rule is not None else ()
        weights = [name for at in places for name in node.input[at : at + 1] if name in found]
        if len(weights) == 1:
            known.update(weights)
    return {name: weight for name, weight in found.items() if readings[name] == known[name]}


def _has_default_axis(node: onnx.NodeProto) -> bool:
    return node.op_type != "Gather" or all(a.i == 0 for a in node.attribute if a.name == "axis")


def _factors(name: str, weight: Weight) -> list[onnx.TensorProto]:
    rng = np.random.default_rng(zlib.crc32(f"{weight.location}:{weight.offset}".encode()))
    rows, columns = weight.dims
    dtype = _FLOATS[weight.data_type]
    left = (rng.standard_normal((rows, 1)) / np.sqrt(rows)).astype(dtype)
    right = rng.standard_normal((1, columns)).astype(dtype)
    return [numpy_helper.from_array(left, f"{name}/u"), numpy_helper.from_array(right, f"{name}/v")]


def _rewritten(node: onnx.NodeProto, chosen: dict[str, Weight]) -> list[onnx.NodeProto]:
    rule = _RULES.get(node.op_type)
    if rule is None or node.domain != "":
        return [node]
    for at in rule.places:
        for name in node.input[at : at + 1]:
            if name not in chosen:
                continue
            return rule.split(node, at, f"{name}/u", f"{name}/v", f"{node.output[0]}/thin")
    return [node]


def _split_matmul(node: onnx.NodeProto, at: int, u: str, v: str, thin: str) -> list[onnx.NodeProto]:
    a, b = node.input
    if at == 1:
        return [helper.make_node("MatMul", [a, u], [thin]), helper.make_node("MatMul", [thin, v], node.output)]
    return [helper.make_node("MatMul", [v, b], [thin]), helper.make_node("MatMul", [u, thin], node.output)]


def _split_gemm(node: onnx.NodeProto, at: int, u: str, v: str, thin: str) -> list[onnx.NodeProto]:
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    trans_b = given.get("transB", 0)
    first, second = (v, u) if trans_b else (u, v)
    return [
        helper.make_node(
            "Gemm", [node.input[0], first], [thin],
            alpha=given.get("alpha", 1.0), transA=given.get("transA", 0), transB=trans_b,
        ),
        helper.make_node(
            "Gemm", [thin, second, *node.input[2:]], node.output, beta=given.get("beta", 1.0), transB=trans_b
        ),
    ]  # fmt: skip


def _split_gather(node: onnx.NodeProto, at: int, u: str, v: str, thin: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Gather", [u, node.input[1]], [thin], axis=0),
        helper.make_node("MatMul", [thin, v], node.output),
    ]


@dataclass(frozen=True)
class _Rule:
    places: tuple[int, ...]
    """The inputs that may be a weight."""
    split: Callable[[onnx.NodeProto, int, str, str, str], list[onnx.NodeProto]]


_RULES = {
    "MatMul": _Rule((1, 0), _split_matmul),
    "Gemm": _Rule((1,), _split_gemm),
    "Gather": _Rule((0,), _split_gather),
}
