"""``python -m benchmarks.lowrank``: factorize, judge, write ``results.md`` and ``results.json``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import parts
from benchmarks.corpus import fetch
from benchmarks.lowrank import experiment, tables
from benchmarks.quantize.weights import MINILM

HERE = Path(__file__).parent
PARTS = experiment.PARTS


def main(argv: Sequence[str] | None = None) -> int:
    parser = parts.parser(HERE, __doc__, PARTS)
    parser.add_argument("--samples", type=int, help="at most so many samples to calibrate on, to try things out")
    parser.add_argument("--no-fetch", action="store_true", help="take the trained encoder that is there")
    args = parser.parse_args(argv)
    said, store = parts.begin(args)
    if not args.no_fetch and not MINILM.is_file():
        fetch.fetch_real()
        fetch.fetch_exports()
    return parts.run(PARTS, args, experiment.Lab(store, args.samples), tables.render, said, ("said", "way"))


if __name__ == "__main__":
    sys.exit(main())
