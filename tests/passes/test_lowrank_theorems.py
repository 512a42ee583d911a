"""Theorems on the errors of what convolutions are split into, without data and with, and oracles for single steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnxopt.passes.lowrank._cp as cp_module
import onnxopt.passes.lowrank._split as split_module
import onnxopt.passes.lowrank._tucker as tucker_module
from onnxopt.passes.lowrank._cp import alternated, cp, leading_terms
from onnxopt.passes.lowrank._separable import separable
from onnxopt.passes.lowrank._split import split, split_problem
from onnxopt.passes.lowrank._stages import error
from onnxopt.passes.lowrank._svd import Problem
from onnxopt.passes.lowrank._tucker import tucker
from tests.lowrank_cases import each_shape, example, matrix, share, smooth

Array = np.ndarray[Any, Any]


def tail(values: Array, rank: int) -> float:
    return float(np.sum(values[rank:] ** 2))


def singular_values(kernel: Array, axis: int) -> Array:
    return np.linalg.svd(np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1), compute_uv=False)


@each_shape
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_the_whole_kernel_first_is_reduced_rank_regression(spatial: tuple[int, ...], rank: int) -> None:
    kernel, problem = example(spatial)
    stages = split(kernel, problem, rank, len(spatial))
    np.testing.assert_allclose(error(stages, problem), problem.errors()[rank], rtol=1e-7)


@each_shape
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_without_data_a_split_is_a_truncated_svd(spatial: tuple[int, ...], rank: int) -> None:
    kernel, _ = example(spatial)
    problem = Problem.data_free(matrix(kernel))
    for axes in range(len(spatial) + 1):
        rows = int(np.prod(kernel.shape[1 : 2 + axes]))
        unfolded = np.moveaxis(kernel, 0, -1).reshape(rows, -1)
        expected = tail(np.linalg.svd(unfolded, compute_uv=False), rank)
        np.testing.assert_allclose(error(split(kernel, problem, rank, axes), problem), expected, rtol=1e-9)
        np.testing.assert_allclose(split_problem(kernel, problem, axes).errors()[rank], expected, rtol=1e-9)


def test_a_split_starts_from_the_mean_over_the_other_axes() -> None:
    """Against the same from rows, place by place."""
    kernel, _ = example((3, 2))
    x = smooth(np.random.default_rng(0), 100, 5, (3, 2)).reshape(-1, 15, 2)
    problem = Problem.dense(np.tensordot(x, x, (0, 0)).reshape(30, 30), matrix(kernel))
    found = split_problem(kernel, problem, 1)
    np.testing.assert_allclose(found.gram, sum(x[..., at].T @ x[..., at] for at in range(2)) / 2, rtol=1e-10)
    weight = np.moveaxis(kernel, 0, -1).reshape(15, 14)
    np.testing.assert_allclose(found.root.coloured(found.white), weight, rtol=1e-6, atol=1e-6)


@each_shape
def test_the_first_stage_is_fitted_as_numpy_does(spatial: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Conjugate gradients are done after as many steps as there are unknowns."""
    kernel, problem = example(spatial, n=4, c=3)
    start = split_problem(kernel, problem, 0)
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((3, 2)), rng.standard_normal((2, kernel[0, 0].size, 4))
    upper = np.linalg.cholesky(problem.gram).T
    outputs = np.einsum("kcs,jsn->kncj", upper.reshape(len(upper), 3, -1), b).reshape(-1, 6)
    wanted = (np.linalg.solve(upper.T, problem.cross)).ravel()
    expected = np.linalg.lstsq(outputs, wanted, rcond=None)[0].reshape(3, 2)
    monkeypatch.setattr(split_module, "_STEPS", 6)
    found = split_module.refit_first(a, b.reshape(-1, 4), problem, start.root)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ranks", [(2, 2), (3, 2), (4, 3)])
def test_tucker_without_data_is_orthogonal_iteration(
    seed: int, ranks: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One round is no worse than one of De Lathauwer, De Moor and Vandewalle's, in turns over inputs and outputs."""
    kernel, _ = example((3, 3), seed)
    monkeypatch.setattr(tucker_module, "_ROUNDS", 1)

    def leading(tensor: Array, axis: int, rank: int) -> Array:
        found: Array = np.linalg.svd(np.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1))[0][:, :rank]
        return found

    inputs = leading(kernel, 1, ranks[0])
    outputs = leading(np.einsum("ncxy,ci->nixy", kernel, inputs), 0, ranks[1])
    inputs = leading(np.einsum("ncxy,nj->jcxy", kernel, outputs), 1, ranks[0])
    outputs = leading(np.einsum("ncxy,ci->nixy", kernel, inputs), 0, ranks[1])
    expected = np.sum(kernel**2) - np.sum(np.einsum("ncxy,ci,nj->jixy", kernel, inputs, outputs) ** 2)
    found = error(tucker(kernel, Problem.data_free(matrix(kernel)), ranks), Problem.data_free(matrix(kernel)))
    assert found <= expected * (1 + 1e-9)


@each_shape
@pytest.mark.parametrize("ranks", [(1, 1), (2, 3), (4, 2)])
def test_without_data_tucker_is_between_its_bounds(spatial: tuple[int, ...], ranks: tuple[int, int]) -> None:
    """No better than either axis allows, and no worse than the truncated higher-order SVD."""
    kernel, _ = example(spatial)
    cut = [tail(singular_values(kernel, axis), rank) for axis, rank in ((1, ranks[0]), (0, ranks[1]))]
    bases = [np.linalg.svd(np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1))[0] for axis in (1, 0)]
    first, last = (basis[:, :rank] for basis, rank in zip(bases, ranks, strict=True))
    higher_order = np.einsum("cd,nm,md...->nc...", first @ first.T, last @ last.T, kernel)
    problem = Problem.data_free(matrix(kernel))
    found = error(tucker(kernel, problem, ranks), problem)
    assert max(cut) * (1 - 1e-9) <= found <= np.sum((kernel - higher_order) ** 2) * (1 + 1e-9)
    assert found <= sum(cut)


@each_shape
@pytest.mark.parametrize("terms", [1, 2])
def test_without_data_each_channel_is_a_truncated_svd(spatial: tuple[int, ...], terms: int) -> None:
    kernel, _ = example(spatial)
    problem = Problem.data_free(matrix(kernel))
    values = [np.linalg.svd(kernel[:, c].reshape(7, -1), compute_uv=False) for c in range(5)]
    expected = sum(tail(each, terms) for each in values)
    np.testing.assert_allclose(error(separable(kernel, problem, terms), problem), expected, rtol=1e-9)


def test_inputs_that_are_independent_make_separable_parts_independent() -> None:
    """Channels that have nothing in common: each is a reduced-rank regression of its own."""
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((7, 5, 3, 3))
    blocks = [rows.T @ rows for rows in rng.standard_normal((5, 30, 9)) @ rng.standard_normal((5, 9, 9))]
    gram = np.zeros((5, 9, 5, 9))
    for c, block in enumerate(blocks):
        gram[c, :, c] = block
    problem = Problem.dense(gram.reshape(45, 45), matrix(kernel))
    parts = [Problem.dense(block, kernel[:, c].reshape(7, 9).T) for c, block in enumerate(blocks)]
    expected = sum(part.errors()[2] for part in parts)
    np.testing.assert_allclose(error(separable(kernel, problem, 2), problem), expected, rtol=1e-7)


# -- sums of products without a best ---------------------------------------------------------------------------


def border(size: int = 4) -> Array:
    """A tensor of rank 3 that sums of 2 terms come near to without bound: of de Silva and Lim."""
    a, b = np.eye(size)[:2]
    found: Array = np.sum([np.einsum("i,j,k->ijk", *each) for each in ((a, a, b), (a, b, a), (b, a, a))], axis=0)
    return found


def terms(factors: list[Array]) -> float:
    """The sum of the squares of the terms."""
    return float(np.sum(np.prod([np.sum(factor**2, axis=0) for factor in factors], axis=0)))


def nearly(tensor: Array, factors: list[Array]) -> float:
    return float(np.sum((tensor - np.einsum("ir,jr,kr->ijk", *factors)) ** 2) / np.sum(tensor**2))


def test_terms_that_cancel_each_other_are_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cp_module, "_SWEEPS", 1000)
    rng = np.random.default_rng(0)
    tensor = border() + 1e-4 * rng.standard_normal((4, 4, 4))
    start = leading_terms(tensor, 2)
    bounded = alternated(tensor, start)
    assert terms(bounded) <= cp_module._LARGEST * np.sum(tensor**2) * (1 + 1e-9)
    assert nearly(tensor, bounded) < 0.5 * nearly(tensor, start)
    monkeypatch.setattr(cp_module, "_PENALTY", 0.0)
    assert nearly(tensor, bounded) < 0.9 * nearly(tensor, alternated(tensor, start)), "the penalty is of no use"
    monkeypatch.setattr(cp_module, "_LARGEST", np.inf)
    assert terms(alternated(tensor, start)) > 3 * terms(bounded)


def test_the_best_sum_on_the_way_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the penalty sets in, and sums get worse for a while."""
    tensor = border() + 1e-4 * np.random.default_rng(0).standard_normal((4, 4, 4))
    start = leading_terms(tensor, 2)
    errors = [nearly(tensor, start)]
    for sweeps in range(1, 80):
        monkeypatch.setattr(cp_module, "_SWEEPS", sweeps)
        errors.append(nearly(tensor, alternated(tensor, start)))
    assert (np.diff(errors) <= 1e-12).all()


def test_stages_of_a_degenerate_kernel_are_of_its_size() -> None:
    kernel = np.moveaxis(border(), 1, 2)[:, :, :3]
    problem = Problem.data_free(matrix(kernel))
    stages = cp(kernel, problem, 2)
    factors = [stage.kernel.reshape(2, -1).T for stage in stages[:-1]] + [stages[-1].kernel[:, :, 0]]
    assert terms(factors) <= 1.5 * cp_module._LARGEST * np.sum(kernel**2)
    assert 0 < share(stages, problem) < 0.34
