"""Let one ``Slice`` do the work of two that follow each other.

Slices of different axes do not meddle with each other, so one node can do both. On the same axis, with steps of
1, ``x[a:b][c:d] = x[a+c : min(b, a+d)]`` for indices that count from the front; indices that count from the end
are turned around where the dim is known. A slice that several others cut further is merged into all of them or none.

``x[:, 2:9][:, 1:3, ::2]``  →  ``x[:, 3:5, ::2]``
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor
from onnxopt.pass_base import NodePass
from onnxopt.passes.cleanup._operands import END, Cut, cuts, discard, normalised
from onnxopt.shapes import Dim


@dataclass(frozen=True, kw_only=True)
class MergeSlices(NodePass):
    """Let one ``Slice`` do the work of two that follow each other."""

    name: ClassVar[str] = "merge-slices"
    exact: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = frozenset({"Slice"})

    def rewrite(self, node: ir.Node, editor: Editor) -> str | None:
        middle = node.inputs[0]
        first = middle.producer() if middle is not None else None
        if middle is None or first is None or first.op_type != "Slice" or first.domain:
            return None
        if middle.is_graph_output():
            return None
        others = [use.node for use in middle.uses() if use.node is not node]
        found = _merged(first, node, editor)
        if found is None or any(_merged(first, other, editor) is None for other in others):
            return None
        old = (*node.inputs[1:], *first.inputs[1:])
        columns = {
            "starts": [cut.start for cut in found.values()],
            "ends": [cut.end for cut in found.values()],
            "axes": list(found),
        }
        if editor.opset(node) < 10:
            editor.replace_node(node, "Slice", [first.inputs[0]], columns)
        else:
            if any(cut.step != 1 for cut in found.values()):
                columns["steps"] = [cut.step for cut in found.values()]
            inputs = [editor.add_constant(node, np.array(c, dtype=np.int64), k) for k, c in columns.items()]
            editor.replace_node(node, "Slice", [first.inputs[0], *inputs])
        if not others:
            editor.remove(first)
        discard(*old)
        return "slices at once what was sliced twice"


def _merged(first: ir.Node, second: ir.Node, editor: Editor) -> dict[int, Cut] | None:
    """The cuts of two slices as one, by axis in order; ``None`` if that cannot be said, or ``second`` is no slice."""
    if second.op_type != "Slice" or second.domain or second.graph is not first.graph:
        return None
    both: list[dict[int, Cut]] = []
    dims = editor.shape(first.inputs[0])
    rank = None if dims is None else len(dims)
    for node in (first, second):
        found = cuts(node, editor)
        axes = None if found is None else normalised(tuple(found), rank)
        if found is None or axes is None or len(set(axes)) < len(axes):
            return None
        both.append(dict(zip(axes, found.values(), strict=True)))
    inner, outer = both
    merged = dict(inner)
    for axis, cut in outer.items():
        if axis in inner:
            joined = _joined(inner[axis], cut, None if dims is None else dims[axis])
            if joined is None:
                return None
            merged[axis] = joined
        else:
            merged[axis] = cut
    return dict(sorted(merged.items()))


def _joined(inner: Cut, outer: Cut, dim: Dim) -> Cut | None:
    """Two cuts of one axis as one; ``None`` if that cannot be said without running the model."""
    if inner.step != 1 or outer.step != 1:
        return None
    if isinstance(dim, int):
        inner = _from_front(inner, dim)
        outer = _from_front(outer, max(0, inner.end - inner.start))
    if min(inner.start, inner.end, outer.start, outer.end) < 0:
        return None
    end = inner.end if outer.end >= END else min(inner.end, inner.start + outer.end)
    return Cut(inner.start + outer.start, end)


def _from_front(cut: Cut, dim: int) -> Cut:
    """The same cut of an axis of ``dim`` elements with indices within [0, dim]."""

    def clamp(index: int) -> int:
        return min(max(index + dim if index < 0 else index, 0), dim)

    return Cut(clamp(cut.start), clamp(cut.end))
