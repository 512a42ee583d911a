"""Which nodes to leave in float, or in more bits, so that outputs stay within a budget and nothing gets slower.

For passes that can write each node by itself in one of several forms, the boldest first. Two questions are asked
of the runtime, on samples that nothing was fitted to:

- *Time*: each kernel is timed in both forms, and a minimum cut (see ``_cut``) takes out those that do not pay; a
  rounded input that several share is paid once.
- *Harm*: if the budget does not hold, the noise that each node makes alone is measured, and the nodes that make most
  get the next form, as few of them as will do: bisection finds how many. If all in the next form are not enough
  either, the same is done with the form after that; the last is float.

Without samples neither is asked: made-up inputs say nothing of what rounding does to real ones.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxopt.data import Dataset
from onnxopt.errors import EngineError
from onnxopt.evaluation import Quality
from onnxopt.graph import Editor, sole_reader
from onnxopt.kernels import MARK, by_place, kernel_times
from onnxopt.pass_base import Context
from onnxopt.passes.quantize._budget import Budget
from onnxopt.passes.quantize._cut import Border, Kernel, cheapest
from onnxopt.passes.quantize._placement import FASTER, Build, Placement
from onnxopt.runtime import Ratio


def key_of(node: ir.Node) -> str:
    """What names a node in every copy of the model: its first output that has a name."""
    return next((output.name for output in node.outputs if output.name), "")


@dataclass(frozen=True)
class Unit:
    """Nodes that take the same form, for they share a weight."""

    key: str
    """What names the first of them, in every copy."""
    nodes: tuple[ir.Node, ...]

    @classmethod
    def of(cls, *nodes: ir.Node) -> Unit:
        """These nodes, of which there is one at least."""
        return cls(key_of(nodes[0]), nodes)


@dataclass
class Spared:
    """The form of each unit, by its number, and what was learnt on the way; the number after the last is float."""

    units: Sequence[Unit]
    forms: Sequence[str]
    form: dict[str, int]
    reasons: dict[str, str] = field(default_factory=dict)
    """Why a unit is not in the first form."""
    times: dict[str, Kernel] = field(default_factory=dict)
    """Seconds of each unit as float and in the first form."""
    harm: dict[str, float] = field(default_factory=dict)
    """The noise that a unit makes alone in the first form, in units of the signal."""
    quality: Quality | None = None
    ratio: Ratio | None = None

    def facts(self, key: str) -> dict[str, object]:
        """What was measured of a unit, for the report."""
        found: dict[str, object] = {}
        if (times := self.times.get(key)) is not None:
            found |= {"float_us": times.as_float * 1e6, "integer_us": times.as_integer * 1e6}
        if self.harm.get(key, 0.0) > 0:
            found["alone_db"] = decibels(self.harm[key])
        return found

    def overall(self) -> dict[str, object]:
        """What was measured of the model."""
        found: dict[str, object] = {"sqnr": self.quality.least_sqnr_db} if self.quality is not None else {}
        return found if self.ratio is None else found | {"latency_ratio": self.ratio.median}


class Sparing(Placement):
    """Candidate models, in which each unit has one of ``forms`` or is float.

    ``build`` is given the units to write as texts ``form:key``.
    """

    def __init__(
        self, context: Context, build: Build, forms: Sequence[str], data: Dataset, budget: Budget, threads: int = 1
    ) -> None:
        def built(editor: Editor, nodes: Collection[str]) -> None:
            build(editor, nodes)
            _name_parts(editor)

        feeds = data.one().feeds
        super().__init__(context.editor, built, feeds, context.judge(), budget, threads)
        self._forms = forms
        self._qualities: dict[frozenset[str], Quality] = {}

    def spare(self, units: Sequence[Unit], likely: Collection[str] | None = None) -> Spared:
        """The boldest forms within the budget; if ``likely`` is given, only of units that get faster by it: those
        that the timing of kernels says, or these, whichever makes the faster model."""
        found = Spared(units, self._forms, {unit.key: 0 for unit in units})
        if likely is not None:
            self._leave_slow(found, units, likely)
        self._settle(found)
        nodes = self._nodes(found.form)
        if likely is not None and nodes:
            self._race([nodes])
            found.ratio = self._trials[nodes].ratio
            if found.ratio.median > FASTER:
                text = f"kept float: the model would take {found.ratio.median:.2f} of the time"
                for key, form in found.form.items():
                    if form < len(self._forms):
                        found.form[key], found.reasons[key] = len(self._forms), text
                nodes = frozenset()
        found.quality = self._quality(nodes) if nodes else None
        return found

    # -- time ----------------------------------------------------------------------------------------

    def _leave_slow(self, found: Spared, units: Sequence[Unit], likely: Collection[str]) -> None:
        """Put into float what does not pay."""
        choices = [frozenset(self._item(0, key) for key in likely)]
        try:
            chosen = self._pays(found, units)
            chosen |= {key for key in likely if not found.times[key].as_float}  # such as in a branch not taken
        except EngineError:  # the runtime refuses some of it; the likely ones may still do
            chosen = set()
        choices.append(frozenset(self._item(0, key) for key in chosen))
        self._race(choices)
        raced = [nodes for nodes in choices if nodes in self._trials]
        best = min(raced, key=lambda nodes: self._trials[nodes].ratio.median, default=frozenset[str]())
        for unit in units:
            key = unit.key
            if self._item(0, key) in best:
                continue
            found.form[key], times = len(self._forms), found.times.get(key)
            found.reasons[key] = (
                "kept float: it does not run in that form"
                if times is None
                else f"kept float: {times.as_float * 1e6:.0f} µs, against {times.as_integer * 1e6:.0f} µs with "
                "integers and the rounding of its input"
            )

    def _pays(self, found: Spared, units: Sequence[Unit]) -> set[str]:
        """The units with which all kernels together take least time."""
        everything = [self._item(0, unit.key) for unit in units]
        before = kernel_times(self._candidate((), marked=True), self._feeds, threads=self._threads)
        timed = kernel_times(self._candidate(everything, marked=True), self._feeds, threads=self._threads)
        as_float, as_integers = by_place(before, self._places), by_place(timed, self._places)
        readers: dict[str, set[str]] = {}
        for unit in units:
            parts = {self._places[key_of(node)] for node in unit.nodes}
            for node in unit.nodes:
                behind = sole_reader(node.outputs[0])
                if behind is not None and behind.op_type == "Add":  # which the integer kernel takes in
                    parts.add(self._places[key_of(behind)])
                value = node.inputs[0]
                assert value is not None
                readers.setdefault(value.name or "", set()).add(unit.key)
            integer, as_before = (
                sum(each.seconds for at in parts for each in times.get(at, ())) for times in (as_integers, as_float)
            )
            found.times[unit.key] = Kernel(integer, as_before)
        rounding = {each.name.removeprefix("Q:"): each.seconds for each in timed if each.name.startswith("Q:")}
        borders = [
            Border(None, tuple(sorted(keys)), read_as_float=True, quantize=rounding.get(name, 0.0), dequantize=0.0)
            for name, keys in sorted(readers.items())
        ]
        return cheapest(found.times, borders)

    # -- harm ----------------------------------------------------------------------------------------

    def _settle(self, found: Spared) -> None:
        """Give the units that do most harm the next form, as few of them as make the budget hold."""
        last = len(self._forms)
        for step in range(last):
            if self._fits(found.form):
                return
            waiting = [key for key, form in found.form.items() if form == step]
            noise = self._harm([self._item(step, key) for key in waiting])
            harm = {key: noise[self._item(step, key)] for key in waiting}
            found.harm = harm | found.harm
            order = sorted(waiting, key=lambda key: -harm[key])

            def raised(count: int, order: Sequence[str] = order, form: int = step + 1) -> dict[str, int]:
                return found.form | dict.fromkeys(order[:count], form)

            fewest, most = 1, len(order)
            if self._fits(raised(most)):
                while fewest < most:
                    middle = (fewest + most) // 2
                    fewest, most = (fewest, middle) if self._fits(raised(middle)) else (middle + 1, most)
            found.form = raised(most)
            for key in order[:most]:
                now = f"in {self._forms[step + 1]}" if step + 1 < last else "kept float"
                found.reasons[key] = (
                    f"{now} for the budget: alone in {self._forms[step]} it leaves {decibels(harm[key]):.1f} dB"
                )

    def _fits(self, form: Mapping[str, int]) -> bool:
        nodes = self._nodes(form)
        try:
            return not nodes or self._budget.holds(self._quality(nodes))
        except EngineError:
            return False

    def _quality(self, nodes: frozenset[str]) -> Quality:
        if nodes in self._trials:
            return self._trials[nodes].quality
        if nodes not in self._qualities:
            self._qualities[nodes] = self._judged(self._candidate(nodes))
        return self._qualities[nodes]

    def _nodes(self, form: Mapping[str, int]) -> frozenset[str]:
        return frozenset(self._item(at, key) for key, at in form.items() if at < len(self._forms))

    def _item(self, form: int, key: str) -> str:
        return f"{self._forms[form]}:{key}"


def decibels(noise: float) -> float:
    """Noise in units of the signal as SQNR in dB."""
    return -10 * math.log10(noise) if noise > 0 else math.inf


def _name_parts(editor: Editor) -> None:
    """In a model whose nodes bear marks, name what was written for one after it, so that its time is found."""
    for graph in editor.graphs():
        last = ""
        for at, node in enumerate(graph):
            if MARK.match(node.name or ""):
                last = node.name or ""
            elif node.op_type == "DynamicQuantizeLinear" and not node.name:
                node.name = f"Q:{node.inputs[0].name}" if node.inputs[0] is not None else ""
            elif not node.name and last:
                node.name = f"{last}{at}"
