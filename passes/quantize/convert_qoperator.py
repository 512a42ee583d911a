"""Write a QDQ model in operators that compute on integers.

A float operator between ``DequantizeLinear`` and ``QuantizeLinear`` becomes one node with all scales and zero
points as inputs, as ONNX Runtime fuses it when it loads a QDQ model; a model in this form is for runtimes that do
not fuse, and loads faster.

====================================  ======================================================================
QDQ                                   QOperator
====================================  ======================================================================
Conv, MatMul                          QLinearConv, QLinearMatMul
Conv, MatMul with a float output      ConvInteger, MatMulInteger → Cast → Mul(s_x · s_w)
Gemm, Add, Mul, Concat, AveragePool,  QGemm, QLinearAdd, QLinearMul, QLinearConcat, QLinearAveragePool, … of
GlobalAveragePool, Sigmoid,           ``com.microsoft``, which ONNX Runtime alone has
LeakyRelu, Softmax, Where
MaxPool, Reshape, Transpose, …        the same operator on the integers, if both grids are equal
Relu, Clip                            none, if the integers end there anyway; else ``Clip`` on the integers
====================================  ======================================================================

Sums are the same integers; rounding to the output's grid may differ by one step from the float computation, where a
number falls between two steps: in 2 of a million elements of convolutions, 2 of 100 thousand of products and 4 of 10
thousand of sums. A product with float output differs in the order of rounding only.

Such single steps add up. In a text detector of 62 convolutions outputs move by 4 % (relative to their norm), no farther
from the float model than before (11 %), and just as far as ONNX Runtime's own fusion moves them. With unsigned
activations it fuses the same groups, and outputs are equal bit for bit. With signed ones it leaves most groups of a QDQ
model in float on x86 and is slower for it; in this form they are integers, and outputs those of unsigned activations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir

from onnxopt.graph import Editor, attribute
from onnxopt.pass_base import NodePass, Refuse
from onnxopt.passes.cleanup._operands import clip_range, input_at, is_read, numbers
from onnxopt.passes.quantize._qoperator_forms import (
    BYTES,
    Quantized,
    Result,
    bound,
    dequantized,
    insert,
    integer_bias,
    operand,
    put,
    remove,
    result,
)

_MOVES = frozenset({
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "MaxPool", "Slice", "Gather", "GatherElements",
    "Expand", "Identity", "Split", "Tile", "DepthToSpace", "SpaceToDepth", "Resize",
})  # fmt: skip

_UNARY = {
    "Sigmoid": (), "LeakyRelu": ("alpha",), "Softmax": ("axis",), "GlobalAveragePool": (),
    "AveragePool": ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides"),
}  # fmt: skip
"""Operators of one input with a form in ``com.microsoft``, and the attributes that it takes over."""


@dataclass(frozen=True, kw_only=True)
class ConvertQoperator(NodePass):
    """Write a QDQ model in operators that compute on integers."""

    name: ClassVar[str] = "convert-qoperator"
    exact: ClassVar[bool] = False
    ops: ClassVar[frozenset[str]] = frozenset(
        {*_MOVES, *_UNARY, "Conv", "MatMul", "Gemm", "Add", "Mul", "Concat", "Where", "Relu", "Clip", "QuantizeLinear"}
    )

    standard_only: bool = False
    """Use operators of the ONNX standard alone, none of ``com.microsoft``."""

    def rewrite(self, node: ir.Node, editor: Editor) -> str | None:
        if node.op_type == "QuantizeLinear":
            return _drop_round_trip(node, editor)
        if not any(dequantized(value, editor) is not None for value in node.inputs):
            return None
        if editor.in_function(node):
            raise Refuse("it stands in a local function; run inline-functions first")
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            return self._product(node, editor)
        if node.op_type in _MOVES:
            return _move(node, editor)
        if node.op_type in ("Relu", "Clip"):
            return _clip(node, editor)
        if self.standard_only:
            raise Refuse(f"{node.op_type} has no integer form in the ONNX standard")
        return _FORMS.get(node.op_type, _unary)(node, _quantized_result(node, editor), editor)

    def _product(self, node: ir.Node, editor: Editor) -> str:
        # These kernels take an integer type for the input and either for a weight.
        x = operand(node, 0, editor)
        w = operand(node, 1, editor, whole=False)
        _check_channels(node, w, editor)
        into = result(node.outputs[0], editor)
        if into is not None and into.quantized.dtype != x.dtype:
            raise Refuse(f"its input is {x.dtype.name} and its output {into.quantized.dtype.name}")
        if x.dtype == ir.DataType.INT8 and w.dtype == ir.DataType.UINT8 and node.op_type == "Conv":
            raise Refuse("ONNX Runtime has no kernel for INT8 inputs and UINT8 weights")
        if node.op_type == "Gemm" and not self.standard_only:
            return _qgemm(node, x, w, into, editor)
        if node.op_type == "Gemm" or into is None:
            return _integer_product(node, x, w, editor)
        bias = input_at(node, 2)
        whole = None if bias is None else integer_bias(bias, x.scales(editor) * w.scales(editor), editor)
        inputs: list[ir.Value | None] = [*x.triple(node, editor), *w.triple(node, editor)]
        inputs += into.quantized.parameters(node, editor)
        if whole is not None:
            inputs.append(whole)
        op = f"QLinear{node.op_type}"
        put(node, op, inputs, _attributes(node), into, editor)
        return f"became {op}"


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {name: found.value for name, found in node.attributes.items()}


def _quantized_result(node: ir.Node, editor: Editor) -> Result:
    found = result(node.outputs[0], editor)
    if found is None:
        raise Refuse(f"its output {node.outputs[0].name!r} is not only quantized, with one scale, to 8 bits")
    return found


def _check_channels(node: ir.Node, w: Quantized, editor: Editor) -> None:
    """Several scales of a weight must belong to its output channels."""
    if w.is_whole(editor):
        return
    rank = editor.rank(w.q)
    if rank is None:
        raise Refuse(f"the rank of {w.q.name!r} is unknown")
    out = 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else rank - 1
    if w.axis % rank != out:
        raise Refuse(f"its weight has scales along axis {w.axis}; kernels take them along axis {out}")
    if node.op_type == "Conv" and len(np.unique(w.zeros(editor))) > 1:
        raise Refuse("its weight has several zero points")


def _integer_product(node: ir.Node, x: Quantized, w: Quantized, editor: Editor) -> str:
    """``s_x s_w · (Σ q_x q_w + b)``: sums in integers, then one product in float."""
    op = "ConvInteger" if node.op_type == "Conv" else "MatMulInteger"
    rank = editor.rank(node.outputs[0])
    if op == "ConvInteger" and x.dtype != ir.DataType.UINT8:
        raise Refuse("ConvInteger of ONNX Runtime takes UINT8 inputs only")
    if rank is None:
        raise Refuse("the rank of its output is unknown")
    scale = (x.scales(editor) * w.scales(editor)).astype(np.float32)
    bias = input_at(node, 2)
    whole = None if bias is None else editor.constant(integer_bias(bias, scale, editor))
    if bias is not None and whole is None:
        raise Refuse(f"its bias {bias.name!r} is not constant")
    weight, attributes = w.q, _attributes(node)
    if node.op_type == "Gemm":
        weight, attributes = _plain_matrix(node, w, editor), {}
    along = (-1, *[1] * (rank - 2)) if op == "ConvInteger" else (-1,)
    zeros = w.zeros(editor)
    zero = zeros.reshape(-1)[0] if len(np.unique(zeros)) == 1 else zeros
    w_zero = editor.add_constant(node, np.asarray(zero), f"{w.q.name}_zero_point")
    total = editor.insert(node, op, [x.q, weight, x.parameters(node, editor)[1], w_zero], attributes)
    if whole is not None:
        added = editor.add_constant(node, whole.reshape(along), f"{w.q.name}_bias")
        total = editor.insert(node, "Add", [total, added], name="")
    real = editor.insert(node, "Cast", [total], {"to": ir.DataType.FLOAT.value}, name="")
    factor = editor.add_constant(node, scale.reshape(along if scale.size > 1 else ()), f"{w.q.name}_scale")
    editor.take_over(node.outputs[0], editor.insert(node, "Mul", [real, factor], name=""))
    remove(node, editor)
    return f"became {op}, with its result scaled in float32"


def _plain_matrix(node: ir.Node, w: Quantized, editor: Editor) -> ir.Value:
    """The weight of a ``Gemm`` as ``MatMulInteger`` takes it."""
    if attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1 or attribute(node, "beta", 1.0) != 1:
        raise Refuse("a Gemm with transA, alpha or beta has no integer form in the ONNX standard")
    if not attribute(node, "transB", 0):
        return w.q
    array = editor.constant(w.q)
    if array is None:
        raise Refuse("its transposed weight is not constant")
    return editor.add_constant(node, np.ascontiguousarray(array.T), w.q.name or "weight")


def _qgemm(node: ir.Node, x: Quantized, w: Quantized, into: Result | None, editor: Editor) -> str:
    bias = input_at(node, 2)
    if attribute(node, "alpha", 1.0) != 1 or (bias is not None and attribute(node, "beta", 1.0) != 1):
        raise Refuse("QGemm takes no factors: alpha and beta must be 1")
    scales = x.scales(editor) * w.scales(editor)
    whole = None if bias is None else integer_bias(bias, scales, editor)
    inputs: list[ir.Value | None] = [*x.triple(node, editor), *w.triple(node, editor), whole]
    attributes = {name: int(attribute(node, name, 0)) for name in ("transA", "transB")}
    if into is not None:
        inputs += into.quantized.parameters(node, editor)
        put(node, "QGemm", inputs, attributes, into, editor)
    else:
        editor.take_over(node.outputs[0], insert(node, "QGemm", inputs, attributes, editor))
        remove(node, editor)
    return "became QGemm"


def _binary(node: ir.Node, into: Result, editor: Editor) -> str:
    a, b = (operand(node, at, editor) for at in (0, 1))
    _check_types(into, a, b)
    inputs = [*a.triple(node, editor), *b.triple(node, editor), *into.quantized.parameters(node, editor)]
    put(node, f"QLinear{node.op_type}", inputs, {}, into, editor)
    return f"became QLinear{node.op_type}"


def _concat(node: ir.Node, into: Result, editor: Editor) -> str:
    parts = [operand(node, at, editor) for at in range(len(node.inputs))]
    _check_types(into, *parts)
    inputs = [*into.quantized.parameters(node, editor), *(v for part in parts for v in part.triple(node, editor))]
    put(node, "QLinearConcat", inputs, _attributes(node), into, editor)
    return "became QLinearConcat"


def _where(node: ir.Node, into: Result, editor: Editor) -> str:
    a, b = (operand(node, at, editor) for at in (1, 2))
    _check_types(into, a, b)
    inputs = [
        node.inputs[0], *a.triple(node, editor), *b.triple(node, editor), *into.quantized.parameters(node, editor)
    ]  # fmt: skip
    put(node, "QLinearWhere", inputs, {}, into, editor)
    return "became QLinearWhere"


def _unary(node: ir.Node, into: Result, editor: Editor) -> str:
    x = operand(node, 0, editor)
    _check_types(into, x)
    if any(d != 1 for d in numbers(node, "dilations") or ()):
        raise Refuse("QLinearAveragePool takes no dilations")
    attributes = {name: node.attributes[name].value for name in _UNARY[node.op_type] if name in node.attributes}
    if node.op_type == "Softmax":
        attributes = {"axis": attribute(node, "axis", -1 if editor.opset(node) >= 13 else 1), **attributes}
        attributes["opset"] = editor.opset(node)
    inputs = [*x.triple(node, editor), *into.quantized.parameters(node, editor)]
    put(node, f"QLinear{node.op_type}", inputs, attributes, into, editor)
    return f"became QLinear{node.op_type}"


def _check_types(into: Result, *operands: Quantized) -> None:
    if any(each.dtype != into.quantized.dtype for each in operands):
        raise Refuse("its inputs and its output are of different integer types")


_FORMS: dict[str, Callable[[ir.Node, Result, Editor], str]] = {
    "Add": _binary, "Mul": _binary, "Concat": _concat, "Where": _where,
}  # fmt: skip


def _move(node: ir.Node, editor: Editor) -> str | None:
    """Let an operator that only moves or compares numbers do so with the integers."""
    x = dequantized(node.inputs[0], editor)
    if x is None:
        return None
    ends: list[Quantized] = []
    for out in node.outputs:
        if not is_read(out) or editor.dtype(out) != ir.DataType.FLOAT:
            continue
        into = result(out, editor)
        if into is None or into.between or not x.is_whole(editor) or not into.quantized.same_grid(x, editor):
            raise Refuse(f"its output {out.name!r} is not only quantized, on the grid of its input")
        ends.append(into.quantized)
    if not ends or x.dtype not in BYTES or not _takes(node, x.dtype, editor):
        raise Refuse(f"{node.op_type} of opset {editor.opset(node)} takes no {x.dtype.name}")
    old = node.inputs[0]
    node.replace_input_with(0, x.q)
    for end in ends:
        moved, kept = end.node.inputs[0], end.node.outputs[0]
        assert moved is not None
        editor.facts.learn(kept, x.dtype, editor.shape(moved))
        editor.take_over(kept, moved)
        remove(end.node, editor)
    if old is not None and not is_read(old):
        remove(x.node, editor)
    return "moves integers now"


def _takes(node: ir.Node, dtype: ir.DataType, editor: Editor) -> bool:
    if node.op_type == "Resize" and attribute(node, "mode", "nearest") != "nearest":
        return False
    schema = onnx.defs.get_schema(node.op_type, editor.opset(node))
    variable = schema.inputs[0].type_str
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    return f"tensor({dtype.name.lower()})" in allowed.get(variable, ())


def _clip(node: ir.Node, editor: Editor) -> str | None:
    """``Q(clip(DQ(q)))`` is a ``Clip`` on the integers, for rounding keeps order."""
    if dequantized(node.inputs[0], editor) is None:
        return None
    x, into, limits = operand(node, 0, editor), _quantized_result(node, editor), clip_range(node, editor)
    if limits is None or into.between or not into.quantized.same_grid(x, editor):
        raise Refuse("its limits are not known, or its output is on another grid than its input")
    if editor.opset(node) < 12:
        raise Refuse(f"Clip on integers needs opset 12, the model has {editor.opset(node)}")
    low, high = (
        editor.add_constant(node, np.array(bound(end, x, editor), x.dtype.numpy()), f"{x.q.name}_{side}")
        for end, side in ((limits.low, "least"), (limits.high, "most"))
    )
    put(node, "Clip", [x.q, low, high], {}, into, editor)
    return "became Clip on integers"


def _drop_round_trip(node: ir.Node, editor: Editor) -> str | None:
    """A tensor that is dequantized and quantized again on the same grid."""
    before = dequantized(node.inputs[0], editor)
    if before is None:
        return None
    after = result(before.node.outputs[0], editor)
    if after is None or after.between or not after.quantized.same_grid(before, editor):
        return None
    if not before.is_whole(editor) or not editor.redirect(node.outputs[0], before.q):
        return None
    remove(node, editor)
    return "quantized again what had just been dequantized"
