"""Products with weights of few bits, against the same product with weights of floats."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from onnxopt.errors import GradientError
from onnxopt.gradients import gradient_graph
from onnxopt.model import from_proto, to_proto
from tests.gradients.checks import Array

_RNG = np.random.default_rng(0)


def _model(arrays: dict[str, Array], constants: dict[str, Array], inputs: list[str], **attributes: Any) -> Any:
    node = helper.make_node("MatMulNBits", inputs, ["y"], domain="com.microsoft", **attributes)
    weighted = helper.make_node("Mul", ["y", "c"], ["p"])
    loss = helper.make_node("ReduceSum", ["p"], ["loss"], keepdims=0)
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in arrays.items()
    ]
    fixed = [numpy_helper.from_array(x, name) for name, x in constants.items()]
    graph = helper.make_graph(
        [node, weighted, loss], "g", values, [helper.make_tensor_value_info("loss", 1, [])], fixed
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return from_proto(helper.make_model(graph, opset_imports=imports, ir_version=10))


def _packed(numbers: Array, bits: int) -> Array:
    """Numbers of the last axis, several a byte, the first in the lowest bits."""
    per = 8 // bits
    padded = np.pad(numbers, [(0, 0)] * (numbers.ndim - 1) + [(0, -numbers.shape[-1] % per)])
    split = padded.reshape(*padded.shape[:-1], -1, per).astype(np.int64)
    return np.asarray((split << (np.arange(per) * bits)).sum(axis=-1), np.uint8)


@pytest.mark.parametrize(
    ("bits", "k", "size", "zero"),
    [
        *[(4, k, size, zero) for k, size in ((32, 16), (40, 16), (16, 32)) for zero in ("none", "integers", "floats")],
        *[(8, k, 32, zero) for k in (64, 40) for zero in ("none", "integers")],
    ],
)
@pytest.mark.parametrize("lead", [(3,), (2, 3)])
def test_gradients_are_those_of_a_product_with_floats(
    bits: int, k: int, size: int, zero: str, lead: tuple[int, ...]
) -> None:
    n, blocks = 5, -(-k // size)
    q = _RNG.integers(0, 1 << bits, (n, blocks, size))
    a = _RNG.standard_normal((*lead, k)).astype(np.float32)
    c = _RNG.standard_normal((*lead, n)).astype(np.float32)
    scale = _RNG.uniform(0.5, 1, (n, blocks)).astype(np.float32)
    bias = _RNG.standard_normal(n).astype(np.float32)
    z = np.full((n, blocks), float(1 << (bits - 1)))
    arrays = {"a": a, "s": scale, "b": bias}
    constants = {"q": _packed(q, bits), "c": c}
    names = ["a", "q", "s", "", "", "b"]
    if zero == "integers":
        z = _RNG.integers(0, 1 << bits, (n, blocks))
        constants["z"] = _packed(z, bits)
        names[3] = "z"
    elif zero == "floats":
        z = _RNG.uniform(0, (1 << bits) - 1, (n, blocks)).astype(np.float32)
        arrays["z"] = z
        names[3] = "z"
    model = _model(arrays, constants, names, K=k, N=n, bits=bits, block_size=size)
    found = gradient_graph(model, "loss", list(arrays))
    session = ort.InferenceSession(to_proto(found.model).SerializeToString(), providers=["CPUExecutionProvider"])
    gradients = dict(zip(arrays, session.run([found.gradients[name] for name in arrays], arrays), strict=True))
    g, rows = c.reshape(-1, n).astype(np.float64), a.reshape(-1, k).astype(np.float64)
    steps = q - z[..., None]
    dw = np.zeros((n, blocks * size))
    dw[:, :k] = g.T @ rows
    dw = dw.reshape(steps.shape)
    expected = {"a": (g @ (steps * scale[..., None]).reshape(n, -1)[:, :k]).reshape(a.shape), "b": g.sum(axis=0)}
    expected["s"] = (dw * steps).sum(axis=2)
    expected["z"] = -scale * dw.sum(axis=2)
    for name, gradient in gradients.items():
        assert gradient.shape == arrays[name].shape
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-5 * np.abs(expected[name]).max())


def test_refuses_rows_in_another_order() -> None:
    arrays = {"a": np.ones((3, 16), np.float32), "s": np.ones((5, 1), np.float32)}
    constants: dict[str, Array] = {"q": np.zeros((5, 1, 8), np.uint8), "c": np.ones((3, 5), np.float32)}
    constants["order"] = np.zeros(16, np.int32)
    model = _model(arrays, constants, ["a", "q", "s", "", "order"], K=16, N=5, bits=4, block_size=16)
    with pytest.raises(GradientError, match="g_idx"):
        gradient_graph(model, "loss", ["a"])


def test_refuses_weights_of_a_run() -> None:
    arrays = {"a": np.ones((3, 16), np.float32)}
    constants: dict[str, Array] = {"s": np.ones((5, 1), np.float32), "c": np.ones((3, 5), np.float32)}
    arrays["q"] = np.zeros((5, 1, 8), np.uint8)
    model = _model(arrays, constants, ["a", "q", "s"], K=16, N=5, bits=4, block_size=16)
    with pytest.raises(GradientError, match="at run time only"):
        gradient_graph(model, "loss", ["a"])
