"""Heads on values inside: a mean over places and a product, which give scores of the classes, for training alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.data import Batch
from onnxopt.graph import Editor
from onnxopt.passes.distill._blocks import block_ends, channel_axis, observed


@dataclass(frozen=True)
class Head:
    """Scores that are computed from a value inside."""

    source: str
    scores: str
    added: tuple[str, ...]
    """Its initializers."""


def add_heads(model: ir.Model, number: int, classes: int, batch: Batch, seed: int) -> list[Head]:
    """Put heads behind the ends of blocks, spread over the depth of ``model``; fewer if there are not so many."""
    editor = Editor(model)
    ends = [str(value.name) for value in block_ends(editor)]
    seen = next(observed(model, ends, [batch]))
    made = {str(value.name): value for node in model.graph for value in node.outputs}
    fitting = [name for name in ends if seen[name].ndim >= 2 and seen[name].shape[0] == batch.samples]
    fitting = fitting[:-1] or fitting  # the last is next to the scores
    chosen = [fitting[(at + 1) * len(fitting) // (number + 1)] for at in range(number)] if fitting else []
    return [
        _add(editor, made[name], seen[name].shape, classes, np.random.default_rng((seed, at)))
        for at, name in enumerate(dict.fromkeys(chosen))
    ]


def _add(
    editor: Editor, value: ir.Value, shape: Sequence[int], classes: int, generator: np.random.Generator
) -> Head:  # fmt: skip
    graph, node = editor.model.graph, value.producer()
    assert node is not None
    axis = channel_axis(value, len(shape))
    width = shape[axis]
    weight = generator.standard_normal((width, classes)) * math.sqrt(2 / (width + classes))
    w = editor.add_constant(node, weight.astype(np.float32), "distill/head_weight")
    b = editor.add_constant(node, np.zeros(classes, np.float32), "distill/head_bias")
    pooled, nodes = value, []
    if len(shape) > 2:
        others = np.array([at for at in range(1, len(shape)) if at != axis])
        mean = ir.node("ReduceMean", [value, editor.add_constant(node, others, "distill/places")], {"keepdims": 0})
        pooled = mean.outputs[0]
        pooled.name = editor.fresh("distill/pooled")
        nodes.append(mean)
    head = ir.node("Gemm", [pooled, w, b])
    head.outputs[0].name = editor.fresh("distill/head")
    graph.extend([*nodes, head])
    for each in (*nodes, head):
        each.name = str(each.outputs[0].name)
    return Head(str(value.name), str(head.outputs[0].name), (str(w.name), str(b.name)))
