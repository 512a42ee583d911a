"""Checkpoints: all that training goes on from, in one file that is replaced as a whole.

The file is an ``.npz`` of plain arrays; numbers and names are JSON in one of them.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt.errors import DataError
from onnxopt.writing import remove_leftovers, replace_file

Array = np.ndarray[Any, Any]

_STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """What training looked like after some step."""

    arrays: Mapping[str, Array]
    state: Mapping[str, Any]
    """Numbers, texts and lists."""


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Put ``checkpoint`` in the place of the one at ``path``.

    Raises ``OutputError`` if it cannot be written; the old one is intact then.
    """
    state = json.dumps({**checkpoint.state, "process": os.getpid()}).encode()
    with replace_file(path) as file:
        np.savez(file, **{_STATE: np.frombuffer(state, np.uint8)}, **dict(checkpoint.arrays))  # type: ignore[arg-type]


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at ``path``; what a killed process had begun to write beside it is removed.

    Raises ``DataError`` if there is none.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        state = json.loads(arrays.pop(_STATE).tobytes())
    except OSError as error:
        raise DataError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is no checkpoint of a training: {error}") from error
    if (process := state.pop("process", 0)) != os.getpid():
        remove_leftovers(path, process)
    return Checkpoint(arrays, state)
