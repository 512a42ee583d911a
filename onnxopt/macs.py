"""Count multiply–accumulates: the arithmetic of convolutions, matrix products and recurrent layers.

Each formula counts the products that the operator's definition sums, whatever a kernel may save:

===================  ==========================================================
Conv                 elements of the output × elements of one filter
ConvTranspose        elements of the input × elements of one filter
Gemm, MatMul         elements of the output × length of the summed axis
RNN, GRU, LSTM       steps × batch × elements of ``W`` and ``R``
Einsum               size of the whole index space, once for each operand but one
Attention            elements of queries and of the output × keys, past ones included
MultiHeadAttention   the same
GroupQueryAttention  the same
===================  ==========================================================

``Attention`` of ONNX Runtime also counts as the product that makes queries, keys and values. What a mask hides counts.
Other operators count as nothing. Of the branches of an ``If`` the one that is taken counts, or the dearer where that
is not known; the body of a ``Loop`` or ``Scan`` counts as often as it runs, or once where that is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxopt._mac_formulas import FORMULAS, Operands, Unknown
from onnxopt._output_shapes import is_true
from onnxopt.errors import OptionError
from onnxopt.graph import Editor, attribute, bodies, label
from onnxopt.model import copy
from onnxopt.probes import interface_inputs
from onnxopt.shape_values import ShapeValues
from onnxopt.shapes import STANDARD_DOMAINS
from onnxopt.traverse import graphs

_OPERATORS = frozenset("+-*/%(")
"""Without one of these a dim is no expression."""
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
    """Each dynamic dim of the inputs, with its size by default; an unnamed one is called ``input[axis]``.

    What follows from others, such as ``past + 1``, is none.
    """
    found: dict[str, int] = {}
    for value in interface_inputs(model):
        for axis, dim in enumerate(value.shape or ()):
            if not _is_size(dim):
                found.setdefault(_dim_name(value, axis, dim), DEFAULT_SIZES[0 if axis == 0 else 1])
    return {name: size for name, size in found.items() if not _follows(name, found)}


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
    _set_dims(copied, sizes)
    if copied.functions:
        from onnx_ir.passes.common import InlinePass

        InlinePass()(copied)
    editor = Editor(copied)
    _Counter(editor, ShapeValues(editor), result).add(copied.graph, 1)
    result.total = sum(result.by_operator.values())
    return result


def _set_dims(model: ir.Model, sizes: Mapping[str, int]) -> None:
    """Give the inputs these sizes, and the declared dims of outputs of operators that onnx does not know as well.

    A name that no input has tells nothing.
    """
    for value in interface_inputs(model):
        if value.shape is not None:
            value.shape = ir.Shape(
                dim if _is_size(dim) else _size(_dim_name(value, axis, dim), sizes)
                for axis, dim in enumerate(value.shape)
            )
    foreign = (node for graph in graphs(model) for node in graph if node.domain not in STANDARD_DOMAINS)
    for value in (output for node in foreign for output in node.outputs):
        if value.shape is not None:
            value.shape = ir.Shape(
                dim if isinstance(dim, int) or not dim.value else _size(dim.value, sizes) for dim in value.shape
            )


def _is_size(dim: int | ir.SymbolicDim) -> bool:
    """Whether a dim is fixed: some exporters write -1 for a dynamic one."""
    return isinstance(dim, int) and dim >= 0


def _dim_name(value: ir.Value, axis: int, dim: int | ir.SymbolicDim) -> str:
    if (
        isinstance(dim, ir.SymbolicDim) and dim.value and any(c.isalpha() for c in dim.value)
    ):  # some exporters call every dim "?"
        return dim.value
    return f"{value.name}[{axis}]"


def _follows(name: str, dims: Mapping[str, int]) -> bool:
    """Whether a dim is computed of others of ``dims``."""
    if not _OPERATORS & set(name):  # to parse a plain name would take longer than the rest
        return False
    try:
        symbols = ir.SymbolicDim(name).free_symbols()
    except ValueError:  # no expression
        return False
    return name not in symbols and symbols <= dims.keys()


def _size(name: str, sizes: Mapping[str, int]) -> int | None:
    """The size of a dim that has one of ``sizes``, or is computed of them."""
    if name in sizes:
        return sizes[name]
    try:
        size = ir.SymbolicDim(name).evaluate(sizes)
    except (ValueError, ZeroDivisionError):
        return None
    return size if isinstance(size, int) else None


class _Counter:
    def __init__(self, editor: Editor, values: ShapeValues, result: Macs) -> None:
        self._editor, self._values, self._result = editor, values, result

    def add(self, graph: ir.Graph, times: int) -> None:
        """Count ``graph`` as run ``times`` times."""
        for node in graph:
            inner = list(bodies(node))
            if inner:
                self._add_bodies(node, inner, times)
                continue
            formula = FORMULAS.get((node.domain, node.op_type))
            if formula is None:
                continue
            try:
                count = formula(Operands(node, self._editor, self._values))
            except (Unknown, IndexError, TypeError, ValueError):  # an invalid node has no cost that could be told
                self._result.unknown.append(label(node))
            else:
                counts = self._result.by_operator
                counts[node.op_type] = counts.get(node.op_type, 0) + times * count
                self._result.by_output[node.outputs[0].name or ""] = times * count

    def _add_bodies(self, node: ir.Node, inner: list[ir.Graph], times: int) -> None:
        if node.op_type == "If":
            taken = is_true(self._values.of(node.inputs[0]))
            if taken is not None:
                inner = [attribute(node, "then_branch" if taken else "else_branch")]
            branches = []
            for body in inner:
                branches.append(Macs())
                _Counter(self._editor, self._values, branches[-1]).add(body, times)
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
            shape = self._editor.shape(node.inputs[-scans])
            steps = shape[axes[0]] if shape is not None else None
            return steps if isinstance(steps, int) else None
        try:
            return min(Operands(node, self._editor, self._values).number(0), 1 << 31)
        except (Unknown, IndexError):
            return None
