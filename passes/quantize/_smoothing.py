"""The numbers of SmoothQuant: how much of an outlier to move from the activations into the weights.

``x`` (rows × k) is quantized with one scale for the tensor, ``w`` (k × n) with one for each output. Column ``j`` of
``x`` is divided by ``s[j] = max|x_j|^α / max|w_j|^(1−α)`` and row ``j`` of ``w`` multiplied by it, which keeps the
product; ``α`` says how much of the difficulty goes into the weights.

Source: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
ICML 2023, eq. 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxopt.passes.quantize._grid import Array, fake_quantize, grid_of_range, weight_grid

ALPHAS = tuple(round(0.1 * step, 1) for step in range(1, 10))
"""What is tried for ``α``."""


def smoothing_scales(largest: Array, weights: Sequence[Array], alpha: float) -> Array:
    """``s`` [k] with geometric mean 1, from the largest magnitude of each column of ``x`` and all ``w`` that read it.

    A column that is 0 everywhere, or that no weight reads, keeps the scale 1.
    """
    rows = np.max([np.abs(w).max(axis=1) for w in weights], axis=0).astype(np.float64)
    alive = (largest > 0) & (rows > 0)
    if not alive.any():
        return np.ones(len(rows))
    logs = alpha * np.log(np.where(alive, largest, 1.0)) - (1 - alpha) * np.log(np.where(alive, rows, 1.0))
    return np.where(alive, np.exp(logs - logs[alive].mean()), 1.0)


def error(x: Array, low: Array, high: Array, weights: Sequence[Array], scales: Array) -> float:
    """The mean over ``weights`` of ``‖x w − x̂ ŵ‖² / ‖x w‖²`` with U8 activations and S8 weights, after scaling.

    ``low`` and ``high`` [k] are the ranges of the columns over all data, of which ``x`` is a sample.
    """
    grid = grid_of_range((low / scales).min(), (high / scales).max(), np.uint8, False)
    rounded = fake_quantize((x / scales).astype(np.float32), grid).astype(np.float64)
    found = []
    for w in weights:
        scaled = (w * scales[:, None]).astype(np.float32)
        coarse = fake_quantize(scaled, weight_grid(scaled, 1, np.int8, True)).astype(np.float64)
        exact = x.astype(np.float64) @ w.astype(np.float64)
        total = float(np.sum(exact**2))
        found.append(float(np.sum((exact - rounded @ coarse) ** 2)) / total if total > 0 else 0.0)
    return float(np.mean(found))
