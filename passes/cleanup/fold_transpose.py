"""Fold a ``Transpose`` in front of a flattening into the weights of the dense layers behind it.

Where images are flattened for a ``MatMul`` or ``Gemm``, the order of the axes only says which row of the weight
belongs to which element. So the rows are put into the order that the elements had before the transposition.

``MatMul(Flatten(Transpose(x, [0, 2, 3, 1])), w)``  →  ``MatMul(Flatten(x), rows of w in another order)``
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, constant_tensor, sole_reader
from onnxopt.pass_base import NodePass, Refuse
from onnxopt.passes.cleanup._layout import Perm, inverse
from onnxopt.passes.cleanup._operands import input_at, integers, permutation, write_constant


@dataclass(frozen=True, kw_only=True)
class FoldTranspose(NodePass):
    """Fold a ``Transpose`` in front of a flattening into the weights of the dense layers behind it."""

    name: ClassVar[str] = "fold-transpose"
    exact: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = frozenset({"Transpose"})

    def rewrite(self, node: ir.Node, editor: Editor) -> str | None:
        perm, dims = permutation(node, editor), editor.shape(node.outputs[0])
        flatten = sole_reader(node.outputs[0])
        if perm is None or perm[:1] != (0,) or dims is None or flatten is None or node.inputs[0] is None:
            return None
        sizes = [d for d in dims[1:] if isinstance(d, int)]
        if len(sizes) != len(dims) - 1 or 0 in sizes or not _flattens(flatten, math.prod(sizes)):
            return None
        flat = flatten.outputs[0]
        layers = [reader for reader, _ in flat.uses()]
        if not layers or flat.is_graph_output() or not all(_is_dense(reader, flat) for reader in layers):
            return None
        for layer in layers:
            weight = layer.inputs[1]
            if constant_tensor(weight) is None:
                return None
            if weight is None or len(weight.uses()) != 1 or weight.is_graph_output():
                raise Refuse(f"the weight {weight.name if weight else ''!r} of {layer.op_type} is shared")
        for layer in layers:
            _reorder(layer, sizes, perm, editor)
        flatten.replace_input_with(0, node.inputs[0])
        editor.remove(node)
        return f"reordered the weights of {', '.join(layer.op_type for layer in layers)} instead"


def _flattens(node: ir.Node, size: int) -> bool:
    """Whether ``node`` makes one row of ``size`` elements of each item of the batch."""
    if node.op_type == "Flatten" and not node.domain:
        return bool(attribute(node, "axis", 1) == 1)
    target = integers(input_at(node, 1)) if node.op_type == "Reshape" and not node.domain else None
    if target is None or len(target) != 2 or attribute(node, "allowzero", 0) != 0:
        return False
    return target in ((-1, size), (0, size), (0, -1))


def _is_dense(node: ir.Node, flat: ir.Value) -> bool:
    """Whether ``node`` multiplies ``flat`` with a matrix."""
    if node.domain or node.inputs[0] is not flat or any(value is flat for value in node.inputs[1:]):
        return False
    if node.op_type == "Gemm":
        return attribute(node, "transA", 0) == 0 and attribute(node, "transB", 0) is not None
    weight = constant_tensor(node.inputs[1]) if node.op_type == "MatMul" else None
    return weight is not None and len(weight.shape.numpy()) == 2


def _reorder(layer: ir.Node, sizes: Sequence[int], perm: Perm, editor: Editor) -> None:
    """Put the rows of the weight, counted along axes of ``sizes``, into the order before ``perm``."""
    weight = layer.inputs[1]
    assert weight is not None
    old = editor.constant(weight)
    assert old is not None
    before = tuple(axis - 1 for axis in inverse(perm)[1:])
    order = np.arange(math.prod(sizes)).reshape(sizes).transpose(before).reshape(-1)
    columns = layer.op_type == "Gemm" and attribute(layer, "transB", 0) != 0
    write_constant(weight, old[:, order] if columns else old[order], editor)
