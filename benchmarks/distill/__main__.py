"""``python -m benchmarks.distill``: compress, train, judge, write ``results.md`` and ``results.json``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import parts
from benchmarks.distill import experiment, tables

HERE = Path(__file__).parent
PARTS = experiment.PARTS


def main(argv: Sequence[str] | None = None) -> int:
    parser = parts.parser(HERE, __doc__, PARTS)
    args = parser.parse_args(argv)
    said, store = parts.begin(args)
    return parts.run(PARTS, args, experiment.Lab(store), tables.render, said)


if __name__ == "__main__":
    sys.exit(main())
