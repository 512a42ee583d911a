"""Run the work of a command in a process of its own, and answer for it whatever happens there.

ONNX Runtime is native code: on a hostile or merely odd model it can crash, hang, or take all memory. The
child is forked before anything heavy is imported and before any thread exists, tells its parent what it is
about through a pipe, and when it dies the parent says in one line what was going on, and clears up.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

DONE, CHECK_FAILED, USER_ERROR, ENGINE_FAILED, READER_GONE, INTERRUPTED = 0, 1, 2, 3, 141, 130
_ORDERLY = (DONE, CHECK_FAILED, USER_ERROR, ENGINE_FAILED, READER_GONE)

_SHOW_AFTER = 1.0
"""Seconds after which a terminal is shown what is going on."""
_TICK = 0.05
_REPORTING = "\0reporting"


class Connection(Protocol):
    """One end of a two-way pipe for lines of text, as in ``multiprocessing``."""

    def send(self, text: str, /) -> None: ...
    def recv(self) -> str: ...
    def poll(self, timeout: float, /) -> bool: ...


class Stage:
    """How the child says what it is about."""

    def __init__(self, connection: Connection | None) -> None:
        self._connection = connection

    def __call__(self, name: str) -> None:
        """From now on the work is ``name``."""
        if self._connection is not None:
            self._connection.send(name)

    def reporting(self) -> None:
        """The child is about to print: returns when the parent has left the terminal to it."""
        if self._connection is not None:
            self._connection.send(_REPORTING)
            self._connection.recv()


Work = Callable[..., int]
"""What is done with a ``Stage`` and options; returns an exit code, raises nothing, can be pickled."""


@dataclass(frozen=True)
class Limits:
    """What the child may use."""

    seconds: float | None = None
    memory: float | None = None
    """In GB; memory that maps a file does not count."""


def supervise(
    work: Work, options: dict[str, Any], *, what: str, limits: Limits, output: Path | None, quiet: bool = False
) -> int:
    """Run ``work(stage, **options)`` in a child; returns its exit code, or ours if it did not end well.

    ``what`` names the model in messages; half-written files in place of ``output`` are removed.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child inherits this: Ctrl-C is ours to handle
    child, connection = _fork(work, options) if _can_fork() else _spawn(work, options)
    signal.signal(signal.SIGINT, before)
    for number in _TERMINATION:
        signal.signal(number, _exit)
    watch = _Watch(child, connection, limits, _Display(what, quiet))
    try:
        death = watch.until_the_end()
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    finally:
        watch.display.stop()
        if child.exitcode is None:
            child.kill()
            child.join()
        if child.exitcode not in _ORDERLY and output is not None and child.pid is not None:
            from onnxopt.writing import remove_leftovers

            remove_leftovers(output, child.pid)
    if death is None and child.exitcode in _ORDERLY:
        return child.exitcode
    reason = death or _cause(child.exitcode)
    _say(f"{what}: {reason} while it was at {watch.stage!r}; input and earlier output are as they were")
    return ENGINE_FAILED


def one_line(text: str) -> str:
    """``text`` on one line and without what a terminal would obey; names in models are not ours."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))


def _say(text: str) -> None:
    print(f"onnxopt: {one_line(text)}", file=sys.stderr, flush=True)


_TERMINATION = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        try:
            name = signal.Signals(-exitcode).name
        except ValueError:
            name = f"signal {-exitcode}"
        if name == "SIGKILL":
            return "was killed by the system, most likely for want of memory,"
        return f"crashed ({name})"
    return f"ended unexpectedly (code {exitcode})"


class _Child(Protocol):
    """A process, as in ``multiprocessing``."""

    @property
    def pid(self) -> int | None: ...
    @property
    def exitcode(self) -> int | None: ...
    def join(self) -> None: ...
    def kill(self) -> None: ...


class _Watch:
    """Listens to the child, and stops it at its limits."""

    def __init__(self, child: _Child, connection: Connection, limits: Limits, display: _Display) -> None:
        self.stage = "start"
        self.display = display
        self._child, self._connection, self._limits = child, connection, limits

    def until_the_end(self) -> str | None:
        """Wait for the child; if it had to be stopped, returns why."""
        start = time.monotonic()
        while True:
            if self._connection.poll(_TICK):
                try:
                    message = self._connection.recv()
                except EOFError:
                    self._child.join()
                    return None
                if message == _REPORTING:
                    self.display.stop()
                    self._connection.send("")
                else:
                    self.stage = message
            passed = time.monotonic() - start
            reason = self._limit_reached(passed)
            if reason is not None:
                return reason
            self.display.show(self.stage, passed)

    def _limit_reached(self, passed: float) -> str | None:
        seconds, memory = self._limits.seconds, self._limits.memory
        if seconds is not None and passed > seconds:
            return f"did not end within {seconds:g} s (--timeout) and was stopped"
        if memory is not None and self._child.pid is not None and _memory(self._child.pid) > memory * 1e9:
            return f"took more than {memory:g} GB of memory (--memory) and was stopped"
        return None


def _memory(process: int) -> int:
    """The bytes of memory, swapped out or not, that ``process`` fills itself; mapped files are not counted."""
    try:
        with open(f"/proc/{process}/status", encoding="ascii", errors="replace") as status:
            fields = dict(line.split(":", 1) for line in status)
    except OSError:
        return 0
    return sum(int(fields[key].split()[0]) for key in ("RssAnon", "RssShmem", "VmSwap") if key in fields) * 1024


def can_watch_memory() -> bool:
    """Whether this system tells how much memory a process takes."""
    return os.path.exists("/proc/self/status")


class _Display:
    """One moving line on a terminal, for work that takes long."""

    def __init__(self, what: str, quiet: bool) -> None:
        self._what = one_line(os.path.basename(what))
        self._off = quiet or not sys.stderr.isatty()
        self._status: Any = None

    def show(self, stage: str, passed: float) -> None:
        if self._off or passed < _SHOW_AFTER:
            return
        from rich.text import Text

        text = Text(f"{self._what}  {one_line(stage)}  {passed:.0f} s")
        if self._status is None:
            from rich.console import Console

            self._status = Console(stderr=True).status(text, refresh_per_second=4)
            self._status.start()
        else:
            self._status.update(text)

    def stop(self) -> None:
        if self._status is not None:
            self._status.stop()
        self._status, self._off = None, True


def _can_fork() -> bool:
    """Whether a fork is safe: no native library has been loaded that may have threads."""
    return hasattr(os, "fork") and "onnxruntime" not in sys.modules


class _Pipe:
    """Two file descriptors as a ``Connection``."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._buffer = b""

    def send(self, text: str, /) -> None:
        os.write(self._write, text.encode(errors="replace").replace(b"\n", b" ") + b"\n")

    def poll(self, timeout: float, /) -> bool:
        import select

        return b"\n" in self._buffer or bool(select.select([self._read], [], [], timeout)[0])

    def recv(self) -> str:
        while b"\n" not in self._buffer:
            more = os.read(self._read, 65536)
            if not more:
                raise EOFError
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()


class _Forked:
    """A forked child, with the interface of a ``multiprocessing`` process."""

    def __init__(self, pid: int) -> None:
        self.pid: int | None = pid
        self._pid = pid
        self._exitcode: int | None = None

    @property
    def exitcode(self) -> int | None:
        self._wait(os.WNOHANG)
        return self._exitcode

    def join(self) -> None:
        self._wait(0)

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)

    def _wait(self, flags: int) -> None:
        if self._exitcode is None:
            pid, status = os.waitpid(self._pid, flags)
            if pid:
                self._exitcode = os.waitstatus_to_exitcode(status)


def _fork(work: Work, options: dict[str, Any]) -> tuple[_Child, Connection]:
    up_read, up_write = os.pipe()
    down_read, down_write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(up_write)
        os.close(down_read)
        return _Forked(pid), _Pipe(up_read, down_write)
    code = ENGINE_FAILED
    try:
        os.close(up_read)
        os.close(down_write)
        code = _in_child(work, options, _Pipe(down_read, up_write))
    finally:
        os._exit(code)  # what the parent has registered to happen at its exit is the parent's


def _spawn(work: Work, options: dict[str, Any]) -> tuple[_Child, Connection]:
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_spawned, args=(work, options, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _spawned(work: Work, options: dict[str, Any], connection: Connection) -> None:
    sys.exit(_in_child(work, options, connection))


def _in_child(work: Work, options: dict[str, Any], connection: Connection) -> int:
    if hasattr(os, "fork"):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash must not leave a core file behind
    code = work(Stage(connection), **options)
    sys.stdout.flush()
    sys.stderr.flush()
    return code
