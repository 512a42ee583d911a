"""The shipped models are the ones that their cards describe."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from models._common import samples

MODELS = Path(__file__).resolve().parent.parent / "models"
LIMIT = 20_000_000
PARTS = ("*/model.onnx", "*/eval.npz", "*/make.py", "data/*", "*.md", "*.json", "*.py")


@dataclass(frozen=True)
class Entry:
    """One model of ``models.json``; paths are relative to ``models/``."""

    name: str
    path: str
    data: str
    eval: str
    labels_output: str
    accuracy: float
    sha256: str
    exporter: str
    opset: dict[str, int]
    parameters: int
    bytes: int

    @property
    def model(self) -> Path:
        return MODELS / self.path


ENTRIES = [Entry(name, **entry) for name, entry in json.loads((MODELS / "models.json").read_text()).items()]
each_model = pytest.mark.parametrize("entry", [pytest.param(e, id=e.name) for e in ENTRIES])


def answers(entry: Entry, batch: int = 100) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """What the model says of each sample of its evaluation data, and what is right."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(entry.model, options, providers=["CPUExecutionProvider"])
    with np.load(MODELS / entry.eval, allow_pickle=False) as arrays:
        labels = arrays["labels"]
        feeds = {i.name: arrays[i.name] for i in session.get_inputs()}
    parts = []
    for start in range(0, len(labels), batch):
        feed = {name: x[start : start + batch] for name, x in feeds.items()}
        y = np.asarray(session.run([entry.labels_output], feed)[0])
        parts.append(y if y.ndim == 1 else y.argmax(axis=-1))
    return np.concatenate(parts), labels


@each_model
def test_file_is_the_recorded_one(entry: Entry) -> None:
    content = entry.model.read_bytes()
    assert len(content) == entry.bytes
    assert hashlib.sha256(content).hexdigest() == entry.sha256


@each_model
def test_model_is_valid_and_as_recorded(entry: Entry) -> None:
    model = onnx.load(entry.model)
    onnx.checker.check_model(model, full_check=True)
    assert {o.domain or "ai.onnx": o.version for o in model.opset_import} == entry.opset


@each_model
def test_accuracy_is_the_recorded_one(entry: Entry) -> None:
    guesses, labels = answers(entry)
    assert 100 * (guesses == labels).mean() == pytest.approx(entry.accuracy, abs=0.2)


@each_model
def test_batch_is_dynamic(entry: Entry) -> None:
    whole, _ = answers(entry, batch=100)
    odd, _ = answers(entry, batch=33)
    assert (whole == odd).mean() > 0.998  # a tie may break another way


@each_model
def test_no_folder_of_the_machine_that_made_it_is_in_the_model(entry: Entry) -> None:
    content = entry.model.read_bytes()
    assert b'File "/' not in content
    assert b"site-packages" not in content


@each_model
def test_card_names_the_file_and_its_accuracy(entry: Entry) -> None:
    cards = (MODELS / "README.md").read_text(encoding="utf-8")
    assert entry.sha256 in cards
    row = next(line for line in cards.splitlines() if line.startswith(f"| `{entry.name}`"))
    assert f" {entry.accuracy:.1f} " in row


def test_every_model_is_recorded() -> None:
    assert sorted(p.parent.name for p in MODELS.glob("*/model.onnx")) == sorted(e.name for e in ENTRIES)


@each_model
def test_evaluation_data_is_not_training_data(entry: Entry) -> None:
    with np.load(MODELS / entry.eval, allow_pickle=False) as arrays:
        (name,) = set(arrays) - {"labels"}
        judged = arrays[name]
        assert len(judged) == len(arrays["labels"]) >= 300
    trained, _ = samples(entry.data, "train")
    assert judged.dtype == trained.dtype
    assert not {x.tobytes() for x in judged} & {x.tobytes() for x in trained}


def test_folder_stays_small() -> None:
    files = {file for part in PARTS for file in MODELS.glob(part) if file.is_file()}
    assert sum(file.stat().st_size for file in files) < LIMIT
