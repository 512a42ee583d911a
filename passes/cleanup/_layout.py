"""How operators work on data whose axes stand in another order.

Let ``v = Transpose(v', perm)``: axis ``i`` of ``v`` is axis ``perm[i]`` of ``v'``. For many operators there is a node
that makes ``y'`` of ``v'`` such that ``y = Transpose(y', perm_out)``: the same one for elementwise operators, one
with other axes for those that name axes. ``moved`` says which it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, constant_tensor
from onnxopt.passes.cleanup._operands import (
    REDUCTIONS,
    axes,
    axes_in_input,
    input_at,
    integers,
    is_read,
    known_equal,
    normalised,
    numbers,
    padding,
)

Perm = tuple[int, ...]

SMALL_BYTES = 256
"""A constant that others read too is copied in another order only up to this size."""


@dataclass(frozen=True)
class Move:
    """The node that does the same work in the other order."""

    perm_out: Perm
    """How its output has to be transposed to be what the old node makes."""
    data: tuple[int, ...] = (0,)
    """The inputs that come in the other order."""
    attributes: Mapping[str, int | Sequence[int]] = field(default_factory=dict)
    """Attributes that differ."""
    constants: Mapping[int, np.ndarray[Any, Any]] = field(default_factory=dict)
    """Inputs that become other constants."""


def inverse(perm: Perm) -> Perm:
    """The permutation that undoes ``perm``."""
    return tuple(int(i) for i in np.argsort(perm))


def compose(inner: Perm, outer: Perm) -> Perm:
    """The one permutation that does ``inner``, then ``outer``."""
    return tuple(inner[axis] for axis in outer)


def is_identity(perm: Perm) -> bool:
    """Whether ``perm`` leaves every axis where it is."""
    return perm == tuple(range(len(perm)))


def moved(node: ir.Node, flipped: Mapping[int, Perm], editor: Editor) -> Move | None:
    """How ``node`` works if the inputs ``flipped`` come in another order; ``None`` if it cannot.

    Inputs among ``Move.data`` that are not ``flipped`` have to be transposed by the inverse.
    """
    perms = set(flipped.values())
    rule = _RULES.get(node.op_type)
    if node.domain or rule is None or len(perms) != 1 or any(a.is_ref() for a in node.attributes.values()):
        return None
    if editor.opset(node) < 7:
        return None  # operands were still broadcast by attributes
    found = rule(node, next(iter(perms)), flipped, editor)
    return None if found is None or not set(flipped) <= set(found.data) else found


_Rule = Callable[[ir.Node, Perm, Mapping[int, Perm], Editor], Move | None]


def _unary(node: ir.Node, perm: Perm, flipped: Mapping[int, Perm], editor: Editor) -> Move | None:
    return None if any(is_read(other) for other in node.outputs[1:]) else Move(perm)


def _elementwise(node: ir.Node, perm: Perm, flipped: Mapping[int, Perm], editor: Editor) -> Move | None:
    data, constants = list(flipped), {}
    for at, value in enumerate(node.inputs):
        if at in flipped:
            continue
        dims = editor.shape(value)
        if value is None or dims is None or len(dims) > len(perm):
            return None
        if all(d == 1 for d in dims):
            continue  # one number, in whatever order
        if constant_tensor(value) is not None:
            array = _permuted_constant(value, perm, editor)
            if array is None:
                return None
            constants[at] = array
        elif len(dims) == len(perm):
            data.append(at)
        else:
            return None
    return Move(perm, tuple(sorted(data)), constants=constants)


def _permuted_constant(value: ir.Value, perm: Perm, editor: Editor) -> np.ndarray[Any, Any] | None:
    """A constant, broadcast to the rank of ``perm``, in the other order; ``None`` if that would grow the file."""
    tensor = constant_tensor(value)
    assert tensor is not None
    if tensor.nbytes > SMALL_BYTES and (len(value.uses()) > 1 or value.is_graph_output()):
        return None
    if tensor.dtype == ir.DataType.STRING or tensor.dtype.bitwidth < 8:
        return None
    array = tensor.numpy()
    array = array.reshape((1,) * (len(perm) - array.ndim) + array.shape).transpose(inverse(perm))
    while array.ndim > 1 and array.shape[0] == 1:
        array = array[0]
    return np.ascontiguousarray(array)


def _concat(node: ir.Node, perm: Perm, flipped: Mapping[int, Perm], editor: Editor) -> Move | None:
    axis = _axis(node, perm, None)
    data, constants = list(flipped), {}
    if axis is None:
        return None
    for at, value in enumerate(node.inputs):
        if at in flipped:
            continue
        if value is None or editor.rank(value) != len(perm):
            return None
        if constant_tensor(value) is None:
            data.append(at)
            continue
        array = _permuted_constant(value, perm, editor)
        if array is None:
            return None
        constants[at] = array.reshape((1,) * (len(perm) - array.ndim) + array.shape)
    return Move(perm, tuple(sorted(data)), attributes={"axis": perm[axis]}, constants=constants)


def _split(node: ir.Node, perm: Perm, flipped: Mapping[int, Perm], editor: Editor) -> Move | None:
    axis = _axis(node, perm, 0)
    return None if axis is None else Move(perm, attributes={"axis": perm[axis]})


def _softmax(node: ir.Node, perm: Perm, flipped: Mapping[int, Perm], editor: Editor) -> Move | None:
    old = editor.opset(node) < 13  # normalises over all axes from ``axis`` on
    axis = _axis(node, perm, 1 if old else -1)
    last = len(perm) - 1
    if axis is None or (axis == last and perm[axis] != last):  # the last axis is the fast one
        return None
    return None if old and axis != last else Move(perm, attributes={"axis": perm[axis]})


def _arg(node: ir.Node, perm: Perm, flipped: Mapping[int, Perm], editor: Editor) -> Move | None:
    axis = _axis(node, perm, 0)
    if axis is None:
        return None
    out = perm if attribute(node, "keepdims", 1) else _without(perm, {axis})
    return Move(out, attributes={"axis": perm[axis]})


def _reduction(node: ir.Node, perm: Perm, flipped: Mapping[int, Perm], editor: Editor) -> Move | None:
    written = axes(node, editor)
    along = None if written is None else normalised(written, len(perm))
    if along is None:
        return None
    if not along:
        if attribute(node, "noop_with_empty_axes", 0):
            return Move(perm)
        return Move(tuple(range(len(perm))) if attribute(node, "keepdims", 1) else ())  # one element
    out = perm if attribute(node, "keepdims", 1) else _without(perm, set(along))
    return _with_axes(node, out, [perm[axis] for axis in along], editor)


def _squeeze(node: ir.Node, perm: Perm, flipped: Mapping[int, Perm], editor: Editor) -> Move | None:
    written = axes(node, editor)
    along = normalised(written, len(perm)) if written else None
    if not along:
        return None
    return _with_axes(node, _without(perm, set(along)), sorted(perm[axis] for axis in along), editor)


def _unsqueeze(node: ir.Node, perm: Perm, flipped: Mapping[int, Perm], editor: Editor) -> Move | None:
    written = axes(node, editor)
    new = normalised(written, len(perm) + len(written)) if written else None
    return None if new is None else Move(_with(perm, set(new)))


def _reshape(node: ir.Node, perm: Perm, flipped: Mapping[int, Perm], editor: Editor) -> Move | None:
    """A ``Reshape`` that only adds, drops and moves dims of 1; where they stand does not matter."""
    before, after = editor.shape(node.inputs[0]), editor.shape(node.outputs[0])
    if before is None or after is None or len(before) != len(perm) or constant_tensor(input_at(node, 1)) is None:
        return None
    kept = [axis for axis, dim in enumerate(before) if dim != 1]
    places = [axis for axis, dim in enumerate(after) if dim != 1]
    if len(kept) != len(places):
        return None
    unknown = [at for at in range(len(kept)) if not known_equal(before[kept[at]], after[places[at]])]
    unknown = unknown or [at for at, axis in enumerate(kept) if not isinstance(before[axis], int)]
    if len(unknown) > 1:
        return None
    shape = [1] * len(after)
    out = list(range(len(after)))
    ranks = {axis: at for at, axis in enumerate(sorted(perm[axis] for axis in kept))}
    for at, axis in enumerate(kept):
        dim = before[axis]
        out[places[at]] = places[ranks[perm[axis]]]
        if at in unknown:
            shape[out[places[at]]] = -1  # what the others leave over, for none of them is empty
        elif isinstance(dim, int) and dim > 0:
            shape[out[places[at]]] = dim
        else:
            return None
    return Move(tuple(out), constants={1: np.array(shape, dtype=np.int64)})


def _pad(node: ir.Node, perm: Perm, flipped: Mapping[int, Perm], editor: Editor) -> Move | None:
    found = padding(node, editor)
    if found is None or max(found.axes, default=0) >= len(perm):
        return None
    if input_at(node, 3) is not None:
        return Move(perm, constants={3: np.array([perm[axis] for axis in found.axes], dtype=np.int64)})
    if len(found.before) != len(perm):
        return None
    back = inverse(perm)
    pads = [*(found.before[i] for i in back), *(found.after[i] for i in back)]
    if editor.opset(node) < 11:
        return Move(perm, attributes={"pads": pads})
    return Move(perm, constants={1: np.array(pads, dtype=np.int64)})


def _slice(node: ir.Node, perm: Perm, flipped: Mapping[int, Perm], editor: Editor) -> Move | None:
    if editor.opset(node) < 10:
        starts, written = numbers(node, "starts"), numbers(node, "axes")
    else:
        starts = integers(node.inputs[1])
        written = integers(node.inputs[3]) if input_at(node, 3) is not None else ()
    if starts is None or written is None:
        return None
    along = normalised(written or tuple(range(len(starts))), len(perm))
    if along is None or max(along, default=0) >= len(perm):
        return None
    new = [perm[axis] for axis in along]
    if editor.opset(node) < 10:
        return Move(perm, attributes={"axes": new})
    dtype = np.int64 if (tensor := constant_tensor(node.inputs[1])) is None else tensor.dtype.numpy()
    return Move(perm, constants={3: np.array(new, dtype=dtype)})


def _axis(node: ir.Node, perm: Perm, default: int | None) -> int | None:
    axis = attribute(node, "axis", default)
    return None if axis is None or not -len(perm) <= axis < len(perm) else int(axis) % len(perm)


def _with_axes(node: ir.Node, out: Perm, along: Sequence[int], editor: Editor) -> Move:
    if axes_in_input(node, editor):
        return Move(out, constants={1: np.array(along, dtype=np.int64)})
    return Move(out, attributes={"axes": along})


def _without(perm: Perm, gone: set[int]) -> Perm:
    """``perm`` after the axes ``gone`` of the transposed data have been dropped on both sides."""
    kept = [p for axis, p in enumerate(perm) if axis not in gone]
    return tuple(sorted(kept).index(p) for p in kept)


def _with(perm: Perm, new: set[int]) -> Perm:
    """``perm`` after dims of 1 have been put at the places ``new`` on both sides."""
    old = [axis for axis in range(len(perm) + len(new)) if axis not in new]
    rest = iter(perm)
    return tuple(axis if axis in new else old[next(rest)] for axis in range(len(perm) + len(new)))


_UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu", "Clip", "Cos",
    "Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN",
    "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign",
    "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip

_ELEMENTWISE = (
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip

_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(REDUCTIONS, _reduction),
    "ArgMax": _arg, "ArgMin": _arg, "Concat": _concat, "LogSoftmax": _softmax, "Pad": _pad, "Reshape": _reshape,
    "Slice": _slice, "Softmax": _softmax, "Split": _split, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze,
}  # fmt: skip
