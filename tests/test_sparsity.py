"""Masks of pruned weights stay with the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from onnxopt.graph import Editor
from onnxopt.model import load, save
from onnxopt.pass_base import Context
from onnxopt.passes.prune.prune_weights import PruneWeights
from onnxopt.sparsity import KEY, masks, pruned, record
from tests.support import graph


def test_masks_survive(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"v": rng.standard_normal((16, 8)), "u": rng.standard_normal((16, 16)), "w": rng.standard_normal((8, 5))}
    model = graph(
        """g (float[N,16] x) => (float[N,5] y) {
            a = Gemm <transB = 1> (x, u) b = Gemm (a, v) c = Relu(b) y = MatMul(c, w)
        }""",
        **{name: array.astype(np.float32) for name, array in arrays.items()},  # type: ignore[arg-type]
    )
    for pass_ in (PruneWeights(pattern="2:4", include=("Gemm",)), PruneWeights(sparsity=0.3, include=("MatMul",))):
        assert pass_.run(Context(Editor(model))).changed
    save(model, tmp_path / "pruned.onnx")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(tmp_path / "pruned.onnx", options, providers=["CPUExecutionProvider"])
    expected = masks(model)
    assert expected["w"].sum() == 28
    for file in ("pruned.onnx", "optimized.onnx"):
        read = load(tmp_path / file)
        assert pruned(read) == {"u": "2:4", "v": "2:4", "w": ""}
        assert masks(read).keys() == expected.keys()
        for name, mask in masks(read).items():
            np.testing.assert_array_equal(mask, expected[name])


def test_masks_of_what_is_gone_or_garbled() -> None:
    model = graph("g (float[N,2] x) => (float[N,2] y) { y = MatMul(x, w) }", w=np.eye(2, dtype=np.float32))
    record(model, {"w": "", "elsewhere": "2:4"})
    np.testing.assert_array_equal(masks(model)["w"], np.eye(2, dtype=bool))
    assert set(masks(model)) == {"w"}
    for text in ("{", "[]", '{"w": 1}', "null"):
        model.metadata_props[KEY] = text
        assert masks(model) == {}
