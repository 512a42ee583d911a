"""Trained models of other people's exporters: what pruning took comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.data import Dataset, load_data
from onnxopt.graph import Editor
from onnxopt.model import load
from onnxopt.pass_base import Context
from onnxopt.passes.cleanup.convert_opset import ConvertOpset
from onnxopt.train import CrossEntropy, Distillation, Loss, TrainConfig, accuracy, train
from onnxopt.train.parameters import find_parameters
from tests.train.cases import initializers

_MODELS = Path(__file__).parents[2] / "models"


def _load(name: str) -> tuple[ir.Model, Dataset, Dataset]:
    """The model, and its data in two halves."""
    entry = json.loads((_MODELS / "models.json").read_text())[name]
    model = load(_MODELS / entry["path"])
    if model.opset_imports[""] < 18:
        ConvertOpset(version=18).run(Context(Editor(model)))
    return model, *load_data(_MODELS / entry["eval"], model).split(0.5)


def _prune(model: ir.Model, share: float) -> None:
    """Set the smallest elements of each matrix to zero."""
    held = initializers(model)
    for name in find_parameters(model):
        array: Any = held[name]
        if array.ndim >= 2:
            small = np.abs(array) < np.quantile(np.abs(array), share)
            model.graph.initializers[name].const_value = ir.Tensor(np.where(small, np.float32(0), array), name=name)


@pytest.mark.parametrize("loss", [CrossEntropy(), Distillation()], ids=["labels", "teacher"])
def test_a_pruned_mixer_recovers(loss: Loss) -> None:
    """The patches go through a convolution, which stays as it is."""
    model, data, held_out = _load("mixer_mnist1d")
    teacher, _, _ = _load("mixer_mnist1d")
    _prune(model, 0.6)
    before = initializers(model)
    config = TrainConfig(steps=40, batch=64, lr=1e-3, keep_zeros=True, evaluate_every=40, exclude=("*Conv*", "*conv*"))
    run = train(model, loss, data, config, teacher=teacher, held_out=held_out, metric=accuracy)
    first = train(model, loss, data, config, teacher=teacher, held_out=held_out, metric=accuracy)
    next(iter(first))
    list(run)
    assert first.metric is not None
    assert run.metric is not None
    assert first.metric < 0.5
    assert run.metric > 0.9
    after = initializers(run.result())
    for name in run.parameters:
        assert before[name].ndim < 2 or not after[name][before[name] == 0].any()


def test_a_transformer_follows_its_teacher() -> None:
    model, data, held_out = _load("transformer_sentiment")
    teacher, _, _ = _load("transformer_sentiment")
    _prune(model, 0.5)
    config = TrainConfig(steps=30, batch=32, lr=5e-4, evaluate_every=30)
    run = train(model, Distillation(2.0), data, config, teacher=teacher, held_out=held_out.take(200))
    start = train(model, Distillation(2.0), data, config, teacher=teacher, held_out=held_out.take(200))
    next(iter(start))
    list(run)
    assert start.metric is not None
    assert run.metric is not None
    assert -run.metric < -0.5 * start.metric
