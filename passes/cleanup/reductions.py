"""What a reduction reduces: its axes, from the attribute of old opsets or the input of new ones."""

from __future__ import annotations

import onnx_ir as ir

from onnxopt.graph import Editor, attribute


def reduced_axes(node: ir.Node, editor: Editor) -> tuple[int, ...] | None:
    """The axes counted from the end, so ``-1`` is the last, in order; ``None`` if they cannot be told."""
    rank = editor.rank(node.inputs[0])
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        array = editor.constant(node.inputs[1])
        if array is None:
            return None
        axes = [int(axis) for axis in array.reshape(-1)]
    else:
        axes = list(attribute(node, "axes", ()))
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
