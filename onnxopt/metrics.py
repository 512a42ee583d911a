"""Measures of a model: what it holds, what it costs, how near it is to another."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxopt import guard
from onnxopt.model import source_of
from onnxopt.traverse import tensors


def reachable_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph, the local functions that it uses, and every body inside these."""
    yield model.graph
    yield from model.graph.subgraphs()
    for function in used_functions(model):
        yield function.graph
        yield from function.graph.subgraphs()


def used_functions(model: ir.Model) -> list[ir.Function]:
    """The local functions that the main graph calls, directly or through others."""
    found: dict[ir.OperatorIdentifier, ir.Function] = {}
    todo = [model.graph]
    while todo:
        for node in todo.pop().all_nodes():
            identifier = node.op_identifier()
            function = model.functions.get(identifier)
            if function is not None and identifier not in found:
                found[identifier] = function
                todo.append(function.graph)
    return list(found.values())


def operators(model: ir.Model) -> Counter[str]:
    """How often each operator occurs, at any depth; ``domain::name`` outside the standard domain.

    ``Constant`` nodes are not counted: they are data, like initializers.
    """
    return Counter(
        f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        for graph in reachable_graphs(model)
        for node in graph
        if node.op_type != "Constant" or node.domain
    )


def nodes(model: ir.Model) -> int:
    """The number of nodes of the main graph, every reachable body and used local functions."""
    return operators(model).total()


def parameters(model: ir.Model) -> int:
    """The number of elements of all tensors stored in the model, one that is shared counted once."""
    sparse = sum(int(math.prod(tensor.values.dims)) for tensor in _sparse(model))
    dense = sum(int(tensor.size) for tensor in _stored(model))
    return dense + sparse


def weights(model: ir.Model) -> dict[str, int]:
    """The bytes of all stored tensors by element type, largest first."""
    found: Counter[str] = Counter()
    for tensor in _stored(model):
        found[tensor.dtype.name] += tensor.nbytes
    for sparse in _sparse(model):
        found["sparse"] += sparse.ByteSize()
    return dict(sorted(found.items(), key=lambda entry: (-entry[1], entry[0])))


def external_files(model: ir.Model) -> dict[str, int]:
    """The files besides the model's own that hold its weights, with their sizes in bytes."""
    source = source_of(model)
    own = source.path.resolve() if source is not None else None
    files = {tensor.path: None for tensor in tensors(model) if isinstance(tensor, ir.ExternalTensor)}
    return {str(file): _size(file) for file in files if own is None or str(file) != str(own)}


def file_bytes(model: ir.Model) -> int | None:
    """The size of the file that the model was loaded from, external data included; ``None`` if from none."""
    source = source_of(model)
    return None if source is None else source.path.stat().st_size + sum(external_files(model).values())


def sqnr(expected: Sequence[np.ndarray[Any, Any]], got: Sequence[np.ndarray[Any, Any]]) -> float:
    """Signal to quantization noise over all samples, in dB: ``10·log10(Σ‖y‖² / Σ‖y−ŷ‖²)``.

    Infinite where nothing differs; arrays of shapes that do not match count as pure noise (−inf).
    """
    signal = noise = 0.0
    for x, y in zip(expected, got, strict=True):
        if x.shape != y.shape:
            return float("-inf")
        a, b = x.astype(np.float64), y.astype(np.float64)
        signal += float(np.sum(a * a))
        noise += float(np.sum((a - b) ** 2))
    if noise == 0.0:
        return float("inf")
    return 10.0 * float(np.log10(signal / noise)) if signal > 0 else float("-inf")


def fidelity(
    names: Sequence[str], expected: Sequence[Sequence[Any]], got: Sequence[Sequence[Any]]
) -> dict[str, float]:
    """The SQNR in dB of each numeric output over all runs: ``expected[run][output]`` against ``got``."""
    found: dict[str, float] = {}
    for at, name in enumerate(names):
        pairs = list(_numeric_pairs((run[at] for run in expected), (run[at] for run in got)))
        if pairs:
            found[name] = sqnr([a for a, _ in pairs], [b for _, b in pairs])
    return found


def _numeric_pairs(
    expected: Iterator[Any], got: Iterator[Any]
) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    for x, y in zip(expected, got, strict=True):
        if isinstance(x, np.ndarray) and isinstance(y, np.ndarray) and x.dtype.kind in "fiub":
            yield x, y


def _stored(model: ir.Model) -> list[ir.TensorProtocol]:
    return list({id(tensor): tensor for tensor in tensors(model)}.values())


def _sparse(model: ir.Model) -> Iterator[onnx.SparseTensorProto]:
    for entry in model.graph.meta.values():
        if isinstance(entry, guard.SetAside):
            yield from entry.sparse.values()


def _size(file: str | os.PathLike[str]) -> int:
    return os.stat(file).st_size
