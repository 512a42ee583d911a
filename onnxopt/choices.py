"""Measured choices, kept on disk: the same model, data, options, runtime and machine get the same choice again.

Times are never twice the same, and where two forms take equally long the choice may fall either way. A choice that
was made once is therefore replayed, so that equal runs give equal bytes; and they need not measure again.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from onnxopt import _cache
from onnxopt._version import VERSION
from onnxopt.model import slim_proto
from onnxopt.pass_base import Context, Pass

T = TypeVar("T")

_FORMAT = "10"
"""To be raised when choices are made in another way, so that none of before is taken."""


def key(pass_: Pass, context: Context, *rest: str) -> str:
    """What the choice of ``pass_`` is filed under: a hash of all that it depends on, ``rest`` included."""
    import onnxruntime

    model = _cache.digest(*slim_proto(context.editor.model))
    here = onnxruntime.__version__, platform.machine(), processor()
    data = ["" if each is None else each.fingerprint for each in (context.data, context.evaluation)]
    return _cache.key(VERSION, _FORMAT, model, *data, repr(pass_), *here, *rest)


def recall(name: str, kind: type[T]) -> T | None:
    """The choice of this type that is filed under ``name``."""
    stored = _cache.read(_directory(), name).get("choice")
    try:
        return None if stored is None else msgspec.msgpack.decode(stored.tobytes(), type=kind)
    except msgspec.DecodeError:  # what cannot be read is made anew
        return None


def remember(name: str, choice: object) -> None:
    """File a choice: what msgspec can write."""
    _cache.write(_directory(), name, {"choice": np.frombuffer(msgspec.msgpack.encode(choice), np.uint8)})


def _directory() -> Path:
    return _cache.user_directory() / "placements"


def processor() -> str:
    """What the processor is called."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
