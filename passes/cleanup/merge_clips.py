"""Let one ``Clip`` or ``Relu`` do the work of two, and none where nothing is left to cut.

Both map into an interval: ``Relu`` into [0, ∞), ``Clip`` into [min, max]. Clipping to ``A`` and then to ``B`` is
clipping to ``A ∩ B`` if the two meet. So where one interval lies within the other, one node is enough, and a
``Clip`` of values that lie in its interval anyway, such as ``Relu`` of a ``Sigmoid``, is none. NaN passes
through in either case.

``Clip(Relu(x), -1, 6)``  →  ``Clip(x, 0, 6)``
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, sole_reader
from onnxopt.pass_base import NodePass
from onnxopt.passes.cleanup._operands import Range, clip_range, input_at, value_range


@dataclass(frozen=True, kw_only=True)
class MergeClips(NodePass):
    """Let one ``Clip`` or ``Relu`` do the work of two."""

    name: ClassVar[str] = "merge-clips"
    exact: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = frozenset({"Clip", "Relu"})

    def rewrite(self, node: ir.Node, editor: Editor) -> str | None:
        source = node.inputs[0]
        own = clip_range(node, editor)
        if source is None or own is None:
            return None
        given = value_range(source, editor)
        if given is not None and given.within(own) and editor.redirect(node.outputs[0], source):
            editor.remove(node)
            return "had nothing left to cut"
        first = source.producer()
        if first is None or first.op_type not in self.ops or first.domain or first.graph is not node.graph:
            return None
        before = clip_range(first, editor)
        if before is None or sole_reader(source) is not node:
            return None
        text = f"took over the cutting of {first.op_type}"
        if own.within(before):
            node.replace_input_with(0, first.inputs[0])
            editor.remove(first)
            return text
        both = Range(max(own.low, before.low), min(own.high, before.high))
        if both.low > both.high:
            return None  # the result is one number, which is not ours to make
        if not self._replace(node, first, both, editor):
            return None
        editor.remove(first)
        return text

    @staticmethod
    def _replace(node: ir.Node, first: ir.Node, both: Range, editor: Editor) -> bool:
        """Put a node that clips to ``both`` in the place of ``node``."""
        source = first.inputs[0]
        relu = (both.low, both.high) == (0, math.inf)
        if editor.opset(node) < 11:
            if relu:
                editor.replace_node(node, "Relu", [source])
            else:
                editor.replace_node(node, "Clip", [source], {"min": float(both.low), "max": float(both.high)})
            return True
        if relu and "Relu" in (node.op_type, first.op_type):
            editor.replace_node(node, "Relu", [source])
            return True
        dtype = editor.dtype(source)
        if dtype is None:
            return False
        bounds: list[ir.Value | None] = []
        ends = ("min", both.low, -math.inf), ("max", both.high, math.inf)
        for at, (name, bound, missing) in enumerate(ends, 1):
            held = [input_at(n, at) for n in (node, first) if n.op_type == "Clip"]
            same = next((v for v in held if v is not None and editor.scalar(v) == bound), None)
            if same is None and bound != missing:
                same = editor.add_constant(node, np.array(bound, dtype=dtype.numpy()), name)
            bounds.append(same)
        editor.replace_node(node, "Clip", [source, *bounds])
        return True
