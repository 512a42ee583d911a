"""Why a search chose one change and not another: worked out afterwards, from what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from onnxopt.report import values
from onnxopt.search.allocation import Target
from onnxopt.search.auto import AutoResult
from onnxopt.search.space import Effect, Method, Precision

_NONE = Effect(0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Change:
    """One thing that could be done."""

    place: str
    """The layer, or the group of channels."""
    layers: tuple[str, ...]
    """The layers that it changes."""
    method: Method
    level: float | str | None
    """The share of channels that go, or of the rank that is left, or ``int8``; ``None`` where it is not possible."""
    effect: Effect
    chosen: bool = False
    why: str = ""

    @property
    def level_text(self) -> str:
        """How far it goes."""
        if isinstance(self.level, str):
            return self.level
        if self.level is None:
            return "not at all"
        return f"{self.level:.1%}".replace(".0%", "%") + (
            " of its channels" if self.method == "prune" else " of its rank"
        )

    @property
    def text(self) -> str:
        """What is done."""
        verb = {"prune": "without", "split": "split at", "quantize": "as"}[self.method]
        return f"{verb} {self.level_text}"

    @property
    def json(self) -> dict[str, Any]:
        """How far, and by what."""
        return {"method": self.method, "level": self.level}


def changes(found: AutoResult) -> Iterator[Change]:
    """Everything that could be done, in the order of the model, with what was decided."""
    plan, space = found.chosen.measured.plan, found.space
    prune, split = dict(plan.prune), dict(plan.split)
    reason = _Reason(found)
    for group in space.groups:
        own = [Change(group.name, group.layers, "prune", share, effect) for share, effect in group.levels.items()]
        yield from reason.each(own, prune.get(group.name))
    for name, why in space.left:
        yield Change(name, (name,), "prune", None, _NONE, why=f"is not pruned: {why}")
    for layer in space.layers:
        own = [Change(layer.name, (layer.name,), "split", rank, effect) for rank, effect in layer.split.items()]
        yield from reason.each(own, split.get(layer.name))
        own = [Change(layer.name, (layer.name,), "quantize", *each) for each in layer.precisions.items()]
        yield from reason.each(own, reason.precision(layer.name))


class _Reason:
    """What speaks against a change."""

    def __init__(self, found: AutoResult) -> None:
        self._target: Target = found.budget.target
        held = [f for f in found.found if all(map(found.budget.is_held, filter(None, (f.measured.loss, f.final))))]
        self._allowed = max((each.measured.noise for each in held), default=0.0)
        """The noise of the noisiest model that kept the budget."""
        self._planned = dict(found.chosen.measured.plan.precisions)
        self._made = found.chosen.measured.nodes

    def precision(self, name: str) -> Precision | None:
        """What a layer came out in, if not in floats; a split one does so as two nodes."""
        planned = self._planned.get(name)
        made = any(node == name or node.startswith(f"{name}_") for node in self._made)
        return planned if planned != "int8" or made else None

    def each(self, own: list[Change], chosen: float | str | None) -> Iterator[Change]:
        """The levels of one place by one method, of which one or none was chosen."""
        taken = next((change for change in own if change.level == chosen), None)
        for change in own:
            if change is taken:
                why = "saves most within the budget" if self._saved(change) > 0 else "pays among its neighbours"
                yield replace(change, chosen=True, why=f"{why}, as measured in the whole model")
            else:
                yield replace(change, why=self._against(change, taken))

    def _against(self, change: Change, taken: Change | None) -> str:
        saved = self._saved(change)
        if saved <= 0:
            if self._target == "latency" and saved < 0:
                return f"slower here, by {values.seconds(-saved).text}"
            return "saves nothing"
        if change.level == "int8" and taken is None and self._planned.get(change.place) == "int8":
            return "was planned, but is slower here among its neighbours: left as floats when the model was made"
        if change.effect.noise > self._allowed:
            return (
                f"alone makes more noise ({change.effect.noise:.2g}) than the noisiest model that kept the budget "
                f"({self._allowed:.2g})"
            )
        if taken is not None:
            less = self._saved(taken) >= saved
            return f"{taken.text} was chosen, which {'saves as much or more' if less else 'makes less noise'}"
        return "saves too little for its noise: what the budget allows saves more elsewhere"

    def _saved(self, change: Change) -> float:
        effect = change.effect
        return {"latency": effect.seconds, "size": effect.bytes, "macs": effect.macs}[self._target]
