"""What is known of the layers of a model that may be split, and what each loses in a form.

Known are the moments of what a layer reads and gives, on samples to fit to and on others to judge by. Without data
there is the weight alone, and what is lost is a share of its squares. Moments take memory, so a layer is analysed while
its own are held, and what is kept of it is a ``Part``: what it loses, and what that does to the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir

from onnxopt.data import Dataset
from onnxopt.pass_base import Context, Log
from onnxopt.passes.lowrank._forms import Form, Method, forms, macs
from onnxopt.passes.lowrank._layers import Splittable
from onnxopt.passes.lowrank._methods import factorized
from onnxopt.passes.lowrank._own_moments import in_memory, own_moments
from onnxopt.passes.lowrank._stages import Stage, composed
from onnxopt.passes.lowrank._svd import Array, Problem
from onnxopt.passes.prune._cross_grams import Pair, reading
from onnxopt.passes.prune._least_squares import Moments
from onnxopt.passes.prune._refits import Refit

_DAMPING, _DAMPINGS = 1e-3, (1e-3, 0.1, 1.0)
"""The penalty in units of the mean diagonal of ``XᵀX``, and those to try where there are few rows,"""
_FEW = 8
"""for each input fewer than so many,"""
_OUTPUTS = 128
"""on about so many outputs of a group."""

_ROUNDING = 1e-9
_NEAR = 1.5
"""Fitting a form to the end takes a third of its error away, at most about."""
_HALF = 0.5
"""Losses above this do not add up any more."""
_MEMORY = 1 << 28
"""So many bytes of Gram matrices are held at once, and as many to judge by."""

Known = tuple[list[Moments], list[Moments]]
"""The moments of a layer at each of its nodes, to fit to and to judge by."""


@dataclass
class Chosen:
    """What becomes of a layer."""

    form: Form | None = None
    damping: float = _DAMPING
    seconds: tuple[float, float] | None = None
    """Of the layer as it was, and split."""
    reason: str = ""
    """Why it stays whole."""


@dataclass(eq=False)
class Part:
    """A layer that may be split, what it would lose, and what becomes of it."""

    layer: Splittable
    losses: dict[Form, float] = field(default_factory=dict)
    """The share of its output's variance that it loses in each form by the first method that is cheaper."""
    tried: tuple[tuple[float, float], ...] = ()
    """What the layer alone lost of its output in a few forms, the least first, and the noise that this made at the
    outputs of the model."""
    best: dict[Form, tuple[Method, float]] = field(default_factory=dict)
    """For a few forms by the first method that which loses least at the same cost, and the share of the loss that it
    leaves."""
    chosen: Chosen = field(default_factory=Chosen)

    @property
    def key(self) -> str:
        """What names the layer in every copy of the model."""
        return self.layer.nodes[0].outputs[0].name or ""

    def best_near(self, form: Form) -> tuple[Method, float]:
        """The best method in place of ``form``, and the share of the loss that it leaves, as at the nearest form of
        which that is known."""
        if not self.best:
            return form.method, 1.0
        return self.best[min(self.best, key=lambda known: abs(known.ranks[0] - form.ranks[0]))]

    def damage(self, form: Form) -> float:
        """The noise at the outputs of the model in this form: noise follows what is lost up to the least that was
        tried, and a power of it from there on, for large losses do more than their share. That noises add up holds
        for small ones, so a layer that loses more than half of what it gives counts as noise as large as the signal."""
        loss = self.losses[form]
        if loss > _HALF:
            return 1.0 + loss
        loss *= self.best_near(form)[1]
        if not self.tried:
            return loss
        losses, noises = np.maximum(self.tried, _ROUNDING).T
        if loss <= losses[0]:
            return float(noises[0] * loss / losses[0])
        return float(np.exp(np.interp(np.log(loss), np.log(losses), np.log(noises))))


@dataclass(eq=False)
class Analysis:
    """A layer, and what it gives."""

    layer: Splittable
    fitted: list[Problem]
    """What each group gives in the model as it is,"""
    judged: list[Problem]
    """and what it gives on samples that nothing is fitted to."""
    damping: float = _DAMPING

    @cached_property
    def errors(self) -> Array:
        """The least share of its output's variance that two factors of rank 0, 1, … lose."""
        energy = sum(problem.energy for problem in self.fitted) or 1.0
        found: Array = np.sum([problem.errors() for problem in self.fitted], axis=0) / energy
        return found

    def loss(self, form: Form) -> float:
        """The share of its output's variance that is lost in this form."""
        return float(self.errors[form.ranks[0]]) if form.method == "svd" else lost(self.stages(form), self.fitted)

    def loss_elsewhere(self, form: Form, *, rough: bool = False) -> float:
        """The same on samples that nothing is fitted to."""
        return lost(self.stages(form, rough=rough), self.judged)

    def stages(self, form: Form, *, rough: bool = False) -> list[list[Stage]]:
        """The stages of each group in this form; ``rough`` ones are not fitted to the end."""
        return stages(self.layer, form, self.fitted, rough=rough)

    def best_of(self, methods: Sequence[Method], multiple: int, like: Form) -> tuple[Form, float]:
        """Of the dearest forms by each method with no more arithmetic than ``like`` the one that loses least on other
        samples, and the share of the loss of ``like`` that it leaves. Only those are fitted to the end that come near
        to the best at the start."""
        rough = {form: self.loss_elsewhere(form, rough=True) for form in as_dear(methods, self.layer, multiple, like)}
        found = {like: self.loss_elsewhere(like)}
        limit = _NEAR * min((*found.values(), *rough.values()))
        found |= {form: self.loss_elsewhere(form) for form, loss in rough.items() if loss <= limit}
        best = min(found, key=found.__getitem__)
        return best, found[best] / max(found[like], _ROUNDING)


def as_dear(methods: Iterable[Method], layer: Splittable, multiple: int, like: Form) -> Iterator[Form]:
    """The dearest form by each method with no more arithmetic than ``like``, but for the method of that."""
    geometry = layer.geometry
    allowed = macs(like.stages(geometry), geometry)
    for method in methods:
        fitting = [f for f in forms(method, geometry, multiple) if macs(f.stages(geometry), geometry) <= allowed]
        if fitting and method != like.method:
            yield max(fitting, key=lambda form: macs(form.stages(geometry), geometry))


def stages(layer: Splittable, form: Form, fitted: Sequence[Problem], *, rough: bool = False) -> list[list[Stage]]:
    """The stages of each group of a layer, of least error for these problems."""
    return [
        factorized(form, layer.kernel(weight), problem, rough=rough)
        for weight, problem in zip(layer.matrices(), fitted, strict=True)
    ]


def damped(layer: Splittable, moments: Sequence[Moments], damping: float) -> list[Problem]:
    """What each group is to give, with a penalty for leaving the weights as they are."""
    return [p.damped(weight, damping) for weight, p in zip(layer.matrices(), layer.problems(moments), strict=True)]


def analysed(layer: Splittable, known: Known | None) -> Analysis:
    """What is known of a layer from its moments; without, from its weight."""
    if known is None:
        free = layer.data_free()
        return Analysis(layer, free, free)
    judged = layer.problems(known[1])
    few = sum(each.rows for each in known[0]) < _FEW * layer.geometry.weights
    damping = _best_damping(layer, known[0], judged) if few else _DAMPING
    return Analysis(layer, damped(layer, known[0], damping), judged, damping)


def _best_damping(layer: Splittable, moments: Sequence[Moments], judged: Sequence[Problem]) -> float:
    """The penalty with which a third of the rank loses least elsewhere, told from some of the outputs."""
    step = max(1, layer.geometry.kernel[0] // _OUTPUTS)
    wanted = [problem.of_outputs(step) for problem in judged]
    found = {}
    for damping in _DAMPINGS:
        noise = 0.0
        for fitted, other in zip(damped(layer, moments, damping), wanted, strict=True):
            some = fitted.of_outputs(step)
            a, b = some.factors(max(1, min(some.cross.shape) // 3))
            noise += other.error(a @ b)
        found[damping] = noise
    return min(found, key=found.__getitem__)


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
        self._samples, self._seed = samples, seed
        self._dense = reading(self._model, samples[0])
        self._pairs = [Pair(self._dense, part, seed) for part in samples]

    def unreadable(self, layer: Splittable) -> str | None:
        """Why nothing can be known of a layer, if so."""
        reasons = (self._pairs[0].unreadable(refit) for refit in layer.refits)
        return next((reason for reason in reasons if reason is not None), None)

    def own_moments(self, layers: Sequence[Splittable]) -> list[Known | None]:
        """The moments of each layer in the model as it is, on both parts of the samples; ``None`` for one with a node
        that is not computed on them."""
        refits = [refit for layer in layers for refit in layer.refits]
        found = [own_moments(refits, self._dense.over(part), len(part), self._seed) for part in self._samples]
        return [_complete(layer, *found) for layer in layers]

    def moments(self, layers: Sequence[Splittable], now: ir.Model) -> list[Known | None]:
        """The same with inputs as in the model ``now``, and outputs as in the model as it was."""
        after = reading(now, self._samples[0])
        first: dict[Refit, Moments] = {}
        second: dict[Refit, Moments] = {}
        for refits in _apart(refit for layer in layers for refit in layer.refits):
            first |= self._pairs[0].moments(refits, after)
            second |= self._pairs[1].moments(refits, after)
        return [_complete(layer, first, second) for layer in layers]


def _complete(layer: Splittable, first: dict[Refit, Moments], second: dict[Refit, Moments]) -> Known | None:
    if not all(refit in first and refit in second for refit in layer.refits):
        return None
    return [first[refit] for refit in layer.refits], [second[refit] for refit in layer.refits]


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
    """The layers of which something can be known; reasons against others are logged."""
    found = []
    for layer in layers:
        if data is not None and (why := data.unreadable(layer)) is not None:
            for name in layer.names:
                log.refused(name, f"what it reads is not known: {why}")
        else:
            found.append(Part(layer))
    return found


def analyses(parts: Sequence[Part], data: Data | None) -> Iterator[tuple[Part, Analysis]]:
    """What is known of each layer, which is to be let go before the next; one that is not computed on the data stays
    whole and does not come."""
    for numbers in in_memory([part.layer.refits for part in parts], _MEMORY):
        together = [parts[at] for at in numbers]
        found = [None for _ in together] if data is None else data.own_moments([part.layer for part in together])
        while together:
            part, known = together.pop(0), found.pop(0)
            if data is not None and known is None:
                part.chosen.reason = "it is not computed on these data"
            else:
                yield part, analysed(part.layer, known)
