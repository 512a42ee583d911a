"""Wanda: score each weight by its magnitude times the size of the input that it meets, and compare within outputs.

``S[i,j] = |w[i,j]| · ‖x[j]‖₂`` over all rows of the input: the square of what output ``i`` would lose without it.

Source: Sun, Liu, Bair and Kolter, "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def wanda(w: Array, gram: Array) -> Array:
    """The scores of ``w`` (g × n × k) for inputs whose ``xᵀx`` is ``gram`` (g × k × k)."""
    norms = np.sqrt(np.diagonal(gram, axis1=1, axis2=2))
    scores: Array = np.abs(w) * norms[:, None, :].astype(np.float32)
    return scores
