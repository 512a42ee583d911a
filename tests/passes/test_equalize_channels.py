"""``equalize-channels``: same outputs, equal ranges, a second run does nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.graph import Editor
from onnxopt.model import load
from onnxopt.passes.cleanup._linear import layer_of
from onnxopt.passes.quantize._equalization import Coupling, equalizing_scales
from onnxopt.passes.quantize.equalize_channels import EqualizeChannels, magnitudes
from tests.support import assert_same_outputs, graph, run

MODELS = Path(__file__).parents[2] / "models"


def uneven(*shape: int, seed: int = 0, axis: int = 0) -> np.ndarray[Any, Any]:
    """Weights whose slices along ``axis`` differ in size by three orders of magnitude."""
    rng = np.random.default_rng(seed)
    factors = np.geomspace(0.03, 30, shape[axis])
    rng.shuffle(factors)
    along = [-1 if at == axis else 1 for at in range(len(shape))]
    return (rng.standard_normal(shape) * factors.reshape(along)).astype(np.float32)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(9).standard_normal(shape).astype(np.float32)


def weights_of(model: ir.Model) -> dict[str, np.ndarray[Any, Any]]:
    """By node, the largest magnitude between each output and each input."""
    editor = Editor(model)
    layers = {n.outputs[0].name or "": layer_of(n, editor) for n in model.graph}
    return {name: magnitudes(layer) for name, layer in layers.items() if layer is not None}


BETWEEN = {
    "nothing": ("", "c"),
    "relu": ("m = Relu(c)", "m"),
    "leaky": ("m = LeakyRelu(c)", "m"),
    "prelu": ("m = PRelu(c, slope)", "m"),
    "pools": ("m0 = MaxPool <kernel_shape = [2,2]> (c) m = AveragePool <kernel_shape = [2,2]> (m0)", "m"),
    "pad": ("pads = Constant <value = int64[8] {0,0,1,1,0,0,1,1}> () m = Pad(c, pads)", "m"),
    "gate": ("p = GlobalAveragePool(c) e = Conv(p, kg) g = HardSigmoid(e) m = Mul(c, g)", "m"),
    "residual": ("r = Relu(c) e = Conv(r, kg) m = Add(r, e)", "m"),
    "add": ("m = Add(c, bias)", "m"),
}


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
def test_between_convolutions(between: tuple[str, str]) -> None:
    text, last = between
    before = graph(
        f"g (float[N,3,9,9] x) => (float[N,4,P,Q] y) {{ c = Conv(x, k1, b1) {text} y = Conv({last}, k2) }}",
        k1=uneven(6, 3, 3, 3), b1=normal(6), k2=normal(4, 6, 3, 3), slope=np.full((6, 1, 1), 0.3, np.float32),
        kg=normal(6, 6, 1, 1), bias=normal(6, 1, 1),
    )  # fmt: skip
    after, report = run(EqualizeChannels(), before)
    assert report.changed == 1
    assert_same_outputs(before, after, {"x": np.random.default_rng(1).random((2, 3, 9, 9), np.float32)})
    found = weights_of(after)
    reading, making = found["y"].max(0), found["c"].max(1)
    if "e" in found:
        reading = np.maximum(reading, found["e"].max(0))
    if "Add(r, e)" in text:
        making = np.maximum(making, found["e"].max(1))
    np.testing.assert_allclose(making, reading, rtol=0.05)
    assert run(EqualizeChannels(), after)[1].changed == 0


def test_through_a_depthwise_convolution_and_into_a_matrix() -> None:
    before = graph(
        """g (float[N,3,6,6] x) => (float[N,5] y)
        {
            c = Conv(x, k1, b1) r = Relu(c) e = Conv <group = 6> (r, kd)
            t = Relu(e) f = Flatten(t) y = Gemm(f, w, b)
        }""",
        k1=uneven(6, 3, 3, 3), b1=normal(6), kd=uneven(6, 1, 3, 3, seed=1), w=normal(24, 5), b=normal(5),
    )  # fmt: skip
    after, report = run(EqualizeChannels(), before)
    assert report.changed == 2
    assert_same_outputs(before, after)
    found = weights_of(after)
    depth = found["e"].max(1)
    np.testing.assert_allclose(found["c"].max(1), depth, rtol=0.05)
    np.testing.assert_allclose(found["y"].max(0).reshape(6, 4).max(1), depth, rtol=0.05)


def test_matrices_with_a_bias_behind_them() -> None:
    before = graph(
        "g (float[N,7,8] x) => (float[N,7,4] y) { a = MatMul(x, w1) b = Add(a, b1) r = Relu(b) y = MatMul(r, w2) }",
        w1=uneven(8, 6, axis=1), b1=normal(6), w2=normal(6, 4),
    )  # fmt: skip
    after, report = run(EqualizeChannels(), before)
    assert report.changed == 1
    assert_same_outputs(before, after)


REFUSED = {
    "HardSwish 'm' reads it": "c = Conv(x, k1) m = HardSwish(c) y = Conv(m, k2)",
    "Clip 'm' reads it": "c = Conv(x, k1) m = Clip(c, low, high) y = Conv(m, k2)",
    "is an output of its graph": "c = Conv(x, k1) m = Relu(c) y0 = Conv(m, k2) y = Identity(c)",
    "shares its weights": "c = Conv(x, k1) m = Conv(c, ks) y = Conv(m, ks)",
    "not clear which input of 'm'": "c = Conv(x, k1) r = Relu(c) m = Mul(c, r) y = Conv(m, k2)",
    "Concat 'm' reads it": "c = Conv(x, k1) m = Concat <axis = 1> (c, c) y = Conv(m, kw)",
}


@pytest.mark.parametrize(("reason", "body"), REFUSED.items())
def test_says_why_not(reason: str, body: str) -> None:
    before = graph(
        f"g (float[N,3,5,5] x) => (float[N,6,P,Q] y) <float low = {{0}}, float high = {{6}}> {{ {body} }}",
        k1=uneven(6, 3, 1, 1), k2=normal(6, 6, 1, 1), ks=normal(6, 6, 1, 1), kw=normal(6, 12, 1, 1),
    )  # fmt: skip
    _, report = run(EqualizeChannels(), before)
    assert report.changed == 0
    assert reason in "\n".join(map(str, report.refusals))


def test_a_channel_without_weights_keeps_its_scale() -> None:
    k1 = uneven(6, 3, 1, 1)
    k1[2] = 0
    before = graph(
        "g (float[N,3,5,5] x) => (float[N,4,5,5] y) { c = Conv(x, k1) r = Relu(c) y = Conv(r, k2) }",
        k1=k1, k2=normal(4, 6, 1, 1),
    )  # fmt: skip
    after, _ = run(EqualizeChannels(), before)
    assert_same_outputs(before, after)
    dead = after.graph.initializers["k2"].const_value
    assert dead is not None
    np.testing.assert_array_equal(dead.numpy()[:, 2], normal(4, 6, 1, 1)[:, 2])


@pytest.mark.parametrize("name", ["dwcnn_mnist_hard", "resnet8_mnist_hard"])
def test_weights_of_trained_models_fit_one_scale_better(name: str) -> None:
    before = load(MODELS / name / "model.onnx")
    after, report = run(EqualizeChannels(), before)
    if name == "dwcnn_mnist_hard":
        assert report.changed == 6
        assert_same_outputs(before, after)
        assert run(EqualizeChannels(), after)[1].changed == 0

        def sqnr(model: ir.Model) -> float:
            found = []
            for weight in model.graph.initializers.values():
                w = weight.const_value.numpy() if weight.const_value is not None else np.zeros(0)
                if w.ndim == 4:
                    step = np.abs(w).max() / 127
                    error = np.mean((w - np.rint(w / step) * step) ** 2)
                    found.append(10 * np.log10(np.mean(w**2) / error))
            return float(np.mean(found))

        assert sqnr(after) > sqnr(before)
    else:
        assert "BatchNormalization" in "\n".join(map(str, report.refusals)), "normalizations are to be folded first"


def test_scales_make_both_sides_the_geometric_mean() -> None:
    made, read = np.array([[4.0, 1.0], [0.5, 0.1]]), np.array([[1.0, 2.0]])
    (scale,) = equalizing_scales([made, read], [Coupling([0], [(1, 1)])])
    np.testing.assert_allclose(scale, np.sqrt([1 / 4, 2 / 0.5]))
