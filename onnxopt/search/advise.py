"""What each method would bring to a model on a device, and what it would cost: tried on the model itself.

Each way to make it smaller or faster is carried out on a copy, whole, with the samples that there are; what comes of
it is measured beside the original, and judged on samples that nothing was fitted to. The times of a device that is not
this machine are estimated from arithmetic; sizes and losses are measured all the same.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxopt.data import Dataset, load_data, random_data
from onnxopt.errors import DataError, MetricError, OptionError
from onnxopt.passes.quantize._targets import detect, target
from onnxopt.runtime import Session, Snapshot
from onnxopt.search.auto import to_give
from onnxopt.search.bench import Bench
from onnxopt.search.jobs import Evaluations, InProcess
from onnxopt.search.metric import Metric, Yardstick, metric_for, samples_needed
from onnxopt.search.tryout import Tries
from onnxopt.search.verdicts import GAIN, VERDICTS, Finding, Judge
from onnxopt.search.ways import Goal, Way, ways

MAX_DROP = 0.01
_FITTED, _JUDGED = 512, 1024
"""To so many samples ways are fitted, and on so many judged, at most;"""
_LEAST = 32
"""and at least, if there are so many, however long they take."""
_RUNS = 120, 20
"""Of the time that there is, this part goes for one run over the samples to fit to, and over those to judge on: each of
some ten ways fits in some six runs and is judged in one, in half of the time."""


@dataclass(frozen=True)
class Advice:
    """What may be done to a model, the best first."""

    model: str
    device: str
    description: str
    """Of the device."""
    measured: bool
    """Whether times are measured, for the device is this machine."""
    target: Goal
    """What there is to be least of."""
    max_drop: float
    metric: str | None
    """What losses are of; ``None`` where nothing tells."""
    samples: int
    """On how many samples they are."""
    notes: tuple[str, ...]
    """What to take with care."""
    findings: tuple[Finding, ...]
    recommended: str
    """The command to run; empty where nothing is worth it."""
    why: str
    """Why this one."""
    seconds: float


def advise(
    model: ir.Model,
    *,
    data: Any = None,
    device: str = "auto",
    goal: Goal | None = None,
    max_drop: float | None = None,
    metric: str = "auto",
    time_budget: float = 180.0,
    path: str = "MODEL",
    source: str = "SOURCE",
    on_progress: Callable[[str], None] = lambda text: None,
) -> Advice:
    """Try what may be done to ``model``, which stays as it is.

    ``data``: samples to fit to and to judge by; without them speed and size are found, and no losses. ``device``: the
    name of a target profile; ``auto``: ONNX Runtime on this machine. ``goal``: what there is to be least of; ``None``:
    what the device wants. ``max_drop``: what may be lost of the score; ``None``: 1 %, and passes keep their own
    budgets. ``time_budget``: seconds, after which no other step begins. ``path`` and ``source`` are what commands call
    model and data.

    Raises ``OptionError`` for a wrong option, ``DataError`` for data that do not fit, ``MetricError`` if a metric that
    was asked for fails, ``EngineError`` if the model does not run.
    """
    started = time.monotonic()
    here = detect()
    name = here if device == "auto" else device
    profile = target(name)
    if goal not in (None, "latency", "size"):
        raise OptionError(f"target is latency or size, got {goal!r}")
    if max_drop is not None and not 0 < max_drop <= 1:
        raise OptionError(f"max_drop is a share in (0, 1], got {max_drop}")
    if not time_budget > 0:
        raise OptionError(f"the time budget is in seconds above 0, got {time_budget}")
    wanted, measured = goal or profile.device.goal, profile.device.measurable and name == here
    on_progress("data")
    given = load_data(data, model) if data is not None else random_data(model)
    original, notes = Snapshot.of(model), list[str]()
    fitted, compared = _samples(given, original, time_budget)
    yardstick, scored = (None, None) if given.random else _yardstick(metric, original, compared, notes)
    bench = Bench(original, fitted, compared, scored.name if scored is not None else "none")
    evaluations = Evaluations(b"", bench.key, InProcess(), started + time_budget, on_progress)
    tries = Tries(bench, yardstick, not given.random, profile.device, measured, max_drop, evaluations)
    possible = ways(name, wanted, measured)
    tried = {way.name: tries.run(way) for way in possible if not way.why_not}
    judge = Judge(
        profile.device, measured, not given.random, scored.name if scored is not None else None, wanted,
        max_drop or MAX_DROP, tried["cleanup"],
    )  # fmt: skip
    commands = _Commands(path, source, wanted, max_drop)
    found = [
        judge.finding(way, tried.get(way.name), commands.optimize(way, sampled=not given.random)) for way in possible
    ]
    found.sort(key=lambda f: (VERDICTS.index(f.verdict), _or_most(f.cost(wanted)), _or_most(f.size)))
    if given.random:
        notes.append("no samples were given: losses are not known, and what takes samples was tried with made-up ones")
    if not measured:
        where = "what peak rates of arithmetic make expect at best" if profile.device.times is not None else "not known"
        notes.append(f"{name} is not this machine ({here}): latencies there are {where}; sizes and losses are measured")
    samples = None if given.random else len(given)
    recommended, why = _recommended(found, possible, commands, measured, wanted, scored, samples)
    return Advice(
        path, name, profile.description, measured, wanted, max_drop or MAX_DROP, judge.metric,
        len(compared) if yardstick is not None else 0, tuple(notes), tuple(found), recommended, why,
        time.monotonic() - started,
    )  # fmt: skip


def _samples(given: Dataset, original: Snapshot, time_budget: float) -> tuple[Dataset, Dataset]:
    """Samples to fit to, and to judge on: no more than there is time for."""
    if given.random:
        return given, given
    session = Session(original, threads=1)
    batch = next(given.take(_LEAST).small_batches())
    session.run(batch.feeds)
    start = time.perf_counter()
    session.run(batch.feeds)
    each = (time.perf_counter() - start) / batch.samples
    most = (max(_LEAST, int(time_budget / runs / each)) for runs in _RUNS)
    # Rounded to powers of two, so that the same call most often takes the same samples, and finds what it measured.
    fit, judge = (min(1 << (count.bit_length() - 1), cap) for count, cap in zip(most, (_FITTED, _JUDGED), strict=True))
    fitted, compared = given.split(0.5)
    return fitted.take(fit), compared.take(judge)


def _yardstick(
    name: str, original: Snapshot, data: Dataset, notes: list[str]
) -> tuple[Yardstick | None, Metric | None]:
    """What losses are measured by; nothing, and a note, if no score fits and none was asked for."""
    try:
        metric = metric_for(name, original, data)
        return Yardstick(metric, original, data), metric
    except (DataError, MetricError):
        if name != "auto":
            raise
        notes.append("losses are not known, for no metric fits the outputs: give --metric module:function")
        return None, None


@dataclass(frozen=True)
class _Commands:
    """Command lines for one model."""

    path: str
    source: str
    goal: Goal
    max_drop: float | None

    def optimize(self, way: Way, sampled: bool) -> str:
        """What carries a way out."""
        line = ["onnxopt", "optimize", self.path, "-o", self._output(way.name), *way.options]
        if not way.exact and (way.fitted or sampled):
            line += ["--data", self.source]
            if self.max_drop is not None and any(hasattr(each, "max_drop") for each in way.passes()):
                line += ["--max-drop", f"{self.max_drop:g}"]
        return shlex.join(line)

    def auto(self, methods: Sequence[str]) -> str:
        """What searches by these methods."""
        drop = f"{self.max_drop or MAX_DROP:g}"
        line = ["onnxopt", "auto", self.path, "-o", self._output("auto"), "--data", self.source]
        line += ["--target", self.goal, "--max-drop", drop]
        return shlex.join(line + [part for method in methods for part in ("--method", method)])

    def _output(self, name: str) -> str:
        path = Path(self.path)
        return str(path.with_name(f"{path.stem}.{name.replace(':', '-')}.onnx"))


def _recommended(
    found: Sequence[Finding], possible: Sequence[Way], commands: _Commands, measured: bool, goal: Goal,
    metric: Metric | None, samples: int | None,
) -> tuple[str, str]:  # fmt: skip
    """The command to run, and why: a search, where it knows the best that was found, or may find a milder form, for it
    is never behind any of them."""
    known = {way.name: way.method for way in possible}
    worth = [each for each in found if each.verdict in ("use it", "try it")]
    # Of what is not known to be harmless, taking channels out is the least so.
    mild = [each for each in worth if samples is not None or known[each.method] != "prune"]
    best = next(iter(mild or worth), None)
    clean = min(next((f.cost(goal) for f in found if f.method == "cleanup"), None) or 1.0, 1.0)
    gaining = [each.method for each in found if _or_most(each.cost(goal)) < GAIN * clean]
    methods = list(dict.fromkeys(method for name in gaining if (method := known[name])))
    searched = measured and methods and (best is None or known[best.method] or best.method == "cleanup")
    if searched and samples is None:
        return commands.auto(methods), "with samples, it finds out how much of what brings something can be afforded"
    if searched and metric is not None:
        needed = max(to_give(samples_needed(metric, commands.max_drop or MAX_DROP), to_fit=True), 4)
        if samples is not None and samples >= needed:
            return commands.auto(methods), "it combines what pays, layer by layer, and proves that the budget holds"
        if best is not None:
            return best.command, f"{best.method} is the best; with {needed} samples onnxopt auto could combine methods"
        return "", f"nothing is worth it as it is; with {needed} samples onnxopt auto could look for milder forms"
    if best is not None:
        unknown = ", though what it costs is not known" if best.drop is None and best.method != "cleanup" else ""
        return best.command, f"{best.method} is the best of what was tried{unknown}"
    if any(each.verdict == "not tried" for each in found):
        return "", "there was no time to try everything, and nothing that was tried is worth it: give more time"
    return "", "nothing that was tried is worth it: leave the model as it is"


def _or_most(value: float | None) -> float:
    return math.inf if value is None else value
