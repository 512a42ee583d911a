"""One convolution as two with few channels between them: the first sees some axes of the kernel, the second the rest.

With rows of the kernel numbered (d, s), ``d`` the input channels and the first spatial axes, ``s`` the remaining
ones,

    W[(d, s), n] = Σ_j A[d, j] B[(j, s), n],

a factorization of rank r of ``W`` (d × s·n). With no spatial axis in the first it is a 1×1 convolution to r channels
and the whole kernel on these; with one a k×1 and a 1×k convolution; with all the whole kernel to r channels and a
1×1.

With all, the best factors are those of reduced-rank regression. Otherwise the error also has products of inputs at
different offsets ``s``. Without those, and with the mean ``Ḡ`` (d × d) of the blocks of ``G`` at each offset, it is
``tr(ΔᵀḠ Δ)`` for ``Δ`` (d × s·n), and reduced-rank regression solves that. From there ``A`` and ``B`` are fitted in
turns on all of ``G``: ``B`` in closed form, ``A`` by two steps of conjugate gradients, which have ``Ḡ⁻¹ · (B Bᵀ)⁻¹``
as their preconditioner, the solution but for those products. No step makes the error worse. On layers of trained
networks three rounds took away 5 to 30 % of it, and most of what any number of rounds does.

Sources: Jaderberg, Vedaldi and Zisserman, "Speeding up Convolutional Neural Networks with Low Rank Expansions", BMVC
2014 (k×1 and 1×k); Denton, Zaremba, Bruna, LeCun and Fergus, "Exploiting Linear Structure Within Convolutional
Networks for Efficient Evaluation", NIPS 2014 (1×1 first); Zhang, Zou, He and Sun, "Accelerating Very Deep
Convolutional Networks for Classification and Detection", TPAMI 2016 (1×1 last, on data).
"""

from __future__ import annotations

import math

import numpy as np

from onnxopt.passes.lowrank._cholesky import Cholesky
from onnxopt.passes.lowrank._stages import Stage
from onnxopt.passes.lowrank._svd import Array, Problem, balanced

_ROUNDS = 3
_STEPS = 2
_ROUNDING = 1e-14
"""A step that takes less than this share of ``‖Y‖²`` is one in rounding."""


def split(kernel: Array, problem: Problem, rank: int, axes: int, *, rough: bool = False) -> list[Stage]:
    """Two stages for ``kernel`` (n × c × spatial), of which the first has its first ``axes`` spatial axes.

    Channels beyond the largest rank that ``split_problem`` has an error for are zero. ``rough``: with ``A`` as it is at
    the start.
    """
    n, c, *spatial = kernel.shape
    start = split_problem(kernel, problem, axes)
    a, b = start.factors(rank)
    b = b.reshape(-1, n)
    if axes < len(spatial):
        for _ in range(0 if rough else _ROUNDS):
            b = problem.through(a).nearest(b)
            a = refit_first(a, b, problem, start.root)
        b = problem.through(a).nearest(b)
    a, b = balanced(a, b.reshape(rank, -1))
    ones = [1] * len(spatial)
    return [
        Stage(a.T.reshape(rank, c, *spatial[:axes], *ones[axes:])),
        Stage(b.reshape(-1, n).T.reshape(n, rank, *ones[:axes], *spatial[axes:])),
    ]


def split_problem(kernel: Array, problem: Problem, axes: int) -> Problem:
    """What ``split`` starts from: a problem of ``d`` inputs and ``s·n`` outputs, whose ``errors`` are estimates."""
    n, c, *spatial = kernel.shape
    if axes == len(spatial):
        return problem
    d = c * math.prod(spatial[:axes])
    s = len(problem.gram) // d
    mean = np.einsum("dses->de", problem.gram.reshape(d, s, d, s)) / s
    return Problem.dense(mean, problem.nearest(kernel.reshape(n, -1).T).reshape(d, s * n))


def refit_first(a: Array, b: Array, problem: Problem, root: Cholesky) -> Array:
    """A better ``A`` (d × r) for ``B`` (r·s × n), with ``root`` that of ``Ḡ``."""
    d, r = a.shape
    wide = b.reshape(r, -1)
    right = Cholesky(wide @ wide.T)
    products = (b @ b.T).reshape(len(b), r, -1)

    def curved(step: Array) -> Array:
        """``G · step · B`` (k × n) times ``Bᵀ``."""
        seen = (step.T @ problem.gram.reshape(d, -1)).reshape(len(b), d, -1)
        found: Array = np.tensordot(seen, products, ((0, 2), (0, 2)))
        return found

    missing = problem.cross.reshape(d, -1) @ wide.T - curved(a)
    step, before = np.zeros_like(a), np.inf
    for _ in range(_STEPS):
        ahead = right.solved(root.solved(missing).T).T
        slope = float(np.sum(missing * ahead))
        if slope <= _ROUNDING * problem.energy:
            break
        step = ahead + slope / before * step
        bent = curved(step)
        length = slope / float(np.sum(step * bent))
        a = a + length * step
        missing -= length * bent
        before = slope
    return a
