"""Work for workers: a module that other processes can import too."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_WORK = """
import os, signal, time

def double(shared, number):
    time.sleep(0.05)
    return 2 * number + len(shared)

def die(shared, number):
    os.kill(os.getpid(), signal.SIGKILL)

def die_once(shared, number, mark):
    if not os.path.exists(mark):
        open(mark, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return number

def grow(shared, number):
    return len(bytearray(number))

def sleep(shared, number):
    time.sleep(number)
    return number

def where(shared):
    return os.getpid(), len(os.sched_getaffinity(0))
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "works_of_tests.py").write_text(_WORK)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    import works_of_tests  # type: ignore[import-not-found]

    yield works_of_tests
    sys.modules.pop("works_of_tests")
