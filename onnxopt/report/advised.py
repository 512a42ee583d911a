"""The report of what each method would bring to a model, and cost."""

from __future__ import annotations

from onnxopt.report import values
from onnxopt.report.document import Cell, Column, Document, Fact, Facts, Notes, Section, Shown, Table
from onnxopt.report.origin import Origin, run_section
from onnxopt.search.advise import Advice
from onnxopt.search.verdicts import Finding

_COLUMNS = (
    Column("method", "Method"), Column("about", "What it does"), Column("verdict", "Verdict"), Column("basis", "Basis"),
    Column("latency", "Latency", True), Column("size", "Size", True), Column("macs", "MACs", True),
    Column("drop", "Lost", True), Column("drop_at_most", "At most", True), Column("command", "Command"),
)  # fmt: skip


def document(found: Advice, origin: Origin) -> Document:
    """All methods, the best first, and the command to run."""
    lost = f" Lost is {found.metric}, on {found.samples} samples that nothing was fitted to." if found.metric else ""
    table = Table(
        _COLUMNS,
        tuple(map(_row, found.findings)),
        frozenset(at for at, each in enumerate(found.findings) if each.verdict == "use it"),
    )
    facts = Facts(
        (
            Fact("device", "Device", Shown(found.device, f"{found.device}: {found.description}")),
            Fact("target", "As small as it can be", found.target),
            Fact("max_drop", "May be lost", values.share(found.max_drop, 2)),
            Fact("recommended", "Recommended", Shown(found.recommended, found.recommended or "nothing")),
        )
    )
    sections = [
        Section("advice", "Advice", facts, f"{found.why[:1].upper()}{found.why[1:]}."),
        Section("methods", "Method by method", table, f"The best first, in units of the original's.{lost}"),
        run_section(origin),
    ]
    if found.notes:
        sections.insert(0, Section("warnings", "To be taken with care", Notes(found.notes)))
    worth = sum(each.verdict == "use it" for each in found.findings)
    verdict = f"{worth} of {len(found.findings)} methods are worth it on {found.device}, {found.target} first."
    return Document("advise", origin.model or found.model, None, verdict, tuple(sections))


def _row(each: Finding) -> tuple[Cell, ...]:
    return (
        each.method, each.about, Shown(each.verdict, each.told), each.basis, values.times(each.latency),
        values.times(each.size), values.times(each.macs), values.share(each.drop, 2),
        values.share(each.drop_at_most, 2), each.command,
    )  # fmt: skip
