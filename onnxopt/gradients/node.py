"""What a rule is given: one node, the gradients of its outputs, and the means to write nodes."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import onnx_ir as ir

from onnxopt.errors import GradientError
from onnxopt.gradients.emit import Emitter, Number, Step, Values
from onnxopt.graph import AttributeValue, attribute, label
from onnxopt.shape_values import ShapeValues


class Backward:
    """A node whose inputs want gradients."""

    def __init__(
        self,
        node: ir.Node,
        gradients: tuple[ir.Value | None, ...],
        wanted: frozenset[int],
        emitter: Emitter,
        values: ShapeValues,
    ) -> None:
        self.node = node
        self.inputs = cast(tuple[ir.Value, ...], node.inputs)
        """Those that may be missing are to be read by ``input``."""
        self.outputs = node.outputs
        self.gradients = gradients
        """Of each output the gradient of the loss in it, of its shape; ``None`` if the loss does not depend on it."""
        self._wanted = wanted
        self._emitter = emitter
        self._editor = emitter.editor
        self._values = values

    # -- reading -------------------------------------------------------------------------------------

    @property
    def g(self) -> ir.Value:
        """The gradient of the first output."""
        if (gradient := self.gradients[0]) is not None:
            return gradient
        return self.zeros(self.outputs[0])

    def wants(self, index: int) -> bool:
        """Whether the gradient of this input is asked for; what a rule returns for others is dropped."""
        return index in self._wanted

    def input(self, index: int) -> ir.Value | None:
        """An input that may be missing."""
        return self.inputs[index] if index < len(self.inputs) else None

    def output(self, index: int, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
        """An output that the node may leave out; if it does, it is made to give it, of this type and shape."""
        if index >= len(self.node.outputs):
            self.node.resize_outputs(index + 1)
            for left_out in self.node.outputs[len(self.outputs) : index]:
                left_out.name = left_out.name or ""
        value = self.node.outputs[index]
        if not value.name:
            value.name = self._editor.fresh(f"{self.node.outputs[0].name}/{index}")
            value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)
        return value

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute of the node, or ``default``."""
        return attribute(self.node, name, default)

    @property
    def opset(self) -> int:
        """The version of the standard operators that the node is to be read by."""
        return self._editor.opset(self.node)

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """The dims of a value of the forward graph; raises ``GradientError`` if they are not all known."""
        if (shape := self._editor.static_shape(value)) is None:
            raise self.error(f"the shape of {value.name!r} is not known; fix the sizes of the model's inputs")
        return shape

    def rank(self, value: ir.Value) -> int:
        """The number of dims of a value of the forward graph."""
        return len(self.shape(value))

    def dtype(self, value: ir.Value) -> ir.DataType:
        """The element type of a value of the forward graph."""
        if (dtype := self._editor.dtype(value)) is None:
            raise self.error(f"the type of {value.name!r} is not known")
        return dtype

    def numbers(self, value: ir.Value) -> list[int]:
        """What a small integer tensor of the forward graph holds: axes, sizes, pads; raises ``GradientError`` if that
        is not known."""
        constant = self._editor.constant(value)
        if constant is not None:
            return [int(x) for x in constant.reshape(-1)]
        known = self._values.of(value)
        found = [] if known is None else [x for x in known.reshape(-1) if isinstance(x, int | np.integer)]
        if known is None or len(found) != known.size:
            raise self.error(f"what {value.name!r} holds is known at run time only")
        return [int(x) for x in found]

    def constant(self, value: ir.Value | None) -> np.ndarray[Any, Any] | None:
        """The array of a constant; ``None`` of any other value."""
        return self._editor.constant(value)

    def error(self, reason: str) -> GradientError:
        """The error that this node cannot be differentiated, for ``reason``."""
        return GradientError(f"{self.node.op_type} {label(self.node)!r} cannot be differentiated: {reason}")

    # -- writing -------------------------------------------------------------------------------------

    def op(self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: AttributeValue) -> ir.Value:
        """The output of a new node."""
        return self._emitter.op(op_type, *inputs, domain=domain, **attributes)

    def ops(
        self, op_type: str, *inputs: ir.Value | None, outputs: int, domain: str = "", **attributes: AttributeValue
    ) -> tuple[ir.Value, ...]:
        """All outputs of a new node."""
        return self._emitter.ops(op_type, *inputs, outputs=outputs, domain=domain, **attributes)

    def scan(self, step: Step, states: Values, sequences: Values, *, reverse: bool = False) -> list[ir.Value]:
        """The states after the last step, then the sequences of what the steps gave, each along its first axis; see
        ``Emitter.scan``. All are of the type of the first input."""
        return self._emitter.scan(step, states, sequences, like=self.inputs[0], reverse=reverse)

    def const(self, array: np.ndarray[Any, Any] | np.generic, *, shared: bool = True) -> ir.Value:
        """A constant; equal ones are one unless it must not be ``shared``."""
        return self._emitter.const(array, shared=shared)

    def ints(self, *numbers: int) -> ir.Value:
        """A constant vector of int64: axes, a shape, starts."""
        return self._emitter.ints(*numbers)

    def number(self, number: Number, like: ir.Value | None = None) -> ir.Value:
        """A constant scalar of the element type of ``like``, by default of the first output."""
        return self._emitter.number(number, like or self.outputs[0])

    def zeros(self, like: ir.Value) -> ir.Value:
        """Zeros of the shape and type of a value of the forward graph."""
        return self.op("Expand", self.number(0, like), self.ints(*self.shape(like)))

    def reshape(self, value: ir.Value, *shape: int) -> ir.Value:
        """``value`` with other dims."""
        return self.op("Reshape", value, self.ints(*shape), allowzero=1)

    def sum(self, value: ir.Value, *axes: int, keepdims: bool = True) -> ir.Value:
        """The sum over ``axes``; ``value`` itself if there are none."""
        return self.op("ReduceSum", value, self.ints(*axes), keepdims=int(keepdims)) if axes else value

    def transpose(self, value: ir.Value, *perm: int) -> ir.Value:
        """``value`` with its axes in another order."""
        return self.op("Transpose", value, perm=perm)

    def unbroadcast(self, gradient: ir.Value, to: ir.Value, shape: tuple[int, ...] | None = None) -> ir.Value:
        """The sum of ``gradient``, of ``shape`` (by default that of the first output), over the axes along which ``to``
        was broadcast."""
        wide = self.shape(self.outputs[0]) if shape is None else shape
        narrow = self.shape(to)
        extra = len(wide) - len(narrow)
        axes = [*range(extra), *(i + extra for i, d in enumerate(narrow) if d == 1 and wide[i + extra] != 1)]
        if not axes:
            return gradient
        summed = self.sum(gradient, *axes, keepdims=not extra)
        return self.reshape(summed, *narrow) if extra else summed
