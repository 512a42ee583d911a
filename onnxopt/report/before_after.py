"""What a model costs and scores before and after, as a table and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxopt.inspection import Costs
from onnxopt.report import values
from onnxopt.report.document import Axis, Column, Figure, Point, Section, Series, Shown, Table
from onnxopt.search.metric import Loss

_COLUMNS = (
    Column("what", ""),
    Column("before", "Before", figures=True),
    Column("after", "After", figures=True),
    Column("change", "Change", figures=True),
    Column("interval", "Surely between", figures=True),
)
_OF_ONE = ("accuracy", "f1", "agreement")
"""Metrics that are shares."""


@dataclass(frozen=True)
class Measure:
    """One thing that was measured of both models."""

    key: str
    label: str
    before: Shown
    after: Shown
    change: Shown
    interval: Shown = values.NOTHING
    """What the change surely is between."""


def costs(before: Costs, after: Costs) -> list[Measure]:
    """What both models cost, as far as it can be counted."""
    return [
        counted("size", "Size of the file", values.size(before.file_bytes), values.size(after.file_bytes)),
        counted("macs", "Multiply–accumulates", values.whole(before.macs), values.whole(after.macs)),
        counted("parameters", "Parameters", values.whole(before.parameters), values.whole(after.parameters)),
        counted("nodes", "Nodes", values.whole(before.nodes), values.whole(after.nodes)),
    ]


def counted(key: str, label: str, before: Shown, after: Shown) -> Measure:
    """What is known exactly."""
    return Measure(key, label, before, after, values.signed(values.change(before.value, after.value)))


def latency(median: float, low: float | None = None, high: float | None = None) -> Measure:
    """A latency in units of the first model's, with the middle half of what was measured."""
    interval = values.NOTHING
    if low is not None and high is not None:
        interval = Shown([low - 1, high - 1], f"{values.signed(low - 1).text} … {values.signed(high - 1).text}")
    return Measure("latency", "Latency", values.times(1.0), values.times(median), values.signed(median - 1), interval)


def scores(name: str, loss: Loss, untaught: float | None = None) -> list[Measure]:
    """The score on the same samples, with what the change surely is between (95 % each way); where the loss is that
    against a teacher, beside the score before teaching too."""

    def text(value: float, *, sign: bool = False) -> str:
        if name in _OF_ONE:
            return values.minus(f"{value * 100:+z.2f} points" if sign else f"{value:.2%}")
        return values.minus(f"{value:+z.3g}" if sign else f"{value:.4g}")

    def measure(key: str, label: str, before: float, interval: Shown) -> Measure:
        grown = loss.after - before
        first, second = Shown(before, text(before)), Shown(loss.after, text(loss.after))
        return Measure(key, label, first, second, Shown(grown, text(grown, sign=True)), interval)

    low, high = -loss.high, -loss.low
    interval = Shown([low, high], f"{text(low, sign=True)} … {text(high, sign=True)}")
    what = f"{name}, {loss.samples:,} samples"
    if untaught is None:
        return [measure("score", f"Score ({what})", loss.before, interval)]
    return [
        measure("score", f"Score ({what})", untaught, values.NOTHING),
        measure("teacher", "Score, beside the teacher's", loss.before, interval),
    ]


def sections(measures: Sequence[Measure], intro: str = "") -> list[Section]:
    """The table, and what is left of each cost as bars."""
    rows = tuple((Shown(m.key, m.label), m.before, m.after, m.change, m.interval) for m in measures)
    found = [Section("before_after", "Before and after", Table(_COLUMNS, rows), intro)]
    left = tuple(
        Point(m.label, m.after.value / m.before.value, (f"{m.label}: {m.before.text} → {m.after.text}",))
        for m in measures
        if m.key not in ("score", "teacher") and m.before.value and m.after.value is not None
    )
    if left:
        axes = Axis(""), Axis("of the original's", share=True)
        bars = Figure(*axes, (Series("left", "left", left, "bars"),), limits=((1.0, "original"),))
        found.append(Section("left", "What is left", bars))
    return found


def dims(costs: Costs) -> str:
    """At which sizes arithmetic is counted, and what is left out."""
    parts = []
    if costs.macs_at:
        sizes = ", ".join(f"{name}={size}" for name, size in costs.macs_at.items())
        parts.append(f"Multiply–accumulates are at {sizes}.")
    if costs.macs_unknown:
        parts.append(f"{len(costs.macs_unknown)} nodes of unknown shapes are left out of them.")
    if costs.macs_counted_once:
        parts.append(f"{len(costs.macs_counted_once)} loops of unknown length count once.")
    return " ".join(parts)
