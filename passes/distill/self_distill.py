"""Train a model on labels and on what it says itself.

``method`` says who the teacher is:

- ``heads``: the scores of the model, for heads on values inside, which are left out in the end; so blocks before learn
  to be of use (Zhang et al., "Be Your Own Teacher", ICCV 2019).
- ``ema``: the average of the weights over time, asked about inputs as they are, while the student gets them with noise;
  averages come out (Tarvainen and Valpola, "Mean Teachers are Better Role Models", NIPS 2017).
- ``born-again``: the generation before; the network starts anew from weights that are drawn (see ``reinitialize``), is
  taught, and teaches the next (Furlanello et al., "Born-Again Neural Networks", ICML 2018).

The loss is ``(1 − soft) · cross-entropy + soft · T² · divergence from the teacher``, for the scores and for each head;
the scores of a model with heads learn from labels alone. What comes out is what was right most often on samples that
judge, of all epochs and generations and the model as it was. Nodes and names stay.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxopt.data import Dataset
from onnxopt.errors import OptionError
from onnxopt.graph import Editor
from onnxopt.model import copy
from onnxopt.pass_base import Context, Log, Needs, Refuse
from onnxopt.passes.distill._drawing import drawn
from onnxopt.passes.distill._heads import add_heads
from onnxopt.passes.distill._training import Arrays, Lesson, TrainingPass, scored
from onnxopt.passes.distill.distill import is_score
from onnxopt.runtime import Session, Snapshot
from onnxopt.train import CrossEntropy, Distillation, Loss, SelfDistillation, TrainConfig, WeightedSum
from onnxopt.train.batches import Augment
from onnxopt.train.loop import Metric
from onnxopt.train.parameters import find_parameters

_METHODS = ("heads", "ema", "born-again")


@dataclass(frozen=True, kw_only=True)
class SelfDistill(TrainingPass):
    """Train a model on labels and on what it says itself."""

    name: ClassVar[str] = "self-distill"
    exact: ClassVar[bool] = False
    needs: ClassVar[Needs] = "labels"

    method: Literal["heads", "ema", "born-again"] = "heads"
    """Who teaches: the end of the model its inside, the average of its weights, or the generation before."""
    temperature: float = 4.0
    """Scores are divided by this, above 0, before softmax."""
    soft: float = 0.5
    """The share of the loss that the teacher has, in (0, 1]."""
    heads: int = 3
    """``heads``: how many there are, if there are blocks enough."""
    decay: float = 0.99
    """``ema``: what is left of the average after a step, in (0, 1)."""
    noise: float = 0.1
    """``ema``: the noise on inputs, in units of their standard deviation."""
    generations: int = 2
    """``born-again``: how many there are,"""
    ensemble: bool = False
    """and whether each is taught by the mean of all before it, not by the last."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in _METHODS:
            raise OptionError(f"{self.name}.method is one of {', '.join(_METHODS)}; got {self.method!r}")
        if not self.temperature > 0:
            raise OptionError(f"{self.name}.temperature is above 0, got {self.temperature}")
        if not 0 < self.soft <= 1:
            raise OptionError(f"{self.name}.soft is a share in (0, 1], got {self.soft}")
        if not 0 < self.decay < 1:
            raise OptionError(f"{self.name}.decay is in (0, 1), got {self.decay}")
        if not self.noise >= 0:
            raise OptionError(f"{self.name}.noise is 0 or more, got {self.noise}")
        if min(self.heads, self.generations) < 1:
            raise OptionError(f"{self.name}: heads and generations are 1 or more")

    def config(self, exclude: Collection[str], added: Sequence[str] = ()) -> TrainConfig:
        """That of all trainings; averages are taken where they teach, and what starts anew follows its batches."""
        found = super().config(exclude, added)
        if self.method == "ema":
            return replace(found, ema=self.decay)
        return replace(found, batch_norm="train") if self.method == "born-again" else found

    def lesson(self, model: ir.Model, context: Context) -> Lesson:
        assert context.data is not None
        output = model.graph.outputs[0]
        metric = scored(context.data)
        if metric is None or not is_score(output, Editor(model)):
            raise Refuse("it takes a model whose first output holds scores of classes, and samples with their numbers")
        if self.method == "heads":
            return self._with_heads(model, context.data, metric)
        taught = Distillation(self.temperature, str(output.name))
        if self.method == "ema":
            noise = _noise(context.data, self.noise)
            return Lesson(loss=self._mixed(taught), teachers="average", augment=noise, metric=metric)
        return Lesson(loss=self._mixed(taught), teachers=(model,), metric=metric)

    def _mixed(self, taught: Loss, output: str = "") -> Loss:
        return WeightedSum(((1 - self.soft, CrossEntropy(output)), (self.soft, taught)))

    def _with_heads(self, model: ir.Model, data: Dataset, metric: Metric) -> Lesson:
        batch = next(iter(data.take(2).batches()))
        session = Session(Snapshot.of(model))
        scores = session.run({name: batch.feeds[name] for name in session.inputs})[0]
        deepest = str(model.graph.outputs[0].name)
        heads = add_heads(model, self.heads, scores.shape[-1], batch, self.seed)
        if not heads or scores.ndim != 2:
            raise Refuse("no block of it ends in a value that a head could read: take another method")
        losses: list[tuple[float, Loss]] = [(1.0, CrossEntropy())]
        for head in heads:
            taught = SelfDistillation(self.temperature, head.scores, deepest)
            losses.append((1.0, self._mixed(taught, head.scores)))
        added = tuple(name for head in heads for name in head.added)
        return Lesson(loss=WeightedSum(tuple(losses)), metric=metric, added=added)

    def _train(self, context: Context, data: Dataset, log: Log) -> None:
        if self.method != "born-again":
            super()._train(context, data, log)
            return
        first = self.copied(context)
        lesson, parts = self.lesson(first, context), self.parts(data)
        assert lesson.metric is not None
        start, teachers, best = _judged(first, parts[1], lesson.metric), [first], None
        for at in range(self.generations):
            student, names = self._born(first, at)
            chosen = tuple(teachers) if self.ensemble else (teachers[-1],)
            kept = f"{self.checkpoint}.{at + 1}" if self.checkpoint else ""
            training = self.training(student, replace(lesson, teachers=chosen), parts, context, kept)
            self.follow(training, context, log, generation=at + 1)
            teachers.append(training.result())
            assert training.metric is not None
            if training.metric > (start if best is None else best[0]):
                best = training.metric, at + 1, {*training.names, *names}
        if best is None:
            log.refused("model", f"none of {self.generations} generations is better: {start:.2%} right before")
            return
        right, at, names = best
        moved = self.give_back(teachers[at], sorted(names), context)
        judged = f"on the samples that judge {start:.2%} right before and {right:.2%} after"
        log.changed("model", f"{moved} are of generation {at} of {self.generations}: {judged}")

    def _born(self, model: ir.Model, generation: int) -> tuple[ir.Model, set[str]]:
        """A copy of ``model`` with weights that are drawn, and which these are: what is trained, and statistics."""
        student = copy(model)
        trained = set(find_parameters(student, self.include, self.exclude))
        others = set(find_parameters(student)) - trained
        names = set()
        for each in drawn(student, self.seed + generation):
            value = student.graph.initializers[each.name]
            assert value.const_value is not None
            if each.name in others or (others and each.name not in trained):
                continue
            array, old = each.array, value.const_value.numpy()
            if self.keep_zeros and old.ndim >= 2 and old.any():
                array = np.where(old == 0, 0, array).astype(array.dtype)
            value.const_value = ir.Tensor(array, name=each.name)
            names.add(each.name)
        return student, names


def _judged(model: ir.Model, data: Dataset, metric: Metric) -> float:
    session, total = Session(Snapshot.of(model), optimize=True), 0.0
    for batch in data.batches():
        found = session.run({name: batch.feeds[name] for name in session.inputs})
        total += batch.samples * metric(dict(zip(session.outputs, found, strict=True)), batch.labels)
    return total / len(data)


def _noise(data: Dataset, level: float) -> Augment:
    """Adds normal numbers to inputs of floats. Raises ``Refuse`` if there are none."""
    batch = next(iter(data.take(64).batches()))
    spread = {name: float(np.std(x, dtype=np.float64)) for name, x in batch.feeds.items() if x.dtype.kind == "f"}
    if not spread:
        raise Refuse("it has no input of floats that noise could be added to: take another method than ema")

    def augment(feeds: Arrays, generator: np.random.Generator) -> Arrays:
        for name, deviation in spread.items():
            x = feeds[name]
            feeds[name] = (x + level * deviation * generator.standard_normal(x.shape)).astype(x.dtype)
        return feeds

    return augment
