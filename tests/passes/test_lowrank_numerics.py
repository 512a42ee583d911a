"""Reduced-rank regression from moments against numpy on all rows, and stages against convolutions one by one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import correlate

from onnxopt.passes.lowrank._cholesky import Cholesky
from onnxopt.passes.lowrank._stages import Stage, composed, error, features, parameters, refit_last
from onnxopt.passes.lowrank._svd import Problem, balanced, even, truncated

Array = np.ndarray[Any, Any]

SHAPES = [(7, 5, 40), (5, 7, 40), (6, 6, 6), (7, 5, 4), (5, 9, 3), (6, 1, 20), (1, 6, 20)]
"""Inputs k, outputs n, and rows: more than inputs, and fewer."""
sizes = st.integers(1, 8)
seeds = st.integers(0, 1000)


def correlated(rng: np.random.Generator, rows: int, k: int) -> Array:
    """Rows whose columns have much in common, and sizes that differ."""
    return rng.standard_normal((rows, k)) @ rng.standard_normal((k, k)) * np.geomspace(1, 30, k) + 1


def rows_of(k: int, n: int, rows: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """Inputs, outputs that no weight gives, and the weight that comes near."""
    rng = np.random.default_rng(seed)
    x, weight = correlated(rng, rows, k), rng.standard_normal((k, n))
    return x, x @ weight + 3 * rng.standard_normal((rows, n)), weight


def from_rows(x: Array, y: Array) -> Problem:
    return Problem(x.T @ x, x.T @ y, float(np.sum(y**2)))


def squares(values: Array) -> float:
    return float(np.sum(values**2))


# -- one matrix ------------------------------------------------------------------------------------------------


@given(sizes, sizes, st.integers(1, 9), seeds)
def test_no_matrix_of_that_rank_is_nearer(k: int, n: int, rank: int, seed: int) -> None:
    """Eckart and Young: what is left are the other singular values."""
    weight = np.random.default_rng(seed).standard_normal((k, n))
    values = np.linalg.svd(weight, compute_uv=False)
    a, b = truncated(weight, rank)
    assert a.shape == (k, min(rank, k, n))
    np.testing.assert_allclose(squares(weight - a @ b), squares(values[rank:]), atol=1e-12)
    free = Problem.data_free(weight)
    np.testing.assert_allclose(free.errors(), [squares(values[r:]) for r in range(len(values) + 1)], atol=1e-12)
    a, b = free.factors(rank)
    assert a.shape == (k, rank)
    assert b.shape == (rank, n)
    np.testing.assert_allclose(squares(weight - a @ b), squares(values[rank:]), atol=1e-12)


@given(sizes, sizes, st.integers(1, 8), seeds)
def test_balanced_factors_meet_with_equal_length(k: int, n: int, rank: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((k, rank)) * np.geomspace(1e-6, 1e6, rank), rng.standard_normal((rank, n))
    b[0] = 0
    left, right = balanced(a, b)
    np.testing.assert_allclose(left @ right, a @ b, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1), rtol=1e-12)


def test_even_factors_have_the_same_products() -> None:
    rng = np.random.default_rng(0)
    factors = [rng.standard_normal((size, 4)) * scale for size, scale in ((3, 1e-3), (5, 1.0), (2, 1e4))]
    found = even(factors)
    np.testing.assert_allclose(
        np.einsum("ar,br,cr->abcr", *found), np.einsum("ar,br,cr->abcr", *factors), rtol=1e-12, atol=1e-12
    )
    lengths = [np.linalg.norm(factor, axis=0) for factor in found]
    np.testing.assert_allclose(lengths[1:], [lengths[0]] * 2, rtol=1e-12)


# -- on data ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "n", "rows"), SHAPES)
def test_the_error_is_that_of_all_rows(k: int, n: int, rows: int) -> None:
    x, y, weight = rows_of(k, n, rows)
    np.testing.assert_allclose(from_rows(x, y).error(weight), squares(y - x @ weight), rtol=1e-9)
    dense = Problem.dense(x.T @ x, weight)
    np.testing.assert_allclose(dense.energy, squares(x @ weight), rtol=1e-9)
    np.testing.assert_allclose(dense.error(0.5 * weight), squares(0.5 * x @ weight), rtol=1e-9)
    assert dense.error(weight) <= 1e-12 * dense.energy


@pytest.mark.parametrize(("k", "n", "rows"), SHAPES)
def test_errors_are_those_of_projected_outputs(k: int, n: int, rows: int) -> None:
    """On all rows: what no weight gives, and the singular values that are cut from what the best weight gives."""
    x, y, _ = rows_of(k, n, rows)
    given_best = x @ np.linalg.lstsq(x, y, rcond=None)[0]
    values = np.linalg.svd(given_best, compute_uv=False)
    expected = [squares(y - given_best) + squares(values[r:]) for r in range(min(k, n) + 1)]
    np.testing.assert_allclose(from_rows(x, y).errors(), expected, atol=1e-8 * squares(y))


@pytest.mark.parametrize("damping", [0.0, 1e-3])
@pytest.mark.parametrize(("k", "n", "rows"), SHAPES)
def test_factors_have_the_error_that_is_told(k: int, n: int, rows: int, damping: float) -> None:
    x, y, weight = rows_of(k, n, rows)
    problem = from_rows(x, y)
    if damping:
        problem = problem.damped(weight, damping)
    errors = problem.errors()
    assert len(errors) == min(k, n) + 1
    assert (np.diff(errors) <= 0).all()
    for rank in range(min(k, n) + 1):
        a, b = problem.factors(rank)
        assert a.shape == (k, rank)
        assert b.shape == (rank, n)
        np.testing.assert_allclose(problem.error(a @ b), errors[rank], atol=1e-8 * problem.energy)


@settings(max_examples=50)
@given(sizes, sizes, st.integers(1, 30), st.integers(1, 8), seeds)
def test_on_data_it_is_no_worse_than_without(k: int, n: int, rows: int, rank: int, seed: int) -> None:
    x, y, weight = rows_of(k, n, rows, seed)
    for problem in (from_rows(x, y), Problem.dense(x.T @ x, weight), from_rows(x, y).damped(weight)):
        plain, aware = truncated(weight, rank), problem.factors(rank)
        assert problem.error(aware[0] @ aware[1]) <= problem.error(plain[0] @ plain[1]) + 1e-9 * problem.energy


@pytest.mark.parametrize(("k", "n", "rows"), SHAPES)
def test_no_other_factors_of_that_rank_are_better(k: int, n: int, rows: int) -> None:
    x, y, _ = rows_of(k, n, rows)
    problem, rng = from_rows(x, y), np.random.default_rng(1)
    for rank in range(1, min(k, n) + 1):
        a, b = problem.factors(rank)
        least = problem.error(a @ b)
        for scale in (1e-3, 1e-2, 0.1, 1.0):
            for _ in range(20):
                a_moved = a + scale * np.abs(a).max() * rng.standard_normal(a.shape)
                b_moved = b + scale * np.abs(b).max() * rng.standard_normal(b.shape)
                assert squares(y - x @ a_moved @ b_moved) >= least - 1e-9 * problem.energy


@pytest.mark.parametrize(("k", "n", "rows"), SHAPES)
def test_damping_is_more_rows(k: int, n: int, rows: int) -> None:
    x, y, weight = rows_of(k, n, rows)
    root = np.sqrt(0.1 * np.mean(np.sum(x**2, axis=0)))
    explicit = from_rows(np.vstack([x, root * np.eye(k)]), np.vstack([y, root * weight]))
    damped = from_rows(x, y).damped(weight, 0.1)
    np.testing.assert_allclose(damped.gram, explicit.gram, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(damped.cross, explicit.cross, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(damped.energy, explicit.energy, rtol=1e-12)


def test_damped_weights_stay_where_the_data_show_nothing() -> None:
    x, _, weight = rows_of(7, 5, 40)
    x[:, [2, 4]] = 0
    a, b = Problem.dense(x.T @ x, weight).damped(weight).factors(5)
    np.testing.assert_allclose(a @ b, weight, atol=1e-9)
    a, b = Problem.dense(np.zeros((7, 7)), weight).damped(weight).factors(3)
    np.testing.assert_allclose(a @ b, np.matmul(*truncated(weight, 3)), atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_damping_helps_where_rows_are_few(seed: int) -> None:
    """Judged on other rows from the same source."""
    rng = np.random.default_rng(seed)
    mixture, weight = rng.standard_normal((40, 40)) / np.sqrt(1 + np.arange(40)), rng.standard_normal((40, 20))
    few, many = (rng.standard_normal((rows, 40)) @ mixture.T for rows in (20, 4000))
    problem, judge = Problem.dense(few.T @ few, weight), Problem.dense(many.T @ many, weight)
    damped, bare = (judge.error(np.matmul(*each.factors(8))) for each in (problem.damped(weight), problem))
    assert damped < bare


@pytest.mark.parametrize("rows", [1, 3, 6])
def test_a_singular_gram_matrix_gives_no_large_weights(rows: int) -> None:
    """The solution of least norm comes out, and errors of rounding do not grow."""
    x, y, _ = rows_of(8, 5, rows)
    problem = from_rows(x, y)
    a, b = problem.factors(5)
    expected = np.linalg.lstsq(x, y, rcond=None)[0]
    np.testing.assert_allclose(x @ a @ b, y, atol=1e-6 * np.abs(y).max())
    assert np.linalg.norm(a @ b) <= (1 + 1e-6) * np.linalg.norm(expected)


@pytest.mark.parametrize(("k", "n", "rows"), SHAPES)
def test_the_nearest_of_the_best_weights(k: int, n: int, rows: int) -> None:
    x, y, weight = rows_of(k, n, rows)
    near = weight + np.random.default_rng(1).standard_normal((k, n))
    expected = near + np.linalg.pinv(x) @ (y - x @ near)
    np.testing.assert_allclose(from_rows(x, y).nearest(near), expected, atol=1e-5)


@pytest.mark.parametrize(("g", "d", "s", "f"), [(1, 6, 1, 3), (1, 4, 3, 2), (3, 2, 1, 2), (2, 3, 2, 1), (2, 2, 3, 4)])
def test_the_problem_behind_a_first_stage(g: int, d: int, s: int, f: int) -> None:
    """Against features that are computed row by row."""
    x, y, _ = rows_of(g * d * s, 4, 30)
    first = np.random.default_rng(1).standard_normal((g, d, f))
    seen = np.einsum("xgds,gdf->xgfs", x.reshape(-1, g, d, s), first).reshape(len(x), -1)
    for found in [from_rows(x, y).through(first)] + [from_rows(x, y).through(first[0])] * (g == 1):
        np.testing.assert_allclose(found.gram, seen.T @ seen, rtol=1e-9, atol=1e-7)
        np.testing.assert_allclose(found.cross, seen.T @ y, rtol=1e-9, atol=1e-7)
        assert found.energy == from_rows(x, y).energy


def test_zeros_give_zeros() -> None:
    for problem in (Problem(np.zeros((5, 5)), np.zeros((5, 3)), 0.0), Problem.data_free(np.zeros((3, 5)))):
        a, b = problem.factors(2)
        assert np.isfinite(a).all()
        assert not (a @ b).any()
        assert not problem.errors().any()
        assert not balanced(a, b)[0].any()


def test_systems_with_a_gram_matrix() -> None:
    rng = np.random.default_rng(0)
    x, right = correlated(rng, 50, 6), rng.standard_normal((6, 3))
    gram = x.T @ x
    root = Cholesky(gram)
    np.testing.assert_allclose(root.solved(right), np.linalg.solve(gram, right), rtol=1e-9)
    np.testing.assert_allclose(root.coloured(root.whitened(right)), root.solved(right), rtol=1e-9)
    np.testing.assert_allclose(root.whitened(gram @ root.coloured(right)), right, rtol=1e-9)
    with pytest.raises(np.linalg.LinAlgError, match="6 columns"):
        Cholesky(gram - 2 * np.trace(gram) * np.eye(6))


# -- stages ----------------------------------------------------------------------------------------------------


def convolved(x: Array, stage: Stage) -> Array:
    """A stage applied to ``x`` (c × spatial), channel by channel, without padding."""
    n, c = stage.kernel.shape[:2]
    per_group = n // stage.group
    outputs = []
    for out, kernel in enumerate(stage.kernel):
        first = out // per_group * c
        outputs.append(sum(correlate(x[first + at], kernel[at], "valid") for at in range(c)))
    return np.stack(outputs)


def random_stages(rng: np.random.Generator, channels: int, *parts: tuple[int, int, tuple[int, ...]]) -> list[Stage]:
    """Stages with as many outputs, groups, and spatial axes."""
    stages = []
    for n, group, spatial in parts:
        stages.append(Stage(rng.standard_normal((n, channels // group, *spatial)), group))
        channels = n
    return stages


CHAINS: dict[str, tuple[int, list[tuple[int, int, tuple[int, ...]]]]] = {
    "one": (3, [(4, 1, (3, 2))]),
    "one grouped": (4, [(6, 2, (3,))]),
    "no axes": (3, [(2, 1, ()), (5, 1, ())]),
    "1×1, kernel": (3, [(2, 1, (1, 1)), (5, 1, (3, 2))]),
    "k×1, 1×k": (3, [(2, 1, (3, 1)), (5, 1, (1, 4))]),
    "1×1, depthwise, depthwise, 1×1": (4, [(3, 1, (1, 1)), (3, 3, (3, 1)), (3, 3, (1, 2)), (5, 1, (1, 1))]),
    "depthwise, 1×1": (3, [(6, 3, (2, 2, 3)), (4, 1, (1, 1, 1))]),
    "kernels that overlap": (2, [(4, 2, (3,)), (6, 2, (2,)), (3, 3, (2,)), (3, 1, (2,))]),
}
each_chain = pytest.mark.parametrize("chain", CHAINS)


@each_chain
def test_stages_are_one_convolution(chain: str) -> None:
    channels, parts = CHAINS[chain]
    rng = np.random.default_rng(0)
    stages = random_stages(rng, channels, *parts)
    kernel = composed(stages)
    x = rng.standard_normal((channels, *[size + 3 for size in kernel.shape[2:]]))
    expected = x
    for stage in stages:
        expected = convolved(expected, stage)
    np.testing.assert_allclose(convolved(x, Stage(kernel)), expected, rtol=1e-10, atol=1e-10)
    assert parameters(stages) == sum(math.prod(stage.kernel.shape) for stage in stages)


@pytest.mark.parametrize("chain", [chain for chain, (_, parts) in CHAINS.items() if len(parts) > 1])
def test_features_are_what_the_last_stage_sees(chain: str) -> None:
    channels, parts = CHAINS[chain]
    rng = np.random.default_rng(0)
    stages = random_stages(rng, channels, *parts)
    x = rng.standard_normal((channels, *composed(stages).shape[2:]))
    seen = x
    for stage in stages[:-1]:
        seen = convolved(seen, stage)
    np.testing.assert_allclose(x.ravel() @ features(stages), seen.ravel(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rows", [10, 100])
@pytest.mark.parametrize("chain", [chain for chain, (_, parts) in CHAINS.items() if len(parts) > 1])
def test_the_last_stage_is_fitted_as_numpy_does(chain: str, rows: int) -> None:
    channels, parts = CHAINS[chain]
    rng = np.random.default_rng(0)
    stages = random_stages(rng, channels, *parts)
    kernel = composed(stages)
    x = correlated(rng, rows, kernel[0].size)
    y = rng.standard_normal((rows, len(kernel)))
    problem = from_rows(x, y)
    found = refit_last(stages, problem)
    assert found[:-1] == stages[:-1]
    seen = x @ features(stages)
    least = squares(y - seen @ np.linalg.lstsq(seen, y, rcond=None)[0])
    np.testing.assert_allclose(error(found, problem), least, atol=1e-7 * problem.energy)
    assert error(found, problem) <= error(stages, problem)
