"""Evaluations on a Dask cluster: an executor that sends what all jobs share to the cluster once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from onnxopt.errors import OptionError
from onnxopt.search.jobs import Remote

_LARGE = 1 << 16
"""Arguments of so many bytes are sent once."""
_PATIENCE = 20.0
"""So many seconds a cluster may take to answer,"""
_REPLACED = 60.0
"""and so many it may be without workers, whom it may replace."""


class DaskExecutor(Remote):
    """Runs on the workers of the cluster whose scheduler is at ``address``; these need onnxopt, and the files that
    data are read from."""

    def __init__(self, address: str) -> None:
        """Raises ``OptionError`` if Dask is not installed, or there is no cluster."""
        try:
            from distributed import Client
        except ImportError as error:
            raise OptionError("a Dask cluster needs the extra: pip install 'onnxopt[dask]'") from error
        self._client = _connected(Client, address)
        self._inner = self._client.get_executor(pure=False)
        self._sent: dict[int, tuple[bytes, Any]] = {}
        self._manned = time.monotonic()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if not self.answers():
            raise ConnectionError("the Dask cluster is gone, or has no workers")
        sent = [self._once(each) if isinstance(each, bytes) and len(each) > _LARGE else each for each in args]
        future: Future[Any] = self._inner.submit(fn, *sent, **kwargs)
        return future

    def answers(self) -> bool:
        """Whether the scheduler is connected, and has workers or may still get some."""
        if self._client.status != "running":
            return False
        try:
            workers = self._client.sync(self._client.scheduler.ncores, callback_timeout=_PATIENCE)
        except (OSError, TimeoutError):
            return False
        if workers:
            self._manned = time.monotonic()
        return time.monotonic() - self._manned < _REPLACED

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._inner.shutdown(wait=False)
        self._client.close()

    def _once(self, content: bytes) -> Any:
        """What stands for ``content`` there, sent again if all workers that had it are gone."""
        _, sent = self._sent.get(id(content), (content, None))
        if sent is None or sent.status != "finished":
            sent = self._client.scatter(content, broadcast=True, timeout=_PATIENCE)
            self._sent[id(content)] = content, sent
        return sent


def _connected(client: Any, address: str) -> Any:
    """A client of the scheduler at ``address``. Dask itself waits without end for one that takes a connection and then
    says nothing, and starts a cluster of its own where the address is empty."""
    if not address.strip():
        raise OptionError("the address of a Dask scheduler is empty; it looks like tcp://host:8786")
    found: list[Any] = []

    def connect() -> None:
        try:
            found.append(client(address, timeout=_PATIENCE))
        except (OSError, ValueError, TimeoutError) as error:
            found.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(2 * _PATIENCE)
    if not found or isinstance(found[0], Exception):
        reason = "it does not answer" if not found else str(found[0]) or type(found[0]).__name__
        raise OptionError(f"there is no Dask scheduler at {address}: {reason}")
    return found[0]
