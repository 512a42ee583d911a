"""Measures of a model: what it holds, what it costs, how near it is to another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np


def sqnr(expected: Sequence[np.ndarray[Any, Any]], got: Sequence[np.ndarray[Any, Any]]) -> float:
    """Signal to quantization noise over all samples, in dB: ``10·log10(Σ‖y‖² / Σ‖y−ŷ‖²)``.

    Infinite where nothing differs; arrays of shapes that do not match count as pure noise (−inf).
    """
    signal = noise = 0.0
    for x, y in zip(expected, got, strict=True):
        if x.shape != y.shape:
            return float("-inf")
        a, b = x.astype(np.float64), y.astype(np.float64)
        signal += float(np.sum(a * a))
        noise += float(np.sum((a - b) ** 2))
    if noise == 0.0:
        return float("inf")
    return 10.0 * float(np.log10(signal / noise)) if signal > 0 else float("-inf")


def fidelity(
    names: Sequence[str], expected: Sequence[Sequence[Any]], got: Sequence[Sequence[Any]]
) -> dict[str, float]:
    """The SQNR in dB of each numeric output over all runs: ``expected[run][output]`` against ``got``."""
    found: dict[str, float] = {}
    for at, name in enumerate(names):
        pairs = list(_numeric_pairs((run[at] for run in expected), (run[at] for run in got)))
        if pairs:
            found[name] = sqnr([a for a, _ in pairs], [b for _, b in pairs])
    return found


def _numeric_pairs(
    expected: Iterator[Any], got: Iterator[Any]
) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    for x, y in zip(expected, got, strict=True):
        if isinstance(x, np.ndarray) and isinstance(y, np.ndarray) and x.dtype.kind in "fiub":
            yield x, y
