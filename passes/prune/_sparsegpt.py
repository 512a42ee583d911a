"""SparseGPT: take weights out column by column, and let the columns to come make up for each.

The output of ``y = x·wᵀ`` moves by ``(ŵ − w)·xᵀ``, whose square summed over the data is ``Δ·H·Δᵀ`` with ``H = xᵀx``
(k × k). Once ``w[i]`` is zero, the best that columns still free can do is to move by ``−w[i] / Uᵢᵢ · Uᵢⱼ``; ``U`` is
the upper Cholesky factor of ``H⁻¹``, and the square grows by ``(w[i] / Uᵢᵢ)²``. By that score weights are chosen, for a
lot of 128 columns at a time (N:M: of M), when all before it are settled.

Columns that are settled already do not move in this. With the zeros known, all that are kept could: the best values
solve ``H`` restricted to them, a system for each output. That is done at the end for all outputs together, by
conjugate gradients on the kept weights with ``H``'s diagonal as preconditioner, which takes products of matrices only.

``H`` is damped by a share of its mean diagonal, towards ``w``: data show only some directions.

Sources: Frantar and Alistarh, "SparseGPT: Massive Language Models Can be Accurately Pruned in One-Shot", ICML 2023;
Hassibi, Stork and Wolff, "Optimal Brain Surgeon and General Network Pruning", 1993; conjugate gradients on a known
support: Meng, Behdin, Wang and Mazumder, "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large
Language Models", NeurIPS 2024.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxopt.passes.prune._masks import Pattern, mask
from onnxopt.passes.quantize._gptq import inverse_factor

Array = np.ndarray[Any, Any]

_LOT = 128
_DAMPING = 0.01
_STEPS = 20
"""of conjugate gradients: then the error was within 5 %, and in 13 of 16 cases within 0.3 %, of the least there is."""
_ENOUGH = 1e-4
"""Conjugate gradients stop once the residual is so small, relative to where it began."""


def sparsegpt(w: Array, gram: Array, share: float, pattern: Pattern) -> Array:
    """``w`` (g × n × k) with ``share`` of zeros and least error of the output, for inputs whose ``xᵀx`` is ``gram``
    (g × k × k)."""
    k = w.shape[2]
    damped = gram.astype(np.float64)
    for each in damped:
        each.flat[:: k + 1] += _DAMPING * float(np.trace(each)) / k or 1.0
    return refit(w, _choose(w, damped, share, pattern), damped)


def _choose(w: Array, damped: Array, share: float, pattern: Pattern) -> Array:
    """The weights to keep, lot by lot."""
    k = w.shape[2]
    factor = np.stack([inverse_factor(each) for each in damped])
    pivots = np.diagonal(factor, axis1=1, axis2=2)[:, None]
    left = w.astype(np.float32)
    kept = np.ones(w.shape, bool)
    size = pattern.of if pattern.of > 1 else max(_LOT // pattern.columns, 1) * pattern.columns
    for start in range(0, k, size):
        stop = min(start + size, k)
        scores = np.square(left[..., start:stop] / pivots[..., start:stop])
        kept[..., start:stop] = mask(scores, share, pattern)
        errors = np.zeros(scores.shape, np.float32)
        for i in range(start, stop):
            errors[..., i - start] = np.where(kept[..., i], 0, left[..., i] / pivots[..., i])
            left[..., i + 1 : stop] -= errors[..., i - start, None] * factor[:, None, i, i + 1 : stop]
        left[..., stop:] -= errors @ factor[:, start:stop, stop:]
    return kept


def refit(w: Array, kept: Array, gram: Array, steps: int = _STEPS) -> Array:
    """The weights (g × n × k, float32) that are zero but where ``kept``, and, row by row, of all such have the least
    ``Δ·gram·Δᵀ`` with ``Δ`` their distance from ``w``, or nearly so after as many ``steps``.

    ``gram`` (g × k × k) must be positive definite.
    """
    gram = gram.astype(np.float32)
    diagonal = np.diagonal(gram, axis1=1, axis2=2)[:, None]
    found = np.where(kept, w, 0).astype(np.float32)
    residual = np.where(kept, (w - found) @ gram, 0)
    ahead = residual / diagonal
    direction = ahead
    size = np.sum(residual * ahead, axis=2, keepdims=True)
    enough = _ENOUGH**2 * size
    for _ in range(steps):
        if (size <= enough).all():
            break
        curved = np.where(kept, direction @ gram, 0)
        bend = np.sum(direction * curved, axis=2, keepdims=True)
        step = _quotient(size, bend)
        found += step * direction
        residual -= step * curved
        ahead = residual / diagonal
        before, size = size, np.sum(residual * ahead, axis=2, keepdims=True)
        direction = ahead + _quotient(size, before) * direction
    return found


def _quotient(a: Array, b: Array) -> Array:
    """``a / b``, 0 where ``b`` is: rows that are done move no more."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)
