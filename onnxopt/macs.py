"""Count multiply–accumulates: the arithmetic of convolutions, matrix products and recurrent layers.

Each formula counts the products that the operator's definition sums, whatever a kernel may save:

=================  ==========================================================
Conv               elements of the output × elements of one filter
ConvTranspose      elements of the input × elements of one filter
Gemm, MatMul       elements of the output × length of the summed axis
RNN, GRU, LSTM     steps × batch × elements of ``W`` and ``R``
Einsum             size of the whole index space, once for each operand but one
=================  ==========================================================

Other operators count as nothing. Of the branches of an ``If`` the dearer counts; the body of a ``Loop`` or
``Scan`` counts as often as it runs, or once where that is not known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from onnxopt.errors import OptionError
from onnxopt.graph import attribute, bodies, constant_tensor, label
from onnxopt.model import copy
from onnxopt.probes import interface_inputs
from onnxopt.shapes import Facts

DEFAULT_SIZES = (1, 128)
"""The size of a dynamic dim that the user does not set: on the first axis of an input, and elsewhere."""


@dataclass
class Macs:
    """The multiply–accumulates of a model."""

    total: int = 0
    by_operator: dict[str, int] = field(default_factory=dict)
    by_output: dict[str, int] = field(default_factory=dict)
    """Those of each node, by the name of its first output."""
    at: dict[str, int] = field(default_factory=dict)
    """The value at which each dynamic dim of the inputs was set."""
    unknown: list[str] = field(default_factory=list)
    """Nodes whose shapes are not known, so that the total is a lower bound."""
    counted_once: list[str] = field(default_factory=list)
    """Loops of unknown length, whose bodies are counted once."""


def dynamic_dims(model: ir.Model) -> dict[str, int]:
    """Each dynamic dim of the inputs, with its size by default; an unnamed one is called ``input[axis]``."""
    found: dict[str, int] = {}
    for value in interface_inputs(model):
        for axis, dim in enumerate(value.shape or ()):
            if not _is_size(dim):
                found.setdefault(_dim_name(value, axis, dim), DEFAULT_SIZES[0 if axis == 0 else 1])
    return found


def count_macs(model: ir.Model, dims: Mapping[str, int] | None = None) -> Macs:
    """The multiply–accumulates of ``model`` with its dynamic dims set to ``dims``.

    Raises ``OptionError`` for a dim that no input has.
    """
    sizes = dynamic_dims(model)
    for name in dims or {}:
        if name not in sizes:
            known = ", ".join(sizes) or "none, all are fixed"
            raise OptionError(f"no input has a dynamic dim {name!r}; dynamic dims: {known}")
    sizes.update(dims or {})
    result = Macs(at=sizes)
    copied = copy(model)
    for value in interface_inputs(copied):
        if sizes and value.shape is not None:
            value.shape = ir.Shape(
                d if _is_size(d) else sizes[_dim_name(value, axis, d)] for axis, d in enumerate(value.shape)
            )
    if copied.functions:
        InlinePass()(copied)
    _Counter(Facts(copied), result).add(copied.graph, 1)
    result.total = sum(result.by_operator.values())
    return result


def _is_size(dim: int | ir.SymbolicDim) -> bool:
    """Whether a dim is fixed: some exporters write -1 for a dynamic one."""
    return isinstance(dim, int) and dim >= 0


def _dim_name(value: ir.Value, axis: int, dim: int | ir.SymbolicDim) -> str:
    if (
        isinstance(dim, ir.SymbolicDim) and dim.value and any(c.isalpha() for c in dim.value)
    ):  # some exporters call every dim "?"
        return dim.value
    return f"{value.name}[{axis}]"


class _Unknown(Exception):
    """A shape that the formula needs is not known."""


class _Counter:
    def __init__(self, facts: Facts, result: Macs) -> None:
        self._facts, self._result = facts, result

    def add(self, graph: ir.Graph, times: int) -> None:
        """Count ``graph`` as run ``times`` times."""
        for node in graph:
            inner = list(bodies(node))
            if inner:
                self._add_bodies(node, inner, times)
                continue
            formula = _FORMULAS.get((node.domain, node.op_type))
            if formula is None:
                continue
            try:
                count = formula(node, self._shape)
            except (_Unknown, IndexError, TypeError, ValueError):  # an invalid node has no cost that could be told
                self._result.unknown.append(label(node))
            else:
                counts = self._result.by_operator
                counts[node.op_type] = counts.get(node.op_type, 0) + times * count
                self._result.by_output[node.outputs[0].name or ""] = times * count

    def _add_bodies(self, node: ir.Node, inner: list[ir.Graph], times: int) -> None:
        if node.op_type == "If":
            branches = []
            for body in inner:
                branches.append(Macs())
                _Counter(self._facts, branches[-1]).add(body, times)
            dearest = max(branches, key=lambda branch: sum(branch.by_operator.values()))
            counts = self._result.by_operator
            for op, count in dearest.by_operator.items():
                counts[op] = counts.get(op, 0) + count
            for branch in branches:
                self._result.by_output |= branch.by_output
                self._result.unknown += branch.unknown
                self._result.counted_once += branch.counted_once
            return
        length = self._length(node)
        if length is None:
            self._result.counted_once.append(label(node))
        for body in inner:
            self.add(body, times * (1 if length is None else length))

    def _length(self, node: ir.Node) -> int | None:
        """How often the body of a Loop or Scan runs, if that is fixed."""
        if node.op_type == "Scan":
            scans = attribute(node, "num_scan_inputs")
            axes = attribute(node, "scan_input_axes", (0,))
            if scans is None or axes is None:
                return None
            shape = self._facts.shape(node.inputs[-scans]) if node.inputs[-scans] is not None else None
            steps = shape[axes[0]] if shape is not None else None
            return steps if isinstance(steps, int) else None
        limit = constant_tensor(node.inputs[0]) if node.op_type == "Loop" and node.inputs else None
        return min(int(limit.numpy().reshape(-1)[0]), 1 << 31) if limit is not None and limit.size == 1 else None

    def _shape(self, node: ir.Node, at: int) -> tuple[int, ...]:
        """The dims of input ``at``, or of output ``~at``."""
        value = node.inputs[at] if at >= 0 else node.outputs[~at]
        if value is None:
            raise _Unknown
        shape = self._facts.shape(value)
        if shape is None:
            raise _Unknown
        known = tuple(d for d in shape if isinstance(d, int))
        if len(known) != len(shape):
            raise _Unknown
        return known


Shape = Callable[[ir.Node, int], tuple[int, ...]]
Formula = Callable[[ir.Node, Shape], int]
OUTPUT = ~0


def _conv(weight: int) -> Formula:
    return lambda node, shape: math.prod(shape(node, OUTPUT)) * math.prod(shape(node, weight)[1:])


def _conv_transpose(node: ir.Node, shape: Shape) -> int:
    return math.prod(shape(node, 0)) * math.prod(shape(node, 1)[1:])


def _product(node: ir.Node, shape: Shape) -> int:
    a = shape(node, 0)
    axis = -2 if attribute(node, "transA", 0) and len(a) > 1 else -1
    return math.prod(shape(node, OUTPUT)) * a[axis]


def _recurrent(node: ir.Node, shape: Shape) -> int:
    x = shape(node, 0)
    return x[0] * x[1] * (math.prod(shape(node, 1)) + math.prod(shape(node, 2)))


def _block_quantized(node: ir.Node, shape: Shape) -> int:
    return math.prod(shape(node, 0)) * int(attribute(node, "N"))


def _einsum(node: ir.Node, shape: Shape) -> int:
    equation: Any = attribute(node, "equation")
    terms = str(equation).replace(" ", "").split("->")[0].split(",")
    if len(terms) == 1:
        return 0
    sizes: dict[str, int] = {}
    for at, term in enumerate(terms):
        dims = shape(node, at)
        before, dots, after = term.partition("...")
        free = len(dims) - len(before) - len(after)
        # dims under an ellipsis are aligned at their ends, like those of a broadcast
        letters = [*before, *(f"…{i}" for i in range(free, 0, -1) if dots), *after]
        for letter, size in zip(letters, dims, strict=True):
            sizes[letter] = max(sizes.get(letter, 1), size) if size else 0
    return math.prod(sizes.values()) * (len(terms) - 1)


_FORMULAS: dict[tuple[str, str], Formula] = {
    ("", "Conv"): _conv(1),
    ("", "ConvInteger"): _conv(1),
    ("", "DeformConv"): _conv(1),
    ("", "QLinearConv"): _conv(3),
    ("", "ConvTranspose"): _conv_transpose,
    ("", "Gemm"): _product,
    ("", "MatMul"): _product,
    ("", "MatMulInteger"): _product,
    ("", "QLinearMatMul"): _product,
    ("", "RNN"): _recurrent,
    ("", "GRU"): _recurrent,
    ("", "LSTM"): _recurrent,
    ("", "Einsum"): _einsum,
    ("com.microsoft", "FusedConv"): _conv(1),
    ("com.microsoft", "FusedGemm"): _product,
    ("com.microsoft", "FusedMatMul"): _product,
    ("com.microsoft", "MatMulIntegerToFloat"): _product,
    ("com.microsoft", "DynamicQuantizeMatMul"): _product,
    ("com.microsoft", "MatMulNBits"): _block_quantized,
}
