"""What a convolution is split into: kernels of known structure are found again, and what holds of all methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import onnxopt.passes.lowrank._cp as cp_module
import onnxopt.passes.lowrank._separable as separable_module
import onnxopt.passes.lowrank._split as split_module
import onnxopt.passes.lowrank._tucker as tucker_module
from onnxopt.passes.lowrank._cp import cp
from onnxopt.passes.lowrank._separable import separable
from onnxopt.passes.lowrank._split import split
from onnxopt.passes.lowrank._stages import Stage, composed, error, refit_last
from onnxopt.passes.lowrank._svd import Problem
from onnxopt.passes.lowrank._tucker import tucker
from tests.lowrank_cases import each_shape, example, matrix, share, smooth

Array = np.ndarray[Any, Any]
Method = Callable[[Array, Problem], list[Stage]]

METHODS: dict[str, Method] = {
    "whole kernel first": lambda kernel, problem: split(kernel, problem, 3, kernel.ndim - 2),
    "1×1 first": lambda kernel, problem: split(kernel, problem, 3, 0),
    "first axis first": lambda kernel, problem: split(kernel, problem, 3, 1),
    "tucker": lambda kernel, problem: tucker(kernel, problem, (3, 4)),
    "cp": lambda kernel, problem: cp(kernel, problem, 6),
    "separable": lambda kernel, problem: separable(kernel, problem, 2),
}
ROUNDS = {
    "1×1 first": split_module,
    "first axis first": split_module,
    "tucker": tucker_module,
    "cp": cp_module,
    "separable": separable_module,
}
each_method = pytest.mark.parametrize("method", METHODS)


# -- what holds of all -----------------------------------------------------------------------------------------


@each_method
@each_shape
def test_stages_have_the_shapes_of_the_method(method: str, spatial: tuple[int, ...]) -> None:
    kernel, problem = example(spatial)
    stages = METHODS[method](kernel, problem)
    ones = (1,) * len(spatial)
    axes = [((6, 1, *ones[:a], size, *ones[a + 1 :]), 6) for a, size in enumerate(spatial) if size > 1]
    assert [(stage.kernel.shape, stage.group) for stage in stages] == {
        "whole kernel first": [((3, 5, *spatial), 1), ((7, 3, *ones), 1)],
        "1×1 first": [((3, 5, *ones), 1), ((7, 3, *spatial), 1)],
        "first axis first": [((3, 5, spatial[0], *ones[1:]), 1), ((7, 3, 1, *spatial[1:]), 1)],
        "tucker": [((3, 5, *ones), 1), ((4, 3, *spatial), 1), ((7, 4, *ones), 1)],
        "cp": [((6, 5, *ones), 1), *axes, ((7, 6, *ones), 1)],
        "separable": [((10, 1, *spatial), 5), ((7, 10, *ones), 1)],
    }[method]
    assert composed(stages).shape == kernel.shape
    assert 0 < share(stages, problem) < 1


@each_method
@each_shape
def test_the_last_stage_is_the_best_for_the_others(method: str, spatial: tuple[int, ...]) -> None:
    kernel, problem = example(spatial)
    stages = METHODS[method](kernel, problem)
    np.testing.assert_allclose(error(refit_last(stages, problem), problem), error(stages, problem), rtol=1e-7)


@pytest.mark.parametrize("method", ROUNDS)
@pytest.mark.parametrize("rows", [10, 400])
@each_shape
def test_no_round_makes_it_worse(
    method: str, spatial: tuple[int, ...], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many rows, and with so few that the Gram matrix is singular."""
    kernel, damped = example(spatial, rows=rows)
    x = smooth(np.random.default_rng(1), rows, 5, spatial)
    errors: dict[str, list[float]] = {"damped": [], "bare": [], "free": []}
    problems = {
        "damped": damped,
        "bare": Problem.dense(x.T @ x, matrix(kernel)),
        "free": Problem.data_free(matrix(kernel)),
    }
    for rounds in range(5):
        monkeypatch.setattr(ROUNDS[method], "_ROUNDS", rounds)
        for name, problem in problems.items():
            errors[name].append(share(METHODS[method](kernel, problem), problem))
    for found in errors.values():
        assert np.isfinite(found).all()
        assert (np.diff(found) <= 1e-9).all()
    if rows > 45 and (method, spatial) != ("first axis first", (3,)):  # which is solved in closed form
        assert errors["damped"][-1] < errors["damped"][0], "rounds are of no use"


@each_method
@pytest.mark.parametrize("seed", range(3))
def test_data_make_it_better(method: str, seed: int) -> None:
    kernel, problem = example((3, 3), seed, n=12, c=8)
    free = METHODS[method](kernel, Problem.data_free(matrix(kernel)))
    assert error(METHODS[method](kernel, problem), problem) < error(free, problem)


@each_method
@each_shape
def test_rows_of_the_compressed_model(method: str, spatial: tuple[int, ...]) -> None:
    """What outputs lack because inputs have changed is made up for: it comes nearer than for the weight itself."""
    kernel, _ = example(spatial)
    rng = np.random.default_rng(3)
    x = smooth(rng, 400, 5, spatial)
    y = x @ matrix(kernel)
    changed = 0.7 * x + 0.5 * x[:, ::-1] + 0.3 * rng.standard_normal(x.shape)
    problem = Problem(changed.T @ changed, changed.T @ y, float(np.sum(y**2)))
    assert problem.damped(matrix(kernel)).energy > problem.energy
    asymmetric = METHODS[method](kernel, problem.damped(matrix(kernel)))
    as_it_is = METHODS[method](kernel, Problem.dense(problem.gram, matrix(kernel)))
    explicit = float(np.sum((y - changed @ matrix(composed(asymmetric))) ** 2))
    np.testing.assert_allclose(explicit, error(asymmetric, problem), rtol=1e-6)
    assert explicit < error(as_it_is, problem)


@each_method
def test_zeros_give_zeros(method: str) -> None:
    kernel = np.zeros((7, 5, 3, 3))
    for problem in (Problem.data_free(matrix(kernel)), Problem.dense(np.zeros((45, 45)), matrix(kernel))):
        stages = METHODS[method](kernel, problem)
        assert all(np.isfinite(stage.kernel).all() for stage in stages)
        assert not composed(stages).any()


@each_method
def test_dead_channels_do_no_harm(method: str) -> None:
    """Channels of zeros have no say in what the others get, and no large weights."""
    kernel, _ = example((3, 3))
    x = smooth(np.random.default_rng(0), 400, 5, (3, 3)).reshape(-1, 5, 9)
    x[:, [1, 3]] = 0
    problem = Problem.dense(np.tensordot(x, x, (0, 0)).reshape(45, 45), matrix(kernel))
    for each in (problem, problem.damped(matrix(kernel))):
        found = composed(METHODS[method](kernel, each))
        assert np.abs(found).max() < 10 * np.abs(kernel).max()
    living = x[:, [0, 2, 4]].reshape(-1, 27)
    alone = Problem.dense(living.T @ living, matrix(kernel[:, [0, 2, 4]]))
    without = METHODS[method](kernel[:, [0, 2, 4]], alone)
    np.testing.assert_allclose(share(METHODS[method](kernel, problem), problem), share(without, alone), rtol=0.02)


@each_method
def test_the_same_comes_out_each_time(method: str) -> None:
    kernel, problem = example((3, 3))
    for first, second in zip(METHODS[method](kernel, problem), METHODS[method](kernel, problem), strict=True):
        np.testing.assert_array_equal(first.kernel, second.kernel)


@each_shape
def test_more_channels_than_there_can_be_are_zero(spatial: tuple[int, ...]) -> None:
    kernel, problem = example(spatial, n=3, c=2)
    places = int(np.prod(spatial))
    for stages in (
        split(kernel, problem, 40, 0),
        split(kernel, problem, 40, len(spatial)),
        tucker(kernel, problem, (4, 40)),
        cp(kernel, problem, 40),
        separable(kernel, problem, places + 2),
    ):
        assert all(np.isfinite(stage.kernel).all() for stage in stages)
        assert share(stages, problem) < 1e-9


def test_a_matrix_has_no_axes() -> None:
    kernel, problem = example(())
    for stages in (split(kernel, problem, 3, 0), tucker(kernel, problem, (4, 3)), cp(kernel, problem, 3)):
        np.testing.assert_allclose(error(stages, problem), problem.errors()[3], rtol=1e-6)


# -- kernels of known structure --------------------------------------------------------------------------------


def structured(method: str, spatial: tuple[int, ...], rng: np.random.Generator) -> Array:
    """A kernel that is of the form that the method looks for."""
    kernel = rng.standard_normal((7, 5, *spatial))
    if method == "cp":
        letters = "ncabd"[: kernel.ndim]
        factors = [np.linalg.qr(rng.standard_normal((size, 3)))[0] for size in (7, 5)]
        factors += [rng.standard_normal((size, 3)) for size in spatial]
        found: Array = np.einsum(f"{','.join(f'{each}r' for each in letters)}->{letters}", *factors)
        return found
    return composed(METHODS[method](kernel, Problem.data_free(matrix(kernel))))


@each_method
@each_shape
@pytest.mark.parametrize("seed", range(3))
def test_kernels_of_that_structure_are_found_again(
    method: str, spatial: tuple[int, ...], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cp_module, "_SWEEPS", 300)
    rng = np.random.default_rng(seed)
    kernel = structured(method, spatial, rng)
    x = smooth(rng, 400, 5, spatial)
    for problem in (Problem.data_free(matrix(kernel)), Problem.dense(x.T @ x, matrix(kernel))):
        stages = cp(kernel, problem, 3) if method == "cp" else METHODS[method](kernel, problem)
        assert share(stages, problem) < 1e-9
        np.testing.assert_allclose(composed(stages), kernel, atol=1e-3 * np.abs(kernel).max())
