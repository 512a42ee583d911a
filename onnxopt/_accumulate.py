"""What is summed up of a tensor while its values come by, array by array.

Plain numerics; which tensor, which model and which data it is about is for ``stats.py`` to know. An accumulator
is fed by one thread at a time, in the order of the data, so its result depends on nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

Array = np.ndarray[Any, Any]

BINS = 2048
"""The bins of a histogram."""

_BLOCK = 1 << 16
"""So many elements are binned at once: they stay in the processor's cache."""
_WIDTHS = (1e-30, 1e34)
"""Ranges in between can be cut into bins in float32."""
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
    finite: bool = True
    """Whether there is no NaN and no infinity in it."""


@dataclass(frozen=True)
class Histogram:
    """How often the values of a tensor fall into each of ``BINS`` bins of equal width from ``low`` to ``high``.

    The last bin includes ``high``. A value within float32 rounding of the edge between two bins may count for
    either. If all values are the same, all are in the first bin.
    """

    low: float
    high: float
    counts: Array
    """int64 [BINS]."""


@dataclass(frozen=True)
class Channels:
    """The slices of a tensor along one axis of C channels."""

    low: Array
    """The least value of each, float32 [C] (float64 for a float64 tensor)."""
    high: Array
    """The greatest value of each."""
    mean: Array
    """The mean of each, float64 [C]."""


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
        self._low, self._high = np.inf, -np.inf  # of the batch that is under way
        self._lows: list[float] = []
        self._highs: list[float] = []
        self._batch = -1

    def add(self, array: Array, batch: int) -> None:
        if batch != self._batch:
            self._finish_batch()
            self._batch = batch
        self._low = float(np.minimum(self._low, array.min()))  # both let NaN through
        self._high = float(np.maximum(self._high, array.max()))

    def _finish_batch(self) -> None:
        if self._batch >= 0:
            self._lows.append(self._low)
            self._highs.append(self._high)
        self._low, self._high = np.inf, -np.inf

    def result(self) -> Range | None:
        self._finish_batch()
        if not self._lows:
            return None
        low, high = float(np.min(self._lows)), float(np.max(self._highs))
        with np.errstate(invalid="ignore"):  # infinities of both signs have no mean
            means = float(np.mean(self._lows)), float(np.mean(self._highs))
        return Range(low, high, *means, finite=bool(np.isfinite(low) and np.isfinite(high)))


class HistogramOf(Accumulator[Histogram]):
    """The histogram of a tensor whose range is known and finite."""

    def __init__(self, low: float, high: float) -> None:
        self._low, self._high = low, high
        self._counts = np.zeros(BINS, dtype=np.int64)

    def add(self, array: Array, batch: int) -> None:
        width = self._high - self._low
        narrow = array.dtype != np.float64 and (width == 0 or _WIDTHS[0] < width < _WIDTHS[1])
        dtype = np.dtype(np.float32 if narrow else np.float64)
        low, scale = dtype.type(self._low), dtype.type(BINS / width if width > 0 else 0.0)
        flat = array.reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            block: Array = flat[start : start + _BLOCK].astype(dtype)
            np.subtract(block, low, out=block)
            np.multiply(block, scale, out=block)
            bins = block.astype(np.int32)
            np.minimum(bins, BINS - 1, out=bins)
            self._counts += np.bincount(bins, minlength=BINS)

    def result(self) -> Histogram:
        return Histogram(self._low, self._high, self._counts)


class ChannelsOf(Accumulator[Channels]):
    """Least, greatest and mean value of each slice along ``axis``; nothing if their number varies."""

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
        if self._low is None:
            self._low, self._high, self._total = low, high, total
        else:
            self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)
            self._total += total
        self._count += array.size // channels

    def result(self) -> Channels | None:
        if self._low is None or self._ragged:
            return None
        return Channels(self._low, self._high, self._total / self._count)


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
