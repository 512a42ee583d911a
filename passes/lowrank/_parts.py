"""What is known of the layers of a model that may be split, and what each loses in a form.

Known are the moments of what a layer reads and gives, on samples to fit to and on others to judge by. Without data
there is the weight alone, and what is lost is a share of its squares.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir

from onnxopt.data import Dataset
from onnxopt.pass_base import Context, Log
from onnxopt.passes.lowrank._forms import Form, Method, forms, full_rank, macs
from onnxopt.passes.lowrank._layers import Splittable
from onnxopt.passes.lowrank._methods import factorized
from onnxopt.passes.lowrank._stages import Stage, composed
from onnxopt.passes.lowrank._svd import Array, Problem
from onnxopt.passes.prune._cross_grams import Pair, reading
from onnxopt.passes.prune._least_squares import Moments
from onnxopt.passes.prune._refits import Refit

_DAMPING, _DAMPINGS = 1e-3, (1e-3, 0.1, 1.0)
"""The penalty in units of the mean diagonal of ``XᵀX``, and those to try where there are few rows,"""
_FEW = 8
"""for each input fewer than so many."""

_ROUNDING = 1e-9
_HALF = 0.5
"""Losses above this do not add up any more."""
_MEMORY = 1 << 28
"""So many bytes of moments are held at once, and as many to judge by."""

Known = tuple[list[Moments], list[Moments]]
"""The moments of a layer at each of its nodes, to fit to and to judge by."""


@dataclass
class Chosen:
    """What becomes of a layer."""

    form: Form | None = None
    seconds: tuple[float, float] | None = None
    """Of the layer as it was, and split."""
    reason: str = ""
    """Why it stays whole."""


@dataclass(eq=False)
class Part:
    """A layer that may be split, what is known of it, and what becomes of it."""

    layer: Splittable
    fitted: list[Problem]
    """What each group gives in the model as it is,"""
    judged: list[Problem]
    """and what it gives on samples that nothing is fitted to."""
    tried: tuple[tuple[float, float], ...] = ()
    """What the layer alone lost of its output in a few forms, the least first, and the noise that this made at the
    outputs of the model."""
    gain: float = 1.0
    """What the best method loses, for each share that the first one loses at the same cost."""
    chosen: Chosen = field(default_factory=Chosen)

    @property
    def key(self) -> str:
        """What names the layer in every copy of the model."""
        return self.layer.nodes[0].outputs[0].name or ""

    @cached_property
    def errors(self) -> Array:
        """The least share of its output's variance that two factors of rank 0, 1, … lose."""
        energy = sum(problem.energy for problem in self.fitted) or 1.0
        found: Array = np.sum([problem.errors() for problem in self.fitted], axis=0) / energy
        return found

    def loss(self, form: Form) -> float:
        """The share of its output's variance that is lost in this form."""
        return float(self.errors[form.ranks[0]]) if form.method == "svd" else lost(self.stages(form), self.fitted)

    def damage(self, form: Form) -> float:
        """The noise at the outputs of the model in this form: noise follows what is lost up to the least that was
        tried, and a power of it from there on, for large losses do more than their share. That noises add up holds
        for small ones, so a layer that loses more than half of what it gives counts as noise as large as the signal."""
        loss = self.loss(form)
        if loss > _HALF:
            return 1.0 + loss
        loss *= self.gain
        if not self.tried:
            return loss
        losses, noises = np.maximum(self.tried, _ROUNDING).T
        if loss <= losses[0]:
            return float(noises[0] * loss / losses[0])
        return float(np.exp(np.interp(np.log(loss), np.log(losses), np.log(noises))))

    def stages(self, form: Form) -> list[list[Stage]]:
        """The stages of each group in this form."""
        return stages(self.layer, form, self.fitted)

    def best_of(self, methods: Sequence[Method], multiple: int, like: Form) -> tuple[float, Form]:
        """Of the dearest forms by each method with no more arithmetic than ``like`` the one that loses least on other
        samples, and what it loses."""
        geometry, found = self.layer.geometry, [(lost(self.stages(like), self.judged), like)]
        allowed = macs(like.stages(geometry), geometry)
        for method in methods:
            fitting = [f for f in forms(method, geometry, multiple) if macs(f.stages(geometry), geometry) <= allowed]
            if fitting and method != like.method:
                dearest = max(fitting, key=lambda form: macs(form.stages(geometry), geometry))
                found.append((lost(self.stages(dearest), self.judged), dearest))
        return min(found, key=lambda each: each[0])


def stages(layer: Splittable, form: Form, fitted: Sequence[Problem]) -> list[list[Stage]]:
    """The stages of each group of a layer, of least error for these problems."""
    return [
        factorized(form, layer.kernel(weight), problem)
        for weight, problem in zip(layer.matrices(), fitted, strict=True)
    ]


def damped(layer: Splittable, moments: Sequence[Moments], judged: Sequence[Problem], form: Form) -> list[Problem]:
    """What each group is to give, with a penalty for leaving the weights as they are; where there are few rows, that
    with which ``form`` loses least elsewhere."""
    fitted = layer.problems(moments)
    few = sum(each.rows for each in moments) < _FEW * len(fitted[0].gram)
    best: tuple[float, list[Problem]] | None = None
    for damping in _DAMPINGS if few else (_DAMPING,):
        problems = [p.damped(weight, damping) for weight, p in zip(layer.matrices(), fitted, strict=True)]
        loss = lost(stages(layer, form, problems), judged) if few else 0.0
        if best is None or loss < best[0]:
            best = loss, problems
    assert best is not None
    return best[1]


def lost(groups: Sequence[Sequence[Stage]], problems: Sequence[Problem]) -> float:
    """The share of the variance of a layer's output that its groups lose, each in stages."""
    noise = energy = 0.0
    for stages, problem in zip(groups, problems, strict=True):
        kernel = composed(stages)
        noise += problem.error(kernel.reshape(len(kernel), -1).T)
        energy += problem.energy
    return noise / (energy or 1.0)


def merged(groups: Sequence[Sequence[Stage]]) -> list[Stage]:
    """The stages of all groups side by side."""
    return [Stage(np.concatenate([s.kernel for s in each]), each[0].group) for each in zip(*groups, strict=True)]


class Data:
    """Samples to fit to and others to judge by, run through the model as it is and as it becomes."""

    def __init__(self, context: Context, samples: tuple[Dataset, Dataset], seed: int) -> None:
        self._model = context.editor.copy().model
        self._samples = samples
        dense = reading(self._model, samples[0])
        self._pairs = [Pair(dense, part, seed) for part in samples]

    def readable(self, layer: Splittable) -> str | None:
        """Why nothing can be known of a layer, if so."""
        reasons = (self._pairs[0].unreadable(refit) for refit in layer.refits)
        return next((reason for reason in reasons if reason is not None), None)

    def moments(self, layers: Sequence[Splittable], now: ir.Model | None = None) -> list[Known | None]:
        """The moments of each layer on both parts of the samples, with its inputs as in the model ``now``; ``None`` for
        one with a node that is not computed on them."""
        after = reading(now or self._model, self._samples[0])
        first: dict[Refit, Moments] = {}
        second: dict[Refit, Moments] = {}
        for refits in _apart(refit for layer in layers for refit in layer.refits):
            first |= self._pairs[0].moments(refits, after)
            second |= self._pairs[1].moments(refits, after)
        return [
            ([first[refit] for refit in layer.refits], [second[refit] for refit in layer.refits])
            if all(refit in first and refit in second for refit in layer.refits)
            else None
            for layer in layers
        ]


def _apart(refits: Iterable[Refit]) -> list[list[Refit]]:
    """``refits`` in groups in which each has a target of its own, which is what moments are told apart by."""
    groups: list[dict[str, Refit]] = []
    for refit in refits:
        free = next((group for group in groups if refit.target not in group), None)
        if free is None:
            groups.append(free := {})
        free[refit.target] = refit
    return [list(group.values()) for group in groups]


def parts(layers: Sequence[Splittable], data: Data | None, log: Log) -> list[Part]:
    """What is known of each layer; without data, its weight. Reasons against those of which nothing is are logged."""
    if data is None:
        return [Part(layer, layer.data_free(), layer.data_free()) for layer in layers]
    found, known = [], []
    for layer in layers:
        if (why := data.readable(layer)) is None:
            known.append(layer)
        else:
            _refuse(layer, f"what it reads is not known: {why}", log)
    for together in _in_memory(known):
        for layer, moments in zip(together, data.moments(together), strict=True):
            if moments is None:
                _refuse(layer, "it is not computed on these data", log)
                continue
            judged = layer.problems(moments[1])
            middle = Form("svd", (max(1, full_rank("svd", layer.geometry) // 3),))
            found.append(Part(layer, damped(layer, moments[0], judged, middle), judged))
    return found


def _in_memory(layers: Sequence[Splittable]) -> list[list[Splittable]]:
    """``layers`` in groups whose moments fit into memory together."""
    groups: list[list[Splittable]] = []
    room = 0
    for layer in layers:
        size = sum(refit.bytes for refit in layer.refits)
        if not groups or size > room:
            groups.append([])
            room = _MEMORY
        groups[-1].append(layer)
        room -= size
    return groups


def _refuse(layer: Splittable, why: str, log: Log) -> None:
    for name in layer.names:
        log.refused(name, why)
