"""Measured choices, kept on disk: the same model, data, options, runtime and machine get the same choice again.

Times are never twice the same, and where two forms take equally long the choice may fall either way. A choice that
was made once is therefore replayed, so that equal runs give equal bytes; and they need not measure again.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from onnxopt import _cache
from onnxopt._version import VERSION
from onnxopt.model import slim_proto
from onnxopt.pass_base import Context, Pass
from onnxopt.passes.quantize._cut import Kernel
from onnxopt.runtime import Ratio

_FORMAT = "1"
"""To be raised when choices are made in another way, so that none of before is taken."""


@dataclass
class Choice:
    """What was chosen, and what was learnt on the way."""

    nodes: frozenset[str] = frozenset()
    ratio: Ratio | None = None
    """The time of the model with ``nodes`` over that of the float model; if these are none, that of the fastest
    which was not good enough."""
    sqnr: float | None = None
    """Of the output that suffers most, in dB, if that was measured."""
    times: dict[str, Kernel] = field(default_factory=dict)
    """Seconds of each node in both forms."""
    harm: dict[str, float] = field(default_factory=dict)
    """The noise that a node makes alone, in units of the signal, if that was measured."""
    reason: str = ""
    """Why nothing was chosen."""


def key(pass_: Pass, context: Context, *rest: str) -> str:
    """What the choice of ``pass_`` is filed under: a hash of all that it depends on, ``rest`` included."""
    import onnxruntime

    assert context.data is not None
    model = _cache.digest(*slim_proto(context.editor.model))
    here = onnxruntime.__version__, platform.machine(), _processor()
    data = context.data.fingerprint, "" if context.evaluation is None else context.evaluation.fingerprint
    return _cache.key(VERSION, _FORMAT, model, *data, repr(pass_), *here, *rest)


def recall(name: str) -> Choice | None:
    """The choice that is filed under ``name``."""
    stored = _cache.read(_directory(), name).get("choice")
    try:
        return None if stored is None else msgspec.msgpack.decode(stored.tobytes(), type=Choice)
    except msgspec.DecodeError:  # what cannot be read is made anew
        return None


def remember(name: str, choice: Choice) -> None:
    """File a choice."""
    _cache.write(_directory(), name, {"choice": np.frombuffer(msgspec.msgpack.encode(choice), np.uint8)})


def _directory() -> Path:
    return _cache.user_directory() / "placements"


def _processor() -> str:
    """What the processor is called."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
