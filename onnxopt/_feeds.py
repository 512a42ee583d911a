"""Data as ready inputs: ``.pb`` files of ONNX, a function, a loop over feed dicts, ONNX Runtime's own readers.

Each item goes into the model as it is. What can be gone through only once is written to a temporary file first.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx.numpy_helper
from google.protobuf.message import DecodeError

from onnxopt._fit import Array, Arrays, Batch, Inputs, add_to_hash, check_values, ready
from onnxopt.errors import DataError, OnnxoptError

TEST_DATA = "test_data_set_"
"""How the directories of ONNX's own test data begin."""


class Item(NamedTuple):
    """What goes into one run, as somebody gave it."""

    where: str
    arrays: Arrays
    labels: Array | None


Items = Callable[[], Iterator[Item]]
"""Goes through all items anew at each call."""


@dataclass(frozen=True)
class _Kept:
    """Items in memory."""

    items: list[Item]

    def __call__(self) -> Iterator[Item]:
        return iter(self.items)


class FeedList:
    """Ready inputs as the content of a dataset: each is a unit of its own."""

    stackable = False

    def __init__(self, items: Items, inputs: Inputs, *, watched: bool = False) -> None:
        """Check every item; ``watched``: make sure later on that they are still the same."""
        self._items, self._watched = items, watched
        hasher = hashlib.sha256()
        samples, sizes, sums = [], [], []
        labelled: set[bool] = set()
        for item in items():
            _check(item, inputs)
            for name, array in sorted(item.arrays.items()):
                hasher.update(repr((name, array.shape)).encode())
                add_to_hash(hasher, array)
            labelled.add(item.labels is not None)
            if item.labels is not None:
                add_to_hash(hasher, item.labels)
            if len(labelled) > 1:
                raise DataError(f"{item.where}: some items come with labels, others without")
            samples.append(_samples(item))
            sizes.append(sum(array.nbytes for array in item.arrays.values()))
            sums.append(_checksum(item) if watched else 0)
        if not samples:
            raise DataError("the data hold no samples: nothing was yielded")
        self.labelled = True in labelled
        self.unit_samples = np.array(samples, dtype=np.int64)
        self.unit_bytes = np.array(sizes, dtype=np.int64)
        self._sums = sums
        self.fingerprint = hasher.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        """Items travel to other processes as they are, wherever they came from."""
        return self.__dict__ | {"_items": _Kept(list(self._items()))}

    def batches(self, units: Array) -> Iterator[Batch]:
        """These items, in order."""
        chosen = set(units.tolist())
        for at, item in enumerate(self._items()):
            if at not in chosen:
                continue
            if self._watched and (at >= len(self._sums) or _checksum(item) != self._sums[at]):
                raise DataError(f"{item.where} gives other data than the first time; let it give the same at each call")
            chosen.remove(at)
            feeds = {name: ready(array) for name, array in item.arrays.items()}
            yield Batch(feeds, item.labels, int(self.unit_samples[at]))
            if not chosen:
                return
        if chosen:
            raise DataError("the data gave fewer items than the first time; let them give the same at each call")


def _check(item: Item, inputs: Inputs) -> None:
    inputs.check_names(item.where, item.arrays)
    for name, array in item.arrays.items():
        inputs.check_type(item.where, name, array.dtype)
        inputs.check_rank(item.where, name, array.ndim, "it goes into the model as it is, batch axis included")
        inputs.check_dims(item.where, name, array.shape, free=0, offset=0)
        check_values(item.where, name, array)
        if not array.size:
            raise DataError(f"{item.where}: the array {name!r} is empty")


def _samples(item: Item) -> int:
    """How many samples an item holds: the common first axis of its arrays, else it is one."""
    first = {array.shape[0] for array in item.arrays.values() if array.ndim}
    samples = first.pop() if len(first) == 1 else 1
    if item.labels is None:
        return samples
    held = len(item.labels) if item.labels.ndim else 1
    if held != samples and held not in first:
        raise DataError(f"{item.where} holds {samples} samples, but {held} labels")
    return held


def _checksum(item: Item) -> int:
    total = 0
    for name, array in sorted(item.arrays.items()):
        if array.dtype.kind not in "OUST":
            content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            total = zlib.crc32(content, zlib.crc32(name.encode(), total))
    return total


def of_function(text: str, inputs: Inputs) -> Items:
    """``module:callable``: what it returns is gone through, and it is called anew each time.

    Raises ``DataError`` if there is no such module or callable, or if it fails.
    """
    module, _, name = text.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except ImportError as error:
        raise DataError(f"cannot import {module!r} for the data {text}: {error}; is it on PYTHONPATH?") from error
    except AttributeError:
        raise DataError(f"the module {module!r} has no {name!r} to take data from") from None
    except Exception as error:
        raise DataError(f"the module {module!r} fails while it is imported: {error!r}") from error
    if not callable(found):
        raise DataError(f"{text} cannot be called; it must be a function that returns an iterable of feed dicts")

    def items() -> Iterator[Item]:
        try:
            iterator = iter(found())
        except Exception as error:
            raise DataError(f"{text} fails: {error!r}") from error
        yield from _items(text, iterator, inputs)

    return items


def is_function(text: str) -> bool:
    """Whether ``text`` reads as ``module:callable``."""
    return re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", text) is not None


def of_sequence(sequence: Iterable[Any], inputs: Inputs) -> Items:
    """Feed dicts in memory."""
    return lambda: _items("item", iter(sequence), inputs)


def of_iterator(iterator: Iterator[Any], inputs: Inputs) -> Items:
    """What can be gone through once: it is, now, into a temporary file."""
    return _Spool(_items("item", iterator, inputs)).items


def of_reader(reader: Any, inputs: Inputs) -> Items:
    """A ``CalibrationDataReader`` of ONNX Runtime, which is read to its end."""
    return of_iterator(iter(reader.get_next, None), inputs)


def of_test_data(path: Path, inputs: Inputs) -> Items:
    """A directory of ``input_0.pb``, ``input_1.pb`` …, or one that holds such directories."""
    folders = [path] if is_test_data(path) else sorted(path.glob(f"{TEST_DATA}*"), key=_number)

    def items() -> Iterator[Item]:
        for folder in folders:
            files = sorted(folder.glob("input_*.pb"), key=_number)
            yield Item(str(folder), dict(_read_pb(file, at, inputs) for at, file in enumerate(files)), None)

    return items


def is_test_data(path: Path) -> bool:
    """Whether the directory itself holds inputs as ``.pb`` files."""
    return any(path.glob("input_*.pb"))


def _number(path: Path) -> tuple[int, str]:
    found = re.search(r"(\d+)(\.pb)?$", path.name)
    return int(found[1]) if found else 0, path.name


def _read_pb(file: Path, at: int, inputs: Inputs) -> tuple[str, Array]:
    try:
        tensor = onnx.TensorProto.FromString(file.read_bytes())
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise DataError(f"{file} keeps its data in another file, which is not followed")
        array = onnx.numpy_helper.to_array(tensor)
    except OSError as error:
        raise DataError(f"cannot read the data {file}: {error.strerror or error}") from error
    except DataError:
        raise
    except (DecodeError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{file} is not a tensor of ONNX: {error}") from error
    number = _number(file)[0]
    name = tensor.name if tensor.name in inputs.known else dict(enumerate(inputs.needed)).get(number, tensor.name)
    return name, array


def _items(what: str, iterator: Iterator[Any], inputs: Inputs) -> Iterator[Item]:
    at = 0
    while True:
        where = f"{what}, item {at}" if what != "item" else f"item {at} of the data"
        try:
            given = next(iterator)
        except StopIteration:
            return
        except OnnxoptError:
            raise
        except Exception as error:
            raise DataError(f"{where} cannot be had: {error!r}") from error
        labels = None
        if isinstance(given, tuple) and len(given) == 2:
            given, labels = given
        if not isinstance(given, Mapping):
            raise DataError(
                f"{where} is a {type(given).__name__}; it must be a dict from input names to arrays, "
                "or a pair of such a dict and labels"
            )
        named, found = inputs.take_labels(given)
        labels = found if labels is None else labels
        arrays = {str(name): np.asarray(array) for name, array in named.items()}
        yield Item(where, arrays, None if labels is None else np.asarray(labels))
        at += 1


class _Spool:
    """Items in a temporary file, from where they can be read again and again."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._file = tempfile.TemporaryFile(prefix="onnxopt-data-")  # noqa: SIM115  it lives as long as this does
        self._index: list[tuple[str, list[tuple[str, int, bool]]]] = []
        for item in items:
            places = []
            for name, array in (*item.arrays.items(), *([("", item.labels)] if item.labels is not None else [])):
                is_object = array.dtype.kind == "O"
                places.append((name, self._file.tell(), is_object))
                try:
                    np.save(self._file, array.astype("U") if is_object else array, allow_pickle=False)
                except OSError as error:
                    raise DataError(f"the data do not fit into a temporary file: {error.strerror or error}") from error
            self._index.append((item.where, places))

    def items(self) -> Iterator[Item]:
        for where, places in self._index:
            arrays: Arrays = {}
            for name, offset, is_object in places:
                self._file.seek(offset)
                array = np.load(self._file, allow_pickle=False)
                arrays[name] = array.astype(object) if is_object else array
            labels = arrays.pop("", None)
            yield Item(where, arrays, labels)
