"""``onnxopt sensitivity``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from onnxopt.data import load_data
from onnxopt.model import save
from onnxopt.search.sensitivity import sensitivity
from tests.command_line import CommandLine
from tests.support import graph

RNG = np.random.default_rng(0)


def model(tmp_path: Path) -> Path:
    """Two layers; one has a weight so large that on its grid the others of its column are next to nothing."""
    weight = RNG.normal(size=(32, 32)).astype(np.float32)
    coarse = RNG.normal(size=(32, 32)).astype(np.float32)
    coarse[0] *= 300
    made = graph(
        "g (float[N,32] x) => (float[N,32] y, float[N,32] z) { y = MatMul(x, fine) z = MatMul(x, coarse) }",
        fine=weight, coarse=coarse,
    )  # fmt: skip
    save(made, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.fixture
def onnxopt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capsys)


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    np.savez(tmp_path / "d.npz", x=RNG.normal(size=(64, 32)).astype(np.float32))
    return tmp_path / "d.npz"


def test_each_node_alone(tmp_path: Path, samples: Path) -> None:
    from onnxopt.model import load

    loaded = load(model(tmp_path))
    rows = sensitivity(loaded, load_data(samples, loaded))
    assert len(rows) == 2
    assert all(row.op == "MatMul" and row.float_us > 0 and row.integer_us > 0 for row in rows)
    assert all(row.sqnr_db is not None and 15 < row.sqnr_db < 80 for row in rows)
    noises = [row.sqnr_db or 0.0 for row in rows]
    assert noises == sorted(noises)


def test_saves_and_prints(tmp_path: Path, samples: Path, onnxopt: CommandLine) -> None:
    target = tmp_path / "s.json"
    answer = onnxopt("sensitivity", model(tmp_path), "--data", samples, "-o", target, "--json")
    assert answer.code == 0
    assert json.loads(target.read_text()) == answer.json
    assert {row["op"] for row in answer.json} == {"MatMul"}
    again = onnxopt("sensitivity", tmp_path / "m.onnx", "--data", samples, "-o", target)
    assert again.code == 2
    assert "exists" in again.error


def test_wants_data_that_fit(tmp_path: Path, onnxopt: CommandLine) -> None:
    np.savez(tmp_path / "wrong.npz", y=np.zeros((3, 32), np.float32))
    answer = onnxopt("sensitivity", model(tmp_path), "--data", tmp_path / "wrong.npz")
    assert answer.code == 2
    assert "'x'" in answer.error
