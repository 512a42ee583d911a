"""Evaluations on executors that fail in every way; what they return is filed, and what is known is not done again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxopt.errors import ModelError
from onnxopt.search.jobs import Evaluations, Failure, InProcess, Job, Remote, directory

CALLS: list[int] = []


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    CALLS.clear()


def double(shared: bytes, number: int) -> int:
    CALLS.append(number)
    return 2 * number + len(shared)


def refuse(shared: bytes, number: int) -> int:
    raise ModelError(f"{number} is no model")


def grow(shared: bytes, number: int) -> int:
    raise MemoryError


def doubled(*numbers: int, work: Callable[..., int] = double) -> list[Job]:
    return [Job(work, (number,), int, f"doubling {number}") for number in numbers]


def evaluations(executor: Executor | None = None, *, seconds: float = 60.0) -> Evaluations:
    return Evaluations(b"xyz", "key", executor or InProcess(), time.monotonic() + seconds, lambda text: None)


class Faulty(Executor):
    """Loses what ``lose`` says, by the number of the call."""

    def __init__(self, lose: Callable[[int], bool], *, at_once: bool = False) -> None:
        self.lose, self.at_once, self.calls = lose, at_once, 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.calls += 1
        future: Future[Any] = Future()
        if not self.lose(self.calls):
            future.set_result(fn(*args, **kwargs))
        elif self.at_once:
            raise BrokenProcessPool("it is gone")
        else:
            future.set_exception(BrokenProcessPool("it is gone"))
        return future


def test_results_come_in_the_order_of_the_jobs() -> None:
    class Backwards(Executor):
        """Ends what was submitted last first."""

        def __init__(self) -> None:
            self.waiting: list[tuple[Future[Any], Callable[[], Any]]] = []

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            self.waiting.append((future, lambda: fn(*args, **kwargs)))
            if len(self.waiting) == 3:
                for each, call in reversed(self.waiting):
                    each.set_result(call())
            return future

    assert evaluations(Backwards()).run(doubled(1, 2, 3)) == [5, 7, 9]
    assert CALLS == [3, 2, 1]


def test_what_is_known_is_not_done_again() -> None:
    first = evaluations()
    assert first.run(doubled(1, 2)) == [5, 7]
    assert first.run(doubled(2, 1)) == [7, 5]
    assert (first.count, first.reused) == (2, 0)
    again = evaluations()
    assert again.run(doubled(1, 3)) == [5, 9]
    assert (again.count, again.reused) == (1, 1)
    assert CALLS == [1, 2, 3]


def test_other_models_and_samples_know_nothing_of_it() -> None:
    evaluations().run(doubled(1))
    other = Evaluations(b"xyz", "another key", InProcess(), time.monotonic() + 60, lambda text: None)
    other.run(doubled(1))
    assert other.reused == 0


def test_what_fails_says_why_and_leaves_the_others() -> None:
    found = evaluations()
    jobs = [*doubled(1), *doubled(2, work=refuse), *doubled(3, work=grow), *doubled(4)]
    assert found.run(jobs) == [
        5, Failure("2 is no model"), Failure("it needs more memory than a worker may take"), 11,
    ]  # fmt: skip
    assert found.count == 2
    assert not found.gone
    assert evaluations().run(doubled(2, work=refuse)) == [Failure("2 is no model")], "failures are not filed"


@pytest.mark.parametrize("at_once", [False, True])
def test_a_job_whose_worker_died_is_done_once_more(at_once: bool) -> None:
    found = evaluations(Faulty(lambda call: call == 2, at_once=at_once))
    assert found.run(doubled(1, 2, 3)) == [5, 7, 9]
    assert not found.gone


def test_a_job_that_brings_its_worker_down_fails_alone() -> None:
    found = evaluations(Faulty(lambda call: call in (2, 4)))
    first, second, third = found.run(doubled(1, 2, 3))
    assert (first, third) == (5, 9)
    assert isinstance(second, Failure)
    assert "its worker died while it alone was computed" in second.reason
    assert not found.gone


@pytest.mark.parametrize("at_once", [False, True])
def test_an_executor_that_loses_everything_is_given_up(at_once: bool) -> None:
    executor = Faulty(lambda call: True, at_once=at_once)
    found = evaluations(executor)
    results = found.run(doubled(*range(10)))
    assert all(isinstance(each, Failure) for each in results)
    assert "lost 3 evaluations in a row" in found.gone
    assert found.is_over
    calls = executor.calls
    assert found.run(doubled(11)) == [Failure(found.gone)]
    assert executor.calls == calls


def test_an_executor_that_falls_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(Remote):
        """Takes jobs, and is never heard of again."""

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            return Future()

        def answers(self) -> bool:
            return False

    monkeypatch.setattr("onnxopt.search.jobs._SILENCE", 0.3)
    found = evaluations(Silent())
    results = found.run(doubled(*range(5)))
    assert all(isinstance(each, Failure) for each in results)
    assert "lost 3 evaluations in a row" in found.gone


def test_when_the_time_is_over_no_job_begins() -> None:
    found = evaluations(seconds=60)
    assert found.run(doubled(1)) == [5]
    found.end = time.monotonic() - 1
    known, late = found.run(doubled(1, 2))
    assert known == 5
    assert late == Failure("the time was over")
    assert CALLS == [1]


def test_when_the_time_is_over_what_has_not_begun_is_not_waited_for() -> None:
    class Slow(Executor):
        """Begins the first job, and none after it."""

        def __init__(self) -> None:
            self.futures: list[Future[Any]] = []

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            self.futures.append(future)
            if len(self.futures) == 1:
                future.set_running_or_notify_cancel()
                threading.Timer(1.0, lambda: future.set_result(fn(*args, **kwargs))).start()
            return future

    found = evaluations(Slow(), seconds=0.3)
    late = Failure("the time was over")
    assert found.run(doubled(1, 2, 3)) == [5, late, late]


def test_a_job_that_is_asked_twice_at_once_is_done_once() -> None:
    found = evaluations()
    assert found.run(doubled(1, 2, 1)) == [5, 7, 5]
    assert (CALLS, found.count) == ([1, 2], 2)


def test_a_full_disk_costs_only_what_would_have_been_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    found = evaluations()
    assert found.run(doubled(1)) == [5]
    assert found.unkept == f"nothing can be kept in {directory()}: No space left on device"
    monkeypatch.undo()
    assert found.run(doubled(2)) == [7]
    assert found.unkept, "one that was lost is missing however many were kept after it"
    assert not list(directory().glob("*.tmp"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nonsense", b"\x00" * 500])
def test_what_cannot_be_read_is_computed_anew(content: bytes) -> None:
    evaluations().run(doubled(1))
    (file,) = directory().glob("*.npz")
    file.write_bytes(content)
    again = evaluations()
    assert again.run(doubled(1)) == [5]
    assert again.reused == 0


def test_what_was_measured_here_is_remembered() -> None:
    found = evaluations()
    assert found.remembered("times", dict[str, float], lambda: {"a": 1.5}) == {"a": 1.5}
    assert evaluations().remembered("times", dict[str, float], lambda: {"a": 2.5}) == {"a": 1.5}


def test_progress_counts_up_to_what_is_planned() -> None:
    said: list[str] = []
    found = Evaluations(b"", "key", InProcess(), time.monotonic() + 60, said.append, planned=4)
    found.run(doubled(1, 2))
    found.run(doubled(3))
    assert said == [f"doubling {at} ({at} of up to 4 evaluations)" for at in (1, 2, 3)]
