"""The shapes of outputs that follow from computed values, from branches and from sequences.

Inference by onnx knows these only where what is computed is constant, and of some normalizations nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import onnx_ir as ir

from onnxopt._node_inference import Found
from onnxopt._symbols import Dim, Elements, broadcast
from onnxopt.graph import Editor, attribute

Of = Callable[[ir.Value | None], Elements | None]
"""What is known of the elements of a value."""


def output_shapes(node: ir.Node, editor: Editor, of: Of) -> Iterator[Found]:
    """The outputs of ``node`` of which this says something."""
    rule = _RULES.get(node.op_type) if node.domain == "" else None
    if rule is not None:
        try:
            yield from rule(node, editor, of)
        except (ValueError, IndexError, TypeError, AttributeError):  # a node that ONNX Runtime will refuse as well
            return


def is_true(condition: Elements | None) -> bool | None:
    """What the condition of an If holds, ``None`` if that is not known."""
    found = condition.reshape(-1)[0] if condition is not None and condition.size == 1 else None
    return found if isinstance(found, bool) else None


def _compress(node: ir.Node, editor: Editor, of: Of) -> Iterator[Found]:
    condition, dims, axis = editor.constant(node.inputs[1]), editor.shape(node.inputs[0]), attribute(node, "axis")
    if condition is None:
        return
    count = int(condition.sum())
    if axis is None:
        yield node.outputs[0], None, (count,)
    elif dims is not None:
        yield node.outputs[0], None, tuple(count if i == axis % len(dims) else d for i, d in enumerate(dims))


def _constant_of_shape(node: ir.Node, editor: Editor, of: Of) -> Iterator[Found]:
    elements = of(node.inputs[0])
    if elements is not None and elements.ndim == 1:
        yield node.outputs[0], None, tuple(elements)


def _expand(node: ir.Node, editor: Editor, of: Of) -> Iterator[Found]:
    elements, dims = of(node.inputs[1]), editor.shape(node.inputs[0])
    if elements is not None and elements.ndim == 1 and dims is not None:
        yield node.outputs[0], None, broadcast(dims, tuple(elements))


def _like_the_input(node: ir.Node, editor: Editor, of: Of) -> Iterator[Found]:
    yield node.outputs[0], editor.dtype(node.inputs[0]), editor.shape(node.inputs[0])


def _reshape(node: ir.Node, editor: Editor, of: Of) -> Iterator[Found]:
    elements = of(node.inputs[1])
    if elements is None or elements.ndim != 1:
        return
    known = editor.shape(node.inputs[0]) or ()
    copies = attribute(node, "allowzero", 0) == 0
    shape = [(known[at] if at < len(known) else None) if x == 0 and copies else x for at, x in enumerate(elements)]
    if -1 in shape:
        at = shape.index(-1)
        shape[at] = left_over(known, (*shape[:at], *shape[at + 1 :]))
    yield node.outputs[0], None, tuple(shape)


def left_over(dims: Sequence[Dim], others: Sequence[Dim]) -> Dim:
    """The dim that makes as many elements of ``others`` as ``dims`` have, if that is one of these or a number."""
    if None in dims or None in others or not dims:
        return None
    left = Counter(dim for dim in dims if isinstance(dim, str))
    left.subtract(dim for dim in others if isinstance(dim, str))
    symbols = [dim for dim, count in left.items() for _ in range(abs(count))]
    have, taken = (math.prod(dim for dim in each if isinstance(dim, int)) for each in (dims, others))
    if not symbols:
        return have // taken if taken and have % taken == 0 else None
    return symbols[0] if len(symbols) == 1 and left[symbols[0]] == 1 and have == taken > 0 else None


def _if(node: ir.Node, editor: Editor, of: Of) -> Iterator[Found]:
    """What both branches say of an output, or that one which is taken."""
    branches = [attribute(node, "then_branch"), attribute(node, "else_branch")]
    taken = is_true(of(node.inputs[0]))
    if taken is not None:
        branches = [branches[0 if taken else 1]]
    for value, *inner in zip(node.outputs, *(branch.outputs for branch in branches), strict=True):
        shapes = [shape for each in inner if (shape := editor.shape(each)) is not None]
        if len(shapes) == len(inner) and len({len(shape) for shape in shapes}) == 1:
            dims = zip(*shapes, strict=True)
            shape = tuple(each[0] if len(set(each)) == 1 else None for each in dims)
            yield value, editor.dtype(inner[0]), shape


def _sequence_at(node: ir.Node, editor: Editor, of: Of) -> Iterator[Found]:
    """One of the pieces that SplitToSequence makes."""
    sequence, position = node.inputs[0], of(node.inputs[1])
    split = sequence.producer() if sequence is not None else None
    if split is None or split.op_type != "SplitToSequence" or position is None or position.size != 1:
        return
    shape, at = editor.shape(split.inputs[0]), position.reshape(-1)[0]
    if shape is None or not isinstance(at, int):
        return
    axis = attribute(split, "axis", 0) % len(shape)
    given = split.inputs[1] if len(split.inputs) > 1 else None
    if given is not None:
        piece: tuple[Dim, ...] = (_piece(shape[axis], of(given), at),)
    else:
        piece = (1,) if attribute(split, "keepdims", 1) else ()
    yield node.outputs[0], editor.dtype(split.inputs[0]), (*shape[:axis], *piece, *shape[axis + 1 :])


def _piece(whole: Dim, sizes: Elements | None, at: int) -> Dim:
    """The size of the piece ``at`` of an axis that is cut into pieces of these sizes, or all of one but the last."""
    if sizes is None:
        return None
    if sizes.ndim == 1:
        found: Dim = sizes[at]
        return found
    size = sizes.item()
    if not isinstance(size, int) or not isinstance(whole, int) or size < 1:
        return None
    return min(size, whole - range(0, whole, size)[at])


_RULES: dict[str, Callable[[ir.Node, Editor, Of], Iterator[Found]]] = {
    "Compress": _compress,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "GroupNormalization": _like_the_input,
    "If": _if,
    "MeanVarianceNormalization": _like_the_input,
    "Reshape": _reshape,
    "SequenceAt": _sequence_at,
}
