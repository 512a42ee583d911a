"""Latency and score of two models, measured side by side for a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.data import Dataset
from onnxopt.errors import DataError, EngineError, MetricError
from onnxopt.evaluation import judging
from onnxopt.probes import find_probes
from onnxopt.runtime import Feeds, Ratio, Session, Snapshot, one_thread_ratio
from onnxopt.search.metric import Loss, Yardstick, metric_for

_SECONDS = 2.0


@dataclass(frozen=True)
class Beside:
    """What was measured of two models."""

    latency: Ratio | None = None
    """On one thread, in units of the first one's."""
    metric: str = ""
    loss: Loss | None = None
    """Of the second model against the first, or against a teacher;"""
    untaught: float | None = None
    """and the score of the first one, where there is a teacher."""
    notes: tuple[str, ...] = ()
    """What could not be measured, and why."""


def beside(
    before: ir.Model,
    after: ir.Model,
    samples: Dataset | None,
    *,
    probes: Sequence[Feeds] | None = None,
    teacher: ir.Model | None = None,
) -> Beside:
    """Measure both models on samples that nothing was fitted to; without any, latency alone. What has a ``teacher`` is
    scored against it."""
    first, second = Snapshot.of(before), Snapshot.of(after)
    try:
        if samples is not None:
            feeds: Feeds = samples.one().feeds
        elif probes:
            feeds = probes[0]
        else:
            feeds = find_probes(before, Session(first, optimize=True, threads=1), count=1)[0].feeds
        ratio = one_thread_ratio(first, second, feeds, seconds=_SECONDS)
    except (EngineError, DataError) as error:
        return Beside(notes=(f"Neither latency nor score was measured: {error}",))
    if samples is None:
        return Beside(ratio, notes=("No score was measured, for no samples were given.",))
    judged, reference = judging(samples), first if teacher is None else Snapshot.of(teacher)
    try:
        metric = metric_for("auto", reference, judged)
        yardstick = Yardstick(metric, reference, judged)
        untaught = None if teacher is None else yardstick.loss(first).after
        return Beside(ratio, metric.name, yardstick.loss(second), untaught)
    except (EngineError, DataError, MetricError) as error:
        return Beside(ratio, notes=(f"No score was measured: {error}",))
