"""Take a ``Concat`` apart that only feeds another ``Concat`` along the same axis.

``Concat(Concat(a, b), c)``  →  ``Concat(a, b, c)``
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxopt.graph import Editor, attribute, sole_reader
from onnxopt.pass_base import NodePass


@dataclass(frozen=True, kw_only=True)
class MergeConcats(NodePass):
    """Take a ``Concat`` apart that only feeds another ``Concat`` along the same axis."""

    name: ClassVar[str] = "merge-concats"
    exact: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = frozenset({"Concat"})

    def rewrite(self, node: ir.Node, editor: Editor) -> str | None:
        axis = attribute(node, "axis")
        if axis is None:
            return None
        parts: list[ir.Value | None] = []
        merged: list[ir.Node] = []
        for value in node.inputs:
            inner = value.producer() if value is not None else None
            if inner is not None and self._is_part(inner, node, axis, editor):
                parts.extend(inner.inputs)
                merged.append(inner)
            else:
                parts.append(value)
        if not merged:
            return None
        node.resize_inputs(len(parts))
        for at, value in enumerate(parts):
            node.replace_input_with(at, value)
        for inner in merged:
            editor.remove(inner)
        return f"took in {len(merged)} Concat{'s' if len(merged) > 1 else ''}"

    @staticmethod
    def _is_part(inner: ir.Node, node: ir.Node, axis: int, editor: Editor) -> bool:
        if inner.op_type != "Concat" or inner.domain or inner.graph is not node.graph:
            return False
        if sole_reader(inner.outputs[0]) is not node:
            return False
        own = attribute(inner, "axis")
        if own is None or own == axis:
            return own is not None
        rank = editor.rank(inner.outputs[0]) or editor.rank(node.outputs[0])
        return rank is not None and own % rank == axis % rank
