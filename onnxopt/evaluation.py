"""What lossy passes are given to calibrate on, and how near a model stays to the one that it was made from.

A model is judged on samples that nothing was fitted to.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.data import Dataset, load_data
from onnxopt.runtime import Feeds, Session, Snapshot

Array = np.ndarray[Any, Any]

_BLOCK = 1 << 13
"""So many numbers are compared at once: they stay in the processor's cache, and need no new pages of memory."""
_PARTS = 16
"""Into so many parts a batch is cut to see how its samples differ."""
_ANSWERS = "iubOUS"
"""Kinds of outputs whose elements are right or wrong, not near or far."""
MAX_SAMPLES = 64
"""How many samples a lossy pass is judged on,"""
MAX_LABELLED = 256
"""and how many if they are labelled: a share of right answers wants more of them."""


@dataclass(frozen=True)
class Samples:
    """Samples to calibrate on, and others, disjoint from them, to judge by."""

    calibration: Dataset | None = None
    evaluation: Dataset | None = None
    warnings: tuple[str, ...] = ()
    """What is doubtful about them."""

    @classmethod
    def of(cls, data: Any, evaluation: Any, model: ir.Model, share: float = 1.0) -> Samples:
        """Samples from what the user gave, in any form that ``load_data`` takes; without ``evaluation`` half of
        ``data`` is kept for that. Of ``data`` only the first ``share`` counts, as ``Dataset.split`` divides them.

        Raises ``DataError`` if they do not fit ``model``.
        """
        first = None if data is None else load_data(data, model)
        if first is not None and share < 1:
            first, _ = first.split(share)
        second = None if evaluation is None else load_data(evaluation, model)
        warnings: tuple[str, ...] = ()
        if any(each is not None and each.random for each in (first, second)):
            warnings += ("ranges and losses are those on random data, which say little of real ones; give samples",)
        if first is None or second is not None:
            return cls(first, second, warnings)
        if first.units < 2:
            warnings += ("calibration and evaluation are on the same data, for there is nothing to split; give more",)
            return cls(first, first, warnings)
        return cls(*first.split(0.5), warnings)

    @property
    def labelled(self) -> bool:
        """Whether there are samples to calibrate on, with labels."""
        return self.calibration is not None and self.calibration.labelled

    def probes(self) -> Sequence[Feeds] | None:
        """Inputs to compare exact passes on, if there are samples to judge by."""
        if self.evaluation is None:
            return None
        return [batch.feeds for batch in islice(self.evaluation.take(2).batches(), 2)]

    @property
    def held_out(self) -> Dataset | None:
        """As many samples as lossy passes are judged on."""
        return None if self.evaluation is None else judging(self.evaluation)


@dataclass(frozen=True)
class Quality:
    """What became of the outputs."""

    samples: int
    """On how many samples this was measured; 0 if on made-up inputs."""
    sqnr_db: dict[str, float] = field(default_factory=dict)
    """The signal to quantization noise ratio in dB of each output of floats or bytes; infinite where not a bit
    differs."""
    agreement: dict[str, float] = field(default_factory=dict)
    """The share of equal argmax over the last axis, for float outputs of rank 2 and for probabilities; of rank 3,
    how much of the sequences is equal (twice the matches over the length of both). Of wider integers, booleans and
    strings, which are classes, indices or counts: the share of equal elements, none where the shape differs."""
    accuracy: dict[str, tuple[float, float]] = field(default_factory=dict)
    """The share of right answers before and after, for outputs that are answers, or scores, of what labels are."""
    sure_db: dict[str, float] = field(default_factory=dict)
    """SQNR in dB with one standard error more of noise, as the samples differ: what to expect of others."""

    @property
    def least_sqnr_db(self) -> float:
        """The SQNR in dB of the output that suffers most; infinite if no output is numeric."""
        return min(self.sqnr_db.values(), default=math.inf)

    @property
    def noise(self) -> float:
        """The same as the power of the noise in units of the signal's, or if it is more, the share of the answers
        that differ in an output that has no SQNR."""
        answers = (1 - equal for name, equal in self.agreement.items() if name not in self.sqnr_db)
        return max(float(10 ** (-self.least_sqnr_db / 10)), max(answers, default=0.0))

    @property
    def lost(self) -> dict[str, float]:
        """The share of each output's answers that differ, or that were right and are not any more if it is more."""
        found = {name: 1 - equal for name, equal in self.agreement.items()}
        for name, (before, after) in self.accuracy.items():
            found[name] = max(found.get(name, 0.0), before - after)
        return found


def judging(data: Dataset) -> Dataset:
    """As many of the samples as one judges by."""
    return data.take(MAX_LABELLED if data.labelled else MAX_SAMPLES)


def evaluate(before: Snapshot, after: Snapshot, data: Dataset) -> Quality:
    """Compare two models on ``data``, as they are deployed: with ONNX Runtime's optimizations on.

    Raises ``EngineError`` if either does not run.
    """
    threads = cores()
    first, second = (Session(snapshot, optimize=True, threads=threads) for snapshot in (before, after))
    measure = Measure(first.outputs)
    for batch in data.small_batches():
        measure.add(first.run(batch.feeds), second.run(batch.feeds, first.outputs), batch.labels)
    return measure.result(len(data))


def compare(names: Sequence[str], before: Sequence[Sequence[Any]], after: Sequence[Sequence[Any]]) -> Quality:
    """The same of outputs that are there already, run by run, on made-up inputs."""
    measure = Measure(names)
    for x, y in zip(before, after, strict=True):
        measure.add(x, y)
    return measure.result(0)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Measure:
    """Adds up what ``Quality`` says, batch by batch."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._noise: dict[str, list[tuple[float, float]]] = {}
        self._equal: dict[str, list[float]] = {}
        self._right: dict[str, list[int]] = {}

    def add(self, before: Sequence[Any], after: Sequence[Any], labels: Array | None = None) -> None:
        """The outputs of one batch from both models."""
        for name, x, y in zip(self._names, before, after, strict=True):
            if not isinstance(x, np.ndarray) or not isinstance(y, np.ndarray):
                continue
            if x.dtype.kind == "f" or (x.dtype.kind in "iu" and x.dtype.itemsize == 1):
                self._noise.setdefault(name, []).extend(_powers_of_parts(x, y))
            elif x.dtype.kind in _ANSWERS:
                _add(self._equal, name, float(np.sum(x == y)) if x.shape == y.shape else 0.0, x.size)
            if x.dtype.kind == "f" and x.shape == y.shape and _is_choice(x):
                _add(self._equal, name, *_agreement(x, y))
            if labels is not None and (right := _right(x, labels)) is not None:
                _add(self._right, name, right, _right(y, labels) or 0, labels.size)

    def add_best(self, outputs: Sequence[Any], labels: Array | None = None) -> None:
        """The outputs of one batch from a model that adds no noise, and gives right answers only."""
        self.add(outputs, outputs, labels)
        for counts in self._right.values():
            counts[1] = counts[2]

    def joined(self, others: Iterable[Measure]) -> Measure:
        """All that was added up here and in others."""
        found = Measure(self._names)
        for each in (self, *others):
            for name, powers in each._noise.items():
                found._noise.setdefault(name, []).extend(powers)
            for name, counts in each._equal.items():
                _add(found._equal, name, *counts)
            for name, right in each._right.items():
                _add(found._right, name, *right)
        return found

    def result(self, samples: int) -> Quality:
        """What was found; ``samples`` is on how many."""
        return Quality(
            samples,
            {name: _decibels(*map(sum, zip(*powers, strict=True))) for name, powers in self._noise.items()},
            {name: equal / total for name, (equal, total) in self._equal.items() if total},
            {name: (x / total, y / total) for name, (x, y, total) in self._right.items() if total},
            {name: _surely(powers) for name, powers in self._noise.items()},
        )


def _is_choice(x: Array) -> bool:
    """Whether the last axis holds scores of classes: a row a sample, or probabilities at any rank."""
    if x.ndim < 2 or x.shape[-1] < 2:
        return False
    return x.ndim == 2 or bool(x.size and x.min() >= 0 and np.allclose(x.sum(-1), 1, atol=1e-3))


def _agreement(x: Array, y: Array) -> tuple[float, int]:
    """How many choices are equal, of how many; of a sequence of them, how much of it."""
    first, second = x.argmax(-1), y.argmax(-1)
    if x.ndim != 3:
        return float(np.sum(first == second)), first.size
    blank = int(np.bincount(first.reshape(-1)).argmax())
    equal = 0.0
    for a, b in zip(first, second, strict=True):
        equal += SequenceMatcher(None, _read(a, blank), _read(b, blank), autojunk=False).ratio()
    return equal, len(x)


def _read(steps: Array, blank: int) -> list[int]:
    """A sequence as connectionist temporal classification reads it: repetitions are one, and the commonest class
    is what stands between. Where in time a step falls makes no difference."""
    changes = steps[np.flatnonzero(np.diff(steps, prepend=-1))]
    return changes[changes != blank].tolist()  # type: ignore[no-any-return]


def _add(sums: dict[str, list[Any]], name: str, *values: float) -> None:
    sums[name] = [a + b for a, b in zip(sums.get(name, [0] * len(values)), values, strict=True)]


def _powers_of_parts(x: Array, y: Array) -> list[tuple[float, float]]:
    """Signal and noise of each sample of a batch, or of groups of them."""
    if x.shape != y.shape or x.ndim == 0 or not len(x):
        return [_powers(x, y)]
    count = min(len(x), _PARTS)
    return [_powers(a, b) for a, b in zip(np.array_split(x, count), np.array_split(y, count), strict=True)]


def _surely(powers: Sequence[tuple[float, float]]) -> float:
    """SQNR in dB with one standard error more of noise (of the ratio of two sums; Cochran, "Sampling Techniques")."""
    signal, noise = (np.array(each) for each in zip(*powers, strict=True))
    total, count = float(signal.sum()), len(signal)
    if count < 2 or total <= 0 or not np.isfinite(noise).all():
        return _decibels(total, float(noise.sum()))
    off = noise - signal * (noise.sum() / total)
    error = math.sqrt(count / (count - 1) * float(off @ off))
    return _decibels(total, float(noise.sum()) + error)


def _powers(x: Array, y: Array) -> tuple[float, float]:
    """Signal and noise; what is not finite is no signal where both agree, and infinite noise where not."""
    if x.shape != y.shape:
        return 0.0, math.inf
    x, y = x.reshape(-1), y.reshape(-1)
    signal = noise = 0.0
    for start in range(0, x.size, _BLOCK):
        a, b = (array[start : start + _BLOCK].astype(np.float64) for array in (x, y))
        with np.errstate(invalid="ignore", over="ignore"):
            power, difference = float(a @ a), a - b
            error = float(difference @ difference)
        if not math.isfinite(power + error):
            power, error = _powers_of_finite(a, b)
        signal, noise = signal + power, noise + error
    return signal, noise


def _powers_of_finite(a: Array, b: Array) -> tuple[float, float]:
    odd = ~(np.isfinite(a) & np.isfinite(b))
    if not np.array_equal(a[odd], b[odd], equal_nan=True):
        return 0.0, math.inf
    a, b = a[~odd], b[~odd]
    return float(a @ a), float((a - b) @ (a - b))


def _decibels(signal: float, noise: float) -> float:
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0 and math.isfinite(noise) else -math.inf


def _right(output: Array, labels: Array) -> int | None:
    """How many answers are right; ``None`` if the output does not answer to the labels."""
    if output.dtype.kind == "f" and output.ndim == labels.ndim + 1 and output.shape[:-1] == labels.shape:
        return int(np.sum(output.argmax(-1) == labels)) if output.shape[-1] > 1 and labels.dtype.kind in "iu" else None
    if output.dtype.kind in "iuOUS" and output.shape == labels.shape:
        return int(np.sum(output == labels))
    return None
