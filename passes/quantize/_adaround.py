"""Choose between the two neighbours of each weight on its grid by what that does to the output of the layer.

A layer ``y = X W`` computes ``X̂ Ŵ`` once its input and its weight are rounded. Each weight goes up or down, so that
over the data ``‖X W − X̂ Ŵ‖²`` is least. This is a quadratic form in the choices of each output, and all that it takes
of the data is ``A = X̂ᵀX̂`` (k × k) and ``B = X̂ᵀX W`` (k × n):

    L(Ŵ) = tr(Ŵᵀ A Ŵ) − 2 tr(Ŵᵀ B) + const,    Ŵ[i,j] ∈ {low[i,j], high[i,j]}.

``A`` is damped by a share of its mean diagonal, towards ``W``, for data show only some directions. The choice is made
in two steps. First column by column, as GPTQ does, with the columns still free making up for each error; they are
aimed at the best weight without a grid, ``W* = A⁻¹B``. Then, as long as any output gains by it, the one weight is
moved to its other neighbour that lowers the loss of its output most, by exactly ``2dG + d²A[i,i]`` with the gradient
``G = AŴ − B``; all outputs at once, one weight of each at a time.

AdaRound itself relaxes the choice to a rectified sigmoid and descends by gradients. That was measured on the same
matrices, for three networks: 500 steps of Adam on the quadratic form, hardly tuned, took 50 to 200 times as
long and ended at a larger error on held-out data (W4A8: 0.52, 0.60 and 0.54 of that of rounding to nearest, against
0.40, 0.49 and 0.28 here). Single moves that start from rounding to nearest end in between (0.43, 0.52, 0.31).

Sources: Nagel, Amjad, van Baalen, Louizos and Blankevoort, "Up or Down? Adaptive Rounding for Post-Training
Quantization", ICML 2020 (the objective, with the input as quantized layers before leave it); Frantar, Ashkboos, Hoefler
and Alistarh, "GPTQ", ICLR 2023 (the first step).
"""

from __future__ import annotations

import numpy as np

from onnxopt.passes.quantize._gptq import inverse_factor
from onnxopt.passes.quantize._grid import Array

_DAMPING = 0.05
_BATCH = 64
"""How many columns are rounded before the rest is brought up to date."""
_LEAST_GAIN = 1e-9
"""Moves that lower the loss by less than this, relative to that of one step of the weight, are left."""


class Moments:
    """``X̂ᵀX̂`` and ``X̂ᵀXW`` (float64: g × k × k and g × k × n), summed over rows as they come."""

    def __init__(self, weight: Array) -> None:
        """For a weight of g × k × n."""
        g, k, n = weight.shape
        self.gram, self.cross = np.zeros((g, k, k)), np.zeros((g, k, n))
        self._weight = weight.astype(np.float32)

    def add(self, x: Array, rounded: Array) -> None:
        """Rows (g × r × k) of the float model and the same of the quantized one."""
        columns = rounded.swapaxes(1, 2)
        self.gram += columns @ rounded
        self.cross += columns @ (x @ self._weight)


def choose(weight: Array, low: Array, high: Array, moments: Moments) -> Array:
    """Whether to take ``high``, for each of the weights; all are g × k × n. ``moments`` are damped in place."""
    up = np.empty(weight.shape, bool)
    for at, gram in enumerate(moments.gram):
        size = len(gram)
        damping = _DAMPING * float(np.trace(gram)) / size or 1.0
        gram.flat[:: size + 1] += damping
        cross = moments.cross[at] + damping * weight[at]
        up[at] = _by_moves(low[at], high[at], _by_columns(low[at], high[at], gram, cross), gram, cross)
    return up


def _by_columns(low: Array, high: Array, gram: Array, cross: Array) -> Array:
    """The choice that GPTQ makes for the weight of least loss."""
    k, n = low.shape
    order = np.argsort(-np.diag(gram), kind="stable")
    factor = inverse_factor(gram[np.ix_(order, order)])
    left = factor.T @ (factor @ cross[order].astype(np.float32))
    low, high = low[order].astype(np.float32), high[order].astype(np.float32)
    up = np.empty((k, n), bool)
    for start in range(0, k, _BATCH):
        stop = min(start + _BATCH, k)
        errors = np.empty((stop - start, n), np.float32)
        for i in range(start, stop):
            chosen = up[order[i]] = np.abs(left[i] - high[i]) < np.abs(left[i] - low[i])
            errors[i - start] = (left[i] - np.where(chosen, high[i], low[i])) / factor[i, i]
            left[i + 1 : stop] -= factor[i, i + 1 : stop, None] * errors[i - start]
        left[stop:] -= factor[start:stop, stop:].T @ errors
    return up


def _by_moves(low: Array, high: Array, up: Array, gram: Array, cross: Array) -> Array:
    """The choice after the best single moves, until no output has one that lowers its loss."""
    up = np.ascontiguousarray(up.T)
    outputs = rows = np.arange(len(up))
    step = np.where(up, (low - high).T, (high - low).T)
    curvature = np.diag(gram)
    gradient = np.ascontiguousarray((gram @ np.where(up.T, high, low) - cross).T)
    enough = -_LEAST_GAIN * (curvature * step**2).max(axis=1)
    while len(outputs):
        gains = step * curvature
        gains += gradient
        gains += gradient
        gains *= step
        best = gains.argmin(axis=1)
        going = gains[rows, best] < enough
        if not going.all():  # outputs are independent: those that are done stay so
            outputs, best, enough = outputs[going], best[going], enough[going]
            step, gradient, rows = step[going], gradient[going], np.arange(len(outputs))
        gradient += gram[best] * step[rows, best][:, None]
        step[rows, best] *= -1
        up[outputs, best] ^= True
    return up.T
