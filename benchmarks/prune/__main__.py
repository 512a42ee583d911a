"""``python -m benchmarks.prune``: make the networks, install, run, write ``results.md`` and ``results.json``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import parts, venvs
from benchmarks.cleanup.__main__ import machine
from benchmarks.cleanup.experiment import Store
from benchmarks.corpus import fetch
from benchmarks.options import names
from benchmarks.prune import experiment, peer, tables, verdicts
from benchmarks.quantize.experiment import one_thread

HERE = Path(__file__).parent
PARTS = ("networks", "published", "trained", "scale")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prune", description=__doc__)
    parser.add_argument("--parts", type=names("part", PARTS), default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument(
        "--networks", default="tests/*,operators/*,architectures/*", metavar="GLOBS", help="networks, comma-separated"
    )
    parser.add_argument("--fresh", action="store_true", help="forget stored results of what is run")
    parser.add_argument("--no-fetch", action="store_true", help="take the published models that are there")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.md and results.json")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    said = machine()  # before: nproc heeds OMP_NUM_THREADS
    one_thread()
    store = Store(venvs.CACHE / "results", args.fresh)
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
