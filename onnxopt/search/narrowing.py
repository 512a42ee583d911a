"""How much noise a budget of loss allows: bracketed by plans that are measured.

What a model loses of its score does not follow from the noise at its outputs by any formula, but it grows with it. So
plans with more and less noise are measured until the most that the budget allows lies between two of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxopt.search.allocation import Correction, Plan, allocate, predict
from onnxopt.search.budget import Budget
from onnxopt.search.space import METHODS, Method, Space
from onnxopt.search.trials import Measured

_FIRST = 0.01
_GROW = 4.0
_CLOSE = 1.15
"""Noises this near are the same."""
_LEAST = 1e-7
_STEP = 3.0
"""Each of the calmer plans that follow may make so many times less noise."""
_MOST_OFF = 100.0
"""Expectations are not further off than by this factor."""
_PRIOR = 0.1
"""How much the additive model is trusted beside one measured plan."""


@dataclass
class Narrowing:
    """A search for the most noise that plans by some methods may make."""

    space: Space
    budget: Budget
    methods: tuple[Method, ...]
    tries: int
    """So many plans are measured at most."""
    epochs: int = 0
    """Plans are trained so long."""
    calmer: int = 0
    """So many plans with less noise follow: the samples of the end may ask for them, and people have other budgets."""
    noise: float = _FIRST
    """What the next plan may make."""
    low: float = 0.0
    high: float = math.inf
    seen: dict[Plan, bool] = field(default_factory=dict)
    """Plans that were proposed, and whether they held."""

    _noises: dict[Plan, float] = field(default_factory=dict)
    _rungs: list[float] | None = None
    """The noises of calmer plans that are to come, once the most noise is found."""

    def __post_init__(self) -> None:
        self._space = only(self.space, self.methods)

    def propose(self, correction: Correction) -> Plan | None:
        """The next plan to be measured; ``None`` when there is none."""
        target, limits = self.budget.target, self.budget.limits
        while len(self.seen) < self.tries and self.high > _CLOSE * self.low and self.noise > _LEAST:
            expected = self.noise / self._excess(correction)
            plan = allocate(self._space, target, expected, correction, limits) or allocate(
                self._space, target, expected, correction
            )
            if plan is None:
                return None
            plan = self._as_asked(plan)
            if plan and plan not in self.seen:
                return plan
            if self.high == math.inf and predict(self._space, plan, correction).noise < expected / _GROW:
                return None  # all that there is makes no more noise
            self._narrow(self.noise, self.seen.get(plan, True))
        if self._rungs is None:
            self._rungs = [self.low / _STEP**at for at in range(1, self.calmer + 1)]
        while self._rungs and self.low:
            self.noise = self._rungs.pop(0)
            plan = allocate(self._space, target, self.noise / self._excess(correction), correction, limits)
            if plan is not None and (plan := self._as_asked(plan)) and plan not in self.seen:
                return plan
        return None

    def _as_asked(self, plan: Plan) -> Plan:
        epochs = self.epochs if plan.prune or plan.split else 0
        return replace(plan, epochs=epochs, timed=self.budget.target == "latency")

    def learn(self, measured: Measured) -> None:
        """What became of the plan that was proposed."""
        holds = not measured.problem and self.budget.is_likely(measured.loss)
        self.seen[measured.plan] = holds
        if not measured.problem and measured.noise > 0:
            self._noises[measured.plan] = measured.noise
        if self._rungs is None:
            self._narrow(measured.noise if not measured.problem and not self.epochs else self.noise, holds)

    def _excess(self, correction: Correction) -> float:
        """How many times as much noise as expected a plan makes, as the measured one did that came nearest to what is
        wanted: where many changes meet, noise grows faster than their sum."""
        if not self._noises:
            return 1.0
        plan = min(self._noises, key=lambda each: abs(math.log(self._noises[each] / self.noise)))
        expected = predict(self._space, plan, correction).noise
        return min(max(self._noises[plan] / expected, 1 / _MOST_OFF), _MOST_OFF) if expected > 0 else 1.0

    def _narrow(self, noise: float, holds: bool) -> None:
        if holds:
            self.low = max(self.low, noise)
            self.high = self.high if self.high > self.low else math.inf
        else:
            self.high = min(self.high, noise)
            self.low = self.low if self.low < self.high else 0.0
        if self.high == math.inf:
            self.noise = max(self.noise, self.low) * _GROW
        else:
            self.noise = math.sqrt(self.low * self.high) if self.low else min(self.noise, self.high) / _GROW


def only(space: Space, methods: Sequence[Method]) -> Space:
    """What may be done by these methods."""
    layers = [
        replace(
            layer, split=layer.split if "split" in methods else {},
            precisions=layer.precisions if "quantize" in methods else {},
        )
        for layer in space.layers
    ]  # fmt: skip
    return replace(space, groups=space.groups if "prune" in methods else (), layers=tuple(layers))


def corrected(space: Space, measured: Sequence[Measured], cleaned: Measured) -> Correction:
    """By how much methods do more or less than the additive model says, from the plans that were measured: least
    squares over their relative errors, with what the model says as a prior."""
    from scipy.optimize import lsq_linear

    plans = [each for each in measured if each.plan and not each.plan.epochs and not each.problem]
    plain = Correction(dict.fromkeys(METHODS, 1.0), dict.fromkeys(METHODS, 1.0))
    noises, savings = [], []
    for each in plans:
        alone = [predict(only(space, [method]), each.plan, plain) for method in METHODS]
        saved = space.seconds * (1 - each.latency / (cleaned.latency or 1.0))
        if each.noise > 0:
            noises.append(np.array([part.noise for part in alone]) / each.noise)
        if saved > 0.02 * space.seconds:
            savings.append(np.array([part.saved["latency"] for part in alone]) / saved)

    def factors(rows: Sequence[np.ndarray], low: float, high: float) -> dict[Method, float]:
        matrix = np.array([*rows, *(_PRIOR * np.eye(len(METHODS)))])
        wanted = np.array([1.0] * len(rows) + [_PRIOR] * len(METHODS))
        found = lsq_linear(matrix, wanted, bounds=(low, high)).x
        return dict(zip(METHODS, map(float, found), strict=True))

    return Correction(factors(noises, 0.02, 20.0), factors(savings, 0.2, 3.0))
