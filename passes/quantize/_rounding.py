"""Round the weights of a model by the method asked for, with statistics of their inputs where there are data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor
from onnxopt.pass_base import Context
from onnxopt.passes.quantize._awq import awq, input_scales
from onnxopt.passes.quantize._blockwise import (
    Blocks,
    Form,
    half_quadratic,
    min_max,
    output_error,
    round_to_nearest,
    weight_error,
)
from onnxopt.passes.quantize._gptq import gptq
from onnxopt.passes.quantize._linear_node import LinearNode

Array = np.ndarray[Any, Any]
Method = Literal["auto", "rtn", "hqq", "gptq", "awq"]
Key = tuple[ir.Value, bool]

RECURRENT = ("LSTM", "GRU", "RNN")


@dataclass(frozen=True)
class Task:
    """A node, and the weight of it that is to be rounded; ``linear`` if it is a MatMul or a Gemm."""

    node: ir.Node
    weight: ir.Value
    form: Form
    linear: LinearNode | None = None
    at: int = 1
    """Which input the weight is."""

    @property
    def key(self) -> Key:
        """What tasks have in common that share a rounded weight."""
        return self.weight, self.linear is not None and not self.linear.by_rows

    def matrix(self, editor: Editor) -> Array:
        """The weight as n × k: a row for each output, filter, gate or entry of the table."""
        if self.linear is not None:
            return self.linear.matrix(editor)
        stored = editor.constant(self.weight)
        assert stored is not None
        return (
            stored.reshape(-1, stored.shape[-1])
            if stored.ndim == 3 and self.recurrent
            else stored.reshape(len(stored), -1)
        )

    @property
    def recurrent(self) -> bool:
        """Whether the weight is directions × gates · units × inputs."""
        return self.node.op_type in RECURRENT


@dataclass(frozen=True)
class Rounded:
    """A rounded weight, how it was done, and what it costs relative to the float one."""

    blocks: Blocks
    method: str
    weight_error: float
    output_error: float | None = None
    """Over the calibration data; ``None`` without."""
    scales: Array | None = None
    """What the inputs (k) are divided by, since the weight has been multiplied by it."""


def round_weights(tasks: Sequence[Task], method: Method, context: Context) -> dict[Key, Rounded]:
    """The rounded weight of each task."""
    editor = context.editor
    first = {task.key: task for task in reversed(tasks)}
    found: dict[Key, Rounded] = {}
    for ready, gram in _with_inputs(tasks, context):
        matrices = {key: first[key].matrix(editor) for key in ready}
        found |= _round_together(matrices, {key: first[key].form for key in ready}, gram, method)
    for key, task in first.items():
        if key not in found:
            found[key] = _by_weight(task.matrix(editor), task.form, method)
    return found


def _with_inputs(tasks: Sequence[Task], context: Context) -> Iterator[tuple[list[Key], Array]]:
    """Weights that read the same inputs, with the ``xᵀx`` of these; a weight used on several has them summed."""
    if context.data is None:
        return
    inputs: dict[Key, set[str]] = {}
    for task in tasks:
        if task.linear is not None:
            inputs.setdefault(task.key, set()).add(task.linear.x.name or "")
    statistics = context.statistics()
    names = sorted(set().union(*inputs.values()))
    known = {name for name in names if name and statistics.reachable(name) is None}
    waiting = {key: set(each) for key, each in inputs.items() if each <= known}
    sums: dict[Key, Array] = {}
    for name, gram in statistics.gram(name for name in names if name in known):
        ready = []
        for key in [key for key, each in waiting.items() if name in each]:
            waiting[key].discard(name)
            if len(inputs[key]) > 1:
                sums[key] = sums[key] + gram.xtx if key in sums else gram.xtx.copy()
            elif np.isfinite(gram.xtx).all():
                ready.append(key)
            if len(inputs[key]) > 1 and not waiting[key] and np.isfinite(sums[key]).all():
                yield [key], sums.pop(key)
        if ready:
            yield ready, gram.xtx


def _round_together(
    matrices: dict[Key, Array], forms: dict[Key, Form], gram: Array, method: Method
) -> dict[Key, Rounded]:
    found = {}
    scales: Array | None = None
    if method == "awq":
        (form,) = set(forms.values())
        scales = input_scales(list(matrices.values()), gram, form)
        if (scales == 1).all():
            scales = None
    for key, w in matrices.items():
        form = forms[key]
        if method in ("auto", "gptq"):
            blocks, title = gptq(w, gram, form), "gptq"
        elif method == "awq":
            blocks, title = awq(w, np.ones(len(gram), np.float32) if scales is None else scales, gram, form), "awq"
        else:
            blocks, title = round_to_nearest(w, form, _GRIDS[method]), str(method)
        rounded = blocks.weights() if scales is None else blocks.weights() / scales
        found[key] = Rounded(blocks, title, weight_error(w, rounded), output_error(w, rounded, gram), scales)
    return found


def _by_weight(w: Array, form: Form, method: Method) -> Rounded:
    """By the weight alone: HQQ stands in where a method that needs statistics has none, but for 8 bits by choice."""
    title = "rtn" if method == "rtn" or (method == "auto" and form.bits == 8) else "hqq"
    blocks = round_to_nearest(w, form, _GRIDS[title])
    return Rounded(blocks, title, weight_error(w, blocks.weights()))


_GRIDS = {"rtn": min_max, "hqq": half_quadratic}
