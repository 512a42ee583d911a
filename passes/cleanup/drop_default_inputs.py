"""Drop optional inputs that hold their default.

Exporters spell out what an operator assumes anyway: initial states of zeros for recurrent networks, built at run
time from the batch size, biases of zeros, padding with 0, steps of 1::

    LSTM(x, W, R, B, –, ConstantOfShape(…), ConstantOfShape(…))   →   LSTM(x, W, R, B)

Exact: the operators define a missing input as just that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, constant_tensor
from onnxopt.pass_base import NodePass

_RECURRENT = {3: 0.0, 5: 0.0, 6: 0.0, 7: 0.0}
_DEFAULTS: dict[str, dict[int, float]] = {
    "LSTM": _RECURRENT,
    "GRU": _RECURRENT,
    "RNN": _RECURRENT,
    "Conv": {2: 0.0},
    "ConvTranspose": {2: 0.0},
    "Gemm": {2: 0.0},
    "Pad": {2: 0.0},
    "Slice": {4: 1.0},
}
"""Operator → position of an optional input → the value it has when it is missing."""

_REARRANGING = frozenset({"Expand", "Slice", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Tile"})
"""Operators that bring no new elements in."""

_GEMM_WITHOUT_C = 11
_MAX_ELEMENTS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class DropDefaultInputs(NodePass):
    """Drop optional inputs that hold their default."""

    name: ClassVar[str] = "drop-default-inputs"
    exact: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = frozenset(_DEFAULTS)

    def rewrite(self, node: ir.Node, editor: Editor) -> str | None:
        if node.op_type == "Gemm" and editor.opset(node) < _GEMM_WITHOUT_C:
            return None
        defaults = _DEFAULTS[node.op_type]
        dropped = [
            at for at, value in enumerate(node.inputs) if at in defaults and _holds(value, defaults[at], editor)
        ]
        if not dropped:
            return None
        for at in dropped:
            node.replace_input_with(at, None)
        used = max(at for at, value in enumerate(node.inputs) if value is not None) + 1
        node.resize_inputs(used)
        return f"lost {len(dropped)} input{'s' if len(dropped) > 1 else ''} that held the default"


def _holds(value: ir.Value | None, default: float, editor: Editor, depth: int = 10) -> bool:
    """Whether every element of ``value`` is known to be ``default``."""
    if value is None:
        return False
    node = value.producer()
    if node is not None and node.domain == "":
        if node.op_type == "ConstantOfShape":
            fill = attribute(node, "value")
            if fill is None:
                return default == 0.0 and "value" not in node.attributes
            return bool(np.all(fill.numpy() == default))
        if node.op_type in _REARRANGING:
            return depth > 0 and _holds(node.inputs[0], default, editor, depth - 1)
    tensor = constant_tensor(value)
    if tensor is None or tensor.dtype == ir.DataType.STRING or not 0 < tensor.size <= _MAX_ELEMENTS:
        return False
    array = tensor.numpy()
    return bool(array.flat[0] == default and np.all(array == default))
