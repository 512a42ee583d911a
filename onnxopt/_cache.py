"""Results on disk, by a hash of what they were computed from: in the user's cache directory, up to 1 GB."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray[Any, Any]]

MAX_BYTES = 1_000_000_000
"""What all files may take together; the one that was not used for longest goes first."""


def user_directory() -> Path:
    """Where this system keeps what can be computed anew."""
    given = os.environ.get("XDG_CACHE_HOME")
    if given and os.path.isabs(given):
        home = Path(given)
    elif sys.platform == "win32":
        home = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        home = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return home / "onnxopt"


def key(*parts: str) -> str:
    """What is filed that depends on just these texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def digest(proto: onnx.ModelProto, directory: Path | None) -> str:
    """A hash of a model, whose external weights lie in ``directory``: of their content, wherever that is."""
    hasher = hashlib.sha256()
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL and directory is not None:
            place = {entry.key: entry.value for entry in tensor.external_data}
            if count := int(place["length"]):
                file = directory / place["location"]
                hasher.update(np.memmap(file, np.uint8, "r", int(place.get("offset", 0)), count).data)
            del tensor.external_data[:]
    hasher.update(model.SerializeToString(deterministic=True))
    return hasher.hexdigest()


def read(directory: Path, key: str) -> Arrays:
    """What was stored under ``key``; nothing if there is nothing that can be read."""
    file = directory / f"{key}.npz"
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        os.utime(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        log.debug("%s is of no use and is made anew: %s", file, error)
        return {}
    return arrays


def write(directory: Path, key: str, arrays: Arrays) -> str:
    """Store ``arrays`` under ``key`` in one step; where that is not possible they are not, and what is returned says
    why."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=directory, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
            os.replace(name, directory / f"{key}.npz")
        except BaseException:
            os.unlink(name)
            raise
        _trim(directory)
    except OSError as error:
        log.debug("nothing is kept in %s: %s", directory, error)
        return f"nothing can be kept in {directory}: {error.strerror or error}"
    return ""


def _trim(directory: Path) -> None:
    files = []
    for file in directory.glob("*.npz"):
        try:
            files.append((file.stat(), file))
        except FileNotFoundError:  # somebody else trims too
            continue
    total = sum(stat.st_size for stat, _ in files)
    for stat, file in sorted(files, key=lambda each: (each[0].st_mtime_ns, each[1])):
        if total <= MAX_BYTES:
            return
        file.unlink(missing_ok=True)
        total -= stat.st_size
