"""Values, and how people see them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from onnxopt import wording
from onnxopt.report.document import Shown

NOTHING = Shown(None, "–")


def minus(text: str) -> str:
    """A number with the sign that is as wide as a plus."""
    return text.replace("-", "−")


def whole(value: int | None) -> Shown:
    """A count."""
    return NOTHING if value is None else Shown(value, f"{value:,}")


def size(value: int | None) -> Shown:
    """Bytes."""
    return NOTHING if value is None else Shown(value, wording.size(value))


def share(value: float | None, digits: int = 1) -> Shown:
    """A part of a whole."""
    return NOTHING if value is None else Shown(value, minus(f"{value:z.{digits}%}"))


def signed(value: float | None) -> Shown:
    """A change, as a part of what was there before."""
    return NOTHING if value is None else Shown(value, minus(f"{value:+.1%}") if value else "same")


def times(value: float | None) -> Shown:
    """In units of the original's."""
    return NOTHING if value is None else Shown(value, f"×{value:.2f}")


def decibels(value: float | None) -> Shown:
    """An SQNR; ``None`` and infinity where not a bit differs."""
    if value is None or value == math.inf:
        return Shown(None, "exact")
    return Shown(value, minus(wording.decibels(value)))


def noise(value: float) -> Shown:
    """The power of noise in units of the signal's."""
    return Shown(value, f"{value:.2g}" if value else "none")


def seconds(value: float | None) -> Shown:
    """A time, in a unit that fits it."""
    if value is None or math.isnan(value):
        return NOTHING
    for unit, factor in (("s", 1.0), ("ms", 1e-3)):
        if abs(value) >= factor:
            return Shown(value, minus(f"{value / factor:.1f} {unit}"))
    return Shown(value, minus(f"{value * 1e6:z.1f} µs"))


def change(before: float | None, after: float | None) -> float | None:
    """By how much it grew, as a part of what was there before."""
    return None if before is None or after is None or not before else after / before - 1


def plain(value: Any) -> Shown:
    """Whatever a pass says of a node."""
    if isinstance(value, bool) or value is None:
        return Shown(value, "" if value is None else "yes" if value else "no")
    if isinstance(value, int):
        return whole(value)
    if isinstance(value, float):
        return Shown(value, minus(f"{value:.4g}"))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return Shown(list(value), ", ".join(map(str, value)))
    return Shown(str(value), str(value))
