"""Read ``.npz`` files a block of rows at a time, so that a file may be larger than memory.

A member is a header and then its elements in order, compressed or not; so blocks of rows can be read from all
members side by side. Pickled objects are never loaded.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from onnxopt.errors import DataError

MAX_WHOLE_BYTES = 256 * 1024 * 1024
"""An array whose rows are scattered over it (Fortran order) is read as a whole, up to this size."""

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@dataclass(frozen=True)
class Column:
    """An array of an ``.npz`` file."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool

    @property
    def rows(self) -> int:
        """The size of the first axis."""
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize


def read_columns(path: Path) -> list[Column]:
    """What the file holds, from the headers alone. Raises ``DataError`` if it is no ``.npz`` of plain arrays."""
    with _opened(path) as archive:
        columns = []
        for entry in archive.namelist():
            with archive.open(entry) as stream:
                columns.append(_header(stream, entry, path))
        return columns


def read_blocks(path: Path, columns: Sequence[Column], rows: int) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """The arrays ``columns``, which all have the same first axis, ``rows`` rows at a time."""
    with _opened(path) as archive, ExitStack() as stack:
        streams: dict[str, IO[bytes]] = {}
        whole: dict[str, np.ndarray[Any, Any]] = {}
        for column in columns:
            stream = stack.enter_context(archive.open(f"{column.name}.npy"))
            _header(stream, f"{column.name}.npy", path)
            if column.fortran and len(column.shape) > 1:
                whole[column.name] = _read_fortran(stream, column, path)
            else:
                streams[column.name] = stream
        for start in range(0, columns[0].rows, rows):
            count = min(rows, columns[0].rows - start)
            block = {c.name: _read(streams[c.name], c, count, path) for c in columns if c.name in streams}
            yield block | {name: array[start : start + count] for name, array in whole.items()}


def read_scalar(path: Path, column: Column) -> np.ndarray[Any, Any]:
    """An array without axes."""
    with _opened(path) as archive, archive.open(f"{column.name}.npy") as stream:
        _header(stream, f"{column.name}.npy", path)
        return _elements(stream, column, (), path)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with path.open("rb") as file:
            if file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
                raise DataError(f"{path} holds one array without a name; save it with numpy.savez(path, input=array)")
        with zipfile.ZipFile(path) as archive:
            yield archive
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"cannot read the data {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path} is not an .npz file of plain arrays: {error}") from error


def _header(stream: IO[bytes], entry: str, path: Path) -> Column:
    name = entry.removesuffix(".npy")
    version = npy.read_magic(stream)
    if version not in _HEADERS or name == entry:
        raise DataError(f"{path} is not an .npz file of plain arrays: {entry!r} is none")
    shape, fortran, dtype = _HEADERS[version](stream)
    if dtype.hasobject or dtype.names:
        raise DataError(f"{path} is not an .npz file of plain arrays: {name!r} holds {dtype}, which is not loaded")
    return Column(name, shape, dtype, fortran)


def _read(stream: IO[bytes], column: Column, rows: int, path: Path) -> np.ndarray[Any, Any]:
    return _elements(stream, column, (rows, *column.shape[1:]), path)


def _read_fortran(stream: IO[bytes], column: Column, path: Path) -> np.ndarray[Any, Any]:
    if column.rows * column.row_bytes > MAX_WHOLE_BYTES:
        raise DataError(
            f"{path}: the array {column.name!r} is large and in Fortran order, so its samples cannot be read one "
            "after the other; save numpy.ascontiguousarray of it"
        )
    return _elements(stream, column, column.shape[::-1], path).T


def _elements(stream: IO[bytes], column: Column, shape: tuple[int, ...], path: Path) -> np.ndarray[Any, Any]:
    array = np.empty(shape, column.dtype)
    target = array.reshape(-1).view(np.uint8).data if array.nbytes else memoryview(b"")
    at = 0
    while at < len(target):
        read = stream.readinto(target[at:])  # type: ignore[attr-defined]
        if not read:
            raise DataError(f"{path} is cut off: the array {column.name!r} ends too early")
        at += read
    return array.astype(column.dtype.newbyteorder("="), copy=False)
