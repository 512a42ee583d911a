"""Pow: exponents that are numbers, constants, values; bases of both signs and 0."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.gradients import gradient_graph
from tests import support
from tests.gradients.checks import check_node

_RNG = np.random.default_rng(0)
_SHAPES = [((3, 4), (3, 4)), ((3, 4), (4,)), ((1, 4), (3, 1)), ((), (2, 3)), ((2, 3), (1, 1, 1))]


@pytest.mark.parametrize("shapes", _SHAPES)
@pytest.mark.parametrize("wrt", [(0,), (1,), (0, 1)])
def test_values(shapes: tuple[tuple[int, ...], tuple[int, ...]], wrt: tuple[int, ...]) -> None:
    check_node("Pow", np.asarray(_RNG.uniform(0.5, 2, shapes[0])), _RNG.uniform(-2, 3, shapes[1]), wrt=wrt)


@pytest.mark.parametrize("shapes", _SHAPES)
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.float64])
def test_constants(shapes: tuple[tuple[int, ...], tuple[int, ...]], kind: type[np.generic]) -> None:
    exponents = _RNG.integers(-2, 4, shapes[1]).astype(kind)
    check_node("Pow", np.asarray(_RNG.uniform(0.5, 2, shapes[0]) * -1), exponents, constants=[1])


@pytest.mark.parametrize("exponent", [-2, -1, 0, 1, 2, 3, 4, 7])
@pytest.mark.parametrize("kind", [np.int64, np.float64])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
def test_a_whole_number(exponent: int, kind: type[np.generic], shape: tuple[int, ...]) -> None:
    x = _RNG.uniform(0.5, 2, (3, 4)) * _RNG.choice([-1, 1], (3, 4))
    check_node("Pow", x, np.full(shape, exponent, kind), constants=[1])


@pytest.mark.parametrize("exponent", [-1.5, -0.5, 0.3, 0.5, 1.7, 2.5])
def test_a_fraction(exponent: float) -> None:
    check_node("Pow", _RNG.uniform(0.5, 2, (3, 4)), np.array(exponent), constants=[1])


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 4])
def test_of_zero(exponent: int) -> None:
    """As a number, a constant and a value."""
    expected = float(exponent == 1)
    for shape, constant in [((), True), ((2,), True), ((2,), False)]:
        body = "y = Pow(a, b) loss = ReduceSum<keepdims = 0>(y)"
        exponents = np.full(shape, exponent, np.float32)
        if constant:
            model = support.graph(f"g (float[2] a) => (float loss) {{ {body} }}", b=exponents)
        else:
            model = support.graph(f"g (float[2] a, float[2] b) => (float loss) {{ {body} }}")
        wrt = ["a"] if constant else ["a", "b"]
        feeds = {"a": np.zeros(2, np.float32), **({} if constant else {"b": exponents})}
        _, da, *db = support.outputs(gradient_graph(model, "loss", wrt).model, feeds)
        np.testing.assert_array_equal(da, [expected] * 2)
        assert not np.any(db)


def test_an_exponent_of_another_type() -> None:
    model = support.graph(
        "g (float[2] a, double[2] b) => (float loss) { y = Pow(a, b) loss = ReduceSum<keepdims = 0>(y) }"
    )
    a, b = np.array([2, 3], np.float32), np.array([3.0, 0.5])
    _, da, db = support.outputs(gradient_graph(model, "loss", ["a", "b"]).model, {"a": a, "b": b})
    assert (da.dtype, db.dtype) == (np.float32, np.float64)
    np.testing.assert_allclose(da, b * a ** (b - 1), rtol=1e-6)
    np.testing.assert_allclose(db, a**b * np.log(a), rtol=1e-6)
