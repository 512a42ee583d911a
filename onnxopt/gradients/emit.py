"""Writes new nodes, at the end of the main graph or in front of one of its nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.graph import AttributeValue, Editor

Number = bool | int | float
Values = Sequence[ir.Value]
Step = Callable[..., tuple[Values, Values]]
"""From the states before a step and the elements at it, the states after it and what it gives."""


class Emitter:
    """Writes new nodes, by default behind all others, under names of their own."""

    def __init__(self, editor: Editor) -> None:
        self.editor = editor
        self._graph = editor.model.graph
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self.scope = "grad"
        """What the names of new values begin with."""
        self.owner: ir.Node | None = None
        """The node whose gradient is written, if one is,"""
        self.owners: dict[ir.Node, ir.Node] = {}
        """and that of each node of the main graph that was written for one."""
        self._before: ir.Node | None = None

    def op(self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: AttributeValue) -> ir.Value:
        """The output of a new node."""
        return self.ops(op_type, *inputs, outputs=1, domain=domain, **attributes)[0]

    def ops(
        self, op_type: str, *inputs: ir.Value | None, outputs: int, domain: str = "", **attributes: AttributeValue
    ) -> tuple[ir.Value, ...]:
        """All outputs of a new node; missing inputs at the end are left out."""
        given = len(inputs) - next((i for i, value in enumerate(reversed(inputs)) if value is not None), len(inputs))
        node = ir.node(op_type, inputs[:given], attributes, domain=domain, num_outputs=outputs)
        for output in node.outputs:
            output.name = self.editor.fresh(f"{self.scope}/{op_type}")
        node.name = node.outputs[0].name
        if self._before is None:
            self._graph.append(node)
        else:
            self._graph.insert_before(self._before, node)
        if self.owner is not None and self._graph is self.editor.model.graph:
            self.owners[node] = self.owner
        return tuple(node.outputs)

    @contextmanager
    def before(self, node: ir.Node, scope: str) -> Iterator[None]:
        """Meanwhile, write in front of ``node`` of the main graph, under names that begin with ``scope``, for no
        gradient."""
        self._before, self.scope, self.owner = node, scope, None
        yield
        self._before = None

    def scan(self, step: Step, states: Values, sequences: Values, *, like: ir.Value, reverse: bool) -> list[ir.Value]:
        """The states after the last step, then the sequences of what the steps gave, each along its first axis.

        ``step`` writes the nodes of one step, which may read values from without. All are of the type of ``like``.
        ``reverse``: from the last element to the first, each in its own place.
        """
        dtype = self.editor.dtype(like)
        assert dtype is not None
        inputs = [
            ir.Value(name=self.editor.fresh(f"{self.scope}/step"), type=ir.TensorType(dtype))
            for _ in (*states, *sequences)
        ]
        outer, self._graph = self._graph, ir.Graph(inputs, [], nodes=[], name=f"{self.scope}/Scan")
        after, given = step(*inputs)
        self._graph.outputs.extend([*after, *given])
        body, self._graph = self._graph, outer
        for output in body.outputs:
            output.type = ir.TensorType(dtype)
        return list(
            self.ops(
                "Scan",
                *states,
                *sequences,
                outputs=len(body.outputs),
                body=body,
                num_scan_inputs=len(sequences),
                scan_input_directions=[int(reverse)] * len(sequences),
                scan_output_directions=[int(reverse)] * len(given),
            )
        )

    def const(self, array: np.ndarray[Any, Any] | np.generic, *, shared: bool = True) -> ir.Value:
        """A constant; equal ones are one unless it must not be ``shared``."""
        array = np.asarray(array, order="C")
        key = (array.dtype.str, array.shape, array.tobytes() if shared and array.size <= 64 else b"")
        if shared and array.size <= 64 and key in self._constants:
            return self._constants[key]
        tensor = ir.Tensor(array, name=self.editor.fresh(f"{self.scope}/constant"))
        value = ir.Value(
            name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
        self.editor.model.graph.register_initializer(value)
        if shared and array.size <= 64:
            self._constants[key] = value
        return value

    def ints(self, *numbers: int) -> ir.Value:
        """A constant vector of int64: axes, a shape, starts."""
        return self.const(np.array(numbers, np.int64))

    def number(self, number: Number, like: ir.Value) -> ir.Value:
        """A constant scalar of the element type of ``like``."""
        dtype = self.editor.dtype(like)
        assert dtype is not None
        return self.const(np.array(number, dtype.numpy()))
