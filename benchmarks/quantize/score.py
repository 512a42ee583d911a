"""How good is a quantized model? Its outputs beside the original's on the evaluation samples of a task.

    python -m benchmarks.quantize.score TASK.json CANDIDATE.onnx      # JSON on stdout

Independent of the product. Both run in ONNX Runtime as a user has it, all optimisations on, on one thread.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks import facts, judge
from benchmarks.quantize import task as tasks
from benchmarks.quantize.task import Array, Feed, Task

Outputs = dict[str, Array]


class Energy:
    """Σ‖y‖² and Σ‖y−ŷ‖² of one output."""

    def __init__(self) -> None:
        self.signal = self.error = 0.0

    def add(self, y: Array, candidate: Array) -> None:
        if y.shape != candidate.shape:
            self.error = math.inf
            return
        a, b = y.astype(np.float64), candidate.astype(np.float64)
        usual = np.isfinite(a)
        self.signal += float((a[usual] ** 2).sum())
        self.error += float(((a - b)[usual] ** 2).sum()) if np.isfinite(b[usual]).all() else math.inf

    def decibel(self) -> float | None:
        """None for an output that is zero throughout."""
        if self.error == 0:
            return 200.0
        if not math.isfinite(self.error):
            return -200.0
        return 10 * math.log10(self.signal / self.error) if self.signal else None


def texts(scores: Array, alphabet: list[str]) -> list[str]:
    """Greedy CTC: the best class of each step, repeats merged, blanks (class 0) out; spaces do not count."""
    found = []
    for row in scores.argmax(axis=2):
        kept = [c for i, c in enumerate(row) if c and (i == 0 or c != row[i - 1])]
        found.append("".join(alphabet[c] for c in kept).replace(" ", ""))
    return found


def alphabet(model: onnx.ModelProto) -> list[str]:
    text = next((p.value for p in model.metadata_props if p.key == "character"), "")
    return ["", *text.splitlines(), " "]


class Score:
    """Counts what a metric counts, for one model."""

    def __init__(self, task: Task, characters: list[str]) -> None:
        self.task, self.characters = task, characters
        self.right = self.total = 0

    def add(self, y: Array, reference: Array, labels: Array | None) -> None:
        metric = self.task.metric
        if y.shape != reference.shape:
            self.total += len(reference)
        elif metric == "mask":
            mine, theirs = (np.asarray(x) > self.task.threshold for x in (y, reference))
            self.right += int((mine & theirs).sum())
            self.total += int((mine | theirs).sum())
        elif metric == "lines":
            assert labels is not None
            self.right += sum(a == b.replace(" ", "") for a, b in zip(texts(y, self.characters), labels, strict=True))
            self.total += len(y)
        elif metric in ("accuracy", "agreement"):
            wanted = labels if metric == "accuracy" else guess(reference)
            self.right += int((guess(y) == wanted).sum())
            self.total += len(y)

    def percent(self) -> float | None:
        if self.task.metric == "none":
            return None
        return 100.0 * self.right / self.total if self.total else 100.0


def guess(y: Array) -> Array:
    """The labels, where an output holds these, or the largest of the scores (NaN is nobody's label)."""
    if y.ndim == 1:
        return y
    return np.asarray(np.where(np.isnan(y).any(axis=-1), -1, np.nan_to_num(y).argmax(axis=-1)))


class Runner:
    """A session that carries its own state where the task says so."""

    def __init__(self, path: Path, carry: dict[str, str]) -> None:
        self.session = judge.session(path, "ORT_ENABLE_ALL")
        self.carry, self.state = carry, {}  # type: dict[str, str], Feed

    def __call__(self, feed: Feed) -> Outputs:
        fed = {k: self.state.get(k, x) if np.any(x) else x for k, x in feed.items()}
        outputs = judge.run(self.session, fed)
        self.state = {target: outputs[source] for source, target in self.carry.items()}
        return outputs


def pairs(task: Task, candidate: Path) -> Iterator[tuple[Outputs, Outputs, Array | None]]:
    ours, theirs = Runner(task.model, task.carry), Runner(candidate, task.carry)
    for feed, labels in tasks.feeds(task.evaluation, facts.load(task.model), task.batch):
        yield ours(feed), theirs(feed), labels


def score(task: Task, candidate: Path) -> dict[str, Any]:
    model = facts.load(task.model)
    output = task.output or facts.outputs(model)[0].name
    characters = alphabet(model) if task.metric == "lines" else []
    before, after = Score(task, characters), Score(task, characters)
    energies: dict[str, Energy] = {}
    for reference, answer, labels in pairs(task, candidate):
        for name, y in reference.items():
            if y.dtype.kind == "f":
                energies.setdefault(name, Energy()).add(y, answer.get(name, np.empty(0)))
        if task.metric != "none":
            before.add(reference[output], reference[output], labels)
            after.add(answer[output], reference[output], labels)
    sqnr = {k: v for k, e in energies.items() if (v := e.decibel()) is not None}
    return {"original": before.percent(), "score": after.percent(), "sqnr": sqnr}


def main() -> None:
    task, candidate = tasks.load(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    print(json.dumps(score(task, candidate)))


if __name__ == "__main__":
    main()
