"""How long layers take as they are and split, each where it stands in the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from onnxopt.graph import Editor, sole_reader
from onnxopt.kernels import by_place, kernel_times, mark, places
from onnxopt.runtime import Feeds, Snapshot

_FUSED = frozenset({"Add", "BatchNormalization", "Clip", "Elu", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})


def layer_seconds(
    model: ir.Model, split: Callable[[Editor], Mapping[str, Sequence[ir.Node]]], feeds: Feeds
) -> dict[str, float]:
    """Seconds that the nodes of each layer take together, in a copy of ``model`` with layers ``split``.

    ``split`` edits the copy and says which nodes each layer has then. What the runtime may fuse with
    that, and call by another name then, is counted with it. Raises ``EngineError`` if that does not run.
    """
    editor = Editor(model).copy()
    nodes = split(editor)
    mark(editor.model)
    at = places(editor.model)
    times = by_place(kernel_times(Snapshot.of(editor.model), feeds), at)
    return {
        key: sum(each.seconds for node in _with_fused(own) for each in times.get(at[_output(node)], ()))
        for key, own in nodes.items()
    }


def _with_fused(nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """``nodes``, and what may be fused with any of them, each once."""
    return list(dict.fromkeys([*nodes, *(behind for node in nodes for behind in _behind(node))]))


def _behind(node: ir.Node) -> list[ir.Node]:
    """The element by element operators behind a layer."""
    found: list[ir.Node] = []
    reader = sole_reader(node.outputs[0])
    while reader is not None and reader.op_type in _FUSED and len(found) < 2:
        found.append(reader)
        reader = sole_reader(reader.outputs[0])
    return found


def _output(node: ir.Node) -> str:
    return node.outputs[0].name or ""
