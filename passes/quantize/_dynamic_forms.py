"""Write operators that multiply integers, with activations rounded by their range at run time.

====================  =========================================================================================
form                  what is written
====================  =========================================================================================
MatMul, Gemm          DynamicQuantizeLinear → MatMulInteger → Cast → Mul by both scales (→ Add)
Conv                  DynamicQuantizeLinear → ConvInteger → Cast → Mul by both scales (→ Add)
LSTM                  com.microsoft DynamicQuantizeLSTM
====================  =========================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.graph import AttributeValue, Editor, constant_tensor
from onnxopt.passes.quantize._blockwise import weight_error
from onnxopt.passes.quantize._contrib import insert_contrib
from onnxopt.passes.quantize._grid import Grid, dequantize, quantize, weight_grid
from onnxopt.passes.quantize._linear_node import LinearNode, linear_node

Array = np.ndarray[Any, Any]
Arrays = dict[tuple[object, ...], tuple[list[Array], float]]

WEIGHTS_AT = {"MatMul": (1,), "Gemm": (1,), "LSTM": (1, 2), "Conv": (1,)}
"""Which inputs of each operator are weights."""


@dataclass
class Writer:
    """Writes integer operators, and remembers rounded inputs and weights that several of them read."""

    editor: Editor
    reduce_range: bool
    arrays: Arrays = field(default_factory=dict)
    """Integers and grids of weights, by the tensors that these are: copies of a model share them."""
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
        for at in WEIGHTS_AT["LSTM"]:
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
            source = (constant_tensor(weight), *role)
            if source not in self.arrays:
                self.arrays[source] = make()
            arrays, error = self.arrays[source]
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
