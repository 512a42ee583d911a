"""Teachers: models whose values a loss reads, alone or as the mean of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt import _cache
from onnxopt.errors import DataError, OptionError
from onnxopt.model import copy, slim_proto
from onnxopt.runtime import Session, Snapshot
from onnxopt.train.loss_graph import TeacherValue, before_softmax
from onnxopt.train.trainable import aligned_copy, as_inputs

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]


class Teacher:
    """One model, or several whose outputs are averaged.

    Scores are averaged as probabilities at the temperature of the loss (Hinton, Vinyals and Dean, 2015): what the loss
    is given is ``T · log mean_k softmax(z_k / T)``, whose softmax over ``T`` is that mean. Other outputs are averaged
    as they are; those of a further teacher are of the same name, or else in the same place. Values inside are those of
    the first.
    """

    moves = False
    """Whether it says something else in each step."""

    def __init__(self, models: Sequence[ir.Model], values: Sequence[TeacherValue], threads: int) -> None:
        """Raises ``OptionError`` if the first has not one of ``values``."""
        self._models, self._values, self._threads = models, values, threads
        self._members = [_Member(models[0], {v: _inside(models[0], v) for v in values}, threads)]
        for model in models[1:]:
            names = {v: _counterpart(models[0], model, v) for v in values}
            self._members.append(_Member(model, {v: name for v, name in names.items() if name is not None}, threads))

    def __call__(self, feeds: Mapping[str, Array]) -> Arrays:
        """What they say of a batch, by what the loss calls it.

        Raises ``DataError`` if the batch has not all their inputs, or if what they say cannot be averaged.
        """
        said = [member(feeds) for member in self._members]
        return {v.key: _mean([each[v] for each in said if v in each], v) for v in self._values}

    @cached_property
    def digest(self) -> str:
        """A hash of all that what they say depends on, beside the data."""
        models = [_cache.digest(*slim_proto(model)) for model in self._models]
        return _cache.key(*models, repr(self._values), str(self._threads))


class MovingTeacher(Teacher):
    """The model that is trained, with the moving average of its weights (Tarvainen and Valpola, "Mean Teachers are
    Better Role Models", 2017); it is asked about inputs as they are before augmentation."""

    moves = True

    def __init__(self, model: ir.Model, values: Sequence[TeacherValue], threads: int) -> None:
        super().__init__([model], values, threads)

    def follow(self, model: ir.Model, weights: Mapping[str, Array]) -> None:
        """From now on, have these weights, whatever they are at the time, in place of those of ``model``."""
        names = {v: _inside(model, v) for v in self._values}
        self._members = [_Member(model, names, self._threads, weights)]


class _Member:
    """A model that is asked for some of its values; ``weights`` stand in place of initializers, and may change."""

    def __init__(
        self,
        model: ir.Model,
        names: Mapping[TeacherValue, str],
        threads: int,
        weights: Mapping[str, Array] = MappingProxyType({}),
    ) -> None:
        model = copy(model)
        as_inputs(model, weights)
        self._weights = weights
        known = _made(model)
        found = {v: before_softmax(known[name]) if v.scores else known[name] for v, name in names.items()}
        model.graph.outputs[:] = list(dict.fromkeys(found.values()))
        self._names = {v: str(value.name) for v, value in found.items()}
        self._session = Session(Snapshot.of(model), optimize=True, threads=threads) if found else None

    def __call__(self, feeds: Mapping[str, Array]) -> dict[TeacherValue, Array]:
        session = self._session
        if session is None:
            return {}
        wanted = [name for name in session.inputs if name not in self._weights]
        if missing := [name for name in wanted if name not in feeds]:
            raise DataError(f"the teacher has an input {missing[0]!r}, which is none of the model; name them alike")
        given = {name: self._weights[name] for name in session.inputs if name in self._weights}
        own = {**given, **{name: aligned_copy(feeds[name]) for name in wanted}}
        found = dict(zip(session.outputs, session.run(own), strict=True))
        return {v: plain(found[name]) for v, name in self._names.items()}


def plain(array: Array) -> Array:
    """The array in the type that a loss reads it in."""
    if array.dtype.kind not in "biuf":
        raise DataError(f"a loss reads numbers, but labels or values of a teacher are {array.dtype}")
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int64, copy=False)


def _made(model: ir.Model) -> dict[str, ir.Value]:
    return {str(value.name): value for node in model.graph for value in node.outputs}


def _inside(model: ir.Model, value: TeacherValue) -> str:
    if value.name and value.name not in _made(model):
        raise OptionError(f"the teacher computes no value {value.name!r}")
    return value.name or str(model.graph.outputs[0].name)


def _counterpart(first: ir.Model, other: ir.Model, value: TeacherValue) -> str | None:
    """The output of ``other`` that is averaged with ``value`` of ``first``, if that is an output."""
    names, others = ([str(output.name) for output in model.graph.outputs] for model in (first, other))
    name = value.name or names[0]
    if name not in names:
        return None
    place = names.index(name)
    if name not in others and place >= len(others):
        raise DataError(f"a further teacher has no output {name!r}, nor any in its place")
    return name if name in others else others[place]


def _mean(arrays: Sequence[Array], value: TeacherValue) -> Array:
    if len(arrays) == 1:
        return arrays[0]
    if len(shapes := {array.shape for array in arrays}) > 1:
        raise DataError(f"the teachers give {value.name or 'the first output'!r} as {sorted(shapes)}; give them alike")
    if not value.scores:
        return np.asarray(np.mean(arrays, axis=0, dtype=np.float64), np.float32)
    logs = []
    for array in arrays:
        scaled = array.astype(np.float64) / value.temperature
        logs.append(scaled - np.logaddexp.reduce(scaled, axis=value.axis, keepdims=True))
    mean = np.logaddexp.reduce(logs, axis=0) - np.log(len(logs))
    return np.asarray(value.temperature * mean, np.float32)
