"""Evaluations on a Dask cluster: an executor that sends what all jobs share to the cluster once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from onnxopt.errors import OptionError
from onnxopt.search.jobs import Remote

_LARGE = 1 << 16
"""Arguments of so many bytes are sent once."""
_PATIENCE = "20s"
"""How long a cluster may take to answer."""


class DaskExecutor(Remote):
    """Runs on the workers of the cluster whose scheduler is at ``address``; these need onnxopt, and the files that
    data are read from."""

    def __init__(self, address: str) -> None:
        """Raises ``OptionError`` if Dask is not installed, or there is no cluster."""
        try:
            from distributed import Client
        except ImportError as error:
            raise OptionError("a Dask cluster needs the extra: pip install 'onnxopt[dask]'") from error
        try:
            self._client = Client(address, timeout=_PATIENCE)
        except (OSError, ValueError, TimeoutError) as error:
            raise OptionError(f"there is no Dask scheduler at {address}: {error or type(error).__name__}") from error
        self._inner = self._client.get_executor(pure=False)
        self._sent: dict[int, tuple[bytes, Any]] = {}

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self._client.status != "running":
            raise ConnectionError("the Dask cluster is gone")
        sent = [self._once(each) if isinstance(each, bytes) and len(each) > _LARGE else each for each in args]
        future: Future[Any] = self._inner.submit(fn, *sent, **kwargs)
        return future

    def answers(self) -> bool:
        """Whether the scheduler is connected."""
        return bool(self._client.status == "running")

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._inner.shutdown(wait=False)
        self._client.close()

    def _once(self, content: bytes) -> Any:
        if id(content) not in self._sent:
            self._sent[id(content)] = content, self._client.scatter(content, broadcast=True)
        return self._sent[id(content)][1]
