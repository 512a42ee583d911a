"""Losses as graphs, appended to a model whose inputs have sizes in numbers.

Each loss is a frozen dataclass: which outputs of the model it reads, which values of a teacher, and whether it reads
labels. All are means over the samples of a batch, so that the loss of a large batch is the mean of those of its parts;
but for ``Relational`` and ``SimilarityPreserving``, which compare the samples of a batch with each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxopt.errors import DataError, OptionError
from onnxopt.graph import label
from onnxopt.model import copy
from onnxopt.train.loss_graph import LABELS, Loss, LossGraph, TeacherValue

_TINY = 1e-12
"""Added to what is divided by."""


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """The cross-entropy of class numbers and scores, whose classes are along ``axis``; the softmax is part of the loss,
    and one that the model ends with is left out.

    With ``smoothing`` ε the right class has ``1 − ε``, and ε is shared by all (Szegedy et al., 2016).
    """

    labelled = True

    output: str = ""
    smoothing: float = 0.0
    axis: int = -1

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise OptionError(f"label smoothing is in [0, 1), got {self.smoothing}")

    def build(self, at: LossGraph) -> ir.Value:
        """``−mean Σ_c q_c · log p_c``."""
        scores = at.output(self.output, scores=True)
        shape, labels = at.shape(scores), at.label_array()
        if not -len(shape) <= self.axis < len(shape):
            raise OptionError(f"{scores.name!r} has {len(shape)} axes, so none is axis {self.axis} of classes")
        axis = self.axis % len(shape)
        wanted = shape[:axis] + shape[axis + 1 :]
        if labels.dtype.kind not in "iu":
            raise DataError(f"the labels are {labels.dtype}; cross-entropy takes numbers of classes, so integers")
        if labels.shape != wanted:
            raise DataError(
                f"the labels are {list(labels.shape)}, but for {scores.name!r} of {list(shape)} with classes along "
                f"axis {axis} they must be {list(wanted)}"
            )
        classes = shape[axis]
        at.classes = min(classes, at.classes or classes)
        others = self.smoothing / classes
        ends = at.numbers([others, 1 - self.smoothing + others], scores)
        right = at.op("OneHot", at.labels(ir.DataType.INT64), at.ints(classes), ends, axis=axis)
        log = at.op("LogSoftmax", scores, axis=axis)
        return at.op("Neg", at.mean(at.sum(at.op("Mul", right, log), axis)))


@dataclass(frozen=True)
class Distillation(Loss):
    """The divergence of the student's from the teacher's softmax, both of scores over a temperature, times its square:
    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015. A softmax at the end of either model
    is left out."""

    temperature: float = 4.0
    output: str = ""
    teacher: str = ""
    """The teacher's output, by default that of the same name."""
    axis: int = -1

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise OptionError(f"the temperature is above 0, got {self.temperature}")

    def teacher_values(self) -> tuple[TeacherValue, ...]:
        """The scores."""
        return (TeacherValue(self.teacher or self.output, True, self.temperature, self.axis),)

    def build(self, at: LossGraph) -> ir.Value:
        """``T² · mean Σ_c p_c · (log p_c − log q_c)``, with p of the teacher."""
        student, teacher = at.output(self.output, scores=True), self._taught(at)
        _check_alike(at, student, teacher)
        q, p = (at.op("LogSoftmax", at.times(x, 1 / self.temperature), axis=self.axis) for x in (student, teacher))
        divergence = at.sum(at.op("Mul", at.op("Exp", p), at.op("Sub", p, q)), self.axis)
        return at.times(at.mean(divergence), self.temperature**2)

    def _taught(self, at: LossGraph) -> ir.Value:
        return at.teacher(self.teacher_values()[0])


@dataclass(frozen=True)
class SelfDistillation(Distillation):
    """The same from another output of the model itself, ``teacher``, which does not move for it: Zhang et al., "Be Your
    Own Teacher", 2019."""

    def teacher_values(self) -> tuple[TeacherValue, ...]:
        """None."""
        return ()

    def _taught(self, at: LossGraph) -> ir.Value:
        return at.detached(at.output(self.teacher, scores=True))


@dataclass(frozen=True)
class MeanSquaredError(Loss):
    """The mean of the squares of what a value is away from a teacher's, or from labels."""

    output: str = ""
    teacher: str | None = ""
    """The teacher's value, by default that of the same name; ``None``: the labels."""

    @property
    def labelled(self) -> bool:  # type: ignore[override]
        """Whether it reads labels."""
        return self.teacher is None

    def teacher_values(self) -> tuple[TeacherValue, ...]:
        """The value to come near to."""
        return () if self.teacher is None else (TeacherValue(self.teacher or self.output),)

    def build(self, at: LossGraph) -> ir.Value:
        """``mean (x − y)²``."""
        x = at.output(self.output)
        if self.teacher is None:
            shape = at.shape(x)
            if at.label_array().size != math.prod(shape):
                raise DataError(f"the labels are {list(at.label_array().shape)}, but {x.name!r} is {list(shape)}")
            y = at.op("Reshape", at.labels(ir.DataType.FLOAT), at.ints(*shape))
        else:
            y = at.teacher(self.teacher_values()[0])
            _check_alike(at, x, y)
        return at.mean(at.square(at.op("Sub", x, y)))


@dataclass(frozen=True)
class _Features(Loss):
    """A loss between a value of the model and one of the teacher."""

    output: str = ""
    teacher: str = ""
    """The teacher's value, by default that of the same name."""

    def teacher_values(self) -> tuple[TeacherValue, ...]:
        """The value to come near to."""
        return (TeacherValue(self.teacher or self.output),)

    def _pair(self, at: LossGraph) -> tuple[ir.Value, ir.Value]:
        return at.output(self.output), at.teacher(self.teacher_values()[0])


@dataclass(frozen=True)
class Cosine(_Features):
    """One less the mean cosine between vectors along the last axis."""

    def build(self, at: LossGraph) -> ir.Value:
        """``1 − mean x·y / (‖x‖ ‖y‖)``."""
        x, y = self._pair(at)
        _check_alike(at, x, y)
        cosine = at.sum(at.op("Mul", at.unit(x), at.unit(y)), -1)
        return at.op("Sub", at.numbers(1, x), at.mean(cosine))


@dataclass(frozen=True)
class AttentionTransfer(_Features):
    """Where feature maps (N, C, …) are active: Zagoruyko and Komodakis, "Paying More Attention to Attention", 2017, as
    their program has it: the mean of squares over channels, at length 1, compared by the mean square. The numbers of
    channels, which are along ``axis``, may differ."""

    axis: int = 1

    def build(self, at: LossGraph) -> ir.Value:
        """``mean (a(x) − a(y))²``."""
        x, y = self._pair(at)
        if min(len(at.shape(x)), len(at.shape(y))) < 3:
            raise OptionError(f"attention transfer takes maps (N, C, …), but {x.name!r} is {list(at.shape(x))}")
        first, second = (at.unit(at.rows(at.mean(at.square(each), self.axis))) for each in (x, y))
        _check_alike(at, first, second)
        return at.mean(at.square(at.op("Sub", first, second)))


@dataclass(frozen=True)
class SimilarityPreserving(_Features):
    """How alike the samples of a batch are to each other: Tung and Mori, "Similarity-Preserving Knowledge
    Distillation", 2019. The sizes of a sample may differ."""

    def build(self, at: LossGraph) -> ir.Value:
        """``‖G(x) − G(y)‖² / N²`` with ``G`` the products of samples, each row at length 1."""
        products = []
        for each in self._pair(at):
            rows = at.rows(each)
            products.append(at.unit(at.op("MatMul", rows, at.op("Transpose", rows, perm=[1, 0]))))
        return at.mean(at.square(at.op("Sub", *products)))


@dataclass(frozen=True)
class Relational(_Features):
    """How far the samples of a batch are from each other, in units of the mean: Park et al., "Relational Knowledge
    Distillation", 2019, by distances, with Huber's loss. The sizes of a sample may differ."""

    def build(self, at: LossGraph) -> ir.Value:
        """The mean over pairs of samples of Huber's loss of ``d(x) − d(y)``."""
        x, y = self._pair(at)
        count = at.shape(x)[0]
        pairs = max(1, count * (count - 1))
        apart = at.numbers(1 - np.eye(count), x)
        first, second = (self._distances(at, each, apart, pairs) for each in (x, y))
        off = at.op("Abs", at.op("Sub", first, second))
        small = at.op("Min", off, at.numbers(1, x))
        huber = at.op("Mul", small, at.op("Sub", off, at.times(small, 0.5)))
        return at.times(at.sum(huber, 0, 1), 1 / pairs)

    @staticmethod
    def _distances(at: LossGraph, value: ir.Value, apart: ir.Value, pairs: int) -> ir.Value:
        rows = at.rows(value)
        squares = at.sum(at.square(rows), 1, keepdims=True)
        both = at.op("Add", squares, at.op("Transpose", squares, perm=[1, 0]))
        products = at.op("MatMul", rows, at.op("Transpose", rows, perm=[1, 0]))
        apart_squared = at.op("Max", at.op("Sub", both, at.times(products, 2.0)), at.numbers(_TINY, value))
        distances = at.op("Mul", at.op("Sqrt", apart_squared), apart)
        mean = at.times(at.sum(distances, 0, 1, keepdims=True), 1 / pairs)
        return at.op("Div", distances, at.op("Add", mean, at.numbers(_TINY, value)))


@dataclass(frozen=True)
class WeightedSum(Loss):
    """The sum of other losses, each with a factor."""

    parts: tuple[tuple[float, Loss], ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise OptionError("a weighted sum of losses has one part at least")

    @property
    def labelled(self) -> bool:  # type: ignore[override]
        """Whether any reads labels."""
        return any(loss.labelled for _, loss in self.parts)

    def teacher_values(self) -> tuple[TeacherValue, ...]:
        """What any reads."""
        return tuple(dict.fromkeys(value for _, loss in self.parts for value in loss.teacher_values()))

    def build(self, at: LossGraph) -> ir.Value:
        """``Σ factor · loss``."""
        return at.op("Sum", *(at.times(loss.build(at), factor) for factor, loss in self.parts))


@dataclass(frozen=True)
class LossModel(Loss):
    """A loss that is an ONNX model: its inputs are called as outputs, or other values, of the model that is trained, or
    ``labels``, or ``teacher/`` and the name of a value of the teacher; its first output is one number, a mean over the
    samples."""

    model: ir.Model = field(repr=False)

    @property
    def labelled(self) -> bool:  # type: ignore[override]
        """Whether it has an input ``labels``."""
        return LABELS in self._inputs()

    def teacher_values(self) -> tuple[TeacherValue, ...]:
        """Those named by its inputs."""
        prefix = TeacherValue("").key
        return tuple(TeacherValue(name.removeprefix(prefix)) for name in self._inputs() if name.startswith(prefix))

    def build(self, at: LossGraph) -> ir.Value:
        """Put its graph behind that of the model."""
        model, target = copy(self.model), at.editor.model
        if model.functions:
            raise OptionError("the model of the loss has local functions; run inline-functions on it first")
        versions = model.opset_imports.get("", 1), target.opset_imports.get("", 1)
        if versions[0] != versions[1]:
            raise OptionError(f"the loss is of opset {versions[0]}, the model of {versions[1]}; convert one of them")
        graph = model.graph
        for value in list(graph.inputs):
            value.replace_all_uses_with(at.input(str(value.name)), replace_graph_outputs=True)
        loss = graph.outputs[0]
        graph.outputs.clear()
        for name, value in list(graph.initializers.items()):
            del graph.initializers[name]
            value.name = at.editor.fresh(f"loss/{name}")
            target.graph.register_initializer(value)
        for node in list(graph):
            graph.remove(node)
            node.name = f"loss/{label(node)}"
            for value in node.outputs:
                value.name = at.editor.fresh(f"loss/{value.name}")
            target.graph.append(node)
        for domain, version in model.opset_imports.items():
            target.opset_imports.setdefault(domain, version)
        return at.op("ReduceSum", loss, keepdims=0)

    def _inputs(self) -> Sequence[str]:
        return [str(value.name) for value in self.model.graph.inputs]


def _check_alike(at: LossGraph, student: ir.Value, teacher: ir.Value) -> None:
    first, second = at.shape(student), at.shape(teacher)
    if first != second:
        raise DataError(
            f"{student.name!r} of the model is {list(first)}, {teacher.name!r} {list(second)}; this loss compares "
            "values of one shape"
        )
