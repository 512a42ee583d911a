"""Softmax and its logarithm, along one axis."""

from __future__ import annotations

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp


@vjp("Softmax")
def _softmax(at: Backward) -> Gradients:
    """``y = exp x / Σ exp x``: ``dx = y · (g − Σ g · y)``."""
    y = at.outputs[0]
    total = at.sum(at.op("Mul", at.g, y), _axis(at))
    return [at.op("Mul", at.op("Sub", at.g, total), y)]


@vjp("LogSoftmax")
def _log_softmax(at: Backward) -> Gradients:
    """``y = x − log Σ exp x``: ``dx = g − exp y · Σ g``."""
    total = at.sum(at.g, _axis(at))
    return [at.op("Sub", at.g, at.op("Mul", at.op("Exp", at.outputs[0]), total))]


def _axis(at: Backward) -> int:
    axis: int = at.attribute("axis", -1)
    return axis % max(1, at.rank(at.outputs[0]))
