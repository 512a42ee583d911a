"""The quantized values around a node of a QDQ model, and the integer node that stands for all of them.

``Quantized`` is an integer tensor with its scale and zero point. Around a float node stand ``DequantizeLinear``
nodes, whose inputs are such, and a ``QuantizeLinear`` behind it, perhaps after a ``Relu`` or ``Clip`` that does
nothing, since saturation at the end of the integers does the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, constant_tensor, label, sole_reader
from onnxopt.pass_base import Refuse
from onnxopt.passes.cleanup._operands import clip_range, discard, input_at, is_read
from onnxopt.passes.quantize._grid import Array, integer_limits

BYTES = (ir.DataType.INT8, ir.DataType.UINT8)


@dataclass(frozen=True)
class Quantized:
    """An integer tensor, and how it is read: ``scale · (q − zero)``, along ``axis`` if these are vectors."""

    q: ir.Value
    scale: ir.Value
    zero: ir.Value | None
    dtype: ir.DataType
    node: ir.Node

    @property
    def axis(self) -> int:
        """The axis of the scales, if there are several."""
        return int(attribute(self.node, "axis", 1))

    def scales(self, editor: Editor) -> Array:
        """The scales as float32. Raises ``Refuse`` if they are not constant."""
        found = editor.constant(self.scale)
        if found is None or found.dtype != np.float32:
            raise Refuse(f"the scale {self.scale.name!r} is not a float32 constant")
        return found

    def zeros(self, editor: Editor) -> Array:
        """The zero points, as many as there are scales. Raises ``Refuse`` if they are not constant."""
        if self.zero is None:
            return np.zeros(self.scales(editor).shape, self.dtype.numpy())
        found = editor.constant(self.zero)
        if found is None:
            raise Refuse(f"the zero point {self.zero.name!r} is not constant")
        return found

    def is_whole(self, editor: Editor) -> bool:
        """Whether one scale serves the whole tensor."""
        return self.scales(editor).size == 1

    def parameters(self, user: ir.Node, editor: Editor) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point as inputs of an operator that needs both."""
        zero = self.zero
        if zero is None:
            zero = editor.add_constant(user, self.zeros(editor), f"{self.scale.name}_zero_point")
        return self.scale, zero

    def triple(self, user: ir.Node, editor: Editor) -> tuple[ir.Value, ir.Value, ir.Value]:
        """The tensor with its scale and zero point."""
        return self.q, *self.parameters(user, editor)

    def same_grid(self, other: Quantized, editor: Editor) -> bool:
        """Whether equal integers of both mean equal numbers."""
        return (
            self.dtype == other.dtype
            and np.array_equal(self.scales(editor).reshape(-1), other.scales(editor).reshape(-1))
            and np.array_equal(self.zeros(editor).reshape(-1), other.zeros(editor).reshape(-1))
        )


def dequantized(value: ir.Value | None, editor: Editor) -> Quantized | None:
    """What ``value`` is read from, if a ``DequantizeLinear`` makes it."""
    node = value.producer() if value is not None else None
    return None if node is None or node.op_type != "DequantizeLinear" or node.domain else _around(node, editor)


def operand(node: ir.Node, at: int, editor: Editor, *, whole: bool = True) -> Quantized:
    """The quantized input at that place. Raises ``Refuse`` if it is none of 8 bits, or has several scales."""
    value = input_at(node, at)
    found = dequantized(value, editor)
    name = value.name if value is not None else at
    if found is None:
        raise Refuse(f"its input {name!r} is not quantized")
    if found.dtype not in BYTES:
        raise Refuse(f"its input {name!r} is {found.dtype.name}; kernels exist for 8 bits")
    if whole and not found.is_whole(editor):
        raise Refuse(f"its input {name!r} has a scale for each channel")
    return found


@dataclass(frozen=True)
class Result:
    """The ``QuantizeLinear`` behind a node, with what may go with it."""

    quantized: Quantized
    between: tuple[ir.Node, ...]


def result(value: ir.Value, editor: Editor) -> Result | None:
    """How ``value`` is quantized, if that is all that it is read for."""
    between: list[ir.Node] = []
    while True:
        reader = sole_reader(value)
        if reader is None or reader.domain or reader.graph is not value.graph or reader.inputs[0] is not value:
            return None
        if reader.op_type == "QuantizeLinear":
            found = _around(reader, editor)
            if found.dtype not in BYTES or not found.is_whole(editor):
                return None
            return Result(found, tuple(between)) if _saturates_alike(between, found, editor) else None
        if reader.op_type not in ("Relu", "Clip") or between:
            return None
        between.append(reader)
        value = reader.outputs[0]


def _saturates_alike(between: Sequence[ir.Node], found: Quantized, editor: Editor) -> bool:
    """Whether ``Relu`` or ``Clip`` cuts nothing that the integers do not cut as well."""
    for node in between:
        limits = clip_range(node, editor)
        least, greatest = integer_limits(found.dtype.numpy())
        scale, zero = float(found.scales(editor).reshape(())), int(found.zeros(editor).reshape(()))
        if limits is None:
            return False
        low, high = (scale * (end - zero) for end in (least, greatest))
        # Half a step beyond the last integer rounds to it.
        if limits.low > low + scale / 2 or limits.high < high - scale / 2:
            return False
    return True


def bound(value: float, found: Quantized, editor: Editor) -> int:
    """The integer that a limit of ``Clip`` becomes."""
    least, greatest = integer_limits(found.dtype.numpy())
    if math.isinf(value):
        return greatest if value > 0 else least
    step = np.float32(value) / found.scales(editor).reshape(())
    return int(np.clip(np.rint(step) + int(found.zeros(editor).reshape(())), least, greatest))


def integer_bias(value: ir.Value, scales: Array, editor: Editor) -> ir.Value:
    """The INT32 tensor that a bias is read from. Raises ``Refuse`` if its scale is not ``scales``."""
    found = dequantized(value, editor)
    if found is None or found.dtype != ir.DataType.INT32:
        raise Refuse(f"its bias {value.name!r} is not quantized to INT32")
    own = np.broadcast_to(found.scales(editor).reshape(-1), max(scales.size, found.scales(editor).size))
    if not np.allclose(own, scales.reshape(-1), rtol=1e-4, atol=0) or found.zeros(editor).any():
        raise Refuse(f"the scale of its bias {value.name!r} is not the product of the scales of input and weight")
    return found.q


def put(
    node: ir.Node, op: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Any], into: Result, editor: Editor
) -> None:
    """Let one integer node stand for ``node``, what is behind it, and the ``QuantizeLinear``."""
    end = into.quantized.node
    new = insert(node, op, inputs, attributes, editor)
    editor.take_over(end.outputs[0], new)
    for each in (end, *reversed(into.between), node):
        remove(each, editor)
    for value in (into.quantized.scale, into.quantized.zero):
        discard(value)


def insert(
    node: ir.Node, op: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Any], editor: Editor
) -> ir.Value:
    """A node in front of ``node``, of the standard or, where that has no such operator, of ``com.microsoft``."""
    if op in STANDARD:
        return editor.insert(node, op, inputs, attributes)
    new = ir.node(
        op,
        list(inputs),
        attributes,
        domain="com.microsoft",
        name=node.name or "",
        doc_string=node.doc_string,
        metadata_props=dict(node.metadata_props),
    )
    new.outputs[0].name = editor.fresh(f"{label(node)}_{op}")
    assert node.graph is not None
    node.graph.insert_before(node, new)
    editor.model.opset_imports.setdefault("com.microsoft", 1)
    return new.outputs[0]


STANDARD = frozenset({"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "Add", "Cast", "Mul", "Clip"})


def remove(node: ir.Node, editor: Editor) -> None:
    """Take ``node`` out, with the ``DequantizeLinear`` nodes and constants that only it read."""
    inputs = [value for value in node.inputs if value is not None]
    editor.remove(node)
    for value in dict.fromkeys(inputs):
        producer = value.producer()
        if producer is not None and producer.op_type == "DequantizeLinear" and not is_read(value):
            remove(producer, editor)
        elif constant_tensor(value) is not None:
            discard(value)


def _around(node: ir.Node, editor: Editor) -> Quantized:
    """The integer side of a ``QuantizeLinear`` or ``DequantizeLinear``."""
    scale = node.inputs[1]
    assert scale is not None
    q = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    assert q is not None
    zero = input_at(node, 2)
    dtype = editor.dtype(zero if zero is not None else q)
    if dtype is None or attribute(node, "block_size", 0):
        raise Refuse(f"the integers {q.name!r} are of unknown type, or quantized in blocks")
    return Quantized(q, scale, zero, dtype, node)
