"""The report of two models side by side."""

from __future__ import annotations

from pathlib import PurePath

from onnxopt import wording
from onnxopt.inspection import Comparison, OutputComparison
from onnxopt.report import before_after, values
from onnxopt.report.document import Column, Document, Notes, Section, Shown, Table
from onnxopt.report.origin import Origin, run_section

_COLUMNS = (
    Column("output", "Output"), Column("same", "Same"), Column("sqnr_db", "SQNR", True),
    Column("movement", "Largest movement", True), Column("agreement", "Same argmax", True),
)  # fmt: skip


def document(found: Comparison, origin: Origin) -> Document:
    """How outputs, costs and latency differ."""
    measures = before_after.costs(found.a.costs, found.b.costs)
    if (ratio := found.latency_ratio) is not None:
        measures.insert(1, before_after.latency(ratio.median, ratio.low, ratio.high))
    table, *rest = before_after.sections(
        measures, f"Before is A, after is B. {before_after.dims(found.a.costs)}".strip()
    )
    outputs = Section("outputs", "Outputs", Table(_COLUMNS, tuple(map(_row, found.outputs))), _PROBES[found.probes > 0])
    sections = [table, outputs, *rest]
    if notes := (*found.interface, *found.notes):
        sections.insert(0, Section("warnings", "To be taken with care", Notes(notes)))
    verdict = "The outputs agree within the noise of A" if found.same else "The outputs differ"
    probes, threads = wording.count(found.probes, "set"), wording.count(found.threads, "thread")
    return Document(
        "compare", origin.model or _title(found), found.same,
        f"{verdict}, on {probes} of inputs; latency is on {threads}.", (*sections, run_section(origin)),
    )  # fmt: skip


_PROBES = {
    True: "Same: within the noise of A. Movement is in units of the output's largest value.",
    False: "The models were not run.",
}


def _title(found: Comparison) -> str:
    return " and ".join(PurePath(each.path).name or "a model" for each in (found.a, found.b))


def _row(each: OutputComparison) -> tuple[Shown | str, ...]:
    return (
        each.name, Shown(each.same, "yes" if each.same else f"no: {each.text}"),
        values.NOTHING if each.movement is None else values.decibels(each.sqnr_db) if each.sqnr_db is not None
        else Shown(None, "" if each.movement else "exact"),
        values.NOTHING if each.movement is None else Shown(each.movement, f"{each.movement:.2g}"),
        values.share(each.agreement, 2),
    )  # fmt: skip
