"""A convolution as a sum of products of vectors, one along each axis of its kernel (CP).

    W[c, s₁, s₂, n] = Σ_j A[c, j] S₁[s₁, j] S₂[s₂, j] B[n, j]

is a 1×1 convolution to r channels, a depthwise one along each spatial axis, and a 1×1. Alternating least squares fits
the factors in turns, with the channels whitened by ``Ḡ`` (c × c), the mean over offsets that ``_split`` has. It
starts from singular triplets: those of ``W`` (c × s₁·s₂·n), those of what belongs to each (s₁ × s₂·n), and so on,
which are orthogonal terms that add up to ``W``, of which the largest are taken. A sweep that lowers the error is gone
as far again, and undone from there if the next does not: fifty such sweeps came as near as 150 plain ones do.

There need not be a best sum: terms can grow without bound while they cancel each other ever more nearly (de Silva and
Lim), and rounding such a sum leaves noise. So once the squares of the terms sum up to more than three times that of
``W``, factors pay a penalty ``μ Σ‖factor‖²`` that grows tenfold with each sweep until they no longer do, and then
halves. What is returned is the best that was met within that bound. On layers of trained networks the sum was 4 to 20
without it, and the bound cost at most 2 % of the error.

Then the first and the last stage are fitted in turns on all of ``G``, which makes the error no worse.

Sources: Lebedev, Ganin, Rakhuba, Oseledets and Lempitsky, "Speeding-up Convolutional Neural Networks Using Fine-tuned
CP-Decomposition", ICLR 2015; de Silva and Lim, "Tensor Rank and the Ill-Posedness of the Best Low-Rank Approximation
Problem", SIAM Journal on Matrix Analysis and Applications 2008; Phan, Sobolev, Sozykin, Ermilov, Gusak, Tichavský,
Glukhov, Oseledets and Cichocki, "Stable Low-rank Tensor Decomposition for Compression of Convolutional Neural
Network", ECCV 2020 (the norm of the terms); Mitchell, Ye and De Sterck, "Nesterov Acceleration of Alternating Least
Squares for Canonical Tensor Decomposition: Momentum Step Size Selection and Restart Mechanisms", Numerical Linear
Algebra with Applications 2020.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxopt.passes.lowrank._cholesky import Cholesky
from onnxopt.passes.lowrank._split import refit_first, split_problem
from onnxopt.passes.lowrank._stages import Stage, composed, error, refit_last
from onnxopt.passes.lowrank._svd import Array, Problem, even

_SWEEPS, _FEW_SWEEPS = 50, 5
_LARGEST = 3.0
"""How much the squares of the terms may sum up to, in units of the square of the whole."""
_PENALTY = 1e-8
"""The least ``μ`` but none, for a whole of norm one."""
_ROUNDS = 3


def cp(kernel: Array, problem: Problem, rank: int, *, rough: bool = False) -> list[Stage]:
    """Stages for ``kernel`` (n × c × spatial): 1×1, one depthwise for each spatial axis longer than one, 1×1.

    ``rough``: after a few sweeps.
    """
    n, _, *spatial = kernel.shape
    channels = split_problem(kernel, problem, 0)
    tensor = channels.white.reshape(-1, *[size for size in spatial if size > 1], n)
    start = leading_terms(tensor, rank)
    found = [
        refit_last(_stages([channels.root.coloured(white), *others], spatial), problem)
        for white, *others in (start, alternated(tensor, start, _FEW_SWEEPS if rough else _SWEEPS))
    ]
    stages = min(found, key=lambda each: error(each, problem))
    for _ in range(0 if rough else _ROUNDS):
        behind = composed(stages[1:]).reshape(n, -1).T
        a = refit_first(stages[0].kernel.reshape(rank, -1).T, behind, problem, channels.root)
        stages = refit_last([Stage(a.T.reshape(stages[0].kernel.shape)), *stages[1:]], problem)
    factors = [stage.kernel.reshape(rank, -1).T for stage in stages[:-1]]
    return _stages(even([*factors, stages[-1].kernel.reshape(n, rank)]), spatial)


def leading_terms(tensor: Array, rank: int) -> list[Array]:
    """Factors (axis × r), one for each axis of ``tensor``: its largest parts, then zeros."""
    rest, found = tensor[None], list[Array]()
    for size in tensor.shape[:-1]:
        left, values, right = np.linalg.svd(rest.reshape(len(rest), size, -1), full_matrices=False)
        parts = values.shape[1]
        found = [np.repeat(factor, parts, axis=1) for factor in found]
        found.append(left.transpose(1, 0, 2).reshape(size, -1))
        rest = (values[..., None] * right).reshape(len(rest) * parts, -1)
    largest = np.argsort(-np.linalg.norm(rest, axis=1), kind="stable")[:rank]
    return [np.pad(factor[:, largest], [(0, 0), (0, rank - len(largest))]) for factor in [*found, rest.T]]


def alternated(tensor: Array, factors: Sequence[Array], sweeps: int = _SWEEPS) -> list[Array]:
    """By ``sweeps`` of alternating least squares from ``factors`` (axis × r): the best met within the bound."""
    unit = float(np.linalg.norm(tensor)) or 1.0
    factors = best = ahead = even([*factors[:-1], factors[-1] / unit])
    least, before, penalty = np.inf, np.inf, 0.0
    for _ in range(sweeps):
        found, misfit, size = _sweep(tensor / unit, ahead, penalty)
        found = even(found)
        if size > _LARGEST:
            penalty = max(10 * penalty, _PENALTY)
            factors, ahead, before = found, found, np.inf
        elif misfit > before:
            ahead, before = factors, np.inf
        else:
            penalty /= 2
            if misfit < least:
                best, least = found, misfit
            ahead = [2 * new - old for new, old in zip(found, factors, strict=True)]
            factors, before = found, misfit
    return [*best[:-1], best[-1] * unit]


def _sweep(tensor: Array, factors: Sequence[Array], penalty: float) -> tuple[list[Array], float, float]:
    """Each factor anew; ``‖tensor − sum‖²`` for a tensor of norm one, and the sum of the squares of the terms."""
    *found, last = factors
    axes, term = list(range(len(found))), len(found)
    grams = np.stack([factor.T @ factor for factor in factors])
    behind = np.tensordot(tensor, last, 1)
    for axis in axes:
        others = [part for other in axes if other != axis for part in (found[other], [other, term])]
        wanted = np.einsum(behind, [*axes, term], *others, [axis, term], optimize=True)
        found[axis] = _solved(wanted, np.prod(np.delete(grams, axis, axis=0), axis=0), penalty)
        grams[axis] = found[axis].T @ found[axis]
    before = np.einsum(*[part for axis in axes for part in (found[axis], [axis, term])], [*axes, term])
    wanted = np.tensordot(tensor, before, (axes, axes))
    products = np.prod(grams[:-1], axis=0)
    last = _solved(wanted, products, penalty)
    products = products * (last.T @ last)
    misfit = 1 - 2 * float(np.sum(wanted * last)) + float(np.sum(products))
    return [*found, last], max(misfit, 0.0), float(np.trace(products))


def _solved(wanted: Array, products: Array, penalty: float) -> Array:
    """The factor (axis × r) with ``factor · (products + μI) = wanted``."""
    return Cholesky(products + penalty * np.eye(len(products))).solved(wanted.T).T


def _stages(factors: Sequence[Array], spatial: Sequence[int]) -> list[Stage]:
    """Of factors (c × r), (axis × r) for each spatial axis longer than one, and (n × r)."""
    first, *inner, last = factors
    rank = first.shape[1]
    ones = [1] * len(spatial)
    stages = [Stage(first.T.reshape(rank, -1, *ones))]
    for axis, factor in zip((axis for axis, size in enumerate(spatial) if size > 1), inner, strict=True):
        stages.append(Stage(factor.T.reshape(rank, 1, *ones[:axis], -1, *ones[axis + 1 :]), group=rank))
    return [*stages, Stage(last.reshape(-1, rank, *ones))]
