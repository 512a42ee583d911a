"""What a whole step costs: forward, backward, AdamW, of ours and of eager PyTorch by turns. Runs where PyTorch is.

    python -m benchmarks.train.speed NET BATCH_NORM THREADS        # JSON on stdout

On one thread CPU time, which is steadier; on several the clock on the wall. Ours is a step of the loop that users run,
with its batches, its look at the gradient's length and its checks.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from onnxopt.data import load_data
from onnxopt.errors import OnnxoptError
from onnxopt.model import from_proto
from onnxopt.train import CrossEntropy, TrainConfig, train

from benchmarks.train.nets import NETS, Net, export, torch_step

Record = dict[str, Any]

SECONDS = 12.0
"""How long to measure."""
ROUNDS = range(7, 200)
"""At least so many, at most so many."""


def our_step(model: onnx.ModelProto, x: Any, labels: Any, batch_norm: str, threads: int) -> Callable[[], object]:
    loaded = from_proto(model)
    data = load_data({"x": x, "labels": labels}, loaded)
    config = TrainConfig(steps=1_000_000, batch=len(x), batch_norm=batch_norm, threads=threads)  # type: ignore[arg-type]
    steps = iter(train(loaded, CrossEntropy(), data, config))
    return lambda: next(steps)


def measured(net: Net, batch_norm: str, threads: int) -> Record:
    x, labels = net.inputs(net.batch), net.labels(net.batch)
    torch.set_num_threads(threads)
    try:
        model = export(net.module().eval(), (x,), ("x",), "y")
        ours = our_step(model, x.numpy(), labels.numpy(), batch_norm, threads)
        theirs = torch_step(net.module().train(batch_norm == "train"), x, labels)
        return by_turns(ours, theirs, time.process_time if threads == 1 else time.perf_counter)
    except (OnnxoptError, NotImplementedError) as error:
        return {"failure": f"{type(error).__name__}: {error}"[:400]}


def by_turns(ours: Callable[[], object], theirs: Callable[[], object], clock: Callable[[], float]) -> Record:
    """Median milliseconds of each, and of ours over theirs the median of pairs with its middle half."""
    for call in (ours, theirs) * 2:
        call()
    times: list[list[float]] = []
    end = time.perf_counter() + SECONDS
    for done in itertools.count():
        if done >= ROUNDS.stop or (done >= ROUNDS.start and time.perf_counter() > end):
            break
        pair = [0.0, 0.0]
        for at in (0, 1) if done % 2 else (1, 0):
            start = clock()
            (ours, theirs)[at]()
            pair[at] = clock() - start
        times.append(pair)
    a, b = np.array(times).T
    low, middle, high = np.percentile(a / b, [25, 50, 75])
    return {
        "ms": [1e3 * float(np.median(each)) for each in (a, b)],
        "ratio": [float(middle), float(low), float(high)],
        "rounds": len(times),
    }


def main() -> None:
    warnings.simplefilter("ignore")
    name, batch_norm, threads = sys.argv[1:]
    print(json.dumps(measured(NETS[name], batch_norm, int(threads))))


if __name__ == "__main__":
    main()
