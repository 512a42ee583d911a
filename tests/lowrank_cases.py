"""Convolutions and pictures that tests of low rank split."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxopt.passes.lowrank._stages import Stage, error
from onnxopt.passes.lowrank._svd import Problem

Array = np.ndarray[Any, Any]

each_shape = pytest.mark.parametrize("spatial", [(3,), (3, 2), (1, 3), (2, 3, 2)], ids=str)


def smooth(rng: np.random.Generator, rows: int, c: int, spatial: tuple[int, ...]) -> Array:
    """Patches of pictures with channels and places that have much in common, as rows (c, spatial)."""
    wide = rng.standard_normal((rows, c, *[size + 2 for size in spatial]))
    for axis, size in enumerate(spatial, start=2):
        wide = np.sum([np.take(wide, range(at, at + size), axis) for at in range(3)], axis=0)
    mixed: Array = np.einsum("dc,rc...->rd...", np.random.default_rng(99).standard_normal((c, c)), wide) + 0.5
    return mixed.reshape(rows, -1)


def example(spatial: tuple[int, ...], seed: int = 0, n: int = 7, c: int = 5, rows: int = 400) -> tuple[Array, Problem]:
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal((n, c, *spatial))
    x = smooth(rng, rows, c, spatial)
    return kernel, Problem.dense(x.T @ x, matrix(kernel)).damped(matrix(kernel))


def matrix(kernel: Array) -> Array:
    return kernel.reshape(len(kernel), -1).T


def share(stages: list[Stage], problem: Problem) -> float:
    return error(stages, problem) / problem.energy
