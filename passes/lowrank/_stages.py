"""Convolutions one behind the other in place of one.

Stage ``i`` has a kernel (n × c / group × spatial) as ONNX has it, and reads what stage ``i − 1`` makes. Since none
has a bias and nothing lies between them, they are one convolution, whose kernel is the full convolution of theirs:

    K[n, c, u] = Σ_r Σ_{v + w = u} K₂[n, r, v] K₁[r, c, w].

The last stage is linear in its own kernel, and so is fitted anew in closed form: what it multiplies are the rows of
the whole layer times a matrix ``F``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from onnxopt.passes.lowrank._svd import Array, Problem


@dataclass(frozen=True, eq=False)
class Stage:
    """A convolution without bias."""

    kernel: Array
    """n × c / group × spatial"""
    group: int = 1


def parameters(stages: Sequence[Stage]) -> int:
    """How many weights they have."""
    return sum(stage.kernel.size for stage in stages)


def composed(stages: Sequence[Stage]) -> Array:
    """The kernel (n × c × spatial) of all stages, the first of which comes first."""
    return reduce(_behind, [_ungrouped(stage) for stage in stages])


def error(stages: Sequence[Stage], problem: Problem) -> float:
    """``‖Y − X V‖²`` of them."""
    kernel = composed(stages)
    return problem.error(kernel.reshape(len(kernel), -1).T)


def features(stages: Sequence[Stage]) -> Array:
    """``F`` (k × f): rows (c, spatial) of the whole layer times ``F`` are the rows (r, spatial) of the last stage."""
    before, last = composed(stages[:-1]), stages[-1].kernel.shape[2:]
    r, c, *spatial = before.shape
    found = np.zeros((c, *_sizes(spatial, last), r, *last))
    for at in np.ndindex(*last):
        found[(slice(None), *_place(at, spatial), slice(None), *at)] = np.moveaxis(before, 0, -1)
    return found.reshape(-1, before.shape[0] * int(np.prod(last)))


def refit_last(stages: Sequence[Stage], problem: Problem) -> list[Stage]:
    """With the last stage, which must not be grouped, of least error for what the others give.

    What the problem does not show stays as it is.
    """
    kernel = stages[-1].kernel
    found = problem.through(features(stages)).nearest(kernel.reshape(len(kernel), -1).T)
    return [*stages[:-1], Stage(found.T.reshape(kernel.shape))]


def _behind(first: Array, second: Array) -> Array:
    """The kernel of ``second`` behind ``first``."""
    spatial = first.shape[2:]
    found = np.zeros((len(second), first.shape[1], *_sizes(spatial, second.shape[2:])))
    for at in np.ndindex(*second.shape[2:]):
        found[(slice(None), slice(None), *_place(at, spatial))] += np.tensordot(second[(..., *at)], first, 1)
    return found


def _ungrouped(stage: Stage) -> Array:
    """The kernel (n × c × spatial), with zeros between groups."""
    n, c, *spatial = stage.kernel.shape
    group = np.arange(stage.group)
    found = np.zeros((stage.group, n // stage.group, stage.group, c, *spatial))
    found[group, :, group] = stage.kernel.reshape(stage.group, -1, c, *spatial)
    return found.reshape(n, stage.group * c, *spatial)


def _sizes(first: Sequence[int], second: Sequence[int]) -> list[int]:
    return [a + b - 1 for a, b in zip(first, second, strict=True)]


def _place(start: Sequence[int], sizes: Sequence[int]) -> list[slice]:
    return [slice(at, at + size) for at, size in zip(start, sizes, strict=True)]
