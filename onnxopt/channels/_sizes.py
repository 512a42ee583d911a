"""Shapes that a model holds or computes: their entries follow the slices that stay.

The entry of an axis becomes the number of its slices. Where an axis has the same ``n`` slices an unknown number of
times (``Repeated``), the entry is that number times ``n``, and times ``m`` when ``m`` of them stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.channels._axes import Axes, Axis, Keep, Repeated, Slices, Unfollowed, slices_of
from onnxopt.graph import Editor, attribute


@dataclass(frozen=True)
class _Change:
    """What becomes of the entry for an axis."""

    before: int
    after: int
    is_repeated: bool


def resize_shape(node: ir.Node, at: int, sizes: dict[int, Axis], axes: Axes) -> None:
    """The input ``at`` of ``node`` is a shape, whose entries for these axes follow the slices that stay."""
    counted = _counted(node, sizes, axes.editor.constant(node.inputs[at]) is None, axes)
    if counted:
        axes.removals.append(lambda keep: _set_entries(node, at, _changes(counted, keep), axes.editor))


def pin(node: ir.Node, sizes: dict[int, Axis], axes: Axes) -> None:
    """What is computed of the sizes that ``node`` reads is to go on with those of before."""
    counted = _counted(node, sizes, True, axes)

    def update(keep: Keep) -> None:
        changes = {
            entry: _Change(change.after, change.before, change.is_repeated)
            for entry, change in _changes(counted, keep).items()
        }
        if changes:
            attributes = {name: attribute(node, name) for name in ("start", "end")}
            read = axes.editor.insert(node, "Shape", node.inputs, attributes)
            axes.editor.take_over(node.outputs[0], _put_entries(node, read, changes, axes.editor))
            axes.editor.remove(node)

    if counted:
        axes.removals.append(update)


def _counted(node: ir.Node, sizes: dict[int, Axis], computed: bool, axes: Axes) -> dict[int, Slices | Repeated]:
    counted = {entry: axis for entry, axis in sizes.items() if isinstance(axis, np.ndarray | Repeated)}
    if counted and computed and axes.editor.opset(node) < 11:
        raise Unfollowed("sizes are computed at run time: raise the opset to 11 or more")
    return counted


def _changes(counted: dict[int, Slices | Repeated], keep: Keep) -> dict[int, _Change]:
    found = {}
    for entry, axis in counted.items():
        mask = keep(slices_of(axis))
        if not mask.all():
            found[entry] = _Change(len(mask), int(mask.sum()), isinstance(axis, Repeated))
    return found


def _set_entries(node: ir.Node, at: int, changes: dict[int, _Change], editor: Editor) -> None:
    """Change the shape that is the input ``at`` of ``node``, unless an entry says 'as is' or 'the rest'."""
    vector = node.inputs[at]
    if not changes or vector is None:
        return
    known = editor.constant(vector)
    if known is None:
        changed = _put_entries(node, vector, changes, editor)
    else:
        array = known.copy()
        for entry, change in changes.items():
            array[entry] += max(array[entry], 0) // change.before * (change.after - change.before)
        changed = editor.add_constant(node, array, vector.name or "shape")
    node.replace_input_with(at, changed)


def _put_entries(node: ir.Node, vector: ir.Value, changes: dict[int, _Change], editor: Editor) -> ir.Value:
    """The vector with changed entries, computed in front of ``node``."""
    dtype = (editor.dtype(vector) or ir.DataType.INT64).numpy()

    def constant(numbers: list[int], what: str) -> ir.Value:
        return editor.add_constant(node, np.array(numbers, dtype=np.int64 if what == "entries" else dtype), what)

    def compute(op: str, *inputs: ir.Value) -> ir.Value:
        return editor.insert(node, op, inputs, name="")

    for is_repeated in (False, True):
        found = {entry: change for entry, change in changes.items() if change.is_repeated == is_repeated}
        if not found:
            continue
        index = constant([*found], "entries")
        if is_repeated:
            old = compute("Gather", vector, index)
            times = compute("Div", old, constant([change.before for change in found.values()], "sizes"))
            more = compute("Mul", times, constant([change.after - change.before for change in found.values()], "sizes"))
            new = compute("Add", old, more)  # an entry of -1 or 0 stays what it is
        else:
            new = constant([change.after for change in found.values()], "sizes")
        vector = compute("ScatterElements", vector, index, new)
    return vector
