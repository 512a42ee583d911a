"""Low-rank factorization of trained models, alone and with the other methods, end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxopt
from onnxopt.data import load_data
from onnxopt.evaluation import evaluate
from onnxopt.macs import count_macs
from onnxopt.metrics import parameters
from onnxopt.runtime import Snapshot

MODELS = Path(__file__).parents[2] / "models"
EVALUATION = {name: MODELS / e["eval"] for name, e in json.loads((MODELS / "models.json").read_text()).items()}


@pytest.fixture(autouse=True)
def _no_choices_of_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def images(count: int) -> dict[str, Any]:
    with np.load(MODELS / "data" / "mnist_hard.npz") as data:
        return {"image": data["X_train"][:count, None].astype(np.float32) / 255}


def texts(count: int) -> dict[str, Any]:
    with np.load(EVALUATION["transformer_sentiment"]) as file, np.load(MODELS / "data" / "sentiment_text.npz") as data:
        (name,) = set(file.files) - {"labels"}
        return {name: data["X_train"][:count].astype(file[name].dtype)}


@pytest.mark.parametrize(
    ("passes", "macs", "accuracy"),
    [
        ("cleanup,split-conv{ratio=0.4,round_to=4,timed=false}", 0.62, 0.945),
        ("cleanup,split-conv{ratio=0.4,round_to=8,timed=false},cleanup,quantize-static{placement=all}", 0.62, 0.94),
        ("cleanup,prune-channels{ratio=0.2,of=macs,round_to=4},reconstruct,split-conv{ratio=0.2,round_to=4,timed=false}",
         0.66, 0.93),
    ],
)  # fmt: skip
def test_a_residual_network_keeps_its_accuracy(passes: str, macs: float, accuracy: float) -> None:
    """95.7 % before; on 500 samples without labels."""
    name = "resnet8_mnist_hard"
    before = onnxopt.load(MODELS / name / "model.onnx")
    result = onnxopt.optimize(before, passes=passes, data=images(500))
    assert not result.report.problems
    found = evaluate(Snapshot.of(before), Snapshot.of(result.model), load_data(EVALUATION[name], before))
    assert found.accuracy["logits"][1] >= accuracy
    if "quantize" not in passes:
        assert count_macs(result.model).total <= macs * count_macs(before).total


def test_a_transformer_gets_a_fifth_smaller() -> None:
    name = "transformer_sentiment"
    before = onnxopt.load(MODELS / name / "model.onnx")
    passes = "cleanup,split-embedding{ratio=0.2},split-matmul{ratio=0.4,timed=false},cleanup"
    result = onnxopt.optimize(before, passes=passes, data=texts(1000))
    found = evaluate(Snapshot.of(before), Snapshot.of(result.model), load_data(EVALUATION[name], before))
    assert found.sqnr_db["logits"] >= 20
    assert parameters(result.model) <= 0.8 * parameters(before)
