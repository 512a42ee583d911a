"""Shift the biases of a quantized model so that rounding no longer moves the means of its layers.

Rounding moves the mean of each output channel of a layer, by ``E[Ŵ x̂] − E[W x]``; that is the same for all samples and
can be taken off the bias, on the grid that this has. There are two ways to find it:

``fast``: ``(W − Ŵ) E[x]`` with the mean input of the float model, for all layers at once.

``sequential``: the difference of the means of the outputs themselves, of the float model and of the quantized one as it
is with the layers before corrected; this takes in what the rounding of activations does. Layers go in up to 8 stages
by depth. Within a stage those that others of it lead to take ``(W − Ŵ) E[x̂]`` alone: what reaches them from the others
is mended there.

Runs behind quantize-static. Where a Conv or Gemm has no bias it gets one, on the INT32 grid of its sums; a MatMul takes
one only from the Add behind it. A layer is corrected only if that brings its means nearer to those of the float model
on the half of the samples that they were not measured on, which is to say that the squared error of its output falls.

Source: Nagel, van Baalen, Blankevoort and Welling, "Data-Free Quantization Through Weight Equalization and Bias
Correction", ICCV 2019, §4.2, in its empirical form.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxopt.data import Dataset
from onnxopt.errors import OptionError
from onnxopt.graph import Editor, label
from onnxopt.pass_base import Context, Log, Needs, Pass, Refuse, Report
from onnxopt.passes.quantize._biases import Bias, bias_of
from onnxopt.passes.quantize._grid import Array
from onnxopt.passes.quantize._products import Product
from onnxopt.passes.quantize._quantized_layers import QuantizedLayer
from onnxopt.passes.quantize._roles import LAYERS
from onnxopt.passes.quantize._stages import layers_of, reader, stages
from onnxopt.stats import Statistics

Means = dict[str, Array]
Shifts = Mapping[ir.Node, Array]
"""What to add to the bias of each layer."""


@dataclass(frozen=True)
class _Task:
    """A layer with its bias; ``product`` only where the mean of its output is to be had from that of its input."""

    layer: QuantizedLayer
    bias: Bias
    product: Product | None

    def moved(self, mean: Array) -> Array:
        """``(W − Ŵ) E[x]`` (n), from the mean row of the input."""
        assert self.product is not None
        lost = self.layer.float_weight.astype(np.float64) - self.layer.weight.array
        by_output = np.einsum("gk,gkn->gn", mean, self.product.matrix(lost))
        # A ConvTranspose has a tile of outputs for each channel.
        moved: Array = by_output.reshape(self.bias.channels, -1).mean(axis=1)
        return moved


@dataclass(frozen=True, kw_only=True)
class CorrectBias(Pass):
    """Shift the biases of a quantized model so that rounding no longer moves the means of its layers."""

    name: ClassVar[str] = "correct-bias"
    exact: ClassVar[bool] = False
    ops: ClassVar[frozenset[str]] = LAYERS
    needs: ClassVar[Needs] = "inputs"

    method: Literal["sequential", "fast"] = "sequential"
    """Measured on the quantized model with the layers before corrected, or estimated from the float model."""

    def __post_init__(self) -> None:
        if self.method not in ("sequential", "fast"):
            raise OptionError(f"{self.name}.method is sequential or fast, got {self.method!r}")

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        found = layers_of(self, context, log, lambda layer: self._task(layer, context.editor))
        if found is None:
            return log.report()
        tasks, halves = found
        if self.method == "fast":
            shifts = [self._estimated(tasks.values(), context, half) for half in halves]
            self._apply(tasks.values(), shifts, context, log)
            return log.report()
        targets = [self._targets(tasks.values(), context, half) for half in halves]
        for levels in stages([task.layer for task in tasks.values()], context.editor):
            first = [tasks[layer.node] for layer in levels[0]]
            later = [tasks[layer.node] for level in levels[1:] for layer in level]
            shifts = [
                self._measured(first, later, target, context, half)
                for half, target in zip(halves, targets, strict=True)
            ]
            self._apply([*first, *later], shifts, context, log)
        return log.report()

    def _task(self, layer: QuantizedLayer, editor: Editor) -> _Task:
        task = _Task(layer, bias_of(layer, editor), _product(layer))
        if self.method == "fast" and task.product is None:
            raise Refuse("its kernel overlaps itself: only the method sequential can correct it")
        return task

    def _apply(self, tasks: Iterable[_Task], shifts: Sequence[Shifts], context: Context, log: Log) -> None:
        """Correct each layer by what was found on the first half, if that holds on the second."""
        measured, held_out = shifts
        for task in tasks:
            node = task.layer.node
            if context.gate.closed:
                return
            if node not in measured or node not in held_out:
                log.refused(label(node), "it is not computed on these data")
                continue
            shift = task.bias.rounded(measured[node])
            before, after = _size(held_out[node]), _size(held_out[node] - shift)
            log.measured(node=label(node), mean_error_before=before, mean_error_after=after)
            if not after < before:
                log.refused(label(node), f"its means are best as they are: off by {before:.2g}, else by {after:.2g}")
                continue
            task.bias.add(shift, context.editor)
            log.changed(label(node), f"its means were off by {before:.2g}, now by {after:.2g}")

    def _estimated(self, tasks: Iterable[_Task], context: Context, half: Dataset) -> dict[ir.Node, Array]:
        """What to add by the method ``fast``."""
        assert context.original is not None
        wanted = {task.layer.node: (task.layer.float_input, task) for task in tasks}
        rows = _mean_rows(reader(context.original, half), wanted)
        return {node: wanted[node][1].moved(mean) for node, mean in rows.items()}

    def _targets(self, tasks: Iterable[_Task], context: Context, half: Dataset) -> Means:
        """The means of the outputs of the float model."""
        assert context.original is not None
        axes = {task.layer.float_output: task.layer.channel_axis for task in tasks}
        return {name: found.mean for name, found in reader(context.original, half).channels(axes).items()}

    def _measured(
        self, first: Sequence[_Task], later: Sequence[_Task], targets: Means, context: Context, half: Dataset
    ) -> dict[ir.Node, Array]:
        """What to add in a stage, on the quantized model as it is now."""
        read = reader(context.editor.model, half)
        axes = {task.layer.output: task.layer.channel_axis for task in first}
        means = read.channels(axes)
        found = {}
        for task in first:
            if task.layer.output in means and task.layer.float_output in targets:
                found[task.layer.node] = targets[task.layer.float_output] - means[task.layer.output].mean
        wanted = {task.layer.node: (task.layer.input, task) for task in later if task.product is not None}
        return found | {node: wanted[node][1].moved(mean) for node, mean in _mean_rows(read, wanted).items()}


def _product(layer: QuantizedLayer) -> Product | None:
    try:
        return Product(layer.node, layer.float_weight.shape)
    except Refuse:
        return None


def _mean_rows(read: Statistics, wanted: Mapping[ir.Node, tuple[str, _Task]]) -> dict[ir.Node, Array]:
    """The mean row (g × k) of the input that is named for each layer."""
    sums: dict[ir.Node, Array] = {}
    counts: dict[ir.Node, int] = {}
    for part in read.parts(sorted({name for name, _ in wanted.values()})):
        for arrays in read.arrays(part.names, part.rows):
            for node, (name, task) in wanted.items():
                if name in arrays and task.product is not None:
                    count = task.product.count(arrays[name])
                    sums[node] = sums.get(node, 0.0) + count * task.product.mean_row(arrays[name])
                    counts[node] = counts.get(node, 0) + count
    return {node: total / counts[node] for node, total in sums.items()}


def _size(means: Array) -> float:
    return float(np.sqrt(np.mean(means**2)))
