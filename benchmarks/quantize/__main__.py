"""``python -m benchmarks.quantize``: make the data, install, run, write ``results.md`` and ``results.json``."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import facts, venvs
from benchmarks.cleanup.__main__ import machine, plain
from benchmarks.cleanup.experiment import Store
from benchmarks.corpus import fetch
from benchmarks.options import names
from benchmarks.quantize import corpus, experiment, tables, task, verdicts
from benchmarks.quantize.tools import BY_NAME, TOOLS, Tool

HERE = Path(__file__).parent


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantize", description=__doc__)
    parser.add_argument("--models", default="*", metavar="GLOBS", help="task names, comma-separated globs")
    parser.add_argument("--groups", default="real,own,export", help="of real, own, export")
    parser.add_argument(
        "--tools", type=names("tool", BY_NAME), default=",".join(BY_NAME), help=f"of {', '.join(BY_NAME)}"
    )
    parser.add_argument(
        "--pair",
        nargs=3,
        type=Path,
        action="append",
        default=[],
        metavar=("MODEL", "CALIBRATION", "EVALUATION"),
        help="this model with these .npz files (labels: an array of that name); the groups are left out",
    )
    parser.add_argument(
        "--times", choices=("none", "missing", "all"), default="missing", help="which latencies to take"
    )
    parser.add_argument("--fresh", action="store_true", help="forget stored results of what is run")
    parser.add_argument("--no-fetch", action="store_true", help="take the models that are there")
    parser.add_argument("--data", type=Path, default=corpus.DATA, help="folder of the photographs, lines and files")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.md and results.json")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    said = machine()  # before: nproc heeds OMP_NUM_THREADS
    experiment.one_thread()
    groups = args.groups.split(",")
    if args.pair:
        tasks = [task.given(*files) for files in args.pair]
    else:
        if not args.no_fetch and "real" in groups:
            fetch.fetch_real()
        tasks = corpus.tasks(groups, args.models.split(","), args.data)
    tools = []
    for tool in (t for t in TOOLS if t.name in args.tools):
        try:
            tool.python()
            tools.append(tool)
        except subprocess.CalledProcessError as error:
            print(f"{tool.name}: left out, its environment cannot be made: {error}", file=sys.stderr)
    store = Store(venvs.CACHE / "results", args.fresh)
    records: list[experiment.Record] = []
    try:
        for one in tasks:
            records.append(measured(one, tools, store, args.times))
    finally:  # an interrupted run shows what it has
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "results.md").write_text(plain(tables.render(records, tools, said)))
        text = json.dumps({"machine": said, "models": records}, indent=1)
        (args.out / "results.json").write_text(plain(text) + "\n")
    return 0


def measured(one: task.Task, tools: Sequence[Tool], store: Store, times: str) -> experiment.Record:
    size = facts.file_size(one.model)
    results: dict[str, experiment.Record] = {}
    for tool in tools:
        result = experiment.measure_tool(one, tool, store, times)
        results[tool.name] = result | {"original_size": size}
        text = tables.short(result) if verdicts.works(result) else f"{result['state']}: {result['reason'][:100]}"
        print(f"{one.name} {tool.name}: {text}", file=sys.stderr, flush=True)
    return {"name": one.name, "group": one.group, "original": experiment.original(one), "tools": results}


if __name__ == "__main__":
    sys.exit(main())
