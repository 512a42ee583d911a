"""How much faster several workers are: evaluations that only wait, and a real search.

    python -m benchmarks.auto.workers      # markdown on stdout

Waiting takes no core, so it tells what the sending, the queue and the filing of results cost, on however few cores.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnxopt
from distributed import LocalCluster
from onnxopt.search.cluster import DaskExecutor
from onnxopt.search.jobs import Evaluations, Job

from benchmarks.auto.cases import case
from benchmarks.cleanup.tables import table

_SHARED = bytes(1 << 20)
_SECONDS = np.random.default_rng(0).lognormal(-1.2, 0.6, 60).round(3).tolist()
"""Of evaluations, as uneven as those of a search."""


def waiting(shared: bytes, seconds: float, at: int) -> float:
    """A job that takes time, and nothing else."""
    time.sleep(seconds)
    return seconds


@contextmanager
def cluster(workers: int) -> Iterator[DaskExecutor]:
    """A Dask cluster of so many processes on this machine."""
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None, silence_logs=50) as found,
        DaskExecutor(found.scheduler_address) as executor,
    ):
        yield executor


def simulated(workers: int) -> float:
    """Seconds for all of them."""
    with cluster(workers) as executor:
        key = f"{workers} {time.time_ns()}"  # nothing is known from before
        found = Evaluations(_SHARED, key, executor, time.monotonic() + 1000, lambda text: None)
        found.run([Job(waiting, (0.0, -at), float, "") for at in range(workers)])  # workers that are warm
        start = time.perf_counter()
        found.run([Job(waiting, (each, at), float, "") for at, each in enumerate(_SECONDS)])
        return time.perf_counter() - start


def searched(workers: int) -> tuple[float, int]:
    """Seconds of a search on a cluster, and how many evaluations it made."""
    one = case("cnn1d_mnist1d")
    given, _, _ = one.split(time.time_ns() % 1000)  # samples of which nothing is known
    with cluster(workers) as executor:
        start = time.perf_counter()
        found = onnxopt.auto(
            one.model, data=given, max_drop=0.02, target="macs", methods=("prune",), train=False, time_budget=600,
            executor=executor,
        )  # fmt: skip
        return time.perf_counter() - start, found.evaluations


def main(counts: Sequence[int] = (1, 2, 4)) -> None:
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        alone, rows = simulated(1), list[list[Any]]()
        for count in counts:
            took = simulated(count) if count > 1 else alone
            rows.append([str(count), f"{took:.1f}", f"{alone / took / count:.0%}"])
        print(table(["workers", "s, 60 evaluations that wait", "efficiency"], rows))
        searches = [(count, *searched(count)) for count in (1, 2)]
        print(table(["workers", "s, a search", "evaluations"], [[str(n), f"{s:.1f}", str(k)] for n, s, k in searches]))


if __name__ == "__main__":
    main()
