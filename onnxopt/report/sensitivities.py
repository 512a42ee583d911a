"""The report of what each layer gains and harms alone, by any of the three methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnxopt import wording
from onnxopt.errors import OptionError
from onnxopt.report import values
from onnxopt.report.document import Axis, Cell, Column, Document, Figure, Point, Section, Series, Shown, Table
from onnxopt.report.origin import Origin, run_section
from onnxopt.search.sensitivity import LowRankSensitivity, PruningSensitivity, Sensitivity

Row = Sensitivity | PruningSensitivity | LowRankSensitivity

_ALONE = Column("sqnr_db", "SQNR alone", True)
_COLUMNS: dict[type, tuple[Column, ...]] = {
    Sensitivity: (
        Column("node", "Layer"), Column("op", "Operator"), Column("float_us", "As float", True),
        Column("integer_us", "With integers", True), _ALONE,
    ),
    PruningSensitivity: (
        Column("node", "Layer"), Column("channels", "Channels", True), Column("kept", "Kept", True),
        Column("macs", "MACs of the model saved", True), Column("parameters", "Parameters saved", True), _ALONE,
    ),
    LowRankSensitivity: (
        Column("node", "Layer"), Column("rank", "Rank", True), Column("macs", "MACs of the layer left", True),
        Column("lost", "Variance lost", True), Column("whole_us", "Whole", True), Column("split_us", "Split", True),
        _ALONE,
    ),
}  # fmt: skip
_METHODS: dict[type, str] = {
    Sensitivity: "computed with integers", PruningSensitivity: "without some of its channels",
    LowRankSensitivity: "split into two factors",
}  # fmt: skip


def document(found: Sequence[Row], origin: Origin) -> Document:
    """What each layer gains and harms when something is done to it alone.

    Raises ``OptionError`` if the rows are of several methods.
    """
    kinds = {type(row) for row in found}
    if len(kinds) > 1:
        raise OptionError(
            f"a report of sensitivity is of one method, got {', '.join(sorted(k.__name__ for k in kinds))}"
        )
    if not kinds:
        return Document(
            "sensitivity",
            origin.model or "Sensitivity",
            None,
            "No layer could be changed by this method.",
            (run_section(origin),),
        )
    (kind,) = kinds
    layers = len({row.node for row in found})
    table = Table(_COLUMNS[kind], tuple(_cells(row) for row in found))
    return Document(
        "sensitivity", origin.model or "Sensitivity", None,
        f"{wording.count(layers, 'layer')}, each alone {_METHODS[kind]}, as the recipe cleanup leaves the model.",
        (
            Section("sensitivity", "What each layer gains and harms alone", _figure(found), "Up and right is best."),
            Section("layers", "Layer by layer", table), run_section(origin),
        ),
    )  # fmt: skip


def _cells(row: Row) -> tuple[Cell, ...]:
    alone = values.decibels(row.sqnr_db)
    match row:
        case Sensitivity():
            return row.node, row.op, _us(row.float_us), _us(row.integer_us), alone
        case PruningSensitivity():
            numbers = values.whole(row.channels), values.whole(row.kept)
            return row.node, *numbers, values.share(row.macs), values.share(row.parameters), alone
    return (
        row.node, values.whole(row.rank), values.share(row.macs), values.share(row.lost, 2), _us(row.whole_us),
        _us(row.split_us), alone,
    )  # fmt: skip


def _us(value: float) -> Shown:
    return Shown(value, values.seconds(value * 1e-6).text)


def _figure(found: Sequence[Row]) -> Figure:
    x = Axis("MACs of the model saved", share=True) if isinstance(found[0], PruningSensitivity) else Axis("µs saved")
    by_level: dict[tuple[str, str], list[Point]] = {}
    for row in found:
        key, name, saved = _saving(row)
        if row.sqnr_db is None:  # not a bit differs: there is no such decibel
            continue
        cells = zip(_COLUMNS[type(row)], _cells(row), strict=True)
        about = tuple(f"{c.heading}: {cell.text if isinstance(cell, Shown) else cell}" for c, cell in cells)
        by_level.setdefault((key, name), []).append(Point(saved, row.sqnr_db, about))
    series = tuple(Series(key, name, tuple(points)) for (key, name), points in by_level.items())
    return Figure(x, Axis("SQNR of the output that suffers most (dB)"), series)


def _saving(row: Any) -> tuple[str, str, float]:
    """The series that it belongs to, and what it saves."""
    match row:
        case Sensitivity():
            return "int8", "integers", row.float_us - row.integer_us
        case PruningSensitivity():
            share = min((0.25, 0.5, 0.75), key=lambda ratio: abs(1 - row.kept / row.channels - ratio))
            return f"prune_{share:g}", f"{share:.0%} of the channels", row.macs
    return "low_rank", "split", row.whole_us - row.split_us
