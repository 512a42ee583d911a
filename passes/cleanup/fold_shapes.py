"""Turn shape arithmetic into constants.

Where every element of a computed shape is a number, the whole computation becomes a constant. Where some are
dims of the inputs, the node that reads the shape is often content with less: ``Reshape`` copies a dim where
the shape says 0 and computes one where it says −1, ``Expand`` keeps a dim where it says 1, and ``Slice`` up
to the last element where the end is the size. Then a constant takes the place of the computation, and the
nodes behind it die::

    Reshape(x: [batch, seq, 768], Concat(Shape(x)[0], Shape(x)[1], 12, 64))  →  Reshape(x, [0, 0, 12, 64])

Dims that stay computed are computed once: ``Shape(h)[0]`` is ``Shape(x)[0]`` where both are ``batch``.

Exact for every size of the dynamic dims but zero, where ONNX Runtime refuses a −1 beside a copied 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, constant_tensor, label
from onnxopt.pass_base import Context, Log, Pass, Report
from onnxopt.shape_values import Elements, ShapeValues

_END = np.iinfo(np.int64).max
_READERS = {"Reshape": 1, "Expand": 1, "Slice": 2}
"""Operators that take a shape, with the position of that input."""


@dataclass(frozen=True, kw_only=True)
class FoldShapes(Pass):
    """Turn shape arithmetic into constants."""

    name: ClassVar[str] = "fold-shapes"
    exact: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = frozenset({"Shape", "Size", "Reshape", "Expand", "Slice"})

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        editor = context.editor
        values = ShapeValues(editor)
        for op, at in _READERS.items():
            for node in editor.nodes({op}):
                if context.gate.closed:
                    break
                computed = node.inputs[at] if len(node.inputs) > at else None
                if computed is None or computed.producer() is None or constant_tensor(computed) is not None:
                    continue  # a shape that the caller gives is the caller's
                if self.may_change(node, context) and (text := _materialise(node, at, values, editor)):
                    log.changed(label(node), text)
        for value, elements in _known(values):
            producer = value.producer()
            if producer is None or context.gate.closed or not self.may_change(producer, context):
                continue
            name = label(producer)
            _replace(producer, value, elements, editor)
            log.changed(name, f"is always {elements.tolist()}")
        self._share(values, context, log)
        return log.report()

    def _share(self, values: ShapeValues, context: Context, log: Log) -> None:
        """Let what is known to be the same dims be computed once, from whatever tensor comes first."""
        first: dict[object, ir.Value] = {}
        for node, elements in values.computed():
            value = node.outputs[0]
            dims = elements.reshape(-1).tolist()
            if node.graph is None or None in dims or not any(isinstance(dim, str) for dim in dims):
                continue
            key = node.graph, context.editor.dtype(value), elements.shape, tuple(dims)
            twin = first.setdefault(key, value)
            if twin is value or not value.uses() or value.is_graph_output():
                continue
            if self.may_change(node, context):
                value.replace_all_uses_with(twin)
                log.changed(label(node), f"is {elements.tolist()}, as {twin.name} is already")


def _known(values: ShapeValues) -> list[tuple[ir.Value, Elements]]:
    """Computed values of which every element is a number, and that something else than these reads."""
    known = {
        node.outputs[0]: elements
        for node, elements in values.computed()
        if all(isinstance(x, int) for x in elements.reshape(-1))
    }
    return [
        (value, elements)
        for value, elements in known.items()
        if not value.is_graph_output() and any(set(use.node.outputs).isdisjoint(known) for use in value.uses())
    ]


def _replace(node: ir.Node, value: ir.Value, elements: Elements, editor: Editor) -> None:
    dtype = editor.dtype(value) or ir.DataType.INT64
    constant = editor.add_constant(node, elements.astype(dtype.numpy()), value.name or "shape")
    value.replace_all_uses_with(constant)
    editor.remove(node)
    editor.outdate_facts(constant)


def _materialise(node: ir.Node, at: int, values: ShapeValues, editor: Editor) -> str | None:
    """Give ``node`` a constant in place of the computed shape that it reads, if one will do."""
    computed = node.inputs[at]
    elements = values.of(computed)
    if node.op_type == "Reshape":
        wanted = _reshape_target(node, elements, editor)
    elif node.op_type == "Expand":
        wanted = _expand_target(node, elements, editor)
    else:
        wanted = _slice_ends(node, elements, values, editor)
    if wanted is None or computed is None:
        return None
    constant = editor.add_constant(node, wanted, computed.name or "shape")
    node.replace_input_with(at, constant)
    if node.op_type == "Reshape" and 0 in wanted:
        node.attributes.pop("allowzero", None)  # here a 0 copies
    editor.outdate_facts(constant)
    return f"reads the constant {wanted.tolist()} instead of a computed shape"


def _reshape_target(node: ir.Node, elements: Elements | None, editor: Editor) -> npt.NDArray[np.int64] | None:
    """0 where the dim is the input's at the same place, −1 for at most one that is known neither so nor as a
    number; the inferred output shape helps where the elements do not."""
    shape = editor.shape(node.inputs[0])
    inferred = editor.shape(node.outputs[0])
    if elements is None and inferred is None:
        return None
    if attribute(node, "allowzero", 0) != 0 and (elements is None or 0 in elements):
        return None  # there a 0 is a size
    length = elements.size if elements is not None else len(inferred or ())
    target: list[int] = []
    for i in range(length):
        element = elements.reshape(-1)[i] if elements is not None else None
        if element is None or (isinstance(element, int) and element <= 0):
            known = inferred[i] if inferred is not None and len(inferred) == length else None
            element = known if known is not None else element
        if isinstance(element, int) and element > 0:
            target.append(element)
        elif isinstance(element, str) and shape is not None and i < len(shape) and shape[i] == element:
            target.append(0)
        else:
            target.append(0 if element == 0 else -1)
    return np.array(target, dtype=np.int64) if target.count(-1) <= 1 else None


def _expand_target(node: ir.Node, elements: Elements | None, editor: Editor) -> npt.NDArray[np.int64] | None:
    """1 where the input has that dim already."""
    shape = editor.shape(node.inputs[0])
    if elements is None or shape is None or elements.ndim != 1:
        return None
    target: list[int] = []
    for i, element in enumerate(elements):
        own = shape[i - len(elements)] if len(elements) - i <= len(shape) else None
        if isinstance(element, int):
            target.append(element)
        elif isinstance(element, str) and own == element:
            target.append(1)
        else:
            return None
    return np.array(target, dtype=np.int64)


def _slice_ends(
    node: ir.Node, elements: Elements | None, values: ShapeValues, editor: Editor
) -> npt.NDArray[np.int64] | None:
    """The largest number where the end is the size of the sliced axis."""
    shape = editor.shape(node.inputs[0])
    axes = values.of(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else None
    steps = values.of(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else None
    if elements is None or shape is None or elements.ndim != 1:
        return None
    if len(node.inputs) > 4 and node.inputs[4] is not None and (steps is None or any(s != 1 for s in steps)):
        return None
    if len(node.inputs) > 3 and node.inputs[3] is not None and axes is None:
        return None
    ends: list[int] = []
    for i, element in enumerate(elements):
        axis = i if axes is None else axes[i]
        if isinstance(element, int):
            ends.append(element)
        elif isinstance(element, str) and isinstance(axis, int) and shape[axis] == element:
            ends.append(_END)
        else:
            return None
    computed = node.inputs[2]
    dtype = editor.dtype(computed)
    if dtype == ir.DataType.INT32:
        return np.minimum(np.array(ends, dtype=np.int64), np.iinfo(np.int32).max).astype(np.int32)
    return np.array(ends, dtype=np.int64)
