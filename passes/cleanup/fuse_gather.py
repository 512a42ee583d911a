"""Read the slices that a ``Concat`` puts together again by one ``Gather``.

``torch.roll``, as in the shifted windows of Swin, is exported as two slices that change places::

    Concat(x[:, 3:], x[:, :3])  →  Gather(x, [3, 4, …, n−1, 0, 1, 2])

Exact, for elements are copied, once instead of twice. ``Gather`` copies block by block, one for each index, and on
ONNX Runtime's CPU provider that is faster from 64 elements a block on (measured: 0.3 to 0.9 of the time; with 16
it is twice as slow), so the dims behind the axis must be known and hold that many. The indices must not take more
room in the file than the slices did.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, label, sole_reader
from onnxopt.pass_base import NodePass, Refuse
from onnxopt.passes.cleanup._operands import NODE_BYTES, cuts, discard, normalised
from onnxopt.shapes import Dim

_LEAST_BLOCK = 64
"""Elements a block."""


@dataclass(frozen=True, kw_only=True)
class FuseGather(NodePass):
    """Read the slices that a ``Concat`` puts together again by one ``Gather``."""

    name: ClassVar[str] = "fuse-gather"
    exact: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = frozenset({"Concat"})

    def rewrite(self, node: ir.Node, editor: Editor) -> str | None:
        slices = _slices(node)
        source = slices[0].inputs[0] if slices else None
        shape, axis = editor.shape(source), attribute(node, "axis")
        if shape is None or axis is None or not -len(shape) <= axis < len(shape):
            return None
        axis %= len(shape)
        size = shape[axis]
        places = [_places(each, axis, size, len(shape), editor) for each in slices]
        indices = [place for each in places if each is not None for place in each]
        if None in places:
            return None
        block = math.prod(dim if isinstance(dim, int) else 1 for dim in shape[axis + 1 :])
        if block < _LEAST_BLOCK:
            raise Refuse(f"Gather is slow for blocks of {block} elements")
        freed = sum(NODE_BYTES + len(each.name or "") + len(each.outputs[0].name or "") for each in slices)
        if 4 * len(indices) + NODE_BYTES > freed:
            raise Refuse(f"{len(indices)} indices would make the file larger")
        constant = editor.add_constant(node, np.array(indices, dtype=np.int32), f"{label(node)}_indices")
        editor.replace_node(node, "Gather", [source, constant], {"axis": axis})
        for each in slices:
            old = each.inputs[1:]
            editor.remove(each)
            discard(*old)
        return f"gathers {len(indices)} places of {size} instead of putting {len(slices)} slices together"


def _slices(node: ir.Node) -> list[ir.Node]:
    """The slices of one value that nobody but this ``Concat`` reads; empty if there is anything else."""
    makers = [value.producer() for value in node.inputs if value is not None and sole_reader(value) is node]
    found = [maker for maker in makers if maker is not None and maker.op_type == "Slice" and not maker.domain]
    same = all(each.inputs[0] is found[0].inputs[0] and each.graph is node.graph for each in found)
    return found if same and 1 < len(found) == len(node.inputs) else []


def _places(node: ir.Node, axis: int, size: Dim, rank: int, editor: Editor) -> range | None:
    """What a ``Slice`` takes, if it cuts only this axis."""
    found = cuts(node, editor)
    if found is None or not isinstance(size, int) or normalised(tuple(found), rank) != (axis,):
        return None
    (cut,) = found.values()
    return range(size)[cut.start : cut.end : cut.step] if cut.step > 0 else None
