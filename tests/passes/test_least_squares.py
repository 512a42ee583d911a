"""Least squares from moments, against numpy on all rows at once in float64, and elimination against trying all."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from onnxopt.passes.prune._least_squares import DAMPINGS, Moments, Reader, eliminate, refit_bias, refit_weight

Array = np.ndarray[Any, Any]

TINY = 1e-9


def correlated(rng: np.random.Generator, rows: int, k: int) -> Array:
    """Columns that have much in common, and means far from 0."""
    mixed: Array = rng.standard_normal((rows, k)) @ rng.standard_normal((k, k)) + 3 * rng.standard_normal(k)
    return mixed.astype(np.float32)


def problem(seed: int = 0, g: int = 2, k: int = 6, n: int = 4, rows: int = 6000) -> tuple[Array, Array, Moments]:
    rng = np.random.default_rng(seed)
    x = np.stack([correlated(rng, rows, k) for _ in range(g)])
    y = np.tanh(x @ rng.standard_normal((g, k, n)).astype(np.float32)) + rng.standard_normal((g, 1, n)).astype("f4")
    moments = Moments(g, k, n)
    for start in range(0, rows, 700):  # batches that are no multiples of the blocks
        moments.add(x[:, start : start + 700], y[:, start : start + 700])
    return x.astype(np.float64), y.astype(np.float64), moments


def with_ones(x: Array) -> Array:
    return np.concatenate([x, np.ones((*x.shape[:-1], 1))], axis=-1)


def test_moments_are_those_of_all_rows() -> None:
    x, y, moments = problem()
    columns = with_ones(x).swapaxes(1, 2)
    assert moments.rows == 6000
    np.testing.assert_allclose(moments.gram, columns @ columns.swapaxes(1, 2), rtol=1e-9, atol=1e-7)
    np.testing.assert_allclose(moments.cross, columns @ y, rtol=1e-9, atol=1e-7)
    np.testing.assert_allclose(moments.variance, ((y - y.mean(axis=1, keepdims=True)) ** 2).sum(), rtol=1e-9)


def test_fits_as_numpy_does() -> None:
    x, y, moments = problem()
    found = refit_weight(moments, np.zeros((2, 7, 4)), TINY)
    for at in range(2):
        expected = np.linalg.lstsq(with_ones(x[at]), y[at], rcond=None)[0]
        np.testing.assert_allclose(found[at], expected, rtol=1e-5, atol=1e-6)


def test_fits_without_bias_as_numpy_does() -> None:
    x, y, moments = problem()
    found = refit_weight(moments, np.zeros((2, 7, 4)), TINY, bias=False)
    assert not found[:, -1].any()
    for at in range(2):
        np.testing.assert_allclose(found[at, :-1], np.linalg.lstsq(x[at], y[at], rcond=None)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("damping", [1e-2, 1.0])
def test_the_penalty_is_on_what_moves_away_from_the_weight(damping: float) -> None:
    """The same problem with rows for the penalty, solved by numpy."""
    x, y, moments = problem(g=1)
    old = np.random.default_rng(1).standard_normal((1, 7, 4))
    found = refit_weight(moments, old, damping)[0]
    root = np.sqrt(damping * np.mean((x[0] ** 2).sum(axis=0)))
    rows = np.vstack([with_ones(x[0]), np.hstack([root * np.eye(6), np.zeros((6, 1))])])
    expected = np.linalg.lstsq(rows, np.vstack([y[0], root * old[0, :6]]), rcond=None)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_what_the_data_do_not_show_stays() -> None:
    """Columns that are always zero, and fewer rows than columns."""
    _, y, _ = problem(g=1, rows=6000)
    x = np.zeros((1, 4, 6), np.float32)
    x[0, :, 0] = [1, 2, 3, 5]
    moments = Moments(1, 6, 4)
    moments.add(x, y[:, :4])
    old = np.random.default_rng(1).standard_normal((1, 7, 4))
    found = refit_weight(moments, old, 1e-4)
    np.testing.assert_allclose(found[0, 1:6], old[0, 1:6], atol=1e-9)
    assert moments.error(found) < moments.error(old)


def test_the_error_is_that_of_all_rows() -> None:
    x, y, moments = problem()
    weight = np.random.default_rng(2).standard_normal((2, 7, 4))
    noise = ((y - with_ones(x) @ weight) ** 2).sum()
    variance = ((y - y.mean(axis=1, keepdims=True)) ** 2).sum()
    np.testing.assert_allclose(moments.error(weight), noise / variance, rtol=1e-9)


def test_the_best_bias_is_the_mean_of_what_is_missing() -> None:
    x, y, moments = problem()
    weight = np.random.default_rng(2).standard_normal((2, 7, 4))
    found = refit_bias(moments, weight)
    np.testing.assert_array_equal(found[:, :-1], weight[:, :-1])
    np.testing.assert_allclose(found[:, -1], (y - x @ weight[:, :-1]).mean(axis=1), rtol=1e-9, atol=1e-9)


def error_without(x: Array, y: Array, gone: Array) -> float:
    """The error of the best fit to what is left, relative to the variance."""
    rows = with_ones(np.delete(x, gone, axis=1))
    fitted = rows @ np.linalg.lstsq(rows, y, rcond=None)[0]
    return float(((y - fitted) ** 2).sum() / ((y - y.mean(axis=0)) ** 2).sum())


def test_each_removal_costs_what_a_new_fit_says() -> None:
    """Channels of two columns; the second reader has them in another order. What is lost is counted from all."""
    x, y, first = problem(g=1, k=8)
    x2, y2, second = problem(seed=1, g=1, k=8)
    blocks = tuple((0, np.array([2 * at, 2 * at + 1])) for at in range(4))
    order, lost = eliminate([Reader(first, blocks), Reader(second, blocks[::-1])], TINY)
    assert sorted(order) == [0, 1, 2, 3]
    whole = error_without(x[0], y[0], np.array([], int)) + error_without(x2[0], y2[0], np.array([], int))
    for count in range(1, 5):
        gone = order[:count]
        columns = np.concatenate([blocks[at][1] for at in gone])
        columns2 = np.concatenate([blocks[::-1][at][1] for at in gone])
        expected = error_without(x[0], y[0], columns) + error_without(x2[0], y2[0], columns2) - whole
        np.testing.assert_allclose(lost[count - 1], expected, rtol=1e-5, atol=1e-6)


def test_the_first_removal_is_the_best_of_all() -> None:
    for seed in range(5):
        x, y, moments = problem(seed=seed, g=1, k=6)
        order, lost = eliminate([Reader(moments, tuple((0, np.array([at])) for at in range(6)))], TINY)
        errors = [error_without(x[0], y[0], np.array([at])) for at in range(6)]
        assert order[0] == int(np.argmin(errors))
        pairs = [error_without(x[0], y[0], np.array(pair)) for pair in itertools.combinations(range(6), 2)]
        assert lost[1] <= np.median(pairs)


def test_channels_in_groups_are_told_apart() -> None:
    """One column of each group is of no use: it goes first."""
    _, _, moments = problem(g=2, k=3, n=2)
    moments.cross[0] = moments.gram[0] @ np.array([[1, 1], [0, 0], [2, 1], [0, 1]])
    moments.cross[1] = moments.gram[1] @ np.array([[1, 1], [2, 1], [0, 0], [0, 1]])
    blocks = tuple((group, np.array([at])) for group in range(2) for at in range(3))
    order, lost = eliminate([Reader(moments, blocks)], TINY)
    assert set(order[:2].tolist()) == {1, 5}
    np.testing.assert_allclose(lost[:2], 0, atol=1e-5)
    assert lost[2] > 1e-3


def test_columns_that_depend_on_each_other_are_no_trouble() -> None:
    """Fewer rows than columns, columns of very different size, and one twice: the least penalty has to do."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((1, 50, 200)) * np.logspace(-3, 3, 200)).astype(np.float32)
    x[..., 7] = x[..., 150]
    y = rng.standard_normal((1, 50, 3)).astype(np.float32)
    moments = Moments(1, 200, 3)
    moments.add(x, y)
    old = np.zeros((1, 201, 3))
    found = refit_weight(moments, old, DAMPINGS[0])
    assert np.isfinite(found).all()
    assert moments.error(found) < 0.5 * moments.error(old)
