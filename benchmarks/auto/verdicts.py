"""What was measured, judged. The thresholds are here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Record = dict[str, Any]

_SAME = 0.01
"""What is left of a target by two plans differs by less than the clock does."""


def cost(said: Record, target: str) -> float:
    """In units of the original's."""
    return float(said["latency"][0] if target == "latency" else said[target])


def lost(record: Record) -> float:
    """Of the accuracy, on samples that the search never saw."""
    return float(record["said"]["before"] - record["said"]["after"])


def off(record: Record) -> float:
    """How far the latency that was predicted is from the one that was measured, as a share of this."""
    said = record["said"]
    return float(abs(said["predicted_latency"] / said["measured_latency"] - 1))


def best_single(record: Record, singles: Sequence[Record]) -> Record | None:
    """The method alone that has least of the target among those that lose no more; the original if none gains."""
    able = [
        single["said"]
        for single in singles
        if single["name"] == record["name"] and "latency" in single.get("said", {})
        and single["said"]["before"] - single["said"]["after"] <= record["max_drop"]
    ]  # fmt: skip
    if not any(single["name"] == record["name"] for single in singles):
        return None
    return min([*able, _ORIGINAL], key=lambda said: cost(said, record["target"]))


def beside(record: Record, singles: Sequence[Record]) -> float | None:
    """The target in units of the best single method's."""
    best = best_single(record, singles)
    return None if best is None else cost(record["said"], record["target"]) / cost(best, record["target"])


def no_worse(said: Record, way: str) -> bool:
    """Whether the program's plan leaves no more of the target than another way's, as expected."""
    return bool(said["program"]["expected"] <= said[way]["expected"] + _SAME)


_ORIGINAL: Record = {"way": "none gains", "latency": [1.0, 1.0, 1.0], "size": 1.0}
