"""Losses of class scores against labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from onnxopt.errors import GradientError
from tests.gradients.checks import Array, check, check_node

_RNG = np.random.default_rng(0)
_CLASSES = 4
_LOSSES = ["SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"]


def _scores(*sizes: int) -> Array:
    return _RNG.standard_normal((3, _CLASSES, *sizes))


def _labels(*sizes: int) -> Array:
    return _RNG.integers(0, _CLASSES, (3, *sizes))


@pytest.mark.parametrize("op", _LOSSES)
@pytest.mark.parametrize("sizes", [(), (2,), (2, 3)])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum", None])
@pytest.mark.parametrize("ignored", [None, 1, -1, -100, 255])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss(op: str, sizes: tuple[int, ...], reduction: str | None, ignored: int | None, weighted: bool) -> None:
    options: dict[str, Any] = {} if reduction is None else {"reduction": reduction}
    labels = _labels(*sizes)
    if ignored is not None:
        options["ignore_index"] = ignored
        labels[0] = ignored
    inputs = [_scores(*sizes), labels]
    if weighted:
        inputs.append(_RNG.uniform(0.5, 2, _CLASSES))
    check_node(op, *inputs, wrt=[0], constants=[2], **options)


@pytest.mark.parametrize("op", _LOSSES)
@pytest.mark.parametrize("opset", [18, 22, 26])
def test_labels_of_32_bits(op: str, opset: int) -> None:
    check_node(op, _scores(2), _labels(2).astype(np.int32), opset=opset, ignore_index=2)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("read", [["loss_", "log_p"], ["log_p"]])
def test_the_logarithms_of_the_probabilities_are_read_too(reduction: str, read: list[str]) -> None:
    node = helper.make_node("SoftmaxCrossEntropyLoss", ["x", "t"], ["loss_", "log_p"], reduction=reduction)
    check([node], {"x": _scores(2), "t": _labels(2)}, ["x"], read, constants=["t"])


@pytest.mark.parametrize("op", _LOSSES)
def test_refuses_weights_that_move(op: str) -> None:
    with pytest.raises(GradientError, match="weights of its classes"):
        check_node(op, _scores(), _labels(), _RNG.uniform(0.5, 2, _CLASSES))
