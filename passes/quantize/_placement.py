"""Choose by measurement which nodes to compute with integers, for the runtime and the machine at hand.

Whether an integer kernel pays depends on its size, on what stands around it, and on the CPU. So the model is run
as float and with everything quantized that can be, each kernel is timed, and a minimum cut (see ``_cut``) finds
the nodes with which all kernels and quantizers together take least time. That plan, the default one and the
layers alone are then built and raced against the float model, and judged on samples that no range was fitted
to. If none of the fast ones is near enough to the float model, the nodes that do most harm are made dearer
until the budget holds: the harm of a node is the noise at the outputs when it alone is quantized, and noise of
several adds up nearly.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxopt.data import Dataset
from onnxopt.errors import EngineError
from onnxopt.evaluation import Quality
from onnxopt.graph import Editor
from onnxopt.kernels import KernelTime, kernel_times
from onnxopt.model import copy
from onnxopt.passes.quantize._candidates import unmoved
from onnxopt.passes.quantize._cut import Border, Kernel, cheapest
from onnxopt.passes.quantize._judge import Judge
from onnxopt.passes.quantize._plan import Plan
from onnxopt.passes.quantize._roles import LAYERS, Roles
from onnxopt.runtime import Feeds, Ratio, Session, Snapshot, latency_ratios
from onnxopt.traverse import graphs

_MARK = re.compile(r"@(\d+)@")
_BLOCKED = "_nchwc"
"""Convolutions in ONNX Runtime's blocked layout are called after their outputs."""
_QUANTIZER_SECONDS, _SECONDS_AN_ELEMENT = 1.5e-6, 2e-10
"""What a quantizer costs that was not measured."""

FASTER = 0.98
"""A model that takes more than this share of the time of the float model is not faster, as far as one can tell."""
_ROUNDS = 80
"""So many rounds of the race tell 2 % apart."""
_GROUPS, _BATCHES_FOR_HARM = 12, 2
_AS_FAST = 1.03
"""Of models within this factor of the fastest the nearest to the float model is taken."""


@dataclass(frozen=True)
class Budget:
    """How far outputs may move."""

    min_sqnr: float | None = None
    """In dB, of every output."""
    max_drop: float | None = None
    """The largest loss of accuracy, or without labels of agreement, as a share."""

    def holds(self, quality: Quality) -> bool:
        """Whether ``quality`` is within the budget; without one given, 20 dB or a loss of 1 % will do."""
        least = quality.least_sqnr_db
        lost = [before - after for before, after in quality.accuracy.values()] or [
            1 - share for share in quality.agreement.values()
        ]
        if self.min_sqnr is None and self.max_drop is None:
            return least >= 20.0 or (bool(lost) and max(lost) <= 0.01)
        near = self.min_sqnr is None or least >= self.min_sqnr
        return near and (self.max_drop is None or max(lost, default=0.0) <= self.max_drop)


@dataclass(frozen=True)
class Trial:
    """One choice of nodes, built and measured."""

    nodes: frozenset[str]
    ratio: Ratio
    quality: Quality


@dataclass
class Choice:
    """What was chosen, and what was learnt on the way."""

    nodes: frozenset[str] = frozenset()
    best: Trial | None = None
    """The trial of ``nodes``, or, if these are none, the best that was not good enough."""
    times: dict[str, Kernel] = field(default_factory=dict)
    """Seconds of each node in both forms."""
    harm: dict[str, float] = field(default_factory=dict)
    """The noise that a node makes alone, in units of the signal, if that was measured."""
    reason: str = ""
    """Why nothing was chosen."""


Build = Callable[[Editor, Collection[str]], None]
"""Quantizes these nodes, in a copy of the model."""


class Placement:
    """Candidate models, built from one float model."""

    def __init__(
        self, model: ir.Model, build: Build, feeds: Feeds, judges: Dataset, budget: Budget, threads: int
    ) -> None:
        self._model, self._build, self._feeds = model, build, feeds
        self._budget, self._threads = budget, threads
        original = Snapshot.of(model)
        self._judge = Judge(model, original, judges)
        self._baseline = Session(original, optimize=True, threads=threads)
        self._places = {
            output.name or "": at
            for at, node in enumerate(n for graph in graphs(model) for n in graph)
            for output in node.outputs
        }
        self._trials: dict[frozenset[str], Trial] = {}

    def choose(self, made: Plan, found: Mapping[str, Roles], default: Collection[str]) -> Choice:
        """The nodes of ``made``, a plan of all that can be quantized, that are worth it."""
        everything = frozenset(made.nodes)
        choice = Choice()
        try:
            borders = self._time(choice, made, found)
        except EngineError:  # the runtime refuses some of it; single choices may still do
            borders = []
        layers = frozenset(key for key in everything if found[key].node.op_type in LAYERS)
        wanted = [frozenset(default) & everything, layers]
        if choice.times:
            wanted.append(frozenset(cheapest(choice.times, borders)))
        self._race(wanted)
        good = self._good()
        if not good and choice.times and any(trial.ratio.median <= FASTER for trial in self._trials.values()):
            self._spare(choice, borders)
            good = self._good()
        if good:
            fastest = min(trial.ratio.median for trial in good)
            as_fast = [trial for trial in good if trial.ratio.median <= fastest * _AS_FAST]
            choice.best = min(as_fast, key=lambda each: each.quality.noise)
            choice.nodes = choice.best.nodes
            return choice
        tried = [trial for trial in self._trials.values() if trial.nodes]
        if tried:
            choice.best = min(tried, key=lambda each: each.ratio.median)
        choice.reason = self._why_not(choice.best)
        return choice

    def survey(self, made: Plan, found: Mapping[str, Roles]) -> Choice:
        """The times and the harm of each node of ``made``, quantized alone."""
        choice = Choice()
        self._time(choice, made, found)
        choice.harm = {key: self._noise([key]) for key in made.nodes}
        return choice

    def _good(self) -> list[Trial]:
        return [
            trial
            for trial in self._trials.values()
            if trial.nodes and trial.ratio.median <= FASTER and self._budget.holds(trial.quality)
        ]

    @staticmethod
    def _why_not(best: Trial | None) -> str:
        if best is None:
            return "ONNX Runtime runs no quantized form of it"
        if best.ratio.median > FASTER:
            return f"kept float: INT8 takes {best.ratio.median:.2f} of the time here"
        return (
            f"kept float: no faster form stays within the budget; the fastest takes {best.ratio.median:.2f} of the "
            f"time at {best.quality.least_sqnr_db:.1f} dB"
        )

    # -- candidates ----------------------------------------------------------------------------------

    def _candidate(self, nodes: Collection[str], *, marked: bool = False) -> Snapshot:
        editor = Editor(copy(self._model))
        if marked:
            for graph in editor.graphs():
                for node in graph:
                    node.name = f"@{self._places[node.outputs[0].name or '']}@"
        self._build(editor, nodes)
        if marked:
            for graph in editor.graphs():
                for node in graph:
                    tensor = node.inputs[0].name if node.inputs and node.inputs[0] is not None else None
                    if node.op_type == "QuantizeLinear" and not node.name:
                        node.name = f"Q:{tensor}"
        return Snapshot.of(editor.model)

    def _race(self, wanted: Iterable[frozenset[str]]) -> None:
        """Build, time and judge what was not tried yet."""
        sessions: dict[frozenset[str], Session] = {}
        snapshots: dict[frozenset[str], Snapshot] = {}
        for nodes in wanted:
            if not nodes or nodes in self._trials or nodes in sessions:
                continue
            try:
                snapshots[nodes] = self._candidate(nodes)
                sessions[nodes] = Session(snapshots[nodes], optimize=True, threads=self._threads)
                sessions[nodes].run(self._feeds)
            except EngineError:
                sessions.pop(nodes, None)
        if not sessions:
            return
        ratios = latency_ratios(self._baseline, list(sessions.values()), self._feeds, seconds=1.0, rounds=_ROUNDS)
        for nodes, ratio in zip(list(sessions), ratios, strict=True):
            del sessions[nodes]  # one at a time in memory while it is judged
            self._trials[nodes] = Trial(nodes, ratio, self._judge.quality(snapshots[nodes]))

    # -- time ----------------------------------------------------------------------------------------

    def _time(self, choice: Choice, made: Plan, found: Mapping[str, Roles]) -> list[Border]:
        """Time all kernels in both forms, and say what it costs to go from one to the other."""
        as_float = kernel_times(self._candidate((), marked=True), self._feeds, threads=self._threads)
        as_integers = kernel_times(self._candidate(made.nodes, marked=True), self._feeds, threads=self._threads)
        first, second = self._by_node(as_float), self._by_node(as_integers)
        for key in made.nodes:
            entry = found[key]
            parts = {self._places[node.outputs[0].name or ""] for node in (entry.node, *entry.taken)}
            choice.times[key] = Kernel(
                sum(t.seconds for at in parts for t in second.get(at, ())),
                sum(t.seconds for at in parts for t in first.get(at, ())),
            )
        quantizers = {t.name.removeprefix("Q:"): t.seconds for t in as_integers if t.name.startswith("Q:")}
        elements = {at: max(t.elements for t in each) for at, each in first.items()}
        return self._borders(made, found, quantizers, elements)

    def _by_node(self, times: Iterable[KernelTime]) -> dict[int, list[KernelTime]]:
        found: dict[int, list[KernelTime]] = {}
        for each in times:
            if (mark := _MARK.match(each.name)) is not None:
                found.setdefault(int(mark.group(1)), []).append(each)
            elif (at := self._places.get(each.name.removesuffix(_BLOCKED))) is not None:
                found.setdefault(at, []).append(each)
        return found

    def _borders(
        self, made: Plan, found: Mapping[str, Roles], quantizers: Mapping[str, float], elements: Mapping[int, int]
    ) -> list[Border]:
        makers = {found[key].output.name: key for key in made.nodes}
        readers: dict[str, tuple[ir.Value, set[str]]] = {}
        for key in made.nodes:
            entry = found[key]
            for at in entry.inputs:
                value = unmoved(entry.node.inputs[at], found)
                if value is not None and value.name:
                    readers.setdefault(value.name, (value, set()))[1].add(key)
        for key in made.nodes:
            output = found[key].output
            readers.setdefault(output.name or "", (output, set()))
        borders = []
        for name, (value, keys) in sorted(readers.items()):
            maker = makers.get(name)
            cost = quantizers.get(name)
            if cost is None:
                producer = value.producer()
                count = elements.get(self._places[producer.outputs[0].name or ""], 0) if producer is not None else 0
                cost = _QUANTIZER_SECONDS + _SECONDS_AN_ELEMENT * count
            free = maker is not None and found[maker].operator.output == "either"
            borders.append(
                Border(maker, tuple(sorted(keys)), _read_as_float(value, made, found), cost, 0.0 if free else cost)
            )
        return borders

    # -- harm ----------------------------------------------------------------------------------------

    def _spare(self, choice: Choice, borders: list[Border]) -> None:
        """Try ever more cautious choices until one holds the budget."""
        fast = [trial for trial in self._trials.values() if trial.ratio.median <= FASTER]
        nearest = min(fast, key=lambda each: each.quality.noise)
        order = sorted(nearest.nodes, key=self._places.__getitem__)
        choice.harm = self._harm(order)
        total = sum(kernel.as_float for kernel in choice.times.values())
        worst = max(choice.harm.values(), default=0.0) or 1.0
        price = total / worst / 64
        for _ in range(8):  # each time the harm is three times as dear
            dearer = {key: min(price * choice.harm.get(key, math.inf), 10 * total) for key in choice.times}
            times = {key: Kernel(each.as_integer + dearer[key], each.as_float) for key, each in choice.times.items()}
            nodes = frozenset(cheapest(times, borders))
            price *= 3
            if not nodes:
                return
            if nodes in self._trials:
                continue
            self._race([nodes])
            trial = self._trials.get(nodes)
            if trial is not None and (trial.ratio.median > FASTER or self._budget.holds(trial.quality)):
                return

    def _harm(self, order: list[str]) -> dict[str, float]:
        """The noise that each node makes alone: of groups first, then of the members of the groups that matter."""
        size = max(1, math.ceil(len(order) / _GROUPS))
        groups = [order[at : at + size] for at in range(0, len(order), size)]
        found: dict[str, float] = {}
        noises = [self._noise(group) for group in groups]
        matters = sum(noises) / len(noises)
        for group, noise in zip(groups, noises, strict=True):
            if noise >= matters and len(group) > 1:
                found |= {key: self._noise([key]) for key in group}
            else:
                found |= dict.fromkeys(group, noise / len(group))
        return found

    def _noise(self, nodes: Collection[str]) -> float:
        try:
            quality = self._judge.quality(self._candidate(nodes), batches=_BATCHES_FOR_HARM)
        except EngineError:
            return 1.0
        return min(1.0, quality.noise)


def _read_as_float(value: ir.Value, made: Plan, found: Mapping[str, Roles]) -> bool:
    """Whether anybody but the kernels of ``made`` reads ``value``, also through what moves its elements."""
    if value.is_graph_output():
        return True
    for use in value.uses():
        entry = found.get(use.node.outputs[0].name or "")
        if entry is None or use.idx not in entry.inputs:
            return True
        if entry.moves:
            if any(_read_as_float(output, made, found) for output in use.node.outputs):
                return True
        elif (use.node.outputs[0].name or "") not in made.nodes:
            return True
    return False
