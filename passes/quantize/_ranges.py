"""From what a tensor holds to the range that its grid should cover.

A wide range loses precision on every value, a narrow one clips the largest. Methods:

``minmax``      everything seen, nothing clipped
``average``     the mean over batches of their least and greatest values (Jacob et al., CVPR 2018)
``percentile``  all but a share of the values, the same share on both sides
``mse``         the least expected squared error, of rounding and of clipping together
``entropy``     the least divergence between the distributions before and after (Migacz, GTC 2017)
``auto``        of the others but entropy, whichever has the least squared error on samples that it was not fitted to

Squared errors are expectations over a histogram: a value inside the range is off by ``scale² / 12`` on average,
exact zeros by nothing, a value outside by its distance to the range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from onnxopt.stats import Histogram, Range

Array = np.ndarray[Any, Any]
Method = Literal["auto", "minmax", "average", "percentile", "mse", "entropy"]
METHODS: tuple[Method, ...] = ("auto", "minmax", "average", "percentile", "mse", "entropy")

Bounds = tuple[float, float]

_PERCENTILES = (99.9, 99.99, 99.999)
_SHRUNK = np.linspace(1.0, 0.1, 46)
"""The shares of the full range that mse tries for each side."""
_MARGIN = 0.98
"""A range must lower the error at least by so much to be preferred to a wider one, which is safer."""


def bounds(method: Method, seen: Range, histogram: Histogram | None, levels: int, percentile: float) -> Bounds:
    """The range by one of the methods (not ``auto``) for a grid of ``levels`` integers."""
    if method == "minmax" or (histogram is None and method != "average"):
        return seen.low, seen.high
    if method == "average":
        return max(seen.low, seen.mean_low), min(seen.high, seen.mean_high)
    assert histogram is not None
    if method == "percentile":
        return by_percentile(histogram, percentile)
    return by_entropy(histogram, levels) if method == "entropy" else by_mse(histogram, levels)


def choose(seen: Range, histogram: Histogram, held_out: Histogram, levels: int, symmetric: bool) -> tuple[str, Bounds]:
    """The method with the least squared error on ``held_out``, and its range; of equals the widest.

    ``seen`` is the range over both halves, so that minmax never clips what was seen.
    """
    tried: dict[str, Bounds] = {"minmax": (seen.low, seen.high)}
    tried["average"] = bounds("average", seen, None, levels, 0.0)
    for percentile in _PERCENTILES:
        tried[f"percentile {percentile}"] = by_percentile(histogram, percentile)
    tried["mse"] = by_mse(histogram, levels)
    if symmetric:
        tried = {name: (-max(-low, high), max(-low, high)) for name, (low, high) in tried.items()}
    errors = dict(zip(tried, _expected(_Values(held_out), list(tried.values()), levels), strict=True))
    enough = min(errors.values()) / _MARGIN
    best = max((n for n in tried if errors[n] <= enough), key=lambda name: tried[name][1] - tried[name][0])
    return best, tried[best]


def by_percentile(histogram: Histogram, percentile: float) -> Bounds:
    """The range that holds ``percentile`` % of the values, with equal shares left out below and above."""
    share = np.cumsum(histogram.counts) / max(int(histogram.counts.sum()), 1)
    edges = histogram.edges
    tail = (1 - percentile / 100) / 2
    low = edges[int(np.searchsorted(share, tail, side="right"))]
    high = edges[min(int(np.searchsorted(share, 1 - tail)), share.size - 1) + 1]
    return min(float(low), 0.0), max(float(high), 0.0)


def by_mse(histogram: Histogram, levels: int) -> Bounds:
    """The range of least expected squared error: both ends are tried at 46 shares of the full range."""
    lows = min(histogram.low, 0.0) * _SHRUNK[:, None]
    highs = max(histogram.high, 0.0) * _SHRUNK[None, :]
    error = _errors(_Values(histogram), lows, highs, levels)
    at_low, at_high = np.unravel_index(int(np.argmin(error)), error.shape)
    return float(lows[at_low, 0]), float(highs[0, at_high])


def by_entropy(histogram: Histogram, levels: int) -> Bounds:
    """The range of least Kullback-Leibler divergence among those cut at one threshold for both signs."""
    from scipy.stats import entropy

    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    centers, counts = _Values(histogram).centers, histogram.counts.astype(np.float64)
    best, least = (low, high), np.inf
    for share in _SHRUNK:
        threshold = share * max(-low, high)
        a, b = max(low, -threshold), min(high, threshold)
        inside = (centers >= a) & (centers <= b)
        if inside.sum() < levels // 2 or not counts[inside].any():
            break
        kept = counts[inside]
        clipped = kept.copy()
        clipped[0] += counts[centers < a].sum()
        clipped[-1] += counts[centers > b].sum()
        level = np.minimum(((centers[inside] - a) / max(b - a, 1e-300) * (levels - 1) + 0.5).astype(int), levels - 1)
        some = kept > 0
        mass = np.bincount(level, kept, levels) / np.maximum(np.bincount(level, some, levels), 1)
        rounded = np.where(some, mass[level], 0.0)
        known = clipped > 0
        found = float(entropy(clipped[known], np.maximum(rounded[known], 1e-9 * kept.sum())))
        if found < least:
            best, least = (a, b), found
    return best


def expected_error(histogram: Histogram, range_: Bounds, levels: int) -> float:
    """The mean squared error of values distributed like ``histogram`` on a grid over ``range_``."""
    return float(_expected(_Values(histogram), [range_], levels)[0])


def signal_to_noise(histogram: Histogram, range_: Bounds, levels: int) -> float:
    """The expected SQNR in dB of such values on a grid over ``range_``."""
    values = _Values(histogram)
    error = float(_expected(values, [range_], levels)[0])
    if error <= 0.0:
        return float("inf")
    return 10 * float(np.log10(values.power / error)) if values.power > 0 else float("-inf")


def _expected(values: _Values, ranges: Sequence[Bounds], levels: int) -> Array:
    low, high = np.array(ranges).T
    return _errors(values, np.minimum(low, 0.0), np.maximum(high, 0.0), levels)


def union(ranges: Mapping[str, Bounds]) -> Bounds:
    """The range that holds all of these."""
    return min(low for low, _ in ranges.values()), max(high for _, high in ranges.values())


class _Values:
    """What a histogram says of values: the middle of each bin, and sums over all bins below a limit."""

    def __init__(self, histogram: Histogram) -> None:
        edges = histogram.edges
        weights = histogram.counts / max(int(histogram.counts.sum()), 1)
        self.centers = (edges[1:] + edges[:-1]) / 2
        self.zeros = 0.0
        """The share of exact zeros, which are most of what is in the bin that holds 0."""
        if edges[0] <= 0.0 <= edges[-1]:
            at = min(int(np.searchsorted(edges, 0.0, side="right")) - 1, self.centers.size - 1)
            self.centers[at], self.zeros = 0.0, float(weights[at])
        self._sums = np.zeros((3, weights.size + 1))
        for power, sums in enumerate(self._sums):
            if power:
                weights = weights * self.centers
            np.cumsum(weights, out=sums[1:])

    @property
    def power(self) -> float:
        """The mean square."""
        return float(self._sums[2, -1])

    def clipped(self, limits: Array, side: Literal["below", "above"]) -> tuple[Array, Array]:
        """The mean squared error of clipping at each of the limits, and the share of values that are clipped."""
        if side == "below":
            share, first, second = (sums[np.searchsorted(self.centers, limits)] for sums in self._sums)
        else:
            places = np.searchsorted(self.centers, limits, "right")
            share, first, second = (sums[-1] - sums[places] for sums in self._sums)
        return np.maximum(second - 2 * limits * first + limits**2 * share, 0.0), share


def _errors(values: _Values, lows: Array, highs: Array, levels: int) -> Array:
    """The expected squared error on grids over ranges from ``lows`` to ``highs``, which are broadcast."""
    below, lost_below = values.clipped(lows, "below")
    above, lost_above = values.clipped(highs, "above")
    inside = np.maximum(1.0 - lost_below - lost_above - values.zeros, 0.0)
    return np.asarray(below + above + inside * ((highs - lows) / (levels - 1)) ** 2 / 12)
