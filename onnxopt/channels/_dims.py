"""Dims that inference leaves open, and that rules of channels need.

Which axes a Reshape splits is only seen where their dims have numbers or symbols. Some are lost on the way: how long a
``Range`` up to the size of an axis is, the dim that a Reshape calls -1, what a Resize to the size of another value
makes. A Slice from 0 to the size ``n`` of another axis, as of positions, has ``n`` or, if there are no more, ``D``
entries; where it is broadcast against ``n``, it is ``n`` or the model fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import onnx_ir as ir

from onnxopt.channels._elementwise import ELEMENTWISE
from onnxopt.graph import Editor, attribute
from onnxopt.shape_values import ShapeValues
from onnxopt.shapes import Dim

_Rule = Callable[[ir.Node, Editor, ShapeValues], Sequence[Dim] | None]

_TO_THE_END = 2**31 - 1
"""Up to here or further, a Slice leaves nothing out."""


def learn_dims(editor: Editor) -> None:
    """Tell the facts of ``editor`` what shapes are computed, what dims are left open, and what follows from both."""
    facts = editor.facts
    while True:
        values = ShapeValues(editor)
        improved: set[ir.Value | None] = set()
        for node in (node for graph in editor.graphs() for node in graph if facts.may_improve(node.outputs)):
            if not improved.isdisjoint(node.inputs):
                improved.update(facts.infer_again(node))
            rule, out = _RULES.get(node.op_type) if node.domain == "" else None, node.outputs[0]
            dims = rule(node, editor, values) if rule is not None else None
            dtype = editor.dtype(node.inputs[0]) if rule is _as_input else None
            if dims is not None and facts.refine(out, tuple(dims), dtype):
                improved.add(out)
        if not improved:
            return


def _range(node: ir.Node, editor: Editor, values: ShapeValues) -> Sequence[Dim] | None:
    """As long as its limit says, where it counts from 0 in steps of 1."""
    start, limit, step = (_item(values.of(value)) for value in node.inputs)
    return (limit,) if isinstance(limit, str) and (start, step) == (0, 1) else None


def _item(elements: Any) -> Any:
    return elements.item() if elements is not None and elements.size == 1 else None


def _reshape(node: ir.Node, editor: Editor, values: ShapeValues) -> Sequence[Dim] | None:
    """The dim that is called -1 is what is left of those of the input."""
    before, after = editor.shape(node.inputs[0]), editor.shape(node.outputs[0])
    given = _vector(node, 1, values)
    if before is None or after is None or given is None or None in before or given.count(-1) != 1:
        return None
    at = given.index(-1)
    left, others = [*before], [*after[:at], *after[at + 1 :]]
    for dim in [*others]:
        if dim in left:
            left.remove(dim)
            others.remove(dim)
    symbols = [dim for dim in left if not isinstance(dim, int)]
    size, rest = (math.prod(dim for dim in dims if isinstance(dim, int)) for dims in (left, others))
    if not all(isinstance(dim, int) for dim in others) or not rest or size % rest or len(symbols) > 1:
        return None
    found = size // rest if not symbols else symbols[0] if size == rest else None
    return (*after[:at], found, *after[at + 1 :])


def _vector(node: ir.Node, at: int, values: ShapeValues) -> list[Any] | None:
    """What is known of the entries of a vector that is the input ``at``."""
    elements = values.of(node.inputs[at]) if at < len(node.inputs) else None
    return None if elements is None or elements.ndim != 1 else [*elements]


def _slice(node: ir.Node, editor: Editor, values: ShapeValues) -> Sequence[Dim] | None:
    """Axes that are not cut keep their dims."""
    before = editor.shape(node.inputs[0])
    starts, ends, over, steps = (_vector(node, at, values) for at in (1, 2, 3, 4))
    if before is None or over is None or None in over:
        return None
    found: list[Dim] = [*before]
    for entry, axis in enumerate(over):
        begin, end = (given[entry] if given is not None else None for given in (starts, ends))
        step = 1 if len(node.inputs) < 5 or node.inputs[4] is None else steps[entry] if steps is not None else None
        dim, found[axis] = found[axis], None
        if begin == 0 and step == 1 and isinstance(end, int) and end >= _TO_THE_END:
            found[axis] = dim
        elif begin == 0 and step == 1 and isinstance(end, str) and isinstance(dim, int) and dim > 1:
            found[axis] = _at_most(end, dim)
    return found


def _at_most(dim: str, limit: object) -> str:
    return f"{dim}, at most {limit}"


def _resize(node: ir.Node, editor: Editor, values: ShapeValues) -> Sequence[Dim] | None:
    """The sizes that it is given."""
    if "axes" in node.attributes or attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return None
    return _vector(node, 3, values)


def _expand(node: ir.Node, editor: Editor, values: ShapeValues) -> Sequence[Dim] | None:
    before, given = editor.shape(node.inputs[0]), _vector(node, 1, values)
    return None if before is None or given is None else _broadcast([before, given])


def _elementwise(node: ir.Node, editor: Editor, values: ShapeValues) -> Sequence[Dim] | None:
    operands = [editor.shape(value) for value in node.inputs if value is not None]
    known = [dims for dims in operands if dims is not None]
    return _broadcast(known) if known and len(known) == len(operands) else None


def _broadcast(operands: Sequence[Sequence[Dim]]) -> list[Dim]:
    rank = max(map(len, operands))
    aligned: list[list[Dim]] = [[*[1] * (rank - len(each)), *each] for each in operands]
    return [_common(dims) for dims in zip(*aligned, strict=True)]


def _common(dims: Iterable[Dim]) -> Dim:
    several = [*dict.fromkeys(dim for dim in dims if dim != 1)]
    if not several:
        return 1
    numbers = [dim for dim in several if isinstance(dim, int)]
    if numbers or None in several:
        return numbers[0] if numbers else None
    whole = min(map(str, several), key=len)
    return whole if all(str(dim).startswith(_at_most(whole, "")) for dim in several if dim != whole) else None


def _as_input(node: ir.Node, editor: Editor, values: ShapeValues) -> Sequence[Dim] | None:
    return editor.shape(node.inputs[0])


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    "Range": _range,
    "Reshape": _reshape,
    "Slice": _slice,
    "Resize": _resize,
    "Expand": _expand,
    "GroupNormalization": _as_input,
}
