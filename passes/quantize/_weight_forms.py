"""How a block-wise quantized weight is written into a graph.

====================  =============================================  ==============================================
form                  what is written                                on ONNX Runtime 1.32, CPU
====================  =============================================  ==============================================
MatMul, Gemm          com.microsoft MatMulNBits(x, q, scale, zero)   integer kernel with ``accuracy_level`` 4
MatMul, Gemm          DequantizeLinear(q, scale, zero) → the node    becomes MatMulNBits when it is loaded
Gather                com.microsoft GatherBlockQuantized             only the rows read are dequantized
Conv, LSTM, GRU, RNN  Cast(q) → Sub(zero) → Mul(scale) → the node    computed once, when it is loaded
Conv, LSTM, GRU, RNN  DequantizeLinear(q, scale, zero) → the node    the weight is dequantized at every run
====================  =============================================  ==============================================

Equal weights are written once, however many nodes read them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor
from onnxopt.passes.quantize._blockwise import Blocks, pack
from onnxopt.passes.quantize._contrib import insert_contrib
from onnxopt.passes.quantize._linear_node import LinearNode

Array = np.ndarray[Any, Any]


class Writer:
    """Writes nodes that read quantized weights, and remembers the weights written."""

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self._weights: dict[tuple[object, ...], list[ir.Value | None]] = {}
        self._scaled: dict[tuple[ir.Value, ir.Graph | None, bytes], ir.Value] = {}

    def matmul_nbits(self, linear: LinearNode, x: ir.Value, blocks: Blocks, accuracy_level: int) -> None:
        """Replace a MatMul or Gemm by MatMulNBits, with the bias inside where that can be."""
        editor, node, form = self._editor, linear.node, blocks.form
        n, k = blocks.q.shape
        inputs = [x, *self._constants(linear.weight, ("nbits", linear.alpha), lambda: _nbits(blocks, linear.alpha))]
        bias = linear.bias(editor, n)
        if bias is not None:
            inputs += [None] * (5 - len(inputs))
            inputs.append(editor.add_constant(node, bias, f"{node.outputs[0].name}_bias"))
        attributes = {"K": k, "N": n, "bits": form.bits, "block_size": form.block_size}
        (product,) = insert_contrib(
            editor, node, "MatMulNBits", inputs, attributes | {"accuracy_level": accuracy_level}
        )
        self._finish(node, product if bias is not None else linear.add_rest(editor, product))

    def dequantized(self, linear: LinearNode, x: ir.Value, blocks: Blocks) -> None:
        """Let a MatMul or Gemm read its weight, stored as k × n, through DequantizeLinear."""
        node = linear.node
        weight = self._constants(linear.weight, ("matrix",), lambda: _dequantized(blocks, blocks.q.shape, True))
        matrix = self._dequantize(node, weight, blocks, blocks.q.shape[::-1], axis=0 if blocks.form.block_size else 1)
        node.replace_input_with(0, x)
        node.replace_input_with(1, matrix)
        if linear.by_rows:
            node.attributes["transB"] = ir.AttrInt64("transB", 0)

    def stored(self, node: ir.Node, at: int, shape: tuple[int, ...], blocks: Blocks, *, by_cast: bool) -> None:
        """Let a node read the weight at input ``at``, of this shape, as integers with one scale a row of ``blocks``.

        ``by_cast``: by operators that the runtime computes when it loads the model, else by DequantizeLinear.
        """
        weight, editor = node.inputs[at], self._editor
        assert weight is not None
        if by_cast:
            q, scale, *zero = self._constants(weight, ("cast",), lambda: _cast(blocks, shape))
            floats = editor.insert(node, "Cast", [q], {"to": int(ir.DataType.FLOAT)}, name="")
            if zero:
                floats = editor.insert(node, "Sub", [floats, *zero], name="")
            floats = editor.insert(node, "Mul", [floats, scale], name="")
        else:
            rows = shape if shape[0] == len(blocks.q) else blocks.q.shape
            constants = self._constants(weight, ("rows",), lambda: _dequantized(blocks, rows, False))
            floats = self._dequantize(node, constants, blocks, rows, axis=0)
            if rows != shape:
                target = editor.add_constant(node, np.array(shape, np.int64), f"{weight.name}_shape")
                floats = editor.insert(node, "Reshape", [floats, target], name="")
        editor.facts.learn(floats, ir.DataType.FLOAT, shape)
        node.replace_input_with(at, floats)

    def rows(self, node: ir.Node, weight: ir.Value, blocks: Blocks) -> None:
        """Replace a Gather of rows of a table by GatherBlockQuantized."""
        bits = blocks.form.bits
        arrays = [pack(blocks.q, bits), blocks.scale, *_unless_symmetric(blocks, pack(blocks.zero, bits))]
        q, *grid = self._constants(weight, ("table",), lambda: arrays)
        attributes = {"bits": bits, "block_size": blocks.form.block_size, "gather_axis": 0, "quantize_axis": 1}
        inputs = [q, node.inputs[1], *grid]
        self._finish(node, insert_contrib(self._editor, node, "GatherBlockQuantized", inputs, attributes)[0])

    def scaled_input(self, linear: LinearNode, scales: Array) -> ir.Value:
        """``x / scales``, once for all readers of ``x`` in one graph, in front of the first."""
        key = (linear.x, linear.node.graph, scales.tobytes())
        if key not in self._scaled:
            factor = self._editor.add_constant(linear.node, (1 / scales).astype(np.float32), f"{linear.x.name}_scales")
            self._scaled[key] = self._editor.insert(linear.node, "Mul", [linear.x, factor], name="")
        return self._scaled[key]

    def _constants(
        self, weight: ir.Value, role: tuple[object, ...], arrays: Callable[[], list[Array]]
    ) -> list[ir.Value | None]:
        """Constants that take the place of ``weight`` in this role, beside it in its graph."""
        key = (weight, *role)
        if key not in self._weights:
            graph = weight.graph
            beside = weight.producer() or (graph[0] if graph is not None else None)
            assert beside is not None
            self._weights[key] = [
                self._editor.add_constant(beside, array, f"{weight.name}_{part}")
                for array, part in zip(arrays(), ("quantized", "scale", "zero_point"), strict=False)
            ]
        return list(self._weights[key])

    def _dequantize(
        self, node: ir.Node, weight: list[ir.Value | None], blocks: Blocks, shape: tuple[int, ...], axis: int
    ) -> ir.Value:
        attributes = {"axis": axis}
        if blocks.form.block_size:
            attributes["block_size"] = blocks.form.block_size
        found = self._editor.insert(node, "DequantizeLinear", weight, attributes, name="")
        self._editor.facts.learn(found, ir.DataType.FLOAT, shape)
        return found

    def _finish(self, node: ir.Node, result: ir.Value) -> None:
        self._editor.take_over(node.outputs[0], result)
        self._editor.remove(node)


def _nbits(blocks: Blocks, alpha: float) -> list[Array]:
    """What MatMulNBits reads: n × blocks × bytes, and grids as n × blocks; ``α`` goes into the scales."""
    form = blocks.form
    n, k = blocks.q.shape
    missing = -k % form.block_size
    filled = np.concatenate([blocks.q, np.repeat(blocks.zero[:, -1:], missing, axis=1)], axis=1)
    packed = pack(filled.reshape(n, -1, form.block_size), form.bits)
    scale = (blocks.scale * np.float32(alpha)).astype(np.float32)
    return [packed, scale, *_unless_symmetric(blocks, pack(blocks.zero, form.bits))]


def _dequantized(blocks: Blocks, shape: tuple[int, ...], transpose: bool) -> list[Array]:
    """What DequantizeLinear reads: integers of ``shape``, and a scale and zero point a block, or one a row of q."""
    dtype: Any = ml_dtypes.uint4 if blocks.form.bits == 4 else np.uint8
    q, scale, zero = blocks.q.reshape(shape), blocks.scale, blocks.zero
    if not blocks.form.block_size:
        scale, zero = scale[:, 0], zero[:, 0]
    return [
        np.ascontiguousarray(array.T if transpose else array) for array in (q.astype(dtype), scale, zero.astype(dtype))
    ]


def _cast(blocks: Blocks, shape: tuple[int, ...]) -> list[Array]:
    """Integers of ``shape``, a float scale and, unless the grid is symmetric, a float zero point for each row."""
    form = blocks.form
    per_row = next(shape[:at] for at in range(len(shape)) if np.prod(shape[:at], dtype=int) == len(blocks.q))
    scale, zero = (a.reshape(*per_row, *[1] * (len(shape) - len(per_row))) for a in (blocks.scale, blocks.zero))
    if form.symmetric:
        narrow: Any = ml_dtypes.int4 if form.bits == 4 else np.int8
        return [(blocks.q.astype(np.int16) - form.middle).reshape(shape).astype(narrow), scale]
    unsigned: Any = ml_dtypes.uint4 if form.bits == 4 else np.uint8
    return [blocks.q.reshape(shape).astype(unsigned), scale, zero.astype(np.float32)]


def _unless_symmetric(blocks: Blocks, zero: Array) -> list[Array]:
    """The zero points, but for a symmetric grid, whose is the operator's default."""
    return [] if blocks.form.symmetric else [zero]
