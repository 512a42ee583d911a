"""Correct a quantized model layer by layer, in a few runs: stages of layers, and tensors read for each.

Each layer should be corrected on what reaches it once those before it are. To run the model anew for each would take
as long as it is deep, so layers go in at most ``STAGES`` stages by how many layers lie before them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from onnxopt.data import Dataset
from onnxopt.graph import Editor, label
from onnxopt.pass_base import Context, Log, Pass, Refuse
from onnxopt.passes.quantize._quantized_layers import QuantizedLayer, quantized_layers
from onnxopt.stats import Statistics
from onnxopt.traverse import depths

STAGES = 8
"""How many times a model is run over the data at most."""

_SAMPLES = 256
"""How many samples are used, half of them to learn from and half to judge by."""
_MEMORY = 1 << 28

Task = TypeVar("Task")


def stages(layers: Sequence[QuantizedLayer], editor: Editor) -> list[list[list[QuantizedLayer]]]:
    """The layers in stages, each of which is a list of levels: one level may depend on those before it."""
    depth_of = depths(editor.model, {layer.node for layer in layers})
    levels: dict[int, list[QuantizedLayer]] = {}
    for layer in layers:
        levels.setdefault(depth_of[layer.node.outputs[0]], []).append(layer)
    order = sorted(levels)
    parts = np.array_split(np.arange(len(order)), min(STAGES, len(order)))
    return [[levels[order[at]] for at in part] for part in parts]


def reader(model: ir.Model, data: Dataset) -> Statistics:
    """Reads several tensors of a model at one time; keeps nothing on disk."""
    return Statistics(model, data, memory=_MEMORY, cache=None)


def layers_of(
    pass_: Pass, context: Context, log: Log, task: Callable[[QuantizedLayer], Task]
) -> tuple[dict[ir.Node, Task], tuple[Dataset, Dataset]] | None:
    """What ``pass_`` is to correct, by node, and two halves of the samples: to learn from, and to judge by.

    ``None``, with the reasons in the log, if there is nothing to be done; ``task`` may refuse a layer.
    """
    tasks = {}
    for layer in quantized_layers(pass_, context, log):
        try:
            tasks[layer.node] = task(layer)
        except Refuse as refusal:
            log.refused(label(layer.node), str(refusal))
    if not tasks or context.data is None:
        return None
    data = context.data.take(_SAMPLES)
    if data.units < 2:
        log.refused("model", "one sample is too few: some to learn from and others to judge by are needed")
        return None
    return tasks, data.split(0.5)
