"""Functions of each element by itself."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.errors import GradientError
from onnxopt.gradients import gradient_graph
from tests import support
from tests.gradients.checks import check_node

_RNG = np.random.default_rng(0)
_RANGES = {
    "Abs": (-3, 3.1), "Sqrt": (0.1, 4), "Reciprocal": (0.2, 3), "Exp": (-3, 3), "Log": (0.1, 4), "Erf": (-3, 3),
    "Sin": (-4, 4), "Cos": (-4, 4), "Tan": (-1.2, 1.2), "Asin": (-0.9, 0.9), "Acos": (-0.9, 0.9), "Atan": (-3, 3),
    "Sinh": (-3, 3), "Cosh": (-3, 3), "Asinh": (-3, 3), "Acosh": (1.1, 3), "Atanh": (-0.9, 0.9),
}  # fmt: skip


@pytest.mark.parametrize("opset", [18, 22, 26])
@pytest.mark.parametrize("op", _RANGES)
def test_a_function(op: str, opset: int) -> None:
    low, high = _RANGES[op]
    check_node(op, _RNG.permutation(np.linspace(low, high, 24)).reshape(2, 3, 4), opset=opset)


@pytest.mark.parametrize("op", ["Abs", "Exp", "Erf"])
def test_a_scalar(op: str) -> None:
    check_node(op, np.array(0.7))


def test_the_other_sides() -> None:
    check_node("Reciprocal", -_RNG.uniform(0.2, 3, (3, 4)))
    model = support.graph("g (float[3] x) => (float loss) { y = Abs(x) loss = ReduceSum<keepdims = 0>(y) }")
    x = np.array([-2, 0, 2], np.float32)
    np.testing.assert_array_equal(support.outputs(gradient_graph(model, "loss", ["x"]).model, {"x": x})[1], [-1, 0, 1])


@pytest.mark.parametrize(
    "call",
    [
        "Floor(x)", "Ceil(x)", "Round(x)", "Sign(x)", "Hardmax(x)", "EyeLike(x)", "RandomNormalLike(x)",
        "RandomUniformLike(x)", "Bernoulli<seed = 1.0>(x)",
    ],
)  # fmt: skip
def test_steps_have_no_gradient(call: str) -> None:
    """What comes by another way is left alone, and what comes by no other way is an error."""
    model = support.graph(
        f"g (float[3,3] x) => (float loss) {{ y = {call} z = Add(y, x) loss = ReduceSum<keepdims = 0>(z)"
        " alone = ReduceSum<keepdims = 0>(y) }"
    )
    x = _RNG.uniform(0.1, 0.9, (3, 3)).astype(np.float32)
    (_, dx) = support.outputs(gradient_graph(model, "loss", ["x"]).model, {"x": x})
    np.testing.assert_array_equal(dx, np.ones((3, 3)))
    with pytest.raises(GradientError, match="does not depend on"):
        gradient_graph(model, "alone", ["x"])


@pytest.mark.parametrize(
    "call",
    ["ArgMax(x)", "ArgMin(x)", "Shape(x)", "Size(x)", "NonZero(x)", "IsNaN(x)", "Greater(x, x)", "Multinomial(x)"],
)
def test_integers_have_no_gradient(call: str) -> None:
    model = support.graph(
        f"g (float[3,3] x) => (float loss) {{ n = {call} y = Cast<to = 1>(n) loss = ReduceSum<keepdims = 0>(y) }}"
    )
    with pytest.raises(GradientError, match="does not depend on"):
        gradient_graph(model, "loss", ["x"])
