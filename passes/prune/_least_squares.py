"""Least squares for layers that channels were taken from: the best weights, their error, and what to take.

A layer with rows ``x`` of its input (one column a weight of an output, and a column of ones for the bias) is to give
``y``. All that this takes of the data are the moments ``G = XᵀX``, ``C = XᵀY`` and ``‖y‖²``:

    ‖Y − X V‖² = ‖Y‖² − 2 tr(VᵀC) + tr(VᵀG V),

which is least, with a penalty ``λ ‖V − V₀‖²`` that holds what the data do not show at the weights that are there, at
``V = V₀ + (G + λI)⁻¹ (C − G V₀)``. The bias goes free.

``eliminate`` removes channels, blocks of columns ``B``, one after the other, always the one that costs least if all
others are fitted anew. With ``H = (G + λI)⁻¹`` and ``V = H C`` the error grows by ``tr(V_Bᵀ H_BB⁻¹ V_B)``, and what is
left has

    V ← V − H_·B H_BB⁻¹ V_B,    H ← H − H_·B H_BB⁻¹ H_B·,

so that one inverse does for all. This is Optimal Brain Surgeon for whole channels, on the loss of the layer.

Sources: He, Zhang and Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017 (the fit); Hassibi
and Stork, "Second Order Derivatives for Network Pruning: Optimal Brain Surgeon", NIPS 1992; Frantar, Singh and
Alistarh, "Optimal Brain Compression", NeurIPS 2022 (blocks of columns).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

DAMPINGS = (1e-6, 1e-4, 1e-2, 1.0)
"""Penalties to try, in units of the mean diagonal of ``G``."""
_DAMPING = 1e-4

_BLOCK = 1 << 12
"""So many rows are multiplied at once."""


class Moments:
    """``G`` (g × k+1 × k+1), ``C`` (g × k+1 × n) and ``Σ y²`` (g × n) in float64 over rows as they come."""

    def __init__(self, g: int, k: int, n: int = 0) -> None:
        self.gram, self.cross, self.squares = np.zeros((g, k + 1, k + 1)), np.zeros((g, k + 1, n)), np.zeros((g, n))

    @property
    def rows(self) -> int:
        """How many rows there were."""
        return int(self.gram[0, -1, -1])

    @property
    def variance(self) -> float:
        """How much there is in ``Y`` besides its mean."""
        return max(float(np.sum(self.squares - self.cross[:, -1] ** 2 / max(self.rows, 1))), 0.0)

    def add(self, x: Array, y: Array) -> None:
        """Take in rows ``x`` (g × r × k) and what they should give ``y`` (g × r × n)."""
        for columns, at in _columns(x):
            wanted = y[:, at].astype(np.float64)
            self.gram += columns @ columns.swapaxes(1, 2)
            self.cross += columns @ wanted
            self.squares += np.sum(wanted**2, axis=1)

    def add_inputs(self, x: Array) -> None:
        """Take in rows ``x`` (g × r × k) of which ``give`` says what they should give."""
        for columns, _ in _columns(x):
            self.gram += columns @ columns.swapaxes(1, 2)

    def give(self, weight: Array) -> Moments:
        """The moments of the same rows with what they give by this ``V`` (g × k+1 × n)."""
        found = copy.copy(self)
        found.cross = self.gram @ weight
        found.squares = np.sum(weight * found.cross, axis=1)
        return found

    def error(self, weight: Array) -> float:
        """``‖Y − X V‖²`` in units of the variance of ``Y``, for ``V`` (g × k+1 × n)."""
        noise = self.squares.sum() + float(np.sum(weight * (self.gram @ weight - 2 * self.cross)))
        return max(float(noise), 0.0) / (self.variance or 1.0)


def _columns(x: Array) -> Iterator[tuple[Array, slice]]:
    """Rows (g × r × k) as columns with a one for the bias (g × k+1 × r) in float64, block by block, and which they are.

    Rounded to float32, products of columns that depend on each other are no Gram matrix of anything.
    """
    for start in range(0, x.shape[1], _BLOCK):
        at = slice(start, start + _BLOCK)
        rows = x[:, at].astype(np.float64)
        yield np.concatenate([rows, np.ones_like(rows[..., :1])], axis=2).swapaxes(1, 2), at


def refit_weight(moments: Moments, weight: Array, damping: float, *, bias: bool = True) -> Array:
    """The best ``V`` (g × k+1 × n), held at ``weight`` by ``damping``; its last row stays if it has no ``bias``."""
    found = weight.astype(np.float64)
    for at, gram in enumerate(moments.gram):
        free = len(gram) if bias else len(gram) - 1
        missing = moments.cross[at] - gram @ found[at]
        found[at, :free] += _solve(_damped(gram, damping)[:free, :free], missing[:free])
    return found


def refit_bias(moments: Moments, weight: Array) -> Array:
    """``weight`` (g × k+1 × n) with the best last row."""
    found = weight.astype(np.float64)
    missing = moments.cross[:, -1] - np.einsum("gk,gkn->gn", moments.gram[:, -1], found)
    found[:, -1] += missing / max(moments.rows, 1)
    return found


@dataclass(frozen=True)
class Reader:
    """A layer that reads channels: its moments on the dense model, and the rows of ``V`` that read each."""

    moments: Moments
    blocks: tuple[tuple[int, Array], ...]
    """For each channel the group of the layer, and places (s) among its k columns; as many for each channel."""


def eliminate(readers: Sequence[Reader], damping: float = _DAMPING) -> tuple[Array, Array]:
    """In which order channels are best removed (c), and what has been lost each time (c).

    What is lost is the error of the outputs of all ``readers``, each in units of its variance, after they were
    fitted anew. Numbers of channels are places in ``blocks``, of which all readers have equally many.
    """
    systems = [_System(reader, damping) for reader in readers]
    left = np.arange(len(readers[0].blocks))
    order, lost, total = [], [], 0.0
    while len(left):
        costs = sum(system.costs(left) for system in systems)
        best = int(np.argmin(costs))
        total += float(np.take(costs, best))
        order.append(left[best])
        lost.append(total)
        for system in systems:
            system.remove(left[best])
        left = np.delete(left, best)
    return np.array(order), np.array(lost)


class _System:
    """``H`` and ``V`` of each group of a reader, with ever fewer columns."""

    def __init__(self, reader: Reader, damping: float) -> None:
        moments = reader.moments
        self._groups = np.array([group for group, _ in reader.blocks])
        self._columns = np.stack([columns for _, columns in reader.blocks])
        self._inverse = [np.linalg.inv(_damped(gram, damping)) for gram in moments.gram]
        self._weight = [inverse @ cross for inverse, cross in zip(self._inverse, moments.cross, strict=True)]
        self._unit = moments.variance or 1.0

    def costs(self, channels: Array) -> Array:
        """By how much the error grows without each of these channels."""
        found = np.empty(len(channels))
        for group in np.unique(self._groups[channels]):
            own = self._groups[channels] == group
            columns = self._columns[channels[own]]
            inverse = self._inverse[group][columns[:, :, None], columns[:, None, :]]
            weight = self._weight[group][columns]
            found[own] = np.sum(weight * np.linalg.solve(inverse, weight), axis=(1, 2)) / self._unit
        return found

    def remove(self, channel: int) -> None:
        """Take out a channel, and let all others make up for it."""
        group, columns = self._groups[channel], self._columns[channel]
        inverse, weight = self._inverse[group], self._weight[group]
        left = np.delete(np.arange(len(inverse)), columns)
        lost = np.linalg.solve(inverse[np.ix_(columns, columns)], np.hstack([inverse[columns], weight[columns]]))
        across = inverse[np.ix_(left, columns)]
        self._inverse[group] = inverse[np.ix_(left, left)] - across @ lost[:, left]
        self._weight[group] = weight[left] - across @ lost[:, len(inverse) :]
        others = self._groups == group
        self._columns[others] -= np.searchsorted(np.sort(columns), self._columns[others])


def _damped(gram: Array, damping: float) -> Array:
    """``G + λI`` but for the bias."""
    size = len(gram) - 1
    damped: Array = gram.copy()
    mean = float(np.trace(gram[:size, :size])) / max(size, 1)
    damped.flat[: size * (size + 2) : size + 2] += damping * mean or 1.0
    damped[-1, -1] += 1e-9 * damped[-1, -1] or 1.0
    return damped


def _solve(matrix: Array, right: Array) -> Array:
    from scipy.linalg import cho_factor, cho_solve

    solved: Array = cho_solve(cho_factor(matrix, lower=True, overwrite_a=True), right)
    return solved
