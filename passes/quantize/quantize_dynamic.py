"""Multiply integers, with activations rounded to 8 bits by their range at run time: no calibration.

::

    y = MatMul(x, w) + b   →   q, s, z = DynamicQuantizeLinear(x)
                               y = Cast(MatMulInteger(q, w8, z)) · (s · s_w) + b

with ``w8`` in INT8, symmetric, and a scale ``s_w`` for each output. ONNX Runtime makes one kernel of it, or two
where several nodes read ``x``, which is then rounded once for all. ``LSTM`` becomes ``DynamicQuantizeLSTM`` of
``com.microsoft``. There is no such kernel for ``GRU``.

Rounding the activations costs a pass over them, so small products get slower. Time of INT8 / time of FP32 (ONNX
Runtime 1.32, one thread of a CPU with AVX512-VNNI) for a weight of inputs × outputs, at rows of ``x``:

===========  ======  ======  ======  ======  =======
rows         1       4       16      64      256
===========  ======  ======  ======  ======  =======
32 × 32      1.11    1.11    1.09    1.04    0.92
64 × 64      1.11    1.10    1.01    0.83    0.64
128 × 128    1.09    1.03    0.79    0.55    0.44
128 × 10     1.10    1.11    1.10    1.07    1.00
64 × 1024    1.24    1.04    0.64    0.47    0.40
256 × 256    0.96    0.82    0.54    0.39    0.34
768 × 768    0.53    0.45    0.33    0.29    0.13
===========  ======  ======  ======  ======  =======

``LSTM`` of 64 inputs and 64 units: 1.02 for one step, 0.72 for 32; of 128: 0.89 and 0.53. Hence the rule: an
operator of at least 32 outputs is quantized if it has 2¹⁶ weights (2¹⁷ in an ``LSTM``) and 256 inputs, or if
rows × weights is at least 2¹⁹; a dynamic dim counts as 1. Convolutions get 2 to 12 times slower this way, and
are only quantized if you name them.

A trained sentence encoder (MiniLM-L6) takes 0.35 to 0.42 of the time, at 16.5 dB; with ``quantize-weights`` in 8
bits, 0.5 to 0.84 of it, at 31 dB: one range for all channels of an activation is what costs.

A CPU without VNNI adds two products in 16 bits, which may overflow; ``reduce_range`` rules that out with weights of
7 bits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxopt.errors import OptionError
from onnxopt.graph import AttributeValue, Editor, attribute, constant_tensor, label
from onnxopt.pass_base import Context, Log, Pass, Refuse, Report
from onnxopt.passes.quantize._blockwise import weight_error
from onnxopt.passes.quantize._contrib import insert_contrib, other_reader, remove_unread, upgrade
from onnxopt.passes.quantize._grid import Grid, dequantize, quantize, weight_grid
from onnxopt.passes.quantize._linear_node import LinearNode, check_weight, linear_node

Array = np.ndarray[Any, Any]

_OPERATORS = ("MatMul", "Gemm", "LSTM", "Conv")
_OPSET = 11
_WEIGHTS_AT = {"MatMul": (1,), "Gemm": (1,), "LSTM": (1, 2), "Conv": (1,)}
_FEWEST_OUTPUTS, _FEWEST_INPUTS = 32, 256
_FEWEST_WEIGHTS = {"MatMul": 1 << 16, "Gemm": 1 << 16, "LSTM": 1 << 17}
_FEWEST_PRODUCTS = 1 << 19


@dataclass(frozen=True, kw_only=True)
class QuantizeDynamic(Pass):
    """Multiply integers, with activations rounded to 8 bits by their range at run time."""

    name: ClassVar[str] = "quantize-dynamic"
    exact: ClassVar[bool] = False
    ops: ClassVar[frozenset[str] | None] = None

    operators: tuple[str, ...] = ("MatMul", "Gemm", "LSTM")
    """Of these; ``Conv`` too, which gets smaller and slower."""
    where: Literal["pays", "everywhere"] = "pays"
    """``pays``: only operators that the rule above calls faster."""
    reduce_range: bool = False
    """Whether weights have 7 bits, so that no CPU overflows."""

    def __post_init__(self) -> None:
        if not self.operators or not set(self.operators) <= set(_OPERATORS):
            raise OptionError(
                f"{self.name}.operators are some of {', '.join(_OPERATORS)}; got {', '.join(self.operators) or 'none'}"
            )
        if self.where not in ("pays", "everywhere"):
            raise OptionError(f"{self.name}.where is pays or everywhere, got {self.where!r}")

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        editor = context.editor
        nodes, refusals = self._plan(context)
        if nodes and min(editor.opset(node) for node in nodes) < _OPSET:
            done = upgrade(editor, _OPSET, [label(node) for node in nodes], log)
            nodes, refusals = self._plan(context) if done else ([], refusals)
        for name, reason in refusals:
            log.refused(name, reason)
        if not log.report().refusals and not nodes:
            log.refused("model", _nothing(editor, self.operators))
        writer = _Writer(editor, self.reduce_range)
        for node in nodes:
            if context.gate.closed:
                break
            name, op = label(node), node.op_type
            weights = [node.inputs[at] for at in _WEIGHTS_AT[op]]
            error = writer.write(node)
            for weight in weights:
                if weight is not None:
                    remove_unread(weight, editor)
            bits = 7 if self.reduce_range else 8
            log.changed(name, f"{op} in INT8, weights of {bits} bits by output: weight error {error:.1%}")
            log.measured(node=name, bits=bits, weight_error=error)
        return log.report()

    def _plan(self, context: Context) -> tuple[list[ir.Node], list[tuple[str, str]]]:
        editor = context.editor
        nodes, refusals = [], []
        for graph in editor.graphs():
            for node in graph:
                if node.domain != "" or not self.may_change(node, context):
                    continue
                if node.op_type == "GRU" and "LSTM" in self.operators:
                    refusals.append((label(node), "ONNX Runtime has no dynamically quantized GRU"))
                if node.op_type not in self.operators:
                    continue
                try:
                    self._check(node, editor)
                except Refuse as refusal:
                    refusals.append((label(node), str(refusal)))
                else:
                    nodes.append(node)
        mine = {(node, at) for node in nodes for at in _WEIGHTS_AT[node.op_type]}
        kept = []
        for node in nodes:
            weights = (node.inputs[at] for at in _WEIGHTS_AT[node.op_type])
            other = next((o for w in weights if w is not None and (o := other_reader(w, mine)) is not None), None)
            if other is None:
                kept.append(node)
            else:
                refusals.append((label(node), f"its weight is also read by {other}, which needs it in float"))
        return kept, refusals

    def _check(self, node: ir.Node, editor: Editor) -> None:
        """Raises ``Refuse`` if the node cannot be quantized, or is better left alone."""
        if node.op_type in ("MatMul", "Gemm"):
            linear_node(node, editor)
        else:
            _check_weights(node, editor)
        if self.where == "everywhere" or node.op_type == "Conv":
            return
        shape = constant_tensor(node.inputs[1])
        assert shape is not None
        dims = shape.shape.numpy()
        weights, rows, op = shape.size, rows_of(node.inputs[0], editor), node.op_type
        if op == "LSTM":
            recurrent = constant_tensor(node.inputs[2])
            assert recurrent is not None
            weights, inputs, outputs = weights + recurrent.size, _FEWEST_INPUTS, dims[1]
        else:
            inputs, outputs = dims[::-1] if attribute(node, "transB", 0) else dims
        if outputs < _FEWEST_OUTPUTS:
            raise Refuse(f"with {outputs} outputs, fewer than {_FEWEST_OUTPUTS}, it would not be faster")
        if rows * weights < _FEWEST_PRODUCTS and (weights < _FEWEST_WEIGHTS[op] or inputs < _FEWEST_INPUTS):
            raise Refuse(
                f"with {weights} weights and {rows} rows that are certain, it would not be faster "
                "(where=everywhere insists)"
            )


def rows_of(x: ir.Value | None, editor: Editor) -> int:
    """How many vectors ``x`` holds at least: the product of its dims but for the last; dynamic ones count as 1."""
    return int(np.prod([d if isinstance(d, int) else 1 for d in (editor.shape(x) or ())[:-1]], dtype=np.int64))


def _check_weights(node: ir.Node, editor: Editor) -> None:
    for at in _WEIGHTS_AT[node.op_type]:
        weight = node.inputs[at]
        tensor = constant_tensor(weight)
        if weight is None or tensor is None:
            raise Refuse("its weight is no constant, or it is quantized already")
        check_weight(weight, tensor, 3 if node.op_type == "LSTM" else None, editor)
    if node.op_type == "LSTM" and attribute(node, "layout", 0) != 0:
        raise Refuse("its batch comes first (layout=1), which DynamicQuantizeLSTM has not")


def _nothing(editor: Editor, operators: tuple[str, ...]) -> str:
    integer = {"MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "DynamicQuantizeLSTM", "MatMulNBits"}
    if found := sorted(integer & set(editor.op_types())):
        return f"it is quantized already ({', '.join(found)}); run dequantize first"
    return f"it has no {' or '.join(operators)} that may be changed"


@dataclass
class _Writer:
    """Writes integer operators, and remembers rounded inputs and weights that several of them read."""

    editor: Editor
    reduce_range: bool
    rounded: dict[tuple[ir.Value, ir.Graph | None], tuple[ir.Value, ...]] = field(default_factory=dict)
    weights: dict[tuple[object, ...], tuple[list[ir.Value], float]] = field(default_factory=dict)

    def write(self, node: ir.Node) -> float:
        """Replace ``node``; returns ``‖w − ŵ‖ / ‖w‖``, of an LSTM the larger of its two."""
        if node.op_type == "LSTM":
            return self._lstm(node)
        if node.op_type == "Conv":
            return self._conv(node)
        return self._product(linear_node(node, self.editor))

    def _product(self, linear: LinearNode) -> float:
        node = linear.node

        def make() -> tuple[list[Array], float]:
            w = linear.matrix(self.editor)
            grid = weight_grid(w, 0, np.int8, True, self.reduce_range)
            scale = (grid.scale * linear.alpha).astype(np.float32)
            return [np.ascontiguousarray(quantize(w, grid).T), scale], _error(w, grid)

        (q, scale), error = self._constants(linear.weight, ("product", linear.by_rows, linear.alpha), make)
        product = self._scaled(node, linear.x, "MatMulInteger", q, scale, {})
        self._finish(node, linear.add_rest(self.editor, product))
        return error

    def _conv(self, node: ir.Node) -> float:
        x, weight = node.inputs[:2]
        assert x is not None
        assert weight is not None

        def make() -> tuple[list[Array], float]:
            w = self.editor.constant(weight)
            assert w is not None
            grid = weight_grid(w, 0, np.int8, True, self.reduce_range)
            return [quantize(w, grid), grid.scale.reshape(-1, *[1] * (w.ndim - 2))], _error(w, grid)

        (q, scale), error = self._constants(weight, ("filters",), make)
        result = self._scaled(node, x, "ConvInteger", q, scale, {k: a.value for k, a in node.attributes.items()})
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            axes = list(range(1, len(scale.shape or ())))
            spread = self._unsqueeze(node, bias, axes)
            result = self.editor.insert(node, "Add", [result, spread], name="")
        self._finish(node, result)
        return error

    def _unsqueeze(self, node: ir.Node, value: ir.Value, axes: list[int]) -> ir.Value:
        constant = self.editor.constant(value)
        if constant is not None:
            return self.editor.add_constant(node, constant.reshape(-1, *[1] * len(axes)), f"{value.name}_spread")
        if self.editor.opset(node) < 13:
            return self.editor.insert(node, "Unsqueeze", [value], {"axes": axes}, name="")
        at = self.editor.add_constant(node, np.array(axes, np.int64), f"{value.name}_axes")
        return self.editor.insert(node, "Unsqueeze", [value, at], name="")

    def _scaled(
        self, node: ir.Node, x: ir.Value, op: str, q: ir.Value, scale: ir.Value, options: dict[str, AttributeValue]
    ) -> ir.Value:
        """``op`` of ``x`` rounded and ``q``, times both scales."""
        insert = self.editor.insert
        key = (x, node.graph)
        if key not in self.rounded:
            self.rounded[key] = tuple(self.editor.insert_many(node, "DynamicQuantizeLinear", [x], outputs=3, name=""))
        rounded, x_scale, x_zero = self.rounded[key]
        sums = insert(node, op, [rounded, q, x_zero], options)
        floats = insert(node, "Cast", [sums], {"to": int(ir.DataType.FLOAT)}, name="")
        both = insert(node, "Mul", [x_scale, scale], name="")
        return insert(node, "Mul", [floats, both], name="")

    def _lstm(self, node: ir.Node) -> float:
        inputs = [*node.inputs, *[None] * (8 - len(node.inputs))]
        errors, grids = [], []
        for at in _WEIGHTS_AT["LSTM"]:
            weight = node.inputs[at]
            assert weight is not None
            (q, scale, zero), error = self._constants(weight, ("lstm",), lambda w=weight: self._recurrent(w))
            inputs[at] = q
            grids += [scale, zero]
            errors.append(error)
        options = {k: a.value for k, a in node.attributes.items() if k != "layout"}
        used = len(node.outputs)
        new = insert_contrib(self.editor, node, "DynamicQuantizeLSTM", [*inputs, *grids], options, outputs=used)
        for mine, old in zip(new, node.outputs, strict=True):
            if old.name:
                self.editor.take_over(old, mine)
            else:
                mine.name = ""
        self.editor.remove(node)
        return max(errors)

    def _recurrent(self, weight: ir.Value) -> tuple[list[Array], float]:
        """Directions × 4·units × inputs, as directions × inputs × 4·units, with a scale each of the last."""
        w = self.editor.constant(weight)
        assert w is not None
        rows = w.reshape(-1, w.shape[2])
        grid = weight_grid(rows, 0, np.int8, True, self.reduce_range)
        q = np.ascontiguousarray(quantize(rows, grid).reshape(w.shape).transpose(0, 2, 1))
        scale = grid.scale.reshape(w.shape[:2])
        return [q, scale, np.zeros(scale.shape, np.int8)], _error(rows, grid)

    def _constants(self, weight: ir.Value, role: tuple[object, ...], make: Any) -> tuple[list[ir.Value], float]:
        """The constants that take the place of ``weight``, beside it in its graph, and the error they make."""
        key = (weight, *role)
        if key not in self.weights:
            arrays, error = make()
            graph = weight.graph
            beside = weight.producer() or (graph[0] if graph is not None else None)
            assert beside is not None
            parts = zip(arrays, ("quantized", "scale", "zero_point"), strict=False)
            self.weights[key] = [self.editor.add_constant(beside, a, f"{weight.name}_{p}") for a, p in parts], error
        return self.weights[key]

    def _finish(self, node: ir.Node, result: ir.Value) -> None:
        self.editor.take_over(node.outputs[0], result)
        self.editor.remove(node)


def _error(w: Array, grid: Grid) -> float:
    return weight_error(w, dequantize(quantize(w, grid), grid))
