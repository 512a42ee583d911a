"""Do once to the rows of a table what is done to each row that is looked up.

Nodes that work element by element on a look-up, alone or with constants that are the same for all rows, give the same
if they work on the table::

    Gelu(Add(Gather(table, ids), bias))  →  Gather(Gelu(Add(table, bias)), ids)

and there ``fold-constants`` computes them. Exact: the same operators on the same numbers. Only where nobody else reads
the table or the rows, and all comes together in one value again, so the file does not grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxopt.graph import Editor, attribute, constant_tensor, sole_reader
from onnxopt.pass_base import NodePass
from onnxopt.passes.cleanup._operands import discard
from onnxopt.passes.cleanup.fold_constants import MAX_RESULT

_ELEMENTWISE = frozenset({
    "Abs", "Add", "Ceil", "Celu", "Clip", "Cos", "Div", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid",
    "HardSwish", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow", "Reciprocal", "Relu", "Round",
    "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Swish", "Tanh", "ThresholdedRelu",
})  # fmt: skip
"""To the type that was there."""


@dataclass(frozen=True, kw_only=True)
class FoldGather(NodePass):
    """Do once to the rows of a table what is done to each row that is looked up."""

    name: ClassVar[str] = "fold-gather"
    exact: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = frozenset({"Gather"})

    def rewrite(self, node: ir.Node, editor: Editor) -> str | None:
        table, ids = node.inputs
        shape = editor.static_shape(table)
        tensor = constant_tensor(table)
        if table is None or tensor is None or not shape or tensor.nbytes > MAX_RESULT or sole_reader(table) is not node:
            return None
        if attribute(node, "axis", 0) != 0 or editor.opset(node) < 7:  # operands were broadcast by attributes before
            return None
        found = _region(node, shape)
        if not found:
            return None
        on_table = {node.outputs[0]: table}
        for each in found:
            inputs = [on_table.get(v) or _of_rank(each, v, len(shape), editor) if v else None for v in each.inputs]
            made = editor.insert(each, each.op_type, inputs, name="")
            made.producer().attributes.update(each.attributes)  # type: ignore[union-attr]
            editor.facts.learn(made, editor.dtype(each.outputs[0]) or editor.dtype(table), shape)
            on_table[each.outputs[0]] = made
        last = found[-1]
        constants = [value for each in found for value in each.inputs if value not in on_table]
        editor.replace_node(last, "Gather", [on_table[last.outputs[0]], ids], {"axis": 0})
        for each in (*reversed(found[:-1]), node):
            editor.remove(each)
        discard(*constants)
        what = ", ".join(each.op_type for each in found)
        return f"{what} work{'s' if len(found) == 1 else ''} on the table of {shape[0]} rows"


def _region(gather: ir.Node, shape: Sequence[int]) -> list[ir.Node]:
    """The nodes that work on the rows, in order, up to the last one whose output alone is read behind them."""
    values, nodes = {gather.outputs[0]}, list[ir.Node]()
    closed = 0
    if gather.outputs[0].is_graph_output() or gather.graph is None:
        return []
    waiting = {use.node for use in gather.outputs[0].uses()}
    while ready := [node for node in waiting if _is_element_by_element(node, gather, values, shape)]:
        node = min(ready, key=gather.graph.index)
        nodes.append(node)
        output = node.outputs[0]
        values.add(output)
        waiting = {use.node for value in values for use in value.uses()} - set(nodes)
        if [v for v in values if v.is_graph_output() or any(use.node in waiting for use in v.uses())] == [output]:
            closed = len(nodes)
    return nodes[:closed]


def _is_element_by_element(node: ir.Node, gather: ir.Node, rows: set[ir.Value], shape: Sequence[int]) -> bool:
    if node.op_type not in _ELEMENTWISE or node.domain or node.graph is not gather.graph:
        return False
    return all(value is None or value in rows or _meets_rows_alike(value, shape) for value in node.inputs)


def _meets_rows_alike(value: ir.Value, shape: Sequence[int]) -> bool:
    """Whether it is a constant that is the same for each row, and makes rows no longer."""
    tensor = constant_tensor(value)
    if tensor is None:
        return False
    dims = [1] * len(shape) + list(tensor.shape.numpy())
    behind = len(shape) - 1
    ahead, own = dims[: len(dims) - behind], dims[len(dims) - behind :]
    return set(ahead) == {1} and all(d in (1, size) for d, size in zip(own, shape[1:], strict=True))


def _of_rank(node: ir.Node, value: ir.Value, rank: int, editor: Editor) -> ir.Value:
    """The constant without leading axes that the table has not."""
    array = editor.constant(value)
    if array is None or array.ndim <= rank:
        return value
    return editor.add_constant(node, array.reshape(array.shape[-rank:]), value.name or "constant")
