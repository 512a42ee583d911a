"""Batches for training: samples in an order drawn anew for each epoch, with what a teacher says of them.

The order of an epoch follows from the seed and the number of the epoch alone, so that training can go on anywhere. As
many samples are in memory as a bound allows: if that is all of them, they are read once; if not, the samples of the
next steps are read together, in one pass over the data. A teacher is run on samples as they are read, and what it says
is kept with them, or on disk if not all are in memory; but for inputs that are augmented, which are new each time, and
for a teacher that moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from onnxopt.data import Batch, Dataset
from onnxopt.errors import DataError
from onnxopt.train.answers import Answers
from onnxopt.train.loss_graph import LABELS
from onnxopt.train.teachers import Teacher, plain

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
Augment = Callable[[Arrays, np.random.Generator], Arrays]
"""Makes new inputs of the inputs of a batch."""

MAX_BYTES = 1 << 30
"""So much of the data, with what a teacher says of them, is in memory at a time."""


class Batches:
    """The batches of each step, cut into parts that go into the model at a time."""

    def __init__(
        self,
        data: Dataset,
        batch: int,
        *,
        part: int = 0,
        seed: int | None = None,
        teacher: Teacher | None = None,
        augment: Augment | None = None,
        labelled: bool = False,
    ) -> None:
        """``batch`` samples a step, ``part`` of them at a time (0: all); without ``seed`` in the order of the data.

        Raises ``DataError`` if there are fewer samples, or no labels where they are ``labelled``.
        """
        if labelled and not data.labelled:
            raise DataError("the loss reads labels, but the data have none; give an array 'labels' with them")
        if batch > len(data):
            raise DataError(f"a batch is {batch} samples, but the data hold {len(data)}; choose a smaller batch")
        self._data, self._seed, self._teacher, self._augment = data, seed, teacher, augment
        self._labelled = labelled
        self._units = max(1, round(batch * data.units / len(data)))
        self._part = part or batch
        self.steps = -(-data.units // self._units)
        """How many make an epoch."""
        self._taught = augment is None and not (teacher is not None and teacher.moves)
        self._answers: Answers | None = None
        self._order: tuple[int, Array] = (-1, np.arange(data.units))
        self._window: tuple[object, dict[int, Batch]] = ((), {})
        self._window_steps = self._measure()

    def at(self, index: int) -> list[tuple[Arrays, int]]:
        """The parts of step ``index``, each with the number of its samples."""
        epoch, step = divmod(index, self.steps)
        places = self._places(epoch)[step * self._units : (step + 1) * self._units]
        held = self._held(epoch, step)
        parts = [self._arrays(group) for group in self._groups([held[int(place)] for place in places])]
        asks = self._teacher if not self._taught else None
        said = [asks(arrays) for arrays, _ in parts] if asks is not None and asks.moves else []
        if self._augment is not None:
            generator = np.random.default_rng((self._seed or 0, 1, index))
            parts = [(self._augmented(arrays, generator), samples) for arrays, samples in parts]
        if asks is not None:
            said = said or [asks(arrays) for arrays, _ in parts]
            parts = [({**arrays, **more}, samples) for (arrays, samples), more in zip(parts, said, strict=True)]
        return parts

    def _places(self, epoch: int) -> Array:
        """The order of the units in an epoch."""
        if self._seed is not None and self._order[0] != epoch:
            self._order = epoch, np.random.default_rng((self._seed, 0, epoch)).permutation(self._data.units)
        return self._order[1]

    def _held(self, epoch: int, step: int) -> dict[int, Batch]:
        """The units of this step, and as many more as may be in memory, by their place."""
        window = step // self._window_steps
        key = (epoch, window) if self._window_steps < self.steps else "all"
        if self._window[0] != key:
            start = window * self._window_steps * self._units
            chosen = np.sort(self._places(epoch)[start : start + self._window_steps * self._units])
            self._window = ((), {})  # forget the last one before the next is read
            self._window = key, dict(self._read(chosen))
        return self._window[1]

    def _measure(self) -> int:
        """How many steps may be in memory; looks at one unit, of which a teacher may say more than it holds."""
        first = self._data.part(np.array([0]))
        batch = next(iter(first.batches()))
        if self._labelled and LABELS in batch.feeds:
            raise DataError(f"the model has an input {LABELS!r}, which is what the labels are called; rename it")
        said = self._teacher(batch.feeds) if self._teacher is not None and self._taught else {}
        if self._data.stackable and any(array.shape[:1] != (batch.samples,) for array in said.values()):
            said, self._taught = {}, False  # it cannot be cut into samples, so it is asked for each part anew
        size = self._data.nbytes / self._data.units + sum(array.nbytes for array in said.values())
        fits = MAX_BYTES // (size * self._units)
        if fits < self.steps and said and self._data.stackable and self._teacher is not None:
            self._answers = Answers.of(self._teacher, self._data, said)
        return int(min(self.steps, max(1, fits)))

    def _read(self, places: Array) -> Iterator[tuple[int, Batch]]:
        """Each of these units by itself, with its place."""
        left = iter(places.tolist())
        for batch in self._data.part(places).batches():
            asked = self._teacher is not None and self._taught and self._answers is None
            said = self._teacher(batch.feeds) if asked and self._teacher is not None else {}
            whole = Batch({**batch.feeds, **said}, batch.labels, batch.samples)
            for unit in whole.cut(1) if self._data.stackable else (whole,):
                place = next(left)
                if self._answers is not None:
                    unit.feeds.update(self._answers.at(place))
                yield place, unit

    def _groups(self, units: Sequence[Batch]) -> Iterator[list[Batch]]:
        """Units that go into the model together: of one shape, and no more samples than a part has."""
        if not self._data.stackable:
            yield from ([unit] for unit in units)
            return
        by_shape: dict[object, list[Batch]] = {}
        for unit in units:
            by_shape.setdefault(tuple(array.shape for array in unit.feeds.values()), []).append(unit)
        for alike in by_shape.values():
            yield from (alike[at : at + self._part] for at in range(0, len(alike), self._part))

    def _arrays(self, group: Sequence[Batch]) -> tuple[Arrays, int]:
        first = group[0]
        arrays = {
            name: np.concatenate([unit.feeds[name] for unit in group]) if array.ndim and len(group) > 1 else array
            for name, array in first.feeds.items()
        }
        if self._labelled:
            labels = [unit.labels for unit in group if unit.labels is not None]
            arrays[LABELS] = plain(np.concatenate(labels) if len(labels) > 1 else labels[0])
        return arrays, sum(unit.samples for unit in group)

    def _augmented(self, arrays: Arrays, generator: np.random.Generator) -> Arrays:
        assert self._augment is not None
        given = {name: array for name, array in arrays.items() if name != LABELS}
        made = self._augment(dict(given), generator)
        if made.keys() != given.keys():
            raise DataError(f"augmentation gives {sorted(made)}, but the inputs are {sorted(given)}")
        return {**arrays, **made}
