"""``python -m benchmarks.auto``: search, try each method alone, judge, write ``results.md`` and ``results.json``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import parts, venvs
from benchmarks.auto import experiment, tables
from benchmarks.cleanup.__main__ import machine
from benchmarks.cleanup.experiment import Store
from benchmarks.options import names
from benchmarks.quantize.experiment import one_thread

HERE = Path(__file__).parent
PARTS = experiment.PARTS


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.auto", description=__doc__)
    parser.add_argument("--parts", type=names("part", PARTS), default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument(
        "--models", type=names("model", experiment.NAMES), default=",".join(experiment.NAMES),
        help=f"of {', '.join(experiment.NAMES)}",
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, default=900.0, help="the time budget of a search")
    parser.add_argument("--fresh", action="store_true", help="forget stored results of what is run")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.md and results.json")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    said = machine()  # before: nproc heeds OMP_NUM_THREADS
    one_thread()
    lab = experiment.Lab(Store(venvs.CACHE / "results", args.fresh), tuple(args.models), args.seconds)
    results: tables.Results = {part: [] for part in PARTS}
    try:
        parts.run(PARTS, args.parts, lab, results)
    finally:  # an interrupted run shows what it has
        parts.write(args.out, tables.render(results, said | {"a search takes": f"{args.seconds:g} s"}), said, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
