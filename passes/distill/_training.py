"""What passes that train share: options, a model that can be differentiated, and the way back to the model under edit.

What is trained is a copy that gradients can be written for: of opset 18 or later, without local functions, and without
Ifs whose condition is constant. Its weights go back by name, so the model keeps its opset and its form. Nine tenths of
the calibration samples are trained on and one tenth judges: what comes out are the weights that were best on that, and
if those are the ones at the start, nothing is changed.
"""

from __future__ import annotations

import glob
import time
from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxopt.data import Dataset
from onnxopt.errors import DataError, GradientError, OptionError, TrainingError
from onnxopt.gradients.engine import OLDEST_OPSET
from onnxopt.graph import Editor
from onnxopt.model import copy
from onnxopt.pass_base import Context, Log, Needs, Pass, Refuse, Report
from onnxopt.passes.cleanup.convert_opset import ConvertOpset
from onnxopt.passes.cleanup.inline_functions import InlineFunctions
from onnxopt.passes.cleanup.inline_if import InlineIf
from onnxopt.train import LAMB, SGD, AdamW, Loss, Schedule, TrainConfig, Training, accuracy, train
from onnxopt.train.batches import Augment
from onnxopt.train.loop import Metric
from onnxopt.train.parameters import find_parameters

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]

_OPTIMIZERS = {"adamw": AdamW, "sgd": SGD, "lamb": LAMB}
_JUDGES = 0.9
"""The rest of the samples judges."""
_SAY_EVERY = 2.0


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a model is to learn."""

    loss: Loss
    teachers: tuple[ir.Model, ...] | Literal["average"] = ()
    """What they say is averaged. ``average``: the teacher is the average of the weights over time."""
    augment: Augment | None = None
    metric: Metric | None = None
    """More is better; without one, the loss judges."""
    added: tuple[str, ...] = ()
    """Initializers that were put into the model for the loss alone, and are trained with it."""
    fixed: tuple[str, ...] = ()
    """Initializers that are not to be trained."""


@dataclass(frozen=True, kw_only=True)
class TrainingPass(Pass):
    """Train the weights of a model."""

    needs: ClassVar[Needs] = "inputs"

    epochs: int = 10
    """How often each sample is seen."""
    batch: int = 64
    """How many samples go into a step."""
    micro_batch: int = 0
    """How many of these go into the model at a time; fewer take less memory. 0: all."""
    recompute: bool = False
    """Whether values inside are computed again for the gradients in place of being kept: less memory, more time."""
    lr: float = 1e-3
    """The largest learning rate."""
    optimizer: Literal["adamw", "sgd", "lamb"] = "adamw"
    """``adamw``, ``sgd`` with momentum, or ``lamb``, which is for large batches."""
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    """How the learning rate falls,"""
    warmup: int = 0
    """after it has risen for so many steps."""
    clip: float = 1.0
    """Gradients are cut to this length; 0: not."""
    patience: int = 0
    """Stop after so many epochs without a better one; 0: never."""
    keep_zeros: bool = True
    """Whether weights that pruning set to zero stay zero."""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """Whether normalizations keep their statistics, or follow the batches."""
    checkpoint: str = ""
    """A file to keep the state of the training in, and to go on from if it is there."""
    seed: int = 0
    """What the order of the samples follows from."""

    def __post_init__(self) -> None:
        if self.optimizer not in _OPTIMIZERS:
            raise OptionError(f"{self.name}.optimizer is one of {', '.join(_OPTIMIZERS)}; got {self.optimizer!r}")
        try:
            self.config(())
        except OptionError as error:
            raise OptionError(f"{self.name}: {error}") from None

    @abstractmethod
    def lesson(self, model: ir.Model, context: Context) -> Lesson:
        """What ``model``, a copy of that under edit, is to learn; may add to it what the loss reads. Raises ``Refuse``
        if nothing."""

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        if context.data is None:
            raise DataError(f"{self.name} needs samples to train on: give data= (--data)")
        if not context.gate.allows(self.name, "model"):  # filters are for weights
            return log.report()
        try:
            self._train(context, context.data, log)
        except (Refuse, GradientError, TrainingError) as why:
            log.refused("model", str(why))
        return log.report()

    def prepared(self, model: ir.Model, context: Context) -> ir.Model:
        """``model``, a copy of that under edit that can be differentiated, as it is to be trained."""
        return model

    def put(self, name: str, array: Array, editor: Editor) -> bool:
        """Put what was trained under ``name`` into the model under edit; says whether that changed it."""
        value = editor.model.graph.initializers[name]
        if value.const_value is None or np.array_equal(value.const_value.numpy(), array):
            return False
        value.const_value = ir.Tensor(array, name=name)
        return True

    def _train(self, context: Context, data: Dataset, log: Log) -> None:
        model = self.copied(context)
        lesson = self.lesson(model, context)
        training = self.training(model, lesson, self.parts(data), context)
        self.follow(training, context, log)
        names = [name for name in training.names if name not in lesson.added]
        moved = self.give_back(training.result(), names, context)
        text = _summary(training, lesson)
        if moved:
            log.changed("model", f"{moved} trained: {text}")
        else:
            log.refused("model", f"training made it no better: {text}")

    def copied(self, context: Context) -> ir.Model:
        """What is trained in place of the model under edit. Raises ``Refuse`` if nothing can be."""
        model = self.prepared(differentiable(context.editor.model), context)
        try:
            find_parameters(model, self.include, self.exclude)
        except OptionError as why:
            raise Refuse(str(why)) from why
        return model

    def parts(self, data: Dataset) -> tuple[Dataset, Dataset]:
        """Samples to train on, and others to judge by."""
        return _parts(data, self.batch, self.seed)

    def training(
        self, model: ir.Model, lesson: Lesson, parts: tuple[Dataset, Dataset], context: Context, checkpoint: str = ""
    ) -> Training:
        """The training of ``model``; a ``checkpoint`` of its own may be given."""
        file = checkpoint or self.checkpoint
        known = {*context.editor.model.graph.initializers, *lesson.added}
        foreign = sorted({*lesson.fixed, *set(model.graph.initializers) - known})
        return train(
            model, lesson.loss, parts[0], self.config(foreign, lesson.added), teacher=lesson.teachers,
            held_out=parts[1], metric=lesson.metric, augment=lesson.augment, checkpoint=file or None, resume=bool(file),
        )  # fmt: skip

    def give_back(self, trained: ir.Model, names: Collection[str], context: Context) -> str:
        """Put these tensors into the model under edit; says how many of them that changed, nothing if none."""
        found = {name: trained.graph.initializers[name].const_value for name in names}
        arrays = {name: tensor.numpy() for name, tensor in found.items() if tensor is not None}
        moved = sum(self.put(name, array, context.editor) for name, array in arrays.items())
        return f"{moved} of {len(found)} tensors" if moved else ""

    def follow(self, training: Training, context: Context, log: Log, **facts: object) -> None:
        """Train to the end, with a row of the report for each epoch, which begins with ``facts``."""
        losses: list[float] = []
        said = time.monotonic()
        for step in training:
            losses.append(step.loss)
            if step.metric is not None:
                mean = sum(losses) / len(losses)
                log.measured(
                    **facts, epoch=step.epoch + 1, steps=step.index + 1, loss=mean, held_out=step.metric,
                    best=step.is_best,
                )  # fmt: skip
                losses = []
            if context.on_progress is not None and time.monotonic() - said > _SAY_EVERY:
                said = time.monotonic()
                context.on_progress(f"step {step.index + 1} of {training.total}, loss {step.loss:.4g}")

    def config(self, exclude: Collection[str], added: Sequence[str] = ()) -> TrainConfig:
        """How it is trained: without the initializers ``exclude``, and with those that were ``added``."""
        return TrainConfig(
            epochs=self.epochs, batch=self.batch, micro_batch=self.micro_batch, recompute=self.recompute,
            lr=self.lr, schedule=Schedule(self.schedule, warmup=self.warmup), optimizer=_OPTIMIZERS[self.optimizer](),
            clip=self.clip, patience=self.patience, keep_zeros=self.keep_zeros, batch_norm=self.batch_norm,
            include=(*(self.include or ("*",)), *added) if added else self.include,
            exclude=(*self.exclude, *map(glob.escape, exclude)), seed=self.seed,
        )  # fmt: skip


def _summary(training: Training, lesson: Lesson) -> str:
    assert training.start is not None
    assert training.metric is not None
    if lesson.metric is None:
        judged = f"loss {-training.start:.4g} before and {-training.metric:.4g} after"
    else:
        judged = f"{training.start:.2%} right before and {training.metric:.2%} after"
    return f"{training.steps} steps; on the samples that judge {judged}"


def differentiable(model: ir.Model) -> ir.Model:
    """A copy that gradients can be written for. Raises ``Refuse`` if its opset is too old and cannot be converted."""
    context = Context(Editor(copy(model)))
    for pass_ in (InlineFunctions(), InlineIf()):
        pass_.run(context)
        context.editor.refresh()
    if context.editor.model.opset_imports.get("", OLDEST_OPSET) < OLDEST_OPSET:
        report = ConvertOpset(version=OLDEST_OPSET).run(context)
        if report.refusals:
            raise Refuse(f"gradients want opset {OLDEST_OPSET}: {report.refusals[0].text}")
    return context.editor.model


def scored(data: Dataset, output: str = "") -> Metric | None:
    """What judges by the labels of ``data``, if they are numbers of classes: the share that an output, by default the
    first, gets right."""
    if label_kind(data) not in ("i", "u"):
        return None
    return lambda outputs, labels: accuracy({output: outputs[output]} if output else outputs, labels)


def label_kind(data: Dataset) -> str | None:
    """The kind of the labels' type, as NumPy has it; ``None`` if there are none."""
    labels = data.one().labels if data.labelled else None
    return None if labels is None else labels.dtype.kind


def _parts(data: Dataset, batch: int, seed: int) -> tuple[Dataset, Dataset]:
    """Samples to train on, and others to judge by. Raises ``Refuse`` if they are too few for that."""
    if data.units < 2:
        raise Refuse("one sample is too few: some to train on and others to judge by are needed")
    first, second = data.split(_JUDGES, seed)
    if len(first) < batch:
        raise DataError(
            f"a batch is {batch} samples, but {len(first)} of {len(data)} are left to train on; choose a smaller batch"
        )
    return first, second
