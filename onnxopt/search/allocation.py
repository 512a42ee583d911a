"""Which changes together cost least within a budget of noise: a mixed-integer program.

A group of channels loses one share or none, a layer takes one form or none, and noises and savings add up, but for what
two changes save of the same layer: a layer that is already half as wide has half as much left to save. For each such
pair a variable says that both are chosen, and takes the double part back. (Times with fewer channels are those of a
model in which all groups have lost some, so of them nothing is counted twice.)

Solved by HiGHS (Huangfu and Hall, "Parallelizing the dual revised simplex method", Mathematical Programming Computation
2018) through ``scipy.optimize.milp``.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

from onnxopt.search.space import Effect, LayerLevels, Method, Precision, Space
from onnxopt.wording import count

Target = Literal["latency", "size", "macs"]
ATTRIBUTE: dict[Target, str] = {"latency": "seconds", "size": "bytes", "macs": "macs"}
_SECONDS = 20.0
"""As long the solver may take."""


_TEXTS: dict[Precision, str] = {
    "int8": "in integers", "dynamic-int8": "in integers with activations rounded at run time",
    "weight-int8": "with weights of 8 bits", "weight-int4": "with weights of 4 bits",
}  # fmt: skip


@dataclass(frozen=True)
class Form:
    """How a layer is computed."""

    rank: float | None = None
    """The share of its rank that it is split at; ``None``: whole."""
    precision: Precision | None = None


@dataclass(frozen=True)
class Plan:
    """What is done: by group the share of channels that go, by layer its form."""

    prune: tuple[tuple[str, float], ...] = ()
    split: tuple[tuple[str, float], ...] = ()
    precisions: tuple[tuple[str, Precision], ...] = ()
    """The layers whose numbers are not floats."""
    timed: bool = True
    """Whether layers are computed with integers only where that is faster."""
    epochs: int = 0
    """How long the model is trained to give what the original gives, after it is pruned and split."""

    def __bool__(self) -> bool:
        return bool(self.prune or self.split or self.precisions)

    def of(self, precision: Precision) -> tuple[str, ...]:
        """The layers of this precision."""
        return tuple(name for name, own in self.precisions if own == precision)

    def __str__(self) -> str:
        parts = [
            f"{count(len(self.prune), 'group')} of channels pruned by {_shares(self.prune)}" if self.prune else "",
            f"{count(len(self.split), 'layer')} split at {_shares(self.split)} of their rank" if self.split else "",
            f"trained for {count(self.epochs, 'epoch')}" if self.epochs else "",
            *(f"{count(len(names), 'layer')} {text}" for each, text in _TEXTS.items() if (names := self.of(each))),
        ]
        return ", ".join(part for part in parts if part) or "cleanup alone"


def _shares(chosen: Sequence[tuple[str, float]]) -> str:
    low, high = min(share for _, share in chosen), max(share for _, share in chosen)
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


@dataclass(frozen=True)
class Correction:
    """By how much measured plans differ from what their parts promise, by method: factors."""

    noise: Mapping[Method, float]
    saving: Mapping[Method, float]


@dataclass(frozen=True)
class Prediction:
    """What a plan is expected to come to."""

    noise: float
    saved: Mapping[Target, float]
    """Seconds, bytes and multiply–accumulates less than the cleaned model has."""


def allocate(
    space: Space, target: Target, noise: float, correction: Correction, limits: Mapping[Target, float] = {}
) -> Plan | None:
    """The plan that leaves least of ``target`` with at most this noise and these shares; ``None`` if there is none."""
    from scipy.optimize import LinearConstraint, milp

    problem = _Problem(space, correction)
    if not problem.gains:
        return Plan()
    rows, low, high = problem.constraints(noise)
    for other, share in limits.items():
        total = float(getattr(space, ATTRIBUTE[other]))
        rows.append(problem.savings(other))
        low.append((1 - share) * total)
        high.append(np.inf)
    binary = np.array([kind == "choice" for kind in problem.kinds], dtype=int)
    savings = problem.savings(target)
    scale = np.abs(savings).max() or 1.0
    with _no_output():
        found = milp(
            -savings / scale, integrality=binary, bounds=(0, 1),
            constraints=LinearConstraint(np.array(rows), low, high),
            options={"time_limit": _SECONDS, "mip_rel_gap": 1e-4},
        )  # fmt: skip
    return None if found.x is None else problem.plan(found.x > 0.5)


def predict(space: Space, plan: Plan, correction: Correction) -> Prediction:
    """What the additive model says of a plan."""
    problem = _Problem(space, correction)
    chosen = problem.chosen(plan)
    saved: dict[Target, float] = {target: float(problem.savings(target) @ chosen) for target in ATTRIBUTE}
    return Prediction(float(np.array(problem.noises) @ chosen), saved)


class _Problem:
    """The variables: a choice of a share for each group, of a form for each layer, and pairs of both."""

    def __init__(self, space: Space, correction: Correction) -> None:
        self.kinds: list[str] = []
        self.gains: list[dict[Target, float]] = []
        self.noises: list[float] = []
        self._prune: dict[int, tuple[str, float]] = {}
        self._form: dict[int, tuple[str, Form]] = {}
        self._pairs: list[tuple[int, int, int]] = []
        self._one_of: list[list[int]] = []
        made: dict[str, list[tuple[int, float]]] = {}
        read: dict[str, list[tuple[int, float]]] = {}
        for group in space.groups:
            own = []
            for share, effect in group.levels.items():
                noise = effect.noise * correction.noise["prune"]
                at = self._add("choice", _gains(effect, correction.saving["prune"]), noise)
                self._prune[at] = group.name, share
                own.append(at)
                for names, places in ((group.layers, made), (group.readers, read)):
                    for name in names:
                        places.setdefault(name, []).append((at, share))
            self._one_of.append(own)
        for layer in space.layers:
            own = []
            for form, saved, noise in _forms(layer, correction):
                at = self._add("choice", saved, noise)
                self._form[at] = layer.name, form
                own.append(at)
                for pruned, share in made.get(layer.name, ()):
                    self._pair(pruned, at, {key: share * max(value, 0.0) for key, value in saved.items()})
            self._one_of.append(own)
            for (first, a), (second, b) in product(made.get(layer.name, ()), read.get(layer.name, ())):
                self._pair(first, second, {"latency": 0.0, "size": a * b * layer.bytes, "macs": a * b * layer.macs})

    def constraints(self, noise: float) -> tuple[list[np.ndarray], list[float], list[float]]:
        """Noise, one choice for each, and pairs that are at least what both choices together make them."""
        count = len(self.kinds)
        rows, low, high = [np.array(self.noises)], [-np.inf], [noise]
        for own in self._one_of:
            row = np.zeros(count)
            row[own] = 1
            rows.append(row)
            low.append(-np.inf)
            high.append(1.0)
        for pair, first, second in self._pairs:
            row = np.zeros(count)
            row[[first, second]], row[pair] = 1, -1
            rows.append(row)
            low.append(-np.inf)
            high.append(1.0)
        return rows, low, high

    def savings(self, target: Target) -> np.ndarray:
        """What each variable saves."""
        return np.array([each[target] for each in self.gains])

    def chosen(self, plan: Plan) -> np.ndarray:
        """The variables that stand for a plan, as far as its parts are known."""
        prune, split, precisions = set(plan.prune), dict(plan.split), dict(plan.precisions)
        found = np.zeros(len(self.kinds))
        for at, each in self._prune.items():
            found[at] = each in prune
        for at, (name, form) in self._form.items():
            found[at] = form == Form(split.get(name), precisions.get(name))
        for pair, first, second in self._pairs:
            found[pair] = found[first] * found[second]
        return found

    def plan(self, chosen: np.ndarray) -> Plan:
        """What the chosen variables stand for."""
        prune = tuple(self._prune[at] for at in self._prune if chosen[at])
        forms = [self._form[at] for at in self._form if chosen[at]]
        split = tuple((name, form.rank) for name, form in forms if form.rank is not None)
        return Plan(prune, split, tuple((name, form.precision) for name, form in forms if form.precision is not None))

    def _pair(self, first: int, second: int, double: Mapping[Target, float]) -> None:
        """What both together save less than each alone."""
        self._pairs.append((self._add("pair", {key: -value for key, value in double.items()}, 0.0), first, second))

    def _add(self, kind: str, gains: dict[Target, float], noise: float) -> int:
        self.kinds.append(kind)
        self.gains.append(gains)
        self.noises.append(noise)
        return len(self.kinds) - 1


def _forms(layer: LayerLevels, correction: Correction) -> Iterator[tuple[Form, dict[Target, float], float]]:
    """The forms of a layer but for the one that it has, what each saves, and its noise."""
    whole: dict[Target, float] = {"latency": layer.seconds, "size": layer.bytes, "macs": layer.macs}
    fewer: list[tuple[float | None, dict[Target, float], float]] = [(None, dict.fromkeys(whole, 0.0), 0.0)]
    for share, effect in layer.split.items():
        fewer.append((share, _gains(effect, correction.saving["split"]), effect.noise * correction.noise["split"]))
    for rank, saved, noise in fewer:
        if rank is not None:
            yield Form(rank), saved, noise
        for precision, effect in layer.precisions.items():
            # Of what the factors leave, few bits save as large a part as of the whole.
            more = _gains(effect, correction.saving["quantize"])
            left = {key: 1 - saved[key] / whole[key] if whole[key] > 0 else 0.0 for key in saved}
            both = {key: saved[key] + more[key] * max(left[key], 0.0) for key in saved}
            yield Form(rank, precision), both, noise + effect.noise * correction.noise["quantize"]


def _gains(effect: Effect, factor: float) -> dict[Target, float]:
    """Seconds as measured plans correct them; arithmetic and bytes are counted, so they need no correction."""
    return {"latency": effect.seconds * factor, "size": effect.bytes, "macs": effect.macs}


@contextmanager
def _no_output() -> Iterator[None]:
    """Nothing goes to standard output: HiGHS writes a line there now and then, whatever its options say; where that is
    a file or a pipe, into a buffer of C, which would be written when the process ends."""
    sys.stdout.flush()
    _flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        _flush()
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _flush() -> None:
    """The buffers of C, where there is a library to ask."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).fflush(None)
