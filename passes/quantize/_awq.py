"""AWQ: enlarge the columns of a weight that meet large inputs, so that rounding harms them less.

``x·wᵀ = (x / s)·(w · s)ᵀ`` for any scales ``s`` (k) of the inputs. A column that is enlarged has its rounding error
divided by ``s`` again, while the steps of its block hardly grow. The scales are ``s = mᵃ`` with the inputs' mean
magnitudes ``m``, and ``a`` between 0 and 1 is the one of a few that moves the outputs least. The paper takes ``m`` as
the mean of ``|x|``; ours is the root of the mean square, which the Gram matrix of the inputs holds.

Source: Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", MLSys 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxopt.passes.quantize._blockwise import Blocks, Form, clipped, cut, round_to_nearest

Array = np.ndarray[Any, Any]

_EXPONENTS = np.linspace(0.0, 1.0, 11)


def input_scales(weights: Sequence[Array], gram: Array, form: Form) -> Array:
    """The scales ``s`` (k, float32) for all layers (n × k each) that read one input, whose ``xᵀx`` is ``gram``.

    All 1 where scaling does not lower the error.
    """
    magnitude = np.sqrt(np.maximum(np.diag(gram), 0.0))
    magnitude = np.maximum(magnitude, 1e-4 * float(magnitude.max(initial=0.0)) or 1.0)
    magnitude /= np.exp(np.mean(np.log(magnitude)))
    h = gram.astype(np.float32)
    best, least = np.ones(len(gram), np.float32), np.inf
    for exponent in _EXPONENTS:
        scales = (magnitude**exponent).astype(np.float32)
        error = 0.0
        for w in weights:
            difference = round_to_nearest(w * scales, form).weights() / scales - w
            error += float(np.sum((difference @ h) * difference))
        if error < least:
            best, least = scales, error
    return best


def awq(w: Array, scales: Array, gram: Array, form: Form) -> Blocks:
    """``w · scales`` (n × k) rounded to grids that are clipped where that lowers the output's error."""
    importance = np.diag(gram).astype(np.float32) / scales**2
    weight = cut(importance[None], form)
    return round_to_nearest(w * scales, form, lambda blocks, _: clipped(blocks, form, weight))
