"""How a pruned model differs from the dense one, tensor by tensor.

Nodes are told apart by the names of their outputs, which pruning keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.channels import Slices, kept
from onnxopt.graph import Editor, attribute, bodies, constant_tensor
from onnxopt.passes.cleanup._linear import LAYERS
from onnxopt.passes.cleanup._operands import input_at
from onnxopt.traverse import graphs

Array = np.ndarray[Any, Any]


class State(IntEnum):
    """What became of a tensor, or of what a node computes by itself."""

    SAME = 0
    CUT = 1
    """Channels were removed, the others are as they were."""
    CHANGED = 2


class Changes:
    """The state of each value of a model."""

    def __init__(self, editor: Editor, original: ir.Model) -> None:
        self._known = kept(editor.model)
        self._sources = {node.outputs[0].name: node for g in graphs(original) for node in g if node.outputs}
        self._states: dict[ir.Value, State] = {}
        for holder in (editor.model.graph, *(function.graph for function in editor.model.functions.values())):
            self._visit(holder)

    def source(self, node: ir.Node) -> ir.Node | None:
        """The node of the dense model that ``node`` was, if there is one."""
        found = self._sources.get(node.outputs[0].name)
        alike = found is not None and (found.op_type, found.domain) == (node.op_type, node.domain)
        return found if alike else None

    def of(self, value: ir.Value | None) -> State:
        """What became of a value."""
        return State.SAME if value is None else self._states.get(value, State.SAME)

    def by_itself(self, node: ir.Node) -> State:
        """What its constants make of its output, whatever it reads."""
        source = self.source(node)
        if source is None or len(source.inputs) != len(node.inputs):
            return State.CHANGED
        return max((self._compared(a, b) for a, b in zip(node.inputs, source.inputs, strict=True)), default=State.SAME)

    def places(self, node: ir.Node, axis: int) -> Slices | None:
        """The slices of its weight along ``axis`` that were kept; ``None``: all."""
        return self._axes(input_at(node, 1)).get(axis)

    def dense_weight(self, node: ir.Node) -> Array | None:
        """The weight in the dense model, without the slices that were removed."""
        source = self.source(node)
        tensor = constant_tensor(input_at(source, 1)) if source is not None else None
        return None if tensor is None else _cut(tensor.numpy(), self._axes(input_at(node, 1)))

    def _axes(self, value: ir.Value | None) -> Mapping[int, Slices]:
        return {} if value is None else self._known.get(value.name or "", {})

    def _visit(self, graph: ir.Graph) -> None:
        for node in graph:
            inner = []
            for body in bodies(node):
                self._visit(body)
                inner += [self.of(value) for value in body.outputs]
            read = max((self.of(value) for value in node.inputs), default=State.SAME)
            if read == State.CUT and node.op_type in LAYERS and not is_depthwise(node):
                read = State.CHANGED
            found = max(read, self.by_itself(node), *inner)
            if found:
                self._states.update((output, found) for output in node.outputs)

    def _compared(self, value: ir.Value | None, source: ir.Value | None) -> State:
        tensor, before = constant_tensor(value), constant_tensor(source)
        if tensor is before:  # the same constant, or none: then the names tell
            named = [None if v is None or tensor is not None else v.name for v in (value, source)]
            return State.SAME if named[0] == named[1] else State.CHANGED
        if tensor is None or before is None:
            return State.CHANGED
        axes = self._axes(value)
        if np.array_equal(tensor.numpy(), _cut(before.numpy(), axes)):
            return State.CUT if axes else State.SAME
        return State.CHANGED


def is_depthwise(node: ir.Node) -> bool:
    """Whether each channel that goes in goes into one group by itself."""
    dims = () if node.op_type != "Conv" or node.inputs[1] is None else tuple(node.inputs[1].shape or ())
    return len(dims) > 1 and dims[1] == 1 and int(attribute(node, "group", 1)) > 1


def _cut(array: Array, axes: Mapping[int, Slices]) -> Array:
    for axis, places in axes.items():
        if axis >= array.ndim or places.max(initial=0) >= array.shape[axis]:
            return np.empty(0)
        array = np.take(array, places, axis)
    return array
