"""Remove nodes that hand their input on unchanged.

Which these are is decided per operator from the opset's definition: ``Identity``; ``Dropout`` at inference;
``Cast`` to the type that is there; ``Transpose`` by the identity permutation; ``Reshape``, ``Flatten``,
``Squeeze``, ``Unsqueeze``, ``Expand``, ``Tile``, ``Pad``, ``Slice`` and ``Resize`` that keep every dim;
``Concat``, ``Sum``, ``Max``, ``Min`` and ``Mean`` of one input; ``Split`` into one part; ``x·1``, ``x/1``,
``x+0``, ``x−0``, ``x¹``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxopt.graph import Editor
from onnxopt.pass_base import NodePass


@dataclass(frozen=True, kw_only=True)
class RemoveNoOps(NodePass):
    """Remove nodes that hand their input on unchanged."""

    name: ClassVar[str] = "remove-no-ops"
    exact: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = frozenset({"Identity"})

    def rewrite(self, node: ir.Node, editor: Editor) -> str | None:
        source = node.inputs[0]
        if source is None or not editor.redirect(node.outputs[0], source):
            return None
        editor.remove(node)
        return "handed its input on"
