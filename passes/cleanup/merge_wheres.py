"""Simplify what a ``Where`` chooses from where its condition has decided already.

Where the outer ``Where`` takes a side, an inner one with the same condition takes that side too, and a negated
condition swaps the sides::

    Where(Not(c), a, b)          →  Where(c, b, a)
    Where(c, a, Where(c, b, d))  →  Where(c, a, d)
    Where(c, Where(c, a, b), d)  →  Where(c, a, d)

Exact, for elements are copied. What is dropped must not have enlarged the shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxopt.graph import Editor
from onnxopt.pass_base import NodePass
from onnxopt.passes.cleanup._operands import broadcasts_into


@dataclass(frozen=True, kw_only=True)
class MergeWheres(NodePass):
    """Simplify what a ``Where`` chooses from where its condition has decided already."""

    name: ClassVar[str] = "merge-wheres"
    exact: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = frozenset({"Where"})

    def rewrite(self, node: ir.Node, editor: Editor) -> str | None:
        condition, yes, no = node.inputs
        negation = _maker("Not", condition)
        if negation is not None:
            for at, value in enumerate((negation.inputs[0], no, yes)):
                node.replace_input_with(at, value)
            return "chooses by the condition that was negated"
        for at, side in ((1, yes), (2, no)):
            inner = _maker("Where", side)
            if inner is None or inner.inputs[0] is not condition:
                continue
            kept, dropped, other = inner.inputs[at], inner.inputs[3 - at], node.inputs[3 - at]
            if any(broadcasts_into(editor.shape(dropped), editor.shape(v)) for v in (condition, kept, other)):
                node.replace_input_with(at, kept)
                return "chooses directly from what was chosen by the same condition"
        return None


def _maker(op: str, value: ir.Value | None) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op and node.domain == "" else None
