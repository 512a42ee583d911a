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


class Calibration:
    """Ranges by ``method``, fitted to some statistics; ``auto`` chooses by the error on those ``held_out``."""

    def __init__(
        self, fitted: Statistics, held_out: Statistics | None = None, method: Method = "minmax", percentile: float = 0.0
    ) -> None:
        """Without held-out samples ``auto`` is minmax."""
        self._fitted, self._held_out = fitted, held_out if method == "auto" else None
        self._method: Method = "minmax" if method == "auto" and held_out is None else method
        self._percentile = percentile

    def unusable(self, names: Iterable[str]) -> dict[str, str]:
        """The tensors that have no range, with the reason."""
        names = sorted(names)
        found = {name: reason for name in names if (reason := self._fitted.reachable(name)) is not None}
        names = [name for name in names if name not in found]
        ranges = self._seen(self._fitted, names)
        others = ranges if self._held_out is None else self._seen(self._held_out, names)
        for name in names:
            if name not in ranges:
                found[name] = "was never computed on the calibration data"
            elif not ranges[name].finite or (name in others and not others[name].finite):
                found[name] = "holds NaN or infinity on the calibration data"
        return found

    def ranges(self, names: Iterable[str], levels: int, symmetric: bool) -> dict[str, Calibrated]:
        """A range for each of these tensors, for a grid of ``levels`` integers."""
        names, method = sorted(names), self._method
        if method in ("minmax", "average"):
            ranges = self._fitted.ranges(names)
            return {name: Calibrated(method, bounds(method, ranges[name], None, levels, 0.0), None) for name in names}
        histograms = self._fitted.histograms(names)
        judges = {} if self._held_out is None else self._held_out.histograms(names)
        found = {}
        for name in names:
            fitted, judge, taken = histograms[name], judges.get(name), str(method)
            if method != "auto":
                range_ = bounds(method, fitted, fitted, levels, self._percentile)
            elif judge is not None:
                taken, range_ = choose(_both(fitted, judge), fitted, judge, levels, symmetric)
            else:  # computed in one half of the samples only
                taken, range_ = "minmax", (fitted.low, fitted.high)
            found[name] = Calibrated(taken, range_, signal_to_noise(judge or fitted, range_, levels))
        return found

    def _seen(self, statistics: Statistics, names: list[str]) -> Mapping[str, Range]:
        """The ranges, from histograms where these will be needed, for both come of one run."""
        if self._method not in ("minmax", "average"):
            statistics.histograms(names)
        return statistics.ranges(names)


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
