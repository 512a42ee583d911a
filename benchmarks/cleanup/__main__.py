"""``python -m benchmarks.cleanup``: fetch, install, run, write ``results.md`` and ``results.json``."""

from __future__ import annotations

import argparse
import fnmatch
import json
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import venvs
from benchmarks.cleanup import experiment, tables
from benchmarks.cleanup.tools import BY_NAME, ROOT, TOOLS
from benchmarks.corpus import fetch
from benchmarks.options import names

HERE = Path(__file__).parent


def machine() -> dict[str, str]:
    """Said generically: what decides the times, nothing that names the machine."""
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*:\s*(.+)", info)
    flags = [f for f in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if re.search(rf"\b{f}\b", info)]
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    return {
        "CPU": f"{model.group(1) if model else platform.machine()} ({', '.join(flags)})",
        "cores": subprocess.run(["nproc"], capture_output=True, text=True, check=True).stdout.strip(),
        "memory": f"{int(memory.group(1)) / 1024**2:.0f} GiB" if memory else "unknown",
        "OS": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
    }


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cleanup", description=__doc__)
    parser.add_argument("--models", default="*", metavar="GLOBS", help="model names, comma-separated globs")
    parser.add_argument("--groups", default="real,own,export", help="of real, own, export")
    parser.add_argument(
        "--tools", type=names("tool", BY_NAME), default=",".join(BY_NAME), help=f"of {', '.join(BY_NAME)}"
    )
    parser.add_argument("--times", choices=("none", "missing", "all"), default="missing", help="which times to take")
    parser.add_argument("--fresh", action="store_true", help="forget stored results of what is run")
    parser.add_argument("--no-fetch", action="store_true", help="take the models that are there")
    parser.add_argument("--jobs", type=int, choices=(1,), default=1, help="only 1: two at a time disturb each other")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.md and results.json")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    tools = [t for t in TOOLS if t.name in args.tools]
    groups = args.groups.split(",")
    if not args.no_fetch:
        if "real" in groups:
            fetch.fetch_real()
        if "export" in groups:
            fetch.fetch_exports()
    for tool in tools:
        tool.python()
    store = experiment.Store(venvs.CACHE / "results", args.fresh)
    records = []
    for model in fetch.models():
        if model.group in groups and any(fnmatch.fnmatch(model.name, g) for g in args.models.split(",")):
            records.append(experiment.measure_model(model, tools, store, args.times))
            print(_line(records[-1]), file=sys.stderr, flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    said = machine()
    (args.out / "results.md").write_text(plain(tables.render(records, tools, said)))
    (args.out / "results.json").write_text(plain(json.dumps({"machine": said, "models": records}, indent=1)) + "\n")
    return 0


def _line(record: experiment.Record) -> str:
    results = (f"{name} {r.get('nodes', '–')} {r['state']}" for name, r in record["tools"].items())
    return f"{record['name']}: {record['original']['nodes']} nodes; {', '.join(results)}"


def plain(text: str) -> str:
    """Messages of tools name the files they were given; where those lay is nobody's business."""
    for folder in (venvs.CACHE / "work", venvs.CACHE / "models", venvs.CACHE, ROOT):
        text = re.sub(re.escape(str(folder)) + r"(/\d+)?/?", "", text)
    return text


if __name__ == "__main__":
    sys.exit(main())
