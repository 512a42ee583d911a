"""The loop: batches in, steps out.

::

    run = train(model, CrossEntropy(), data, TrainConfig(epochs=3), held_out=held_out)
    for step in run:
        print(step.index, step.loss)
    trained = run.result()

A run is deterministic: the same model, data, configuration and number of threads give the same bits, also when it was
killed in between and went on from a checkpoint.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from onnxopt.data import Dataset
from onnxopt.errors import DataError, OptionError, OutputError, TrainingError
from onnxopt.train import optimizers
from onnxopt.train.batches import Augment, Batches
from onnxopt.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from onnxopt.train.config import TrainConfig
from onnxopt.train.loss_graph import LABELS, Loss
from onnxopt.train.optimizers import Optimizer
from onnxopt.train.teachers import MovingTeacher, Teacher
from onnxopt.train.trainable import Trainable, aligned_copy
from onnxopt.writing import writable

__all__ = ["Metric", "Step", "Training", "accuracy", "train"]

log = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
_STATE = ("steps", "start", "metric")
Metric = Callable[[Arrays, Array | None], float]
"""What the outputs of a batch, by name, are worth, given its labels: a mean over its samples; more is better."""


@dataclass(frozen=True)
class Step:
    """What happened in one step."""

    index: int
    """From 0 on."""
    epoch: int
    loss: float
    """The mean over the batch, before the weights moved."""
    lr: float
    norm: float
    """The length of the gradient, before it was cut."""
    samples: int
    seconds: float
    metric: float | None = None
    """What the held-out samples gave after this step, if it was their turn: the metric, or −1 times their loss."""
    is_best: bool = False
    """Whether that is more than ever before."""


def train(
    model: ir.Model,
    loss: Loss,
    data: Dataset,
    config: TrainConfig,
    *,
    teacher: ir.Model | Sequence[ir.Model] | Literal["average"] | None = None,
    held_out: Dataset | None = None,
    metric: Metric | None = None,
    augment: Augment | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
) -> Training:
    """Prepare to train a copy of ``model``, of opset 18 or later; iterate over what is returned to do it.

    ``teacher`` computes what ``loss`` reads of one, from inputs of the same names; the outputs of several are averaged,
    scores as probabilities, and values inside are those of the first. The teacher ``"average"`` is the model itself
    with the moving average of its weights (``ema``), asked about inputs before augmentation. ``held_out`` are samples
    to judge by: the result is the best of all weights that were judged, those at the start among them. ``metric``
    judges; if it is not given, the loss does. ``augment`` gets the inputs of a batch and a generator, and returns new
    inputs.
    ``checkpoint`` is a file to keep what a killed run needs, which ``resume`` goes on from if it is there.

    Raises ``DataError`` if the data do not fit, ``OptionError`` if there is nothing to train, ``GradientError`` if the
    model cannot be differentiated, ``OutputError`` if a checkpoint cannot be written, or is there and not to be
    resumed.
    """
    values = loss.teacher_values()
    if values and not teacher:
        raise DataError("the loss reads values of a teacher; give one")
    if teacher == "average" and not config.ema:
        raise OptionError("the teacher is the moving average of the weights; give its decay, as ema=0.99")
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and path.exists() and not resume:
        raise OutputError(f"the checkpoint {path} exists; resume it, or remove it to start anew")
    if path is not None:
        writable(path, force=True)
    taught: Teacher | None = None
    if teacher == "average":
        taught = MovingTeacher(model, values, config.threads)
    elif values and teacher is not None:
        teachers = [teacher] if isinstance(teacher, ir.Model) else list(teacher)
        taught = Teacher(teachers, values, config.threads)
    batches = Batches(
        data, config.batch, part=config.micro_batch, seed=config.seed,
        teacher=taught, augment=augment, labelled=loss.labelled,
    )  # fmt: skip
    judged = None
    if held_out is not None:
        labelled = loss.labelled or held_out.labelled
        size = min(config.micro_batch or config.batch, len(held_out))
        judged = Batches(held_out, size, teacher=taught, labelled=labelled)
    trainable = Trainable(
        model, loss, batches.at(0)[0][0], include=config.include, exclude=config.exclude, untied=config.untie,
        batch_norm=config.batch_norm, recompute=config.recompute, threads=config.threads,
        interpreter=config.interpreter,
    )  # fmt: skip
    identity = {
        "configuration": repr(config),
        "loss": repr(loss),
        "data set": data.fingerprint,
        "model": _hash(trainable.parameters),
        "teacher": "" if taught is None or path is None else taught.digest,
    }
    training = Training(trainable, batches, judged, metric, config, path, identity)
    if isinstance(taught, MovingTeacher):
        taught.follow(trainable.model, training.shown)
    if path is not None and path.exists():
        training.restore(load_checkpoint(path))
    return training


class Training:
    """A training, from where it stands to its end."""

    def __init__(
        self,
        trainable: Trainable,
        batches: Batches,
        held_out: Batches | None,
        metric: Metric | None,
        config: TrainConfig,
        checkpoint: Path | None,
        identity: Mapping[str, str],
    ) -> None:
        self._trainable, self._batches, self._held_out, self._metric = trainable, batches, held_out, metric
        self._config, self._path, self._identity = config, checkpoint, identity
        self.total = config.steps or config.epochs * batches.steps
        """How many steps there are at most."""
        self.steps = 0
        """How many were made."""
        self.start: float | None = None
        """What the held-out samples gave for the weights at the start,"""
        self.metric: float | None = None
        """and for the best so far."""
        self._weights = list(trainable.parameters.values())
        self._gradients = list(trainable.gradients.values())
        self._optimizer = Optimizer(config.optimizer, self._weights)
        self._zeros = [w == 0 if config.keep_zeros and w.ndim >= 2 and w.any() else None for w in self._weights]
        self._sums: list[Array] = []
        self._total = self._gradients
        self._shown = trainable.parameters
        if config.ema:
            self._shown = {name: aligned_copy(array) for name, array in trainable.parameters.items()}
        self._best: Arrays = {}
        self._stale = 0

    @property
    def parameters(self) -> Mapping[str, Array]:
        """What is trained, by the name of the initializer, as it is now."""
        return self._trainable.parameters

    @property
    def shown(self) -> Mapping[str, Array]:
        """What is judged, as it is now: averages, if these are taken, and statistics that follow the data."""
        return {**self._shown, **self._trainable.statistics}

    @property
    def names(self) -> list[str]:
        """The initializers that may be others in the end: what is trained, and statistics that follow the data."""
        return [*self._trainable.parameters, *self._trainable.statistics]

    def __iter__(self) -> Iterator[Step]:
        """Train, step by step.

        Raises ``TrainingError`` if numbers are not finite, ``DataError`` for labels that are no classes of the model.
        """
        config = self._config
        every = config.evaluate_every or self._batches.steps
        saved = config.checkpoint_every or self._batches.steps
        if self._held_out is not None and self.metric is None:
            self.start, _ = self._judge()
        while self.steps < self.total and not (config.patience and self._stale >= config.patience):
            start, index = time.perf_counter(), self.steps
            lr = config.lr * config.schedule.factor(index, self.total)
            loss, samples = self._differentiate(index)
            norm = self._cut(index)
            self._optimizer.step(self._total, lr)
            if config.ema:
                optimizers.average(list(self._shown.values()), self._weights, config.ema)
            self.steps = index + 1
            metric, is_best, is_last = None, False, self.steps == self.total
            if self._held_out is not None and (self.steps % every == 0 or is_last):
                metric, is_best = self._judge()
            if self._path is not None and (self.steps % saved == 0 or is_last):
                save_checkpoint(self._path, self.checkpoint())
            seconds = time.perf_counter() - start
            yield Step(index, index // self._batches.steps, loss, lr, norm, samples, seconds, metric, is_best)

    def result(self) -> ir.Model:
        """The model with the weights that were best on held-out samples; without any, as they are now."""
        return self._trainable.trained(self._best or self.shown)

    def checkpoint(self) -> Checkpoint:
        """All that a later run needs to go on from here."""
        groups = self._groups()
        arrays = {f"{group}/{name}": array for group, held in groups.items() for name, array in held.items()}
        state = {name: getattr(self, name) for name in _STATE} | {"stale": self._stale, "identity": self._identity}
        return Checkpoint(arrays, state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from there; raises ``DataError`` if it is of another training."""
        found = checkpoint.state.get("identity", {})
        if differing := [name for name, value in self._identity.items() if found.get(name) != value]:
            raise DataError(f"the checkpoint is of a training with another {', another '.join(differing)}")
        self.steps, self.start, self.metric = (checkpoint.state[name] for name in _STATE)
        self._stale = checkpoint.state["stale"]
        if any(name.startswith("best/") for name in checkpoint.arrays):
            self._best = {name: np.empty_like(array) for name, array in self.shown.items()}
        for group, held in self._groups().items():
            for name, array in held.items():
                array[...] = checkpoint.arrays[f"{group}/{name}"]
        self._optimizer.steps = self.steps

    def _groups(self) -> dict[str, Mapping[str, Array]]:
        """The arrays that make up where the training stands."""
        return {
            "weights": self._trainable.parameters,
            "statistics": self._trainable.statistics,
            "optimizer": self._optimizer.state(),
            "average": self._shown if self._config.ema else {},
            "best": self._best,
        }

    def _differentiate(self, index: int) -> tuple[float, int]:
        """Compute the gradient of a batch, part by part, into ``_total``; returns its loss and size."""
        parts = self._batches.at(index)
        samples = sum(count for _, count in parts)
        if len(parts) > 1 and not self._sums:
            self._sums = [np.zeros_like(gradient) for gradient in self._gradients]
        self._total = self._sums if len(parts) > 1 else self._gradients
        for array in self._sums:
            array.fill(0)
        total = 0.0
        for arrays, count in parts:
            loss = self._trainable.gradient(arrays)
            if not math.isfinite(loss):
                raise self._not_finite(index, arrays)
            total += loss * count / samples
            if len(parts) > 1:
                optimizers.accumulate(self._sums, self._gradients, count / samples)
        return total, samples

    def _cut(self, index: int) -> float:
        """Keep zeros and cut the gradient to size; returns how long it was."""
        for gradient, zeros in zip(self._total, self._zeros, strict=True):
            if zeros is not None:
                np.copyto(gradient, 0, where=zeros)
        norm = math.sqrt(optimizers.squared_norm(self._total))
        if not math.isfinite(norm):
            raise self._not_finite(index, self._batches.at(index)[-1][0])
        if self._config.clip and norm > self._config.clip:
            optimizers.scale(self._total, self._config.clip / norm)
        return norm

    def _not_finite(self, index: int, arrays: Arrays) -> TrainingError:
        name = self._trainable.not_finite(arrays)
        where = f"the first tensor with NaN or infinity is {name!r}" if name else "the gradient has no finite length"
        return TrainingError(
            f"training stops at step {index}: {where}; try a lower learning rate, a warm-up, or clip; look at the data"
        )

    def _judge(self) -> tuple[float, bool]:
        """Look at the held-out samples, and keep the weights if they are the best so far."""
        assert self._held_out is not None
        weights = self.shown
        total = samples = 0.0
        for index in range(self._held_out.steps):
            for arrays, count in self._held_out.at(index):
                loss, outputs = self._trainable.outputs(arrays, weights)
                total += count * (-loss if self._metric is None else self._metric(outputs, arrays.get(LABELS)))
                samples += count
        found = total / samples if math.isfinite(total) else -math.inf
        is_best = self.metric is None or found > self.metric
        if is_best:
            self.metric, self._stale = found, 0
            self._best = {name: array.copy() for name, array in weights.items()}
        else:
            self._stale += 1
        log.info(
            "after %d steps the held-out samples give %.6g, the best so far is %.6g", self.steps, found, self.metric
        )
        return found, is_best


def accuracy(outputs: Arrays, labels: Array | None) -> float:
    """The share of samples for which the largest score of the first output is that of the label."""
    if labels is None:
        raise DataError("accuracy is judged by labels, but the data have none")
    scores = next(iter(outputs.values()))
    return float(np.mean(scores.argmax(-1) == labels))


def _hash(arrays: Mapping[str, Array]) -> str:
    hasher = hashlib.sha256()
    for name, array in arrays.items():
        hasher.update(f"{name}{array.shape}".encode())
        hasher.update(array.data)
    return hasher.hexdigest()
