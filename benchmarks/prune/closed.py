"""Do these slices go together, and only with each other? Asked of the model itself, of no graph of ties.

All slices of the set are zero, and one constant after another gets others in its slices: if what a slice makes is read
outside of the set, an output moves. So a set that is too small, or pairs the wrong slices, is found out. Only what
makes a channel is varied (filters, biases, scales), not what reads it. The test says nothing where an operator takes
statistics over channels or is not 0 at 0 (a Sigmoid after the channel leaves a half).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, numpy_helper

Array = np.ndarray[Any, Any]
Slices = Mapping[tuple[str, int], frozenset[int]]
"""Initializer and axis → indices."""

UNSURE = {
    "LayerNormalization", "GroupNormalization", "InstanceNormalization", "Softmax", "LogSoftmax", "ReduceMean",
    "ReduceSum", "ReduceL2", "ReduceMax", "Sigmoid", "HardSigmoid", "Exp", "Cos",
}  # fmt: skip
"""Operators for which a set that fails may still be right."""


def reads(model: ModelProto, name: str, axis: int) -> bool:
    """Whether the slices of this initializer along ``axis`` read channels."""
    for node in model.graph.node:
        at = next((i for i, each in enumerate(node.input) if each == name), None)
        if at is None:
            continue
        if node.op_type == "Conv":
            return at == 1 and axis == 1
        if node.op_type == "ConvTranspose":
            return at == 1 and axis == 0
        if node.op_type == "Gemm":
            turned = any(a.name == "transB" and a.i for a in node.attribute)
            return at == 1 and axis == int(turned)
        if node.op_type == "MatMul":
            return at == 1 and axis == 0
        if node.op_type == "Transpose":
            return not reads(model, node.output[0], axis) if axis < 2 else False
    return False


def is_closed(model: ModelProto, slices: Slices, feed: Mapping[str, Array]) -> bool | None:
    """``None``: it cannot be told."""
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    if any(max(indices) >= arrays[name].shape[axis] for (name, axis), indices in slices.items()):
        return False
    zero = dict(arrays)
    for (name, axis), indices in slices.items():
        zero[name] = _with(zero[name], axis, indices, 0.0)
    base = _run(model, zero, feed)
    for (name, axis), indices in sorted(slices.items()):
        if reads(model, name, axis):
            continue
        one = zero | {name: _with(zero[name], axis, indices, np.random.default_rng(0))}
        # what reads the channel beside must be 0 there: other slices of the set in the same constant stay
        for (other, across), gone in slices.items():
            if other == name and across != axis:
                one[name] = _with(one[name], across, gone, 0.0)
        moved = _run(model, one, feed)
        if any(np.abs(a - b).max() > 1e-5 * max(np.abs(a).max(), 1e-6) for a, b in zip(base, moved, strict=True)):
            unsure = any(node.op_type in UNSURE for node in model.graph.node)
            return None if unsure else False
    return True


def _with(array: Array, axis: int, indices: frozenset[int], what: float | np.random.Generator) -> Array:
    changed = array.copy()
    view = np.moveaxis(changed, axis, 0)
    chosen = sorted(indices)
    if isinstance(what, np.random.Generator):
        view[chosen] = what.uniform(0.5, 1.5, view[chosen].shape).astype(array.dtype)
    else:
        view[chosen] = what
    return changed


def _run(model: ModelProto, arrays: Mapping[str, Array], feed: Mapping[str, Array]) -> list[Array]:
    changed = ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(changed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [y.astype(np.float64) for y in session.run(None, dict(feed))]
