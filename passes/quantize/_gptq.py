"""GPTQ: round a weight column by column, and let the columns to come make up for each error.

The output of a layer ``y = x·wᵀ`` moves by ``(ŵ − w)·xᵀ``, whose square summed over the data is ``Δ·H·Δᵀ`` with
``H = xᵀx`` (k × k). Once column ``i`` is rounded, the best that the columns still free can do is to move by
``−eᵢ · Uᵢⱼ`` with ``eᵢ = (wᵢ − ŵᵢ) / Uᵢᵢ``, where ``U`` is the upper Cholesky factor of ``H⁻¹``, ``UᵀU = H⁻¹``. Columns
go in batches, so that most of the work is matrix products; those with the largest inputs go first, while most
others are still free. ``H`` is damped by a share of its mean diagonal: without it, directions that the data never
show would be free. Grids are set beforehand, clipped where that lowers the error weighted by the inputs' squares.

``U`` comes of one Cholesky factorisation of ``H`` itself, from its last column to its first: ``H = RRᵀ`` with ``R``
upper triangular, so ``U = R⁻¹``.

Source: Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers", ICLR 2023.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxopt.passes.quantize._blockwise import Blocks, Form, clipped, cut

Array = np.ndarray[Any, Any]

_BATCH = 128
"""How many columns are rounded before the rest is brought up to date."""
_DAMPING = 0.01


def gptq(w: Array, gram: Array, form: Form) -> Blocks:
    """``w`` (n × k) quantized with the least error of the output, for inputs whose ``xᵀx`` is ``gram`` (k × k)."""
    n, k = w.shape
    damped = gram.astype(np.float64)
    damped.flat[:: k + 1] += _DAMPING * float(np.trace(gram)) / k or 1.0
    importance = np.diag(damped).astype(np.float32)
    scale, zero = clipped(cut(w, form), form, cut(importance[None], form))
    order = np.argsort(-importance, kind="stable")
    factor = inverse_factor(damped[np.ix_(order, order)])
    block = order // form.width(k)
    scales, zeros = np.ascontiguousarray(scale.T), np.ascontiguousarray(zero.T)
    left = w.T.astype(np.float32)[order]
    q = np.empty((k, n), np.uint8)
    for start in range(0, k, _BATCH):
        stop = min(start + _BATCH, k)
        errors = np.empty((stop - start, n), np.float32)
        for i in range(start, stop):
            s, z = scales[block[i]], zeros[block[i]]
            rounded = np.clip(np.rint(left[i] / s) + z, 0, form.top)
            errors[i - start] = (left[i] - (rounded - z) * s) / factor[i, i]
            left[i + 1 : stop] -= factor[i, i + 1 : stop, None] * errors[i - start]
            q[order[i]] = rounded
        left[stop:] -= factor[start:stop, stop:].T @ errors
    return Blocks(np.ascontiguousarray(q.T), scale, zero.astype(np.uint8), form)


def inverse_factor(h: Array) -> Array:
    """The upper triangular ``U`` (float32) with ``UᵀU = h⁻¹``; ``h`` must be positive definite."""
    from scipy.linalg import cholesky
    from scipy.linalg.lapack import dtrtri

    lower = cholesky(h[::-1, ::-1], lower=True)
    inverse, _ = dtrtri(lower, lower=1)
    return np.ascontiguousarray(inverse[::-1, ::-1], dtype=np.float32)
