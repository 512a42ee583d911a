"""Which nodes can be computed with integers: a kernel that takes them, weights of their own, ranges that are known.

A node is named by its first output, as everywhere here: names are what copies of a model share.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, label
from onnxopt.pass_base import Refuse
from onnxopt.passes.quantize._roles import LAYERS, Roles, roles
from onnxopt.passes.quantize._tails import decoders
from onnxopt.passes.quantize._targets import Target, misfit


@dataclass(frozen=True)
class Settings:
    """What plan and grids need to know: the target, and the types on it."""

    target: Target
    activation: np.dtype[Any]
    weight: np.dtype[Any]
    per_channel: bool
    symmetric: bool
    """Whether activations have the zero point in the middle."""
    reduce_range: bool

    @property
    def opset(self) -> int:
        """The oldest version of the standard operators that can say this."""
        narrow = {np.dtype(np.int8), np.dtype(np.uint8)}
        return 13 if {self.activation, self.weight} <= narrow else 21


def candidates(
    editor: Editor, settings: Settings, unusable: Mapping[str, str] | None = None
) -> tuple[dict[str, Roles], dict[str, str]]:
    """The nodes that the target can compute with integers, by first output; and, by label, why others stay float.

    ``unusable`` gives tensors that have no range, with the reason. Layers and operators of the target's
    profile are considered; all others have no integer kernel, which needs no saying.
    """
    found: dict[str, Roles] = {}
    reasons: dict[str, str] = {}
    seen: set[str] = set()
    decoding = decoders(editor)
    for graph in editor.graphs():
        for node in graph:
            operator = settings.target.operator(node)
            if operator is None and not (node.op_type in LAYERS and node.domain == ""):
                continue
            key = node.outputs[0].name or ""
            try:
                if not _is_float(node, editor):
                    continue
                if operator is None:
                    raise Refuse(f"the target has no integer kernel for {node.op_type}")
                if key in seen:
                    raise Refuse("another branch has a tensor of the same name, so that ranges cannot be told apart")
                if node in decoding and operator.output != "same":
                    shown = label(decoding[node])
                    raise Refuse(f"it makes boxes or scores of what the last layers give (as {shown} shows)")
                if (reason := misfit(node, operator)) is not None:
                    raise Refuse(reason)
                entry = roles(node, operator, editor, settings.per_channel)
                if settings.target.saturating_takes and settings.symmetric:
                    entry.give_back()
                if entry.knee is not None and settings.symmetric:
                    raise Refuse("it is computed with integers only on grids that are not symmetric")
                _check_ranges(entry, unusable or {})
                found[key] = entry
            except Refuse as refusal:
                reasons[label(node)] = str(refusal)
            seen.add(key)
    _drop_confined(found, reasons)
    _drop_shared_weights(found, reasons)
    return found, reasons


def _is_float(node: ir.Node, editor: Editor) -> bool:
    """Whether the node computes in float32. Raises ``Refuse`` where somebody may expect it to be quantized."""
    if any(v is not None and _made_by(v, "DequantizeLinear") for v in node.inputs):
        raise Refuse("it is quantized already: its input comes from a DequantizeLinear")
    if any(use.node.op_type == "QuantizeLinear" for use in node.outputs[0].uses()):
        raise Refuse("it is quantized already: a QuantizeLinear reads it")
    dtype = editor.dtype(node.outputs[0])
    if dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE):
        raise Refuse(f"it computes in {dtype.name.lower()}; convert the model to float32 first")
    if dtype != ir.DataType.FLOAT and not (dtype is None and node.op_type in LAYERS):
        return False
    if editor.in_function(node):
        raise Refuse("it stands in a local function; run inline-functions first")
    return True


def _made_by(value: ir.Value, op: str) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == op


def _check_ranges(entry: Roles, unusable: Mapping[str, str]) -> None:
    tensors = [entry.node.inputs[at] for at in entry.inputs]
    if entry.operator.output != "either":
        tensors.append(entry.output)
    for value in tensors:
        if value is not None and (value.name or "") in unusable:
            raise Refuse(f"{value.name} {unusable[value.name or '']}")


def _drop_confined(found: dict[str, Roles], reasons: dict[str, str]) -> None:
    """Leave out a HardSigmoid or HardSwish whose input cannot have a grid that begins at its knee."""
    limited = {entry.output.name for entry in found.values() if np.isfinite(entry.limits).any()}
    for key, entry in list(found.items()):
        value = entry.node.inputs[0]
        if entry.knee is None or value is None:
            continue
        producer = value.producer()
        source = found.get(producer.outputs[0].name or "") if producer is not None else None
        if value.name in limited or (source is not None and source.moves):
            reasons[label(entry.node)] = f"its input {value.name} shares its grid with others, or has a Relu behind it"
            del found[key]


def _drop_shared_weights(found: dict[str, Roles], reasons: dict[str, str]) -> None:
    """Leave out layers whose weight is also read in another way: a float copy beside it would be no gain."""
    again = True
    while again:
        again = False
        for key, entry in list(found.items()):
            if entry.weight is None:
                continue
            why = _shared_otherwise(entry, found)
            if why is not None:
                reasons[label(entry.node)] = why
                del found[key]
                again = True


def _shared_otherwise(entry: Roles, found: Mapping[str, Roles]) -> str | None:
    weight = entry.weight
    assert weight is not None
    if weight.value.is_graph_output():
        return f"its weight {weight.value.name} is an output of the model"
    for use in weight.value.uses():
        other = found.get(use.node.outputs[0].name or "")
        if other is None or other.weight is None or other.weight.at != use.idx:
            return f"its weight {weight.value.name} is also read by {label(use.node)}, which stays float"
        if other.weight.axis != weight.axis:
            return f"its weight {weight.value.name} is also read by {label(use.node)}, along other channels"
    return None


def default_nodes(found: Mapping[str, Roles]) -> set[str]:
    """Which candidates to quantize without measuring: every layer, and what stands between integers anyway.

    An operator without a weight is worth it where integer kernels feed all its inputs and it feeds another,
    directly or through operators that move elements: then it saves quantizers. Elsewhere it would need them,
    and would cut regions apart that the runtime fuses in float (Gelu, attention, normalizations).
    """
    chosen = {key for key, entry in found.items() if not entry.moves}
    followers = [key for key in found if key in chosen and found[key].weight is None]
    while True:
        outputs = {found[key].output for key in chosen}
        dropped = [
            key
            for key in followers
            if key in chosen
            and not (
                all(unmoved(found[key].node.inputs[at], found) in outputs for at in found[key].inputs)
                and _feeds(found[key].output, found, chosen)
            )
        ]
        if not dropped:
            return chosen
        chosen.difference_update(dropped)


def unmoved(value: ir.Value | None, found: Mapping[str, Roles]) -> ir.Value | None:
    """The tensor that ``value`` is, but for moved elements."""
    while value is not None:
        producer = value.producer()
        entry = found.get(producer.outputs[0].name or "") if producer is not None else None
        if entry is None or not entry.moves:
            return value
        value = entry.node.inputs[entry.inputs[0]]
    return None


def _feeds(value: ir.Value, found: Mapping[str, Roles], chosen: Collection[str]) -> bool:
    """Whether an integer kernel reads ``value``, directly or through operators that move elements."""
    for use in value.uses():
        key = use.node.outputs[0].name or ""
        entry = found.get(key)
        if entry is None or use.idx not in entry.inputs:
            continue
        if key in chosen or (entry.moves and any(_feeds(out, found, chosen) for out in use.node.outputs)):
            return True
    return False
