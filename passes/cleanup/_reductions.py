"""What a reduction reduces: its axes, from the attribute of old opsets or the input of new ones."""

from __future__ import annotations

import onnx_ir as ir

from onnxopt.graph import Editor, attribute
from onnxopt.passes.cleanup import _operands as operands


def reduced_axes(node: ir.Node, editor: Editor) -> tuple[int, ...] | None:
    """The axes counted from the end, so ``-1`` is the last, in order; ``None`` if they cannot be told."""
    rank = editor.rank(node.inputs[0])
    axes = operands.axes(node, editor)
    if axes is None:
        return None
    if not axes:
        if attribute(node, "noop_with_empty_axes", 0):
            return ()
        return None if rank is None else tuple(range(-rank, 0))
    if rank is None and any(axis >= 0 for axis in axes):
        return None
    return tuple(sorted(axis - (rank or 0) if axis >= 0 else axis for axis in axes))


def keeps_dims(node: ir.Node) -> bool:
    """Whether reduced axes stay, with one element."""
    return bool(attribute(node, "keepdims", 1) == 1)
