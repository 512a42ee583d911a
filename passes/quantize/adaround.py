"""Round each weight up or down by what that does to the output of its layer, not to the nearest.

To round to the nearest is best for each weight by itself, but errors of weights that read similar inputs add up, or
cancel. For each layer of a quantized model this looks for the choice between the two neighbours on the grid that
brings ``X̂ Ŵ`` nearest to ``X W``, where ``X`` is what reaches the layer in the float model and ``X̂`` what reaches it in
the quantized one, with the layers before it adapted already (in up to 8 stages). Grids and biases stay; the model
is as fast as before. How the choice is made, and why not by gradients, is told in ``_adaround``.

Runs behind quantize-static, on its INT8 or INT4 weights. A layer keeps its old weights unless the new ones have the
smaller error on the half of the samples that the choice was not made on.

Source: Nagel, Amjad, van Baalen, Louizos and Blankevoort, "Up or Down? Adaptive Rounding for Post-Training
Quantization", ICML 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from onnxopt.data import Dataset
from onnxopt.graph import label
from onnxopt.pass_base import Context, Log, Needs, Pass, Refuse, Report
from onnxopt.passes.quantize._adaround import Moments, choose
from onnxopt.passes.quantize._grid import Array, Grid
from onnxopt.passes.quantize._products import Product
from onnxopt.passes.quantize._quantized_layers import QuantizedLayer
from onnxopt.passes.quantize._roles import LAYERS
from onnxopt.passes.quantize._stages import layers_of, reader, stages

_ROWS = (2048, 16384)
"""How many rows of the input of a layer are taken, at least and at most;"""
_ROWS_PER_INPUT = 24
"""in between, so many for each weight of an output."""
_LARGEST = 4608
"""Outputs of more weights than this would take matrices too large for the memory."""


@dataclass(frozen=True, kw_only=True)
class Adaround(Pass):
    """Round each weight of a quantized model up or down by what that does to the output of its layer."""

    name: ClassVar[str] = "adaround"
    exact: ClassVar[bool] = False
    ops: ClassVar[frozenset[str]] = LAYERS
    needs: ClassVar[Needs] = "inputs"

    seed: int = 0
    """Which rows of the inputs are drawn."""

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        found = layers_of(self, context, log, _Task)
        if found is None:
            return log.report()
        tasks, halves = found
        rng = np.random.default_rng(self.seed)
        for levels in stages([task.layer for task in tasks.values()], context.editor):
            stage = [tasks[layer.node] for level in levels for layer in level]
            for layer in (layer for level in levels[1:] for layer in level):
                tasks[layer.node].local = True
            if not context.gate.closed:
                self._adapt(stage, halves, context, log, rng)
        return log.report()

    def _adapt(
        self, stage: list[_Task], halves: Sequence[Dataset], context: Context, log: Log, rng: np.random.Generator
    ) -> None:
        """Read the inputs of these layers on both models, then choose."""
        by_input: dict[str, list[_Task]] = {}
        for task in stage:
            by_input.setdefault(task.layer.float_input, []).append(task)
        assert context.original is not None
        readers = [(reader(context.original, half), reader(context.editor.model, half), half) for half in halves]
        extra = {name: sum(task.bytes for task in tasks) for name, tasks in by_input.items()}
        for part in readers[0][0].parts(by_input, extra):
            tasks = [task for name in part.names for task in by_input[name]]
            quantized = list(dict.fromkeys(task.layer.input for task in tasks))
            for at, (before, after, half) in enumerate(readers):
                pairs = zip(before.arrays(part.names, part.rows), after.arrays(quantized, part.rows), strict=True)
                for floats, rounded in pairs:
                    for task in tasks:
                        if task.layer.float_input in floats and task.layer.input in rounded:
                            y = rounded[task.layer.input]
                            x = y if task.local else floats[task.layer.float_input]
                            task.read(x, y, at, len(x) / max(len(half), len(x)), rng)
            for task in tasks:
                if not context.gate.closed:
                    self._choose(task, context, log)
                task.forget()

    def _choose(self, task: _Task, context: Context, log: Log) -> None:
        name = label(task.layer.node)
        if task.rows == 0:
            log.refused(name, "it is not computed on these data")
            return
        new = task.choice()
        before, after = task.errors(task.nearest), task.errors(new)
        moved = int(np.sum(new != task.nearest))
        log.measured(node=name, error_before=before, error_after=after, moved=moved / new.size)
        if not after < before:
            log.refused(name, f"its weights are best as they are: error {before:.2g}, else {after:.2g}")
            return
        task.layer.weight.write(task.product.weight(new), context.editor)
        log.changed(name, f"{moved} of {new.size} weights moved: error of its output {before:.2g} → {after:.2g}")


@dataclass
class _Task:
    """A layer, and what is summed up for it; weights are g × k × n (see ``_products``)."""

    layer: QuantizedLayer
    product: Product = field(init=False)
    local: bool = False
    """Whether to make up for the rounding of its own weight alone, since layers before it change at the same time: to
    make up for what they do now would do so twice."""
    rows: int = 0
    _moments: Moments | None = None
    _held: list[tuple[Array, Array]] = field(default_factory=list)

    def __post_init__(self) -> None:
        layer = self.layer
        self.product = Product(layer.node, layer.float_weight.shape)
        size = self.product.size[1]
        if len(layer.weight.reader.outputs[0].uses()) > 1:
            raise Refuse("its weight is shared with another layer")
        if size > _LARGEST:
            raise Refuse(f"each output has {size} weights, and this takes memory for the square of at most {_LARGEST}")

    @property
    def bytes(self) -> int:
        """What the sums take, and the rows to judge by."""
        g, k, n = self.product.size
        return 8 * g * (3 * k * k + 4 * k * n + _ROWS[0] * k)

    def forget(self) -> None:
        """Let go of what was summed up."""
        self._moments = None
        self._held.clear()

    @property
    def nearest(self) -> Array:
        """The integers as they are."""
        return self.product.matrix(self.layer.weight.integers).astype(np.int64)

    def read(self, x: Array, rounded: Array, half: int, share: float, rng: np.random.Generator) -> None:
        """Take in rows of a batch that is ``share`` of all the data in the first ``half`` (to choose) or the second."""
        least, most = _ROWS
        wanted = min(max(_ROWS_PER_INPUT * self.product.size[1], least), most) if half == 0 else least
        there = self.product.count(x)
        places = np.sort(rng.choice(there, min(there, max(1, round(wanted * share))), replace=False))
        rows = self.product.rows(x, places), self.product.rows(rounded, places)
        if half == 1:
            self._held.append(rows)
            return
        if self._moments is None:
            self._moments = Moments(self.product.matrix(self.layer.float_weight))
        self._moments.add(*rows)
        self.rows += len(places)

    def choice(self) -> Array:
        """The integers to take."""
        layer, moments = self.layer, self._moments
        assert moments is not None
        steps, zero = self._grid(layer.weight.grid)
        weight = self.product.matrix(layer.float_weight).astype(np.float64)
        now = self.nearest
        # Inside what they span: the range may be narrower than the type, so that sums do not saturate.
        other = np.clip(np.where(weight / steps + zero > now, now + 1, now - 1), now.min(), now.max())
        low, high = np.minimum(other, now), np.maximum(other, now)
        up = choose(weight, (low - zero) * steps, (high - zero) * steps, moments)
        chosen: Array = np.where(up, high, low)
        return chosen

    def errors(self, integers: Array) -> float:
        """``‖X W − X̂ Ŵ‖² / ‖X W‖²`` on the rows of the second half."""
        steps, zero = self._grid(self.layer.weight.grid)
        weight = self.product.matrix(self.layer.float_weight)
        rounded = ((integers - zero) * steps).astype(np.float32)
        noise = signal = 0.0
        for x, y in self._held:
            exact = x @ weight
            signal += float(np.sum(exact.astype(np.float64) ** 2))
            noise += float(np.sum((exact - y @ rounded).astype(np.float64) ** 2))
        return noise / signal if signal > 0 else noise

    def _grid(self, grid: Grid) -> tuple[Array, Array]:
        """Scale and zero point of each weight."""
        shape = self.layer.float_weight.shape
        scale, zero = grid.aligned(len(shape))
        matrix = self.product.matrix
        return matrix(np.broadcast_to(scale.astype(np.float64), shape)), matrix(np.broadcast_to(zero, shape))
