"""Where quantizers go: a plan that can be looked at, compared and applied to any copy of the model.

A plan starts at the nodes to be computed with integers. Their activations want a quantizer, and so do their
outputs where the kernel needs it (see ``_targets``). A wanted tensor that comes out of an operator which only
moves elements (Reshape, MaxPool, …) is quantized in front of that operator already, on the same grid, so that
it runs on integers too. Inputs that nothing but a Concat reads share the grid of its output, at no loss: they
would be rounded to it anyway. A tensor is read as integers by those who want it; others read the float, except
behind a kernel that has no float result.

Nodes and tensors are named by strings, a node by its first output: names are what copies of a model share.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxopt.graph import label, sole_reader
from onnxopt.passes.quantize._candidates import Settings
from onnxopt.passes.quantize._roles import Roles


@dataclass(frozen=True)
class Layer:
    """A node with a weight, and the names of what belongs to it."""

    node: str
    input: str
    """The activation that the weight multiplies."""
    weight: str
    weight_at: int
    axis: int | None
    bias: str | None
    bias_node: str
    bias_at: int


@dataclass
class Placed:
    """A tensor with a quantizer behind it."""

    readers: set[tuple[str, int]] = field(default_factory=set)
    """Nodes and which of their inputs, that read the quantized tensor."""
    everywhere: bool = False
    """Whether all readers do, since its kernel has no float result."""
    knee: float | None = None
    """Where the HardSigmoid that reads it leaves 0: the grid has to begin there (see ``_hard``)."""
    moved: bool = False
    """Whether it only holds moved elements of another that shares its grid, and needs no range of its own."""
    limits: tuple[float, float] = (-np.inf, np.inf)
    """Limits of the Relu or Clip that the grid must not reach beyond."""


@dataclass
class Plan:
    """Which nodes become integer kernels, and what that takes."""

    settings: Settings
    nodes: dict[str, str] = field(default_factory=dict)
    """Node → what reports call it, for each that is to be computed with integers."""
    moving: dict[str, str] = field(default_factory=dict)
    """The same for the nodes in between that only move elements."""
    layers: dict[str, Layer] = field(default_factory=dict)
    tensors: dict[str, Placed] = field(default_factory=dict)
    hard: list[str] = field(default_factory=list)
    """The HardSigmoid and HardSwish nodes to be written as a Clip of integers."""
    pools: list[str] = field(default_factory=list)
    """The ReduceMean nodes to be written as GlobalAveragePool."""
    constants: dict[tuple[str, int], str | None] = field(default_factory=dict)
    """Constant operands to quantize as activations; the tensor whose grid they take, if not their own."""
    float_nodes: dict[str, str] = field(default_factory=dict)
    """What reports call a node → why it stays float."""
    _parents: dict[str, str] = field(default_factory=dict)

    def group(self, tensor: str) -> str:
        """The tensor that stands for all that share one grid with this one."""
        while (parent := self._parents.get(tensor, tensor)) != tensor:
            tensor = parent
        return tensor

    def share(self, a: str, b: str) -> None:
        """Let two tensors have one grid."""
        first, second = sorted((self.group(a), self.group(b)))
        self._parents[second] = first

    @property
    def sources(self) -> list[str]:
        """The tensors whose ranges the grids are made of."""
        return sorted(name for name, placed in self.tensors.items() if not placed.moved)

    def groups(self) -> dict[str, list[str]]:
        """The tensors that share a grid, by the one that stands for them."""
        found: dict[str, list[str]] = {}
        for tensor in sorted(self.tensors):
            found.setdefault(self.group(tensor), []).append(tensor)
        return found


def plan(
    found: Mapping[str, Roles],
    reasons: Mapping[str, str],
    settings: Settings,
    nodes: Collection[str],
    unusable: Mapping[str, str] | None = None,
) -> Plan:
    """Place quantizers for ``nodes``, by first output, given what ``candidates`` says; the model is not edited.

    Those among ``nodes`` that cannot be quantized are left out, with the reason in ``float_nodes``.
    """
    made = Plan(settings, float_nodes=dict(reasons))
    for key, entry in found.items():
        if key in nodes and not entry.moves:
            made.nodes[key] = label(entry.node)
    _drop_half_shared(made, found)
    for key in made.nodes:
        _place(made, found[key], found, unusable or {})
    for key in made.nodes:
        if found[key].node.op_type == "Concat":
            _share_concat(made, found[key])
    return made


def _drop_half_shared(made: Plan, found: Mapping[str, Roles]) -> None:
    """A weight with several readers is quantized for all of them or for none."""
    again = True
    while again:
        again = False
        for key in list(made.nodes):
            weight = found[key].weight
            if weight is None:
                continue
            others = {use.node.outputs[0].name or "" for use in weight.value.uses()} - made.nodes.keys()
            if others:
                text = f"its weight {weight.value.name} is also read by {min(others)}, which stays float"
                made.float_nodes[made.nodes.pop(key)] = text
                again = True


def _place(made: Plan, entry: Roles, found: Mapping[str, Roles], unusable: Mapping[str, str]) -> None:
    key, node = entry.node.outputs[0].name or "", entry.node
    for at in entry.inputs:
        _want(made, node, at, found, unusable)
    for at in entry.constants:
        made.constants[key, at] = None
    if entry.operator.as_pool:
        made.pools.append(key)
    if entry.knee is not None:
        made.hard.append(key)
        made.tensors[_name(node.inputs[0])].knee = entry.knee
    if entry.knee is not None and node.op_type == "HardSigmoid":
        return
    if entry.operator.output == "needed":
        _behind(made, entry.output, entry)
    weight, bias = entry.weight, entry.bias
    if weight is not None:
        with_bias = bias is not None and made.settings.target.bias == "int32"
        made.layers[key] = Layer(
            key,
            _name(node.inputs[entry.inputs[0]]),
            _name(weight.value),
            weight.at,
            weight.axis,
            _name(bias.value) if bias is not None and with_bias else None,
            _name(bias.node.outputs[0]) if bias is not None else "",
            bias.at if bias is not None else 0,
        )


def _want(made: Plan, node: ir.Node, at: int, found: Mapping[str, Roles], unusable: Mapping[str, str]) -> None:
    """Let input ``at`` of ``node`` be read as integers, and those before it that it is moved from."""
    todo = [(node, at)]
    while todo:
        reader, at = todo.pop()
        value = reader.inputs[at]
        assert value is not None
        producer = value.producer()
        entry = found.get(_name(producer.outputs[0])) if producer is not None else None
        if entry is not None and entry.node.op_type == "HardSigmoid" and _name(value) in made.nodes:
            reads = found.get(_name(reader.outputs[0]))
            if reads is not None and not reads.moves:
                continue  # it comes as integers already
        placed = made.tensors.setdefault(_name(value), Placed())
        placed.readers.add((_name(reader.outputs[0]), at))
        if producer is None:
            continue
        key = _name(producer.outputs[0])
        if entry is not None and not entry.moves and key in made.nodes:
            placed.limits = _limits(made, entry)
            activated = bool(entry.taken) and entry.taken[-1].op_type != "Add"
            placed.everywhere = placed.everywhere or not (entry.operator.float_beside or activated)
        if entry is None or not entry.moves or key in made.moving:
            continue
        if any(_name(v) in unusable for v in (*(producer.inputs[i] for i in entry.inputs), *producer.outputs)):
            continue
        made.moving[key] = label(producer)
        for output in producer.outputs:
            if output.uses() or output.is_graph_output():
                _behind(made, output, entry)
                made.tensors[_name(output)].moved = True
                made.share(_name(value), _name(output))
        for i in entry.constants:
            made.constants[key, i] = _name(value)
        for i in entry.inputs:
            made.share(_name(value), _name(producer.inputs[i]))
            todo.append((producer, i))


def _behind(made: Plan, value: ir.Value, entry: Roles) -> None:
    placed = made.tensors.setdefault(_name(value), Placed())
    placed.everywhere = True
    placed.limits = _limits(made, entry)


def _limits(made: Plan, entry: Roles) -> tuple[float, float]:
    return entry.limits if made.settings.target.saturating_takes else (-np.inf, np.inf)


def _share_concat(made: Plan, entry: Roles) -> None:
    """Give inputs that only the Concat reads the grid of its output; not where a Relu needs its own."""
    output = _name(entry.output)
    for at in entry.inputs:
        value = entry.node.inputs[at]
        assert value is not None
        placed = made.tensors[_name(value)]
        producer = value.producer()
        moved = producer is not None and _name(producer.outputs[0]) in made.moving
        if sole_reader(value) is entry.node and placed.limits == (-np.inf, np.inf) and not moved:
            made.share(_name(value), output)
    for at in entry.constants:
        made.constants[_name(entry.node.outputs[0]), at] = output


def _name(value: ir.Value | None) -> str:
    return (value.name or "") if value is not None else ""
