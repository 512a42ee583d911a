"""What there is to know of a model, and how two models differ: plain data, to print or to write as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt import metrics
from onnxopt.errors import EngineError
from onnxopt.graph import Editor, bodies
from onnxopt.macs import Macs, count_macs
from onnxopt.model import copy, source_of
from onnxopt.pass_base import Pass
from onnxopt.pipeline import PassManager
from onnxopt.probes import interface_inputs
from onnxopt.runtime import Feeds, Ratio, Session, Snapshot, latency_ratio
from onnxopt.verify import Reference, movement


@dataclass
class Value:
    """An input or output."""

    name: str
    type: str
    shape: list[int | str] | None
    """Sizes, and symbols of dynamic dims (``?`` if nameless); ``None`` if not even the rank is known."""

    def __str__(self) -> str:
        return f"{self.name} {self.type}" + ("" if self.shape is None else str(self.shape).replace("'", ""))


@dataclass
class Costs:
    """The figures that optimizing is about."""

    nodes: int
    operators: dict[str, int]
    parameters: int
    macs: int | None
    """Multiply–accumulates at the sizes of ``macs_at``; ``None`` if the shapes are not known."""
    macs_at: dict[str, int]
    macs_unknown: list[str]
    """Nodes left out of ``macs`` because their shapes are not known."""
    macs_counted_once: list[str]
    """Loops of unknown length, whose bodies count once in ``macs``."""
    weight_bytes: dict[str, int]
    file_bytes: int | None


@dataclass
class ChannelGroup:
    """Channels that layers make, and that can only be removed together with all that belongs to them."""

    node: str
    channels: int
    constants: list[str]
    """The constants that have slices of them, with the axis: ``conv1.weight[0]``."""
    exact: bool
    """Whether removing a channel equals reading zeros in its place; not so where a normalization goes over them."""
    frozen: list[str]
    """Why none can be removed; empty if they can."""


@dataclass
class Inspection:
    """A model described."""

    path: str
    costs: Costs
    inputs: list[Value]
    outputs: list[Value]
    opsets: dict[str, int]
    ir_version: int
    producer: str
    metadata: list[str]
    subgraphs: int
    subgraph_depth: int
    functions: dict[str, int]
    """Local functions, with the number of their nodes."""
    external_files: dict[str, int]
    quantization: list[str]
    """Which marks of quantization there are: ``QDQ``, ``integer operators``, ``weight-only``."""
    cleanup: dict[str, int] | None = None
    """What the recipe ``cleanup`` would leave: ``nodes`` before and ``after``; ``None`` if not tried."""
    groups: list[ChannelGroup] | None = None
    """The groups of channels; ``None`` if not asked for."""


def channel_groups(model: ir.Model) -> list[ChannelGroup]:
    """The groups of channels that layers make, in the order of the graph."""
    from onnxopt.channels import ChannelGraph

    return [
        ChannelGroup(
            group.name,
            group.size,
            [f"{member.value.name}[{member.axis}]" for member in group.members],
            group.exact,
            list(group.frozen),
        )
        for group in ChannelGraph(Editor(copy(model))).groups
        if group.makers
    ]


def costs(model: ir.Model, dims: Mapping[str, int] | None = None) -> Costs:
    """The figures of a model; ``dims`` sets dynamic dims of the inputs for the arithmetic.

    Raises ``OptionError`` for a dim that no input has.
    """
    macs: Macs = count_macs(model, dims)
    operators = metrics.operators(model)
    return Costs(
        nodes=operators.total(),
        operators=dict(sorted(operators.items(), key=lambda entry: (-entry[1], entry[0]))),
        parameters=metrics.parameters(model),
        macs=None if macs.unknown and not macs.total else macs.total,
        macs_at=macs.at,
        macs_unknown=macs.unknown,
        macs_counted_once=macs.counted_once,
        weight_bytes=metrics.weights(model),
        file_bytes=metrics.file_bytes(model),
    )


def inspect(model: ir.Model, dims: Mapping[str, int] | None = None) -> Inspection:
    """Describe a model. Raises ``OptionError`` for a dim in ``dims`` that no input has."""
    source = source_of(model)
    depths = _depths(model)
    return Inspection(
        path=str(source.path) if source is not None else "",
        costs=costs(model, dims),
        inputs=[describe(value) for value in interface_inputs(model)],
        outputs=[describe(value) for value in model.graph.outputs],
        opsets={domain or "ai.onnx": version for domain, version in sorted(model.opset_imports.items())},
        ir_version=model.ir_version,
        producer=" ".join(part for part in (model.producer_name, model.producer_version) if part),
        metadata=sorted(model.metadata_props),
        subgraphs=len(depths),
        subgraph_depth=max(depths, default=0),
        functions={"::".join(identifier[:2]): len(f) for identifier, f in model.functions.items()},
        external_files=metrics.external_files(model),
        quantization=_quantization(model),
    )


def describe(value: ir.Value) -> Value:
    """Name, type and dims of an input or output."""
    kind = value.type
    if isinstance(kind, ir.TensorType):
        name = kind.dtype.name.lower()
    else:
        name = str(kind).lower() if kind is not None else "not a tensor"
    shape = None if value.shape is None else [d if isinstance(d, int) else d.value or "?" for d in value.shape]
    return Value(value.name or "", name, shape)


def _depths(model: ir.Model) -> list[int]:
    """How deep each body of an If, Loop or Scan is nested; those of the main graph have depth 1."""
    found: list[int] = []
    todo = [(graph, 0) for graph in (model.graph, *(f.graph for f in metrics.used_functions(model)))]
    while todo:
        graph, depth = todo.pop()
        for node in graph:
            for body in bodies(node):
                found.append(depth + 1)
                todo.append((body, depth + 1))
    return found


_WEIGHT_ONLY = {"MatMulNBits", "MatMulBnb4", "GatherBlockQuantized"}


def _quantization(model: ir.Model) -> list[str]:
    names = {name.rpartition("::")[2] for name in metrics.operators(model)}
    found = []
    if names & {"QuantizeLinear", "DequantizeLinear"}:
        found.append("QDQ")
    if any(n.startswith("QLinear") or n.endswith("Integer") or n == "DynamicQuantizeLinear" for n in names):
        found.append("integer operators")
    if names & _WEIGHT_ONLY:
        found.append("weight-only")
    return found


# -- comparing -------------------------------------------------------------------------------------------


@dataclass
class OutputComparison:
    """How one output of the second model compares with the first one's."""

    name: str
    same: bool
    """Whether the difference is within the first model's own noise."""
    text: str
    """Why not, if not."""
    sqnr_db: float | None = None
    """Signal to quantization noise ratio; ``None`` if not a bit differs, or where it has no meaning."""
    movement: float | None = None
    """The largest difference, in units of the output's largest value."""
    agreement: float | None = None
    """The share of equal argmax over the last axis, for float outputs of rank 2 or 3."""


@dataclass
class Comparison:
    """Two models side by side."""

    a: Inspection
    b: Inspection
    outputs: list[OutputComparison]
    interface: list[str]
    """Each difference in inputs and outputs, as a sentence."""
    probes: int
    """On how many sets of inputs both were run."""
    threads: int
    latency_ratio: Ratio | None = None
    """Latency of the second in units of the first."""
    notes: list[str] = field(default_factory=list)
    """What could not be compared."""

    @property
    def same(self) -> bool:
        """Whether every output was compared and is equal within noise."""
        return bool(self.probes) and all(output.same for output in self.outputs)


def compare(
    a: ir.Model, b: ir.Model, probes: Sequence[Feeds] | None = None, *, threads: int = 1, seconds: float = 2.0
) -> Comparison:
    """Run both models as they would be deployed, and compare outputs and latency (for about ``seconds``).

    Raises ``EngineError`` if ONNX Runtime cannot run ``a``, ``DataError`` if no inputs are found for it.
    """
    reference = Reference.of(a, probes)
    result = Comparison(inspect(a), inspect(b), [], _interface(a, b), 0, threads)
    try:
        sessions = [Session(Snapshot.of(model), optimize=True, threads=threads) for model in (a, b)]
    except EngineError as error:
        result.notes.append(f"not compared: {error}")
        return result
    runs: list[tuple[int, list[Any], list[Any]]] = []
    for at, feeds in enumerate(reference.feeds):
        try:
            first = sessions[0].run(feeds)
            second = sessions[1].run({name: x for name, x in feeds.items() if name in sessions[1].inputs})
        except EngineError as error:
            result.notes.append(f"probe {at} was not compared: {error}")
            continue
        runs.append((at, first, second))
    result.probes = len(runs)
    places = {name: at for at, name in enumerate(sessions[1].outputs)}
    for at, name in enumerate(sessions[0].outputs):
        if name not in places:
            result.outputs.append(OutputComparison(name, False, "is missing in the second model"))
        elif runs:
            pairs = [(probe, first[at], second[places[name]]) for probe, first, second in runs]
            result.outputs.append(_compare_output(reference, name, pairs))
    if seconds > 0 and runs:
        feeds = reference.feeds[runs[0][0]]
        if set(feeds) <= set(sessions[1].inputs):
            result.latency_ratio = latency_ratio(sessions[0], sessions[1], feeds, seconds=seconds)
    return result


def _compare_output(reference: Reference, name: str, pairs: list[tuple[int, Any, Any]]) -> OutputComparison:
    text = next((found for at, x, y in pairs if (found := reference.departure(at, name, x, y)) is not None), None)
    result = OutputComparison(name, text is None, text or "")
    arrays = [(x, y) for _, x, y in pairs if isinstance(x, np.ndarray) and isinstance(y, np.ndarray)]
    if len(arrays) < len(pairs) or any(x.shape != y.shape or x.dtype.kind not in "fiub" for x, y in arrays):
        return result
    decibels = metrics.sqnr([x for x, _ in arrays], [y for _, y in arrays])
    result.sqnr_db = decibels if np.isfinite(decibels) else None
    result.movement = max(movement(x, y) for x, y in arrays)
    if all(x.dtype.kind == "f" and x.ndim in (2, 3) and x.shape[-1] > 1 and x.size for x, _ in arrays):
        equal = [x.argmax(axis=-1) == y.argmax(axis=-1) for x, y in arrays]
        result.agreement = float(np.mean(np.concatenate([e.reshape(-1) for e in equal])))
    return result


def _interface(a: ir.Model, b: ir.Model) -> list[str]:
    found: list[str] = []
    for kind, first, second in (
        ("input", interface_inputs(a), interface_inputs(b)),
        ("output", a.graph.outputs, b.graph.outputs),
    ):
        before = {value.name: describe(value) for value in first}
        after = {value.name: describe(value) for value in second}
        found += [f"the {kind} {v} is missing in the second model" for n, v in before.items() if n not in after]
        found += [f"the {kind} {v} is only in the second model" for n, v in after.items() if n not in before]
        found += [
            f"the {kind} {v} is {after[n]} in the second model"
            for n, v in before.items() if n in after and str(v) != str(after[n])
        ]  # fmt: skip
        if list(before) != list(after) and before.keys() == after.keys():
            found.append(f"the {kind}s are in another order: {', '.join(map(str, after))}")
    return found


def preview(model: ir.Model, passes: Sequence[Pass]) -> dict[str, int]:
    """How many nodes there are before and after ``passes``, which run on a copy and are not verified."""
    after, _ = PassManager(passes, verify="off").run(model)
    return {"nodes": metrics.nodes(model), "after": metrics.nodes(after)}
