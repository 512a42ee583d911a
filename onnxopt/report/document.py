"""What a report consists of: sections, each with one body. A page and a JSON document are made of the same.

Cells hold values as they are, for JSON, and say how they are shown to people. Texts are plain: nothing in them is
markup, whatever a model calls its nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

FORMAT = 1
"""Of the JSON; raised when a key changes its meaning or goes."""


@dataclass(frozen=True)
class Shown:
    """A value, and what people see of it."""

    value: Any
    text: str


Cell = Shown | str


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    key: str
    heading: str
    figures: bool = False
    """Whether it holds figures, which stand at the right."""


@dataclass(frozen=True)
class Table:
    """Rows of cells."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    marked: frozenset[int] = frozenset()
    """The rows that stand out."""

    @property
    def json(self) -> list[dict[str, Any]]:
        """An object a row."""
        return [{c.key: value_of(cell) for c, cell in zip(self.columns, row, strict=True)} for row in self.rows]


@dataclass(frozen=True)
class Fact:
    """One thing to know."""

    key: str
    label: str
    cell: Cell


@dataclass(frozen=True)
class Facts:
    """Things to know, one a line."""

    facts: tuple[Fact, ...]

    @property
    def json(self) -> dict[str, Any]:
        """One object."""
        return {fact.key: value_of(fact.cell) for fact in self.facts}


@dataclass(frozen=True)
class Notes:
    """Sentences."""

    notes: tuple[str, ...]

    @property
    def json(self) -> list[str]:
        """The sentences."""
        return list(self.notes)


@dataclass(frozen=True)
class Point:
    """A point of a plot."""

    x: float | str
    y: float
    about: tuple[str, ...]
    """What it stands for, line by line: shown to who points at it."""
    low: float | None = None
    """Where ``y`` is not sure: at least this,"""
    high: float | None = None
    """and at most this."""

    @property
    def json(self) -> dict[str, Any]:
        """Its place and what it is."""
        sure = {} if self.low is None else {"low": self.low, "high": self.high}
        return {"x": self.x, "y": self.y, **sure, "about": list(self.about)}


@dataclass(frozen=True)
class Series:
    """Points that belong together."""

    key: str
    name: str
    points: tuple[Point, ...]
    style: Literal["dots", "faint", "line", "steps", "star", "bars"] = "dots"


@dataclass(frozen=True)
class Axis:
    """An axis of a plot."""

    title: str
    scale: Literal["linear", "log"] = "linear"
    share: bool = False
    """Whether it is marked in percent."""


@dataclass(frozen=True)
class Figure:
    """A plot."""

    x: Axis
    y: Axis
    series: tuple[Series, ...]
    limits: tuple[tuple[float, str], ...] = ()
    """Values of ``y`` that are to be seen as lines, with their names."""

    @property
    def json(self) -> dict[str, Any]:
        """The axes and, by the key of their series, the points."""
        return {
            "x": self.x.title, "y": self.y.title, "limits": {name: y for y, name in self.limits},
            "series": {each.key: [point.json for point in each.points] for each in self.series},
        }  # fmt: skip


Body = Table | Facts | Notes | Figure


@dataclass(frozen=True)
class Section:
    """A part of a report."""

    key: str
    title: str
    body: Body
    intro: str = ""


@dataclass(frozen=True)
class Document:
    """A report."""

    kind: str
    """The command that it is of."""
    title: str
    holds: bool | None
    """Whether what was asked for was reached; ``None`` where nothing was asked."""
    verdict: str
    """What came of it, in a sentence or two."""
    sections: tuple[Section, ...]

    @property
    def json(self) -> dict[str, Any]:
        """Everything, by the keys of the sections."""
        head = {"format": FORMAT, "kind": self.kind, "title": self.title, "holds": self.holds, "verdict": self.verdict}
        return head | {section.key: section.body.json for section in self.sections}


def value_of(cell: Cell) -> Any:
    """What a cell holds."""
    return cell.value if isinstance(cell, Shown) else cell
