"""Evaluations as jobs on any executor, kept on disk once they are computed.

A job is a function of a module, called with what all jobs of a search share and with arguments of its own. What it
returns depends on these alone, so it is filed under their hash: a search that was interrupted, or that is asked for
another budget, takes from there what it needs again. A job that fails, or whose worker dies, comes to a ``Failure``
that says why; a search goes on without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from onnxopt import _cache
from onnxopt.errors import OnnxoptError

T = TypeVar("T")

_MOST_LOST = 3
"""So many jobs in a row that are lost say that an executor is of no more use."""
_TICK = 0.2
_SILENCE = 5.0
"""An executor that does not answer for so many seconds is gone."""
_LATE = "the time was over"


@dataclass(frozen=True)
class Job:
    """Something to be computed."""

    work: Callable[..., Any]
    """Called with what all jobs share, then with the arguments; a function of a module."""
    arguments: tuple[Any, ...]
    """What ``repr`` tells apart."""
    kind: Any
    """The type of its result, which msgspec can write."""
    what: str
    """What it is about, for people."""


@dataclass(frozen=True)
class Failure:
    """What became of a job that has no result."""

    reason: str


class InProcess(Executor):
    """Does what is submitted at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Remote(Executor):
    """What may vanish without a word."""

    def answers(self) -> bool:
        """Whether it is still there."""
        raise NotImplementedError


@dataclass
class Evaluations:
    """Carries jobs out."""

    shared: bytes
    """What all jobs share;"""
    key: str
    """and a hash of what it says."""
    executor: Executor
    end: float
    """By ``time.monotonic()``: after this no job begins."""
    on_progress: Callable[[str], None]
    planned: int = 0
    """How many jobs there are going to be, as far as that is known."""
    count: int = 0
    """How many jobs were carried out,"""
    reused: int = 0
    """and how many were known from before this run."""
    gone: str = ""
    """Why the executor is of no more use, if it is not."""
    unkept: str = ""
    """Why results could not be kept on disk, if one could not."""
    _known: dict[str, Any] = field(default_factory=dict)
    _lost: int = 0

    def run(self, jobs: Sequence[Job]) -> list[Any]:
        """The results in the order of the jobs, or a ``Failure`` each."""
        new = {name: job for job in jobs if not self._recall(name := self._name(job), job.kind)}
        failed: dict[str, Failure] = {}
        lost = self._submit(list(new.values()), failed)
        for job in lost:  # alone, so that the one that brings its worker down is told from those beside it
            if self._submit([job], failed):
                self._lost += 1
                failed[self._name(job)] = Failure(
                    self.gone or "its worker died while it alone was computed, most likely for want of memory"
                )
            if self._lost >= _MOST_LOST and not self.gone:
                self.gone = f"the workers lost {_MOST_LOST} evaluations in a row"
        return [failed.get(name := self._name(job)) or self._known[name] for job in jobs]

    def remembered(self, what: str, kind: type[T], compute: Callable[[], T]) -> T:
        """What ``compute`` gives, here and now, or gave when it was asked before."""
        name = _cache.key(self.key, what)
        stored: T | None = self._stored(name, kind)
        if stored is not None:
            return stored
        found = compute()
        self._store(name, msgspec.msgpack.encode(found))
        return found

    @property
    def is_over(self) -> bool:
        """Whether no other job is to begin."""
        return bool(self.gone) or time.monotonic() > self.end

    def _submit(self, jobs: Sequence[Job], failed: dict[str, Failure]) -> list[Job]:
        """Run these jobs side by side; returns those whose workers were lost."""
        futures: dict[Future[Any], Job] = {}
        lost: list[Job] = []
        for at, job in enumerate(jobs):
            if self.is_over:
                failed[self._name(job)] = Failure(self.gone or _LATE)
                continue
            if len(jobs) == 1 or isinstance(self.executor, InProcess):
                self._say(job, len(futures) + 1)
            try:
                futures[self.executor.submit(carry_out, self.shared, job.work, job.arguments)] = job
            except Exception as error:  # executors raise what they like
                self._note(error)
                lost.append(job)
                if not self._answers():
                    lost.extend(jobs[at + 1 :])
                    break
        waiting, heard = set(futures), time.monotonic()
        while waiting:
            done, waiting = wait(waiting, timeout=_TICK)
            if self._answers():
                heard = time.monotonic()
            elif time.monotonic() - heard > _SILENCE:  # what is there no more ends nothing
                self.on_progress("nobody answers any more")
                for future in waiting:
                    future.cancel()
                return [*lost, *(futures[future] for future in waiting | done)]
            for future in done:
                job = futures[future]
                try:
                    packed, reason = future.result()
                except Exception as error:
                    self._note(error)
                    lost.append(job)
                else:
                    self._lost = 0
                    if reason:
                        failed[self._name(job)] = Failure(reason)
                    else:
                        self._keep(job, packed)
                if waiting and not isinstance(self.executor, InProcess):
                    self._say(job, 0)
            if time.monotonic() > self.end:
                late = {future for future in waiting if future.cancel()}  # one that runs is waited for
                failed.update((self._name(futures[future]), Failure(_LATE)) for future in late)
                waiting -= late
        return lost

    def _answers(self) -> bool:
        """Whether the executor is still there, as far as it can tell."""
        return not isinstance(self.executor, Remote) or self.executor.answers()

    def _name(self, job: Job) -> str:
        return _cache.key(self.key, job.work.__name__, repr(job.arguments))

    def _recall(self, name: str, kind: Any) -> bool:
        if name not in self._known:
            found = self._stored(name, kind)
            if found is None:
                return False
            self._known[name] = found
            self.reused += 1
        return True

    def _keep(self, job: Job, packed: bytes) -> None:
        self.count += 1
        self._known[self._name(job)] = msgspec.msgpack.decode(packed, type=job.kind)
        self._store(self._name(job), packed)

    @staticmethod
    def _stored(name: str, kind: Any) -> Any:
        """``None`` where there is nothing, or nothing that can be read."""
        stored = _cache.read(directory(), name).get("result")
        try:
            return None if stored is None else msgspec.msgpack.decode(stored.tobytes(), type=kind)
        except msgspec.DecodeError:
            return None

    def _store(self, name: str, packed: bytes) -> None:
        self.unkept = _cache.write(directory(), name, {"result": np.frombuffer(packed, np.uint8)}) or self.unkept

    def _note(self, error: BaseException) -> None:
        self.on_progress(f"a worker was lost: {type(error).__name__}: {error}")

    def _say(self, job: Job, begun: int) -> None:
        at = self.count + self.reused + begun
        self.on_progress(f"{job.what} ({at} of up to {max(at, self.planned)} evaluations)")


def carry_out(shared: bytes, work: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[bytes, str]:
    """In a worker: the result as msgspec writes it, or the reason why there is none."""
    try:
        return msgspec.msgpack.encode(work(shared, *arguments)), ""
    except OnnxoptError as error:
        return b"", str(error)
    except MemoryError:
        return b"", "it needs more memory than a worker may take"


def directory() -> Path:
    """Where results are kept."""
    return _cache.user_directory() / "auto"
