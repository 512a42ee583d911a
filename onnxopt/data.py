"""Data that the user gives, for calibration, training and evaluation, as batches for one model.

Data are streamed: however many samples there are, only a few are in memory. They are looked at once, from
beginning to end, before any work: what does not fit the model is one ``DataError``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from onnxopt._feeds import (
    TEST_DATA,
    FeedList,
    is_function,
    is_test_data,
    of_function,
    of_iterator,
    of_reader,
    of_sequence,
    of_test_data,
)
from onnxopt._fit import Array, Arrays, Batch, Inputs
from onnxopt._rows import MAX_SAMPLES, ArrayTable, FileTable, Rows
from onnxopt.errors import DataError
from onnxopt.probes import find_probes
from onnxopt.runtime import Feeds, Session, Snapshot

__all__ = ["MAX_PROBES", "MAX_SAMPLES", "Arrays", "Batch", "Dataset", "load_data", "load_probes", "random_data"]

_ELEMENTS = 1 << 20
"""About so many numbers go into a model at a time in ``small_batches``."""
MAX_PROBES = 4
"""How many probes are made of data where each of them is a run of its own."""


class _Content(Protocol):
    """Where batches come from: units, any of which can be chosen."""

    labelled: bool
    stackable: bool
    fingerprint: str
    unit_samples: Array
    unit_bytes: Array

    def batches(self, units: Array, /) -> Iterator[Batch]: ...


class Dataset:
    """Batches for one model; each ``batches()`` starts anew, in the same order."""

    def __init__(self, content: _Content, *, random: bool = False, units: Array | None = None) -> None:
        self._content = content
        self._units: Array = np.arange(len(content.unit_samples)) if units is None else units
        self.random = random
        """Whether it was made up, and says nothing of what the model will meet."""
        self.labelled = content.labelled
        """Whether every batch comes with labels."""
        self.stackable = content.stackable
        """Whether batches may be cut along the first axis of each array, samples being independent."""
        self.fingerprint = content.fingerprint
        """A hash of all content, the same in every process."""
        if units is not None:
            self.fingerprint = hashlib.sha256(content.fingerprint.encode() + self._units.tobytes()).hexdigest()

    def batches(self) -> Iterator[Batch]:
        """All samples, in batches as the model takes them."""
        return self._content.batches(self._units)

    def small_batches(self, most: int = MAX_SAMPLES) -> Iterator[Batch]:
        """The same, of large samples fewer at a time where batches may be cut: what a model computes of many takes
        much memory. There, ``most`` samples go together at most."""
        for batch in self.batches():
            size = sum(int(np.size(array)) for array in batch.feeds.values())
            rows = min(most, max(1, _ELEMENTS * batch.samples // max(size, 1)))
            yield from batch.cut(rows if self.stackable else batch.samples)

    def __len__(self) -> int:
        """The number of samples."""
        return int(self._content.unit_samples[self._units].sum())

    @property
    def units(self) -> int:
        """Into how many parts it can be split: samples, or batches where these belong together."""
        return len(self._units)

    def split(self, share: float = 0.5, seed: int = 0) -> tuple[Dataset, Dataset]:
        """Two disjoint parts, drawn at random, both in the order of the whole; ``share`` goes into the first.

        Raises ``DataError`` if there is nothing to divide.
        """
        if self.units < 2:
            raise DataError("one sample, or one batch that belongs together, cannot be split into two parts")
        order = np.random.default_rng(seed).permutation(self.units)
        first = min(max(round(share * self.units), 1), self.units - 1)
        return self.part(order[:first]), self.part(order[first:])

    def take(self, samples: int) -> Dataset:
        """The first samples: as many batches as belong together, at least one, and no more than asked for."""
        kept = int(np.searchsorted(np.cumsum(self._content.unit_samples[self._units]), samples, side="right"))
        return self.part(np.arange(min(max(kept, 1), self.units)))

    def one(self) -> Batch:
        """The first sample, or the batch that belongs together: what all passes take times of, so that these add up."""
        return next(iter(self.take(1).batches()))

    def largest(self) -> Dataset:
        """The sample, or the batch that belongs together, that takes the most memory."""
        return self.part(np.array([np.argmax(self._content.unit_bytes[self._units])]))

    @property
    def nbytes(self) -> int:
        """The size of all samples in memory."""
        return int(self._content.unit_bytes[self._units].sum())

    def part(self, places: Array) -> Dataset:
        """The units at these places, in the order of the whole."""
        if len(places) == self.units:
            return self
        return Dataset(self._content, random=self.random, units=np.sort(self._units[places]))


def load_data(source: Any, model: ir.Model) -> Dataset:
    """Data for ``model`` from whatever holds them.

    ``source`` is one of

    - an ``.npz`` file, or a directory of them: arrays named after the inputs, whose first axis counts samples;
      ``label`` or ``labels`` are right answers;
    - a directory of ``test_data_set_*`` with ``input_0.pb`` …, or one of these;
    - ``module:callable``, which is called for each pass over the data and returns feed dicts, or pairs of a feed
      dict and labels; it must give the same each time;
    - a dict of arrays whose first axis counts samples; an iterable of feed dicts, or of such pairs; a
      ``CalibrationDataReader`` of ONNX Runtime. What can be gone through only once is put into a temporary file.

    A feed dict goes into the model as it is. Samples are put together: n where the model's first axis is fixed at
    n, up to 16 where it is dynamic; where every array has an axis more than its input, one by one.

    Raises ``DataError`` for what cannot be read or does not fit the model: names, types, shapes, NaN and infinity,
    no samples, labels of another number than samples.
    """
    if isinstance(source, Dataset):
        return source
    inputs = Inputs(model)
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        path = Path(text)
        if path.exists() or not is_function(text):
            return Dataset(_of_path(path, inputs))
        return Dataset(FeedList(of_function(text, inputs), inputs, watched=True))
    if isinstance(source, Mapping):
        return Dataset(Rows([ArrayTable(source, inputs)], inputs))
    if hasattr(source, "get_next"):
        return Dataset(FeedList(of_reader(source, inputs), inputs))
    if isinstance(source, Sequence):
        return Dataset(FeedList(of_sequence(source, inputs), inputs))
    if isinstance(source, Iterable):
        return Dataset(FeedList(of_iterator(iter(source), inputs), inputs))
    raise DataError(
        f"data are an .npz file, a directory, 'module:callable', arrays or an iterable of feed dicts, "
        f"got {type(source).__name__}"
    )


def _of_path(path: Path, inputs: Inputs) -> _Content:
    if not path.is_dir():
        return Rows([FileTable(path, inputs)], inputs)
    if is_test_data(path) or any(path.glob(f"{TEST_DATA}*")):
        return FeedList(of_test_data(path, inputs), inputs)
    files = sorted(path.glob("*.npz"))
    if not files:
        raise DataError(f"{path} holds neither .npz files nor {TEST_DATA}* directories")
    return Rows([FileTable(file, inputs) for file in files], inputs)


def random_data(model: ir.Model, samples: int = 32, seed: int = 0) -> Dataset:
    """Made-up inputs on which ``model`` runs, for trying things out: what is learnt from them means little.

    Raises ``DataError`` if no inputs are found on which it runs.
    """
    inputs = Inputs(model)
    session = Session(Snapshot.of(model))
    feeds: list[Feeds] = []
    dataset = None
    while dataset is None or len(dataset) < samples:
        feeds.append(find_probes(model, session, count=1, seed=seed + len(feeds))[0].feeds)
        if dataset is None or len(feeds) * len(dataset) >= samples:
            dataset = Dataset(FeedList(of_sequence(feeds, inputs), inputs), random=True)
    return dataset


def load_probes(source: Any, model: ir.Model) -> list[Feeds]:
    """The first samples of data (see ``load_data``) as inputs of ``model``: one batch where they were put
    together freely, else up to four.

    Raises ``DataError`` if the data cannot be read, or do not fit the model.
    """
    data = load_data(source, model)
    return [batch.feeds for batch in islice(data.batches(), 1 if data.stackable else MAX_PROBES)]
