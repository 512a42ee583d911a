"""Let one node do the work of two that only change the shape.

``Reshape``, ``Flatten``, ``Squeeze``, ``Unsqueeze``, and a ``Transpose`` that moves only dims of size 1, leave the
elements in their order, so of a chain of them only the last shape counts. If that is the shape of the chain's
input, the chain goes. A ``Reshape`` that does not look at its input's shape reads the chain's input directly.
Otherwise the last node becomes a ``Reshape``, where at most one dim is unknown; two ``Squeeze`` or two
``Unsqueeze`` become one, whatever the shapes.

``Reshape(Unsqueeze(x), [-1, 1, 1, 64])``  →  ``Reshape(x, [-1, 1, 1, 64])``
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, sole_reader
from onnxopt.pass_base import NodePass
from onnxopt.passes.cleanup._operands import (
    axes,
    axes_in_input,
    discard,
    input_at,
    integers,
    is_read,
    keeps_order,
    known_equal,
    normalised,
    permutation,
)
from onnxopt.shapes import Dims


@dataclass(frozen=True, kw_only=True)
class MergeReshapes(NodePass):
    """Let one node do the work of two that only change the shape."""

    name: ClassVar[str] = "merge-reshapes"
    exact: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})

    def rewrite(self, node: ir.Node, editor: Editor) -> str | None:
        middle = node.inputs[0]
        first = middle.producer() if middle is not None else None
        if middle is None or first is None or not _is_reshape(first, editor) or not _is_reshape(node, editor):
            return None
        source = first.inputs[0]
        if source is None:
            return None
        old = (*node.inputs[1:], *first.inputs[1:])
        if _cancels(first, node, source, editor) and editor.redirect(node.outputs[0], source):
            editor.remove(node)
            text = "undid the reshape before it"
        elif not self._merge(first, node, source, editor):
            return None
        else:
            text = f"took over the work of {first.op_type}"
        if not is_read(middle):
            editor.remove(first)
        discard(*old)
        return text

    @staticmethod
    def _merge(first: ir.Node, node: ir.Node, source: ir.Value, editor: Editor) -> bool:
        """Make ``node``, or what takes its place, read ``source``."""
        if node.op_type == "Reshape" and _target_fits(first, node, source, editor):
            node.replace_input_with(0, source)
            return True
        if first.graph is not node.graph:
            return False
        if first.op_type == node.op_type and node.op_type in ("Squeeze", "Unsqueeze") and _all_alike(first):
            both = _both_axes(first, node, editor)
            if both is not None:
                _put_axes(node, source, both, editor)
                return True
        target = _target(editor.shape(node.outputs[0]))
        if target is None or node.graph is None or sole_reader(first.outputs[0]) is not node:
            return False
        shape = editor.add_constant(node, np.array(target, dtype=np.int64), "shape")
        editor.replace_node(node, "Reshape", [source, shape])
        return True


def _all_alike(first: ir.Node) -> bool:
    """Whether all readers of ``first`` are of its kind, so that it dies once they have taken over its work."""
    output = first.outputs[0]
    return not output.is_graph_output() and all(
        reader.op_type == first.op_type and at == 0 and reader.graph is first.graph for reader, at in output.uses()
    )


def _is_reshape(node: ir.Node, editor: Editor) -> bool:
    """Whether ``node`` leaves all elements in their order."""
    if node.domain:
        return False
    if node.op_type == "Transpose":
        perm = permutation(node, editor)
        dims = editor.shape(node.inputs[0])
        return perm is not None and dims is not None and keeps_order(perm, dims)
    return node.op_type in MergeReshapes.ops


def _cancels(first: ir.Node, node: ir.Node, source: ir.Value, editor: Editor) -> bool:
    """Whether the output of ``node`` has the shape of ``source`` for certain."""
    before, after = editor.shape(source), editor.shape(node.outputs[0])
    if before is not None and after is not None and len(before) == len(after):
        unlike = [(a, b) for a, b in zip(before, after, strict=True) if not known_equal(a, b)]
        if not unlike:
            return True
        if len(unlike) == 1 and not all(isinstance(d, int) for d in unlike[0]):
            # as many elements in as many other dims: the last one is equal too, unless there are none
            rest = [a for a, b in zip(before, after, strict=True) if known_equal(a, b)]
            if all(isinstance(d, int) and d > 0 for d in rest):
                return True
    if {first.op_type, node.op_type} != {"Squeeze", "Unsqueeze"}:
        return False
    inserted = [axes(n, editor) for n in (first, node)]
    if any(not a for a in inserted):
        return False
    squeezed = first if first.op_type == "Squeeze" else node
    rank = editor.rank(squeezed.inputs[0])  # both count axes in the larger shape
    counted = [None if a is None else normalised(a, rank) for a in inserted]
    return None not in counted and set(counted[0] or ()) == set(counted[1] or ())


def _target_fits(first: ir.Node, node: ir.Node, source: ir.Value, editor: Editor) -> bool:
    """Whether the shape that a ``Reshape`` asks for says the same of ``source`` as of the output of ``first``."""
    target = integers(input_at(node, 1))
    allowzero = attribute(node, "allowzero", 0)
    if target is None or allowzero is None:
        return False
    copied = [at for at, t in enumerate(target) if t == 0 and not allowzero]
    before, middle = editor.shape(source), editor.shape(first.outputs[0])
    if not copied or before is None or middle is None:
        return not copied
    return all(at < min(len(before), len(middle)) and known_equal(before[at], middle[at]) for at in copied)


def _target(dims: Dims | None) -> tuple[int, ...] | None:
    """What a ``Reshape`` is told to make ``dims``, if it can be told."""
    if dims is None or sum(not isinstance(d, int) for d in dims) > 1 or 0 in dims:
        return None
    return tuple(d if isinstance(d, int) else -1 for d in dims)


def _both_axes(first: ir.Node, node: ir.Node, editor: Editor) -> tuple[int, ...] | None:
    """The axes of two ``Squeeze`` or ``Unsqueeze`` as one."""
    inner_axes, outer_axes = axes(first, editor), axes(node, editor)
    if not inner_axes or not outer_axes:
        return None
    # the larger shape is the one in which both kinds count
    inner_larger = first.inputs[0] if first.op_type == "Squeeze" else first.outputs[0]
    outer_larger = node.inputs[0] if node.op_type == "Squeeze" else node.outputs[0]
    inner = normalised(inner_axes, editor.rank(inner_larger))
    outer = normalised(outer_axes, editor.rank(outer_larger))
    if inner is None or outer is None:
        return None
    if node.op_type == "Squeeze":
        return _put_between(outer, inner)
    return _put_between(inner, outer)


def _put_between(later: Sequence[int], taken: Sequence[int]) -> tuple[int, ...]:
    """``taken`` and ``later``, where ``later`` counts only the axes that are not ``taken``."""
    free = [axis for axis in range(max(later) + len(taken) + 1) if axis not in taken]
    return tuple(sorted((*taken, *(free[axis] for axis in later))))


def _put_axes(node: ir.Node, source: ir.Value, both: tuple[int, ...], editor: Editor) -> None:
    if axes_in_input(node, editor):
        given = editor.add_constant(node, np.array(both, dtype=np.int64), "axes")
        editor.replace_node(node, node.op_type, [source, given])
    else:
        editor.replace_node(node, node.op_type, [source], {"axes": both})
