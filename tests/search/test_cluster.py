"""Evaluations on a Dask cluster of several workers, of which some go."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed
import pytest

from onnxopt.errors import OptionError
from onnxopt.search.cluster import DaskExecutor
from onnxopt.search.jobs import Evaluations, Failure, Job


@pytest.fixture
def cluster(work: Any, tmp_path: Path) -> Iterator[Any]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=str(tmp_path), silence_logs=50
    ) as found:
        yield found


def evaluations(executor: DaskExecutor, said: list[str] | None = None) -> Evaluations:
    shared = bytes(1 << 17)  # so large that it is sent once
    return Evaluations(shared, "key", executor, time.monotonic() + 100, (said if said is not None else []).append)


def test_results_are_those_of_this_process_and_a_worker_that_dies_costs_nothing(
    work: Any, cluster: Any, tmp_path: Path
) -> None:
    jobs = [Job(work.double, (n,), int, "") for n in range(12)]
    jobs.insert(5, Job(work.die_once, (7, str(tmp_path / "mark")), int, ""))
    with DaskExecutor(cluster.scheduler_address) as executor:
        found = evaluations(executor)
        results = found.run(jobs)
    assert results.pop(5) == 7
    assert results == [2 * n + (1 << 17) for n in range(12)]
    assert not found.gone
    assert (tmp_path / "mark").exists()


def test_a_cluster_that_vanishes_ends_the_search_with_what_is_known(work: Any, cluster: Any) -> None:
    with DaskExecutor(cluster.scheduler_address) as executor:
        found = evaluations(executor)
        assert found.run([Job(work.double, (1,), int, "")]) == [2 + (1 << 17)]
        stop = threading.Timer(0.5, cluster.close)
        stop.start()
        results = found.run([Job(work.double, (n,), int, "") for n in range(200)])
        stop.join()
    assert len(results) == 200
    lost = [each for each in results if isinstance(each, Failure)]
    assert lost
    assert "workers lost 3 evaluations in a row" in found.gone
    assert results[1] == 2 + (1 << 17)


def test_a_cluster_without_workers_ends_the_search_unless_new_ones_come(
    work: Any, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dismiss() -> None:
        cluster.scale(0)
        while cluster.scheduler.workers:
            time.sleep(0.05)

    monkeypatch.setattr("onnxopt.search.jobs._SILENCE", 1.0)
    jobs = [Job(work.double, (n,), int, "") for n in range(4)]
    with DaskExecutor(cluster.scheduler_address) as executor:
        found = evaluations(executor)
        assert found.run(jobs[:1]) == [1 << 17]
        dismiss()
        starts = threading.Timer(0.5, cluster.scale, (2,))
        starts.start()
        assert found.run(jobs[:2]) == [1 << 17, 2 + (1 << 17)], "what all jobs share went with the workers"
        starts.join()
        monkeypatch.setattr("onnxopt.search.cluster._REPLACED", 1.0)
        monkeypatch.setattr("onnxopt.search.cluster._PATIENCE", 1.0)
        dismiss()
        results = found.run(jobs)
    assert results[:2] == [1 << 17, 2 + (1 << 17)]
    assert all(isinstance(each, Failure) for each in results[2:])


def test_nobody_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxopt.search.cluster._PATIENCE", 1.0)
    with pytest.raises(OptionError, match=r"there is no Dask scheduler at tcp://127.0.0.1:9"):
        DaskExecutor("tcp://127.0.0.1:9")
    with pytest.raises(OptionError, match="there is no Dask scheduler at nonsense"):
        DaskExecutor("nonsense://x")
    with pytest.raises(OptionError, match="the address of a Dask scheduler is empty"):
        DaskExecutor(" ")


def test_who_takes_a_connection_and_says_nothing_is_no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxopt.search.cluster._PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(OptionError, match=f"there is no Dask scheduler at {address}: it does not answer"):
            DaskExecutor(address)


def test_without_dask_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(OptionError, match=r"onnxopt\[dask\]"):
        DaskExecutor("tcp://127.0.0.1:9")
