"""The smallest or fastest model that holds a budget of loss, found by search over what may be done to each layer.

What each change gains and harms alone is measured (``space``). A mixed-integer program chooses changes that together
make no more noise than is allowed (``allocation``); the plan is carried out and measured (``trials``), which corrects
what is predicted, and the noise that is allowed grows or shrinks until the budget is just held (``narrowing``). Each
method is tried alone too, and quantization as the recipe ``int8`` places it, so that the result is never behind any of
these. What was found best must then hold the budget on samples that nothing was fitted to or chosen by.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from onnxopt.data import Dataset, load_data
from onnxopt.errors import DataError, EngineError, MetricError, OptionError
from onnxopt.inspection import Costs, costs
from onnxopt.model import save
from onnxopt.runtime import Session, Snapshot
from onnxopt.search.allocation import Plan, predict
from onnxopt.search.bench import Bench, file_size
from onnxopt.search.budget import Budget, Found
from onnxopt.search.jobs import Evaluations, InProcess
from onnxopt.search.metric import Yardstick, metric_for, samples_needed
from onnxopt.search.narrowing import Narrowing, corrected
from onnxopt.search.plans import known_plans, recipe_text
from onnxopt.search.space import METHODS, Method, Space, explore
from onnxopt.search.trials import Measured, Trials
from onnxopt.search.workers import LocalWorkers

FITTED = 0.4
"""The share of the samples that passes see, where no others are given for the rest."""
KEPT = 2 / 3
"""Of those that passes do not see, the share that is kept for the end; plans are compared on the others."""
_TRIES, _TRIES_ALONE = 8, 5
"""So many plans by all methods, and by each alone, are measured to find out how much noise the budget allows."""
_CALM = 3
"""So many plans are measured besides that make less noise than is allowed."""
_EXPLORED = 0.4
"""The most of the time that what each change does alone may take."""
_EPOCHS = 10
_CALMER = 0.8
"""Where one loses too much on the samples that are kept, the next makes at most so much of the noise that would do if
losses went with noise."""
_FINALISTS = 4
"""So many models may be judged on the samples that are kept for the end: of many, one would hold by luck."""


@dataclass
class AutoResult:
    """What a search found."""

    model: ir.Model
    chosen: Found
    holds: bool
    """Whether the model holds the budget; if not, it is the nearest that was found, and ``problem`` says why."""
    problem: str
    found: list[Found]
    """All models that were made; those that were judged in the end have that with them."""
    pareto: list[Found]
    """Those that no other beats in loss and in the target, from the least loss on."""
    recipe: str
    """A recipe file that makes the model again, without a search."""
    budget: Budget
    metric: str
    space: Space
    evaluations: int
    """How many evaluations were made in this run,"""
    reused: int
    """and how many were known from before."""
    seconds: float
    before: Costs
    """What the original costs."""
    recipes: Callable[[Found], str]
    """The recipe file of any model that was found,"""
    models: Callable[[Found], ir.Model]
    """and the model."""

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write the model atomically (see ``onnxopt.save``)."""
        save(self.model, path, force=force)


def auto(
    model: ir.Model,
    *,
    data: Any,
    evaluation: Any = None,
    budget: Budget | None = None,
    metric: str = "auto",
    methods: Sequence[Method] = METHODS,
    train: bool = True,
    time_budget: float = 1800.0,
    workers: int = 0,
    worker_memory: float | None = None,
    executor: Executor | None = None,
    on_progress: Callable[[str], None] = lambda text: None,
) -> AutoResult:
    """Search for the model that has least of the target within the budget.

    ``data``: samples to fit to; ``evaluation``: others, of which a third is to compare plans on, and the result must
    hold the budget on the rest; without them three fifths of ``data`` are these. ``train``: whether models may be
    trained by distillation.
    ``time_budget``: seconds, after which no other evaluation begins. Evaluations run in this process, or in
    ``workers`` processes that may take ``worker_memory`` GB each, or on any ``executor``, whose workers should be
    machines like the one that the model is for.

    Raises ``DataError`` if there are too few samples for what is promised, ``OptionError`` for a wrong option,
    ``MetricError`` if the metric fails, ``EngineError`` if the model does not run.
    """
    started = time.monotonic()
    budget = budget or Budget()
    if unknown := set(methods) - set(METHODS):
        raise OptionError(f"methods are some of {', '.join(METHODS)}; got {', '.join(sorted(unknown))}")
    if not methods:
        raise OptionError(f"a search needs methods: some of {', '.join(METHODS)}")
    if not time_budget > 0:
        raise OptionError(f"the time budget is in seconds above 0, got {time_budget}")
    fitted, others, share = _samples(model, data, evaluation)
    compared, kept = others.split(1 - KEPT)
    original = Snapshot.of(model)
    judged_by = metric_for(metric, original, kept)
    if len(kept) < (needed := samples_needed(judged_by, budget.max_drop)):
        raise DataError(
            f"whether {judged_by.name} falls by at most {budget.max_drop:.2%} cannot be told from the {len(kept)} "
            f"samples that are kept to judge by: {needed} are needed; give "
            f"{to_give(needed, to_fit=evaluation is None)}, or a larger drop"
        )
    bench = Bench(original, fitted, compared, judged_by.name)
    last = Yardstick(judged_by, original, kept)
    budget = replace(budget, samples=len(kept))
    own = executor is None
    if executor is None:
        executor = LocalWorkers(workers, memory=worker_memory) if workers else InProcess()
    with executor if own else nullcontext():
        evaluations = Evaluations(bench.packed(), bench.key, executor, started + time_budget, on_progress)
        trials = Trials(bench, evaluations)
        narrowings = _TRIES + _CALM + _TRIES_ALONE * (len(methods) * (len(methods) > 1) + train)
        evaluations.planned = 1 + len(plans := known_plans(bench.cleaned, methods, budget.target)) + narrowings
        (cleaned,) = trials.measure([Plan()])
        if cleaned.problem:
            raise EngineError(f"the model could not be measured: {cleaned.problem}")
        trials.measure(plans)
        evaluations.end = started + _EXPLORED * time_budget
        space = explore(bench, methods, evaluations, small=budget.target == "size")
        evaluations.end = started + time_budget
        search = _Search(bench, space, trials, cleaned, budget, tuple(methods), train)
        search.run()
        return _settle(search, last, share, started)


def to_give(kept: int, *, to_fit: bool) -> int:
    """Of how many samples so many are kept for the end; ``to_fit``: others of them are to fit to."""
    return math.ceil(kept / (KEPT * (1 - FITTED if to_fit else 1.0)) - 1e-6)


def _samples(model: ir.Model, data: Any, evaluation: Any) -> tuple[Dataset, Dataset, float]:
    """The samples that passes see, the others, and which share of ``data`` the first are."""
    given = load_data(data, model)
    if given.random:
        raise DataError("a search needs samples like those that the model will meet, not made-up ones")
    if evaluation is None:
        if given.units < 4:
            raise DataError(
                f"a search needs samples to fit, to compare and to judge on: {given.units} are too few; give more"
            )
        return *given.split(FITTED), FITTED
    others = load_data(evaluation, model)
    if min(given.units, others.units) < 2:
        raise DataError("a search needs at least two samples to fit to, and two others to compare and to judge on")
    return given, others, 1.0


class _Search:
    """The plans that are tried, and what they came to."""

    def __init__(
        self, bench: Bench, space: Space, trials: Trials, cleaned: Measured, budget: Budget,
        methods: tuple[Method, ...], train: bool,
    ) -> None:  # fmt: skip
        self.bench, self.space, self.trials, self.cleaned, self.budget = bench, space, trials, cleaned, budget
        self._methods, self._train = methods, train
        self.size = file_size(bench.model)
        self._predicted: dict[Plan, tuple[float, float]] = {}
        self._correction = corrected(space, [], self.cleaned)

    def run(self) -> None:
        """Try plans by all methods and by each alone, as long as there is time."""
        every = Narrowing(self.space, self.budget, self._methods, _TRIES, calmer=_CALM)
        alone = [
            Narrowing(self.space, self.budget, (m,), _TRIES_ALONE) for m in self._methods if len(self._methods) > 1
        ]
        self._narrow([every, *alone])
        structural = tuple(method for method in self._methods if method != "quantize")
        if self._train and structural:
            again = Narrowing(self.space, self.budget, self._methods, _TRIES_ALONE, epochs=self._epochs())
            again.noise = again.noise if not every.low else 4 * every.low
            if again.epochs:
                self._narrow([again])

    def found(self) -> list[Found]:
        """All models that were made."""
        return [self.beside_original(each) for each in self.trials.made.values() if not each.problem]

    def beside_original(self, measured: Measured) -> Found:
        """What was measured, in units of the original's."""
        size, macs = measured.bytes / self.size, measured.macs / (self.space.macs or 1.0)
        latency, noise = self._predicted.get(measured.plan, (measured.latency, measured.noise))
        return Found(measured, measured.latency, size, macs, latency, noise)

    def _narrow(self, narrowings: Sequence[Narrowing]) -> None:
        """Measure plans, one of each search at a time: what is learnt of one corrects what is expected of all."""
        while not self.trials.evaluations.is_over:
            proposed = [(each, plan) for each in narrowings if (plan := each.propose(self._correction)) is not None]
            if not proposed:
                return
            for (narrowing, _), measured in zip(proposed, self._measure([plan for _, plan in proposed]), strict=True):
                narrowing.learn(measured)

    def _measure(self, plans: Sequence[Plan]) -> list[Measured]:
        for plan in plans:
            expected = predict(self.space, plan, self._correction)
            latency = self.cleaned.latency * (1 - expected.saved["latency"] / (self.space.seconds or 1.0))
            self._predicted.setdefault(plan, (latency, expected.noise))
        found = self.trials.measure(plans)
        self._correction = corrected(self.space, list(self.trials.made.values()), self.cleaned)
        return found

    def _epochs(self) -> int:
        """For how many epochs a model can be trained in a part of the time that is left; 0: for none."""
        left = self.trials.evaluations.end - time.monotonic()
        fitted = self.bench.samples.calibration
        assert fitted is not None
        session = Session(self.bench.original, threads=1)
        start, samples = time.perf_counter(), 0
        for batch in fitted.take(256).small_batches():
            session.run(batch.feeds)
            samples += batch.samples
        epoch = 8 * (time.perf_counter() - start) / samples * len(fitted)
        return int(min(_EPOCHS, left / (_TRIES_ALONE + 1) // max(epoch, 1e-6)))


def _settle(search: _Search, yardstick: Yardstick, share: float, started: float) -> AutoResult:
    """The best model that holds the budget on the samples that were kept; if none does, the nearest."""
    budget, found = search.budget, search.found()
    near = sorted((f for f in found if budget.is_within_limits(f)), key=lambda f: f.cost(budget.target))
    likely = [f for f in near if budget.is_likely(f.measured.loss)]
    chosen, problem, finals = None, "", _Finals(search, yardstick)
    for tried in range(_FINALISTS):
        if not likely or chosen is not None:
            break
        if tried == _FINALISTS - 1:  # the last may be cautious
            likely.sort(key=lambda f: f.measured.noise)
        candidate = finals.judge(likely[0])
        noise = _CALMER * likely[0].measured.noise
        if candidate.final is not None:
            noise *= min(1.0, budget.max_drop / max(candidate.final.high, 1e-9))
            chosen = candidate if budget.is_held(candidate.final) else None
        likely = [f for f in likely if f.measured.noise < noise]
    if chosen is None:
        chosen, problem = _nearest(budget, near or found, finals)
    found = [finals.judged.get(each.measured.plan, each) for each in found]
    evaluations = search.trials.evaluations
    early = evaluations.gone and f"the search ended early: {evaluations.gone}"
    unkept = evaluations.unkept and f"a search that is interrupted would start anew: {evaluations.unkept}"
    problem = "; ".join(filter(None, (problem, *finals.failures, early, unkept)))

    def recipe_of(each: Found) -> str:
        passes = search.trials.passes(each.measured)
        return recipe_text(passes, share, f"Found by onnxopt auto: {each.measured.plan}.")

    return AutoResult(
        model=search.trials.model_of(chosen.measured),
        chosen=chosen,
        holds=chosen.final is not None and budget.is_held(chosen.final) and budget.is_within_limits(chosen),
        problem=problem,
        found=found,
        pareto=pareto(found, budget),
        recipe=recipe_of(chosen),
        budget=budget,
        metric=yardstick.metric.name,
        space=search.space,
        evaluations=evaluations.count,
        reused=evaluations.reused,
        seconds=time.monotonic() - started,
        before=replace(costs(search.bench.model), file_bytes=search.size),
        recipes=recipe_of,
        models=lambda each: search.trials.model_of(each.measured),
    )


class _Finals:
    """The models that were judged on the samples that were kept."""

    def __init__(self, search: _Search, yardstick: Yardstick) -> None:
        self._search, self._yardstick = search, yardstick
        self.judged: dict[Plan, Found] = {}
        self.failures: dict[str, None] = {}
        """What the metric failed with."""

    def judge(self, candidate: Found) -> Found:
        """With its loss; without one if the metric fails on it."""
        try:
            final = self._yardstick.loss(self._search.trials.replayed(candidate.measured))
        except MetricError as error:
            self.failures[str(error)] = None
            return candidate
        self.judged[candidate.measured.plan] = found = replace(candidate, final=final)
        return found


def _nearest(budget: Budget, others: Sequence[Found], finals: _Finals) -> tuple[Found, str]:
    """The model that loses least, and which part of the budget it does not hold, if it does not."""
    if not any(budget.is_within_limits(each) for each in others):
        limits = " and ".join(f"{name} of at most ×{limit:g}" for name, limit in budget.limits.items())
        best = min(others, key=lambda f: max(f.cost(name) / limit for name, limit in budget.limits.items()))
        costs = " and ".join(f"{name} of ×{best.cost(name):.2f}" for name in budget.limits)
        return finals.judge(best), f"no model was found with {limits}; the nearest has {costs}"
    for each in sorted(others, key=lambda f: f.measured.loss.high):  # the cleaned model loses nothing
        if finals.judged:
            break
        finals.judge(each)
    if not finals.judged:
        return others[0], "the metric fails on every model that was found"
    best, final = min(
        ((each, each.final) for each in finals.judged.values() if each.final is not None), key=lambda both: both[1].high
    )
    if budget.is_held(final):
        return best, ""
    return best, (
        f"no model was found that surely loses at most {budget.max_drop:.2%}: the nearest loses {final.drop:.2%}, "
        f"at most {final.high:.2%}, on {final.samples} samples"
    )


def pareto(found: Sequence[Found], budget: Budget) -> list[Found]:
    """The models that no other beats in loss and in the target, from the least loss on."""
    best, kept = math.inf, list[Found]()
    for each in sorted(found, key=lambda f: (f.measured.loss.drop, f.cost(budget.target))):
        if each.cost(budget.target) < best:
            best = each.cost(budget.target)
            kept.append(each)
    return kept
