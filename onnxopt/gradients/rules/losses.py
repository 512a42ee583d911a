"""Losses of class scores against labels.

The loss of an element with label ``t`` is ``−w · log p[t]``, where ``w`` is the weight of its class, 1 by default, or
zero where the label is ``ignore_index``. The mean is ``Σ loss / Σ w``. Classes stand along axis 1 of the scores.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp


@vjp("SoftmaxCrossEntropyLoss")
def _softmax_cross_entropy(at: Backward) -> Gradients:
    """``log p = log softmax x``: ``dx = g · w · (p − onehot t)``, and of the second output ``dx = h − p · Σ h``."""
    x = at.inputs[0]
    p = at.op("Exp", at.output(1, at.dtype(x), at.shape(x)))
    parts = []
    if at.gradients[0] is not None:
        labels, factor = _labels_and_factor(at)
        away = _add_at(at, p, labels, at.op("Expand", at.number(-1), at.ints(*_columns(at))))
        parts.append(at.op("Mul", away, factor))
    if len(at.gradients) > 1 and (h := at.gradients[1]) is not None:
        parts.append(at.op("Sub", h, at.op("Mul", p, at.sum(h, 1))))
    return [parts[0] if len(parts) == 1 else at.op("Add", *parts)]


@vjp("NegativeLogLikelihoodLoss")
def _negative_log_likelihood(at: Backward) -> Gradients:
    """``d log p = −g · w`` at the label, zero elsewhere."""
    labels, factor = _labels_and_factor(at)
    found = at.op("Expand", at.op("Neg", factor), at.ints(*_columns(at)))
    return [_add_at(at, at.zeros(at.inputs[0]), labels, found)]


def _columns(at: Backward) -> tuple[int, ...]:
    """The shape of the labels with an axis of one class."""
    n, _, *sizes = at.shape(at.inputs[0])
    return (n, 1, *sizes)


def _add_at(at: Backward, scores: ir.Value, labels: ir.Value, updates: ir.Value) -> ir.Value:
    """``scores``, changed at each label."""
    return at.op("ScatterElements", scores, labels, updates, axis=1, reduction="add")


def _labels_and_factor(at: Backward) -> tuple[ir.Value, ir.Value]:
    """The labels, those to ignore as 0, with an axis of one class, and the derivative of the loss in the loss of each
    element, times its weight: of the same shape, or one number."""
    if at.wants(2):
        raise at.error("the weights of its classes are no constants")
    columns, dtype = _columns(at), at.dtype(at.inputs[0])
    labels, ignored, weights = at.reshape(at.inputs[1], *columns), at.attribute("ignore_index"), at.input(2)
    factor = None
    if ignored is not None:
        index = at.number(ignored, at.inputs[1])
        is_ignored = at.op("Equal", labels, index)
        labels = at.op("Where", is_ignored, at.number(0, at.inputs[1]), labels)
        factor = at.op("Cast", at.op("Not", is_ignored), to=dtype)
    if weights is not None:
        chosen = at.op("Gather", weights, labels, axis=0)
        factor = chosen if factor is None else at.op("Mul", factor, chosen)
    reduction = at.attribute("reduction", "mean")
    g = at.reshape(at.g, *columns) if reduction == "none" else at.g
    if reduction != "mean":
        return labels, g if factor is None else at.op("Mul", factor, g)
    if factor is None:
        return labels, at.op("Div", g, at.number(math.prod(columns)))
    return labels, at.op("Mul", factor, at.op("Div", g, at.sum(factor, *range(len(columns)), keepdims=False)))
