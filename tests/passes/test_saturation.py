"""Weights of 7 bits never saturate the 16-bit sums of CPUs without VNNI; weights of 8 bits can.

There ONNX Runtime multiplies unsigned activations by signed weights with ``vpmaddubsw``, which adds two neighbouring
products into 16 bits and saturates, and then sums those pairs in 32 bits. Pairs are neighbours along K: rows of the
weight of a product; in a convolution, which is laid out channels last, input channels within one tap of the kernel.
Depthwise convolutions multiply in 32 bits. The simulation here is exact: integers throughout.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from models._common import MODELS, samples
from onnxopt.graph import Editor
from onnxopt.model import load, to_proto
from onnxopt.passes.quantize._grid import quantize, weight_grid
from onnxopt.passes.quantize._products import Product
from onnxopt.passes.quantize._quantized_layers import stored
from onnxopt.passes.quantize.adaround import Adaround
from onnxopt.passes.quantize.quantize_static import QuantizeStatic
from onnxopt.pipeline import PassManager
from onnxopt.recipes import recipe
from onnxopt.runtime import Session, Snapshot
from tests.passes.test_adaround import chain

Array = np.ndarray[Any, Any]

SAFE = QuantizeStatic(target="ort-cpu-avx2", placement="all")
WIDE = QuantizeStatic(target="ort-cpu-vnni", placement="all")


def sums(x: Array, w: Array, saturating: bool) -> tuple[Array, int]:
    """``x @ w`` for uint8 (r × k) and int8 (k × n) with pairs along k in 16 bits, and how many of these saturate."""
    if x.shape[1] % 2:  # K is filled up with zeros
        x, w = np.pad(x, ((0, 0), (0, 1))), np.pad(w, ((0, 1), (0, 0)))
    total, count = np.zeros((len(x), w.shape[1]), np.int32), 0
    wide, narrow = x.astype(np.int32), w.astype(np.int32)
    for k in range(0, x.shape[1], 2):
        pairs = np.outer(wide[:, k], narrow[k]) + np.outer(wide[:, k + 1], narrow[k + 1])
        clipped = np.clip(pairs, -(2**15), 2**15 - 1)
        count += int(np.count_nonzero(clipped != pairs))
        total += clipped if saturating else pairs
    return total, count


def test_the_simulation_is_that_of_the_instruction() -> None:
    x, w = np.array([[255, 255, 255, 255, 7]], np.uint8), np.array([[127], [127], [-128], [-128], [3]], np.int8)
    assert sums(x, w, False)[0].item() == 255 * 254 - 255 * 256 + 21
    total, count = sums(x, w, True)
    assert total.item() == 32767 - 32768 + 21
    assert count == 2


WEIGHTS = {
    "normal": np.random.default_rng(0).standard_normal((64, 8)),
    "all at the end": np.full((64, 8), 3.7),
    "all at the lower end": np.full((64, 8), -1e-3),
    "both ends": np.where(np.arange(64)[:, None] % 2, 0.3, -0.3) * np.ones(8),
    "one large": np.where(np.arange(64)[:, None] == 5, 1e4, 1e-4) * np.ones(8),
    "tiny": np.full((64, 8), 1e-38),
    "huge": np.full((64, 8), 3e38),
    "zero": np.zeros((64, 8)),
    **{f"odd {i}": np.random.default_rng(i + 6).uniform(-1, 1, (64, 8)) * 10.0**i for i in range(-6, 7)},
}


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("w", WEIGHTS.values(), ids=WEIGHTS)
def test_seven_bits_fit_whatever_the_input(w: Array, axis: int | None) -> None:
    """No pair can exceed 2 · 255 · 64 = 32640 < 2¹⁵, and the worst inputs for each output reach no more."""
    w = w.astype(np.float32)
    q = quantize(w, weight_grid(w, axis, np.int8, True, reduce_range=True))
    assert np.abs(q.astype(int)).max() <= 64
    assert 2 * 255 * 64 <= 2**15 - 1
    for x in (np.where(q.T > 0, 255, 0), np.where(q.T < 0, 255, 0), np.full(q.T.shape, 255)):
        exact, count = sums(x.astype(np.uint8), q, False)
        assert count == 0
        np.testing.assert_array_equal(sums(x.astype(np.uint8), q, True)[0], exact)


def test_eight_bits_do_not_fit() -> None:
    w = np.full((2, 1), 3.7, np.float32)
    q = quantize(w, weight_grid(w, 1, np.int8, True))
    assert sums(np.full((1, 2), 255, np.uint8), q, True)[1] == 1


def layers(model: ir.Model, feeds: dict[str, Array]) -> Iterator[tuple[Array, Array, Array, Array]]:
    """Of each layer: rows (uint8), weights (int8) in the order of the kernel, the result that ONNX Runtime
    computes with these in float, and the same from exact integer sums."""
    editor, proto = Editor(model), to_proto(model)
    products = [node for node in model.graph if node.op_type in ("Conv", "Gemm", "MatMul")]
    nodes = [node for node in products if stored(node.inputs[1], editor) is not None]
    shown = onnx.ModelProto.FromString(proto.SerializeToString())
    del shown.graph.output[:]
    wanted = []
    for node in nodes:
        quantizer = node.inputs[0].producer().inputs[0]  # type: ignore[union-attr]
        wanted += [quantizer.name or "", node.outputs[0].name or ""]  # type: ignore[union-attr]
    names = list(dict.fromkeys(wanted))
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    values = dict(
        zip(names, Session(Snapshot(shown.SerializeToString(), None), threads=1).run(feeds, names), strict=True)
    )
    for at, node in enumerate(nodes):
        weight, bias = stored(node.inputs[1], editor), stored(node.inputs[2] if len(node.inputs) > 2 else None, editor)
        assert weight is not None
        dequantizer = node.inputs[0].producer()  # type: ignore[union-attr]
        zero = int(editor.constant(dequantizer.inputs[2]))  # type: ignore[union-attr, arg-type]
        scale = np.float64(editor.constant(dequantizer.inputs[1]))  # type: ignore[union-attr]
        product, x = Product(node, weight.integers.shape), values[wanted[2 * at]].astype(np.int16) - zero
        rows = product.rows(x, np.arange(product.count(x))) + zero  # padding holds the zero point
        matrix = product.matrix(weight.integers)
        if len(matrix) > 1:
            continue  # depthwise
        taps = int(np.prod(weight.integers.shape[2:]))
        k = len(matrix[0])
        order = np.arange(k).reshape(k // taps, taps).T.reshape(-1)  # channels next to each other within a tap
        ready, kernel = rows[0][:, order].astype(np.uint8), matrix[0][order]
        total, _ = sums(ready, kernel, False)
        integers = total.astype(np.int64) - zero * kernel.astype(np.int64).sum(axis=0)
        if bias is not None:
            integers = integers + bias.integers
        y = values[wanted[2 * at + 1]]
        by_rows = np.moveaxis(y, 1, -1) if node.op_type == "Conv" else y
        yield ready, kernel, by_rows.reshape(-1, kernel.shape[1]), integers * (scale * weight.grid.scale)


TRIED = {
    "resnet8_mnist_hard": "mnist_hard", "dwcnn_mnist_hard": "mnist_hard", "transformer_sentiment": "sentiment_text"
}  # fmt: skip


@pytest.mark.parametrize(("name", "data"), TRIED.items())
def test_layers_of_trained_models(name: str, data: str) -> None:
    """With 7 bits every layer computes what exact sums do, so that the model does; with 8 bits only VNNI does."""
    model, _ = PassManager(recipe("cleanup"), verify="off").run(load(MODELS / name / "model.onnx"))
    x, _ = samples(data, "train")
    feed = model.graph.inputs[0].name or ""
    safe, _ = chain(model, {feed: x[:32]}, SAFE)
    found = 0
    for rows, weights, floats, exact in layers(safe, {feed: x[32:36]}):
        np.testing.assert_allclose(exact, floats, rtol=1e-4, atol=1e-4 * np.abs(floats).max())
        total, count = sums(rows, weights, True)
        np.testing.assert_array_equal(total, sums(rows, weights, False)[0])
        assert count == 0
        found += 1
    assert found >= 8


def test_eight_bits_saturate_in_a_trained_model() -> None:
    model, _ = PassManager(recipe("cleanup"), verify="off").run(load(MODELS / "resnet8_mnist_hard" / "model.onnx"))
    x, _ = samples("mnist_hard", "train")
    wide, _ = chain(model, {"image": x[:32]}, WIDE)
    assert any(sums(rows, weights, True)[1] for rows, weights, _, _ in layers(wide, {"image": x[32:36]}))


def test_adapted_rounding_keeps_to_seven_bits() -> None:
    model, _ = PassManager(recipe("cleanup"), verify="off").run(load(MODELS / "resnet8_mnist_hard" / "model.onnx"))
    x, _ = samples("mnist_hard", "train")
    safe, report = chain(model, {"image": x[:16]}, SAFE, Adaround(include=("*conv1*", "/head/*")))
    assert report.changed
    for _, weights, _, _ in layers(safe, {"image": x[32:33]}):
        assert np.abs(weights.astype(int)).max() <= 64
