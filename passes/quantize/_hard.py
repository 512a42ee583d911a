"""HardSigmoid and HardSwish on integers, where the runtime has no kernel for them: a Clip, read on another grid.

``HardSigmoid(x) = min(max(α x + ½, 0), 1)`` is 0 up to ``x = −k`` and 1 from ``k`` on, with ``k = 1 / (2 α)``. Let the
grid of ``x`` begin at ``−k``: ``x = s (q − z)`` with ``s z = k`` exactly. Then ``q`` saturates at 0 just where the
function does, ``2 z`` stands for ``k``, and::

    HardSigmoid(x) = min(q, 2 z) / (2 z)          the integers Clip(q, 0, 2 z), read with the scale 1 / (2 z)
    HardSwish(x)   = x · HardSigmoid(x)           a product of integers

without any rounding but that of ``x`` itself. Values of ``x`` below ``−k`` are lost, so nobody else may read it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, label
from onnxopt.pass_base import Refuse
from onnxopt.passes.quantize._grid import Grid, integer_limits
from onnxopt.passes.quantize._targets import Operator

_HARD = ("HardSigmoid", "HardSwish")


def knee(node: ir.Node, operator: Operator) -> float:
    """The ``k`` of a HardSigmoid or HardSwish. Raises ``Refuse`` if its input means anything else to others."""
    found = _knee(node)
    value = node.inputs[0]
    assert value is not None
    if not found > 0:
        raise Refuse("its alpha is not positive")
    producer = value.producer()
    if producer is None or value.is_graph_output():
        raise Refuse(f"its input {value.name} is seen from outside")
    for use in value.uses():
        reader = use.node
        hard = reader.op_type in _HARD and _knee(reader) == found
        if not hard and not (reader.op_type == "Mul" and any(_is_hard_of(v, value) for v in reader.inputs)):
            text = f"its input {value.name} is also read by {label(reader)}, which needs what is below {-found:g}"
            raise Refuse(text)
    return found


def _knee(node: ir.Node) -> float:
    alpha = 1 / 6 if node.op_type == "HardSwish" else attribute(node, "alpha", 0.2)
    return float(np.float32(0.5 / alpha)) if alpha else 0.0


def _is_hard_of(value: ir.Value | None, source: ir.Value) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "HardSigmoid" and producer.inputs[0] is source


def grid_from_knee(knee: float, high: float, dtype: np.dtype[Any]) -> Grid:
    """The grid from ``−knee`` to at least ``high``, on which ``knee`` is a whole number of steps."""
    least, greatest = integer_limits(dtype)
    steps = greatest - least
    zero = min(max(int(np.floor(steps * knee / (knee + max(high, 0.0)))), 1), steps)
    return Grid(np.asarray(knee / zero, np.float32), np.asarray(least + zero).astype(dtype), dtype)


def clip_integers(editor: Editor, node: ir.Node) -> None:
    """Write a HardSigmoid or HardSwish whose input is dequantized from such a grid as a Clip of the integers."""
    value = node.inputs[0]
    dequantizer = value.producer() if value is not None else None
    assert value is not None
    assert dequantizer is not None
    integers, point = dequantizer.inputs[0], editor.constant(dequantizer.inputs[2])
    assert point is not None
    least, greatest = integer_limits(point.dtype)
    zero = int(point) - least
    name, dtype = node.outputs[0].name, point.dtype
    if 2 * zero < greatest - least:
        ends = [
            editor.add_constant(node, np.asarray(end).astype(dtype), f"{name}_{what}")
            for what, end in (("zero", least), ("one", least + 2 * zero))
        ]
        integers = editor.insert(node, "Clip", [integers, *ends], name="")
    grid = [
        editor.add_constant(node, np.asarray(1 / (2 * zero), np.float32), f"{name}_scale"),
        editor.add_constant(node, np.asarray(least).astype(dtype), f"{name}_zero_point"),
    ]
    swish = node.op_type == "HardSwish"
    result = editor.insert(node, "DequantizeLinear", [integers, *grid], name="" if swish else None)
    if swish:
        result = editor.insert(node, "Mul", [value, result])
    editor.take_over(node.outputs[0], result)
    editor.remove(node)
    if not value.uses() and not value.is_graph_output():
        editor.remove(dequantizer)
