"""A benchmark in parts: each is run record by record, and what there is at the end is written."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import venvs
from benchmarks.cleanup import measure
from benchmarks.cleanup.__main__ import machine, plain
from benchmarks.cleanup.experiment import Store
from benchmarks.cleanup.tools import BY_NAME
from benchmarks.options import names
from benchmarks.quantize.experiment import one_thread

L = TypeVar("L")
Record = dict[str, Any]
Results = dict[str, list[Record]]


def parser(folder: Path, about: str | None, parts: Collection[str]) -> argparse.ArgumentParser:
    """What every benchmark in parts can be asked."""
    found = argparse.ArgumentParser(prog=f"python -m benchmarks.{folder.name}", description=about)
    found.add_argument("--parts", type=names("part", parts), default=",".join(parts), help=f"of {', '.join(parts)}")
    found.add_argument("--fresh", action="store_true", help="forget stored results of what is run")
    found.add_argument("--out", type=Path, default=folder, help="folder of results.md and results.json")
    return found


def begin(args: argparse.Namespace) -> tuple[dict[str, str], Store]:
    """What is to be said of the machine, and what remembers results."""
    said = machine()  # before: nproc heeds OMP_NUM_THREADS
    one_thread()
    return said, Store(venvs.CACHE / "results", args.fresh)


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
    args: argparse.Namespace,
    lab: L,
    render: Callable[[Results, dict[str, str]], str],
    said: dict[str, str],
    unsaid: Collection[str] = ("said",),
) -> int:
    """Carry out the parts that are wanted; each record is said on the way, but for the columns ``unsaid``. What there
    is at the end is written, also of a run that was interrupted."""
    results: Results = {part: [] for part in parts}
    try:
        for part in args.parts:
            for record in parts[part](lab):
                results[part].append(record)
                print(part, *(f"{v}" for k, v in record.items() if k not in unsaid), file=sys.stderr)
    finally:
        write(args.out, render(results, said), said, results)
    return 0


def write(folder: Path, table: str, said: object, results: Mapping[str, Any]) -> None:
    """Write ``results.md`` and ``results.json``; ``said`` is about the machine."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.md").write_text(plain(table))
    (folder / "results.json").write_text(plain(json.dumps({"machine": said} | dict(results), indent=1)) + "\n")
