"""A benchmark in parts: each is run record by record, and what there is at the end is written."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.cleanup import measure
from benchmarks.cleanup.__main__ import plain
from benchmarks.cleanup.tools import BY_NAME

L = TypeVar("L")
Record = dict[str, Any]
Results = dict[str, list[Record]]


def version(folder: Path, *modules: str) -> str:
    """Of our own sources, and of the modules of a folder that take part."""
    found = [(folder / f"{name}.py").read_bytes() for name in modules]
    return BY_NAME["onnxopt"].fingerprint() + hashlib.sha256(b"".join(found)).hexdigest()[:16]


def ask(module: str, *arguments: object, timeout: float) -> Record:
    """What a module prints, in a process of its own: a bad model can take the runtime down with it."""
    done = measure.run([sys.executable, "-m", module, *map(str, arguments)], timeout)
    try:
        return {"said": json.loads(done.stdout)}
    except ValueError:
        return {"failure": " ".join(done.failure())[:400]}


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
