"""The ranges of the tensors of a plan, from statistics over calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from onnxopt.passes.quantize._ranges import Bounds, Method, bounds, choose, signal_to_noise
from onnxopt.stats import Range, Statistics


@dataclass(frozen=True)
class Calibrated:
    """The range that was taken for a tensor."""

    method: str
    range: Bounds
    sqnr: float | None
    """What rounding and clipping leave, in dB, expected; ``None`` where no histogram was needed."""


def unusable(names: Iterable[str], statistics: Statistics) -> dict[str, str]:
    """The tensors that have no range, with the reason."""
    names = sorted(names)
    found = {name: reason for name in names if (reason := statistics.reachable(name)) is not None}
    ranges = statistics.ranges(name for name in names if name not in found)
    for name in names:
        if name in found:
            continue
        if name not in ranges:
            found[name] = "was never computed on the calibration data"
        elif not ranges[name].finite:
            found[name] = "holds NaN or infinity on the calibration data"
    return found


def calibrate(
    names: Iterable[str],
    method: Method,
    percentile: float,
    levels: int,
    symmetric: bool,
    fitted: Statistics,
    held_out: Statistics | None,
) -> dict[str, Calibrated]:
    """A range for each of these tensors by ``method``; ``auto`` chooses by the error on ``held_out``.

    Without held-out samples ``auto`` is minmax. ``levels`` is how many integers the grid has.
    """
    names = sorted(names)
    if method == "auto" and held_out is None:
        method = "minmax"
    ranges = fitted.ranges(names)
    if method in ("minmax", "average"):
        return {name: Calibrated(method, bounds(method, ranges[name], None, levels, 0.0), None) for name in names}
    histograms = fitted.histograms(names)
    if held_out is None or method != "auto":
        found = {}
        for name in names:
            range_ = bounds(method, ranges[name], histograms[name], levels, percentile)
            found[name] = Calibrated(method, range_, signal_to_noise(histograms[name], range_, levels))
        return found
    others, judges = held_out.ranges(names), held_out.histograms(names)
    found = {}
    for name in names:
        if name not in judges or name not in others:  # computed in one half of the samples only
            range_ = bounds("minmax", ranges[name], None, levels, 0.0)
            found[name] = Calibrated("minmax", range_, signal_to_noise(histograms[name], range_, levels))
            continue
        both = _both(ranges[name], others[name])
        chosen, range_ = choose(both, histograms[name], judges[name], levels, symmetric)
        found[name] = Calibrated(chosen, range_, signal_to_noise(judges[name], range_, levels))
    return found


def ranges_of(calibrated: Mapping[str, Calibrated]) -> dict[str, Bounds]:
    """The ranges alone."""
    return {name: each.range for name, each in calibrated.items()}


def _both(a: Range, b: Range) -> Range:
    return Range(
        min(a.low, b.low),
        max(a.high, b.high),
        (a.mean_low + b.mean_low) / 2,
        (a.mean_high + b.mean_high) / 2,
        a.finite and b.finite,
    )
