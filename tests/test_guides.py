"""Every command of the guides, run in their order on small models."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from models._common import samples
from onnxopt.model import save
from onnxopt.runtime import Session, Snapshot
from tests.support import graph

ROOT = Path(__file__).resolve().parents[1]
GUIDES = ROOT / "docs" / "guides"
MODELS = ROOT / "models"

_BLOCK = re.compile(r"^```(sh|python)(?: (file|framework)=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_BUDGET = re.compile(r"(--time-budget |time_budget=)\w+")

FRAMEWORKS = {
    "torch": """
import shutil
class onnx:
    @staticmethod
    def export(net, arguments, path, *, dynamo, dynamic_shapes):
        assert len(arguments) == len(dynamic_shapes)
        shutil.copy("exported.onnx", path)
class Net:
    def eval(self): return self
def load(path, *, weights_only): return Net()
def zeros(*shape): return shape
""",
    "keras": """
import shutil
class Net:
    def export(self, path, *, format):
        assert format == "onnx"
        shutil.copy("exported.onnx", path)
class saving:
    @staticmethod
    def load_model(path): return Net()
""",
}
"""In place of frameworks that are too large to install for this; what they export is a bundled model."""


def signals(folder: Path) -> None:
    """A convolutional net for signals, with the samples that guides speak of."""
    for name in ("model", "exported"):
        shutil.copy(MODELS / "cnn1d_mnist1d" / "model.onnx", folder / f"{name}.onnx")
    judged = MODELS / "data" / "mnist1d_eval.npz"
    shutil.copy(judged, folder / "data.npz")
    shutil.copy(judged, folder / "validation.npz")
    x, y = samples("mnist1d", "train")
    np.savez(folder / "train.npz", signal=x[:800, :, None], labels=y[:800].astype(np.int64))
    np.save(folder / "samples.npy", x[:800, :, None])
    np.save(folder / "labels.npy", y[:800])


def texts(folder: Path) -> None:
    """A text classifier."""
    shutil.copy(MODELS / "transformer_sentiment" / "model.onnx", folder / "model.onnx")
    with np.load(MODELS / "transformer_sentiment" / "eval.npz") as arrays:
        np.savez(folder / "data.npz", **{name: arrays[name][:400] for name in arrays.files})


def boxes(folder: Path) -> None:
    """A detector of four boxes, whose first is right but for noise."""
    rng = np.random.default_rng(0)

    def normal(*size: int, scale: float) -> np.ndarray[Any, Any]:
        return (rng.standard_normal(size) * scale).astype(np.float32)

    model = graph(
        """g (float[N,3,32,32] image) => (float[N,4,4] boxes) <int64[3] shape = {0, 4, 4}, int64[1] last = {2}>
        {
            a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (image, k1)
            b = Relu(a)
            c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (b, k2)
            d = Relu(c)
            p = GlobalAveragePool(d)
            f = Flatten(p)
            head = Gemm <transB = 1> (f, w, bias)
            r = Reshape(head, shape)
            centre, half = Split <axis = 2, num_outputs = 2> (r)
            e = Exp(half)
            low = Sub(centre, e)
            high = Add(centre, e)
            boxes = Concat <axis = 2> (low, high)
        }""",
        opset=18,
        k1=normal(32, 3, 3, 3, scale=0.3), k2=normal(64, 32, 3, 3, scale=0.1), w=normal(16, 64, scale=0.2),
        bias=normal(16, scale=0.5),
    )  # fmt: skip
    save(model, folder / "model.onnx")
    images = rng.random((300, 3, 32, 32), np.float32)
    (found,) = Session(Snapshot.of(model), threads=1).run({"image": images})
    labels = found[:, 0] + 0.01 * rng.standard_normal((300, 4)).astype(np.float32)
    np.savez(folder / "data.npz", image=images, labels=labels)


GIVEN: dict[str, Callable[[Path], Any]] = {
    "ci": signals, "cpu": signals, "detector": boxes, "export-script": signals, "half-a-point": signals,
    "mobile": signals, "transformer": texts,
}  # fmt: skip


def test_every_guide_is_run_and_listed() -> None:
    found = {path.stem for path in GUIDES.glob("*.md")} - {"README"}
    assert found == set(GIVEN)
    index = (GUIDES / "README.md").read_text(encoding="utf-8")
    assert all(f"({name}.md)" in index for name in found)


@pytest.mark.parametrize("guide", sorted(GIVEN))
def test_commands_of_guides_run(guide: str, tmp_path: Path) -> None:
    GIVEN[guide](tmp_path)
    for name, code in FRAMEWORKS.items():
        (tmp_path / f"{name}.py").write_text(code)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(tmp_path)}
    blocks = _BLOCK.findall((GUIDES / f"{guide}.md").read_text(encoding="utf-8"))
    assert blocks
    for language, key, value, written in blocks:
        code = _BUDGET.sub(r"\g<1>8", written)
        if key == "file":
            (tmp_path / value).write_text(code)
            continue
        command = ["bash", "-euo", "pipefail", "-c", code] if language == "sh" else [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    for made in tmp_path.glob("*.onnx"):
        onnx.checker.check_model(made)
