"""Worker processes on this machine: each on cores of its own, within a bound of memory, and replaced if one dies."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from onnxopt.errors import OptionError
from onnxopt.evaluation import cores


class LocalWorkers(Executor):
    """An executor of ``count`` processes; after one of them died, what is submitted next gets new ones."""

    def __init__(self, count: int, *, memory: float | None = None) -> None:
        """``memory``: what each may take, in GB, where the system can bound it.

        Raises ``OptionError`` for less than one process.
        """
        if count < 1:
            raise OptionError(f"workers are processes from 1 on, got {count}")
        self._count, self._memory = count, memory
        self._pool = self._new()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        try:
            return self._pool.submit(fn, *args, **kwargs)
        except BrokenProcessPool:
            self._pool.shutdown(wait=False)
            self._pool = self._new()
            return self._pool.submit(fn, *args, **kwargs)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> bool | None:
        """What is interrupted does not wait for evaluations that nobody is going to ask for."""
        if kind is None:
            return super().__exit__(kind, *rest)  # type: ignore[arg-type]
        processes = list((getattr(self._pool, "_processes", None) or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        return None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._pool.shutdown(wait, cancel_futures=cancel_futures)

    def _new(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks of ONNX Runtime
        turns = context.SimpleQueue()
        every = list(range(cores())) if not hasattr(os, "sched_getaffinity") else sorted(os.sched_getaffinity(0))
        for at in range(self._count):
            turns.put(every[at :: self._count] or [every[at % len(every)]])
        return ProcessPoolExecutor(self._count, context, initializer=_begin, initargs=(turns, self._memory))


def _begin(turns: Any, memory: float | None) -> None:
    """Threads of workers that share cores would wait for each other, and times would be of no use."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, turns.get())
    if hasattr(os, "fork"):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (int(memory * 1e9),) * 2)


def _end_with_parent() -> None:
    """A search that is killed cannot end its workers: they hold both ends of the queue, and would wait for good."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
