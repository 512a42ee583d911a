"""Nodes that scale and shift by constants.

``Mul``, ``Div``, ``Add``, ``Sub`` by constants and ``Neg`` compute ``s · x + t``, with arrays that broadcast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, constant_tensor

Array = np.ndarray[Any, Any]

PRECISION = {
    ir.DataType.FLOAT16: (10, 15),
    ir.DataType.BFLOAT16: (7, 127),
    ir.DataType.FLOAT: (23, 127),
    ir.DataType.DOUBLE: (52, 1023),
}
"""Of each type of floats: binary places behind the leading one, and the largest exponent."""

_ZERO, _ONE = np.zeros(()), np.ones(())

FLOATS = frozenset(PRECISION)

LARGEST = 1 << 16
"""Constants of more numbers than that belong to no channels and are not looked at."""


@dataclass(frozen=True)
class Affine:
    """What a node computes of its one variable input: ``scale · x + shift``, with arrays that broadcast."""

    source: ir.Value
    scale: Array
    shift: Array
    constants: tuple[ir.Value, ...]
    """Where the numbers come from."""


def affine(node: ir.Node, editor: Editor) -> Affine | None:
    """A ``Mul``, ``Div``, ``Add`` or ``Sub`` of a constant, or a ``Neg``, as ``scale · x + shift`` in float64."""
    if node.op_type not in AFFINE or node.domain or editor.opset(node) < 7:
        return None
    if (dtype := editor.dtype(node.outputs[0])) is not None and dtype not in FLOATS:
        return None
    if node.op_type == "Neg" and node.inputs[0] is not None:
        if editor.dtype(node.inputs[0]) not in FLOATS:
            return None
        return Affine(node.inputs[0], -_ONE, _ZERO, ())
    if node.op_type not in _ARITHMETIC:
        return None
    for at in (1, 0):
        value, source = node.inputs[at], node.inputs[1 - at]
        tensor = constant_tensor(value)
        if tensor is None or value is None or source is None or tensor.dtype not in FLOATS or tensor.size > LARGEST:
            continue
        if constant_tensor(source) is not None:
            return None  # a constant expression
        number = tensor.numpy().astype(np.float64)
        match node.op_type, at:
            case "Mul", _:
                scale, shift = number, _ZERO
            case "Div", 1:
                with np.errstate(divide="ignore"):
                    scale, shift = 1 / number, _ZERO
            case "Add", _:
                scale, shift = _ONE, number
            case "Sub", 1:
                scale, shift = _ONE, -number
            case "Sub", 0:
                scale, shift = -_ONE, number
            case _:
                return None
        if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
            return None
        return Affine(source, scale, shift, (value,))
    return None


_ARITHMETIC = ("Mul", "Div", "Add", "Sub")

AFFINE = frozenset({*_ARITHMETIC, "Neg"})
"""Operators that may be a scale or a shift."""


def ends_a_fusion(value: ir.Value) -> bool:
    """Whether ``value`` ends a normalization or a GELU written out, which ONNX Runtime runs as one node.

    It would not find them any more if their last scale or shift were gone.
    """
    level = [value]
    for _ in range(5):  # as many operators as lie between the end and the operator that gives them away
        producers = [node for v in level if (node := v.producer()) is not None and not node.domain]
        if any(node.op_type in ("Erf", "Tanh", "Sqrt", "Reciprocal") for node in producers):
            return True
        inner = (node.inputs for node in producers if node.op_type in _ARITHMETIC)
        level = list({v: None for inputs in inner for v in inputs if v is not None})
    return False
