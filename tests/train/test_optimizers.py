"""Each optimizer against its formula, written anew in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxopt.errors import OptionError
from onnxopt.train import LAMB, SGD, AdamW, Optimizer, Schedule
from onnxopt.train.optimizers import Rule, accumulate, average, scale, squared_norm

Array = np.ndarray[Any, Any]
_LR = 0.01
_Steps = Callable[[Array, list[Array], float], Array]


def _sgd(momentum: float, nesterov: bool, decay: float) -> _Steps:
    def steps(w: Array, gradients: list[Array], decayed: float) -> Array:
        v = np.zeros_like(w)
        for g in gradients:
            full = g + decay * decayed * w
            v = momentum * v + full
            w = w - _LR * (full + momentum * v if nesterov else v)
        return w

    return steps


def _adamw(betas: tuple[float, float], epsilon: float, decay: float) -> _Steps:
    def steps(w: Array, gradients: list[Array], decayed: float) -> Array:
        m, v = np.zeros_like(w), np.zeros_like(w)
        for t, g in enumerate(gradients, 1):
            m = betas[0] * m + (1 - betas[0]) * g
            v = betas[1] * v + (1 - betas[1]) * g**2
            w = w - _LR * decay * decayed * w
            w = w - _LR * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + epsilon)
        return w

    return steps


def _lamb(betas: tuple[float, float], epsilon: float, decay: float) -> _Steps:
    def steps(w: Array, gradients: list[Array], decayed: float) -> Array:
        m, v = np.zeros_like(w), np.zeros_like(w)
        for t, g in enumerate(gradients, 1):
            m = betas[0] * m + (1 - betas[0]) * g
            v = betas[1] * v + (1 - betas[1]) * g**2
            r = (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + epsilon) + decay * decayed * w
            w = w - _LR * np.linalg.norm(w) / np.linalg.norm(r) * r
        return w

    return steps


CASES = [
    pytest.param(SGD(), _sgd(0.9, False, 0.0), id="sgd"),
    pytest.param(SGD(momentum=0.0, weight_decay=0.1), _sgd(0.0, False, 0.1), id="sgd-plain"),
    pytest.param(SGD(nesterov=True, weight_decay=0.1), _sgd(0.9, True, 0.1), id="nesterov"),
    pytest.param(AdamW(), _adamw((0.9, 0.999), 1e-8, 0.01), id="adamw"),
    pytest.param(
        AdamW(betas=(0.8, 0.95), epsilon=1e-3, weight_decay=0.5), _adamw((0.8, 0.95), 1e-3, 0.5), id="adamw-options"
    ),
    pytest.param(LAMB(weight_decay=0.1), _lamb((0.9, 0.999), 1e-6, 0.1), id="lamb"),
]


def _weights(seed: int = 0) -> list[Array]:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(shape).astype(np.float32) for shape in ((300, 221), (5,), (2, 3, 4), (1, 1))]


def _gradients(count: int) -> list[list[Array]]:
    return [_weights(seed + 1) for seed in range(count)]


@pytest.mark.parametrize(("rule", "formula"), CASES)
def test_follows_its_formula(rule: Rule, formula: _Steps) -> None:
    found, gradients = _weights(), _gradients(12)
    optimizer = Optimizer(rule, found)
    for each in gradients:
        optimizer.step(each, _LR)
    for at, start in enumerate(_weights()):
        wide = [each[at].astype(np.float64) for each in gradients]
        wanted = formula(start.astype(np.float64), wide, float(start.ndim >= 2))
        np.testing.assert_allclose(found[at], wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("rule", "formula"), CASES)
def test_state_is_restored_to_the_bit(rule: Rule, formula: _Steps) -> None:
    found, gradients = _weights(), _gradients(8)
    optimizer = Optimizer(rule, found)
    for each in gradients[:5]:
        optimizer.step(each, _LR)
    again = [weight.copy() for weight in found]
    other = Optimizer(rule, again)
    other.restore({name: array.copy() for name, array in optimizer.state().items()}, optimizer.steps)
    for each in gradients[5:]:
        optimizer.step(each, _LR)
        other.step(each, _LR)
    for x, y in zip(found, again, strict=True):
        assert x.tobytes() == y.tobytes()


@pytest.mark.parametrize("rule", [SGD(nesterov=True, weight_decay=0.1), AdamW(), LAMB()])
def test_no_gradient_and_no_weight_is_no_move(rule: Rule) -> None:
    weight = np.zeros((4, 4), np.float32)
    optimizer = Optimizer(rule, [weight])
    for _ in range(3):
        optimizer.step([np.zeros((4, 4), np.float32)], _LR)
    assert not weight.any()


def test_only_what_is_asked_for_decays() -> None:
    weights = [np.ones((2, 2), np.float32), np.ones(2, np.float32)]
    Optimizer(AdamW(weight_decay=0.5), weights).step([np.zeros_like(w) for w in weights], 0.1)
    assert (weights[0] == np.float32(0.95)).all()
    assert (weights[1] == 1).all()
    Optimizer(AdamW(weight_decay=0.5), weights, [False, True]).step([np.zeros_like(w) for w in weights], 0.1)
    assert (weights[1] == np.float32(0.95)).all()


def test_first_step_of_adam_is_as_long_as_the_rate() -> None:
    """Whatever the gradient, ``m / √v`` is its sign."""
    weight, gradient = np.zeros(1000, np.float32), _weights()[0].reshape(-1)[:1000]
    Optimizer(AdamW(), [weight]).step([gradient], _LR)
    np.testing.assert_allclose(weight, -_LR * np.sign(gradient), rtol=1e-4)


def test_step_of_lamb_is_as_long_as_the_rate_times_the_weight() -> None:
    weight, gradient = _weights()[0], _weights(1)[0]
    before = weight.copy()
    Optimizer(LAMB(), [weight]).step([gradient], _LR)
    assert np.linalg.norm(weight - before) == pytest.approx(_LR * np.linalg.norm(before), rel=1e-4)


def test_no_temporary_is_as_large_as_a_weight() -> None:
    import tracemalloc

    weights = [np.ones(1 << 22, np.float32)]
    gradients = [np.ones(1 << 22, np.float32)]
    optimizer = Optimizer(AdamW(), weights, [True])
    tracemalloc.start()
    optimizer.step(gradients, _LR)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < weights[0].nbytes / 8


def test_norm_sum_and_mean() -> None:
    x, y = _weights(1), _weights(2)
    assert squared_norm(x) == pytest.approx(sum(float((a.astype(np.float64) ** 2).sum()) for a in x), rel=1e-6)
    sums = [a.copy() for a in x]
    accumulate(sums, y, 0.25)
    means = [a.copy() for a in x]
    average(means, y, 0.9)
    scaled = [a.copy() for a in x]
    scale(scaled, 0.5)
    for a, b, s, m, h in zip(x, y, sums, means, scaled, strict=True):
        np.testing.assert_allclose(s, a + 0.25 * b, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(m, 0.9 * a + 0.1 * b, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(h, a / 2)


@pytest.mark.parametrize(
    "make",
    [lambda: SGD(momentum=1.0), lambda: AdamW(betas=(0.9, 1.0)), lambda: AdamW(epsilon=0.0),
     lambda: LAMB(weight_decay=-1.0), lambda: Schedule("exponential"), lambda: Schedule(warmup=-1),  # type: ignore[arg-type]
     lambda: Schedule(final=2.0)],
)  # fmt: skip
def test_options_out_of_range(make: Callable[[], object]) -> None:
    with pytest.raises(OptionError):
        make()


def test_schedules() -> None:
    total = 100
    assert [Schedule("constant").factor(i, total) for i in (0, 50, 99)] == [1, 1, 1]
    assert [Schedule("linear", final=0.2).factor(i, total) for i in (0, 50, 100)] == pytest.approx([1, 0.6, 0.2])
    assert [Schedule("cosine").factor(i, total) for i in (0, 50, 100)] == pytest.approx([1, 0.5, 0])
    assert [Schedule("step").factor(i, total) for i in (0, 49, 50, 75, 99)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])
    warm = [Schedule("cosine", warmup=10).factor(i, total) for i in range(total)]
    assert warm[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert all(a >= b > 0 for a, b in itertools.pairwise(warm[10:]))
