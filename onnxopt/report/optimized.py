"""The report of a run of passes, distillation among them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxopt import wording
from onnxopt.evaluation import Quality
from onnxopt.inspection import Costs
from onnxopt.pass_base import Report
from onnxopt.report import before_after, values
from onnxopt.report.beside import Beside
from onnxopt.report.document import (
    Axis,
    Cell,
    Column,
    Document,
    Fact,
    Facts,
    Figure,
    Notes,
    Point,
    Section,
    Series,
    Shown,
    Table,
)
from onnxopt.report.origin import Origin, run_section
from onnxopt.run_report import RunReport


@dataclass(frozen=True)
class Optimized:
    """A run of passes, and what both models cost."""

    report: RunReport
    before: Costs
    after: Costs
    beside: Beside
    kind: str = "optimize"
    budget: Mapping[str, float] = field(default_factory=dict)
    """``min_sqnr`` in dB and ``max_drop`` as a share, where they were asked for."""


def document(found: Optimized, origin: Origin) -> Document:
    """What each pass did to which node and why not to others, and what that came to."""
    report = found.report
    measures = before_after.costs(found.before, found.after)
    if (ratio := found.beside.latency) is not None:
        measures.insert(1, before_after.latency(ratio.median, ratio.low, ratio.high))
    if found.beside.loss is not None:
        measures += before_after.scores(found.beside.metric, found.beside.loss, found.beside.untaught)
    sections = before_after.sections(measures, before_after.dims(found.before))
    holds, verdict = _verdict(found)
    if found.budget:
        sections.append(_budget(found, holds))
    if report.quality:
        sections.append(_quality(report))
    sections += _measured(report.passes)
    sections.append(_passes(report.passes))
    if warnings := (*report.problems, *report.warnings, *found.beside.notes):
        sections.insert(0, Section("warnings", "To be taken with care", Notes(warnings)))
    sections += _notes(report.passes)
    return Document(found.kind, origin.model or "A model", holds, verdict, (*sections, run_section(origin)))


def _verdict(found: Optimized) -> tuple[bool | None, str]:
    """Whether the budget holds, or if there is none, whether the outputs were verified."""
    report = found.report
    left = {"Size": values.change(found.before.file_bytes, found.after.file_bytes)}
    left["latency"] = None if found.beside.latency is None else found.beside.latency.median - 1
    reached = ", ".join(f"{name} ×{1 + change:.2f}" for name, change in left.items() if change is not None)
    said = f"{reached}. {report.verification[:1].upper()}{report.verification[1:]}."
    if not report.changed:
        return None, f"Nothing was changed: no pass found anything to do. {said}"
    if broken := _broken(found):
        return False, f"The budget does not hold: {'; '.join(broken)}. {said}"
    if found.budget and report.overall is not None:
        return True, f"The budget holds. {said}"
    return report.verified and not report.problems, said


def _broken(found: Optimized) -> list[str]:
    quality = found.report.overall
    if quality is None:
        return []
    least, drop = found.budget.get("min_sqnr", -math.inf), found.budget.get("max_drop", math.inf)
    broken = [f"{name} has {db:.1f} dB, of at least {least:g}" for name, db in quality.sqnr_db.items() if db < least]
    return broken + [
        f"{name} loses {lost:.2%}, of at most {drop:.2%}" for name, lost in quality.lost.items() if lost > drop
    ]


def _budget(found: Optimized, holds: bool | None) -> Section:
    quality, asked = found.report.overall, found.budget
    facts = []
    if "min_sqnr" in asked:
        facts.append(Fact("min_sqnr", "Least SQNR allowed", values.decibels(asked["min_sqnr"])))
        reached = values.NOTHING if quality is None else values.decibels(quality.least_sqnr_db)
        facts.append(Fact("sqnr_db", "Least SQNR of an output", reached))
    if "max_drop" in asked:
        facts.append(Fact("max_drop", "Largest share of answers that may be lost", values.share(asked["max_drop"], 2)))
        lost = None if quality is None else max(quality.lost.values(), default=0.0)
        facts.append(Fact("lost", "Answers lost", values.share(lost, 2)))
    return Section("budget", "Budget", Facts((*facts, Fact("holds", "Holds", values.plain(holds)))))


def _quality(report: RunReport) -> Section:
    columns = (
        Column("pass", "Pass"), Column("output", "Output"), Column("sqnr_db", "SQNR", True),
        Column("agreement", "Same answers", True), Column("accuracy", "Right answers", True),
        Column("samples", "Samples", True),
    )  # fmt: skip
    every = dict(report.quality)
    if report.overall is not None and len(every) > 1:
        every["all together"] = report.overall
    rows = [row for name, quality in every.items() for row in _quality_rows(name, quality)]
    intro = "Of each lossy pass against the model before it, on samples that nothing was fitted to."
    return Section("quality", "What lossy passes cost", Table(columns, tuple(rows)), intro)


def _quality_rows(name: str, quality: Quality) -> list[tuple[Cell, ...]]:
    rows: list[tuple[Cell, ...]] = []
    for output in dict.fromkeys((*quality.sqnr_db, *quality.agreement, *quality.accuracy)):
        right = quality.accuracy.get(output)
        rows.append((
            name, output,
            values.decibels(quality.sqnr_db[output]) if output in quality.sqnr_db else values.NOTHING,
            values.share(quality.agreement.get(output), 2),
            values.NOTHING if right is None else Shown(list(right), f"{right[0]:.2%} → {right[1]:.2%}"),
            values.whole(quality.samples),
        ))  # fmt: skip
    return rows


def _passes(passes: Sequence[Report]) -> Section:
    columns = Column("pass", "Pass"), Column("changed", "Changed", True), Column("refused", "Refused", True)
    busy = [each for each in passes if each.changed or each.refusals]
    rows = tuple((each.name, values.whole(each.changed), values.whole(len(each.refusals))) for each in busy)
    idle = f" {wording.count(len(passes) - len(busy), 'other')} found nothing to do." if len(busy) < len(passes) else ""
    return Section("passes", "Passes", Table(columns, rows), f"In the order in which they ran.{idle}")


def _notes(passes: Sequence[Report]) -> list[Section]:
    """Every node that was changed, and every one that was left alone."""
    columns = Column("node", "Node"), Column("pass", "Pass"), Column("text", "What was done")
    why = (*columns[:2], Column("text", "Why not"))
    changes = tuple((note.node, each.name, note.text) for each in passes for note in each.changes)
    refusals = tuple((note.node, each.name, note.text) for each in passes for note in each.refusals)
    found = []
    if changes:
        found.append(Section("changes", "What was changed", Table(columns, changes)))
    if refusals:
        found.append(Section("refusals", "What was left alone, and why", Table(why, refusals)))
    return found


def _measured(passes: Sequence[Report]) -> list[Section]:
    """What passes measured: a plot where there is one to be drawn, and a table for each kind of thing."""
    found = []
    for each in passes:
        name = each.name.replace("-", "_")
        for title, figure in (("how it learned", _curve(each.facts)), ("gains and harms", _trade(each.facts))):
            if figure is not None:
                found.append(Section(f"{name}_plot", f"{each.name}: {title}", figure))
        kinds: dict[str, list[Mapping[str, Any]]] = {}
        for fact in each.facts:
            kind = "model" if fact.get("node") == "model" else next(iter(fact))
            kinds.setdefault(kind, []).append(fact)
        for kind, facts in kinds.items():
            found.append(Section(f"{name}_by_{kind}", f"{each.name}: measured {_KINDS.get(kind, kind)}", _table(facts)))
    return found


_KINDS = {"model": "of the model", "node": "of nodes", "tensor": "of tensors", "epoch": "in each epoch"}


def _table(facts: Sequence[Mapping[str, Any]]) -> Table:
    """A row each, with a column for whatever any of them tells."""
    keys = list(dict.fromkeys(key for fact in facts for key in fact))
    numbers = {key for key in keys if all(type(fact.get(key, 0)) in (int, float) for fact in facts)}
    columns = tuple(Column(key, key.replace("_us", " µs").replace("_", " "), key in numbers) for key in keys)
    return Table(columns, tuple(tuple(values.plain(fact.get(key)) for key in keys) for fact in facts))


def _curve(facts: Sequence[Mapping[str, Any]]) -> Figure | None:
    """The loss by epoch, of what trains."""

    def about(fact: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(f"{name.replace('_', ' ')} {values.plain(value).text}" for name, value in fact.items())

    points = tuple(Point(f["epoch"], f["loss"], about(f)) for f in facts if {"epoch", "loss"} <= f.keys())
    return Figure(Axis("epoch"), Axis("loss"), (Series("loss", "loss", points, "line"),)) if points else None


def _trade(facts: Sequence[Mapping[str, Any]]) -> Figure | None:
    """What each node gains and harms with integers, of what was quantized by measurement."""
    points = tuple(
        Point(
            fact["float_us"] - fact["integer_us"], fact["alone_db"],
            (str(fact["node"]), f"{fact['float_us']:.1f} → {fact['integer_us']:.1f} µs", f"{fact['alone_db']:.1f} dB"),
        )
        for fact in facts
        if {"float_us", "integer_us", "alone_db"} <= fact.keys()
    )  # fmt: skip
    if not points:
        return None
    return Figure(
        Axis("µs saved by integers"), Axis("SQNR when it alone is quantized (dB)"), (Series("nodes", "nodes", points),)
    )
