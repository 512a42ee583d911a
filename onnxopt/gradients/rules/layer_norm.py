"""Normalization of rows by their own mean and variance: of layers, groups of channels, single channels.

``x`` is looked at as (rows, elements). What is affine in each row is written as a ``BatchNormalization`` at inference
whose channels are the rows, which is one pass over the array where ``Sub`` and ``Mul`` are two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp


@vjp("LayerNormalization")
def _layer_normalization(at: Backward) -> Gradients:
    """``y = scale · x̂ + b`` with ``x̂ = (x − mean) / σ`` of each row: ``dscale = Σ g · x̂``, ``db = Σ g`` and, with
    ``h = g · scale``, ``dx = (h − mean h − x̂ · mean(h · x̂)) / σ``."""
    if any(at.gradients[1:]):
        raise at.error("the loss depends on its Mean or InvStdDev")
    x = at.inputs[0]
    rows = _Rows.of(at, at.shape(x), at.attribute("axis", -1))
    wide = max(at.dtype(x), ir.DataType.FLOAT, key=lambda dtype: dtype.itemsize)
    statistics = [at.output(i, wide, (*rows.lead, *[1] * (len(rows.shape) - len(rows.lead)))) for i in (1, 2)]
    mean, inverse = (at.reshape(rows.cast(value, wide), rows.count) for value in statistics)
    return _gradients(at, rows, at.g, rows.affine(x, inverse, mean), inverse, at.inputs[1], at.input(2))


@vjp("SimplifiedLayerNormalization", "RMSNormalization")
def _rms_normalization(at: Backward) -> Gradients:
    """``y = scale · x̂`` with ``x̂ = x / σ`` and ``σ² = mean x² + ε`` of each row: ``dscale = Σ g · x̂`` and, with
    ``h = g · scale``, ``dx = (h − x̂ · mean(h · x̂)) / σ``."""
    if any(at.gradients[1:]):
        raise at.error("the loss depends on its InvStdDev")
    rows = _Rows.of(at, at.shape(at.inputs[0]), at.attribute("axis", -1))
    normalized, inverse = _by_root_mean_square(at, rows, at.inputs[0])
    return _gradients(at, rows, at.g, normalized, inverse, at.inputs[1], None, centred=False)[:2]


@vjp("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain="com.microsoft")
def _skip_layer_normalization(at: Backward) -> Gradients:
    """``LayerNormalization``, or that without a mean, of ``s = x + skip + bias``, which is an output too."""
    if any(at.gradients[1:3]):
        raise at.error("the loss depends on its mean or inv_std_var")
    centred = at.node.op_type == "SkipLayerNormalization"
    x, skip, scale = at.inputs[:3]
    b, bias = (at.input(3), at.input(4)) if centred else (None, at.input(3))
    rows = _Rows.of(at, at.shape(x), -1)
    total = at.output(3, at.dtype(x), rows.shape)
    by = _by_mean_and_variance if centred else _by_root_mean_square
    normalized, inverse = by(at, rows, total)
    dx, dscale, db = _gradients(at, rows, at.g, normalized, inverse, scale, b, centred=centred)
    assert dx is not None
    if len(at.gradients) > 3 and at.gradients[3] is not None:
        dx = at.op("Add", dx, at.gradients[3])
    narrow = [at.unbroadcast(dx, value, rows.shape) if value is not None else None for value in (skip, bias)]
    return [dx, narrow[0], dscale, db, narrow[1]] if centred else [dx, narrow[0], dscale, narrow[1]]


@vjp("GroupNormalization")
def _group_normalization(at: Backward) -> Gradients:
    """As ``LayerNormalization``, of the channels of a group; ``scale`` and ``b`` are per group before opset 21."""
    groups = at.attribute("num_groups")
    return _channel_gradients(at, groups, at.shape(at.inputs[0])[1] if at.opset >= 21 else groups)


@vjp("InstanceNormalization")
def _instance_normalization(at: Backward) -> Gradients:
    """As ``LayerNormalization``, of each channel of each image."""
    channels = at.shape(at.inputs[0])[1]
    return _channel_gradients(at, channels, channels)


def _channel_gradients(at: Backward, groups: int, parts: int) -> Gradients:
    """Of an image's ``groups`` of channels, each a row; ``scale`` and ``b`` have ``parts`` elements."""
    x = at.inputs[0]
    shape = at.shape(x)
    rows = _Rows(at, (shape[0] * groups, math.prod(shape[1:]) // groups), (shape[0] * groups,))
    normalized, inverse = _by_mean_and_variance(at, rows, at.reshape(x, *rows.shape))
    split = (shape[0], parts, math.prod(shape[1:]) // parts)
    g, scale = at.reshape(at.g, *split), at.reshape(at.inputs[1], parts, 1)
    product = at.op("Mul", g, at.reshape(normalized, *split))
    h, weighted = (at.reshape(at.op("Mul", value, scale), *rows.shape) for value in (g, product))
    dx = at.reshape(rows.projected(h, weighted, normalized, inverse, centred=True), *shape)
    return dx, at.sum(product, 0, 2, keepdims=False), at.sum(g, 0, 2, keepdims=False)


@dataclass(frozen=True)
class _Rows:
    """An array of ``shape`` as rows: one for each index of its first axes, ``lead``."""

    at: Backward
    shape: tuple[int, ...]
    lead: tuple[int, ...]

    @staticmethod
    def of(at: Backward, shape: tuple[int, ...], axis: int) -> _Rows:
        return _Rows(at, shape, shape[: axis % len(shape)])

    @property
    def count(self) -> int:
        return math.prod(self.lead)

    @property
    def length(self) -> int:
        return math.prod(self.shape[len(self.lead) :])

    def filled(self, number: int, *shape: int) -> ir.Value:
        return self.at.op("Expand", self.at.number(number), self.at.ints(*shape))

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """``value`` of ``dtype`` in the type of the node's output."""
        to = self.at.dtype(self.at.outputs[0])
        return value if dtype == to else self.at.op("Cast", value, to=int(to))

    def affine(self, value: ir.Value, factor: ir.Value, mean: ir.Value | None) -> ir.Value:
        """``factor · (value − mean)``, with one factor and mean a row."""
        at, zero, one = self.at, self.filled(0, self.count), self.filled(1, self.count)
        as_channels = at.reshape(value, 1, self.count, self.length)
        found = at.op("BatchNormalization", as_channels, factor, zero, mean or zero, one, epsilon=0.0)
        return at.reshape(found, *self.shape)

    def mean(self, value: ir.Value) -> ir.Value:
        """Of each row."""
        by_row = self.at.reshape(value, self.count, self.length)
        return self.at.op("ReduceMean", by_row, self.at.ints(1), keepdims=0)

    def projected(
        self, h: ir.Value, weighted: ir.Value, normalized: ir.Value, inverse: ir.Value, *, centred: bool
    ) -> ir.Value:
        """``(h − mean h − x̂ · mean(h · x̂)) / σ`` where ``weighted`` is ``h · x̂``; without ``mean h`` if not
        ``centred``."""
        share = self.at.op("Neg", self.at.op("Mul", inverse, self.mean(weighted)))
        direct = self.affine(h, inverse, self.mean(h) if centred else None)
        return self.at.op("Add", direct, self.affine(normalized, share, None))


def _gradients(
    at: Backward,
    rows: _Rows,
    g: ir.Value,
    normalized: ir.Value,
    inverse: ir.Value,
    scale: ir.Value,
    b: ir.Value | None,
    *,
    centred: bool = True,
) -> tuple[ir.Value | None, ir.Value | None, ir.Value | None]:
    """Those of ``x``, ``scale`` and ``b``, from ``x̂`` and ``1 / σ``."""
    product = at.op("Mul", g, normalized)
    h, weighted = at.op("Mul", g, scale), at.op("Mul", product, scale)
    dx = rows.projected(h, weighted, normalized, inverse, centred=centred)
    db = None if b is None else at.unbroadcast(g, b, rows.shape)
    return dx, at.unbroadcast(product, scale, rows.shape), db


def _by_mean_and_variance(at: Backward, rows: _Rows, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """``(x − mean) / σ`` and ``1 / σ``."""
    ones, axis = rows.filled(1, *rows.shape[len(rows.lead) :]), len(rows.lead)
    epsilon = at.attribute("epsilon", 1e-12 if at.node.domain else 1e-5)
    normalized, _, inverse = at.ops("LayerNormalization", x, ones, outputs=3, axis=axis, epsilon=epsilon)
    wide = max(at.dtype(at.outputs[0]), ir.DataType.FLOAT, key=lambda dtype: dtype.itemsize)
    return normalized, at.reshape(rows.cast(inverse, wide), rows.count)


def _by_root_mean_square(at: Backward, rows: _Rows, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """``x / σ`` and ``1 / σ``."""
    epsilon = at.attribute("epsilon", 1e-12 if at.node.domain else 1e-5)
    by_row = at.reshape(x, rows.count, rows.length)
    square = at.op("Div", at.op("ReduceSumSquare", by_row, at.ints(1), keepdims=0), at.number(rows.length))
    inverse = at.op("Reciprocal", at.op("Sqrt", at.op("Add", square, at.number(epsilon))))
    return rows.affine(x, inverse, None), inverse
