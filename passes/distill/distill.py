"""Train a model to give what a teacher gives.

By default the teacher is the model as it was before the pipeline changed what it computes, and the student the model
under edit: ``prune-channels{ratio=0.5},reconstruct,distill`` wins back what pruning took, without labels. Any other
model with the same inputs can be the teacher too, or several, whose mean is taught: of probabilities at the temperature
for scores, else of the outputs.

Scores of classes are compared through softmax at a temperature ``T``, times ``T²``; with labels a ``hard`` share of the
loss is the cross-entropy. Outputs that are no scores are to come near the teacher's by the mean square of the
difference, in units of the variance of the teacher's. ``features`` adds losses of values inside, by names (``pairs``)
or where blocks of the two end at the same relative depth with the same sizes, but for channels.

Sources: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015; Zagoruyko and Komodakis,
"Paying More Attention to Attention", ICLR 2017; Romero, Ballas, Kahou, Chassang, Gatta and Bengio, "FitNets", ICLR 2015
(hints); Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxopt.data import Dataset
from onnxopt.errors import DataError, ModelError, OptionError
from onnxopt.graph import Editor
from onnxopt.model import load
from onnxopt.pass_base import Context, Refuse
from onnxopt.passes.distill._blocks import check_inputs
from onnxopt.passes.distill._features import KINDS, Pair, feature_loss, pairs_of
from onnxopt.passes.distill._training import Lesson, TrainingPass, label_kind
from onnxopt.runtime import Session, Snapshot
from onnxopt.train import CrossEntropy, Distillation, Loss, MeanSquaredError, WeightedSum
from onnxopt.train.loss_graph import before_softmax


@dataclass(frozen=True, kw_only=True)
class Distill(TrainingPass):
    """Train a model to give what a teacher gives."""

    name: ClassVar[str] = "distill"
    exact: ClassVar[bool] = False

    teacher: str = ""
    """A file with the teacher; by default the model before the pipeline changed what it computes."""
    teachers: tuple[str, ...] = ()
    """Files with more teachers: the student learns the mean of what all say. Maps inside are those of the first."""
    temperature: float = 4.0
    """Scores are divided by this, above 0, before softmax."""
    hard: float = 0.1
    """The share of the loss that the labels have, if there are any, in [0, 1]."""
    features: float = 0.0
    """The weight of each value inside that is taught; 0: none is."""
    feature_loss: Literal["attention", "hints", "similarity"] = "attention"
    """How these are compared: where maps are active (``attention``), what they hold, seen through a layer that is
    trained with the student and then left out (``hints``), or how alike samples are in them (``similarity``)."""
    pairs: tuple[str, ...] = ()
    """Which are: ``"value of the student=value of the teacher"``, or one name for both. By default blocks are matched
    by depth and size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise OptionError(f"{self.name}.temperature is above 0, got {self.temperature}")
        if not 0 <= self.hard <= 1:
            raise OptionError(f"{self.name}.hard is a share in [0, 1], got {self.hard}")
        if not self.features >= 0:
            raise OptionError(f"{self.name}.features is 0 or more, got {self.features}")
        if self.feature_loss not in KINDS:
            raise OptionError(f"{self.name}.feature_loss is one of {', '.join(KINDS)}; got {self.feature_loss!r}")
        if not self.features and (self.pairs or self.feature_loss != "attention"):
            raise OptionError(f"{self.name}.features is 0, so no value inside is taught; give it, as features=1")

    def lesson(self, model: ir.Model, context: Context) -> Lesson:
        assert context.data is not None
        first = self._load(self.teacher) if self.teacher else context.original
        teachers = [*([] if first is None else [first]), *map(self._load, self.teachers)]
        if not teachers:
            raise Refuse("the model is as it was, so there is nothing to learn: change it first, or name a teacher")
        teacher = teachers[0]
        student, original = Editor(model), Editor(teacher)
        for more in teachers[1:]:
            list(_counterparts(student, Editor(more)))
        spread = _spread(teacher, context.data)
        losses: list[tuple[float, Loss]] = []
        hard = self.hard if label_kind(context.data) in ("i", "u") else 0.0
        for own, taught in zip(model.graph.outputs, _counterparts(student, original), strict=True):
            if taught is None:
                continue
            name, source = str(own.name), str(taught.name)
            if is_score(own, student):
                losses.append((1 - hard, Distillation(self.temperature, name, source)))
            elif spread[source] > 0:
                losses.append((1 / spread[source], MeanSquaredError(name, source)))
        if not losses:
            raise Refuse("it has no float output that the teacher gives too")
        if hard:
            losses.append((hard, CrossEntropy()))
        added: list[str] = []
        if self.features:
            for pair in self._pairs(student, original, context.data):
                divisor, inside, names = feature_loss(pair, self.feature_loss, student)
                losses.append((self.features / divisor, inside))
                added += names
        loss = losses[0][1] if len(losses) == 1 else WeightedSum(tuple(losses))
        return Lesson(loss=loss, teachers=tuple(teachers), added=tuple(added))

    def _pairs(self, student: Editor, teacher: Editor, data: Dataset) -> list[Pair]:
        try:
            return pairs_of(student, teacher, self.pairs, self.feature_loss, data)
        except OptionError as error:
            raise OptionError(f"{self.name}.pairs: {error}") from error

    def _load(self, file: str) -> ir.Model:
        try:
            return load(file)
        except ModelError as error:
            raise OptionError(f"{self.name}.teacher: {error}") from error


def _counterparts(student: Editor, teacher: Editor) -> Iterator[ir.Value | None]:
    """For each output of the student that of the teacher: of the same name, or else in the same place. ``None`` for one
    that is not of floats. Raises ``DataError`` if the teacher has none of its shape."""
    outputs = teacher.model.graph.outputs
    named = {value.name: value for value in outputs}
    for at, own in enumerate(student.model.graph.outputs):
        if (dtype := student.dtype(own)) is None or not dtype.is_floating_point():
            yield None
            continue
        found = named.get(own.name) or (outputs[at] if at < len(outputs) else None)
        sizes = student.shape(own), None if found is None else teacher.shape(found)
        if found is None or (None not in sizes and not _may_be_alike(*sizes)):
            raise DataError(f"the teacher has no output like {own.name!r}, {sizes[0]}: it gives {sizes[1]}")
        yield found


def _may_be_alike(first: object, second: object) -> bool:
    assert isinstance(first, tuple)
    assert isinstance(second, tuple)
    both = zip(first, second, strict=False)
    return len(first) == len(second) and all(a == b for a, b in both if isinstance(a, int) and isinstance(b, int))


def is_score(value: ir.Value, editor: Editor) -> bool:
    """Whether the last axis holds scores of classes: a softmax makes it, or it is a row a sample of more than one."""
    shape = editor.shape(value)
    if before_softmax(value) is not value:
        return True
    return shape is not None and len(shape) == 2 and shape[1] != 1


def _spread(teacher: ir.Model, data: Dataset) -> dict[str, float]:
    """The variance of each float output of the teacher."""
    session = Session(Snapshot.of(teacher), optimize=True)
    batch = next(iter(data.take(64).batches()))
    check_inputs(session.inputs, batch.feeds)
    found = session.run({name: batch.feeds[name] for name in session.inputs})
    pairs = zip(session.outputs, found, strict=True)
    return {
        name: float(np.var(x, dtype=np.float64))
        for name, x in pairs
        if isinstance(x, np.ndarray) and x.dtype.kind == "f"
    }
