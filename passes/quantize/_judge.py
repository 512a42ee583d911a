"""How near a quantized model is to the float one, on samples that nothing was fitted to.

What a model carries from one run to the next (the state of a recurrent net that takes it as an input and gives
it back as an output) is carried here too, by each model its own: noise that is small in one run adds up.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.data import Dataset
from onnxopt.evaluation import Measure, Quality, cores
from onnxopt.probes import interface_inputs
from onnxopt.runtime import Feeds, Session, Snapshot

Array = Any

_AFFIX = re.compile(r"^(in|out|new|next|prev|last|past|present)[._]|[._]?(in|out|input|output|new|next|prev|n)$")


class Judge:
    """The float model's outputs on some samples, to compare others with."""

    def __init__(self, model: ir.Model, original: Snapshot, data: Dataset) -> None:
        self._carried = carried_state(model)
        self._data = data
        self.samples = len(data)
        """On how many samples it judges."""
        session = Session(original, optimize=True, threads=cores())
        self._names = session.outputs
        self._expected = self._run(session)
        self.numbers = sum(int(np.size(output)) for outputs in self._expected for output in outputs)
        """How many numbers all outputs hold."""

    def quality(self, snapshot: Snapshot) -> Quality:
        """What became of the outputs. Raises ``EngineError`` if the model does not run."""
        found = self._run(Session(snapshot, optimize=True, threads=cores()))
        measure = Measure(self._names)
        for batch, expected, got in zip(self._data.small_batches(), self._expected, found, strict=True):
            measure.add(expected, got, batch.labels)
        return measure.result(self.samples)

    def _run(self, session: Session) -> list[Sequence[Array]]:
        state: dict[str, Array] = {}
        found: list[Sequence[Array]] = []
        for batch in self._data.small_batches():
            feeds = batch.feeds
            given: Feeds = {**feeds, **{k: v for k, v in state.items() if v.shape == feeds[k].shape}}
            outputs = session.run(given, self._names)
            by_name = dict(zip(self._names, outputs, strict=True))
            state = {taken: by_name[made] for taken, made in self._carried.items() if taken in feeds}
            found.append(outputs)
        return found


def carried_state(model: ir.Model) -> dict[str, str]:
    """The inputs that are to be fed with an output of the run before, by their names: ``state`` and ``stateN``,
    ``h`` and ``hn``, ``past_k`` and ``present_k``, of the same type and rank."""
    outputs = {_stem(v.name or ""): v for v in model.graph.outputs if _stem(v.name or "")}
    found = {}
    for value in interface_inputs(model):
        made = outputs.get(_stem(value.name or ""))
        if made is None or made.dtype != value.dtype or made.shape is None or value.shape is None:
            continue
        if len(made.shape) == len(value.shape) and value.name and made.name:
            found[value.name] = made.name
    return found


def _stem(name: str) -> str:
    return _AFFIX.sub("", name.lower())
