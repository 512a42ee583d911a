"""Checkpoints: a killed run ends at the same bits, and a write that fails costs nothing."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxopt.errors import DataError, OutputError
from onnxopt.train import SGD, CrossEntropy, TrainConfig, train
from onnxopt.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tests.train.cases import dataset, perceptron

_ROOT = Path(__file__).parents[2]
_CONFIG = TrainConfig(steps=10, threads=1)


def _process(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.train.resumed", *map(str, arguments)]
    return subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True)


def _bits(path: Path) -> dict[str, bytes]:
    with np.load(path) as file:
        return {name: file[name].tobytes() for name in file.files}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = _process(folder / "c.npz", folder / "r.npz", -1)
    steps = process.communicate()[0].split()
    assert process.returncode == 0
    assert len(steps) == 28
    return _bits(folder / "r.npz")


def test_a_run_killed_again_and_again_ends_at_the_same_bits(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    checkpoint, result = tmp_path / "c.npz", tmp_path / "r.npz"
    for kill_at, first in ((2, 0), (5, 0), (7, 4), (19, 8)):  # before the first checkpoint, behind one, at one, later
        process = _process(checkpoint, result, kill_at)
        steps = [int(line) for line in process.communicate()[0].split()]
        assert process.returncode == -9
        assert steps == list(range(first, kill_at))
    process = _process(checkpoint, result, -1)
    assert process.communicate()[0].split()[0] == "20"
    assert _bits(result) == uninterrupted


def test_a_run_killed_from_outside_ends_at_the_same_bits(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    checkpoint, result = tmp_path / "c.npz", tmp_path / "r.npz"
    process = _process(checkpoint, result, -1)
    assert process.stdout is not None
    while process.stdout.readline().strip() != "9":
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    process = _process(checkpoint, result, -1)
    process.communicate()
    assert _bits(result) == uninterrupted
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_a_run_that_is_over_has_nothing_left_to_do(tmp_path: Path) -> None:
    first = train(perceptron(), CrossEntropy(), dataset(), _CONFIG, checkpoint=tmp_path / "c.npz")
    list(first)
    again = train(perceptron(), CrossEntropy(), dataset(), _CONFIG, checkpoint=tmp_path / "c.npz", resume=True)
    assert list(again) == []
    for name, array in first.parameters.items():
        np.testing.assert_array_equal(again.parameters[name], array)


def test_a_checkpoint_is_not_resumed_unasked_nor_by_another_training(tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    list(train(perceptron(), CrossEntropy(), dataset(), _CONFIG, checkpoint=path))
    with pytest.raises(OutputError, match="exists"):
        train(perceptron(), CrossEntropy(), dataset(), _CONFIG, checkpoint=path)
    with pytest.raises(OutputError, match="create it first"):
        train(perceptron(), CrossEntropy(), dataset(), _CONFIG, checkpoint=tmp_path / "nowhere" / "c.npz")
    others: list[tuple[Any, str]] = [
        ((perceptron(), dataset(), dataclasses.replace(_CONFIG, optimizer=SGD())), "another configuration"),
        ((perceptron(), dataset(seed=5), _CONFIG), "another data set"),
        ((perceptron(seed=5), dataset(), _CONFIG), "another model"),
    ]
    for (model, data, config), match in others:
        with pytest.raises(DataError, match=match):
            train(model, CrossEntropy(), data, config, checkpoint=path, resume=True)
    with pytest.raises(DataError, match="another loss"):
        train(perceptron(), CrossEntropy(smoothing=0.1), dataset(), _CONFIG, checkpoint=path, resume=True)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and nothing", b"\x93NUMPY", b"text"])
def test_what_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="no checkpoint"):
        load_checkpoint(path)
    np.savez(path, x=np.zeros(3))
    with pytest.raises(DataError, match="no checkpoint"):
        load_checkpoint(path)
    np.savez(path, x=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="no checkpoint"):
        load_checkpoint(path)


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk."""
    path = tmp_path / "c.npz"
    save_checkpoint(path, Checkpoint({"x": np.arange(5)}, {"steps": 3}))
    code = (
        "import resource, sys, numpy as np; from pathlib import Path; from onnxopt.errors import OutputError\n"
        "from onnxopt.train.checkpoint import Checkpoint, save_checkpoint\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: save_checkpoint(Path(sys.argv[1]), Checkpoint({'x': np.zeros(1_000_000)}, {}))\n"
        "except OutputError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code, path], cwd=_ROOT, capture_output=True, text=True, check=True)
    assert f"cannot write {path}" in said.stdout
    found = load_checkpoint(path)
    assert found.state == {"steps": 3}
    np.testing.assert_array_equal(found.arrays["x"], np.arange(5))
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OutputError):
        save_checkpoint(tmp_path / "nowhere" / "c.npz", found)
