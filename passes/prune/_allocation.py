"""How sparse each layer gets, so that all together reach a target.

- ``uniform``: each the same share;
- ``global``: one threshold on ``|w|`` for all;
- ``erk``: density in proportion to ``(d₁ + d₂ + …) / (d₁ · d₂ · …)`` of the dims of the weight (Erdős–Rényi, with the
  kernel), so that small layers stay denser; what would exceed 1 is 1;
- ``lamp``: one threshold on the layer-adaptive score ``w² / Σ v²``, summed over all ``v`` of the layer that are not
  smaller. The largest of each layer scores 1, so no layer vanishes.

All look at magnitudes alone, which of all the methods' scores are the ones that layers have in common.

Sources: Evci, Gale, Menick, Castro and Elsen, "Rigging the Lottery: Making All Tickets Winners", ICML 2020 (ERK); Lee,
Park, Mo, Ahn and Shin, "Layer-Adaptive Sparsity for the Magnitude-Based Pruning", ICLR 2021 (LAMP).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from onnxopt.passes.prune._masks import least

Array = np.ndarray[Any, Any]
Allocation = Literal["uniform", "global", "erk", "lamp"]


def shares(weights: Sequence[Array], sparsity: float, allocation: Allocation) -> list[float]:
    """The share of zeros of each of these weights, so that together they have ``sparsity``."""
    if allocation == "uniform" or not weights:
        return [sparsity] * len(weights)
    if allocation == "erk":
        return _erk(weights, sparsity)
    scores = [np.abs(w).reshape(-1) if allocation == "global" else _lamp(w) for w in weights]
    sizes = [len(each) for each in scores]
    gone = least(np.concatenate(scores), round(sparsity * sum(sizes)))
    counts = [int(part.sum()) for part in np.split(gone, np.cumsum(sizes)[:-1])]
    return [count / size for count, size in zip(counts, sizes, strict=True)]


def _erk(weights: Sequence[Array], sparsity: float) -> list[float]:
    sizes = np.array([w.size for w in weights], np.float64)
    raw = np.array([sum(w.shape) / w.size for w in weights])
    wanted = (1 - sparsity) * sizes.sum()
    full = np.zeros(len(weights), bool)
    while True:
        factor = (wanted - sizes[full].sum()) / (raw * sizes)[~full].sum()
        over = ~full & (factor * raw > 1)
        if not over.any():
            return [float(share) for share in np.where(full, 0.0, 1 - factor * raw)]
        full |= over


def _lamp(w: Array) -> Array:
    """The scores of all elements, least first: how many fall below a threshold is all that is asked of them."""
    squares = np.square(np.sort(np.abs(w), axis=None).astype(np.float64))
    sums = np.cumsum(squares[::-1])[::-1]
    scores: Array = np.divide(squares, sums, out=np.zeros(len(sums)), where=sums > 0)
    return scores
