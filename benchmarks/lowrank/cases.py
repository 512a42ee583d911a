"""The models that are factorized, with what they are fitted to and judged by."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from models._common import MODELS, samples

from benchmarks import venvs
from benchmarks.cleanup.tools import ROOT
from benchmarks.prune.peer import REQUIREMENTS
from benchmarks.quantize.weights import MINILM, texts

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]
Labelled = tuple[Feed, Array | None]

CATALOGUE: dict[str, dict[str, str]] = json.loads((MODELS / "models.json").read_text())
MLP = venvs.CACHE / "lowrank" / "mlp.onnx"
SAMPLES = 1500
"""Unlabelled training samples that a model is calibrated on,"""
MANY = {"transformer_sentiment": 2000, "minilm": 1024}
"""and of some another number."""
TEXTS = 256
BATCH = 100


@dataclass(frozen=True)
class Case:
    model: Path
    calibration: Feed | list[Feed]
    """Samples along the first axis, or whole batches."""
    held_out: list[Labelled]
    """Batches of others, with labels where there are any."""
    one: Feed
    """A single sample, to take the time of."""
    output: str = ""
    """What holds the scores of classes, if there are labels."""
    ops: tuple[str, ...] = ("Conv",)
    """Layers that peers factorize."""

    def batches(self) -> Iterator[Feed]:
        """The calibration samples."""
        if isinstance(self.calibration, list):
            yield from self.calibration
        else:
            yield from cut(self.calibration)


def case(name: str, most: int | None = None) -> Case:
    """One of our models, ``minilm`` or ``mlp``, with at most so many calibration samples."""
    count = min(MANY.get(name, SAMPLES), most or sys.maxsize)
    makers: dict[str, Callable[[int], Case]] = {"minilm": minilm, "mlp": mlp}
    return makers[name](count) if name in makers else own(name, count)


def own(name: str, count: int) -> Case:
    """One of our trained models: unlabelled training samples, judged on its evaluation file."""
    entry = CATALOGUE[name]
    ops = ("MatMul", "Gemm") if name.startswith("transformer") else ("Conv",)
    return _trained(MODELS / entry["path"], entry["data"], entry["eval"], entry["labels_output"], count, ops)


def mlp(count: int) -> Case:
    """A perceptron of 1024-512-512-10 on the pictures of ``mnist_hard``, trained where it is not there."""
    if not MLP.exists():
        MLP.parent.mkdir(parents=True, exist_ok=True)
        python = venvs.ensure("torch-pruning", REQUIREMENTS)  # has PyTorch and ONNX Runtime
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [str(python), "-P", "-m", "benchmarks.lowrank.mlp", str(MLP)]
        subprocess.run(command, check=True, env=env, stdout=sys.stderr)
    return _trained(MLP, "mnist_hard", "data/mnist_hard_eval.npz", "logits", count, ("MatMul", "Gemm"))


def minilm(count: int) -> Case:
    """A trained sentence encoder; nothing says which of its answers are right."""
    held_out = texts("test", TEXTS)
    middle = held_out[len(held_out) // 2]
    one = {name: x[:1] for name, x in middle.items()}
    return Case(MINILM, texts("train", count), [(feed, None) for feed in held_out], one, ops=("MatMul",))


def _trained(model: Path, data: str, evaluation: str, output: str, count: int, ops: tuple[str, ...]) -> Case:
    with np.load(MODELS / evaluation, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    labels = arrays.pop("labels")
    (name,) = arrays
    x, _ = samples(data, "train")
    chosen = np.random.default_rng(0).permutation(len(x))[:count]
    held_out = zip(cut(arrays), np.split(labels, range(BATCH, len(labels), BATCH)), strict=True)
    return Case(
        model=model,
        calibration={name: x[chosen].reshape(-1, *arrays[name].shape[1:])},
        held_out=list(held_out),
        one={name: arrays[name][:1]},
        output=output,
        ops=ops,
    )


def cut(arrays: Feed) -> Iterator[Feed]:
    """Batches of them."""
    for start in range(0, len(next(iter(arrays.values()))), BATCH):
        yield {name: x[start : start + BATCH] for name, x in arrays.items()}
