"""What a node is told to do, read from attributes or from constant inputs, as its opset has it.

Several operators moved their settings from attributes to inputs: ``Slice`` at opset 10, ``Clip`` and ``Pad`` at
11, ``Squeeze``, ``Unsqueeze``, ``ReduceSum`` and ``Split`` at 13, the other reductions at 18. Functions here
answer ``None`` for what is not known before the model runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, constant_tensor
from onnxopt.shapes import Dim, Dims

END = 2**31 - 1
"""From here on the end of a ``Slice`` means: to the last element."""

NODE_BYTES = 48
"""About what a node takes in a file besides its names."""

REDUCTIONS = frozenset({
    "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
    "ReduceLogSum", "ReduceLogSumExp",
})  # fmt: skip


def input_at(node: ir.Node, at: int) -> ir.Value | None:
    """The input at that place, ``None`` if it is left out."""
    return node.inputs[at] if at < len(node.inputs) else None


def is_read(value: ir.Value) -> bool:
    """Whether anybody reads ``value``, callers of the model included."""
    return bool(value.uses()) or value.is_graph_output()


def integers(value: ir.Value | None) -> tuple[int, ...] | None:
    """The numbers in a constant of integers, in order."""
    tensor = constant_tensor(value)
    if tensor is None or not tensor.dtype.is_integer():
        return None
    return tuple(tensor.numpy().reshape(-1).tolist())


def numbers(node: ir.Node, name: str, default: Sequence[int] = ()) -> tuple[int, ...] | None:
    """The integers in a list attribute; ``None`` if it refers to a function's attribute."""
    found = attribute(node, name, tuple(default))
    return None if found is None else tuple(int(v) for v in found)


def put_numbers(node: ir.Node, name: str, value: int | Sequence[int]) -> None:
    """Set an attribute to an integer or a list of integers."""
    node.attributes[name] = ir.AttrInt64(name, value) if isinstance(value, int) else ir.AttrInt64s(name, tuple(value))


def known_equal(a: Dim, b: Dim) -> bool:
    """Whether two dims are equal for certain."""
    return a is not None and a == b


def same_dims(a: Dims | None, b: Dims | None) -> bool:
    """Whether two shapes are equal for certain."""
    return a is not None and b is not None and len(a) == len(b) and all(map(known_equal, a, b))


def broadcasts_into(other: Dims | None, into: Dims | None) -> bool:
    """Whether ``other`` and ``into``, broadcast against each other, have the shape ``into`` for certain."""
    if other is None:
        return False
    if into is None:
        return len(other) == 0
    if len(other) > len(into):
        return False
    return all(d == 1 or known_equal(d, i) for d, i in zip(reversed(other), reversed(into), strict=False))


def normalised(axes: Sequence[int], rank: int | None) -> tuple[int, ...] | None:
    """``axes`` counted from the front; needs the rank only if one is negative."""
    if all(axis >= 0 for axis in axes):
        return tuple(axes)
    return None if rank is None else tuple(axis % rank for axis in axes)


def axes_in_input(node: ir.Node, editor: Editor) -> bool:
    """Whether the axes of a ``Squeeze``, ``Unsqueeze`` or reduction are its second input, not an attribute."""
    since = 13 if node.op_type in ("Squeeze", "Unsqueeze", "ReduceSum") else 18
    return editor.opset(node) >= since and not node.op_type.startswith("Arg")


def axes(node: ir.Node, editor: Editor) -> tuple[int, ...] | None:
    """The axes of a ``Squeeze``, ``Unsqueeze`` or reduction as they are written; empty if there are none."""
    if not axes_in_input(node, editor):
        return numbers(node, "axes")
    given = input_at(node, 1)
    return () if given is None else integers(given)


@dataclass(frozen=True)
class Cut:
    """What ``Slice`` does on one axis."""

    start: int
    end: int
    step: int = 1


def cuts(node: ir.Node, editor: Editor) -> dict[int, Cut] | None:
    """What a ``Slice`` does, by axis as it is written."""
    if editor.opset(node) < 10:
        starts, ends, along = (numbers(node, name) for name in ("starts", "ends", "axes"))
        steps: tuple[int, ...] | None = ()
    else:
        starts, ends = integers(input_at(node, 1)), integers(input_at(node, 2))
        along, steps = (() if input_at(node, at) is None else integers(input_at(node, at)) for at in (3, 4))
    if starts is None or ends is None or along is None or steps is None:
        return None
    along = along or tuple(range(len(starts)))
    steps = steps or (1,) * len(starts)
    found = {axis: Cut(s, e, step) for axis, s, e, step in zip(along, starts, ends, steps, strict=True)}
    return found if len(found) == len(starts) else None


@dataclass(frozen=True)
class Padding:
    """What ``Pad`` does: how much it adds before and after, along which axes."""

    mode: str
    axes: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    value: float | None
    """What is filled in; ``None`` if that is not known."""


def padding(node: ir.Node, editor: Editor) -> Padding | None:
    """What a ``Pad`` does."""
    mode = attribute(node, "mode", "constant")
    along: tuple[int, ...] | None = None
    if editor.opset(node) < 11:
        pads, value = numbers(node, "pads") or None, attribute(node, "value", 0.0)
    else:
        pads = integers(input_at(node, 1))
        fill = input_at(node, 2)
        value = 0.0 if fill is None else editor.scalar(fill)
        given = input_at(node, 3)
        if given is not None:
            rank = editor.rank(node.inputs[0])
            written = integers(given)
            along = None if written is None else normalised(written, rank)
            if along is None:
                return None
    if mode is None or pads is None:
        return None
    half = len(pads) // 2
    return Padding(mode, tuple(range(half)) if along is None else along, pads[:half], pads[half:], value)


@dataclass(frozen=True)
class Range:
    """An interval that every element of a value lies in, or that a ``Clip`` maps into; NaN is nowhere."""

    low: float
    high: float

    def within(self, other: Range) -> bool:
        """Whether this interval is a part of ``other``."""
        return other.low <= self.low and self.high <= other.high


_RANGES = {
    "Sigmoid": Range(0, 1), "HardSigmoid": Range(0, 1), "Relu": Range(0, math.inf), "Abs": Range(0, math.inf),
    "Exp": Range(0, math.inf), "Sqrt": Range(0, math.inf), "Softplus": Range(0, math.inf),
    "Softmax": Range(0, math.inf), "ReduceL1": Range(0, math.inf), "ReduceL2": Range(0, math.inf),
}  # fmt: skip


def clip_range(node: ir.Node, editor: Editor) -> Range | None:
    """The interval that a ``Clip`` or ``Relu`` maps into; ``None`` if it is not known or empty."""
    if node.op_type == "Relu":
        return Range(0, math.inf)
    bounds: list[float] = []
    for at, (name, missing) in enumerate((("min", -math.inf), ("max", math.inf)), 1):
        if editor.opset(node) < 11:
            largest = float(np.finfo(np.float32).max)
            bound = attribute(node, name, math.copysign(largest, missing))
        elif input_at(node, at) is None:
            bound = missing
        else:
            bound = _exact_scalar(input_at(node, at))
        if bound is None or math.isnan(bound):
            return None
        bounds.append(bound)
    low, high = bounds
    return Range(low, high) if low <= high else None


def value_range(value: ir.Value, editor: Editor) -> Range | None:
    """An interval that ``value`` lies in by the nature of the node that makes it."""
    node = value.producer()
    if node is None or node.domain:
        return None
    if node.op_type == "Clip":
        return clip_range(node, editor)
    if node.op_type == "Abs" and editor.dtype(value) not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return None  # the least integer has no absolute value
    return _RANGES.get(node.op_type)


def _exact_scalar(value: ir.Value | None) -> float | int | None:
    """Like ``Editor.scalar``, but integers stay exact."""
    tensor = constant_tensor(value)
    if tensor is None or tensor.size != 1:
        return None
    found = tensor.numpy().reshape(())
    return int(found) if tensor.dtype.is_integer() else float(found)


def permutation(node: ir.Node, editor: Editor) -> tuple[int, ...] | None:
    """What a ``Transpose`` does: axis ``i`` of the output is axis ``perm[i]`` of the input."""
    perm = attribute(node, "perm", ())
    if perm is None:
        return None
    if len(perm) == 0:
        rank = editor.rank(node.inputs[0])
        return None if rank is None else tuple(reversed(range(rank)))
    return tuple(int(p) for p in perm)


def keeps_order(perm: Sequence[int], dims: Dims | None) -> bool:
    """Whether a transposition moves no dims but those of size 1, so that no element moves in memory."""
    kept = [p for p in perm if dims is None or dims[p] != 1]
    return kept == sorted(kept)


def write_constant(value: ir.Value, array: np.ndarray[Any, Any], editor: Editor) -> None:
    """Let a constant that has one reader hold other numbers, under its name."""
    tensor = ir.Tensor(array, name=value.name)
    node = value.producer()
    if node is not None:
        node.attributes.clear()
        node.attributes["value"] = ir.AttrTensor("value", tensor)
    else:
        value.const_value = tensor
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(tensor.dtype)
    editor.facts.learn(value, tensor.dtype, tuple(int(d) for d in array.shape))


def discard(*values: ir.Value | None) -> None:
    """Take out constants that nobody reads any more, so that replacing one never makes the model larger."""
    for value in values:
        if value is None or is_read(value):
            continue
        node = value.producer()
        if node is not None:
            if node.op_type == "Constant" and node.graph is not None:
                node.graph.remove(node, safe=True)
        elif value.is_initializer() and not value.is_graph_input() and value.graph is not None:
            value.graph.initializers.pop(value.name or "", None)
