"""Resize: along each axis a product with a constant matrix.

What ONNX Runtime makes of the rows of a unit matrix are the columns of that matrix, whatever the mode, the coordinates
and the rounding are. It is asked because it follows ONNX neither where the scaled size is no integer nor where the size
stays the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp
from onnxopt.gradients.rules.reads import undo_reads
from onnxopt.runtime import Session, Snapshot

_Matrix = npt.NDArray[Any]
_ROWS = 32
"""So many rows of a matrix at once are multiplied fastest."""


@vjp("Resize")
def _resize(at: Backward) -> Gradients:
    """``y = W x`` along each axis: ``dx = Wᵀ g``. There is no gradient of the region, the scales and the sizes."""
    if at.shape(at.inputs[0]) == at.shape(at.outputs[0]):
        return [at.g]  # ONNX Runtime copies, whatever is asked for
    call = _Call.of(at)
    transposed = {axis: call.transposed(i) for i, axis in enumerate(call.axes) if call.moves(i)}
    if (factors := _repeats(at, transposed)) is not None:
        return [_sum_of_blocks(at, factors)]
    dx, shape = at.g, list(at.shape(at.outputs[0]))
    for axis in sorted(transposed, reverse=True):
        matrix = transposed[axis]
        dims = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
        dx = _undo(at, dx, dims, matrix)
        shape[axis] = len(matrix)
    return [at.reshape(dx, *shape) if transposed else dx]


def _undo(at: Backward, g: ir.Value, dims: tuple[int, int, int], matrix: _Matrix) -> ir.Value:
    """The product of ``matrix``, (size, count), with ``g`` along the middle axis of ``dims``, (outer, count, inner).

    Interpolation reads neighbours, so that each block of rows has few columns that are not zero.
    """
    reads = matrix.argmax(axis=0)
    if np.array_equal(matrix, np.arange(len(matrix))[:, None] == reads):
        return undo_reads(at, g, dims, reads, len(matrix))
    _, count, inner = dims
    g = at.reshape(g, *(dims if inner > 1 else dims[:2]))
    matrix = matrix.astype(at.dtype(at.outputs[0]).numpy())
    parts = []
    blocks = max(len(matrix), count // 4) // _ROWS
    for rows in np.array_split(matrix, min(max(1, blocks), len(matrix))):
        read = np.flatnonzero(rows.any(axis=0))
        begin, end = (int(read[0]), int(read[-1]) + 1) if len(read) else (0, 1)
        part, block = g, rows[:, begin:end]
        if end - begin < count:
            part = at.op("Slice", g, at.ints(begin), at.ints(end), at.ints(1))
        if inner == 1:
            parts.append(at.op("MatMul", part, at.const(np.ascontiguousarray(block.T))))
        else:
            parts.append(at.op("MatMul", at.const(np.ascontiguousarray(block)), part))
    return at.op("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]


def _repeats(at: Backward, transposed: dict[int, _Matrix]) -> list[int] | None:
    """How often each element is repeated along each axis but the first two, if that is all that Resize does."""
    rank = at.rank(at.inputs[0])
    if not 3 <= rank <= 5 or not transposed or min(transposed) < 2:
        return None
    factors = [1] * (rank - 2)
    for axis, matrix in transposed.items():
        size, count = matrix.shape
        factors[axis - 2] = count // size
        if not np.array_equal(matrix, np.eye(size).repeat(max(1, count // size), axis=1)):
            return None
    return factors


def _sum_of_blocks(at: Backward, factors: list[int]) -> ir.Value:
    """Of each block of elements that are copies of one, the sum: pooling is faster than ReduceSum."""
    mean = at.op("AveragePool", at.g, kernel_shape=factors, strides=factors)
    return at.op("Mul", mean, at.number(math.prod(factors)))


@dataclass(frozen=True)
class _Call:
    """What a node asks for, an entry for each of its ``axes``."""

    at: Backward
    axes: list[int]
    scales: list[float]
    """Empty where ``sizes`` are given, and the other way round."""
    sizes: list[int]
    regions: list[tuple[float, float]]
    """Begin and end, where 0 is the first element and 1 the last."""

    @classmethod
    def of(cls, at: Backward) -> _Call:
        rank = at.rank(at.inputs[0])
        axes = [axis % rank for axis in at.attribute("axes", range(rank))]
        regions = [(0.0, 1.0)] * len(axes)
        if at.attribute("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
            ends = cls._floats(at, at.input(1))
            regions = list(zip(ends[: len(axes)], ends[len(axes) :], strict=True))
        sizes = at.input(3)
        if sizes is not None and at.shape(sizes) != (0,):  # some exporters write empty tensors
            return cls(at, axes, [], at.numbers(sizes), regions)
        return cls(at, axes, cls._floats(at, at.input(2)), [], regions)

    @staticmethod
    def _floats(at: Backward, value: ir.Value | None) -> list[float]:
        if (known := at.constant(value)) is None:
            raise at.error("its region or its scales are known at run time only")
        return [float(x) for x in known.reshape(-1)]

    def moves(self, i: int) -> bool:
        """Whether anything is done along the axis at ``i``."""
        before, after = (self.at.shape(value)[self.axes[i]] for value in (self.at.inputs[0], self.at.outputs[0]))
        return before != after or self.regions[i] != (0, 1) or (bool(self.scales) and self.scales[i] != 1)

    def transposed(self, i: int) -> _Matrix:
        """The matrix, (size before, size after), of the axis at ``i``."""
        attributes = {name: each.value for name, each in self.at.node.attributes.items()}
        attributes.update(axes=(2, 3), extrapolation_value=0.0)
        size, beside = self.at.shape(self.at.inputs[0])[self.axes[i]], self._beside()
        if self.scales:
            constants = {"scales": np.array([beside, self.scales[i]], np.float32)}
        else:
            constants = {"sizes": np.array([beside.numerator, self.sizes[i]])}
        constants["region"] = np.array([0, self.regions[i][0], 1, self.regions[i][1]], np.float32)
        unit = np.broadcast_to(np.eye(size, dtype=np.float32)[:, None, None], (size, 1, beside.denominator, size))
        return _resized(self.at.opset, attributes, unit, constants)[:, 0, 0]

    def _beside(self) -> Fraction:
        """How much to scale another axis: as a policy that keeps the aspect ratio does it with all axes, or by
        anything, so that the whole does not keep its size."""
        policy = self.at.attribute("keep_aspect_ratio_policy", "stretch")
        if not self.sizes or policy == "stretch":
            return Fraction(2)
        before = self.at.shape(self.at.inputs[0])
        ratios = [Fraction(size, before[axis]) for size, axis in zip(self.sizes, self.axes, strict=True)]
        return min(ratios) if policy == "not_larger" else max(ratios)


def _resized(opset: int, attributes: dict[str, Any], x: _Matrix, constants: dict[str, np.ndarray[Any, Any]]) -> _Matrix:
    """What ONNX Runtime makes of ``x``."""
    names = ["region", "scales", "sizes"]
    initializers = [ir.tensor(constants[name], name=name) for name in names if name in constants]
    given = {str(tensor.name): ir.Value(name=tensor.name, const_value=tensor) for tensor in initializers}
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(x.shape))
    node = ir.node("Resize", [value, *(given.get(name) for name in names)], attributes)
    node.outputs[0].name = "y"
    node.outputs[0].type = value.type
    graph = ir.Graph([value], node.outputs, nodes=[node], initializers=list(given.values()), opset_imports={"": opset})
    return np.asarray(Session(Snapshot.of(ir.Model(graph, ir_version=10)), threads=1).run({"x": x})[0])
