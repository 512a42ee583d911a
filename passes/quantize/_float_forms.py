"""What each quantized operator computes, written with float operators.

An operator with quantized inputs and outputs becomes ``DequantizeLinear → operator → QuantizeLinear``; constants are
dequantized at once. One that rounds its input at run time becomes the plain operator on that input. Each builder
gets a node, and either puts another in its place or raises ``Refuse`` before it has changed anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.graph import AttributeValue, Editor, attribute, sole_reader
from onnxopt.pass_base import Refuse
from onnxopt.passes.quantize._blockwise import unpack
from onnxopt.passes.quantize._contrib import remove_back

Array = np.ndarray[Any, Any]


def dequantized(q: Array, scale: Array, zero: Array | None, axis: int = 1, block: int = 0) -> Array:
    """``(q − zero) · scale`` in the type of ``scale``: a scalar, a vector along ``axis``, or one for each block."""
    wide = q.astype(np.float64)
    offset = np.zeros(()) if zero is None else zero.astype(np.float64)
    factor = scale.astype(np.float64)
    if block:
        factor, offset = (
            np.repeat(a, block, axis=axis).take(range(q.shape[axis]), axis=axis) if a.ndim else a
            for a in (factor, offset)
        )
    else:
        along = [-1 if i == axis % max(q.ndim, 1) else 1 for i in range(q.ndim)]
        factor, offset = (a.reshape(()) if a.size == 1 else a.reshape(along) for a in (factor, offset))
    return ((wide - offset) * factor).astype(scale.dtype)


class Form:
    """One quantized node, and the means to write its float form."""

    def __init__(self, node: ir.Node, editor: Editor) -> None:
        self.node, self.editor = node, editor

    def input(self, at: int) -> ir.Value | None:
        """The input at that place, ``None`` if it is left out."""
        return self.node.inputs[at] if at < len(self.node.inputs) else None

    def constant(self, at: int, what: str) -> Array:
        """The constant at that place. Raises ``Refuse`` if it is none."""
        found = self.editor.constant(self.input(at))
        if found is None:
            raise Refuse(f"its {what} is no constant")
        return found

    def optional(self, at: int, what: str) -> Array | None:
        """The same for an input that may be left out."""
        return None if self.input(at) is None else self.constant(at, what)

    def scalars(self, *places: int) -> None:
        """Raises ``Refuse`` unless the scales at ``places`` are constants of one element."""
        for at in places:
            if self.constant(at, "scale").size != 1:
                raise Refuse("an activation of it has several scales")

    def floats(self, at: int, axis: int, scale: int, zero: int, what: str = "weight") -> Array:
        """The float array of constant integers, with a constant scale in all or along ``axis``."""
        return dequantized(
            self.constant(at, what), self.constant(scale, "scale"), self.optional(zero, "zero point"), axis
        )

    def option(self, name: str, default: Any = None) -> Any:
        return attribute(self.node, name, default)

    def options(self, *names: str) -> dict[str, AttributeValue]:
        """Those of the node's attributes with these names."""
        return {name: self.node.attributes[name].value for name in names if name in self.node.attributes}

    def add(self, array: Array, what: str) -> ir.Value:
        """A new constant for the node."""
        return self.editor.add_constant(self.node, array, f"{self.node.outputs[0].name}_{what}")

    def insert(
        self, op: str, inputs: Sequence[ir.Value | None], options: dict[str, AttributeValue] | None = None
    ) -> ir.Value:
        """The operator in front of the node, whose work it takes over."""
        return self.editor.insert(self.node, op, inputs, options)

    def activation(self, at: int) -> ir.Value:
        """The float tensor that the integers at ``at`` stand for, by the scale and zero point behind them."""
        q, scale, zero = (self.editor.constant(self.input(at + i)) for i in range(3))
        if q is not None and scale is not None:
            return self.add(dequantized(q, scale, zero), "dequantized")
        return self.editor.insert(
            self.node, "DequantizeLinear", [self.input(at), self.input(at + 1), self.input(at + 2)], name=""
        )

    def replace(self, result: ir.Value, scale: int | None = None) -> None:
        """Put ``result`` in place of the node, rounded by the scale at ``scale`` and the zero point behind it."""
        if scale is not None:
            inputs = [result, self.input(scale), self.input(scale + 1)]
            result = self.editor.insert(self.node, "QuantizeLinear", inputs, name="")
        self.editor.take_over(self.node.outputs[0], result)
        remove_back(self.node, self.editor)

    def run_time_input(self, at: int) -> tuple[ir.Value, ir.Node]:
        """The float tensor that ``DynamicQuantizeLinear`` rounds to what stands at ``at``, and that node."""
        q = self.input(at)
        producer = q.producer() if q is not None else None
        if producer is None or producer.op_type != "DynamicQuantizeLinear" or producer.inputs[0] is None:
            raise Refuse("its input does not come from DynamicQuantizeLinear")
        return producer.inputs[0], producer


_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
_POOL = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")


def _qlinear_conv(form: Form) -> None:
    form.scalars(1, 6)
    w = form.floats(3, 0, 4, 5)
    bias = form.optional(8, "bias")
    scale = form.constant(1, "scale").reshape(()) * form.constant(4, "scale").reshape(-1)
    inputs = [form.activation(0), form.add(w, "weight")]
    if bias is not None:
        inputs.append(form.add((bias * scale).astype(np.float32), "bias"))
    form.replace(form.insert("Conv", inputs, form.options(*_CONV)), 6)


def _qlinear_matmul(form: Form) -> None:
    form.scalars(1, 6)
    b = form.activation(3) if form.constant(4, "scale").size == 1 else form.add(form.floats(3, -1, 4, 5), "weight")
    form.replace(form.insert("MatMul", [form.activation(0), b]), 6)


def _qgemm(form: Form) -> None:
    form.scalars(1)
    trans_b = form.option("transB", 0)
    w = form.floats(3, 0 if trans_b else 1, 4, 5)
    alpha = form.option("alpha", 1.0)
    c = form.optional(6, "bias")
    scale = alpha * form.constant(1, "scale").reshape(()) * form.constant(4, "scale").reshape(-1)
    inputs = [form.activation(0), form.add(w, "weight")]
    if c is not None:
        inputs.append(form.add((c * scale).astype(np.float32), "bias"))
    result = form.insert("Gemm", inputs, form.options("alpha", "transA", "transB"))
    form.replace(result, 7 if form.input(7) is not None else None)


def _binary(op: str) -> Callable[[Form], None]:
    def build(form: Form) -> None:
        form.scalars(1, 4, 6)
        form.replace(form.insert(op, [form.activation(0), form.activation(3)]), 6)

    return build


def _unary(op: str, *names: str) -> Callable[[Form], None]:
    def build(form: Form) -> None:
        form.scalars(1, 3)
        if form.option("channels_last", 0):
            raise Refuse("its channels come last")
        form.replace(form.insert(op, [form.activation(0)], form.options(*names)), 3)

    return build


def _concat(form: Form) -> None:
    parts = range(2, len(form.node.inputs), 3)
    form.scalars(0, *(at + 1 for at in parts))
    form.replace(form.insert("Concat", [form.activation(at) for at in parts], form.options("axis")), 0)


def _where(form: Form) -> None:
    form.scalars(2, 5, 7)
    form.replace(form.insert("Where", [form.input(0), form.activation(1), form.activation(4)]), 7)


def _matmul_nbits(form: Form) -> None:
    bits, k, n = form.option("bits", 4), form.option("K"), form.option("N")
    if bits not in (4, 8) or form.input(4) is not None:
        raise Refuse("its weights do not have 4 or 8 bits" if bits not in (4, 8) else "its rows are reordered (g_idx)")
    block = form.option("block_size")
    packed = form.constant(1, "weight").reshape(n, -1)
    blocks = -(-k // block)
    q = unpack(packed, bits, blocks * block)[:, :k]
    scale = form.constant(2, "scale").reshape(n, blocks)
    zero = form.optional(3, "zero point")
    if zero is None:
        zero = np.full((n, blocks), 1 << (bits - 1), np.uint8)
    elif zero.dtype == np.uint8:
        zero = unpack(zero.reshape(n, -1), bits, blocks)
    else:
        zero = zero.reshape(n, blocks)
    w = form.add(np.ascontiguousarray(dequantized(q, scale, zero, 1, block).T), "weight")
    result = form.insert("MatMul", [form.input(0), w])
    if form.input(5) is not None:
        result = form.editor.insert(form.node, "Add", [result, form.input(5)], name="")
    form.replace(result)


def _gather_blocks(form: Form) -> None:
    bits, packed = form.option("bits", 4), form.constant(0, "table")
    if form.option("gather_axis", 0) != 0 or form.option("quantize_axis", 1) not in (1, -1) or packed.ndim != 2:
        raise Refuse("its table is not quantized along rows that are gathered")
    width = packed.shape[1] * (2 if bits == 4 and packed.dtype == np.uint8 else 1)
    scale, zero = form.constant(2, "scale"), form.optional(3, "zero point")
    if packed.dtype == np.uint8:
        packed = unpack(packed, bits, width)
        zero = np.array(1 << (bits - 1)) if zero is None else unpack(zero, bits, scale.shape[1])
    table = form.add(dequantized(packed, scale, zero, 1, form.option("block_size", 128)), "table")
    form.replace(form.insert("Gather", [table, form.input(1)], {"axis": 0}))


def _dynamic_matmul(form: Form) -> None:
    _product_with_bias(form, form.input(0), form.floats(1, -1, 2, 3), form.input(4))


def _matmul_integer_to_float(form: Form) -> None:
    bias = form.input(6)
    if form.editor.constant(form.input(2)) is not None:
        form.scalars(2)
        w = form.floats(1, -1, 3, 5)
        inputs = [form.input(0), form.input(2), form.input(4)]
        x = form.editor.insert(form.node, "DequantizeLinear", inputs, name="")
        _product_with_bias(form, x, w, bias)
    else:
        x, producer = form.run_time_input(0)
        if form.input(2) is not producer.outputs[1]:
            raise Refuse("its input has the scale of another tensor")
        _product_with_bias(form, x, form.floats(1, -1, 3, 5), bias)


def _product_with_bias(form: Form, x: ir.Value | None, w: Array, bias: ir.Value | None) -> None:
    result = form.insert("MatMul", [x, form.add(w, "weight")])
    if bias is not None:
        result = form.editor.insert(form.node, "Add", [result, bias], name="")
    form.replace(result)


def _integer(op: str) -> Callable[[Form], None]:
    """``Mul(Cast(MatMulInteger(q, w, z)), s · s_w)`` in one of its orders; ``q``, ``s``, ``z`` are of one input."""

    def build(form: Form) -> None:
        x, producer = form.run_time_input(0)
        if form.input(2) is not producer.outputs[2]:
            raise Refuse("its input has the zero point of another tensor")
        w, zero = form.constant(1, "weight"), form.optional(3, "zero point")
        last, scale = _scaled(form, producer.outputs[1])
        outputs = -1 if op == "MatMul" else 1 - w.ndim
        if scale.size > 1 and (scale.ndim < -outputs or scale.shape[outputs] != scale.size):
            raise Refuse(f"what its sums are multiplied by has the shape {list(scale.shape)}, not one for each output")
        wide = w.astype(np.float32) - (0.0 if zero is None else zero.astype(np.float32))
        if scale.size > 1 and op == "Conv":
            scale = scale.reshape(-1, *[1] * (w.ndim - 1))
        weight = form.add((wide * (scale.reshape(()) if scale.size == 1 else scale)).astype(np.float32), "weight")
        result = form.insert(op, [x, weight], form.options(*_CONV) if op == "Conv" else None)
        form.editor.take_over(last.outputs[0], result)
        remove_back(last, form.editor)

    return build


def _scaled(form: Form, x_scale: ir.Value) -> tuple[ir.Node, Array]:
    """The last of the multiplications behind an integer operator, and the product of all constant factors in them.

    Raises ``Refuse`` unless the integers are cast to float and multiplied by ``x_scale`` once.
    """
    cast = sole_reader(form.node.outputs[0])
    if cast is None or cast.op_type != "Cast" or attribute(cast, "to") != int(ir.DataType.FLOAT):
        raise Refuse("its sums are not cast to float at once")
    node, factor, seen = cast, np.ones((), np.float64), False
    while (reader := sole_reader(node.outputs[0])) is not None and reader.op_type == "Mul":
        other = reader.inputs[1] if reader.inputs[0] is node.outputs[0] else reader.inputs[0]
        parts = _factors(form.editor, other, x_scale)
        if parts is None or (parts[1] and seen):
            break
        node, factor, seen = reader, factor * parts[0], seen or parts[1]
        if seen and factor.size > 1:
            break
    if not seen:
        raise Refuse("its sums are not multiplied by the scale of its input")
    return node, factor.astype(np.float32)


def _factors(editor: Editor, value: ir.Value | None, x_scale: ir.Value) -> tuple[Array, bool] | None:
    """``value`` as a constant, and whether ``x_scale`` is a factor of it besides; ``None`` if it is neither."""
    if value is x_scale:
        return np.ones(()), True
    constant = editor.constant(value)
    if constant is not None:
        return constant.astype(np.float64), False
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "Mul":
        return None
    a, b = (_factors(editor, v, x_scale) for v in producer.inputs)
    if a is None or b is None or (a[1] and b[1]):
        return None
    return a[0] * b[0], a[1] or b[1]


def _dynamic_lstm(form: Form) -> None:
    arrays = []
    for at, scale, zero in ((1, 8, 9), (2, 10, 11)):
        q, s = form.constant(at, "weight"), form.constant(scale, "scale")
        z = form.optional(zero, "zero point")
        shaped = [None if a is None else a.reshape(len(q), 1, -1).astype(np.float32) for a in (s, z)]
        assert shaped[0] is not None
        wide = (q.astype(np.float32) - (0 if shaped[1] is None else shaped[1])) * shaped[0]
        arrays.append(np.ascontiguousarray(wide.transpose(0, 2, 1)))
    inputs = list(form.node.inputs[:8])
    inputs[1:3] = form.add(arrays[0], "weight"), form.add(arrays[1], "recurrence")
    options = {name: found.value for name, found in form.node.attributes.items()}
    new = form.editor.insert_many(form.node, "LSTM", inputs, options, outputs=len(form.node.outputs))
    for mine, old in zip(new, form.node.outputs, strict=True):
        if old.name:
            form.editor.take_over(old, mine)
        else:
            mine.name = ""
    remove_back(form.node, form.editor)


BUILDERS: dict[str, Callable[[Form], None]] = {
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "QGemm": _qgemm,
    "QLinearAdd": _binary("Add"),
    "QLinearMul": _binary("Mul"),
    "QLinearSigmoid": _unary("Sigmoid"),
    "QLinearLeakyRelu": _unary("LeakyRelu", "alpha"),
    "QLinearSoftmax": _unary("Softmax", "axis"),
    "QLinearGlobalAveragePool": _unary("GlobalAveragePool"),
    "QLinearAveragePool": _unary("AveragePool", *_POOL),
    "QLinearConcat": _concat,
    "QLinearWhere": _where,
    "MatMulNBits": _matmul_nbits,
    "GatherBlockQuantized": _gather_blocks,
    "DynamicQuantizeMatMul": _dynamic_matmul,
    "MatMulIntegerToFloat": _matmul_integer_to_float,
    "MatMulInteger": _integer("MatMul"),
    "ConvInteger": _integer("Conv"),
    "DynamicQuantizeLSTM": _dynamic_lstm,
}
"""By operator type, what builds its float form."""
