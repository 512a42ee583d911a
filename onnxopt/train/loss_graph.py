"""What a loss is, and the graph that it is written into."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.errors import GradientError, OptionError
from onnxopt.gradients.emit import Emitter
from onnxopt.graph import Editor
from onnxopt.shape_values import ShapeValues

Array = np.ndarray[Any, Any]

LABELS = "labels"
"""What the input of labels is called, and the array of them among the feeds."""
_TINY = 1e-12
_STEPS = 4096.0


@dataclass(frozen=True)
class TeacherValue:
    """A value that a teacher computes."""

    name: str
    """The name of the value in the teacher; empty: of its first output."""
    scores: bool = False
    """Whether a softmax that makes it is to be left out."""
    temperature: float = 1.0
    """What scores are divided by where those of several teachers are averaged,"""
    axis: int = -1
    """and the axis of their classes."""

    @property
    def key(self) -> str:
        """What the input that holds it is called."""
        if not self.scores:
            return f"teacher/{self.name}"
        return f"teacher/{self.name}/scores" + (f"/{self.temperature:g}" if self.temperature != 1 else "")


class Loss(ABC):
    """A number that training makes smaller."""

    labelled: bool = False
    """Whether it reads labels."""

    def teacher_values(self) -> tuple[TeacherValue, ...]:
        """What it reads of a teacher."""
        return ()

    @abstractmethod
    def build(self, at: LossGraph) -> ir.Value:
        """Write the nodes that compute it; returns a value without axes."""


class LossGraph:
    """A model to whose end a loss is written."""

    def __init__(self, model: ir.Model, extra: Mapping[str, Array]) -> None:
        """``extra`` holds what the loss is given beside the inputs of ``model``: labels, and values of a teacher."""
        self.editor = Editor(model)
        ShapeValues(self.editor)  # learns the shapes that are computed
        self.emitter = Emitter(self.editor)
        self.emitter.scope = "loss"
        self.op, self.ints = self.emitter.op, self.emitter.ints
        self._extra = extra
        self._inputs: dict[str, ir.Value] = {}
        self._values = {str(value.name): value for value in (*model.graph.inputs, *model.graph.initializers.values())}
        self._values.update((str(v.name), v) for node in model.graph for v in node.outputs if v.name)
        self.classes: int | None = None
        """Labels are numbers below this; ``None``: not necessarily."""

    def output(self, name: str, *, scores: bool = False) -> ir.Value:
        """A value of the model, by default its first output, floats as float32; ``scores``: without a softmax that
        makes it.

        Raises ``OptionError`` if the main graph has no such value.
        """
        found = self._values.get(name) if name else self.editor.model.graph.outputs[0]
        if found is None:
            raise OptionError(f"the loss reads {name!r}, which is no value of the main graph of the model")
        found = before_softmax(found) if scores else found
        dtype = self.editor.dtype(found)
        is_float = dtype is not None and dtype.is_floating_point()
        return self.op("Cast", found, to=int(ir.DataType.FLOAT)) if is_float and dtype != ir.DataType.FLOAT else found

    def teacher(self, value: TeacherValue) -> ir.Value:
        """The input for a value of the teacher."""
        return self._input(value.key)

    def labels(self, dtype: ir.DataType) -> ir.Value:
        """The input for the labels, cast to ``dtype``."""
        found = self._input(LABELS)
        return found if found.dtype == dtype else self.op("Cast", found, to=int(dtype))

    def label_array(self) -> Array:
        """The labels of the batch that the loss is built for."""
        return self._extra[LABELS]

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """The dims of a value; raises ``GradientError`` if they are not known."""
        if (shape := self.editor.static_shape(value)) is None:
            raise GradientError(f"the shape of {value.name!r}, which the loss reads, is not known")
        return shape

    def mean(self, value: ir.Value, *axes: int, keepdims: bool = False) -> ir.Value:
        """The mean over ``axes``, by default all."""
        return self.op("ReduceMean", value, self.ints(*axes) if axes else None, keepdims=int(keepdims))

    def sum(self, value: ir.Value, *axes: int, keepdims: bool = False) -> ir.Value:
        """The sum over ``axes``."""
        return self.op("ReduceSum", value, self.ints(*axes), keepdims=int(keepdims))

    def numbers(self, numbers: npt.ArrayLike, like: ir.Value) -> ir.Value:
        """A constant of the element type of ``like``."""
        dtype = self.editor.dtype(like)
        assert dtype is not None
        return self.emitter.const(np.asarray(numbers, dtype.numpy()))

    def times(self, value: ir.Value, factor: float) -> ir.Value:
        """``factor · value``."""
        return value if factor == 1 else self.op("Mul", value, self.numbers(factor, value))

    def square(self, value: ir.Value) -> ir.Value:
        """``value²``, element by element."""
        return self.op("Mul", value, value)

    def unit(self, value: ir.Value) -> ir.Value:
        """``value``, each row of the last axis at length 1."""
        length = self.sum(self.square(value), -1, keepdims=True)
        return self.op("Div", value, self.op("Sqrt", self.op("Add", length, self.numbers(_TINY, value))))

    def detached(self, value: ir.Value) -> ir.Value:
        """``value``, in steps of 2⁻¹², which no gradient passes."""
        steps = self.op("Round", self.times(value, _STEPS))
        return self.times(steps, 1 / _STEPS)

    def rows(self, value: ir.Value) -> ir.Value:
        """``value`` as a matrix with a row a sample."""
        shape = self.shape(value)
        return self.op("Reshape", value, self.ints(shape[0], math.prod(shape[1:])))

    def input(self, name: str) -> ir.Value:
        """What an input of a loss of the user's is called: labels, a value of a teacher, or one of the model."""
        return self._input(name) if name in self._extra else self.output(name)

    def _input(self, name: str) -> ir.Value:
        if name not in self._inputs:
            array = self._extra[name]
            value = ir.val(name, ir.DataType.from_numpy(array.dtype), array.shape)
            self.editor.model.graph.inputs.append(value)
            self.editor.facts.learn(value, value.dtype, array.shape)
            self._inputs[name] = value
        return self._inputs[name]


def before_softmax(value: ir.Value) -> ir.Value:
    """What the softmax reads that makes ``value``, if one does."""
    node = value.producer()
    while node is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is not None and node.op_type in ("Softmax", "LogSoftmax") and node.inputs[0] is not None:
        return node.inputs[0]
    return value
