"""Time of a candidate over time of the original: both in one process, in turn, CPU time of one thread.

    python -m benchmarks.quantize.latency TASK.json CANDIDATE.onnx    # JSON on stdout

One sample a run. A pair is the same runs of both, its order alternates; the ratio is the median over pairs.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import onnxruntime as ort

from benchmarks import facts, judge
from benchmarks.quantize import task as tasks
from benchmarks.quantize.task import Feed, Task

SLICE = 0.01
"""Seconds that one side of a pair takes at least, so that the clock's step does not show."""
PAIRS = (15, 41)
LIMIT = 12.0
"""Seconds after which the fewer pairs do."""


def spent(session: ort.InferenceSession, feed: Feed, runs: int) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.thread_time()
    for _ in range(runs):
        session.run(None, feed)
    return (time.perf_counter() - wall) / runs, (time.thread_time() - cpu) / runs


def compare(task: Task, candidate: Path) -> dict[str, Any]:
    sessions = [judge.session(p, "ORT_ENABLE_ALL") for p in (task.model, candidate)]
    feeds = [f for f, _ in itertools.islice(tasks.feeds(task.evaluation, facts.load(task.model), 1), 4)]
    once = min(spent(sessions[0], feed, 3)[1] for feed in feeds)
    spent(sessions[1], feeds[0], 3)
    runs = max(1, round(SLICE / max(once, 1e-6)))
    cpu: list[tuple[float, float]] = []
    wall: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(cpu) < PAIRS[0] or (len(cpu) < PAIRS[1] and time.perf_counter() - start < LIMIT):
        order = (0, 1) if len(cpu) % 2 else (1, 0)
        feed = feeds[len(cpu) // 2 % len(feeds)]
        took = {i: spent(sessions[i], feed, runs) for i in order}
        wall.append((took[0][0], took[1][0]))
        cpu.append((took[0][1], took[1][1]))
    low, middle, high = statistics.quantiles([b / a for a, b in cpu], n=4, method="inclusive")
    return {
        "ratio": middle,
        "ratio_iqr": [low, high],
        "wall_ratio": statistics.median(b / a for a, b in wall),
        "original_ms": 1e3 * statistics.median(a for a, _ in cpu),
        "candidate_ms": 1e3 * statistics.median(b for _, b in cpu),
        "pairs": len(cpu),
    }


def ratio(before: Path, after: Path, feed: Feed) -> list[float]:
    """Of CPU times on one sample: median over pairs, and the middle half."""
    sessions = [judge.session(path, "ORT_ENABLE_ALL") for path in (before, after)]
    once = max(min(spent(session, feed, 3)[1] for _ in range(3)) for session in sessions)
    runs = max(1, round(SLICE / max(once, 1e-6)))
    ratios: list[float] = []
    start = time.perf_counter()
    while len(ratios) < PAIRS[0] or (len(ratios) < PAIRS[1] and time.perf_counter() - start < LIMIT):
        order = (0, 1) if len(ratios) % 2 else (1, 0)
        took = {i: spent(sessions[i], feed, runs)[1] for i in order}
        ratios.append(took[1] / took[0])
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return [middle, low, high]


def main() -> None:
    task, candidate = tasks.load(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    print(json.dumps(compare(task, candidate)))


if __name__ == "__main__":
    main()
