"""Read rows of a table by ``Gather`` where it is multiplied by one-hot rows.

JAX and TPU programs look embeddings up by a product: ``one_hot(ids) @ table``. It is exported as ``OneHot``, or as a
comparison of the ids with 0, 1, 2, …, and is as much work as there are rows in the table, for each id::

    MatMul(Cast(Equal(Unsqueeze(ids, -1), [0 … 256])), table)  →  Gather(table with a row of zeros, Clip(ids, −1, 257))

Exact: zeros are added to the one row that counts. An id that is no row of the table gives zeros, so the table gets a
row of zeros at its end, which ids before the first and behind the last row read. The row must not take more room in the
file than what is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, constant_tensor, label, sole_reader
from onnxopt.pass_base import NodePass, Refuse
from onnxopt.passes.cleanup._operands import NODE_BYTES, discard

Array = np.ndarray[Any, Any]

_OPSET = 12
"""Clip takes integers from here on."""


@dataclass(frozen=True)
class _OneHot:
    """Rows with a one in the place of an id."""

    nodes: tuple[ir.Node, ...]
    """What makes them and nothing else, the last one first."""
    ids: ir.Value
    """Integers."""
    has_last_axis: bool
    """Whether the ids have an axis of size 1 where the rows are."""
    first: int
    """The id whose one is in place 0."""
    places: int
    wraps: bool
    """Whether ids below 0 count from the end."""


@dataclass(frozen=True, kw_only=True)
class GatherOneHot(NodePass):
    """Read rows of a table by ``Gather`` where it is multiplied by one-hot rows."""

    name: ClassVar[str] = "gather-one-hot"
    exact: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = frozenset({"MatMul"})

    def rewrite(self, node: ir.Node, editor: Editor) -> str | None:
        rows, weight = node.inputs
        tensor = constant_tensor(weight)
        if rows is None or weight is None or tensor is None or len(tensor.shape) != 2:
            return None
        found = _one_hot(rows, editor) if sole_reader(rows) is node else None
        if found is None or found.places != tensor.shape[0]:
            return None
        if editor.opset(node) < _OPSET:
            raise Refuse(f"Clip takes integers from opset {_OPSET} on, the model has {editor.opset(node)}")
        if weight.is_graph_output() or len(weight.uses()) > 1:
            raise Refuse("others read the table, which needs a row of zeros")
        table = tensor.numpy()
        if not np.isfinite(table).all():
            raise Refuse("the table holds numbers that are not finite, which times zero are none")
        zeros = np.zeros_like(table[:1])
        freed = sum(map(_bytes, found.nodes))
        if (growth := zeros.nbytes - freed) > 0:
            raise Refuse(f"the row of zeros that other ids read would make the file {growth} bytes larger")
        ids = _places(node, found, editor)
        given = editor.add_constant(node, np.concatenate([table, zeros]), weight.name or "table")
        editor.replace_node(node, "Gather", [given, ids], {"axis": 0})
        for each in found.nodes:
            constants = each.inputs
            editor.remove(each)
            discard(*constants)
        discard(weight)
        return f"reads rows of {table.shape[0]} instead of multiplying by them"


def _places(node: ir.Node, found: _OneHot, editor: Editor) -> ir.Value:
    """Which row each id reads: 0 to ``places − 1``, or one of −1 and ``places``, which both are the row of zeros."""
    dtype = editor.dtype(found.ids)
    assert dtype is not None

    def number(value: int, name: str) -> ir.Value:
        return editor.add_constant(node, np.array(value, dtype.numpy()), f"{node.outputs[0].name}_{name}")

    ids = found.ids
    if found.has_last_axis:
        if editor.opset(node) < 13:
            ids = editor.insert(node, "Squeeze", [ids], {"axes": (-1,)}, name="")
        else:
            last = editor.add_constant(node, np.array([-1]), f"{node.outputs[0].name}_last")
            ids = editor.insert(node, "Squeeze", [ids, last], name="")
    if found.wraps:
        below = editor.insert(node, "Less", [ids, number(0, "zero")], name="")
        wrapped = editor.insert(node, "Add", [ids, number(found.places, "rows")], name="")
        ids = editor.insert(node, "Where", [below, wrapped, ids], name="")
    low, high = number(found.first - 1, "before"), number(found.first + found.places, "behind")
    ids = editor.insert(node, "Clip", [ids, low, high], name="")
    if found.first != 0:
        ids = editor.insert(node, "Sub", [ids, number(found.first, "first")], name="")
    return ids


def _one_hot(rows: ir.Value, editor: Editor) -> _OneHot | None:
    """What makes ``rows`` one-hot, if it does."""
    node = rows.producer()
    if node is None or node.domain:
        return None
    rule = {"OneHot": _operator, "Cast": _comparison}.get(node.op_type)
    return None if rule is None else rule(node, editor)


def _operator(node: ir.Node, editor: Editor) -> _OneHot | None:
    ids, depth, values = node.inputs
    rank, axis = editor.rank(ids), attribute(node, "axis", -1)
    off_on, places = editor.constant(values), editor.scalar(depth)
    if ids is None or rank is None or axis not in (-1, rank) or places is None or off_on is None:
        return None
    if off_on.tolist() != [0, 1] or not _is_index(ids, editor):
        return None
    return _OneHot((node,), ids, False, 0, int(places), True)


def _comparison(cast: ir.Node, editor: Editor) -> _OneHot | None:
    """``Cast(Equal(ids, [first, first + 1, …]))``, with the ids along an axis of size 1."""
    inside = cast.inputs[0]
    equal = None if inside is None else inside.producer()
    if inside is None or equal is None or equal.op_type != "Equal" or equal.domain or sole_reader(inside) is not cast:
        return None
    for ids, numbers in (equal.inputs, reversed(equal.inputs)):
        shape, array = editor.shape(ids), editor.constant(numbers)
        if ids is None or shape is None or array is None or not 1 <= array.ndim <= len(shape):
            continue
        row = array.reshape(-1)
        if array.shape[-1] != row.size or shape[-1] != 1 or not _is_index(ids, editor):
            continue
        first = int(row[0]) if row.size else 0
        if row.size and first - 1 >= np.iinfo(row.dtype).min and np.array_equal(row, first + np.arange(row.size)):
            return _OneHot((cast, equal), ids, True, first, row.size, False)
    return None


def _is_index(ids: ir.Value, editor: Editor) -> bool:
    """Whether ``Gather`` takes the type of these ids."""
    return editor.dtype(ids) in (ir.DataType.INT32, ir.DataType.INT64)


def _bytes(node: ir.Node) -> int:
    """About what a node takes in the file, with constants that only it reads."""
    constants = [v for v in node.inputs if v is not None and sole_reader(v) is node]
    sizes = [tensor.nbytes + len(v.name or "") for v in constants if (tensor := constant_tensor(v)) is not None]
    return NODE_BYTES + len(label(node)) + sum(sizes)
