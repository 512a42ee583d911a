"""Data as tables of samples: arrays whose first axis counts samples, from ``.npz`` files or from memory.

Samples are cut into batches as the model takes them. Where its first axis is fixed at n, n samples that follow
each other stay together; where it is dynamic, as many go together as memory allows; and where every array has an
axis more than its input, the model takes one sample without that axis.
"""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt._fit import Array, Arrays, Batch, Hash, Inputs, add_to_hash, check_values, ready
from onnxopt._npz import Column, read_blocks, read_columns, read_scalar
from onnxopt.errors import DataError

log = logging.getLogger(__name__)

MAX_SAMPLES = 16
"""How many samples go together where the model has a dynamic batch,"""
MAX_BATCH_BYTES = 16 * 1024 * 1024
"""unless they are larger than this together."""

_LABELS = ""
"""The name of the labels among the columns of a block; no input is called so."""
_HINT = "the first axis counts samples"


class Table(ABC):
    """Arrays with a common first axis, which fit the inputs of a model."""

    def __init__(
        self, where: str, given: Mapping[str, Column], labels: Column | None, scalars: Arrays, inputs: Inputs
    ) -> None:
        inputs.check_names(where, given)
        self.where, self.scalars, self.labels = where, scalars, labels
        self.columns = [column for column in given.values() if column.shape]
        self.extra_axis = bool(self.columns) and all(inputs.rank(c.name) == len(c.shape) - 1 for c in self.columns)
        for name, array in scalars.items():
            inputs.check_type(where, name, array.dtype)
            inputs.check_rank(where, name, 0, _HINT)
            check_values(where, name, array)
        for column in self.columns:
            inputs.check_type(where, column.name, column.dtype)
            if not self.extra_axis:
                inputs.check_rank(where, column.name, len(column.shape), _HINT)
            inputs.check_dims(where, column.name, column.shape, free=1, offset=int(self.extra_axis))
            if not column.rows:
                raise DataError(f"{where}: the array {column.name!r} holds no samples")
        if len({column.rows for column in self.columns}) > 1:
            each = ", ".join(f"{column.name} {column.rows}" for column in self.columns)
            raise DataError(f"{where}: the arrays hold different numbers of samples: {each}")
        self.rows = self.columns[0].rows if self.columns else 1
        if labels is not None and (not labels.shape or labels.rows != self.rows):
            held = labels.rows if labels.shape else "one without an axis"
            raise DataError(f"{where}: {self.rows} samples have as many labels, but there are {held}")

    @property
    def row_bytes(self) -> int:
        """The size of one sample."""
        return max(1, sum(column.row_bytes for column in self.columns))

    @property
    def signature(self) -> tuple[Any, ...]:
        """What samples must have in common to go together."""
        return tuple((column.name, column.shape[1:]) for column in self.columns)

    @abstractmethod
    def blocks(self, rows: int) -> Iterator[tuple[int, Arrays]]:
        """So many rows at a time, and how many there are: the columns, and the labels if there are any."""


class FileTable(Table):
    """An ``.npz`` file; nothing but its headers is read until there is need."""

    def __init__(self, path: Path, inputs: Inputs) -> None:
        given, labels = inputs.take_labels({column.name: column for column in read_columns(path)})
        self._path = path
        scalars = {name: read_scalar(path, column) for name, column in given.items() if not column.shape}
        super().__init__(str(path), given, labels, scalars, inputs)

    def blocks(self, rows: int) -> Iterator[tuple[int, Arrays]]:
        if not self.columns:
            yield 1, {}
            return
        wanted = [*self.columns, self.labels] if self.labels is not None else self.columns
        for block in read_blocks(self._path, wanted, rows):
            if self.labels is not None:
                block[_LABELS] = block.pop(self.labels.name)
            yield len(next(iter(block.values()))), block


class ArrayTable(Table):
    """Arrays in memory."""

    def __init__(self, arrays: Mapping[str, Any], inputs: Inputs) -> None:
        given, labels = inputs.take_labels({name: np.asarray(array) for name, array in arrays.items()})
        columns = {name: Column(name, array.shape, array.dtype, False) for name, array in given.items()}
        scalars = {name: array for name, array in given.items() if not array.ndim}
        self._stored = {name: array for name, array in given.items() if array.ndim}
        if labels is not None:
            self._stored[_LABELS] = labels
        column = None if labels is None else Column(_LABELS, labels.shape, labels.dtype, False)
        super().__init__("the data", columns, column, scalars, inputs)

    def blocks(self, rows: int) -> Iterator[tuple[int, Arrays]]:
        for start in range(0, self.rows, rows):
            yield min(rows, self.rows - start), {n: array[start : start + rows] for n, array in self._stored.items()}


class Rows:
    """Tables one after the other, as the content of a dataset: its units are samples, or n that stay together."""

    def __init__(self, tables: Sequence[Table], inputs: Inputs) -> None:
        first = tables[0]
        _check_alike(tables)
        self._tables = tables
        self._scalars = {name: ready(array) for name, array in first.scalars.items()}
        self._extra_axis = first.extra_axis
        self.labelled = first.labels is not None
        fixed = {} if first.extra_axis else _fixed_sizes(first, inputs)
        self._unit = next(iter(fixed), 1)
        self.stackable = not fixed and not first.extra_axis
        if self._unit > 1 and len({table.signature for table in tables}) > 1:
            raise DataError(
                f"{first.where} and others: the model takes {self._unit} samples at once, which must be of one shape"
            )
        total = sum(table.rows for table in tables)
        units, rest = divmod(total, self._unit)
        if not units:
            name = fixed[self._unit]
            raise DataError(f"{first.where} holds {total} samples, the model takes {self._unit} at once ({name!r})")
        if rest:
            log.warning("%s: the last %d samples are left out, since the model takes %d at once",
                        first.where, rest, self._unit)  # fmt: skip
        self.unit_samples = np.full(units, self._unit, dtype=np.int64)
        self.unit_bytes = np.repeat([t.row_bytes for t in tables], [t.rows for t in tables])[:units] * self._unit
        self.fingerprint = self._check()

    def _check(self) -> str:
        """Look at every value once; returns a hash of all of them."""
        hashes: dict[str, Hash] = {}
        for table, _, start, _, block in self._blocks():
            for name, array in block.items():
                if name != _LABELS:
                    check_values(table.where, name, array, start)
                add_to_hash(hashes.setdefault(name, hashlib.sha256()), array)
        whole = hashlib.sha256(repr((self._unit, self._extra_axis)).encode())
        for table in self._tables:
            whole.update(repr((table.rows, table.signature)).encode())
        for name, array in sorted(self._scalars.items()):
            whole.update(name.encode())
            add_to_hash(whole, array)
        for name, each in sorted(hashes.items()):
            whole.update(name.encode() + each.digest())
        return whole.hexdigest()

    def batches(self, units: Array) -> Iterator[Batch]:
        """The samples of these units, in order."""
        waiting: Arrays = {}
        count = 0
        owner: Table | None = None
        for table, rows, block in self._chosen(units):
            if owner is not None and table.signature != owner.signature and count:
                yield self._batch(waiting, 0, count)
                waiting, count = {}, 0
            owner = table
            joined = {n: np.concatenate([waiting[n], a]) for n, a in block.items()} if count else block
            count += rows
            size = self._size(table)
            end = count - count % size
            for start in range(0, end, size):
                yield self._batch(joined, start, start + size)
            waiting = {name: array[end:] for name, array in joined.items()}
            count -= end
        if count:
            yield self._batch(waiting, 0, count)

    def _size(self, table: Table) -> int:
        """The samples of a batch."""
        if not self.stackable:
            return self._unit
        return max(1, min(MAX_SAMPLES, MAX_BATCH_BYTES // table.row_bytes))

    def _batch(self, arrays: Arrays, start: int, stop: int) -> Batch:
        labels = arrays[_LABELS][start:stop] if _LABELS in arrays else None
        place = start if self._extra_axis else slice(start, stop)
        feeds = {name: ready(array[place]) for name, array in arrays.items() if name != _LABELS}
        return Batch(feeds | self._scalars, labels, stop - start)

    def _chosen(self, units: Array) -> Iterator[tuple[Table, int, Arrays]]:
        """The rows of these units, and how many there are, block by block."""
        total = sum(table.rows for table in self._tables)
        wanted = np.zeros(total, dtype=bool)
        wanted[(units[:, None] * self._unit + np.arange(self._unit)).reshape(-1)] = True
        last = int(np.flatnonzero(wanted)[-1])
        for table, before, start, rows, block in self._blocks():
            at = before + start
            keep = wanted[at : at + rows]
            if keep.all():
                yield table, rows, block
            elif keep.any():
                yield table, int(keep.sum()), {name: array[keep] for name, array in block.items()}
            if at + rows > last:
                return

    def _blocks(self) -> Iterator[tuple[Table, int, int, int, Arrays]]:
        """For each block its table, the rows before that table, the row it starts at, and how many it has."""
        before = 0
        for table in self._tables:
            start = 0
            for rows, block in table.blocks(max(1, min(1024, MAX_BATCH_BYTES // table.row_bytes))):
                yield table, before, start, rows, block
                start += rows
            before += table.rows


def _check_alike(tables: Sequence[Table]) -> None:
    first = tables[0]
    for table in tables[1:]:
        pair = f"{first.where} and {table.where}"
        if (table.labels is None) != (first.labels is None):
            raise DataError(f"{pair}: only one of them has labels")
        if table.extra_axis != first.extra_axis or table.scalars.keys() != first.scalars.keys():
            raise DataError(f"{pair}: their arrays have different numbers of axes")
        for name, array in table.scalars.items():
            if array != first.scalars[name]:
                raise DataError(f"{pair}: the array {name!r} has no axis for samples, and differs")


def _fixed_sizes(table: Table, inputs: Inputs) -> dict[int, str]:
    """The size of the first axis of the inputs that fix it, with one of them; at most one size."""
    fixed = {size: c.name for c in table.columns if (size := inputs.first_dim(c.name)) is not None}
    if len(fixed) > 1:
        raise DataError(
            f"{table.where}: the inputs have first axes of different sizes ({', '.join(map(str, sorted(fixed)))}), "
            "so none counts samples; give each array an axis more in front"
        )
    return fixed
