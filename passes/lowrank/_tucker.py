"""A convolution on few input channels that makes few output channels: 1×1, the kernel's size, 1×1 (Tucker-2).

    W[(c, s), n] = Σ_i Σ_j A[c, i] K[(i, s), j] B[j, n],

with ``A`` (c × r₁), ``K`` (r₁·s × r₂) and ``B`` (r₂ × n). Given ``A``, reduced-rank regression on what is behind it
gives the best ``K`` and ``B``. It starts with the ``A`` of the split into 1×1 and the whole kernel (see ``_split``),
which without data is that of the truncated higher-order SVD. Then, as long as the error falls,

- ``A`` is the best for the kernel projected on the rows of ``B``, in the problem of channels that ``_split`` starts
  from: without data this is higher-order orthogonal iteration;
- ``A`` is fitted anew to ``K B`` on all of ``G``.

What does not lower the error is not taken.

Sources: De Lathauwer, De Moor and Vandewalle, "On the Best Rank-1 and Rank-(R₁, R₂, …, R_N) Approximation of
Higher-Order Tensors", SIAM Journal on Matrix Analysis and Applications 2000; Kim, Park, Yoo, Choi, Yang and Shin,
"Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications", ICLR 2016.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxopt.passes.lowrank._split import refit_first, split_problem
from onnxopt.passes.lowrank._stages import Stage
from onnxopt.passes.lowrank._svd import Array, Problem, balanced

_ROUNDS = 5
_GAIN = 1e-3
"""A round that takes less of the error than this is the last."""


def tucker(kernel: Array, problem: Problem, ranks: tuple[int, int], *, rough: bool = False) -> list[Stage]:
    """Three stages for ``kernel`` (n × c × spatial), with ``ranks`` (r₁ and r₂) channels between them; ``rough``: with
    ``A`` as it is at the start."""
    n, c, *spatial = kernel.shape
    channels = split_problem(kernel, problem, 0)
    target = problem.nearest(kernel.reshape(n, -1).T)

    def iterated(found: _Factors) -> Array:
        basis = np.linalg.qr(found.b.T)[0]
        return Problem.dense(channels.gram, (target @ basis).reshape(c, -1)).factors(ranks[0])[0]

    def refitted(found: _Factors) -> Array:
        return refit_first(found.a, found.core @ found.b, problem, channels.root)

    best = _behind(channels.factors(ranks[0])[0], problem, ranks[1])
    for step in () if rough else (iterated, refitted):
        best = _improved(best, step, problem)
    core, b = balanced(best.core, best.b)
    a, core = balanced(best.a, core.reshape(ranks[0], -1))
    ones = [1] * len(spatial)
    return [
        Stage(a.T.reshape(-1, c, *ones)),
        Stage(core.reshape(-1, ranks[1]).T.reshape(ranks[1], ranks[0], *spatial)),
        Stage(b.T.reshape(n, -1, *ones)),
    ]


@dataclass(frozen=True, eq=False)
class _Factors:
    a: Array
    core: Array
    b: Array
    error: float


def _behind(a: Array, problem: Problem, rank: int) -> _Factors:
    """The best core and ``B`` for ``a``."""
    inner = problem.through(a)
    errors = inner.errors()
    return _Factors(a, *inner.factors(rank), float(errors[min(rank, len(errors) - 1)]))


def _improved(best: _Factors, step: Callable[[_Factors], Array], problem: Problem) -> _Factors:
    """After as many steps to another ``A`` as pay."""
    for _ in range(_ROUNDS):
        found = _behind(step(best), problem, len(best.b))
        if not found.error < (1 - _GAIN) * best.error:
            break
        best = found
    return best
