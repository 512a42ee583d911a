"""Biases that make up for the means of removed channels, without data.

Behind a BatchNormalization a channel has about the mean ``β`` and the deviation ``|γ|`` that it was given, and behind
an activation the mean that this makes of a Gaussian. For Relu that is ``β Φ(β/γ) + γ φ(β/γ)``; in general it is an
integral that a few points give. A layer that read a removed channel loses, for each output, this mean times the sum
of its weights for that channel, which its bias can take. At the edges, where zeros are padded, it is less.

The dense model must still have its BatchNormalizations: once they are folded, nothing tells the means.

Source: Nagel, van Baalen, Blankevoort and Welling, "Data-Free Quantization Through Weight Equalization and Bias
Correction", ICCV 2019, §4.2.1, which does so for rounded weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, attribute
from onnxopt.pass_base import Context, Log, Refuse
from onnxopt.passes.cleanup._operands import input_at
from onnxopt.passes.prune._batch_norms import BatchNorm
from onnxopt.passes.prune._refits import Refit

Array = np.ndarray[Any, Any]

_DEVIATIONS = np.linspace(-8, 8, 1601)
"""Where a Gaussian is looked at."""
_KEEP_MEANS = frozenset({"GlobalAveragePool", "AveragePool", "ReduceMean", "Dropout", "Identity", "Flatten"})
"""Operators that leave the mean of a channel as it is, up to borders."""


def shift_biases(refits: Sequence[Refit], context: Context, log: Log) -> None:
    """Shift the bias of each of these layers by what the removed channels gave on average."""
    assert context.original is not None
    dense = Editor(context.original)
    for refit in refits:
        if context.gate.closed:
            return
        try:
            shift = _shift(refit, dense)
            matrix = refit.matrix()
            matrix[:, -1] += shift.reshape(len(matrix), -1)
            refit.put(matrix, context.editor)
        except Refuse as refusal:
            log.refused(refit.name, f"{refusal}; with calibration data (data=) it could be fitted anew")
            continue
        size = float(np.sqrt(np.mean(shift**2)))
        log.measured(node=refit.name, shift=size)
        log.changed(refit.name, f"bias shifted by {size:.2g} for the means of the removed channels")


def _shift(refit: Refit, dense: Editor) -> Array:
    node, source = refit.layer.node, refit.source
    if refit.read is None:
        raise Refuse("it reads all channels that the dense layer does")
    if attribute(node, "group", 1) != 1:
        raise Refuse("it works in groups")
    if not refit.has_bias:
        raise Refuse("it has no bias")
    weight = dense.constant(source.inputs[1])
    assert weight is not None
    if node.op_type == "Conv":
        by_channel = weight.sum(axis=tuple(range(2, weight.ndim)), dtype=np.float64)
    else:
        by_channel = weight.astype(np.float64) if attribute(node, "transB", 0) else weight.T.astype(np.float64)
    means = _means(source.inputs[0], dense)
    if len(means) != by_channel.shape[1]:
        raise Refuse("its input is not one value for each channel of the BatchNormalization before it")
    removed = np.setdiff1d(np.arange(len(means)), refit.read)
    shift: Array = by_channel[:, removed] @ means[removed]
    return shift if refit.made is None else shift[refit.made]


def _means(value: ir.Value | None, dense: Editor) -> Array:
    """The mean of each channel of a tensor of the dense model. Raises ``Refuse`` if nothing tells."""
    activation: Callable[[Array], Array] | None = None
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "BatchNormalization":
            BatchNorm(node)
            gamma, beta = (dense.constant(input_at(node, at)) for at in (1, 2))
            assert gamma is not None
            assert beta is not None
            return _gaussian_mean(activation, beta.astype(np.float64), np.abs(gamma.astype(np.float64)))
        if activation is None and node.op_type in ("Relu", "Clip"):
            activation = _activation(node, dense)
        elif activation is not None or node.op_type not in _KEEP_MEANS:
            break
        value = node.inputs[0]
    raise Refuse("no BatchNormalization of the dense model tells the means of the channels that it read")


def _activation(node: ir.Node, dense: Editor) -> Callable[[Array], Array]:
    if node.op_type == "Relu":
        return lambda x: np.maximum(x, 0)
    limits = []
    for at, (name, none) in enumerate((("min", -np.inf), ("max", np.inf)), 1):
        given = dense.scalar(input_at(node, at))
        limits.append(float(attribute(node, name, none) if given is None else given))
    return lambda x: np.clip(x, limits[0], limits[1])


def _gaussian_mean(activation: Callable[[Array], Array] | None, mean: Array, deviation: Array) -> Array:
    """``E[activation(z)]`` for ``z`` of these means and deviations, element by element."""
    if activation is None:
        return mean
    density = np.exp(-(_DEVIATIONS**2) / 2)
    found: Array = activation(mean[:, None] + deviation[:, None] * _DEVIATIONS) @ (density / density.sum())
    return found
