"""``python -m benchmarks.lowrank``: factorize, judge, write ``results.md`` and ``results.json``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import parts, venvs
from benchmarks.cleanup.__main__ import machine
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
        parts.run(PARTS, args.parts, lab, results, ("said", "way"))
    finally:  # an interrupted run shows what it has
        parts.write(args.out, tables.render(results, said), said, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
