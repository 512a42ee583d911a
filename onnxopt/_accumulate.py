"""What is summed up of a tensor while its values come by, array by array.

Plain numerics; which tensor, which model and which data it is about is for ``stats.py`` to know. An accumulator
is fed by one thread at a time, in the order of the data, so its result depends on nothing else.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

Array = np.ndarray[Any, Any]

BINS = 2048
"""The bins of a histogram, at least."""

_BLOCK = 1 << 14
"""So many elements are binned at once: they stay in the processor's cache, and need no new pages of memory."""
_FLOAT32, _EXACT = 120, 1 << 22
"""Bins whose width has an exponent within the one, and whose edges numbers within the other, can be counted in float32.
"""
_ROWS = 1 << 12
"""So many rows go into one product of a Gram matrix before it is added up in float64."""


@dataclass(frozen=True)
class Range:
    """Between what a tensor lies."""

    low: float
    """The least value over all samples, exact."""
    high: float
    """The greatest value."""
    mean_low: float
    """The mean over batches of the least value in each."""
    mean_high: float
    """The mean over batches of the greatest value in each."""
    finite: bool
    """Whether there is no NaN and no infinity in it."""


@dataclass(frozen=True)
class Histogram(Range):
    """How often the values of a tensor fall into each of some bins of equal width.

    The width is a power of two and every edge a multiple of it, except that the first bin begins at ``low`` and the
    last, which includes it, ends at ``high``. There are more than ``BINS`` bins and at most twice as many, but for
    tensors of a single value. A value within float32 rounding of the edge between two bins may count for either.
    Of large tensors some values are counted for all.
    """

    first: float
    """The first edge, in units of the width."""
    width: float
    counts: Array
    """int64; empty if the tensor is not finite."""

    @property
    def edges(self) -> Array:
        """float64, one more than there are bins."""
        edges: Array = (self.first + np.arange(self.counts.size + 1)) * self.width
        return edges.clip(self.low, self.high)


@dataclass(frozen=True)
class Channels:
    """The slices of a tensor along one axis of C channels."""

    low: Array
    """The least value of each, float32 [C] (float64 for a float64 tensor)."""
    high: Array
    """The greatest value of each."""
    mean: Array
    """The mean of each, float64 [C]."""
    variance: Array
    """The variance of each, float64 [C]."""


@dataclass(frozen=True)
class Gram:
    """``XᵀX`` of a tensor as a matrix X of ``rows`` rows and k columns, its last axis.

    Products are formed in float32 over blocks of at most 4,096 rows and added up in float64, so the relative
    error of an entry is at most about 4,096 · 2⁻²⁴ = 2.4e-4 of Σ|x·y|, and in practice near 1e-7.
    """

    xtx: Array
    """float64 [k, k]."""
    rows: int


R = TypeVar("R")


class Accumulator(ABC, Generic[R]):
    """Takes arrays one by one and gives a result at the end."""

    @abstractmethod
    def add(self, array: Array, batch: int) -> None:
        """Take in an array that is not empty; ``batch`` is the number of the batch that it is part of."""

    @abstractmethod
    def result(self) -> R | None:
        """What came of it; ``None`` if there is nothing to say."""


class RangeOf(Accumulator[Range]):
    """The range of a tensor."""

    def __init__(self) -> None:
        self._lows: dict[int, float] = {}
        self._highs: dict[int, float] = {}

    def add(self, array: Array, batch: int) -> None:
        self.extend(array, batch)

    def extend(self, array: Array, batch: int) -> tuple[float, float]:
        """The same; returns the least and the greatest value of ``array``."""
        low, high = float(array.min()), float(array.max())  # both let NaN through
        self._lows[batch] = float(np.minimum(self._lows.get(batch, np.inf), low))
        self._highs[batch] = float(np.maximum(self._highs.get(batch, -np.inf), high))
        return low, high

    def result(self) -> Range | None:
        if not self._lows:
            return None
        lows, highs = list(self._lows.values()), list(self._highs.values())
        low, high = float(np.min(lows)), float(np.max(highs))
        with np.errstate(invalid="ignore"):  # infinities of both signs have no mean
            means = float(np.mean(lows)), float(np.mean(highs))
        return Range(low, high, *means, finite=bool(np.isfinite(low) and np.isfinite(high)))


class HistogramOf(Accumulator[Histogram]):
    """The histogram of a tensor, over a range that grows: where it takes too many bins, they are merged in pairs.

    Edges are multiples of a power of two, so that a merged bin holds exactly what its two held. Of rows (slices along
    the first axis) of more than ``limit`` values, every n-th is counted, n times, and the least and the greatest value
    besides; the range is that of all.
    """

    def __init__(self, limit: int = 1 << 62) -> None:
        self._limit = limit
        self._range = RangeOf()
        self._exponent = 0  # of the width
        self._first = 0
        self._counts = np.zeros(0, dtype=np.int64)  # and one bin more, for what is rounded up to the last edge
        self._finite = True

    def add(self, array: Array, batch: int) -> None:
        low, high = self._range.extend(array, batch)
        self._finite = self._finite and bool(np.isfinite(low) and np.isfinite(high))
        if not self._finite:
            return
        self._make_room(low, high)
        last = self._first + self._counts.size
        narrow = array.dtype != np.float64 and abs(self._exponent) < _FLOAT32 and max(-self._first, last) < _EXACT
        dtype = np.dtype(np.float32 if narrow else np.float64)
        scale, first = dtype.type(2.0**-self._exponent), dtype.type(self._first)
        rows = array.reshape(len(array) if array.ndim else 1, -1)
        step = _step(rows.shape[1], self._limit)
        counted = [(rows[:, ::step].reshape(-1), step)]
        if step > 1:  # what is rare and large costs most when it is clipped
            counted.append((np.concatenate([rows.min(axis=1), rows.max(axis=1)]), 1))
        for flat, weight in counted:
            for start in range(0, flat.size, _BLOCK):
                block: Array = flat[start : start + _BLOCK].astype(dtype)
                np.multiply(block, scale, out=block)
                np.subtract(block, first, out=block)
                self._counts += weight * np.bincount(block.astype(np.intp), minlength=self._counts.size)

    def _make_room(self, low: float, high: float) -> None:
        """Let there be bins from ``low`` to ``high``, beside those that there are."""
        first, last = self._first, self._first + self._counts.size - 2
        if not self._counts.size:
            self._exponent = _exponent(low, high)
            self._first = first = last = math.floor(math.ldexp(low, -self._exponent))
            self._counts = np.zeros(2, dtype=np.int64)
        least = min(first, math.floor(math.ldexp(low, -self._exponent)))
        greatest = max(last, math.floor(math.ldexp(high, -self._exponent)))
        if self._counts.size and (least, greatest) == (first, last):
            return
        merged = 0
        while (greatest >> merged) - (least >> merged) >= 2 * BINS:
            merged += 1
        self._exponent += merged
        counts = np.zeros((greatest >> merged) - (least >> merged) + 2, dtype=np.int64)
        places = (np.arange(first, last + 2) >> merged) - (least >> merged)
        np.add.at(counts, places, self._counts)
        self._first, self._counts = least >> merged, counts

    def result(self) -> Histogram | None:
        seen = self._range.result()
        if seen is None:
            return None
        ends = seen.low, seen.high, seen.mean_low, seen.mean_high
        if not self._finite:
            return Histogram(*ends, finite=False, first=0.0, width=0.0, counts=np.zeros(0, dtype=np.int64))
        counts = self._counts[:-1].copy()
        counts[-1] += self._counts[-1]
        return Histogram(*ends, finite=True, first=float(self._first), width=2.0**self._exponent, counts=counts)


def _step(size: int, limit: int) -> int:
    """Of how many values of ``size`` one is to be taken, so that it is about ``limit`` of them: a number without a
    common divisor with the size, so that they come from all places along every axis."""
    step = max(1, size // limit)
    while math.gcd(step, size) > 1:
        step += 1
    return step


def _exponent(low: float, high: float) -> int:
    """The power of two that is the width of the bins at first."""
    span = high - low if high > low else max(abs(low), 2.0**-120)
    return max(math.frexp(span)[1] - int(math.log2(BINS)) - 1, -1060)


class ChannelsOf(Accumulator[Channels]):
    """Least and greatest value, mean and variance of each slice along ``axis``; nothing if their number varies."""

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._low: Array | None = None
        self._count = 0
        self._ragged = False

    def add(self, array: Array, batch: int) -> None:
        axis = self._axis + array.ndim if self._axis < 0 else self._axis
        if not 0 <= axis < array.ndim or (self._low is not None and len(self._low) != array.shape[axis]):
            self._ragged = True
            return
        channels = array.shape[axis]
        parts = array.reshape(int(np.prod(array.shape[:axis])), channels, -1)
        if parts.dtype == np.float16:
            parts = parts.astype(np.float32)
        low, high = parts.min(axis=2).min(axis=0), parts.max(axis=2).max(axis=0)
        total = parts.sum(axis=2, dtype=np.float64).sum(axis=0)
        squares = np.square(parts).sum(axis=2, dtype=np.float64).sum(axis=0)
        if self._low is None:
            self._low, self._high, self._total, self._squares = low, high, total, squares
        else:
            self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)
            self._total += total
            self._squares += squares
        self._count += array.size // channels

    def result(self) -> Channels | None:
        if self._low is None or self._ragged:
            return None
        mean = self._total / self._count
        return Channels(self._low, self._high, mean, np.maximum(self._squares / self._count - mean**2, 0.0))


class GramOf(Accumulator[Gram]):
    """The Gram matrix of a tensor over its last axis; nothing if that varies in size."""

    def __init__(self) -> None:
        self._xtx: Array | None = None
        self._rows = 0
        self._ragged = False

    def add(self, array: Array, batch: int) -> None:
        if not array.ndim or (self._xtx is not None and len(self._xtx) != array.shape[-1]):
            self._ragged = True
            return
        width = array.shape[-1]
        if self._xtx is None:
            self._xtx = np.zeros((width, width))
        matrix = array.reshape(-1, width)
        if matrix.dtype == np.float16:
            matrix = matrix.astype(np.float32)
        for start in range(0, len(matrix), _ROWS):
            block = matrix[start : start + _ROWS]
            self._xtx += block.T @ block
        self._rows += len(matrix)

    def result(self) -> Gram | None:
        return None if self._xtx is None or self._ragged else Gram(self._xtx, self._rows)


class RowsOf(Accumulator[Array]):
    """At most ``limit`` rows of a tensor as a matrix over its last axis, drawn at random, in the order of the data.

    Each row gets a random key, and those with the least keys are kept. Nothing if the last axis varies in size.
    """

    def __init__(self, limit: int, seed: int) -> None:
        self._limit, self._rng = limit, np.random.default_rng(seed)
        self._rows: Array | None = None
        self._keys = np.empty(0)
        self._ragged = False

    def add(self, array: Array, batch: int) -> None:
        if not array.ndim or (self._rows is not None and self._rows.shape[1] != array.shape[-1]):
            self._ragged = True
            return
        matrix = array.reshape(-1, array.shape[-1])
        keys = self._rng.random(len(matrix))
        bound = self._keys.max() if len(self._keys) == self._limit else 1.0
        chosen = np.flatnonzero(keys < bound)
        rows = matrix[chosen] if self._rows is None else np.concatenate([self._rows, matrix[chosen]])
        keys = np.concatenate([self._keys, keys[chosen]])
        kept = np.sort(np.argsort(keys, kind="stable")[: self._limit])
        self._rows, self._keys = rows[kept], keys[kept]

    def result(self) -> Array | None:
        return None if self._ragged else self._rows
