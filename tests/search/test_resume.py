"""A search that is killed goes on where it stopped, and ends with the same model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxopt.model import save
from tests.support import graph, outputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A perceptron, and samples with the labels that it gives."""
    path, rng = tmp_path_factory.mktemp("net"), np.random.default_rng(0)
    sizes = {"w1": (12, 48), "w2": (48, 32), "w3": (32, 4)}
    weights: dict[str, Any] = {
        name: (rng.standard_normal(size) / size[0] ** 0.5).astype(np.float32) for name, size in sizes.items()
    }
    model = graph(
        "g (float[N,12] x) => (float[N,4] y) { a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) d = Relu(c) "
        "y = MatMul(d, w3) }",
        **weights,
    )
    save(model, path / "model.onnx")
    x = rng.standard_normal((800, 12)).astype(np.float32)
    np.savez(path / "data.npz", x=x, labels=outputs(model, {"x": x})[0].argmax(-1))
    return path


def command(folder: Path, out: Path, *more: str) -> list[str]:
    """Arithmetic is counted and never timed, and no limit is on the clock: nothing that is chosen depends on it."""
    return [
        sys.executable, "-m", "onnxopt", "auto", str(folder / "model.onnx"), "-o", str(out), "--data",
        str(folder / "data.npz"), "--max-drop", "5%", "--target", "macs", "--max-latency", "×1000", "--method", "prune",
        "--method", "split", "--no-train", "--time-budget", "10m", "--force", "--json", *more,
    ]  # fmt: skip


def run(folder: Path, out: Path, cache: Path, *more: str) -> Any:
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(command(folder, out, *more), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def known(cache: Path) -> int:
    return len(list(cache.glob("onnxopt/auto/*.npz")))


def test_killed_and_started_again_it_ends_with_the_same_model(folder: Path, tmp_path: Path) -> None:
    whole = run(folder, tmp_path / "whole.onnx", tmp_path / "fresh")
    assert whole["reused"] == 0
    cache = tmp_path / "killed"
    for after in (2, 5):
        process = subprocess.Popen(
            command(folder, tmp_path / "killed.onnx"), env=os.environ | {"XDG_CACHE_HOME": str(cache)},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        while known(cache) < after and process.poll() is None:
            time.sleep(0.02)
        assert process.poll() is None, "it was to be killed before its end"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "killed.onnx").exists()
    again = run(folder, tmp_path / "killed.onnx", cache)
    assert again["reused"] > 0
    assert again["evaluations"] + again["reused"] == whole["evaluations"], "none is done twice"
    assert (tmp_path / "killed.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()
    assert (tmp_path / "killed.toml").read_text() == (tmp_path / "whole.toml").read_text()


def test_another_budget_takes_all_single_changes_from_disk(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = run(folder, tmp_path / "a.onnx", cache)
    other = run(folder, tmp_path / "b.onnx", cache, "--max-drop", "10%")
    assert other["reused"] >= first["evaluations"] / 2
    assert other["macs"] <= first["macs"]
    same = run(folder, tmp_path / "c.onnx", cache)
    assert same["evaluations"] == 0
    assert (tmp_path / "c.onnx").read_bytes() == (tmp_path / "a.onnx").read_bytes()
