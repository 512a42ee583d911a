"""What the nodes of a model cost: the time, the arithmetic and the bytes of each."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxopt.graph import Editor, constant_tensor, label
from onnxopt.kernels import by_place, kernel_times, mark, places
from onnxopt.macs import count_macs
from onnxopt.passes.quantize._roles import LAYERS
from onnxopt.runtime import Feeds, Snapshot

_FUSED = 2
"""So many nodes may be fused into a layer that stands before them: a sum and an activation."""


def node_seconds(model: ir.Model, feeds: Feeds) -> dict[str, float]:
    """How long each node takes, by its label, what is fused into a layer included. Raises ``EngineError`` if the model
    does not run."""
    editor = Editor(model).copy()
    names = [label(node) for node in editor.model.graph]
    mark(editor.model)
    at = places(editor.model)
    times = by_place(kernel_times(Snapshot.of(editor.model), feeds), at)
    found: dict[str, float] = {}
    for node, name in zip(editor.model.graph, names, strict=True):
        place = at.get(node.outputs[0].name or "") if node.outputs else None
        if place is not None:
            found[name] = found.get(name, 0.0) + sum(each.seconds for each in times.get(place, ()))
    _credit(editor.model.graph, names, found)
    return found


def _credit(graph: ir.Graph, names: Sequence[str], seconds: dict[str, float]) -> None:
    """Give a layer without time of its own that of the node behind it: ONNX Runtime calls what it fuses by the last."""
    of = dict(zip(graph, names, strict=True))
    for node, name in of.items():
        if node.op_type not in LAYERS or seconds.get(name):
            continue
        behind: ir.Node | None = node
        for _ in range(_FUSED):
            readers = {use.node for use in behind.outputs[0].uses()} if behind is not None else set()
            behind = readers.pop() if len(readers) == 1 else None
            if behind is None or behind.op_type in LAYERS or behind not in of:
                break
            if seconds.get(of[behind]):
                seconds[name], seconds[of[behind]] = seconds[of[behind]], 0.0
                break


def node_macs(model: ir.Model) -> dict[str, float]:
    """The multiply–accumulates of one run, by the label of each node that has any."""
    counted = count_macs(model).by_output
    found: dict[str, float] = {}
    for node in model.graph:
        if node.outputs and (own := counted.get(node.outputs[0].name or "", 0)):
            found[label(node)] = found.get(label(node), 0.0) + own
    return found


def node_bytes(model: ir.Model) -> dict[str, float]:
    """The bytes of each node's constants of two axes or more, by its label."""
    return {
        label(node): float(
            sum(t.nbytes for v in node.inputs if (t := constant_tensor(v)) is not None and len(t.shape) > 1)
        )
        for node in model.graph
    }
