"""``python -m benchmarks.prune``: make the networks, install, run, write ``results.md`` and ``results.json``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import parts
from benchmarks.corpus import fetch
from benchmarks.prune import experiment, peer, tables, verdicts

HERE = Path(__file__).parent
PARTS = ("networks", "published", "trained", "scale")


def main(argv: Sequence[str] | None = None) -> int:
    parser = parts.parser(HERE, __doc__, PARTS)
    parser.add_argument(
        "--networks", default="tests/*,operators/*,architectures/*", metavar="GLOBS", help="networks, comma-separated"
    )
    parser.add_argument("--no-fetch", action="store_true", help="take the published models that are there")
    args = parser.parse_args(argv)
    said, store = parts.begin(args)
    results: experiment.Record = {"networks": [], "published": [], "trained": [], "scale": {}}
    try:
        if "networks" in args.parts:
            for one in peer.networks(args.networks.split(",")):
                results["networks"].append(record := experiment.network(one, store))
                kinds = dict(verdicts.all_kinds([record]))
                print(f"{one.kind}/{one.name}: {kinds}, all shapes equal: {verdicts.whole(record)}", file=sys.stderr)
        if "published" in args.parts:
            if not args.no_fetch:
                fetch.fetch_real()
            results["published"] = experiment.published(store)
        if "trained" in args.parts:
            results["trained"] = experiment.trained(store)
        if "scale" in args.parts:
            results["scale"] = experiment.scale(store)
    finally:  # an interrupted run shows what it has
        parts.write(args.out, tables.render(results, said), said, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
