"""Correct a quantized model layer by layer, in a few runs: stages of layers, and tensors read for each.

Each layer should be corrected on what reaches it once those before it are. To run the model anew for each would take
as long as it is deep, so layers go in at most ``STAGES`` stages by how many layers lie before them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxopt.data import Dataset
from onnxopt.graph import Editor, bodies
from onnxopt.passes.quantize._grid import Array
from onnxopt.passes.quantize._quantized_layers import QuantizedLayer
from onnxopt.stats import Statistics

STAGES = 8
"""How many times a model is run over the data at most."""

_MEMORY = 1 << 28


def stages(layers: Sequence[QuantizedLayer], editor: Editor) -> list[list[list[QuantizedLayer]]]:
    """The layers in stages, each of which is a list of levels: one level may depend on those before it."""
    depths = _depths({layer.node for layer in layers}, editor)
    levels: dict[int, list[QuantizedLayer]] = {}
    for layer in layers:
        levels.setdefault(depths[layer.node.outputs[0]], []).append(layer)
    order = sorted(levels)
    parts = np.array_split(np.arange(len(order)), min(STAGES, len(order)))
    return [[levels[order[at]] for at in part] for part in parts]


def _depths(counted: set[ir.Node], editor: Editor) -> dict[ir.Value, int]:
    """How many of these nodes lie on the longest way to each value, the one that makes it included."""
    depths: dict[ir.Value, int] = {}

    def visit(graph: ir.Graph) -> None:
        for node in graph:
            before = [depths.get(value, 0) for value in node.inputs if value is not None]
            for body in bodies(node):
                visit(body)
                before += [depths.get(value, 0) for value in body.outputs]
            depth = max(before, default=0) + (node in counted)
            depths.update((output, depth) for output in node.outputs)

    visit(editor.model.graph)
    return depths


class Reader(Statistics):
    """Reads several tensors of a model at one time, without keeping anything."""

    def __init__(self, model: ir.Model, data: Dataset) -> None:
        super().__init__(model, data, memory=_MEMORY, cache=None)

    def rounds(
        self, names: Sequence[str], extra: Mapping[str, int] | None = None
    ) -> list[tuple[list[str], int | None]]:
        """The tensors in parts that fit into memory together, with how many samples at a time.

        ``extra`` is the memory that is wanted for a tensor besides.
        """
        return self._rounds(self._readable(names), extra or {})

    def arrays(self, names: Sequence[str], rows: int | None) -> Iterator[dict[str, Array]]:
        """The tensors of one part, batch by batch."""
        for _, arrays in self._arrays(names, rows):
            yield arrays
