"""The numbers of cross-layer equalization: which factor to scale each channel by.

With ``r₁[c]`` the largest weight that makes channel ``c`` and ``r₂[c]`` the largest that reads it, the factor
``s = √(r₂ / r₁)`` makes both ``√(r₁ r₂)``. One layer belongs to the group before it and to the one behind, so
the groups are visited in turns until the factors stay at 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxopt.passes.quantize._grid import Array

SETTLED = 1e-3
"""A turn in which no channel is scaled by more than this (in powers of 2) is the last."""

_TURNS = 200


@dataclass(frozen=True)
class Coupling:
    """What ties channels: the matrices (outputs × inputs) that make them, and those that read them.

    A matrix holds the largest magnitude of the weights between an output and an input. ``readers`` come with the
    number of neighbouring inputs that belong to one channel.
    """

    makers: Sequence[int]
    readers: Sequence[tuple[int, int]]


def equalizing_scales(matrices: Sequence[Array], couplings: Sequence[Coupling]) -> list[Array]:
    """For each coupling the factors [channels] that equalize it; a channel without weights keeps 1.

    ``matrices`` are not changed.
    """
    current = [np.abs(matrix.astype(np.float64)) for matrix in matrices]
    totals = [np.ones(len(current[each.makers[0]])) for each in couplings]
    for _ in range(_TURNS):
        largest = 0.0
        for at, each in enumerate(couplings):
            made = np.max([current[m].max(axis=1, initial=0.0) for m in each.makers], axis=0)
            read = np.max([_by_channel(current[m], inner) for m, inner in each.readers], axis=0)
            alive = (made > 0) & (read > 0)
            scale = np.sqrt(np.divide(read, made, out=np.ones_like(made), where=alive))
            scale[~alive] = 1.0
            for m in each.makers:
                current[m] *= scale[:, None]
            for m, inner in each.readers:
                current[m] /= np.repeat(scale, inner)
            totals[at] *= scale
            largest = max(largest, float(np.max(np.abs(np.log2(scale)), initial=0.0)))
        if largest < SETTLED:
            break
    return totals


def _by_channel(matrix: Array, inner: int) -> Array:
    found: Array = matrix.max(axis=0, initial=0.0).reshape(-1, inner).max(axis=1)
    return found
