"""Operators of one or several operands that are broadcast."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.errors import GradientError
from onnxopt.gradients import gradient_graph
from tests import support
from tests.gradients.checks import Array, check_node

_RNG = np.random.default_rng(0)
_SHAPES = [((3, 4), (3, 4)), ((3, 4), (4,)), ((1, 4), (3, 1)), ((), (2, 3)), ((2, 1, 3), (4, 1))]


def _apart(*shapes: tuple[int, ...]) -> list[Array]:
    """Arrays of numbers of both signs, none within 0.02 of another or of 0."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    count = sum(sizes)
    numbers = _RNG.permutation(np.linspace(-1.5, 1.5, count + count % 2)[:count])
    return [part.reshape(s) for part, s in zip(np.split(numbers, np.cumsum(sizes)[:-1]), shapes, strict=True)]


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Min", "Max", "Mean"])
@pytest.mark.parametrize("shapes", _SHAPES)
@pytest.mark.parametrize("wrt", [(0,), (1,), (0, 1)])
def test_two_operands(op: str, shapes: tuple[tuple[int, ...], tuple[int, ...]], wrt: tuple[int, ...]) -> None:
    check_node(op, *_apart(*shapes), wrt=wrt)


@pytest.mark.parametrize("op", ["Min", "Max", "Mean"])
@pytest.mark.parametrize("shapes", [((3, 4),), ((3, 4), (4,), (3, 1)), ((1,), (2, 1), (2, 3), ())])
def test_many_operands(op: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    check_node(op, *_apart(*shapes))


def test_many_operands_of_which_some_are_asked_for() -> None:
    for wrt in ([1], [0, 3], [2]):
        check_node("Max", *_apart((2, 3), (3,), (2, 3), (2, 1)), wrt=wrt)


@pytest.mark.parametrize("op", ["Min", "Max"])
def test_the_first_of_equal_operands_has_it_all(op: str) -> None:
    model = support.graph(
        f"g (float[3] a, float[3] b, float[3] c) => (float loss) {{ y = {op}(a, b, c)"
        " loss = ReduceSum<keepdims = 0>(y) }"
    )
    found = gradient_graph(model, "loss", ["a", "b", "c"])
    high = 1 if op == "Max" else -1
    a, b, c = (np.array(x, np.float32) * high for x in ([2, 1, 1], [2, 3, 1], [2, 3, 1]))
    _, *gradients = support.outputs(found.model, {"a": a, "b": b, "c": c})
    np.testing.assert_array_equal(gradients, [[1, 0, 1], [0, 1, 0], [0, 0, 0]])


@pytest.mark.parametrize("shapes", _SHAPES)
def test_mod(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    a, b = _apart(*shapes)
    check_node("Mod", np.asarray(a * 7 + 0.003), b, fmod=1)  # not at a multiple


@pytest.mark.parametrize("shapes", [((3, 4), (3, 4), (3, 4)), ((4,), (3, 1), ()), ((2, 3, 1), (3, 4), (1,))])
@pytest.mark.parametrize("wrt", [(1,), (2,), (1, 2)])
def test_where(shapes: tuple[tuple[int, ...], ...], wrt: tuple[int, ...]) -> None:
    condition = _RNG.integers(0, 2, shapes[0]).astype(bool)
    check_node("Where", condition, *_apart(*shapes[1:]), wrt=wrt)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_one_hot(axis: int) -> None:
    indices = np.array([[0, 2, -1], [5, 1, 0]])  # one is outside
    check_node("OneHot", indices, np.array(4), np.array([0.3, 1.7]), axis=axis)


@pytest.mark.parametrize("opset", [18, 23, 26])
@pytest.mark.parametrize("op", ["Neg", "Identity"])
def test_one_operand(op: str, opset: int) -> None:
    check_node(op, *_apart((3, 4)), opset=opset)


@pytest.mark.parametrize("opset", [18, 19, 21, 24])
def test_casts_between_floats(opset: int) -> None:
    model = support.graph(
        "g (double[3] x) => (double loss) { a = Cast<to=1>(x) b = Mul(a, a) y = CastLike(b, x)"
        " loss = ReduceSum<keepdims=0>(y) }",
        opset=opset, ir_version=10,
    )  # fmt: skip
    found = gradient_graph(model, "loss", ["x"])
    (_, dx) = support.outputs(found.model, {"x": np.array([1.0, -2.0, 3.0])})
    assert dx.dtype == np.float64
    np.testing.assert_allclose(dx, [2, -4, 6])


def _dropout(ratio: float | None, training: bool | None) -> tuple[Array, Array, Array]:
    """``x``, the output and the gradient of its sum."""
    names = ["x", "" if ratio is None else "ratio", "" if training is None else "training"]
    model = support.graph(
        f"g (float[40,50] x) => (float loss) {{ y = Dropout({', '.join(names)}) loss = ReduceSum<keepdims=0>(y) }}",
        ratio=np.array(ratio or 0, np.float32),
        training=np.array(bool(training)),
    )
    found = gradient_graph(model, "loss", ["x"], keep=["y"])
    x = _RNG.uniform(1, 2, (40, 50)).astype(np.float32)
    _, y, dx = support.outputs(found.model, {"x": x})
    return x, y, dx


@pytest.mark.parametrize("ratio", [None, 0.0, 0.3])
def test_dropout_in_training(ratio: float | None) -> None:
    x, y, dx = _dropout(ratio, True)
    assert (np.count_nonzero(y) < y.size) == (ratio != 0)
    np.testing.assert_allclose(dx, y / x, rtol=1e-6)


@pytest.mark.parametrize("training", [None, False])
def test_dropout_in_inference(training: bool | None) -> None:
    _, _, dx = _dropout(0.3, training)
    np.testing.assert_array_equal(dx, np.ones_like(dx))


@pytest.mark.parametrize(("wrt", "reason"), [("ratio", "depends on the ratio"), ("x", "training_mode is known at run")])
def test_dropout_that_has_no_gradient(wrt: str, reason: str) -> None:
    model = support.graph(
        "g (float[3] x, float ratio, bool training) => (float loss)"
        " { y = Dropout(x, ratio, training) loss = ReduceSum<keepdims=0>(y) }"
    )
    with pytest.raises(GradientError, match=reason):
        gradient_graph(model, "loss", [wrt])
