"""How near other models are to an original, on samples that nothing was fitted to.

The original is run on each sample once, however many models are judged. A model is run on as many samples as are
asked for, and where it has been judged before only on those that it has not seen; it is stopped as soon as nothing
that it could do on the rest would help.

What a model carries from one run to the next (the state of a recurrent net that takes it as an input and gives
it back as an output) is carried here too, by each model its own: noise that is small in one run adds up.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt._fit import Batch
from onnxopt.data import Dataset
from onnxopt.evaluation import Measure, Quality, cores
from onnxopt.probes import interface_inputs
from onnxopt.runtime import Feeds, Session, Snapshot

Array = Any

_ROWS = 4
"""So many samples are run at once: as few as may be judged by."""
_HELD_BYTES = 1 << 26
"""Inputs, and outputs of the original, are kept up to this size; what is larger is read or computed anew."""
_AFFIX = re.compile(r"^(in|out|new|next|prev|last|past|present)[._]|[._]?(in|out|input|output|new|next|prev|n)$")


@dataclass
class _Course:
    """How far a model has come on the samples."""

    measure: Measure
    state: dict[str, Array] = field(default_factory=dict)
    """What it carries into the next run."""
    batches: int = 0
    samples: int = 0


class Judge:
    """An original model's outputs on some samples, to compare others with."""

    def __init__(self, model: ir.Model, original: Snapshot, data: Dataset) -> None:
        """Run ``original``, which has the interface of ``model``. Raises ``EngineError`` if it does not run."""
        self._carried = carried_state(model)
        self._data = data
        self.samples = len(data)
        """On how many samples it can judge."""
        self.numbers = 0
        """How many numbers all outputs of the original hold."""
        session = Session(original, optimize=True, threads=cores())
        self._names = session.outputs
        self._batches: list[Batch] | None = None
        self._expected: list[Sequence[Array]] | None = None
        self._best: list[Measure] = []
        self._courses: dict[str, _Course] = {}
        batches: list[Batch] = []
        expected: list[Sequence[Array]] = []
        room_in = room_out = _HELD_BYTES
        for batch, outputs in self._runs(session, {}):
            best = Measure(self._names)
            best.add_best(outputs, batch.labels)
            self._best.append(best)
            self.numbers += sum(int(np.size(output)) for output in outputs)
            room_in -= _bytes(batch.feeds.values())
            room_out -= _bytes(outputs)
            if room_in >= 0:
                batches.append(batch)
            if room_out >= 0:
                expected.append(outputs)
        if room_in >= 0:
            self._batches = batches
        if room_out >= 0:
            self._expected = expected
        self._session = session if room_out < 0 else None

    def quality(
        self, snapshot: Snapshot, samples: int | None = None, hopeless: Callable[[Quality], bool] | None = None
    ) -> Quality:
        """What becomes of the outputs with another model, on the first ``samples``, or a few more, or on all.

        ``hopeless`` says of a quality whether it is of no use. Once it says so of the best that the model can still
        come to, were it perfect on the rest, that is all: what is returned was then found on fewer samples. Raises
        ``EngineError`` if the model does not run.
        """
        course = self._courses.setdefault(_digest(snapshot), _Course(Measure(self._names)))
        wanted = self.samples if samples is None else min(samples, self.samples)

        def done() -> bool:
            return course.samples >= wanted or (hopeless is not None and hopeless(self._at_best(course)))

        if not done():
            session = Session(snapshot, optimize=True, threads=cores())
            runs = self._runs(session, course.state, course.batches)
            for expected, (batch, outputs) in zip(self._outputs(course.batches), runs, strict=False):
                course.measure.add(expected, outputs, batch.labels)
                course.batches += 1
                course.samples += batch.samples
                if done():
                    break
        return course.measure.result(course.samples)

    def _at_best(self, course: _Course) -> Quality:
        """What the quality is if nothing is lost on the samples that are left."""
        measure = course.measure.joined(self._best[course.batches :])
        return replace(measure.result(self.samples), sure_db={})

    def _outputs(self, start: int) -> Iterator[Sequence[Array]]:
        """The original's outputs from batch ``start`` on."""
        if self._expected is not None:
            yield from self._expected[start:]
        else:
            assert self._session is not None
            yield from islice((outputs for _, outputs in self._runs(self._session, {})), start, None)

    def _runs(
        self, session: Session, state: dict[str, Array], start: int = 0
    ) -> Iterator[tuple[Batch, Sequence[Array]]]:
        """The batches from ``start`` on, with the outputs; ``state`` is kept up to date."""
        batches = self._data.small_batches(_ROWS) if self._batches is None else iter(self._batches)
        for batch in islice(batches, start, None):
            feeds = batch.feeds
            given: Feeds = {**feeds, **{k: v for k, v in state.items() if v.shape == feeds[k].shape}}
            outputs = session.run(given, self._names)
            by_name = dict(zip(self._names, outputs, strict=True))
            state |= {taken: by_name[made] for taken, made in self._carried.items() if taken in feeds}
            yield batch, outputs


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


def _digest(snapshot: Snapshot) -> str:
    return hashlib.sha256(snapshot.content).hexdigest()


def _bytes(arrays: Iterable[Array]) -> int:
    return sum(int(np.asarray(array).nbytes) for array in arrays)
