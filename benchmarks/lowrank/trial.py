"""One model factorized in one way, beside the clean model.

    python -m benchmarks.lowrank.trial CASE WAY FOLDER [SAMPLES]        # JSON on stdout

``WAY`` is a pipeline as onnxopt takes it, or a peer with its ratio, as in ``tucker 0.3``. Quality and time are beside
the model after ``cleanup`` alone, so that they are those of the factorization.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import onnx
import onnxopt
from onnxopt.macs import count_macs

from benchmarks import facts, judge
from benchmarks.lowrank import peers
from benchmarks.lowrank.cases import Case, case
from benchmarks.prune.counts import parameters
from benchmarks.quantize import latency
from benchmarks.quantize.score import Energy, guess

Record = dict[str, Any]


def tried(one: Case, way: str, folder: Path) -> Record:
    """What came of it; ``failure`` says why nothing did."""
    clean, target = folder / "clean.onnx", folder / "factorized.onnx"
    onnxopt.optimize(one.model, verify="off").save(clean, force=True)
    wall, cpu = time.perf_counter(), time.process_time()
    method, _, share = way.partition(" ")
    try:
        if method in peers.METHODS:
            made: Record = {}
            onnx.save(peers.factorized(method, float(share), onnx.load(clean), one), target)
        else:
            made = ours(one, way, target)
    except (onnxopt.OnnxoptError, ValueError) as error:
        return {"failure": str(error)}
    took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    times = {"latency": latency.ratio(clean, target, one.one)}
    return made | took | size(clean, target) | quality(one, clean, target) | times


def ours(one: Case, pipeline: str, target: Path) -> Record:
    result = onnxopt.optimize(one.model, passes=pipeline, data=one.calibration, verify="off")
    if result.report.problems:
        raise ValueError("; ".join(result.report.problems))
    result.save(target, force=True)
    reports = [report for report in result.report.passes if report.name.startswith("split-")]
    return {
        "layers": [{"pass": report.name, **fact} for report in reports for fact in report.facts],
        "refused": [str(note) for report in reports for note in report.refusals],
    }


def size(clean: Path, target: Path) -> Record:
    """Parameters and multiply–accumulates, of both."""
    both = (clean, target)
    return {
        "parameters": [parameters(facts.load(path)) for path in both],
        "macs": [count_macs(onnxopt.load(path)).total for path in both],
    }


def quality(one: Case, clean: Path, target: Path) -> Record:
    """SQNR of the worst output in dB; right answers of both in percent."""
    sessions = [judge.session(path, "ORT_ENABLE_ALL") for path in (clean, target)]
    energies: dict[str, Energy] = {}
    right, count = [0, 0], 0
    for feed, labels in one.held_out:
        answers = [judge.run(session, feed) for session in sessions]
        for name, y in answers[0].items():
            if y.dtype.kind == "f":
                energies.setdefault(name, Energy()).add(y, answers[1][name])
        if labels is not None:
            count += len(labels)
            for at, answer in enumerate(answers):
                right[at] += int((guess(answer[one.output]) == labels).sum())
    decibels = [d for each in energies.values() if (d := each.decibel()) is not None]
    return {"sqnr": min(decibels), "accuracy": [100 * each / count for each in right] if count else None}


def main() -> None:
    name, way, folder, *most = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    print(json.dumps(tried(case(name, *map(int, most)), way, Path(folder))))


if __name__ == "__main__":
    main()
