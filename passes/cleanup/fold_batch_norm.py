"""Fold a ``BatchNormalization`` into the weights of the layer before or behind it.

At inference it is ``s · x + t`` for each channel, with ``s = γ / √(σ² + ε)`` and ``t = β − μ s``, which a ``Conv``,
``ConvTranspose``, ``Gemm`` or ``MatMul`` takes into its weights (see ``linear.py``). Into the layer before it, that is
always exact; into the one behind it, only where no padding stands between. Behind a ``MatMul``, which has no
bias, an ``Add`` of ``t`` is left.

``BatchNormalization(Conv(x, w, b), …)``  →  ``Conv(x, s w, s b + t)``
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, sole_reader
from onnxopt.pass_base import NodePass, Refuse
from onnxopt.passes.cleanup._affine import Array
from onnxopt.passes.cleanup._linear import Layer, layer_before, layer_behind
from onnxopt.passes.cleanup._operands import discard, is_read


@dataclass(frozen=True, kw_only=True)
class FoldBatchNorm(NodePass):
    """Fold a ``BatchNormalization`` into the weights of the layer before or behind it."""

    name: ClassVar[str] = "fold-batch-norm"
    exact: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = frozenset({"BatchNormalization"})

    def rewrite(self, node: ir.Node, editor: Editor) -> str | None:
        source = node.inputs[0]
        if source is None or not _at_inference(node, editor):
            return None
        layer, behind = layer_behind(source, editor), layer_before(node.outputs[0], editor)
        if layer is not None and layer.rank is not None and layer.channel_axis == 1 - layer.rank:
            found = _scale_and_shift(node, editor)
            if layer.node.graph is not node.graph or sole_reader(source) is not node:
                raise Refuse(f"the output of {layer.node.op_type} is read elsewhere too")
            if found[0].size != layer.channels_out:
                return None
            return self._into_before(node, layer, *found, editor)
        if behind is not None and behind.rank is not None and behind.channel_axis == 1 - behind.rank:
            scale, shift = _scale_and_shift(node, editor)
            if behind.pads and shift.any():
                raise Refuse(f"{behind.node.op_type} pads with zeros, which the shift would move")
            if scale.size != behind.channels_in:
                return None
            fitted = behind.fitted(*behind.scaled_in(scale, shift), node.inputs[1:])
            if fitted[1] is not None and behind.node.op_type == "MatMul" and behind.adding is None:
                raise Refuse("MatMul has no bias that could take the shift")
            old = node.inputs[1:]
            behind.put(*fitted, editor)
            behind.node.replace_input_with(0, source)
            editor.remove(node)
            discard(*old)
            return f"went into the weights of the {behind.node.op_type} behind it"
        return None

    @staticmethod
    def _into_before(node: ir.Node, layer: Layer, scale: Array, shift: Array, editor: Editor) -> str | None:
        old = node.inputs[1:]
        op = layer.node.op_type
        if op == "MatMul" and layer.adding is None and shift.any():
            weight, _ = layer.fitted(*layer.scaled_out(scale, np.zeros_like(shift)), old)
            rest = shift.astype(weight.dtype)
            layer.put(weight, None, editor)
            bias = editor.add_constant(node, rest, f"{layer.weight.name}_bias")
            editor.replace_node(node, "Add", [layer.output, bias])
        else:
            weight, new_bias = layer.fitted(*layer.scaled_out(scale, shift), old)
            if not editor.redirect(node.outputs[0], layer.output):
                return None
            layer.put(weight, new_bias, editor)
            editor.remove(node)
        discard(*old)
        return f"went into the weights of the {op} before it"


def _at_inference(node: ir.Node, editor: Editor) -> bool:
    """Whether ``node`` uses the statistics that it is given, for each channel, and does nothing else."""
    return (
        editor.opset(node) >= 7
        and attribute(node, "spatial", 1) == 1
        and attribute(node, "training_mode", 0) == 0
        and attribute(node, "epsilon", 1e-5) is not None
        and not any(is_read(other) for other in node.outputs[1:])
    )


def _scale_and_shift(node: ir.Node, editor: Editor) -> tuple[Array, Array]:
    """``s`` and ``t`` of each channel. Raises ``Refuse`` if they are not known or not finite."""
    parameters = [editor.constant(value) for value in node.inputs[1:5]]
    if any(p is None for p in parameters):
        raise Refuse("its parameters are not constant")
    gamma, beta, mean, variance = (p.astype(np.float64) for p in parameters if p is not None)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = gamma / np.sqrt(variance + float(attribute(node, "epsilon", 1e-5)))
        shift = beta - mean * scale
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        raise Refuse("its variance is not positive, or a parameter is not finite")
    return scale, shift
