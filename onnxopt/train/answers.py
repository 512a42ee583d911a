"""What a teacher says of samples that do not fit into memory, on disk, so that it is asked once for each of them.

A file holds a record a sample, in the order of the data. It lies in the user's cache directory under a hash of the
teacher and of the data, so that later trainings find it; what was not used for longest goes first.
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt import _cache
from onnxopt._version import VERSION
from onnxopt.data import Dataset
from onnxopt.train.teachers import Teacher

log = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]

MAX_BYTES = 4 << 30
"""What all files may take together."""


class Answers:
    """Records of what a teacher says, in a file."""

    def __init__(self, records: Array) -> None:
        self._records = records

    def at(self, place: int) -> Arrays:
        """What was said of the sample at this place, as a batch of one."""
        record = self._records[place : place + 1]
        return {name: np.array(record[name]) for name in record.dtype.names or ()}

    @classmethod
    def of(cls, teacher: Teacher, data: Dataset, example: Arrays) -> Answers | None:
        """What ``teacher`` says of all of ``data``, as ``example`` of one sample: from the file, which is made if it
        is not there. ``None`` if it cannot be kept: it takes too much, or its shapes differ from sample to sample."""
        import onnxruntime

        dtype = np.dtype([(name, array.dtype, array.shape[1:]) for name, array in sorted(example.items())])
        if dtype.itemsize * data.units > MAX_BYTES:
            return None
        directory = _cache.user_directory() / "teachers"
        key = _cache.key(VERSION, onnxruntime.__version__, teacher.digest, data.fingerprint)
        file = directory / f"{key}.npy"
        found = _read(file, dtype, data.units)
        try:
            if found is None:
                _write(file, dtype, teacher, data)
                found = _read(file, dtype, data.units)
            _trim(directory, keep=file)
        except (OSError, ValueError) as error:  # the disk is full, or shapes differ
            log.debug("nothing is kept in %s: %s", directory, error)
        return None if found is None else cls(found)


def _read(file: Path, dtype: np.dtype[Any], count: int) -> Array | None:
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
        os.utime(file)
    except (OSError, ValueError, EOFError):  # what cannot be read is made anew
        return None
    return found if found.dtype == dtype and found.shape == (count,) else None


def _write(file: Path, dtype: np.dtype[Any], teacher: Teacher, data: Dataset) -> None:
    """Write in one step; a full disk is an ``OSError`` here, where writing into a mapped file would end the process."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            header = {"descr": dtype.descr, "fortran_order": False, "shape": (data.units,)}
            np.lib.format.write_array_header_2_0(stream, header)
            for batch in data.batches():
                records = np.empty(batch.samples, dtype)
                for key, array in teacher(batch.feeds).items():
                    if array.shape != records[key].shape:
                        raise ValueError(f"{key} is {array.shape}, where the first samples gave {dtype[key].shape}")
                    records[key] = array
                stream.write(records.tobytes())
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise


def _trim(directory: Path, keep: Path) -> None:
    files = [*directory.glob("*.npy"), *directory.glob("*.tmp")]  # the second of runs that were killed
    stats = {file: file.stat() for file in files if file.exists()}
    total = sum(stat.st_size for stat in stats.values())
    for file in sorted(stats, key=lambda each: (stats[each].st_mtime_ns, each)):
        if total > MAX_BYTES and file != keep:
            file.unlink(missing_ok=True)
            total -= stats[file].st_size
