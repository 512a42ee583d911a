"""Evaluations in processes of this machine, some of which die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onnxopt.errors import OptionError
from onnxopt.search.jobs import Evaluations, Failure, Job
from onnxopt.search.workers import LocalWorkers


def evaluations(executor: LocalWorkers, *, seconds: float = 100.0) -> Evaluations:
    return Evaluations(b"xyz", "key", executor, time.monotonic() + seconds, lambda text: None)


def test_a_worker_that_dies_costs_its_job(work: Any, tmp_path: Path) -> None:
    jobs = [Job(work.double, (n,), int, "") for n in range(4)]
    jobs.insert(2, Job(work.die, (7,), int, ""))
    with LocalWorkers(2) as executor:
        found = evaluations(executor)
        results = found.run(jobs)
        assert not found.gone
        assert [results[at] for at in (0, 1, 3, 4)] == [3, 5, 7, 9]
        assert isinstance(results[2], Failure)
        assert "its worker died while it alone was computed" in results[2].reason
        again = [Job(work.double, (8,), int, ""), Job(work.die_once, (9, str(tmp_path / "mark")), int, "")]
        assert found.run(again) == [19, 9]
    assert not multiprocessing.active_children()


def test_workers_have_cores_of_their_own(work: Any) -> None:
    with LocalWorkers(2) as executor:
        every = [executor.submit(work.where, b"") for _ in range(8)]
        found = {future.result() for future in every}
    assert sum(cores for _, cores in found) <= max(2, len(os.sched_getaffinity(0)))


def test_memory_is_bounded(work: Any) -> None:
    with LocalWorkers(1, memory=1.0) as executor:
        found = evaluations(executor).run([Job(work.grow, (n,), int, "") for n in (10, 2_000_000_000)])
    assert found == [10, Failure("it needs more memory than a worker may take")]


def test_no_process_is_left_where_a_search_is_interrupted(work: Any) -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        jobs = [Job(work.sleep, (600 + n,), float, "") for n in range(20)]
        signal.setitimer(signal.ITIMER_REAL, 1.5)
        with pytest.raises(KeyboardInterrupt), LocalWorkers(2) as executor:
            evaluations(executor, seconds=1000).run(jobs)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    # The pool's own thread may have taken the news of a death, and not have passed it on yet.
    assert until(lambda: not multiprocessing.active_children())


def test_workers_end_with_a_search_that_is_killed(work: Any, tmp_path: Path) -> None:
    script = (
        "import time, works_of_tests as work\n"
        "from onnxopt.search.workers import LocalWorkers\n"
        "if __name__ == '__main__':\n"
        "    executor = LocalWorkers(2)\n"
        "    print(*{executor.submit(work.where, b'').result()[0] for _ in range(8)}, flush=True)\n"
        "    time.sleep(600)\n"
    )
    (tmp_path / "search.py").write_text(script)
    with subprocess.Popen([sys.executable, tmp_path / "search.py"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = list(map(int, process.stdout.readline().split()))
        process.kill()
    assert workers
    assert until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def until(holds: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Whether something comes to hold."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


def test_fewer_than_one_worker_is_a_mistake() -> None:
    with pytest.raises(OptionError, match="from 1 on, got 0"):
        LocalWorkers(0)
