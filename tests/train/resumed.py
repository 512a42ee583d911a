"""A training in a process of its own, that can be killed: ``python -m tests.train.resumed CHECKPOINT RESULT KILL_AT``.

It uses whatever has a state: momentum, a moving average, the best weights, statistics, augmentation, parts of batches.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt.train import CrossEntropy, Distillation, TrainConfig, WeightedSum, train
from tests import support
from tests.train.cases import dataset, initializers, perceptron, weights

CONFIG = TrainConfig(
    epochs=4, batch=32, micro_batch=20, lr=0.02, ema=0.8, clip=1.0, batch_norm="train", evaluate_every=3, patience=9,
    checkpoint_every=4, threads=1,
)  # fmt: skip


def _augment(feeds: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
    return {"x": feeds["x"] + np.float32(0.1) * generator.standard_normal(feeds["x"].shape, np.float32)}


def main(checkpoint: Path, result: Path, kill_at: int) -> None:
    """Train to the end, or to step ``kill_at``, after which the process kills itself; goes on where it left off."""
    model = support.graph(
        "g (float[N,2] x) => (float[N,3] y) { a = MatMul(x, w1) b = BatchNormalization(a, one, zero, zero, one)"
        " r = Relu(b) y = MatMul(r, w2) }",
        w1=weights(np.random.default_rng(0), 2, 8), w2=weights(np.random.default_rng(1), 8, 3),
        one=np.ones(8, np.float32), zero=np.zeros(8, np.float32),
    )  # fmt: skip
    loss = WeightedSum(((0.5, CrossEntropy()), (0.5, Distillation())))
    run = train(
        model, loss, dataset(), CONFIG, teacher=perceptron(seed=3), held_out=dataset(60, seed=1), augment=_augment,
        checkpoint=checkpoint, resume=True,
    )  # fmt: skip
    for step in run:
        if step.index == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        print(step.index, flush=True)
    now = {f"now/{name}": array for name, array in run.parameters.items()}
    found: dict[str, Any] = {**initializers(run.result()), **now}
    np.savez(result, **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
