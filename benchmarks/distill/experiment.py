"""What is measured, in processes of their own, and what is remembered: by model, our sources, and the harness's."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models._common import MODELS

from benchmarks import parts, venvs
from benchmarks.cleanup.experiment import Store, digest

Record = dict[str, Any]

HERE = Path(__file__).parent
FOLDER = venvs.CACHE / "distill"
TIMEOUT = 1800.0
NETWORKS = (
    "resnet8_mnist_hard",
    "dwcnn_mnist_hard",
    "densenet_mnist_hard",
    "cnn1d_mnist1d",
    "transformer_sentiment",
    "mixer_mnist1d",
)
PRODUCTS = ("transformer_sentiment", "mixer_mnist1d")
"""These are factorized in their products, the others in their convolutions."""
PRUNED = "cleanup,prune-channels{of=macs,ratio=0.5,round_to=1},reconstruct"
SPLIT = "cleanup,{pass_}{{ratio=0.5,round_to=1,timed=false}}"
QUANTIZED = "cleanup,quantize-static{target=generic,placement=all,weight_type=int4}"
STUDENTS = (("pruned", 2000), ("pruned", 5000), ("random", 2000))
"""What students start from, and how many samples they see."""
SEEDS = range(5)
WAYS = ("labels", "both", "teacher")


version = functools.partial(parts.version, HERE)


def ask(module: str, *arguments: object) -> Record:
    """What a module of this folder prints."""
    return parts.ask(f"benchmarks.distill.{module}", *arguments, timeout=TIMEOUT)


class Lab:
    """What asks, and remembers."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def trial(self, name: str, pipeline: str) -> Record:
        """Without labels."""
        made = functools.partial(ask, "trial", name, pipeline, 0, FOLDER)
        key = (name, digest(MODELS / name / "model.onnx"), pipeline, version("trial"))
        return {"name": name, "pipeline": pipeline} | self.store.get("distill-trial", key, made)

    def student(self, start: str, way: str, samples: int, seed: int) -> Record:
        made = functools.partial(ask, "student", start, way, samples, seed)
        key = (start, way, str(samples), str(seed), version("student", "trial"))
        found = self.store.get("distill-student", key, made)
        return {"start": start, "way": way, "samples": samples, "seed": seed} | found


def students(lab: Lab) -> Iterator[Record]:
    for start, samples in STUDENTS:
        for seed in SEEDS:
            for way in WAYS:
                yield lab.student(start, way, samples, seed)


def pruned(lab: Lab) -> Iterator[Record]:
    for name in NETWORKS:
        yield lab.trial(name, PRUNED)
        yield lab.trial(name, f"{PRUNED},distill")


def split(lab: Lab) -> Iterator[Record]:
    for name in NETWORKS:
        pipeline = SPLIT.format(pass_="split-matmul" if name in PRODUCTS else "split-conv")
        yield lab.trial(name, pipeline)
        yield lab.trial(name, f"{pipeline},distill")


def quantized(lab: Lab) -> Iterator[Record]:
    for name in NETWORKS:
        yield lab.trial(name, QUANTIZED)
        yield lab.trial(name, f"{QUANTIZED},qat")


PARTS = {"students": students, "pruned": pruned, "split": split, "quantized": quantized}
