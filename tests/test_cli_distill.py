"""``onnxopt distill``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxopt.model import load, save
from tests.command_line import CommandLine
from tests.train.cases import initializers, perceptron, sectors


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capsys)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """A teacher, a student that differs from it, and samples without labels."""
    save(perceptron(seed=1), tmp_path / "teacher.onnx")
    save(perceptron(seed=2), tmp_path / "student.onnx")
    np.savez(tmp_path / "data.npz", x=sectors(200)["x"])
    return {name: str(tmp_path / name) for name in ("teacher.onnx", "student.onnx", "data.npz", "out.onnx")}


def _arguments(files: dict[str, str], *more: str) -> list[str]:
    chosen = ["-o", files["out.onnx"], "--data", files["data.npz"], "--batch", "20", "--epochs", "3", *more]
    return ["distill", files["teacher.onnx"], files["student.onnx"], *chosen]


def test_trains_the_student_and_leaves_its_file(run: CommandLine, files: dict[str, str]) -> None:
    before = Path(files["student.onnx"]).read_bytes()
    answer = run(*_arguments(files, "--json"))
    assert answer.code == 0
    (report,) = answer.json["passes"]
    assert [fact["epoch"] for fact in report["facts"]] == [1, 2, 3]
    assert Path(files["student.onnx"]).read_bytes() == before
    student, out = initializers(load(files["student.onnx"])), initializers(load(files["out.onnx"]))
    assert student.keys() == out.keys()
    assert all(not np.array_equal(student[name], out[name]) for name in student)


def test_a_missing_teacher_is_an_error(run: CommandLine, files: dict[str, str]) -> None:
    Path(files["teacher.onnx"]).unlink()
    answer = run(*_arguments(files))
    assert answer.code == 2
    assert "teacher.onnx" in answer.error
    assert not Path(files["out.onnx"]).exists()


def test_a_checkpoint_of_another_training_is_an_error(run: CommandLine, files: dict[str, str], tmp_path: Path) -> None:
    kept = str(tmp_path / "run.npz")
    assert run(*_arguments(files, "--checkpoint", kept)).code == 0
    answer = run(*_arguments(files, "--checkpoint", kept, "--lr", "0.5", "--force"))
    assert answer.code == 2
    assert "another configuration" in answer.error


@pytest.mark.parametrize(
    ("option", "value"), [("--temperature", "0"), ("--lr", "-1"), ("--hard", "2"), ("--epochs", "0")]
)
def test_options_out_of_range(run: CommandLine, files: dict[str, str], option: str, value: str) -> None:
    answer = run(*_arguments(files, option, value))
    assert answer.code == 2
    assert not Path(files["out.onnx"]).exists()


def test_more_teachers(run: CommandLine, files: dict[str, str], tmp_path: Path) -> None:
    """Another teacher changes what is learnt; one that is missing is named."""
    assert run(*_arguments(files)).code == 0
    alone = initializers(load(files["out.onnx"]))
    save(perceptron(seed=5), tmp_path / "more.onnx")
    assert run(*_arguments(files, "--teacher", str(tmp_path / "more.onnx"), "--force")).code == 0
    assert not np.array_equal(alone["w1"], initializers(load(files["out.onnx"]))["w1"])
    answer = run(*_arguments(files, "--teacher", str(tmp_path / "none.onnx"), "--force"))
    assert answer.code == 2
    assert "none.onnx" in answer.error


def test_features(run: CommandLine, files: dict[str, str]) -> None:
    inside = ("--features", "1", "--feature-loss", "hints", "--pair", "r=r")
    assert run(*_arguments(files, *inside)).code == 0
    assert initializers(load(files["out.onnx"])).keys() == initializers(load(files["student.onnx"])).keys()
    answer = run(*_arguments(files, *inside[:-1], "r=none", "--force"))
    assert answer.code == 2
    assert "the teacher computes no value 'none'" in answer.error
