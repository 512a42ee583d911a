"""Fit the layers of a pruned model anew, so that each gives what it gave in the dense model.

Removing channels takes from the layers that read them what these channels brought. Most of that can be had from the
channels that are left, since they are correlated: for the rows ``X`` of what reaches a layer in the pruned model and
its outputs ``Y`` in the dense one, in the channels that were kept, weight and bias become

    argmin ‖Y − X W − b‖² + λ ‖W − W₀‖²,

which is solved in closed form from ``XᵀX`` and ``XᵀY``, streamed over the data (see ``_least_squares``). Layers go by
depth, each on what reaches it once those before it are fitted; a convolution that is added to a shortcut is fitted to
what the sum lacks. No labels are used. A layer keeps its old weights unless its error falls on samples that were not
used for the fit; ``λ`` is chosen by them too. Layers whose weights have to stay, because single ones were pruned or
because they are shared, get another bias alone, and so do all if there are no data: see ``_removed_means``.

Runs behind a pass that prunes, in one pipeline with it.

Sources: He, Zhang and Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, §3; Luo, Wu and
Lin, "ThiNet", ICCV 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

import numpy as np

from onnxopt.data import Dataset
from onnxopt.errors import OptionError
from onnxopt.pass_base import Context, Log, Pass, Refuse, Report
from onnxopt.passes.prune._cross_grams import Pair, reading
from onnxopt.passes.prune._least_squares import DAMPINGS, Array, Moments, refit_bias, refit_weight
from onnxopt.passes.prune._refits import REFITTED, Refit, refits
from onnxopt.passes.prune._removed_means import shift_biases

_SAMPLES = (128, 1024)
"""How many samples are fitted to, at least if there are so many, and at most;"""
_ELEMENTS = 1 << 24
"""in between as many as have so many elements: a large picture tells as much as many small ones."""
_HELD_OUT = 256
_EXACT = 1e-9
"""Errors below this are those of rounding."""


@dataclass(frozen=True, kw_only=True)
class Reconstruct(Pass):
    """Fit the layers of a pruned model anew, so that each gives what it gave in the dense model."""

    name: ClassVar[str] = "reconstruct"
    exact: ClassVar[bool] = False
    ops: ClassVar[frozenset[str]] = REFITTED

    seed: int = 0
    """Which rows of the inputs are drawn."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise OptionError(f"{self.name}.seed is a number from 0 on, got {self.seed}")

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        found = refits(self, context, log)
        if not found or context.original is None:
            return log.report()
        if context.data is None:
            shift_biases(found, context, log)
            return log.report()
        samples = halves(context)
        if samples is None:
            log.refused("model", "one sample is too few: some to fit to and others to judge by are needed")
            return log.report()
        dense = reading(context.original, samples[0])
        pairs = [Pair(dense, part, self.seed) for part in samples]
        readable = []
        for refit in found:
            if (why := pairs[0].unreadable(refit)) is None:
                readable.append(refit)
            else:
                log.refused(refit.name, f"what it should give is not known: {why}")
        for level, group in groupby(readable, key=lambda refit: refit.level):
            if context.gate.closed:
                break
            if context.on_progress is not None:
                context.on_progress(f"level {level} of {readable[-1].level}")
            self._fit(list(group), pairs, context, log)
        return log.report()

    def _fit(self, level: Sequence[Refit], pairs: Sequence[Pair], context: Context, log: Log) -> None:
        """Fit layers of which none depends on another."""
        assert context.data is not None
        pruned = reading(context.editor.model, context.data)
        fitted, held_out = (pair.moments(level, pruned) for pair in pairs)
        for refit in level:
            if context.gate.closed:
                return
            if refit not in fitted or refit not in held_out:
                log.refused(refit.name, "what it should give on these data is not known")
                continue
            old = refit.matrix()
            new = _best(refit, fitted.pop(refit), held_out[refit], old)
            before, after = held_out[refit].error(old), held_out[refit].error(new)
            what = "bias" if refit.fixed else "all"
            log.measured(node=refit.name, fitted=what, error_before=before, error_after=after)
            if before < _EXACT:
                log.refused(refit.name, "it gives what it gives in the dense model")
            elif not after < before:
                log.refused(refit.name, f"its weights are best as they are: error {before:.2g}, else {after:.2g}")
            else:
                try:
                    refit.put(new, context.editor)
                except Refuse as refusal:
                    log.refused(refit.name, str(refusal))
                    continue
                why = f"only its bias, for {refit.fixed}: " if refit.fixed else ""
                log.changed(refit.name, f"{why}error of its output {before:.2g} → {after:.2g}")


def _best(refit: Refit, fitted: Moments, held_out: Moments, old: Array) -> Array:
    """The weight of least error on the samples that it was not fitted to."""
    if refit.fixed:
        return refit_bias(fitted, old)
    found = [refit_weight(fitted, old, damping, bias=refit.has_bias) for damping in DAMPINGS]
    return found[int(np.argmin([held_out.error(each) for each in found]))]


def halves(context: Context) -> tuple[Dataset, Dataset] | None:
    """Samples to fit to, and others to judge by, if there are."""
    data, judge = context.data, context.evaluation
    assert data is not None
    if judge is None or judge.fingerprint == data.fingerprint:
        if data.units < 2:
            return None
        data, judge = data.split(0.75)
    largest = sum(array.size for array in next(data.largest().batches()).feeds.values())
    least, most = _SAMPLES
    return data.take(min(max(_ELEMENTS // max(largest, 1), least), most)), judge.take(_HELD_OUT)
