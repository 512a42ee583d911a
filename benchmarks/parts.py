"""A benchmark in parts: each is run record by record, and what there is at the end is written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.cleanup.__main__ import plain

L = TypeVar("L")
Record = dict[str, Any]
Results = dict[str, list[Record]]


def run(
    parts: Mapping[str, Callable[[L], Iterable[Record]]],
    wanted: Collection[str],
    lab: L,
    results: Results,
    unsaid: Collection[str] = ("said",),
) -> None:
    """Fill ``results``, part by part; each record is said on the way, but for these columns."""
    for part in wanted:
        for record in parts[part](lab):
            results[part].append(record)
            print(part, *(f"{v}" for k, v in record.items() if k not in unsaid), file=sys.stderr)


def write(folder: Path, table: str, said: object, results: Mapping[str, Any]) -> None:
    """Write ``results.md`` and ``results.json``; ``said`` is about the machine."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.md").write_text(plain(table))
    (folder / "results.json").write_text(plain(json.dumps({"machine": said} | dict(results), indent=1)) + "\n")
