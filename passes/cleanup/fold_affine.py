"""Fold a scale or a shift by constants into the weights of the layer before or behind it.

``Mul``, ``Div``, ``Add``, ``Sub`` by one number, or by one for each channel, and ``Neg`` are ``s · x + t``, which
a ``Conv``, ``ConvTranspose``, ``Gemm``, or ``MatMul`` with the ``Add`` behind it takes into its weights
(``linear.py``). Into the layer before it, that is always exact; into the one behind it, a shift only where no
padding stands between.

``Mul(Add(MatMul(x, w), b), 0.125)``  →  ``Add(MatMul(x, 0.125 w), 0.125 b)``
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxopt.graph import Editor, sole_reader
from onnxopt.pass_base import NodePass, Refuse
from onnxopt.passes.cleanup._affine import AFFINE, Affine, affine, ends_a_fusion
from onnxopt.passes.cleanup._linear import LAYERS, Layer, layer_before, layer_behind, per_channel
from onnxopt.passes.cleanup._operands import broadcasts_into, discard


@dataclass(frozen=True, kw_only=True)
class FoldAffine(NodePass):
    """Fold a scale or a shift by constants into the weights of the layer before or behind it."""

    name: ClassVar[str] = "fold-affine"
    exact: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = AFFINE

    def rewrite(self, node: ir.Node, editor: Editor) -> str | None:
        if not _is_beside_a_layer(node):
            return None
        found = affine(node, editor)
        if found is None:
            return None
        before = layer_behind(found.source, editor)
        if before is not None and before.node.graph is node.graph and sole_reader(found.source) is node:
            return self._into_before(node, found, before, editor)
        behind = layer_before(node.outputs[0], editor)
        return None if behind is None else self._into_behind(node, found, behind, editor)

    @staticmethod
    def _into_before(node: ir.Node, found: Affine, layer: Layer, editor: Editor) -> str | None:
        scale, shift = (
            per_channel(a, layer.channels_out, layer.rank, layer.channel_axis) for a in (found.scale, found.shift)
        )
        if scale is None or shift is None:
            return None
        if layer.node.op_type == "MatMul" and layer.adding is None and shift.any():
            return None  # this is the bias of MatMul, and stays
        weight, bias = layer.fitted(*layer.scaled_out(scale, shift), found.constants)
        if not editor.redirect(node.outputs[0], layer.output):
            return None
        layer.put(weight, bias, editor)
        editor.remove(node)
        discard(*found.constants)
        return f"went into the weights of the {layer.node.op_type} before it"

    @staticmethod
    def _into_behind(node: ir.Node, found: Affine, layer: Layer, editor: Editor) -> str | None:
        into = editor.shape(found.source)
        if not all(broadcasts_into(a.shape, into) for a in (found.scale, found.shift)):
            return None
        scale, shift = (
            per_channel(a, layer.channels_in, layer.rank, layer.channel_axis) for a in (found.scale, found.shift)
        )
        if scale is None or shift is None:
            return None
        if ends_a_fusion(found.source):
            raise Refuse("it ends a normalization or a GELU, which ONNX Runtime runs as one")
        if shift.any():
            if layer.pads:
                raise Refuse(f"{layer.node.op_type} pads with zeros, which the shift would move")
            if layer.node.op_type == "MatMul" and layer.adding is None:
                raise Refuse("MatMul has no bias that could take the shift")
        weight, bias = layer.fitted(*layer.scaled_in(scale, shift), found.constants)
        layer.put(weight, bias, editor)
        layer.node.replace_input_with(0, found.source)
        editor.remove(node)
        discard(*found.constants)
        return f"went into the weights of the {layer.node.op_type} behind it"


def _is_beside_a_layer(node: ir.Node) -> bool:
    """A first look, since most nodes are not."""
    made_by = (value.producer() for value in node.inputs if value is not None)
    return any(
        other is not None and (other.op_type in LAYERS or other.op_type == "Add")
        for other in (*made_by, *(use.node for use in node.outputs[0].uses()))
    )
