"""The best factors of a matrix, measured by itself or by what it does to data.

A layer makes rows ``Y = X W`` of its outputs from rows ``X`` of its inputs, with ``W`` (k × n). In its place comes
``X A B``, with ``A`` (k × r) and ``B`` (r × n). No matrix of rank ``r`` is nearer to ``W`` than its ``r`` largest
singular triplets. What counts are the outputs, though, and all that is needed of the data for those are the moments
``G = XᵀX``, ``C = XᵀY`` and ``‖Y‖²``, since

    ‖Y − X V‖² = ‖Y‖² − 2 tr(VᵀC) + tr(VᵀG V).

With ``G = RᵀR`` and the singular triplets ``σᵢ, uᵢ, qᵢ`` of ``M = R⁻ᵀC``, the least error at rank ``r`` is ``‖Y‖² −
Σ_{i≤r} σᵢ²``, that of ``A B = R⁻¹ Σ_{i≤r} σᵢ uᵢ qᵢᵀ``: reduced-rank regression. The eigenvectors of the smaller of
``MᵀM`` and ``M Mᵀ`` give errors and factors of all ranks at once, for ``A B`` is ``R⁻¹ M`` with its outputs projected
on the ``qᵢ``, or ``R⁻¹`` times the projection of ``M`` on the ``uᵢ``; nothing is divided by a small ``σᵢ``.

Without data ``G = I`` and ``C = W``, which gives the singular triplets of ``W`` again.

Data may show some directions only. ``damped`` holds the others at the weight that is there by a penalty ``λ ‖V −
W‖²``: the same as ``k`` more rows ``√λ I`` of input with outputs ``√λ W``, so that it is a problem like any other.

Sources: Eckart and Young, "The Approximation of One Matrix by Another of Lower Rank", Psychometrika 1936; Izenman,
"Reduced-Rank Regression for the Multivariate Linear Model", Journal of Multivariate Analysis 1975; Zhang, Zou, He and
Sun, "Accelerating Very Deep Convolutional Networks for Classification and Detection", TPAMI 2016 (for layers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from onnxopt.passes.lowrank._cholesky import Cholesky

Array = np.ndarray[Any, Any]

_DAMPING = 1e-3
"""On layers of trained networks the error on other rows was the same within 1 % from 1e-8 to 1e-2, a little better the
larger; 1 did better with fewer rows than inputs, and worse with more."""


@dataclass(frozen=True, eq=False)
class Problem:
    """``min ‖Y − X V‖²``, all in float64."""

    gram: Array
    """``XᵀX`` (k × k)"""
    cross: Array
    """``XᵀY`` (k × n)"""
    energy: float
    """``‖Y‖²``"""

    @classmethod
    def dense(cls, gram: Array, weight: Array) -> Problem:
        """For inputs as the layer with this ``weight`` (k × n) has them: ``Y = X W``."""
        cross = gram @ weight
        return cls(gram, cross, float(np.sum(weight * cross)))

    @classmethod
    def data_free(cls, weight: Array) -> Problem:
        """For inputs of which nothing is known: the error is the distance from ``weight`` (k × n)."""
        weight = weight.astype(np.float64)
        return cls(np.eye(len(weight)), weight, float(np.sum(weight**2)))

    def damped(self, weight: Array, damping: float = _DAMPING) -> Problem:
        """With a penalty for what moves away from ``weight`` (k × n), in units of the mean diagonal of ``G``."""
        k = len(self.gram)
        penalty = damping * float(np.trace(self.gram)) / k or 1.0
        gram = self.gram.copy()
        gram.flat[:: k + 1] += penalty
        energy = self.energy + penalty * float(np.sum(np.square(weight, dtype=np.float64)))
        return Problem(gram, self.cross + penalty * weight, energy)

    def of_outputs(self, step: int) -> Problem:
        """The problem of every ``step``-th output, with an error that is off by a constant."""
        return Problem(self.gram, self.cross[:, ::step], self.energy)

    def through(self, first: Array) -> Problem:
        """The problem of what comes behind ``first`` (d × f), or behind as many such as there are groups (g × d × f).

        Each is applied to every one of ``s`` parts of a group. Columns of ``X`` are numbered (g, d, s) and become
        (g, f, s).
        """
        g, d, f = first.shape if first.ndim == 3 else (1, *first.shape)
        k, n = self.cross.shape
        s = k // (g * d)
        first = first.reshape(g, d, f)
        rows = (first.swapaxes(1, 2) @ self.gram.reshape(g, d, s * k)).reshape(g * f * s, g, d, s)
        gram = rows.transpose(1, 0, 3, 2).reshape(g, -1, d) @ first
        gram = gram.reshape(g, g * f * s, s, f).transpose(1, 0, 3, 2).reshape(g * f * s, g * f * s)
        cross = first.swapaxes(1, 2) @ self.cross.reshape(g, d, s * n)
        return Problem(gram, cross.reshape(g * f * s, n), self.energy)

    def error(self, weight: Array) -> float:
        """``‖Y − X V‖²`` of a ``weight`` (k × n)."""
        return max(self.energy + float(np.sum(weight * (self.gram @ weight - 2 * self.cross))), 0.0)

    def nearest(self, weight: Array) -> Array:
        """Of all with the least error the one nearest to ``weight`` (k × n)."""
        found: Array = weight + self.root.solved(self.cross - self.gram @ weight)
        return found

    def errors(self) -> Array:
        """The least error of any weight of rank 0, 1, …, min(k, n)."""
        squares = self._spectrum[0]
        left = np.append(np.cumsum(squares[::-1])[::-1], 0)
        found: Array = left + max(self.energy - float(squares.sum()), 0.0)
        return found

    def factors(self, rank: int) -> tuple[Array, Array]:
        """``A`` (k × r) and ``B`` (r × n) of least error; zeros from min(k, n) on."""
        k, n = self.cross.shape
        vectors = np.zeros((min(k, n), rank))
        kept = self._spectrum[1][:, :rank]
        vectors[:, : kept.shape[1]] = kept
        if n <= k:
            return self.root.coloured(self.white @ vectors), vectors.T
        return self.root.coloured(vectors), vectors.T @ self.white

    @cached_property
    def root(self) -> Cholesky:
        """``R`` (k × k)"""
        return Cholesky(self.gram)

    @cached_property
    def white(self) -> Array:
        """``M`` (k × n)"""
        return self.root.whitened(self.cross)

    @cached_property
    def _spectrum(self) -> tuple[Array, Array]:
        """``σ²``, the largest first, and the singular vectors of ``M`` on its shorter side, as columns."""
        k, n = self.cross.shape
        squares, vectors = np.linalg.eigh(self.white.T @ self.white if n <= k else self.white @ self.white.T)
        return np.maximum(squares[::-1], 0), vectors[:, ::-1]


def truncated(weight: Array, rank: int) -> tuple[Array, Array]:
    """``A`` (k × r) and ``B`` (r × n), balanced, whose product is nearest to ``weight`` (k × n)."""
    left, values, right = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    root = np.sqrt(values[:rank])
    return left[:, :rank] * root, root[:, None] * right[:rank]


def balanced(a: Array, b: Array) -> tuple[Array, Array]:
    """The same product, with columns of ``a`` (k × r) as long as the rows of ``b`` (r × n) that they meet."""
    left, right = even([a, b.T])
    return left, right.T


def even(factors: Sequence[Array]) -> list[Array]:
    """The same products of columns, with the columns of all ``factors`` (each × r) of equal length."""
    lengths = [np.linalg.norm(factor, axis=0) for factor in factors]
    common = np.prod(lengths, axis=0) ** (1 / len(factors))
    return [
        factor * np.divide(common, length, out=np.zeros_like(common), where=length > 0)
        for factor, length in zip(factors, lengths, strict=True)
    ]
