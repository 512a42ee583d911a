"""Make a quantized model a float one again, so that it can be optimized or quantized anew.

::

    QuantizeLinear → DequantizeLinear        becomes   nothing, or the Relu or Clip that it stood for
    DequantizeLinear(constant)               becomes   a float constant
    Mul(Sub(Cast(constant), zero), scale)    becomes   a float constant
    QLinearConv, QLinearMatMul, QGemm, …     become    Conv, MatMul, Gemm, …
    DynamicQuantizeLinear → MatMulInteger …  becomes   MatMul
    MatMulNBits, DynamicQuantizeLSTM, …      become    MatMul, LSTM, …

Weights keep their rounded values; rounding of activations is gone. What a quantizer drops since the integers cannot
hold it is put back: where they start at 0.0, a ``Relu`` (not behind an input of the model, or an operator that yields
nothing negative); where they end at 6 besides, a ``Clip``. Data movement between two roundings is kept, in float.
Quantized operators that are not known here stay as they are, between roundings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, label
from onnxopt.pass_base import Context, Log, Pass, PassFailure, Refuse, Report
from onnxopt.passes.quantize._contrib import DOMAIN, remove_back
from onnxopt.passes.quantize._float_forms import BUILDERS, Form, dequantized
from onnxopt.passes.quantize._grid import integer_limits

Array = np.ndarray[Any, Any]

_MOVES = frozenset({
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Gather", "Expand", "Tile",
    "DepthToSpace", "SpaceToDepth", "MaxPool",
})  # fmt: skip
_NOT_NEGATIVE = frozenset({
    "Relu", "Sigmoid", "Softmax", "HardSigmoid", "Exp", "Abs", "Sqrt", "Softplus", "ReduceL2",
})  # fmt: skip
_KEEPS_SIGN = _MOVES | {"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax", "Cast"}


@dataclass(frozen=True, kw_only=True)
class Dequantize(Pass):
    """Make a quantized model a float one again."""

    name: ClassVar[str] = "dequantize"
    exact: ClassVar[bool] = False
    ops: ClassVar[frozenset[str] | None] = None

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        for node in _nodes(context.editor):
            build = BUILDERS.get(node.op_type)
            if build is not None:
                self._try(node, partial(_build, build, context.editor), context, log)
            elif _is_quantized(node) and self.may_change(node, context):
                log.refused(label(node), f"the float form of {node.op_type} is not known here")
        for node in _nodes(context.editor):
            if node.op_type == "DequantizeLinear":
                self._try(node, partial(_drop, context.editor), context, log)
        for node in list(context.editor.nodes({"Mul"})):
            if (floats := _stored(node.outputs[0], context.editor)) is not None:
                self._try(node, partial(_widen, context.editor, floats), context, log)
        report = log.report()
        if not report.changes and not report.refusals:
            log.refused("model", "it has no quantized operators that may be changed")
        return log.report()

    def _try(self, node: ir.Node, rewrite: Callable[[ir.Node], str], context: Context, log: Log) -> None:
        if node.graph is None or context.gate.closed or not self.may_change(node, context):
            return
        name = label(node)
        try:
            log.changed(name, rewrite(node))
        except Refuse as refusal:
            log.refused(name, str(refusal))
        except Exception as error:
            raise PassFailure(self.name, name) from error


def _nodes(editor: Editor) -> list[ir.Node]:
    return [node for graph in editor.graphs() for node in graph if node.domain in ("", DOMAIN)]


def _is_quantized(node: ir.Node) -> bool:
    """Whether a node computes with quantized tensors, as far as its name tells."""
    op = node.op_type
    if op in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"):
        return False
    return op.startswith(("QLinear", "QAttention", "QOrdered", "QEmbed", "QMoE")) or any(
        word in op for word in ("Integer", "Quantize", "NBits", "Bnb4")
    )


def _build(build: Callable[[Form], None], editor: Editor, node: ir.Node) -> str:
    op = node.op_type
    build(Form(node, editor))
    return f"{op} written with float operators"


def _drop(editor: Editor, node: ir.Node) -> str:
    """Take a ``DequantizeLinear`` out, with the rounding that feeds it."""
    q, scale, zero = (*node.inputs, None)[:3]
    constant, factor = editor.constant(q), editor.constant(scale)
    if constant is not None:
        if factor is None:
            raise Refuse("its scale is no constant")
        axis, block = attribute(node, "axis", 1), attribute(node, "block_size", 0)
        w = dequantized(constant, factor, editor.constant(zero), axis, block)
        return _widen(editor, w, node)
    start, moves = _source(q)
    if moves and factor is not None and factor.size != 1:
        raise Refuse("data with a scale a channel are moved before it")
    source = start.producer()
    if source is None or source.op_type == "Constant":
        stored = editor.constant(start)
        if stored is None or factor is None:
            raise Refuse("its scale is no constant" if factor is None else "its integers are an input")
        w = dequantized(stored, factor, editor.constant(zero))
        result = _moved(node, editor.add_constant(node, w, f"{start.name}_float"), moves, editor)
        editor.take_over(node.outputs[0], result)
        remove_back(node, editor)
        return "its constant is a float one"
    if source.op_type == "DynamicQuantizeLinear":
        if scale is not source.outputs[1] or (zero is not None and zero is not source.outputs[2]):
            raise Refuse("it has the scale of another rounding")
        factor = zero_point = None
    else:
        given = (*source.inputs, None)[1:3]
        if not _same(given[0], scale, editor) or not _same(given[1], zero, editor):
            raise Refuse("it has another scale or zero point than the rounding before it")
        if (factor is None or factor.size != 1) and attribute(source, "axis", 1) != attribute(node, "axis", 1):
            raise Refuse("its scales are along another axis than those of the rounding before it")
        zero_point = editor.constant(given[1])
        if zero_point is None:
            zero_point = np.zeros((), np.uint8)
    x = source.inputs[0]
    if x is None or (editor.dtype(x) or ir.DataType.FLOAT) != (editor.dtype(scale) or ir.DataType.FLOAT):
        raise Refuse("it yields another type than was rounded")
    result, text = _clamp(node, x, factor, zero_point, editor)
    result = _moved(node, result, moves, editor)
    if result is x and not editor.redirect(node.outputs[0], x):
        result = editor.insert(node, "Identity", [x])
    if result is not x:
        editor.take_over(node.outputs[0], result)
    remove_back(node, editor)
    return text


def _stored(value: ir.Value | None, editor: Editor) -> Array | None:
    """The floats that Cast, Sub and Mul make of constant integers of 8 or 4 bits (see ``quantize-weights``)."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type not in ("Cast", "Sub", "Mul") or node.domain != "":
        return None
    if node.op_type == "Cast":
        constant = editor.constant(node.inputs[0])
        if constant is None or constant.dtype.name not in ("int8", "uint8", "int4", "uint4"):
            return None
        return constant.astype(np.float32) if editor.dtype(value) == ir.DataType.FLOAT else None
    x, other = _stored(node.inputs[0], editor), editor.constant(node.inputs[1])
    if x is None or other is None or other.dtype != np.float32:
        return None
    return np.asarray(x * other if node.op_type == "Mul" else x - other)


def _widen(editor: Editor, floats: Array, node: ir.Node) -> str:
    value = editor.add_constant(node, floats, f"{node.outputs[0].name}_float")
    if not editor.redirect(node.outputs[0], value):
        editor.take_over(node.outputs[0], editor.insert(node, "Identity", [value]))
    remove_back(node, editor)
    return "its constant is a float one"


def _moved(before: ir.Node, value: ir.Value, moves: list[ir.Node], editor: Editor) -> ir.Value:
    """``value`` after the same data movements, in front of a node."""
    for move in moves:
        options = {name: found.value for name, found in move.attributes.items()}
        value = editor.insert(before, move.op_type, [value, *move.inputs[1:]], options, like=move, name="")
    return value


def _source(q: ir.Value | None) -> tuple[ir.Value, list[ir.Node]]:
    """The constant, or the result of rounding, that becomes ``q``, and the data movements between in their order."""
    moves: list[ir.Node] = []
    while q is not None:
        node = q.producer()
        if node is None or node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear", "Constant"):
            return q, moves[::-1]
        if node.op_type not in _MOVES or node.domain != "" or len([o for o in node.outputs if o.name]) > 1:
            raise Refuse(f"its integers come from {node.op_type} ({label(node)})")
        moves.append(node)
        q = node.inputs[0]
    raise Refuse("its integers are missing")


def _same(a: ir.Value | None, b: ir.Value | None, editor: Editor) -> bool:
    if a is b:
        return True
    x, y = editor.constant(a), editor.constant(b)
    if x is None or y is None:  # a zero point that is left out is 0
        found = y if a is None else x if b is None else None
        return found is not None and not found.astype(np.int64).any()
    return x.dtype == y.dtype and x.size == y.size and np.array_equal(x.reshape(-1), y.reshape(-1))


def _clamp(node: ir.Node, x: ir.Value, scale: Array | None, zero: Array | None, editor: Editor) -> tuple[ir.Value, str]:
    """``x``, or the activation function that rounding it stood for, and what to say of it."""
    text = "rounding removed"
    if scale is None or zero is None or scale.size != 1 or x.producer() is None or _not_negative(x, editor):
        return x, text
    least, greatest = integer_limits(zero.dtype)
    start = int(zero.astype(np.int64).reshape(-1)[0])
    if start != least:
        return x, text
    if abs(float(scale.reshape(-1)[0]) * (greatest - least) - 6) > _NEAR_SIX:
        return editor.insert(node, "Relu", [x], name=""), f"{text}, Relu put back"
    if editor.opset(node) < 11:
        return editor.insert(node, "Clip", [x], {"min": 0.0, "max": 6.0}, name=""), f"{text}, Clip put back"
    limits = [editor.add_constant(node, np.array(v, scale.dtype), f"{x.name}_limit") for v in (0, 6)]
    return editor.insert(node, "Clip", [x, *limits], name=""), f"{text}, Clip put back"


def _not_negative(x: ir.Value | None, editor: Editor, depth: int = 8) -> bool:
    """Whether ``x`` is known to hold nothing negative."""
    constant = editor.constant(x)
    if constant is not None:
        return bool((constant >= 0).all())
    node = x.producer() if x is not None else None
    if node is None or depth == 0:
        return False
    if node.op_type in _NOT_NEGATIVE:
        return True
    if node.op_type == "Clip":
        low = editor.scalar(node.inputs[1]) if len(node.inputs) > 1 else attribute(node, "min")
        return low is not None and low >= 0
    if node.op_type == "Pow":
        exponent = editor.scalar(node.inputs[1])
        return exponent is not None and exponent % 2 == 0
    if node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
        return True
    if node.op_type in ("Add", "Mul", "Concat"):
        return all(_not_negative(value, editor, depth - 1) for value in node.inputs)
    return node.op_type in _KEEPS_SIGN and _not_negative(node.inputs[0], editor, depth - 1)


_NEAR_SIX = 6e-3
"""How far from 6 a range may end that stood for a Clip at 6: a thousandth."""
