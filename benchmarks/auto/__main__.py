"""``python -m benchmarks.auto``: search, try each method alone, judge, write ``results.md`` and ``results.json``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import parts
from benchmarks.auto import experiment, tables
from benchmarks.options import names

HERE = Path(__file__).parent
PARTS = experiment.PARTS


def main(argv: Sequence[str] | None = None) -> int:
    parser = parts.parser(HERE, __doc__, PARTS)
    parser.add_argument(
        "--models", type=names("model", experiment.NAMES), default=",".join(experiment.NAMES),
        help=f"of {', '.join(experiment.NAMES)}",
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, default=900.0, help="the time budget of a search")
    args = parser.parse_args(argv)
    said, store = parts.begin(args)
    lab = experiment.Lab(store, tuple(args.models), args.seconds)
    return parts.run(PARTS, args, lab, tables.render, said | {"a search takes": f"{args.seconds:g} s"})


if __name__ == "__main__":
    sys.exit(main())
