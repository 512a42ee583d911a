"""Activations that are ``x`` times a gate; those of ONNX Runtime alone against the same from standard operators."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.gradients import gradient_graph
from tests import support
from tests.gradients.checks import Array, check_node

_RNG = np.random.default_rng(0)
_X = _RNG.permutation(np.linspace(-5.02, 5.03, 60)).reshape(3, 4, 5)
"""Both sides of all kinks, none within 0.001 of one."""


@pytest.mark.parametrize("opset", [20, 22, 26])
def test_gelu(opset: int) -> None:
    check_node("Gelu", _X, opset=opset)
    check_node("Gelu", _X, opset=opset, approximate="none")
    check_node("Gelu", _X, opset=opset, approximate="tanh")


@pytest.mark.parametrize("opset", [18, 22, 26])
@pytest.mark.parametrize("op", ["HardSwish", "Mish"])
def test_without_attributes(op: str, opset: int) -> None:
    check_node(op, _X, opset=opset)


@pytest.mark.parametrize("alpha", [1.0, 1.702, -0.5])
@pytest.mark.parametrize("opset", [24, 26])
def test_swish(alpha: float, opset: int) -> None:
    check_node("Swish", _X, opset=opset, alpha=alpha, runtime=opset == 24)  # ONNX Runtime has none of later opsets


def test_swish_without_alpha() -> None:
    check_node("Swish", _X, opset=24)


def _gradients(call: str, arrays: dict[str, Array]) -> list[Array]:
    """Of the weighted sum of ``call``, in each of ``arrays``."""
    inputs = ", ".join(f"float[{','.join(map(str, x.shape))}] {name}" for name, x in arrays.items())
    loss = "weighted = Mul(y, weights) loss = ReduceSum<keepdims = 0>(weighted)"
    model = support.graph(
        f"g ({inputs}) => (float loss) {{ {call} {loss} }}",
        opset=24, ir_version=10, extra=', "com.microsoft": 1',
        weights=np.random.default_rng(3).standard_normal(_X.shape).astype(np.float32),
    )  # fmt: skip
    return support.outputs(gradient_graph(model, "loss", list(arrays)).model, arrays)[1:]


@pytest.mark.parametrize(
    ("contrib", "standard"),
    [
        ("Gelu(x)", "y = Gelu(x)"),
        ("BiasGelu(x, b)", "z = Add(x, b) y = Gelu(z)"),
        ("FastGelu(x)", 'y = Gelu<approximate = "tanh">(x)'),
        ("FastGelu(x, b)", 'z = Add(x, b) y = Gelu<approximate = "tanh">(z)'),
        ("QuickGelu(x)", "a = Constant<value_float = 1.702>() z = Mul(x, a) s = Sigmoid(z) y = Mul(x, s)"),
        ("QuickGelu<alpha = 1.0>(x)", "y = Swish(x)"),
        ("QuickGelu<alpha = 0.5>(x)", "y = Swish<alpha = 0.5>(x)"),
    ],
)
def test_those_of_onnx_runtime(contrib: str, standard: str) -> None:
    arrays = {"x": _X.astype(np.float32)}
    if "b" in contrib.partition("(")[2]:
        arrays["b"] = _RNG.standard_normal(5).astype(np.float32)
    found, expected = _gradients(f"y = com.microsoft.{contrib}", arrays), _gradients(standard, arrays)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_far_from_zero() -> None:
    """All gates are shut or open there, and nothing overflows."""
    x = np.array([-1e4, -100, 100, 1e4], np.float32)
    for call in ("Gelu(x)", 'Gelu<approximate = "tanh">(x)', "Swish(x)", "Mish(x)", "HardSwish(x)"):
        model = support.graph(
            f"g (float[4] x) => (float loss) {{ y = {call} loss = ReduceSum<keepdims = 0>(y) }}",
            opset=24, ir_version=10,
        )  # fmt: skip
        (_, dx) = support.outputs(gradient_graph(model, "loss", ["x"]).model, {"x": x})
        np.testing.assert_allclose(dx, [0, 0, 1, 1], atol=1e-6)
