"""What a loss is measured by: statistics of each sample, of whose means the score of a model is a function.

Because a score is a function of means over samples, how sure a loss is follows from drawing samples anew with
replacement, the same ones for both models (a paired bootstrap; Efron and Tibshirani, "An Introduction to the
Bootstrap", 1993). Of answers that are right or wrong a bound is never nearer than if one more sample had been lost and
one more won (Agresti and Min, "Effects and non-effects of paired identical observations in comparing proportions with
binary matched-pairs data", Statistics in Medicine 2004), for a bootstrap of samples that are all alike has no width.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from onnxopt import _cache
from onnxopt.data import Dataset
from onnxopt.errors import DataError, MetricError, OptionError
from onnxopt.evaluation import cores
from onnxopt.runtime import Session, Snapshot

Array = np.ndarray[Any, Any]
Outputs = Mapping[str, Array]

BUILT_IN = ("auto", "accuracy", "f1", "rmse", "agreement", "noise")
_DRAWS = 2000
_CONFIDENCE = 0.95
_DEVIATIONS = 1.645
"""Of a normal distribution, at that confidence."""
_AT_ONCE = 50
"""So many draws are computed together."""


@dataclass(frozen=True)
class Metric:
    """A score of which more is better, between models that give the same outputs."""

    name: str
    statistics: Callable[[Outputs, Outputs, Array | None], Array]
    """Of each sample of a batch (n × k), from the outputs of the model and of the original, and labels;"""
    score: Callable[[Array], Array]
    """and the score from their means (… × k)."""
    counts: bool = False
    """Whether each sample is right or wrong: then as many samples are needed as tell a small share."""


@dataclass(frozen=True)
class Loss:
    """How much of its score a model loses."""

    before: float
    after: float
    low: float
    """The loss is at least this,"""
    high: float
    """and at most this, at 95 % each."""
    samples: int

    @property
    def drop(self) -> float:
        """What is lost on these samples."""
        return self.before - self.after


class Yardstick:
    """A metric, and what the original gives on some samples."""

    def __init__(self, metric: Metric, original: Snapshot, data: Dataset) -> None:
        """Run the original once. Raises ``EngineError`` if it does not run, ``MetricError`` if the metric fails."""
        self.metric, self._data = metric, data
        session = Session(original, optimize=True, threads=cores())
        self._names = session.outputs
        self._expected = [dict(zip(self._names, session.run(b.feeds), strict=True)) for b in data.small_batches()]
        self._before = self._statistics(self._expected)

    def loss(self, snapshot: Snapshot, *, seed: int = 0) -> Loss:
        """What another model loses. Raises ``EngineError`` if it does not run, ``MetricError`` if the metric fails."""
        session = Session(snapshot, optimize=True, threads=cores())
        runs = (session.run(batch.feeds, self._names) for batch in self._data.small_batches())
        after = self._statistics([dict(zip(self._names, each, strict=True)) for each in runs])
        return paired(self.metric, self._before, after, seed=seed)

    def _statistics(self, outputs: Sequence[Outputs]) -> Array:
        rows = []
        for batch, given, expected in zip(self._data.small_batches(), outputs, self._expected, strict=True):
            found = np.asarray(_called(self.metric, given, expected, batch.labels), np.float64)
            rows.append(found.reshape(-1, 1) if found.ndim < 2 else found)
        every = np.concatenate(rows)
        if not np.isfinite(every).all():
            raise MetricError(f"the metric {self.metric.name} gives numbers that are not finite")
        return every


def paired(metric: Metric, before: Array, after: Array, *, seed: int = 0) -> Loss:
    """The loss between two models, from the statistics (n × k) of the same samples."""
    count = len(before)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(_DRAWS // _AT_ONCE):
        weights = rng.multinomial(count, np.full(count, 1 / count), size=_AT_ONCE) / count
        drawn.append(metric.score(weights @ before) - metric.score(weights @ after))
    low, high = np.quantile(np.concatenate(drawn), [1 - _CONFIDENCE, _CONFIDENCE])
    first, second = (float(metric.score(each.mean(0))) for each in (before, after))
    # Samples that all came out alike say nothing of others by themselves: one more lost and one more won are assumed.
    least = _DEVIATIONS * math.sqrt(2) / (count + 2) if metric.counts else 0.0
    return Loss(first, second, min(float(low), first - second - least), max(float(high), first - second + least), count)


def samples_needed(metric: Metric, max_drop: float) -> int:
    """So many samples at least can tell that a loss is at most this: of fewer, all may be right by chance (the rule of
    three; Hanley and Lippman-Hand, 1983)."""
    return math.ceil(3 / max_drop) if metric.counts and max_drop > 0 else 2


def metric_for(name: str, original: Snapshot, data: Dataset) -> Metric:
    """A metric by its name, or by ``module:function``.

    ``auto`` is accuracy where labels are numbers of classes that an output has scores for, RMSE where an output has the
    shape of the labels; without labels agreement where an output has scores of classes, else noise. A function gets the
    outputs by name and the labels of a batch, and returns a score for each sample or one for the batch; more is better.
    Raises ``OptionError`` if there is no such metric, ``DataError`` if the data do not fit it.
    """
    if ":" in name:
        return _of_user(name)
    if name not in BUILT_IN:
        raise OptionError(f"the metric is one of {', '.join(BUILT_IN)} or module:function; got {name!r}")
    batch = data.one()
    session = Session(original, optimize=True, threads=1)
    given = zip(session.outputs, session.run(batch.feeds), strict=True)
    outputs = {name: y for name, y in given if isinstance(y, np.ndarray)}  # sequences and maps have no score
    labels = batch.labels
    scores = [key for key, y in outputs.items() if _has_scores(y)]
    fitting = [] if labels is None else [key for key in scores if outputs[key].shape[:-1] == labels.shape]
    alike = [] if labels is None else [k for k, y in outputs.items() if y.shape == labels.shape and y.dtype.kind == "f"]
    if name == "auto":
        if labels is not None and labels.dtype.kind in "iu" and fitting:
            name = "accuracy"
        elif alike:
            name = "rmse"
        else:
            name = "agreement" if scores else "noise"
    match name:
        case "accuracy" | "f1":
            if not fitting or labels is None or labels.dtype.kind not in "iu":
                raise DataError(f"the metric {name} needs labels that are numbers of classes, and an output of scores")
            return _accuracy(fitting[0]) if name == "accuracy" else _f1(fitting[0], outputs[fitting[0]].shape[-1])
        case "rmse":
            if not alike:
                raise DataError("the metric rmse needs labels of the shape of an output of floats")
            return _rmse(alike[0])
        case "agreement":
            if not scores:
                raise DataError("the metric agreement needs an output of scores of classes")
            return _agreement(scores[0])
        case _:
            if not any(y.dtype.kind == "f" and y.ndim for y in outputs.values()):
                raise DataError("the metric noise needs an output of floats; give module:function for others")
            return _NOISE


def source(name: str) -> str:
    """What a metric's results depend on besides samples: its name, and of ``module:function`` what the module's file
    says."""
    if ":" not in name:
        return name
    file = getattr(_imported(name), "__file__", None)
    return name if file is None else _cache.key(name, Path(file).read_bytes().decode("latin-1"))


def _called(metric: Metric, given: Outputs, expected: Outputs, labels: Array | None) -> Any:
    try:
        return metric.statistics(given, expected, labels)
    except Exception as error:
        raise MetricError(f"the metric {metric.name} failed: {type(error).__name__}: {error}") from error


def _mean(means: Array) -> Array:
    found: Array = means[..., 0]
    return found


def _by_sample(right: Array) -> Array:
    means: Array = right.reshape(len(right), -1).mean(1, keepdims=True)
    return means


def _accuracy(output: str) -> Metric:
    return Metric("accuracy", lambda y, _, labels: _by_sample(y[output].argmax(-1) == labels), _mean, counts=True)


def _agreement(output: str) -> Metric:
    def statistics(given: Outputs, expected: Outputs, labels: Array | None) -> Array:
        return _by_sample(given[output].argmax(-1) == expected[output].argmax(-1))

    return Metric("agreement", statistics, _mean, counts=True)


def _rmse(output: str) -> Metric:
    return Metric("rmse", lambda y, _, labels: _by_sample((y[output] - labels) ** 2), lambda m: -np.sqrt(_mean(m)))


def _f1(output: str, classes: int) -> Metric:
    """The mean over classes of 2 tp / (2 tp + fp + fn); a class that nobody meets counts as one."""

    def statistics(given: Outputs, expected: Outputs, labels: Array | None) -> Array:
        assert labels is not None
        eye = np.eye(classes)
        said, right = (eye[each.reshape(len(each), -1)] for each in (given[output].argmax(-1), labels))
        return np.concatenate([(said * right).sum(1), (said + right).sum(1)], axis=1)

    def score(means: Array) -> Array:
        both, either = means[..., :classes], means[..., classes:]
        found: Array = np.where(either > 0, 2 * both / np.where(either > 0, either, 1), 1.0).mean(-1)
        return found

    return Metric("f1", statistics, score, counts=True)


def _noise_and_signal(given: Outputs, expected: Outputs, labels: Array | None) -> Array:
    noise, signal = [], []
    for name, x in expected.items():
        if isinstance(x, np.ndarray) and x.dtype.kind == "f" and x.ndim:
            rows = x.reshape(len(x), -1).astype(np.float64)
            noise.append(((given[name].reshape(rows.shape) - rows) ** 2).sum(1))
            signal.append((rows**2).sum(1))
    return np.stack([*noise, *signal], axis=1)


def _least_clean(means: Array) -> Array:
    """−1 times the noise over the signal, of the output where that is most."""
    half = means.shape[-1] // 2
    found: Array = -(means[..., :half] / np.maximum(means[..., half:], 1e-30)).max(-1)
    return found


_NOISE = Metric("noise", _noise_and_signal, _least_clean)


def _of_user(name: str) -> Metric:
    module, function = _imported(name), name.partition(":")[2]
    try:
        called = getattr(module, function)
    except AttributeError as error:
        raise OptionError(f"there is no metric {name!r}: {error}") from error
    return Metric(name, lambda y, _, labels: called(dict(y), labels), _mean)


def _imported(name: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name.partition(":")[0])
    except ImportError as error:
        raise OptionError(f"there is no metric {name!r}: {error}") from error


def _has_scores(y: Any) -> bool:
    return isinstance(y, np.ndarray) and y.dtype.kind == "f" and y.ndim >= 2 and y.shape[-1] > 1
