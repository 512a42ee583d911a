"""Choose by measurement which nodes to compute with integers, for the runtime and the machine at hand.

Whether an integer kernel pays depends on its size, on what stands around it, and on the CPU. So the model is run as
float and with everything quantized that can be, each kernel is timed, and a minimum cut (see ``_cut``) finds the
nodes with which all kernels and quantizers together take least time: once for each of several costs of going from one
form to the other, which no kernel's time tells. These plans, the default one and the layers alone are then built and
raced against the float model, and judged on samples that no range was fitted to. If none of the fast ones is near
enough to the float model, the nodes that do most harm are made dearer until the budget holds: the harm of a node is
the noise at the outputs when it alone is quantized, and noise of several adds up nearly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import onnx_ir as ir

from onnxopt.errors import EngineError
from onnxopt.evaluation import Quality
from onnxopt.graph import Editor
from onnxopt.judge import Judge
from onnxopt.kernels import by_place, kernel_times, mark, places
from onnxopt.passes.quantize._budget import Budget
from onnxopt.passes.quantize._candidates import unmoved
from onnxopt.passes.quantize._cut import Border, Kernel, cheapest
from onnxopt.passes.quantize._plan import Plan
from onnxopt.passes.quantize._roles import LAYERS, Roles
from onnxopt.runtime import Feeds, Ratio, Session, Snapshot, latency_ratios

_QUANTIZER_SECONDS, _SECONDS_AN_ELEMENT = 1.5e-6, 2e-10
"""What a quantizer costs that was not measured."""

FASTER = 0.97
"""A model that takes more than this share of the time of the float model is not faster, as far as one can tell."""
_ROUNDS, _PRECISION = 80, 0.01
"""So many rounds of the race tell 2 % apart; fewer do where the ratios of their times differ less."""
_DEAREST, _HALVINGS = 64, 3
"""How dear harm may become, and how exactly the least price that holds the budget is looked for."""
_RESERVE = 0.5
"""In dB: what is looked for just within the budget on some samples should be so on others too."""
_GROUPS, _SPLITS = 12, 16
"""Harm is measured of so many groups, and so many times of half of one,"""
_LEAST = 0.05
"""whose other half makes at least this share of the noise."""
_NUMBERS_FOR_HARM, _SAMPLES_FOR_HARM = 1 << 6, (4, 32)
"""Harm is measured on as many samples as give so many numbers at the outputs, at least and at most."""
_FEW = 32
"""So many samples are enough to tell noise by."""
_CROSSINGS = (1.0, 2.0, 4.0, 8.0)
"""To go from one form to the other may cost so many times what the quantizer takes: there layouts change too, and what
was fused is no more."""
_TIE = 0.05
"""Kernels whose times in both forms differ by less than this share are as fast, as far as one can tell."""
_WORTHWHILE = 0.9
"""If something takes less than this share of the time of all that is near enough, parts of it are looked at."""
_AS_FAST = 1.03
"""Of models within this factor of the fastest the nearest to the float model is taken."""


@dataclass
class Choice:
    """What was chosen, and what was learnt on the way."""

    nodes: frozenset[str] = frozenset()
    ratio: Ratio | None = None
    """The time of the model with ``nodes`` over that of the float model; if these are none, that of the fastest
    which was not good enough."""
    sqnr: float | None = None
    """Of the output that suffers most, in dB, if that was measured."""
    times: dict[str, Kernel] = field(default_factory=dict)
    """Seconds of each node in both forms."""
    harm: dict[str, float] = field(default_factory=dict)
    """The noise that a node makes alone, in units of the signal, if that was measured."""
    reason: str = ""
    """Why nothing was chosen."""


@dataclass
class Trial:
    """One choice of nodes, built and measured."""

    nodes: frozenset[str]
    ratio: Ratio
    judge: Callable[[], Quality]

    @cached_property
    def quality(self) -> Quality:
        """What became of the outputs; found out when it is asked for, for it takes time."""
        return self.judge()


Build = Callable[[Editor, Collection[str]], None]
"""Quantizes these nodes, in a copy of the model."""


class Placement:
    """Candidate models, built from one float model."""

    def __init__(self, editor: Editor, build: Build, feeds: Feeds, judge: Judge, budget: Budget, threads: int) -> None:
        self._build, self._feeds, self._editor = build, feeds, editor
        self._judge, self._budget, self._threads = judge, budget, threads
        self._baseline = Session(Snapshot.of(editor.model), optimize=True, threads=threads)
        self._places = places(editor.model)
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
        times = _inclined(choice.times, default)
        cuts: dict[frozenset[str], list[Border]] = {}
        for factor in _CROSSINGS if times else ():
            dearer = [each.dearer(factor) for each in borders]
            cuts.setdefault(frozenset(cheapest(times, dearer)), dearer)
        self._race([frozenset(default) & everything, layers, *cuts])
        if raced := [self._trials[nodes] for nodes in cuts if nodes in self._trials]:
            borders = cuts[min(raced, key=lambda each: each.ratio.median).nodes]
        good = self._good()
        enough = _WORTHWHILE * good[0].ratio.median if good else FASTER
        if times and (fast := [each for each in self._trials.values() if each.ratio.median <= enough]):
            self._spare(choice, borders, fast)
            good = self._good()
        if good:
            best = min(good, key=lambda each: (each.quality.noise, len(each.nodes), sorted(each.nodes)))
            choice.nodes, choice.ratio, choice.sqnr = best.nodes, best.ratio, best.quality.least_sqnr_db
            return choice
        if not self._trials:
            choice.reason = "ONNX Runtime runs no quantized form of it"
            return choice
        fastest = min(self._trials.values(), key=lambda each: each.ratio.median)
        choice.ratio = fastest.ratio
        choice.reason = f"kept float: INT8 takes {fastest.ratio.median:.2f} of the time here"
        if fastest.ratio.median <= FASTER:
            choice.sqnr = fastest.quality.least_sqnr_db
            choice.reason = (
                f"kept float: no faster form stays within the budget; the fastest takes {fastest.ratio.median:.2f} of "
                f"the time at {choice.sqnr:.1f} dB"
            )
        return choice

    def survey(self, made: Plan, found: Mapping[str, Roles]) -> Choice:
        """The times and the harm of each node of ``made``, quantized alone."""
        choice = Choice()
        self._time(choice, made, found)
        choice.harm = {key: self._noise([key]) for key in made.nodes}
        return choice

    def _good(self) -> list[Trial]:
        """Of the trials within the budget the fastest, and those that are as fast."""
        good: list[Trial] = []
        for trial in sorted(self._trials.values(), key=lambda each: each.ratio.median):
            if trial.ratio.median > FASTER or (good and trial.ratio.median > good[0].ratio.median * _AS_FAST):
                break
            if self._budget.holds(trial.quality):
                good.append(trial)
        return good

    # -- candidates ----------------------------------------------------------------------------------

    def _candidate(self, nodes: Collection[str], *, marked: bool = False) -> Snapshot:
        editor = self._editor.copy()
        if marked:
            mark(editor.model)
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
        ratios = latency_ratios(
            self._baseline, list(sessions.values()), self._feeds, seconds=0.5, rounds=_ROUNDS, precision=_PRECISION
        )
        for nodes, ratio in zip(sessions, ratios, strict=True):
            self._trials[nodes] = Trial(nodes, ratio, partial(self._judged, snapshots[nodes]))

    # -- time ----------------------------------------------------------------------------------------

    def _time(self, choice: Choice, made: Plan, found: Mapping[str, Roles]) -> list[Border]:
        """Time all kernels in both forms, and say what it costs to go from one to the other."""
        as_float = kernel_times(self._candidate((), marked=True), self._feeds, threads=self._threads)
        as_integers = kernel_times(self._candidate(made.nodes, marked=True), self._feeds, threads=self._threads)
        first, second = by_place(as_float, self._places), by_place(as_integers, self._places)
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

    def _spare(self, choice: Choice, borders: list[Border], fast: Sequence[Trial]) -> None:
        """Try ever more cautious parts of what is ``fast``, but not near enough, until one holds the budget."""
        order = sorted(frozenset[str]().union(*(each.nodes for each in fast)), key=self._places.__getitem__)
        choice.harm = self._harm(order)
        total = sum(kernel.as_float for kernel in choice.times.values())
        worst = max(choice.harm.values(), default=0.0) or 1.0
        known: dict[frozenset[str], bool] = {}

        def near(price: float) -> bool:
            """Whether the budget holds if so many seconds are paid for harm."""
            dearer = {key: min(price * choice.harm.get(key, math.inf), 10 * total) for key in choice.times}
            times = {key: Kernel(each.as_integer + dearer[key], each.as_float) for key, each in choice.times.items()}
            nodes = frozenset(cheapest(times, borders))
            if nodes not in known:
                known[nodes] = not nodes or self._is_near(nodes)
            return known[nodes]

        high = total / worst / 64
        while not near(high) and high < _DEAREST * total / worst:
            high *= 3
        low = high / 3
        for _ in range(_HALVINGS):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if near(middle) else (middle, high)
        self._race([nodes for nodes, holds in known.items() if holds and nodes])

    def _is_near(self, nodes: frozenset[str]) -> bool:
        try:
            return self._budget.holds(self._judged(self._candidate(nodes), _RESERVE), _RESERVE)
        except EngineError:
            return False

    def _harm(self, order: list[str]) -> dict[str, float]:
        """The noise that each node makes alone: of groups first, then of one half of those that make most, for noise
        adds up nearly, and the other half makes the rest."""
        size = max(1, math.ceil(len(order) / _GROUPS))
        groups = [order[at : at + size] for at in range(0, len(order), size)]
        found = [(self._noise(group), group) for group in groups]
        matters = sum(noise for noise, _ in found) / max(1, len(found))
        for _ in range(_SPLITS):
            noise, group = max(found, key=lambda each: each[0] if len(each[1]) > 1 else -1.0, default=(0.0, []))
            if len(group) < 2 or noise < matters:
                break
            found.remove((noise, group))
            first, second = group[: len(group) // 2], group[len(group) // 2 :]
            one = self._noise(first)
            found += [(one, first), (max(noise - one, noise * _LEAST), second)]
        return {key: noise / len(group) for noise, group in found for key in group}

    def _noise(self, nodes: Collection[str]) -> float:
        """The noise of these nodes, as far as few samples tell: harm is only for choosing what to try."""
        least, most = _SAMPLES_FOR_HARM
        wanted = _NUMBERS_FOR_HARM * self._judge.samples // max(1, self._judge.numbers)
        try:
            return min(1.0, self._judge.quality(self._candidate(nodes), min(max(wanted, least), most)).noise)
        except EngineError:
            return 1.0

    def _judged(self, snapshot: Snapshot, reserve: float = 0.0) -> Quality:
        """By few samples if these tell, else by all, or until the budget cannot hold any more. Raises ``EngineError``
        if the model does not run."""

        def hopeless(quality: Quality) -> bool:
            return not self._budget.holds(quality, reserve)

        found = self._judge.quality(snapshot, _FEW, hopeless)
        return found if self._budget.told_by_few(found) else self._judge.quality(snapshot, None, hopeless)


def _inclined(times: Mapping[str, Kernel], default: Collection[str]) -> dict[str, Kernel]:
    """The times a little in favour of the default, for where they tie noise should not decide."""
    return {
        key: Kernel(each.as_integer * (1 - _TIE if key in default else 1 + _TIE), each.as_float)
        for key, each in times.items()
    }


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
