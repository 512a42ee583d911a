"""Let one ``Transpose`` do the work of two that follow each other, and none if they cancel.

Axis ``i`` of ``Transpose(Transpose(x, p), q)`` is axis ``p[q[i]]`` of ``x``.

``Transpose(Transpose(x, [0, 2, 3, 1]), [0, 3, 1, 2])``  →  ``x``
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxopt.graph import Editor, sole_reader
from onnxopt.pass_base import NodePass
from onnxopt.passes.cleanup._operands import is_read, permutation, put_numbers


@dataclass(frozen=True, kw_only=True)
class MergeTransposes(NodePass):
    """Let one ``Transpose`` do the work of two that follow each other."""

    name: ClassVar[str] = "merge-transposes"
    exact: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = frozenset({"Transpose"})

    def rewrite(self, node: ir.Node, editor: Editor) -> str | None:
        middle = node.inputs[0]
        first = middle.producer() if middle is not None else None
        if middle is None or first is None or first.op_type != "Transpose" or first.domain:
            return None
        source = first.inputs[0]
        inner, outer = permutation(first, editor), permutation(node, editor)
        if inner is None or outer is None:
            both_reverse = not any(_has_perm(n) for n in (first, node))
            if not both_reverse or source is None or not editor.redirect(node.outputs[0], source):
                return None
        else:
            perm = tuple(inner[axis] for axis in outer)
            if perm == tuple(range(len(perm))) and source is not None:
                if not editor.redirect(node.outputs[0], source):
                    return None
            elif sole_reader(middle) is node:
                node.replace_input_with(0, source)
                put_numbers(node, "perm", perm)
                editor.remove(first)
                return "transposes at once what was transposed twice"
            else:
                return None
        editor.remove(node)
        if not is_read(middle):
            editor.remove(first)
        return "undid the transposition before it"


def _has_perm(node: ir.Node) -> bool:
    return "perm" in node.attributes
