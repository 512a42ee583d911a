"""Activations, on both sides of their kinks."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.gradients import gradient_graph
from tests import support
from tests.gradients.checks import check_node

_RNG = np.random.default_rng(0)
_X = _RNG.permutation(np.linspace(-4.02, 4.03, 60)).reshape(3, 4, 5)
"""Both sides of all kinks, none within 0.001 of one."""


@pytest.mark.parametrize("opset", [18, 21, 22, 23, 26])
@pytest.mark.parametrize(
    "op", ["Relu", "LeakyRelu", "Elu", "Selu", "Sigmoid", "Tanh", "HardSigmoid", "Softplus", "Softsign"]
)
def test_defaults(op: str, opset: int) -> None:
    check_node(op, _X, opset=opset)


@pytest.mark.parametrize("op", ["ThresholdedRelu", "Celu", "Shrink"])
def test_more_defaults(op: str) -> None:
    check_node(op, _X)
    check_node(op, _X, opset=22)


@pytest.mark.parametrize("op", ["LeakyRelu", "Elu", "Celu", "ThresholdedRelu", "Selu"])
@pytest.mark.parametrize("alpha", [0.1, 0.7, 1.5, 0.0, -0.3])
def test_alpha(op: str, alpha: float) -> None:
    if op == "Celu" and alpha == 0:
        alpha = 1.0
    check_node(op, _X, alpha=alpha, runtime=alpha > 0 or op in ("LeakyRelu", "ThresholdedRelu"))


@pytest.mark.parametrize(("alpha", "gamma"), [(1.0, 2.0), (0.5, 1.0), (2.0, 0.7)])
def test_selu(alpha: float, gamma: float) -> None:
    check_node("Selu", _X, alpha=alpha, gamma=gamma)


@pytest.mark.parametrize(("alpha", "beta"), [(1 / 6, 0.5), (0.4, 0.1), (0.5, -0.2)])
def test_hard_sigmoid(alpha: float, beta: float) -> None:
    check_node("HardSigmoid", _X, alpha=alpha, beta=beta)


@pytest.mark.parametrize(("lambd", "bias"), [(1.5, 0.0), (0.0, 0.3), (1.0, 2.0)])
def test_shrink(lambd: float, bias: float) -> None:
    check_node("Shrink", _X, lambd=lambd, bias=bias)


@pytest.mark.parametrize("opset", [18, 26])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (4, 1), (3, 1, 1), (1, 4, 5), (3, 4, 5)])
@pytest.mark.parametrize("wrt", [(0,), (1,), (0, 1)])
def test_prelu(opset: int, shape: tuple[int, ...], wrt: tuple[int, ...]) -> None:
    check_node("PRelu", _X, np.asarray(_RNG.uniform(-0.5, 1.5, shape)), wrt=wrt, opset=opset)


@pytest.mark.parametrize("low", [None, -1.2])
@pytest.mark.parametrize("high", [None, 2.1])
@pytest.mark.parametrize("constant", [True, False])
def test_clip(low: float | None, high: float | None, constant: bool) -> None:
    bounds = [None if bound is None else np.array(bound) for bound in (low, high)]
    while bounds and bounds[-1] is None:
        bounds.pop()
    check_node("Clip", _X, *bounds, constants=[1, 2] if constant else [])


def test_clip_to_one_bound() -> None:
    for wrt in ([1], [2], [0, 2]):
        check_node("Clip", _X, np.array(-0.5), np.array(1.5), wrt=wrt)


@pytest.mark.parametrize(
    ("call", "x", "slope"),
    [
        ("Relu(x)", [-1, 0, 1], [0, 0, 1]),
        ("LeakyRelu<alpha = 0.5>(x)", [-1, 0, 1], [0.5, 1, 1]),
        ("Elu(x)", [0], [1]),
        ("HardSigmoid(x)", [-2.5, -3, 2.5, 3, 0], [0, 0, 0, 0, 0.2]),
        ("Clip(x, low, high)", [-1, -1.5, 2, 2.5, 0], [1, 0, 1, 0, 1]),
    ],
)
def test_slopes_at_kinks(call: str, x: list[float], slope: list[float]) -> None:
    model = support.graph(
        f"g (float[{len(x)}] x) => (float loss) {{ y = {call} loss = ReduceSum<keepdims = 0>(y) }}",
        low=np.array(-1, np.float32),
        high=np.array(2, np.float32),
    )
    (_, dx) = support.outputs(gradient_graph(model, "loss", ["x"]).model, {"x": np.array(x, np.float32)})
    np.testing.assert_allclose(dx, slope, rtol=1e-6)
