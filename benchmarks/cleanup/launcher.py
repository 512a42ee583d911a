"""Run one command and report its time and memory. Standard library only, and small on purpose.

A child inherits the high-water mark of the process that forks it, so the harness, which holds numpy and
ORT, may not be the parent of what it measures.

    python -I -S launcher.py REPORT.json TIMEOUT SAMPLE COMMAND...

With ``SAMPLE`` 1 the resident memory of the whole process tree is sampled every 10 ms; 0 leaves the CPU
alone.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time

PAGE = os.sysconf("SC_PAGE_SIZE")


def tree(pid: int) -> list[int]:
    """The process and everything below it."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{task}/children") as file:
                    found.extend(map(int, file.read().split()))
    return found


def resident(pid: int) -> int:
    total = 0
    for member in tree(pid):
        with contextlib.suppress(OSError, IndexError), open(f"/proc/{member}/statm") as file:
            total += int(file.read().split()[1]) * PAGE
    return total


def main() -> None:
    report, timeout, sample, command = sys.argv[1], float(sys.argv[2]), sys.argv[3] == "1", sys.argv[4:]
    peak, timed_out, done = 0, False, threading.Event()
    start = time.perf_counter()
    pid = os.posix_spawnp(command[0], command, os.environ, setpgroup=0)

    def watch() -> None:
        nonlocal peak, timed_out
        while not done.wait(0.01 if sample else 0.5):
            if sample:
                peak = max(peak, resident(pid))
            if time.perf_counter() - start > timeout:
                timed_out = True
                with contextlib.suppress(OSError):
                    os.killpg(pid, signal.SIGKILL)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - start
    done.set()
    watcher.join()
    with open(report, "w") as file:
        json.dump(
            {
                "returncode": os.waitstatus_to_exitcode(status),
                "wall": wall,
                "cpu": usage.ru_utime + usage.ru_stime,
                "peak_rss": max(peak, usage.ru_maxrss * 1024),
                "timed_out": timed_out,
            },
            file,
        )


main()
