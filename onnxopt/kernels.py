"""How long each kernel of a model takes in ONNX Runtime."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxopt.runtime import Feeds, Session, Snapshot
from onnxopt.traverse import graphs

MARK = re.compile(r"@(\d+)@")
"""What a node is called in a model whose kernels are timed: by its place among all nodes."""
_BLOCKED = "_nchwc"
"""Convolutions in ONNX Runtime's blocked layout are called after their outputs."""
_END = "_kernel_time"
_RUNS = 6
"""So many runs are enough, however short they are."""


@dataclass(frozen=True)
class KernelTime:
    """One node of the graph that ONNX Runtime has made of the model."""

    name: str
    """Begins with the name of the node that it was made of; what was fused bears the name of one of them."""
    op: str
    seconds: float
    """For one run: the mean over the faster half of all runs, for something else slows the others down."""
    elements: int
    """Of its first output."""


def kernel_times(snapshot: Snapshot, feeds: Feeds, *, seconds: float = 0.1, threads: int = 1) -> list[KernelTime]:
    """The time of each kernel for one set of inputs, measured for about ``seconds`` and at least four runs.

    Raises ``EngineError`` if the model does not run.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = Session(snapshot, optimize=True, threads=threads, profile=Path(folder) / "kernels")
        session.run(feeds)
        end, runs = time.perf_counter() + seconds, 0
        while runs < 4 or (time.perf_counter() < end and runs < _RUNS):
            session.run(feeds)
            runs += 1
        events = json.loads(session.end_profiling().read_text(encoding="utf-8"))
    durations: dict[tuple[str, str], list[float]] = {}
    elements: dict[tuple[str, str], int] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_END):
            key = event["name"].removesuffix(_END), event["args"]["op_name"]
            durations.setdefault(key, []).append(event["dur"] * 1e-6)
            elements[key] = _elements(event["args"].get("output_type_shape"))
    found = []
    for (name, op), each in durations.items():
        faster = np.sort(each)[: (len(each) + 1) // 2]
        found.append(KernelTime(name, op, float(faster.mean()) * len(each) / (runs + 1), elements[name, op]))
    return found


def mark(model: ir.Model) -> None:
    """Call each node by its place, so that its kernels can be told."""
    for at, node in enumerate(node for graph in graphs(model) for node in graph):
        node.name = f"@{at}@"


def places(model: ir.Model) -> dict[str, int]:
    """The place of the node that makes each tensor."""
    return {
        output.name or "": at
        for at, node in enumerate(node for graph in graphs(model) for node in graph)
        for output in node.outputs
    }


def by_place(times: Iterable[KernelTime], of: dict[str, int]) -> dict[int, list[KernelTime]]:
    """The kernels of each node of a marked model, by its place; ``of`` is that of the node that makes each tensor."""
    found: dict[int, list[KernelTime]] = {}
    for each in times:
        if (marked := MARK.search(each.name)) is not None:  # a fused one is called "fused @1@"
            found.setdefault(int(marked.group(1)), []).append(each)
        elif (at := of.get(each.name.removesuffix(_BLOCKED))) is not None:
            found.setdefault(at, []).append(each)
    return found


def _elements(outputs: object) -> int:
    if not isinstance(outputs, list) or not outputs or not isinstance(outputs[0], dict):
        return 0
    dims: object = next(iter(outputs[0].values()), [])
    return int(np.prod(dims, dtype=np.int64)) if isinstance(dims, list) else 0
