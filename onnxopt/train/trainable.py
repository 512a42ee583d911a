"""A model whose parameters are arrays, and sessions that compute a loss and its gradients in them.

The arrays are inputs of the sessions, which read them where they are; gradients are written where the optimizer reads
them. Gradient graphs have sizes in numbers, so there is a session for each set of shapes that comes up: that of a full
batch, and that of the last one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from onnxopt.errors import DataError, GradientError
from onnxopt.gradients import gradient_graph
from onnxopt.graph import Editor, attribute
from onnxopt.model import copy
from onnxopt.runtime import Session, Snapshot
from onnxopt.train.loss_graph import LABELS, Loss, LossGraph
from onnxopt.train.ort_training import RemoteGradient
from onnxopt.train.parameters import find_parameters, moving, untie

log = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]

_SESSIONS = 6
"""So many shapes are kept ready: each takes memory for what it computes."""
_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
BatchNorm = Literal["frozen", "train"]


@dataclass
class _Ready:
    """A session for one set of shapes."""

    run: Callable[[], None]
    inputs: Arrays
    loss: Array
    classes: int | None
    model: ir.Model


class Trainable:
    """A copy of a model, its parameters, and their gradients."""

    def __init__(
        self,
        model: ir.Model,
        loss: Loss,
        example: Mapping[str, Array],
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        untied: bool = False,
        batch_norm: BatchNorm = "frozen",
        recompute: bool = False,
        threads: int = 0,
        interpreter: str = "",
    ) -> None:
        """``example`` holds the inputs of the model for one batch, and what the loss reads besides (float32,
        int64).

        ``batch_norm`` "train" normalizes by the statistics of each batch, and lets the running ones follow;
        ``recompute`` computes values inside twice, which takes less memory; ``interpreter`` is a Python whose
        onnxruntime-training is to differentiate.
        Raises ``OptionError`` if nothing is left to train, ``GradientError`` if the model cannot be differentiated.
        """
        self.model = copy(model)
        self._loss, self._threads, self._recompute, self._interpreter = loss, threads, recompute, interpreter
        constants = self.model.graph.initializers
        if untied:
            untie(self.model, [constants[name] for name in find_parameters(self.model, include, exclude)])
        norms = _batch_norms(self.model.graph)  # whose statistics may have been merged with scales and biases
        untie(self.model, [value for node in norms for value in node.inputs[3:5] if value is not None])
        names = find_parameters(self.model, include, exclude)
        trained = [constants[name] for name in names]
        norms = [node for node in norms if batch_norm == "train" and node.inputs[1] in trained]
        self._norms = {str(node.outputs[0].name) for node in norms}
        statistics = [str(value.name) for node in norms for value in node.inputs[3:5] if value is not None]
        self.statistics = self._arrays(statistics)
        """Running means and variances that follow the data, by the name of the initializer."""
        self._moved = {name: aligned(array.shape, array.dtype) for name, array in self.statistics.items()}
        built, value, _ = self._with_loss(example, training=True)
        unmoved = set(names) - set(names := moving(built.graph, names, value))
        if not names:
            raise GradientError("the loss depends on no parameter of the model in a differentiable way")
        if unmoved:
            log.info("the loss does not depend on these parameters: %s", ", ".join(sorted(unmoved)))
        self.parameters = self._arrays(names)
        """What is trained, by the name of the initializer; to be changed in place."""
        self.gradients = {name: aligned(array.shape, array.dtype) for name, array in self.parameters.items()}
        """Those of the last batch."""
        self._training = {_shapes(example): self._ready(example)}
        self._forward: dict[object, tuple[Session, int | None]] = {}

    def gradient(self, arrays: Mapping[str, Array]) -> float:
        """The loss of a batch; leaves its gradients in ``gradients``, and moves ``statistics``."""
        key = _shapes(arrays)
        if key not in self._training:
            _make_room(self._training)
            self._training[key] = self._ready(arrays)
        ready = self._training[key]
        _check_labels(arrays.get(LABELS), ready.classes)
        for name, buffer in ready.inputs.items():
            np.copyto(buffer, arrays[name], casting="same_kind")
        ready.run()
        for name, array in self.statistics.items():
            array[...] = self._moved[name]
        return float(ready.loss.reshape(()))

    def computes(self, arrays: Mapping[str, Array]) -> Callable[[], None]:
        """What computes the gradients of batches of these sizes."""
        return self._training[_shapes(arrays)].run

    def outputs(self, arrays: Mapping[str, Array], weights: Mapping[str, Array]) -> tuple[float, Arrays]:
        """The loss and the outputs of the model for a batch, as it will be used: nothing follows the data."""
        key = _shapes(arrays)
        names = [str(value.name) for value in self.model.graph.outputs]
        if key not in self._forward:
            _make_room(self._forward)
            model, loss, graph = self._with_loss(arrays, training=False)
            as_inputs(model, [*self.parameters, *self.statistics])
            model.graph.outputs[:] = [*model.graph.outputs, loss]
            session = Session(Snapshot.of(model), optimize=True, threads=self._threads, training=True)
            self._forward[key] = session, graph.classes
        session, classes = self._forward[key]
        _check_labels(arrays.get(LABELS), classes)
        feeds = {n: aligned_copy(arrays[n]) if n in arrays else weights[n] for n in session.inputs}
        *outputs, value = session.run(feeds)
        return float(value.reshape(())), dict(zip(names, outputs, strict=True))

    def not_finite(self, arrays: Mapping[str, Array]) -> str | None:
        """The first tensor, in the order of computation, that holds NaN or infinity for a batch, if one does."""
        for name, array in {**self.parameters, **arrays}.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                return name
        model = copy(self._training[_shapes(arrays)].model)
        editor = Editor(model)
        made = [v for node in model.graph for v in node.outputs if v.name and editor.dtype(v) in _FLOATS]
        model.graph.outputs[:] = made
        session = Session(Snapshot.of(model), threads=self._threads, training=True)
        known = {**self.parameters, **self.statistics, **arrays}
        found = session.run({name: known[name] for name in session.inputs})
        names = (str(v.name) for v, array in zip(made, found, strict=True) if not np.isfinite(array).all())
        return next(names, None)

    def trained(self, weights: Mapping[str, Array]) -> ir.Model:
        """The model with these weights in place of its own."""
        model = copy(self.model)
        for name, array in weights.items():
            model.graph.initializers[name].const_value = ir.Tensor(array.copy(), name=name)
        return model

    def _ready(self, arrays: Mapping[str, Array]) -> _Ready:
        model, loss, graph = self._with_loss(arrays, training=True)
        moved = {}
        for node in model.graph:
            if node.outputs[0].name in self._norms:
                for value, output in zip(node.inputs[3:5], node.outputs[1:], strict=True):
                    moved[str(value.name)] = str(output.name)  # type: ignore[union-attr]
        as_inputs(model, [*self.parameters, *self.statistics])
        fixed = {**self.parameters, **self.statistics}
        dtypes = {str(each.name): each.dtype.numpy() for each in model.graph.inputs if each.dtype is not None}
        result = aligned((), np.dtype(np.float32))
        outputs = {str(loss.name): result} | {moved[name]: array for name, array in self._moved.items()}
        if self._interpreter:
            inputs = {name: aligned(arrays[name].shape, dtypes[name]) for name in dtypes if name not in fixed}
            remote = RemoteGradient(
                self._interpreter, model, str(loss.name), {**inputs, **fixed}, outputs, self.gradients, self._threads
            )
            return _Ready(remote, inputs, result, graph.classes, model)
        found = gradient_graph(
            model, str(loss.name), list(self.parameters), keep=list(moved.values()), recompute=self._recompute
        )
        session = Session(Snapshot.of(found.model), optimize=True, threads=self._threads, training=True)
        inputs = {name: aligned(arrays[name].shape, dtypes[name]) for name in session.inputs if name not in fixed}
        outputs.update((found.gradients[name], array) for name, array in self.gradients.items())
        bound = {name: fixed[name] if name in fixed else inputs[name] for name in session.inputs}
        return _Ready(session.bind(bound, outputs), inputs, result, graph.classes, found.model)

    def _with_loss(self, arrays: Mapping[str, Array], *, training: bool) -> tuple[ir.Model, ir.Value, LossGraph]:
        """A copy of the model for the shapes of ``arrays``, the loss at its end, and what is known of that."""
        model = with_sizes(self.model, arrays)
        own = {str(value.name) for value in model.graph.inputs}
        if training:
            _follow_batches(Editor(model), self._norms)
        graph = LossGraph(model, {name: array for name, array in arrays.items() if name not in own})
        loss = self._loss.build(graph)
        return model, loss, graph

    def _arrays(self, names: Sequence[str]) -> Arrays:
        found = {}
        for name in names:
            tensor = self.model.graph.initializers[name].const_value
            assert tensor is not None
            found[name] = aligned_copy(tensor.numpy())
        return found


def with_sizes(model: ir.Model, feeds: Mapping[str, Array]) -> ir.Model:
    """A copy of ``model`` whose inputs have the sizes that they have in ``feeds``."""
    fixed = copy(model)
    for value in fixed.graph.inputs:
        if (given := feeds.get(str(value.name))) is not None:
            value.shape = ir.Shape(given.shape)
    return fixed


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An array at a multiple of 64 bytes: what is summed up in vectors is rounded alike wherever it lies."""
    size = math.prod(shape) * dtype.itemsize
    room = np.zeros(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size].view(dtype).reshape(shape)


def aligned_copy(array: Array) -> Array:
    """The same at a multiple of 64 bytes; strings, which are not summed up, as they are."""
    if array.dtype.kind == "O":
        return array
    found = aligned(array.shape, array.dtype)
    found[...] = array
    return found


def as_inputs(model: ir.Model, names: Iterable[str]) -> None:
    """Turn initializers into inputs."""
    for name in names:
        value = model.graph.initializers.pop(name)
        tensor = value.const_value
        assert tensor is not None
        value.type, value.shape, value.const_value = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy()), None
        model.graph.inputs.append(value)


def _batch_norms(graph: ir.Graph) -> list[ir.Node]:
    """The normalizations whose scale and statistics are constants."""
    constants = graph.initializers
    return [
        node
        for node in graph
        if node.op_type == "BatchNormalization"
        and node.domain == ""
        and not attribute(node, "training_mode", 0)
        and all(value is not None and value.name in constants for value in node.inputs[1:5])
    ]


def _follow_batches(editor: Editor, norms: set[str]) -> None:
    """Let these normalizations, named by their first output, use the statistics of the batch."""
    for node in editor.model.graph:
        if node.outputs[0].name in norms:
            node.attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
            node.resize_outputs(3)
            for output, kind in zip(node.outputs[1:], ("mean", "variance"), strict=True):
                output.name = editor.fresh(f"{node.outputs[0].name}_{kind}")


def _shapes(arrays: Mapping[str, Array]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, array.shape) for name, array in sorted(arrays.items()))


def _make_room(sessions: dict[Any, Any]) -> None:
    if len(sessions) >= _SESSIONS:
        del sessions[next(iter(sessions))]


def _check_labels(labels: Array | None, classes: int | None) -> None:
    if labels is None or classes is None or not labels.size:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DataError(f"the labels go from {low} to {high}, but the model has the classes 0 to {classes - 1}")
