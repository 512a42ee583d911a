"""``results.md``: one table a question, losses included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import median
from typing import Any

from benchmarks.auto import verdicts
from benchmarks.cleanup.tables import table

Record = dict[str, Any]
Results = dict[str, list[Record]]


def render(results: Results, machine: dict[str, str]) -> str:
    searches, singles = results["search"], results["single"]
    found = [
        "# Search",
        "Written by `python -m benchmarks.auto`; see `benchmarks/README.md` for how and why.",
        "\n".join(f"- {k}: {v}" for k, v in machine.items()),
        "## What it must reach",
        table(["requirement", "result"], list(reached(results))),
    ]
    if searches:
        found += [
            "## The search, beside the best single method",
            "Accuracy in % on samples that the search never saw; latency, CPU time of one thread on one sample, in "
            "units of the original's, with the middle half. *Best single*: the least of all methods alone, ours and "
            "ONNX Runtime's, that lose no more than is allowed on the same samples.",
            table(
                ["model", "target", "allowed", "accuracy", "latency", "size", "best single", "what was done", "s"],
                [_search(r, singles) for r in searches],
            ),
        ]
    if singles:
        found += [
            "## Each method alone",
            table(["model", "method", "accuracy", "latency", "size"], [_single(record) for record in singles]),
        ]
    if records := results["promises"]:
        found += [
            "## Promises",
            table(
                ["model", "target", "seed", "allowed", "promised at most", "lost on untouched samples", "cost"],
                [_promise(record) for record in records],
            ),
        ]
    if records := results["allocation"]:
        found += [
            "## Allocation",
            "What is left of the target, and the noise measured, where each way is allowed the same expected noise.",
            table(
                ["model", "target", "noise allowed", "program", "greedy", "uniform"],
                [row for record in records for row in _allocation(record)],
            ),
        ]
    return "\n\n".join(found) + "\n"


def reached(results: Results) -> Iterator[list[str]]:
    for target in ("latency", "size"):
        records = [r for r in results["search"] if "said" in r and r["target"] == target]
        ratios = [ratio for r in records if (ratio := verdicts.beside(r, results["single"])) is not None]
        if ratios:
            good, behind = sum(ratio <= 0.7 for ratio in ratios), sum(ratio > 1.02 for ratio in ratios)
            yield [
                f"{target} at most 0.7 of the best single method's, never behind it",
                f"median {median(ratios):.2f}; at most 0.7 on {good} of {len(ratios)}, behind on {behind}",
            ]
    runs = [r for part in ("search", "promises") for r in results[part] if "said" in r]
    if runs:
        kept = [r for r in runs if r["said"]["holds"]]
        broken = sum(verdicts.lost(r) > r["max_drop"] for r in kept)
        yield [
            "promises hold on untouched samples, but for 1 of 20",
            f"exceeded in {broken} of {len(kept)}; {len(runs) - len(kept)} runs said that none was found",
        ]
        off = [verdicts.off(r) for r in runs if r["said"]["latency"][0] < 0.98]
        ranks = [rank for r in runs if (rank := r["said"]["noise_rank"]) is not None]
        if off:
            yield [
                "predicted latency within 15 % of the measured",
                f"{sum(each <= 0.15 for each in off)} of {len(off)}, median {median(off):.1%}",
            ]
        if ranks:
            yield [
                "rank correlation of predicted and measured noise at least 0.8",
                f"{sum(rank >= 0.8 for rank in ranks)} of {len(ranks)}, median {median(ranks):.2f}",
            ]
    plans = [said for r in results["allocation"] if "said" in r for said in r["said"]]
    if plans:
        wins = {way: sum(verdicts.no_worse(said, way) for said in plans) for way in ("greedy", "uniform")}
        yield [
            "the program's plan saves at least as much as greedy and uniform ones",
            f"than greedy {wins['greedy']} of {len(plans)}, than uniform {wins['uniform']} of {len(plans)}",
        ]


def _search(record: Record, singles: Sequence[Record]) -> list[str]:
    head = [record["name"], record["target"], f"{record['max_drop']:.0%}"]
    if "said" not in record:
        return [*head, record["failure"].replace("|", "\\|")[:160], *[""] * 5]
    said, best = record["said"], verdicts.best_single(record, singles)
    middle, low, high = said["latency"]
    alone = "–" if best is None else f"×{verdicts.cost(best, record['target']):.2f} ({best['way']})"
    return [
        *head, f"{100 * said['before']:.2f} → {100 * said['after']:.2f}", f"×{middle:.2f} ({low:.2f}…{high:.2f})",
        f"×{said['size']:.2f}", alone,
        said["plan"] if said["holds"] else f"none holds; nearest: {said['plan']}", f"{said['seconds']:.0f}",
    ]  # fmt: skip


def _single(record: Record) -> list[str]:
    said = record.get("said", record)
    if "failure" in said:
        return [record["name"], record["way"], said["failure"].replace("|", "\\|")[:120], "", ""]
    middle, low, high = said["latency"]
    accuracy = f"{100 * said['before']:.2f} → {100 * said['after']:.2f}"
    return [record["name"], record["way"], accuracy, f"×{middle:.2f} ({low:.2f}…{high:.2f})", f"×{said['size']:.2f}"]


def _promise(record: Record) -> list[str]:
    head = [record["name"], record["target"], str(record["seed"]), f"{record['max_drop']:.0%}"]
    if "said" not in record:
        return [*head, record["failure"][:120], "", ""]
    said = record["said"]
    promised = "–" if said["promised"] is None or not said["holds"] else f"{said['promised']:.2%}"
    return [*head, promised, f"{verdicts.lost(record):.2%}", f"×{verdicts.cost(said, record['target']):.2f}"]


def _allocation(record: Record) -> Iterable[list[str]]:
    for said in record.get("said", ()):
        ways = (said[way] for way in ("program", "greedy", "uniform"))
        cells = [f"×{each['left']:.2f}, noise {each['noise']:.2g}" for each in ways]
        yield [record["name"], record["target"], f"{said['noise']:g}", *cells]
