"""The other engine: what it says where it is missing, and the same gradients where it is there.

``ONNXOPT_ORT_TRAINING`` names a Python with onnxruntime-training, without which the tests of it are left out.
"""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

from onnxopt.errors import GradientError, OptionError
from onnxopt.train import CrossEntropy, TrainConfig, train
from onnxopt.train.trainable import Trainable
from tests import support
from tests.train.cases import dataset, initializers, perceptron, sectors, weights

_THERE = os.environ.get("ONNXOPT_ORT_TRAINING", "")
_NEEDED = pytest.mark.skipif(not _THERE, reason="ONNXOPT_ORT_TRAINING names no Python with onnxruntime-training")


def test_an_interpreter_without_it() -> None:
    config = TrainConfig(steps=1, engine="ort-training", interpreter=sys.executable)
    with pytest.raises(OptionError, match=r"has no onnxruntime-training .*install onnxruntime-training-cpu"):
        train(perceptron(), CrossEntropy(), dataset(), config)


def test_an_interpreter_that_is_not_there(tmp_path: object) -> None:
    with pytest.raises(OptionError, match=r"interpreter '.*python' does not start"):
        Trainable(perceptron(), CrossEntropy(), sectors(4), interpreter=f"{tmp_path}/python")


def test_a_process_that_dies() -> None:
    with pytest.raises(OptionError, match="says nothing that makes sense"):
        Trainable(perceptron(), CrossEntropy(), sectors(4), interpreter="true")


@_NEEDED
@pytest.mark.parametrize("batch_norm", ["none", "train"])
def test_the_same_gradients_and_statistics(batch_norm: str) -> None:
    norm = "n = BatchNormalization(a, g, b1, m, v)" if batch_norm == "train" else "n = Add(a, b1)"
    generator = np.random.default_rng(0)
    model = support.graph(
        f"g (float[N,2] x) => (float[N,3] y) {{ a = MatMul(x, w1) {norm} t = Tanh(n) y = Gemm(t, w2, b2) }}",
        w1=weights(generator, 2, 16), b1=np.zeros(16, np.float32), w2=weights(generator, 16, 3),
        b2=np.zeros(3, np.float32), g=np.ones(16, np.float32), m=np.zeros(16, np.float32), v=np.ones(16, np.float32),
    )  # fmt: skip
    ours, theirs = (
        Trainable(model, CrossEntropy(), sectors(32), batch_norm="train", threads=1, interpreter=each)
        for each in ("", _THERE)
    )
    for samples in (32, 8):
        assert theirs.gradient(sectors(samples)) == pytest.approx(ours.gradient(sectors(samples)), rel=1e-5)
        for mine, other in ((ours.gradients, theirs.gradients), (ours.statistics, theirs.statistics)):
            for name, array in mine.items():
                np.testing.assert_allclose(other[name], array, rtol=1e-4, atol=1e-6, err_msg=name)


@_NEEDED
def test_a_whole_training_ends_near_ours() -> None:
    config = TrainConfig(epochs=3, batch=32, lr=0.02, threads=1)
    other = TrainConfig(epochs=3, batch=32, lr=0.02, threads=1, engine="ort-training", interpreter=_THERE)
    found = []
    for each in (config, other):
        run = train(perceptron(), CrossEntropy(), dataset(), each)
        list(run)
        found.append(initializers(run.result()))
    for name, array in found[0].items():
        np.testing.assert_allclose(found[1][name], array, rtol=1e-3, atol=1e-4, err_msg=name)


@_NEEDED
def test_what_it_cannot_differentiate() -> None:
    model = support.graph(
        "g (float[N,2] x) => (float[N,3] y) { a = MatMul(x, w) y = HardSwish(a) }",
        w=weights(np.random.default_rng(0), 2, 3),
    )  # fmt: skip
    with pytest.raises(GradientError, match=r"cannot differentiate the model: .*HardSwish.*; take engine"):
        Trainable(model, CrossEntropy(), sectors(4), interpreter=_THERE)
