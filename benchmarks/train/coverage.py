"""Can one model be trained? A few steps of gradient descent towards random targets, after cleanup at fixed sizes.

    python -m benchmarks.train.coverage MODEL.onnx        # JSON on stdout

Inputs that are one integer, such as a sampling rate, are constants. The loss is the mean square of what the first float
output that moves, or the scores behind its last softmax or sigmoid, is off from what it gives with weights that are
moved at random by a twentieth of their size: a target that can be reached. A step is as long as the gradient says that
the loss falls by a hundredth: ``fall`` is how far it fell in the first one, in units of that, which is 1 but for
curvature and rounding where the gradient is right.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxopt
from onnxopt.errors import OptionError
from onnxopt.gradients.engine import OLDEST_OPSET
from onnxopt.model import copy
from onnxopt.runtime import Session, Snapshot
from onnxopt.train.loss_graph import LABELS, before_softmax
from onnxopt.train.losses import MeanSquaredError
from onnxopt.train.optimizers import SGD, Optimizer, squared_norm
from onnxopt.train.trainable import Trainable, with_sizes

from benchmarks import probes

Array = np.ndarray[Any, Any]
Record = dict[str, Any]

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
STEPS = 6
FALL = 0.01
"""Of the loss, in a step, if it were linear."""
MOVED = 0.05
"""How far weights are moved for the target, in units of their mean size."""


def trained(path: Path) -> Record:
    """What came of it; ``failure`` says why nothing did."""
    try:
        feeds = probes.feeds(path)[-1]
        sized = with_sizes(onnxopt.load(path), feeds)
        for name in [name for name, x in feeds.items() if x.ndim == 0 and x.dtype.kind == "i"]:
            make_constant(sized.graph, name, feeds.pop(name))
        pipeline = f"cleanup,convert-opset{{version={OLDEST_OPSET}}}"
        model = onnxopt.optimize(sized, passes=pipeline, verify="off").model
        return steps(model, feeds)
    except onnxopt.OnnxoptError as error:
        return {"failure": f"{type(error).__name__}: {error}"}


def make_constant(graph: ir.Graph, name: str, array: Array) -> None:
    value = next(value for value in graph.inputs if value.name == name)
    graph.inputs.remove(value)
    value.const_value = ir.Tensor(array, name=name)
    graph.register_initializer(value)


def steps(model: ir.Model, feeds: dict[str, Array]) -> Record:
    trainable, batch = prepared(model, feeds)
    weights, gradients = list(trainable.parameters.values()), list(trainable.gradients.values())
    optimizer = Optimizer(SGD(momentum=0.0), weights)
    losses = []
    for _ in range(STEPS):
        losses.append(trainable.gradient(batch))
        squared = squared_norm(gradients)
        if not np.isfinite(squared) or squared == 0:
            return {"failure": f"the gradient has the length {squared**0.5}"}
        optimizer.step(gradients, FALL * losses[-1] / squared)
    return {
        "parameters": sum(w.size for w in weights),
        "tensors": len(weights),
        "losses": losses,
        "fall": (losses[0] - losses[1]) / (FALL * losses[0]),
    }


def prepared(model: ir.Model, feeds: dict[str, Array]) -> tuple[Trainable, dict[str, Array]]:
    """The model with a loss at the first of its float outputs that depends on its parameters, and a batch for it."""
    found = list(model.graph.outputs)
    if not any(isinstance(value.type, ir.TensorType) and value.dtype in FLOATS for value in found):
        # labels, and maps of scores, of ai.onnx.ml: the loss reads what these are made of
        found = [v for value in found if (node := value.producer()) for v in node.inputs if v is not None]
    found = [scores(value) for value in found]
    shown = copy(model)
    known = {value.name: value for node in shown.graph for value in node.outputs}
    shown.graph.outputs[:] = list(dict.fromkeys(known[value.name] for value in found if value.name in known))
    feeds = {name: feeds[name] for name in (str(value.name) for value in shown.graph.inputs)}
    targets = run(moved(shown), feeds)
    refused: onnxopt.OnnxoptError = OptionError("it has no float output that depends on weights")
    for name, y in run(shown, feeds).items():
        if isinstance(y, np.ndarray) and y.dtype.kind == "f" and not np.array_equal(y, targets[name]):
            batch = {**feeds, LABELS: targets[name].astype(np.float32)}
            try:
                loss = MeanSquaredError(name, teacher=None)
                return Trainable(model, loss, batch, threads=1), batch
            except onnxopt.OnnxoptError as error:
                refused = error
    raise refused


def scores(value: ir.Value) -> ir.Value:
    """What a softmax or a sigmoid reads that makes ``value``, if one does."""
    value = before_softmax(value)
    node = value.producer()
    return node.inputs[0] if node is not None and node.op_type == "Sigmoid" and node.inputs[0] is not None else value


def run(model: ir.Model, feeds: dict[str, Array]) -> dict[str, Any]:
    """Its outputs by name."""
    session = Session(Snapshot.of(model), optimize=True, threads=1)
    return dict(zip(session.outputs, session.run(feeds), strict=True))


def moved(model: ir.Model) -> ir.Model:
    """A copy with other weights."""
    found, generator = copy(model), np.random.default_rng(0)
    for name, value in found.graph.initializers.items():
        if value.dtype in FLOATS and value.const_value is not None and len(value.const_value.shape) >= 2:
            w = value.const_value.numpy()
            size = float(np.sqrt(np.mean(np.square(w, dtype=np.float64)))) or 1.0
            value.const_value = ir.Tensor(
                (w + MOVED * size * generator.standard_normal(w.shape)).astype(w.dtype), name=name
            )
    return found


def main() -> None:
    print(json.dumps(trained(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
