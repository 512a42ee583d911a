"""What the outputs of a model lose without some of its residual branches.

One copy of the model serves for all sets of branches: each branch is multiplied by an input of its own, 1 or 0.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.data import Dataset
from onnxopt.evaluation import Measure, cores
from onnxopt.graph import Editor
from onnxopt.model import copy
from onnxopt.passes.prune._branches import Branch
from onnxopt.runtime import Feeds, Session, Snapshot


class Gates:
    """A model whose branches can be shut."""

    def __init__(self, editor: Editor, branches: Sequence[Branch], data: Dataset) -> None:
        """Run the model on ``data``, which are kept, as are the outputs."""
        place = {node: at for at, node in enumerate(editor.model.graph)}
        copied = copy(editor.model)
        nodes = list(copied.graph)
        self._names = [value.name or "" for value in copied.graph.outputs]
        self._gates: list[tuple[str, np.dtype[Any]]] = []
        self._shapes: list[str] = []
        gated = Editor(copied)
        for branch in branches:
            add, side = nodes[place[branch.add]], branch.side
            stream, end = add.inputs[1 - side], add.inputs[side]
            dtype = editor.dtype(branch.add.inputs[side]) or ir.DataType.FLOAT
            gate = ir.Value(name=gated.fresh("gate"), type=ir.TensorType(dtype), shape=ir.Shape(()))
            copied.graph.inputs.append(gate)
            add.replace_input_with(side, gated.insert(add, "Mul", [end, gate], name=""))
            sizes = [gated.insert(add, "Shape", [value], name="") for value in (stream, end)]
            copied.graph.outputs.extend(sizes)
            self._gates.append((gate.name or "", dtype.numpy()))
            self._shapes += [value.name or "" for value in sizes]
        session = Session(Snapshot.of(copied), optimize=True, threads=cores())
        self._session = session
        self._runs: list[tuple[Feeds, list[Any]]] = []
        self.fits = np.ones(len(branches), dtype=bool)
        """Whether a branch has the shape of its stream on all samples, so that the stream can stand for the sum."""
        for batch in data.batches():
            found = session.run({**batch.feeds, **self._open(())}, self._names + self._shapes)
            outputs, shapes = found[: len(self._names)], found[len(self._names) :]
            self._runs.append((batch.feeds, outputs))
            self.fits &= [np.array_equal(a, b) for a, b in zip(shapes[::2], shapes[1::2], strict=True)]

    def harm(self, shut: Collection[int]) -> float:
        """The noise in the output that suffers most, in units of its signal, without these branches."""
        measure = Measure(self._names)
        for feeds, outputs in self._runs:
            measure.add(outputs, self._session.run({**feeds, **self._open(shut)}, self._names))
        return measure.result(len(self._runs)).noise

    def _open(self, shut: Collection[int]) -> dict[str, Any]:
        return {name: np.array(at not in shut, dtype) for at, (name, dtype) in enumerate(self._gates)}
