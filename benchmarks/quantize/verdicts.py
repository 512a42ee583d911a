"""From measurements to claims: wrong, slower, dominated. Every number that decides stands here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

Record = dict[str, Any]

MIN_SQNR = 20.0
MAX_LOSS = 1.0
"""Percentage points. Right is a result that keeps either."""
SAME_TIME = 0.02
"""Ratios nearer than this are not told apart, nor from 1."""
SAME_SCORE = 0.05
"""Percentage points; less than one sample of any set here."""
SAME_SQNR = 0.5
"""Decibel, where there is no score."""


def sqnr(result: Record) -> float | None:
    """Of the worst output."""
    return min(result["quality"]["sqnr"].values(), default=None) if "quality" in result else None


def loss(result: Record) -> float | None:
    """Percentage points below the original; below zero where it gained some."""
    quality = result.get("quality")
    if not quality or quality["score"] is None:
        return None
    return float(quality["original"] - quality["score"])


def ratio(result: Record) -> float | None:
    return float(result["latency"]["ratio"]) if result.get("latency") else None


def works(result: Record) -> bool:
    return result["state"] == "ok" and "quality" in result


def quantized(result: Record) -> bool:
    """There is an integer node at all; without one, a result is the float model under another name."""
    marks = ("QuantizeLinear", "Integer", "QLinear", "MatMulNBits", "QGemm")
    return any(mark in op for op in result.get("ops", ()) for mark in marks)


def right(result: Record) -> bool:
    if not works(result):
        return False
    lost, noise = loss(result), sqnr(result)
    return (lost is not None and lost <= MAX_LOSS) or (noise is not None and noise >= MIN_SQNR)


def slower(result: Record) -> bool:
    """Beyond what the measurement can tell from equal: an untouched model is not slower than itself."""
    return ratio(result) is not None and _less(1.0, 1.0, *_times(result)[:2])


def _times(result: Record) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the latency ratio."""
    said = result["latency"]
    return said["ratio_iqr"][0], said["ratio"], said["ratio_iqr"][1]


def _less(middle: float, upper: float, other_lower: float, other_middle: float) -> bool:
    """One median is below the other by more than ``SAME_TIME``, and neither lies within the other's middle half."""
    return middle < other_middle * (1 - SAME_TIME) and upper < other_middle and middle < other_lower


def better(a: Record, b: Record) -> bool:
    """``a`` has the better quality: a higher score, or where there is none, a higher SQNR."""
    one, other = loss(a), loss(b)
    if one is not None and other is not None:
        return one < other - SAME_SCORE
    x, y = sqnr(a), sqnr(b)
    return x is not None and y is not None and x > y + SAME_SQNR


def faster(a: Record, b: Record) -> bool:
    if ratio(a) is None or ratio(b) is None:
        return False
    (_, middle, upper), (other_lower, other_middle, _) = _times(a), _times(b)
    return _less(middle, upper, other_lower, other_middle)


def dominates(a: Record, b: Record) -> bool:
    """Both faster and of better quality."""
    return works(a) and works(b) and faster(a, b) and better(a, b)


def front(results: dict[str, Record]) -> set[str]:
    """Names of results that are right and that no other right one dominates."""
    good = {k: r for k, r in results.items() if right(r)}
    return {k for k, r in good.items() if not any(dominates(o, r) for o in good.values())}


def bar(results: dict[str, Record]) -> str | None:
    """The best quality among the results that are right and not slower than the original; of equals the fastest."""
    good = {k: r for k, r in results.items() if right(r) and not slower(r) and ratio(r) is not None}
    best = [k for k, r in good.items() if not any(better(o, r) for o in good.values())]
    return min(best, key=lambda k: ratio(good[k]) or math.inf, default=None)


def wins(ours: Record, peers: dict[str, Record]) -> bool:
    """Better than, or as good as, the peer with the best quality, at equal or better latency."""
    if not right(ours) or slower(ours):
        return False
    best = bar(peers)
    return best is None or not (better(peers[best], ours) or faster(peers[best], ours))


def median(values: Iterable[float | None]) -> float | None:
    known: Sequence[float] = [v for v in values if v is not None]
    return statistics.median(known) if known else None
