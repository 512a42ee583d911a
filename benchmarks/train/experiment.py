"""What is measured, in processes of their own, and what is remembered: by model, our sources, and the harness's."""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import venvs
from benchmarks.cleanup import measure
from benchmarks.cleanup.experiment import Store, digest
from benchmarks.cleanup.tools import BY_NAME, ROOT
from benchmarks.corpus import fetch
from benchmarks.prune import peer
from benchmarks.prune.peer import REQUIREMENTS

Record = dict[str, Any]

HERE = Path(__file__).parent
FOLDER = venvs.CACHE / "train"
TIMEOUT = 900.0
NETS = ("MLP", "ResNet-8", "ResNet-18", "MobileNetV2", "transformer", "LSTM")
CONVOLUTIONAL = ("ResNet-8", "ResNet-18", "MobileNetV2")
"""These have BatchNormalization."""
BATCHES = (8, 64)
"""Of ResNet-18, whose memory is looked at."""
MODELS = ROOT / "models"
EVALUATION: dict[str, dict[str, str]] = json.loads((MODELS / "models.json").read_text())
ORT_TRAINING = ("onnxruntime-training-cpu==1.19.2", "onnx==1.17.0")
"""For Python 3.8 to 3.12."""


def version(*modules: str) -> str:
    """Of our own sources, and of the modules of this folder that take part."""
    parts = [(HERE / f"{name}.py").read_bytes() for name in modules]
    return BY_NAME["onnxopt"].fingerprint() + hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def ask(module: str, *arguments: object, python: Path | None = None, timeout: float = TIMEOUT) -> Record:
    """In a process of its own; with ``python`` in another environment. Also tells the peak of its memory."""
    command = ["-m", f"benchmarks.train.{module}", *map(str, arguments)]
    if python is None:
        run = measure.run([sys.executable, *command], timeout)
    else:
        run = measure.run(["env", f"PYTHONPATH={ROOT}", str(python), "-P", *command], timeout)
    try:
        return {"said": json.loads(run.stdout), "peak": run.peak_rss}
    except ValueError:
        return {"failure": " ".join(run.failure())[:400]}


class Lab:
    """What asks, and remembers."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @functools.cached_property
    def torch(self) -> Path:
        """Where PyTorch is, beside ONNX Runtime."""
        return venvs.ensure("torch-pruning", REQUIREMENTS)

    def gradients(self, name: str, form: str, batch_norm: str) -> Record:
        made = functools.partial(ask, "gradients", name, form, batch_norm, python=self.torch)
        key = (name, form, batch_norm, version("gradients", "nets"))
        record = {"name": name, "form": form, "batch_norm": batch_norm}
        return record | self.store.get("train-gradients", key, made)

    def coverage(self, group: str, name: str, path: Path) -> Record:
        key = (digest(path), version("coverage"))
        made = functools.partial(ask, "coverage", path)
        return {"group": group, "name": name} | self.store.get("train-coverage", key, made)

    def speed(self, name: str, batch_norm: str, threads: int) -> Record:
        made = functools.partial(ask, "speed", name, batch_norm, threads, python=self.torch)
        key = (name, batch_norm, str(threads), version("speed", "nets"))
        record = {"name": name, "batch_norm": batch_norm, "threads": threads}
        return record | self.store.get("train-speed", key, made)

    @functools.cached_property
    def ort_training(self) -> Path:
        """Where onnxruntime-training is."""
        return venvs.ensure("ort-training", ORT_TRAINING)

    def engine(self, name: str, batch_norm: str) -> Record:
        path, data = MODELS / name / "model.onnx", MODELS / EVALUATION[name]["eval"]
        made = functools.partial(ask, "engine", path, data, batch_norm, self.ort_training)
        key = (digest(path), batch_norm, version("engine"))
        return {"name": name, "batch_norm": batch_norm} | self.store.get("train-engine", key, made)

    def memory(self, side: str, batch: int) -> Record:
        net, path = "ResNet-18", FOLDER / "resnet18.onnx"
        if side == "onnxopt":
            if not path.exists():
                run = ["env", f"PYTHONPATH={ROOT}", str(self.torch), "-P", "-m", "benchmarks.train.memory"]
                measure.run([*run, "export", net, str(path)], TIMEOUT)
            made = functools.partial(ask, "memory", side, path, batch)
        else:
            made = functools.partial(ask, "memory", side, net, batch, python=self.torch)
        key = (side, str(batch), version("memory", "speed", "nets"))
        return {"name": net, "side": side, "batch": batch} | self.store.get("train-memory", key, made)


def gradients(lab: Lab) -> Iterator[Record]:
    for name in NETS:
        for form in ("plain", "smooth") if name in ("MLP", *CONVOLUTIONAL) else ("plain",):
            for batch_norm in ("frozen", "train") if name in CONVOLUTIONAL else ("frozen",):
                yield lab.gradients(name, form, batch_norm)


def coverage(lab: Lab) -> Iterator[Record]:
    for model in fetch.models():
        yield lab.coverage(model.group, model.name, model.path)
    for path in sorted((peer.FOLDER / "networks" / "architectures").glob("*.onnx")):
        yield lab.coverage("architecture", f"architectures/{path.stem}", path)


def speed(lab: Lab) -> Iterator[Record]:
    for threads in (1, 2):
        for name in NETS:
            for batch_norm in ("frozen", "train") if name in CONVOLUTIONAL else ("frozen",):
                yield lab.speed(name, batch_norm, threads)


def memory(lab: Lab) -> Iterator[Record]:
    for batch in BATCHES:
        for side in ("onnxopt", "pytorch"):
            yield lab.memory(side, batch)


def engine(lab: Lab) -> Iterator[Record]:
    for name in sorted(EVALUATION.keys() - {"pipeline_mnist1d"}):  # whose first output is no score
        for batch_norm in ("frozen", "train") if name == "resnet8_mnist_hard" else ("frozen",):
            yield lab.engine(name, batch_norm)


PARTS = {"gradients": gradients, "coverage": coverage, "speed": speed, "engine": engine, "memory": memory}
