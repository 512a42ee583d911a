"""What the inputs of a pruned model have in common with the outputs of the dense one, layer by layer.

Both models run over the same data side by side; of what comes, a batch at a time, rows are drawn at random, unfolded
in blocks, summed up into ``XᵀX`` and ``XᵀY`` and let go. Places beside each other see nearly the same, so a part of
them tells as much as all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxopt.data import Dataset
from onnxopt.passes.prune._layer_grams import drawn
from onnxopt.passes.prune._least_squares import Array, Moments
from onnxopt.passes.prune._refits import Refit
from onnxopt.stats import Statistics

_ROWS = 32768
"""How many rows are taken of all data, at least if there are so many;"""
_ROWS_PER_WEIGHT = 8
"""more where an output has many weights."""


def reading(model: ir.Model, data: Dataset) -> Statistics:
    """The tensors of ``model``, to be read and not kept."""
    return Statistics(model, data, memory=1 << 28, cache=None)


def rows_wanted(weights: int, share: float) -> int:
    """How many rows of a ``share`` of the data are taken for outputs with so many weights."""
    return max(1, round(max(_ROWS, _ROWS_PER_WEIGHT * weights) * min(1.0, share)))


class Pair:
    """The dense model and data to run it on, beside the pruned one."""

    def __init__(self, dense: Statistics, data: Dataset, seed: int) -> None:
        self._dense, self._data, self._seed = dense.over(data), data, seed

    def unreadable(self, refit: Refit) -> str | None:
        """Why what the layer should give cannot be known, if so."""
        return self._dense.reachable(refit.target)

    def moments(self, refits: Sequence[Refit], pruned: Statistics) -> dict[Refit, Moments]:
        """The moments of each layer.

        There are none of one that is not computed on these data, or of which it is not known what is left of its rows.
        """
        after = pruned.over(self._data)
        by_target = {refit.target: refit for refit in refits}
        generators = {refit: np.random.default_rng([self._seed, at]) for at, refit in enumerate(refits)}
        found: dict[Refit, Moments] = {}
        extra = {refit.target: refit.bytes for refit in refits}
        for part in self._dense.parts(by_target, extra):
            wanted = [by_target[name] for name in part.names]
            read = list(dict.fromkeys(name for refit in wanted for name in _read(refit)))
            batches = zip(self._dense.arrays(part.names, part.rows), after.arrays(read, part.rows), strict=True)
            for targets, arrays in batches:
                for refit in wanted:
                    if refit.target not in targets or not all(name in arrays for name in _read(refit)):
                        continue
                    x, *rest = (arrays[name] for name in _read(refit))
                    target = refit.wanted(targets[refit.target], *rest)
                    if refit.is_row_by_row(target, x):
                        moments = found.setdefault(refit, Moments(*refit.product.size))
                        self._add(moments, refit, target, x, generators[refit])
        return found

    def _add(self, moments: Moments, refit: Refit, target: Array, x: Array, rng: np.random.Generator) -> None:
        wanted = rows_wanted(refit.product.size[1], len(x) / max(len(self._data), 1))
        g, k, _ = refit.product.size
        for places in drawn(refit.product.count(x), wanted, g * k, rng):
            moments.add(refit.product.rows(x, places), refit.outputs(target, places))


def _read(refit: Refit) -> list[str]:
    """The tensors of the pruned model that are wanted."""
    return [refit.input] if refit.rest is None else [refit.input, refit.rest.name or ""]
