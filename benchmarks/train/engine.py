"""What gradients cost: ours and those of onnxruntime-training, by turns, each in a process of its own.

    python -m benchmarks.train.engine MODEL.onnx DATA.npz BATCH_NORM PYTHON        # JSON on stdout

``PYTHON`` has onnxruntime-training. CPU time of one thread for forward and backward part, without what it takes to hand
arrays over to the other process. It cannot train normalizations that keep their statistics, so where they do they are
folded into the layers before; both train the same model.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import onnxopt
from onnxopt.errors import OnnxoptError
from onnxopt.train import CrossEntropy
from onnxopt.train.ort_training import RemoteGradient
from onnxopt.train.trainable import Trainable

Record = dict[str, Any]
Array = np.ndarray[Any, Any]

BATCH = 64
ROUNDS = 31


def measured(path: str, file: str, batch_norm: Literal["frozen", "train"], python: str) -> Record:
    passes = "cleanup-primitives" if batch_norm == "frozen" else "inline-functions"
    try:
        model = onnxopt.optimize(onnxopt.load(path), passes=f"{passes},convert-opset{{version=18}}").model
        with np.load(file) as arrays:
            batch = {v.name: arrays[v.name][:BATCH] for v in model.graph.inputs} | {"labels": arrays["labels"][:BATCH]}
        ours, theirs = (
            Trainable(model, CrossEntropy(), batch, batch_norm=batch_norm, threads=1, interpreter=each)
            for each in ("", python)
        )
        return by_turns(ours, theirs, batch)
    except OnnxoptError as error:
        return {"failure": str(error).split("; take engine")[0].rsplit("the model: ", 1)[-1]}


def by_turns(ours: Trainable, theirs: Trainable, batch: Mapping[str, Array]) -> Record:
    """Median milliseconds of each; ours over theirs, the median of pairs with its middle half; how far the gradients
    are apart, in units of their length."""
    remote = theirs.computes(batch)
    assert isinstance(remote, RemoteGradient)
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        ours.gradient(batch)
        own = time.process_time() - start
        theirs.gradient(batch)
        times.append((own, remote.seconds))
    a, b = np.array(times[1:]).T
    low, middle, high = np.percentile(a / b, [25, 50, 75])
    apart = [np.linalg.norm(ours.gradients[n] - theirs.gradients[n]) for n in ours.gradients]
    return {
        "ms": [1e3 * float(np.median(each)) for each in (a, b)],
        "ratio": [float(middle), float(low), float(high)],
        "apart": float(np.linalg.norm(apart) / np.linalg.norm([np.linalg.norm(g) for g in ours.gradients.values()])),
    }


def main() -> None:
    path, file, batch_norm, python = sys.argv[1:]
    print(json.dumps(measured(path, file, batch_norm, python)))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
