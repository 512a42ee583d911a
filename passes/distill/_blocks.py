"""Where the blocks of a network end, and what its values are on samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.data import Batch
from onnxopt.errors import DataError
from onnxopt.graph import Editor, constant_tensor, sole_reader
from onnxopt.model import copy
from onnxopt.passes.prune._branches import Branches
from onnxopt.runtime import Session, Snapshot

Array = np.ndarray[Any, Any]

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "GRU", "LSTM", "MatMul", "RNN"})
NORMALIZATIONS = frozenset(
    {"BatchNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization", "RMSNormalization"}
)
ACTIVATIONS = frozenset(
    {"Celu", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu", "Selu", "Sigmoid"}
    | {"Softplus", "Softsign", "Swish", "Tanh", "ThresholdedRelu"}
)
_BY_CHANNELS = frozenset({"BatchNormalization", "Conv", "ConvTranspose", "GroupNormalization", "InstanceNormalization"})
_BY_ROWS = frozenset({"Gemm", "LayerNormalization", "MatMul", "RMSNormalization"})
_AFTER = NORMALIZATIONS | ACTIVATIONS | {"Identity"}
_SCALED = frozenset({"Add", "Mul"})


def block_ends(editor: Editor) -> list[ir.Value]:
    """The values that blocks of the main graph end in, in order: sums of residual blocks, with what normalizes or
    activates them; where there are none, layers, with their biases and the same. What is an output of the model is
    none."""
    branches = Branches(editor)
    sums = {each.add for each in branches.found} | {node for node, _ in branches.refused}
    starts = [node for node in editor.model.graph if (node in sums if sums else _is_layer(node))]
    ends = (_end(node.outputs[0]) for node in starts)
    return list(dict.fromkeys(value for value in ends if not value.is_graph_output()))


def _is_layer(node: ir.Node) -> bool:
    return node.op_type in _LAYERS and node.domain == "" and any(constant_tensor(v) is not None for v in node.inputs)


def _end(value: ir.Value) -> ir.Value:
    while (node := sole_reader(value)) is not None and node.graph is value.graph and node.domain == "":
        others = [other for other in node.inputs if other is not None and other is not value]
        is_scaled = node.op_type in _SCALED and all(constant_tensor(other) is not None for other in others)
        if node.op_type not in _AFTER and not is_scaled:
            break
        value = node.outputs[0]
    return value


def channel_axis(value: ir.Value, rank: int) -> int:
    """The axis of channels, by the nearest layer or normalization that ``value`` is made by."""
    work, seen = [value], {value}
    while work:
        node = work.pop(0).producer()
        if node is None:
            continue
        if node.op_type in _BY_CHANNELS:
            return 1
        if node.op_type in _BY_ROWS:
            return rank - 1
        new = [each for each in node.inputs if each is not None and each not in seen]
        seen.update(new)
        work += new
    return 1


def observed(model: ir.Model, names: Iterable[str], batches: Iterable[Batch]) -> Iterator[dict[str, Array]]:
    """What ``model`` computes under these names, batch by batch.

    Raises ``DataError`` if it has an input that the data have not.
    """
    model, names = copy(model), list(names)
    made = {str(value.name): value for node in model.graph for value in node.outputs}
    model.graph.outputs[:] = [made[name] for name in names]
    session = Session(Snapshot.of(model)) if names else None
    for batch in batches:
        if session is None:
            yield {}
            continue
        check_inputs(session.inputs, batch.feeds)
        found = session.run({name: batch.feeds[name] for name in session.inputs})
        yield dict(zip(names, found, strict=True))


def check_inputs(wanted: Iterable[str], given: Mapping[str, Array]) -> None:
    """Raises ``DataError`` if a teacher wants an input that is not given."""
    if missing := [name for name in wanted if name not in given]:
        raise DataError(f"the teacher has an input {missing[0]!r}, which is none of the model; name them alike")
