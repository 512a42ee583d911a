"""What was measured, judged. The thresholds are here."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

Record = dict[str, Any]

LOST = {"pruned": 0.5, "split": 0.5, "quantized": 1.0}
"""Points of accuracy that a model may lose with training, by part."""


def failure(record: Record) -> str:
    """Why nothing came of it, empty if something did."""
    found: str = record.get("failure") or record["said"].get("failure", "")
    return found


def is_trained(record: Record) -> bool:
    """Whether the pipeline ends in a pass that trains."""
    return record["pipeline"].rsplit(",", 1)[-1] in ("distill", "qat")


def lost(record: Record) -> float:
    """Points of accuracy; all of them if nothing came of it."""
    if failure(record):
        return 100.0
    before, after = record["said"]["accuracy"]
    return float(before - after)


def kind(record: Record) -> tuple[str, int]:
    """What a student starts from, and how many samples it sees."""
    return record["start"], record["samples"]


def gains(records: Sequence[Record], way: str) -> list[float]:
    """Points that a student has more than one of its kind that saw labels alone, seed by seed."""
    found = {(r["seed"], r["way"]): r["said"]["accuracy"][0] for r in records if not failure(r)}
    return [found[seed, way] - y for (seed, each), y in found.items() if each == "labels" and (seed, way) in found]


def spread(numbers: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    if not numbers:
        return "–"
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    return f"{statistics.mean(numbers):.2f} ± {deviation:.2f}"
