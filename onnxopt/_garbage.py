"""When not to search for garbage. Imports nothing heavy, so that it holds for imports too."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_gc() -> Iterator[None]:
    """Do not search for garbage meanwhile: a model is one tangle of cycles, and searching it again and again
    while it grows takes time quadratic in its size."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
