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

from collections.abc import Mapping
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
"""A clipped range must lower the error at least by so much to be preferred to the full one, which is safe."""


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
    """The method with the least squared error on ``held_out``, and its range.

    ``seen`` is the range over both halves, so that minmax never clips what was seen.
    """
    tried: dict[str, Bounds] = {"minmax": (seen.low, seen.high)}
    tried["average"] = bounds("average", seen, None, levels, 0.0)
    for percentile in _PERCENTILES:
        tried[f"percentile {percentile}"] = by_percentile(histogram, percentile)
    tried["mse"] = by_mse(histogram, levels)
    if symmetric:
        tried = {name: (-max(-low, high), max(-low, high)) for name, (low, high) in tried.items()}
    errors = {name: expected_error(held_out, each, levels) for name, each in tried.items()}
    best = min(errors, key=lambda name: errors[name])
    if errors[best] > _MARGIN * errors["minmax"]:
        best = "minmax"
    return best, tried[best]


def by_percentile(histogram: Histogram, percentile: float) -> Bounds:
    """The range that holds ``percentile`` % of the values, with equal shares left out below and above."""
    share = np.cumsum(histogram.counts) / max(int(histogram.counts.sum()), 1)
    edges = _edges(histogram)
    tail = (1 - percentile / 100) / 2
    low = edges[int(np.searchsorted(share, tail, side="right"))]
    high = edges[min(int(np.searchsorted(share, 1 - tail)), share.size - 1) + 1]
    return min(float(low), 0.0), max(float(high), 0.0)


def by_mse(histogram: Histogram, levels: int) -> Bounds:
    """The range of least expected squared error: both ends are tried at 46 shares of the full range."""
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    lows, highs = low * _SHRUNK[:, None], high * _SHRUNK[None, :]
    below, above = _clipping(histogram, lows[:, 0], highs[0])
    inside = 1.0 - _share_outside(histogram, lows[:, 0], highs[0]) - _share_of_zero(histogram)
    scale = (highs - lows) / (levels - 1)
    error = below[:, None] + above[None, :] + np.maximum(inside, 0.0) * scale**2 / 12
    at_low, at_high = np.unravel_index(int(np.argmin(error)), error.shape)
    return float(lows[at_low, 0]), float(highs[0, at_high])


def by_entropy(histogram: Histogram, levels: int) -> Bounds:
    """The range of least Kullback-Leibler divergence among those cut at one threshold for both signs."""
    from scipy.stats import entropy

    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    centers, counts = _centers(histogram), histogram.counts.astype(np.float64)
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
    low, high = np.array([min(range_[0], 0.0)]), np.array([max(range_[1], 0.0)])
    below, above = _clipping(histogram, low, high)
    inside = 1.0 - _share_outside(histogram, low, high)[0, 0] - _share_of_zero(histogram)
    scale = float(high[0] - low[0]) / (levels - 1)
    return float(below[0] + above[0] + max(inside, 0.0) * scale**2 / 12)


def signal_to_noise(histogram: Histogram, range_: Bounds, levels: int) -> float:
    """The expected SQNR in dB of such values on a grid over ``range_``."""
    power = float(np.sum(histogram.counts * _centers(histogram) ** 2) / max(int(histogram.counts.sum()), 1))
    error = expected_error(histogram, range_, levels)
    if error <= 0.0:
        return float("inf")
    return 10 * float(np.log10(power / error)) if power > 0 else float("-inf")


def union(ranges: Mapping[str, Bounds]) -> Bounds:
    """The range that holds all of these."""
    return min(low for low, _ in ranges.values()), max(high for _, high in ranges.values())


def _edges(histogram: Histogram) -> Array:
    return np.linspace(histogram.low, histogram.high, histogram.counts.size + 1)


def _centers(histogram: Histogram) -> Array:
    """The middle of each bin; 0 for the bin that holds 0, where exact zeros are most of what is in it."""
    edges = _edges(histogram)
    centers = (edges[1:] + edges[:-1]) / 2
    holds_zero = (edges[:-1] <= 0.0) & (edges[1:] >= 0.0)
    return np.where(holds_zero, 0.0, centers)


def _share_of_zero(histogram: Histogram) -> float:
    counts = histogram.counts
    return float(counts[_centers(histogram) == 0.0].sum() / max(int(counts.sum()), 1))


def _clipping(histogram: Histogram, lows: Array, highs: Array) -> tuple[Array, Array]:
    """The mean squared error of clipping at each of the lows, and at each of the highs."""
    centers = _centers(histogram)
    weights = histogram.counts / max(int(histogram.counts.sum()), 1)
    below = (np.minimum(centers[None, :] - lows[:, None], 0.0) ** 2) @ weights
    above = (np.maximum(centers[None, :] - highs[:, None], 0.0) ** 2) @ weights
    return below, above


def _share_outside(histogram: Histogram, lows: Array, highs: Array) -> Array:
    """The share of values below each low or above each high [lows, highs]."""
    centers = _centers(histogram)
    weights = histogram.counts / max(int(histogram.counts.sum()), 1)
    below = (centers[None, :] < lows[:, None]) @ weights
    above = (centers[None, :] > highs[:, None]) @ weights
    return np.asarray(below[:, None] + above[None, :])
