"""``python -m benchmarks.train``: differentiate, train, judge, write ``results.md`` and ``results.json``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import parts
from benchmarks.corpus import fetch
from benchmarks.prune import peer
from benchmarks.train import experiment, tables

HERE = Path(__file__).parent
PARTS = experiment.PARTS


def main(argv: Sequence[str] | None = None) -> int:
    parser = parts.parser(HERE, __doc__, PARTS)
    parser.add_argument("--no-fetch", action="store_true", help="take the models that are there")
    args = parser.parse_args(argv)
    said, store = parts.begin(args)
    if "coverage" in args.parts and not args.no_fetch:
        fetch.fetch_real()
        fetch.fetch_exports()
        peer.networks(["architectures/*"])
    return parts.run(PARTS, args, experiment.Lab(store), tables.render, said)


if __name__ == "__main__":
    sys.exit(main())
