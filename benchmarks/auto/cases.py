"""The models, training samples to search with, and others to promise on and to judge by, cut anew by seed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from models._common import MODELS, samples

from benchmarks import judge
from benchmarks.corpus import fetch
from benchmarks.quantize import corpus
from benchmarks.quantize.score import guess

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]

CATALOGUE: dict[str, dict[str, str]] = json.loads((MODELS / "models.json").read_text())
OWN = ("cnn1d_mnist1d", "mixer_mnist1d", "resnet8_mnist_hard", "dwcnn_mnist_hard", "densenet_mnist_hard",
       "transformer_sentiment")  # fmt: skip
REAL = {"magika": "real/magika", "ppocr-cls": "real/ppocr-cls"}
NAMES = (*OWN, *REAL)
_UNTOUCHED = 0.3
"""The share of the samples that only the benchmark sees."""
_SEARCHED = 1500
"""So many training samples take part in a search."""
_BATCH = 32


@dataclass(frozen=True)
class Case:
    """A model with labelled samples."""

    name: str
    model: Path
    output: str
    """What holds the scores."""
    arrays: Feed
    """Samples that did not train it, ``labels`` among them;"""
    training: Feed | None
    """and some that did, where they are known."""

    def split(self, seed: int) -> tuple[Feed, Feed | None, Feed]:
        """Samples to search with, others to hold the budget on, where those are not divided, and others to judge by."""
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(self.arrays["labels"]))
        cut = round((1 - _UNTOUCHED) * len(order))
        known, untouched = _part(self.arrays, order[:cut]), _part(self.arrays, order[cut:])
        if self.training is None:
            return known, None, untouched
        return _part(self.training, rng.permutation(len(self.training["labels"]))[:_SEARCHED]), known, untouched

    @cached_property
    def one(self) -> Feed:
        """A single sample, to take the time of."""
        return {name: x[:1] for name, x in self.arrays.items() if name != "labels"}


def _part(arrays: Feed, rows: Array) -> Feed:
    return {name: x[rows] for name, x in arrays.items()}


def case(name: str, data: Path = corpus.DATA) -> Case:
    """A case by its name; ``data`` is the folder of what published models are judged on."""
    return _real(name, data) if name in REAL else _own(name)


def _own(name: str) -> Case:
    entry = CATALOGUE[name]
    with np.load(MODELS / entry["eval"], allow_pickle=False) as arrays:
        (key,) = set(arrays.files) - {"labels"}
        shape = arrays[key].shape[1:]
    test, training = (
        {key: x.reshape(-1, *shape), "labels": y.astype(np.int64)}
        for x, y in (samples(entry["data"], split) for split in ("test", "train"))
    )
    return Case(name, MODELS / entry["path"], entry["labels_output"], test, training)


def _real(name: str, data: Path) -> Case:
    fetch.fetch_real()
    (task,) = corpus.tasks(["real"], [REAL[name]], data)
    with np.load(task.evaluation, allow_pickle=False) as file:
        return Case(name, task.model, task.output, {key: file[key] for key in file.files}, None)


def accuracy(model: Path, one: Case, data: Feed) -> float:
    """The share of right answers."""
    session = judge.session(model, "ORT_ENABLE_ALL")
    output = one.output or session.get_outputs()[0].name
    right = 0
    for start in range(0, len(data["labels"]), _BATCH):
        part = {name: x[start : start + _BATCH] for name, x in data.items()}
        labels = part.pop("labels")
        right += int((guess(judge.run(session, part)[output]) == labels).sum())
    return right / len(data["labels"])
