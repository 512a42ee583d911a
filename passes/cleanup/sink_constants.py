"""Turn small initializers into Constant nodes: the inverse of lift-constants.

Some converters and hand-written readers of ONNX look for axes, shapes and thresholds in Constant nodes only.
The nodes stand at the beginning of their graph, in the order of the initializers. Not in the cleanup recipe.

Exact: both hold the same tensor. Initializers that are also inputs are defaults that a caller may override, and stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_ir as ir

from onnxopt.errors import OptionError
from onnxopt.graph import Editor
from onnxopt.pass_base import Context, Log, Pass, Report


@dataclass(frozen=True, kw_only=True)
class SinkConstants(Pass):
    """Turn small initializers into Constant nodes."""

    name: ClassVar[str] = "sink-constants"
    exact: ClassVar[bool] = True

    max_bytes: int = 1024
    """Larger initializers are weights, and stay."""

    def __post_init__(self) -> None:
        if self.max_bytes < 0:
            raise OptionError(f"{self.name}.max_bytes is a number of bytes, got {self.max_bytes}")

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        for graph in context.editor.graphs():
            first = next(iter(graph), None)
            for name, value in list(graph.initializers.items()):
                tensor = value.const_value
                if first is None or tensor is None or value.is_graph_input() or not value.uses():
                    continue
                if tensor.nbytes > self.max_bytes or not self.may_change_name(name, context):
                    continue
                opset = context.editor.opset(first)
                if f"tensor({tensor.dtype.name.lower()})" not in _types(opset):
                    log.refused(name, f"Constant of opset {opset} does not hold {tensor.dtype.name.lower()}")
                else:
                    _sink(value, tensor, first, context.editor)
                    log.changed(name, "is a Constant node now")
        return log.report()


def _types(opset: int) -> Sequence[str]:
    """What a Constant node can hold: before opset 9 only floats."""
    return onnx.defs.get_schema("Constant", opset).type_constraints[0].allowed_type_strs


def _sink(value: ir.Value, tensor: ir.TensorProtocol, first: ir.Node, editor: Editor) -> None:
    graph, name = value.graph, value.name or ""
    assert graph is not None
    constant = editor.insert(first, "Constant", [], {"value": tensor}, name="")
    node = constant.producer()
    assert node is not None
    node.doc_string = None
    node.metadata_props.clear()
    del graph.initializers[name]
    editor.take_over(value, constant)
