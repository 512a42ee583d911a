"""One search, judged on samples that it never saw.

python -m benchmarks.auto.trial NAME TARGET MAX_DROP SEED SECONDS FOLDER [METHODS]    # JSON on stdout
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import onnxopt
from scipy.stats import spearmanr

from benchmarks.auto.cases import accuracy, case
from benchmarks.quantize import latency

Record = dict[str, Any]


def searched(
    name: str, target: str, max_drop: float, seed: int, seconds: float, folder: Path, methods: tuple[str, ...] = ()
) -> Record:
    """What a search came to; latency and accuracy are measured here anew."""
    one = case(name)
    given, kept, untouched = one.split(seed)
    options = {"methods": methods} if methods else {}
    start = time.perf_counter()
    found = onnxopt.auto(
        one.model,
        data=given,
        evaluation=kept,
        max_drop=max_drop,
        target=target,
        time_budget=seconds,
        **options,  # type: ignore[arg-type]
    )
    took = time.perf_counter() - start
    made = folder / f"{name}-{target}-{seed}.onnx"
    found.save(made, force=True)
    before, after = (accuracy(path, one, untouched) for path in (one.model, made))
    plans = [each for each in found.found if each.measured.plan and each.predicted_latency != each.latency]
    noises = [(each.predicted_noise, each.measured.noise) for each in plans]
    return {
        "plan": str(found.chosen.measured.plan),
        "holds": found.holds,
        "promised": None if found.chosen.final is None else found.chosen.final.high,
        "before": before,
        "after": after,
        "untouched": len(untouched["labels"]),
        "latency": latency.ratio(one.model, made, one.one),
        "size": made.stat().st_size / one.model.stat().st_size,
        "macs": found.chosen.macs,
        "predicted_latency": found.chosen.predicted_latency,
        "measured_latency": found.chosen.latency,
        "noise_rank": float(spearmanr(noises).statistic) if len(noises) > 2 else None,
        "evaluations": found.evaluations,
        "seconds": took,
    }


def main() -> None:
    name, target, max_drop, seed, seconds, folder, *methods = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    record = searched(name, target, float(max_drop), int(seed), float(seconds), Path(folder), tuple(methods))
    print(json.dumps(record))


if __name__ == "__main__":
    main()
