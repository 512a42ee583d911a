"""The numerics of 4- and 8-bit weights, against numpy in float64 and the theorems that they follow from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxopt.passes.quantize._awq import awq, input_scales
from onnxopt.passes.quantize._blockwise import (
    Form,
    clipped,
    cut,
    half_quadratic,
    min_max,
    output_error,
    pack,
    round_to_nearest,
    unpack,
)
from onnxopt.passes.quantize._gptq import gptq, inverse_factor

Array = np.ndarray[Any, Any]

each_form = pytest.mark.parametrize(
    "form",
    [Form(bits, block, symmetric) for bits in (4, 8) for block in (32, 0) for symmetric in (False, True)],
    ids=str,
)


def weight(n: int = 24, k: int = 100, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)


def inputs(k: int = 100, rows: int = 400, rank: int = 12, seed: int = 1) -> Array:
    """Inputs as layers have them: correlated, and some of them much larger than others."""
    rng = np.random.default_rng(seed)
    low = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, k))
    return (low + 0.3 * rng.standard_normal((rows, k))) * np.exp(rng.standard_normal(k))


@each_form
def test_rounds_to_the_nearest_point_of_a_grid_that_covers_the_block(form: Form) -> None:
    w = weight()
    blocks = round_to_nearest(w, form)
    step = np.repeat(np.abs(blocks.scale), form.width(100), axis=1)[:, :100]
    off = np.abs(blocks.weights() - w)
    # the end of a symmetric grid that reaches less far may clip by up to a step; a rounded zero point by half of one
    assert (off <= step * (1.001 if form.symmetric else 1.0)).all()
    assert np.mean(off <= 0.501 * step) > 0.95
    assert blocks.q.max() <= form.top
    assert (blocks.zero == form.middle).all() == form.symmetric


def test_a_symmetric_grid_holds_the_largest_element_exactly() -> None:
    w = np.array([[-1.0, 0.3, 0.2, 0.1], [1.0, 0.3, -0.2, 0.1]], np.float32)
    np.testing.assert_array_equal(round_to_nearest(w, Form(4, 0, True)).weights()[:, 0], [-1.0, 1.0])


@each_form
def test_a_block_of_zeros_stays_zero(form: Form) -> None:
    for rounded in (
        round_to_nearest(np.zeros((3, 64)), form, min_max),
        round_to_nearest(np.zeros((3, 64)), form, half_quadratic),
        gptq(np.zeros((3, 64)), np.zeros((64, 64)), form),
    ):
        assert not rounded.weights().any()


@each_form
def test_clipping_never_raises_the_squared_error(form: Form) -> None:
    w = weight()
    plain, better = (np.square(round_to_nearest(w, form, g).weights() - w) for g in (min_max, clipped))
    for a, b in zip(cut(plain, form), cut(better, form), strict=True):
        assert (b.sum(-1) <= a.sum(-1) * 1.0001).all()


@each_form
def test_hqq_never_raises_the_norm_that_it_minimises(form: Form) -> None:
    w = np.random.default_rng(0).standard_t(3, (24, 128)).astype(np.float32)
    plain, better = (np.abs(round_to_nearest(w, form, g).weights() - w) ** 0.7 for g in (min_max, half_quadratic))
    assert (cut(better, form).sum(-1) <= cut(plain, form).sum(-1) * 1.0001).all()
    assert better.sum() < plain.sum()


def test_packs_two_to_a_byte_lower_half_first() -> None:
    q = np.random.default_rng(0).integers(0, 16, (3, 7)).astype(np.uint8)
    packed = pack(q, 4)
    assert packed.shape == (3, 4)
    assert packed[0, 0] == q[0, 0] + 16 * q[0, 1]
    np.testing.assert_array_equal(unpack(packed, 4, 7), q)
    np.testing.assert_array_equal(unpack(pack(q, 8), 8, 7), q)


def test_the_output_error_is_that_of_the_products() -> None:
    w, x = weight(), inputs()
    rounded = round_to_nearest(w, Form(4, 32, False)).weights()
    expected = np.linalg.norm(x @ (w - rounded).T) / np.linalg.norm(x @ w.T)
    assert output_error(w, rounded, x.T @ x) == pytest.approx(expected, rel=1e-6)


def test_the_factor_is_that_of_the_inverse() -> None:
    x = inputs(40)
    h = x.T @ x + np.eye(40)
    u = inverse_factor(h).astype(np.float64)
    assert not np.tril(u, -1).any()
    np.testing.assert_allclose(u.T @ u @ h, np.eye(40), atol=1e-3)


@each_form
def test_gptq_of_uncorrelated_inputs_rounds_to_the_nearest(form: Form) -> None:
    w = weight()
    expected = round_to_nearest(w, form, clipped)
    got = gptq(w, np.eye(100) * 7, form)
    np.testing.assert_array_equal(got.q, expected.q)
    np.testing.assert_array_equal(got.scale, expected.scale)


@pytest.mark.parametrize(
    "form", [Form(4, 32, False), Form(4, 32, True), Form(4, 0, False), Form(8, 16, False)], ids=str
)
def test_gptq_moves_the_outputs_less_on_unseen_inputs(form: Form) -> None:
    w, x = weight(40, 300), inputs(300, 1200)
    gram, held_out = x[:900].T @ x[:900], x[900:].T @ x[900:]
    before = w.copy()
    nearest = output_error(w, round_to_nearest(w, form).weights(), held_out)
    assert output_error(w, gptq(w, gram, form).weights(), held_out) < 0.7 * nearest
    np.testing.assert_array_equal(w, before)


def test_gptq_follows_the_sequential_definition() -> None:
    """One row, all columns, with the inverse of the Hessian of what is left made anew at each step."""
    w, x = weight(1, 20), inputs(20, 200, 4)
    form = Form(4, 0, False)
    h = x.T @ x
    h += 0.01 * np.trace(h) / 20 * np.eye(20)
    blocks = gptq(w, x.T @ x, form)
    scale, zero = float(blocks.scale[0, 0]), float(blocks.zero[0, 0])
    left, free = w[0].astype(np.float64), list(np.argsort(-np.diag(h), kind="stable"))
    while free:
        at = free[0]
        inverse = np.linalg.inv(h[np.ix_(free, free)])
        q = np.clip(np.rint(left[at] / scale) + zero, 0, 15)
        assert blocks.q[0, at] == q
        left[free] -= (left[at] - (q - zero) * scale) / inverse[0, 0] * inverse[0]
        free = free[1:]


def test_awq_enlarges_columns_that_meet_large_inputs() -> None:
    w, form = weight(40, 128), Form(4, 32, False)
    x = np.random.default_rng(2).standard_normal((500, 128))
    x[:, ::16] *= 30
    gram = x.T @ x
    scales = input_scales([w], gram, form)
    assert scales[::16].min() > np.delete(scales, slice(None, None, 16)).max()
    scaled = awq(w, scales, gram, form).weights() / scales
    assert output_error(w, scaled, gram) < 0.6 * output_error(w, round_to_nearest(w, form).weights(), gram)


def test_awq_leaves_equal_inputs_alone() -> None:
    assert (input_scales([weight()], np.eye(100), Form(4, 32, False)) == 1).all()
