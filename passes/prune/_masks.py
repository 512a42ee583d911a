"""Which weights of a matrix to set to zero: those of the least score, one by one, N of M, or in blocks.

Matrices are g × n × k: in each of g groups a row for each of n outputs, along which the k inputs are summed up. A mask
has the same shape and is true where a weight is kept. Of equal scores the later ones go first.

- one by one: the share is that of the whole matrix, or of each row by itself;
- ``N:M``: of every M inputs in a row each output keeps N, as the sparse tensor cores of NVIDIA read ``2:4``;
- ``RxC``: blocks of R outputs × C inputs stay or go as a whole, by the mean score in each.

Source of N:M: Mishra et al., "Accelerating Sparse Deep Neural Networks", arXiv 2104.08378 (2021).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_N_OF_M = re.compile(r"([1-9]\d{0,4}):([1-9]\d{0,4})")
_BLOCKS = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")


@dataclass(frozen=True)
class Pattern:
    """What the zeros have to look like: by default nothing in particular."""

    kept: int = 1
    """Of ``of`` inputs in a row so many are kept;"""
    of: int = 1
    """1: there is no such limit."""
    rows: int = 1
    """The size of a block in outputs,"""
    columns: int = 1
    """and in inputs."""

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """The pattern written as ``N:M``, as ``RxC``, or, for none, as an empty text.

        Raises ``ValueError`` for anything else.
        """
        if found := _N_OF_M.fullmatch(text):
            kept, of = int(found[1]), int(found[2])
            if kept < of:
                return cls(kept=kept, of=of)
        elif found := _BLOCKS.fullmatch(text):
            return cls(rows=int(found[1]), columns=int(found[2]))
        elif not text:
            return cls()
        raise ValueError(f"{text!r} is no pattern: 2:4 (N of M, N < M), 4x1 (blocks of outputs × inputs), or none")

    @property
    def share(self) -> float | None:
        """The share of zeros that N:M comes to; ``None`` where it is free."""
        return None if self.of == 1 else 1 - self.kept / self.of

    @property
    def width(self) -> int:
        """How many inputs belong together."""
        return self.of * self.columns

    def misfit(self, outputs: int, inputs: int) -> str | None:
        """Why a matrix of that size cannot have this pattern, or ``None``."""
        if inputs % self.width:
            return f"its {inputs} inputs an output are not divisible by {self.width}"
        return f"its {outputs} outputs are not divisible by {self.rows}" if outputs % self.rows else None


def mask(scores: Array, share: float, pattern: Pattern, *, by_row: bool = False) -> Array:
    """The weights to keep, of g × n × k; ``share`` of them go, ``by_row``: of each row alike.

    With N:M the share is that of the pattern. Sizes must fit the pattern.
    """
    g, n, k = scores.shape
    if pattern.of > 1:
        parts = scores.reshape(g, n, k // pattern.of, pattern.of)
        order = np.argsort(-parts, axis=-1, kind="stable")
        kept = np.zeros(parts.shape, bool)
        np.put_along_axis(kept, order[..., : pattern.kept], True, axis=-1)
        return kept.reshape(g, n, k)
    r, c = pattern.rows, pattern.columns
    if r * c > 1:
        scores = scores.reshape(g, n // r, r, k // c, c).mean(axis=(2, 4), dtype=np.float64)
    kept = _all_but_rows(scores, share) if by_row else ~least(scores, round(share * scores.size))
    return kept.repeat(r, axis=1).repeat(c, axis=2) if r * c > 1 else kept


def least(scores: Array, count: int) -> Array:
    """Where the ``count`` least elements are; of equal ones the last."""
    chosen = np.zeros(scores.size, bool)
    flat = scores.reshape(-1)
    if 0 < count < flat.size:
        bound = np.partition(flat, count - 1)[count - 1]
        np.less(flat, bound, out=chosen)
        missing = count - int(chosen.sum())
        chosen[np.flatnonzero(flat == bound)[::-1][:missing]] = True
    elif count:
        chosen[:] = True
    return chosen.reshape(scores.shape)


def _all_but_rows(scores: Array, share: float) -> Array:
    """The same number goes from each row; where that is no whole number, one more from rows that lose least by it."""
    k = scores.shape[-1]
    flat = scores.reshape(-1, k)
    order = np.argsort(-flat, axis=1, kind="stable")
    each = int(share * k)
    kept = np.zeros(flat.shape, bool)
    np.put_along_axis(kept, order[:, : k - each], True, axis=1)
    if rest := round(share * flat.size) - each * len(flat):
        last = order[:, k - each - 1]
        rows = np.arange(len(flat))
        going = least(flat[rows, last], rest)
        kept[rows[going], last[going]] = False
    return kept.reshape(scores.shape)
