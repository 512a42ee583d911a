"""What passes that split layers share: how much is to be saved, and by which layers.

All layers together get the forms that do least damage at the cost that is allowed, or that cost least at the noise
that is allowed (see ``_allocation``). The damage of a form is the noise that it makes at the model's outputs: what it
loses of the layer's output, times what a loss there does to the model, which is tried out for each layer alone. Then
the model is run with all of them, kernel by kernel, and a layer that takes as long as before stays whole.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from onnxopt import choices
from onnxopt.errors import OptionError
from onnxopt.pass_base import Context, Gate, Log, Pass, Report
from onnxopt.passes.lowrank._allocation import Choices, allocate
from onnxopt.passes.lowrank._forms import Form, Method, forms, full_rank, macs, parameters
from onnxopt.passes.lowrank._layers import splittable
from onnxopt.passes.lowrank._parts import Analysis, Chosen, Data, Part, analysed, analyses, as_dear, parts
from onnxopt.passes.lowrank._splitting import build
from onnxopt.passes.lowrank._trials import Trials
from onnxopt.passes.prune._structured import sample_feeds
from onnxopt.passes.prune.reconstruct import halves

Measure = Literal["parameters", "macs", "latency"]
Cost = Callable[[Part, Form | None], float]
"""What a layer costs in a form, or whole."""

_MEASURES = ("parameters", "macs", "latency")
_ALONE = ("energy", "error", "rank")
_TRIES = 4
"""How often layers that do not pay are left out, and predictions corrected, until the rest stands."""
_PLACES = (0.2, 0.5, 0.8)
"""Among the forms of a layer, from the smallest on: at these all methods are compared."""
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class SplitPass(Pass):
    """Write layers as several thinner ones."""

    block: ClassVar[int]
    """Ranks are multiples of what kernels take at a time."""

    ratio: float = 0.3
    """The share of ``of`` that all layers together are to save, in (0, 1);"""
    of: Measure = "macs"
    """``parameters``, ``macs``, or ``latency``, the time that these layers take."""
    min_sqnr: float | None = None
    """Instead of ``ratio``: as much of ``of`` is saved as leaves the outputs so many dB;"""
    energy: float | None = None
    """or each layer gets the least rank that keeps this share of its squared weights, in (0, 1];"""
    error: float | None = None
    """or loses at most this share of its output's variance, in (0, 1);"""
    rank: float | None = None
    """or this share of the full rank, in (0, 1)."""
    round_to: int = 0
    """Ranks are multiples of this; 0: what the kernels want, 1: any number."""
    timed: bool = True
    """Whether layers stay whole that do not get faster on this machine; without it they only get smaller."""
    seed: int = 0
    """Which rows of the inputs are drawn."""

    def __post_init__(self) -> None:
        if self.of not in _MEASURES:
            raise OptionError(f"{self.name}.of is one of {', '.join(_MEASURES)}; got {self.of!r}")
        for option in ("ratio", *_ALONE):
            share = getattr(self, option)
            if share is not None and not (0 < share < 1 or (option == "energy" and share == 1)):
                end = "]" if option == "energy" else ")"
                raise OptionError(f"{self.name}.{option} is a share in (0, 1{end}, got {share}")
        if sum(getattr(self, option) is not None for option in (*_ALONE, "min_sqnr")) > 1:
            raise OptionError(f"{self.name}: give one of min_sqnr, energy, error and rank")
        for option in ("round_to", "seed"):
            if getattr(self, option) < 0:
                raise OptionError(f"{self.name}.{option} is a number from 0 on, got {getattr(self, option)}")

    @abstractmethod
    def methods(self) -> Sequence[Method]:
        """Ways to split a layer, of which the first decides how much each layer is split."""

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        for option in ("error", "min_sqnr"):
            if getattr(self, option) is not None and context.data is None:
                raise OptionError(f"{self.name}.{option} needs calibration data: give data= (--data)")
        known, data = self._known(context, log)
        if not known and not log.report().refusals:
            log.refused("model", "it has no layer that could be split")
        if known:
            self._choose_once(known, data, context)
        for part in known:
            if part.chosen.form is None:
                for name in part.layer.names:
                    log.refused(name, f"stays whole: {part.chosen.reason or 'others save more for what they lose'}")
        build(known, data, context, log)
        return log.report()

    def survey(
        self, context: Context, shares: Sequence[float]
    ) -> list[tuple[str, int, float, float, float, float, float | None]]:
        """Each layer alone at these shares of its rank: label, rank, share of its arithmetic, share of its output's
        variance that is lost, µs whole and split, and the least SQNR of an output in dB (``None``: exact). Nothing is
        changed."""
        parts, data = self._known(context, Log(self, context))
        trials = Trials(context, sample_feeds(context))
        told: dict[Part, list[tuple[Form, float, float | None]]] = {}
        for part, known in analyses(parts, data):
            method, geometry = self.methods()[0], part.layer.geometry
            for share in shares:
                form = Form(method, (max(1, round(share * full_rank(method, geometry))),))
                if macs(form.stages(geometry), geometry) < macs(geometry.stages, geometry):
                    told.setdefault(part, []).append((form, known.loss_elsewhere(form), trials.noise(known, form)))
            del known
        times: dict[tuple[Part, Form], tuple[float, float]] = {}
        for at in range(len(shares)):
            wanted = {part: own[at][0] for part, own in told.items() if at < len(own)}
            times |= {(part, wanted[part]): both for part, both in (trials.times(wanted) or {}).items()}
        rows = []
        for part, own in told.items():
            geometry = part.layer.geometry
            for form, loss, noise in own:
                left = macs(form.stages(geometry), geometry) / macs(geometry.stages, geometry)
                before, after = (seconds * 1e6 for seconds in times.get((part, form), (math.nan, math.nan)))
                decibels = None if not noise else -10 * math.log10(noise)
                rows.append((", ".join(part.layer.names), form.ranks[0], left, loss, before, after, decibels))
        return rows

    def _known(self, context: Context, log: Log) -> tuple[list[Part], Data | None]:
        """The layers that may be split, and what tells of them; reasons against others are logged."""
        layers = splittable(self, self.ops or (), context, log)
        samples = halves(context) if context.data is not None and layers else None
        data = Data(context, samples, self.seed) if samples is not None else None
        return parts(layers, data, log), data

    @property
    def _multiple(self) -> int:
        return self.round_to or self.block

    def _choose_once(self, known: Sequence[Part], data: Data | None, context: Context) -> None:
        """The same choice again where it was made before, for times are never twice the same."""
        name = choices.key(self, context, *(part.key for part in known))
        found = choices.recall(name, dict[str, Chosen])
        if found is None:
            self._choose(known, data, context)
            choices.remember(name, {part.key: part.chosen for part in known})
        else:
            for part in known:
                part.chosen = found[part.key]

    def _choose(self, known: Sequence[Part], data: Data | None, context: Context) -> None:
        """Give each layer a form, or none."""
        trials = Trials(context, sample_feeds(context) if self.timed or self.of == "latency" else None)
        together = all(getattr(self, option) is None for option in _ALONE)
        for at, (part, analysis) in enumerate(analyses(known, data), 1):
            if context.on_progress is not None:
                context.on_progress(f"what each layer loses, {at} of {len(known)}")
            part.chosen.damping = analysis.damping
            if together:
                self._analyse(part, analysis, trials)
            else:
                self._choose_alone(part, analysis)
            del analysis
        cost = self._cost(known, trials)
        noise = allowed = None if self.min_sqnr is None else 10 ** (-self.min_sqnr / 10)
        for _ in range(_TRIES):
            if together:
                self._allocate(known, cost, noise)
            stay = self.timed and trials.time(known)
            made = None
            if noise is not None and any(part.chosen.form for part in known):
                trial = replace(context, editor=context.editor.copy(), gate=Gate())
                build(known, data, trial, Log(self, trial))
                made = trials.noise_of(trial.editor.model)
            if made is not None and noise is not None and allowed is not None and made > allowed:
                noise *= 0.8 * allowed / made
            elif not stay:
                return
        for part in known:
            if self.min_sqnr is not None and part.chosen.form is not None:
                part.chosen.form, part.chosen.reason = None, f"no choice of forms leaves {self.min_sqnr:g} dB"

    def _analyse(self, part: Part, known: Analysis, trials: Trials) -> None:
        """Find out what the layer loses in each form, what that does to the outputs, and what the best method gains."""
        options = self._options(part)
        if not options:
            part.chosen.reason = f"no rank that is a multiple of {self._multiple} saves anything"
            return
        part.losses = {form: known.loss(form) for form in options}
        part.tried = trials.weigh(known, options)
        if len(self.methods()) > 1:
            for form in dict.fromkeys(options[round(place * (len(options) - 1))] for place in _PLACES):
                best, left = known.best_of(self.methods(), self._multiple, form)
                part.best[form] = best.method, left

    def _cost(self, known: Sequence[Part], trials: Trials) -> Cost:
        if self.of == "latency":
            seconds = trials.seconds(known, self._options)
            if seconds is None:
                raise OptionError(f"{self.name}.of latency: the model cannot be timed; give data= (--data)")
            return lambda part, form: seconds[part](form) if part in seconds else 0.0
        count = parameters if self.of == "parameters" else macs

        def counted(part: Part, form: Form | None) -> float:
            geometry = part.layer.geometry
            return float(count(geometry.stages if form is None else form.stages(geometry), geometry))

        return counted

    def _options(self, part: Part) -> list[Form]:
        """The forms by the first method that are cheaper than the layer."""
        return list(forms(self.methods()[0], part.layer.geometry, self._multiple))

    def _choose_alone(self, part: Part, known: Analysis) -> None:
        """The form of a layer by a measure of its own."""
        geometry, method = part.layer.geometry, self.methods()[0]
        full = full_rank(method, geometry)
        if self.rank is not None:
            wanted = max(1, round(self.rank * full))
        else:
            judge, limit = known, self.error or 0.0
            if self.energy is not None:
                judge, limit = analysed(part.layer, None), 1 - self.energy + _ROUNDING
            wanted = 1 + bisect_left(range(1, full), True, key=lambda rank: judge.loss(Form(method, (rank,))) <= limit)
        for rank in (math.ceil(wanted / self._multiple) * self._multiple, wanted):
            form = Form(method, (rank,))
            if macs(form.stages(geometry), geometry) < macs(geometry.stages, geometry):
                part.chosen.form, _ = known.best_of(self.methods(), self._multiple, form)
                return
        part.chosen.reason = f"rank {wanted} of {full} saves nothing"

    def _allocate(self, known: Sequence[Part], cost: Cost, noise: float | None) -> None:
        """The forms that do least damage at the cost that is left, or that cost least at this ``noise``."""
        open_ = [part for part in known if not part.chosen.reason]
        options: list[list[Form | None]] = [[None, *part.losses] for part in open_]
        costs = [tuple(cost(part, form) for form in own) for part, own in zip(open_, options, strict=True)]
        damages = [
            tuple(0.0 if form is None else part.damage(form) for form in own)
            for part, own in zip(open_, options, strict=True)
        ]
        if noise is not None:
            taken = allocate([Choices(d, c) for d, c in zip(damages, costs, strict=True)], noise)
        else:
            whole = sum(cost(part, None) for part in known)
            fixed = sum(cost(part, None) for part in known if part not in open_)
            layers = [Choices(c, d) for c, d in zip(costs, damages, strict=True)]
            taken = allocate(layers, (1 - self.ratio) * whole - fixed)
            if taken is None and open_:
                least = (fixed + sum(map(min, costs))) / (whole or 1.0)
                raise OptionError(
                    f"{self.name}.ratio {self.ratio} of {self.of} cannot be reached: at most {1 - least:.1%} can be "
                    f"saved in these layers with this round_to{' by factors that are faster' if self.timed else ''}"
                )
        for part, own, at in zip(open_, options, taken or [0] * len(open_), strict=True):
            part.chosen.form = own[at]
            if (like := own[at]) is not None:
                method, _ = part.best_near(like)
                part.chosen.form = next(as_dear([method], part.layer, self._multiple, like), like)
