"""``python -m benchmarks.lowrank``: factorize, judge, write ``results.md`` and ``results.json``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import venvs
from benchmarks.cleanup.__main__ import machine, plain
from benchmarks.cleanup.experiment import Store
from benchmarks.corpus import fetch
from benchmarks.lowrank import experiment, tables
from benchmarks.options import names
from benchmarks.quantize.experiment import one_thread
from benchmarks.quantize.weights import MINILM

HERE = Path(__file__).parent
PARTS = experiment.PARTS


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lowrank", description=__doc__)
    parser.add_argument("--parts", type=names("part", PARTS), default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--samples", type=int, help="at most so many samples to calibrate on, to try things out")
    parser.add_argument("--fresh", action="store_true", help="forget stored results of what is run")
    parser.add_argument("--no-fetch", action="store_true", help="take the trained encoder that is there")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.md and results.json")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    said = machine()  # before: nproc heeds OMP_NUM_THREADS
    one_thread()
    if not args.no_fetch and not MINILM.is_file():
        fetch.fetch_real()
        fetch.fetch_exports()
    lab = experiment.Lab(Store(venvs.CACHE / "results", args.fresh), args.samples)
    results: tables.Results = {part: [] for part in PARTS}
    try:
        for part in args.parts:
            for record in PARTS[part](lab):
                results[part].append(record)
                print(part, *(f"{v}" for k, v in record.items() if k not in ("said", "way")), file=sys.stderr)
    finally:  # an interrupted run shows what it has
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "results.md").write_text(plain(tables.render(results, said)))
        (args.out / "results.json").write_text(plain(json.dumps({"machine": said} | results, indent=1)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
