"""What the scripts that make the models share: data, evaluation files, the record of a finished model.

Needs numpy, onnx and onnxruntime, and nothing of the framework that trained the model.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime as ort

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

MODELS = Path(__file__).resolve().parent
DATA = MODELS / "data"
CATALOGUE = MODELS / "models.json"


def samples(data: str, split: str) -> tuple[Array, Array]:
    """The samples of ``data/<data>.npz`` in the form that the networks take, and their labels.

    ``split`` is "train" or "test"; a test sample that is also a training sample is left out.

    ==================  ===============  =======  ==========================================
    mnist_hard          N × 1 × 32 × 32  float32  grey in [0, 1]
    mnist1d             N × 40           float32  as it is (some networks want N × 40 × 1)
    sentiment_text      N × 48           int64    word ids, 0 = padding
    japanese_vowels     N × 25 × 12      float32  time before channels
    ==================  ===============  =======  ==========================================
    """
    with np.load(DATA / f"{data}.npz", allow_pickle=False) as arrays:
        x, y = arrays[f"X_{split}"], arrays[f"y_{split}"]
        if split == "test":
            seen = {sample.tobytes() for sample in arrays["X_train"]}
            new = np.array([sample.tobytes() not in seen for sample in x])
            x, y = x[new], y[new]
    if data == "mnist_hard":
        x = x[:, None].astype(np.float32) / np.float32(255)
    elif data == "sentiment_text":
        x = x.astype(np.int64)
    elif data == "japanese_vowels":
        x = np.ascontiguousarray(x.swapaxes(1, 2))
    return x, y


def save_eval(path: Path, labels: Array, **inputs: Array) -> None:
    """Write ``inputs``, named as the model's, and ``labels`` so that onnxruntime takes them as they are."""
    arrays: dict[str, Any] = {"labels": labels.astype(np.int64), **inputs}
    np.savez_compressed(path, **arrays)


def accuracy(model: Path, data: Path, output: str, batch: int = 100) -> float:
    """The share of right answers in percent; ``output`` holds labels (N) or scores (N × classes)."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    with np.load(data, allow_pickle=False) as arrays:
        labels = arrays["labels"]
        feeds = {i.name: arrays[i.name] for i in session.get_inputs()}
    right = 0
    for start in range(0, len(labels), batch):
        part = slice(start, start + batch)
        answer = np.asarray(session.run([output], {name: x[part] for name, x in feeds.items()})[0])
        guess = answer if answer.ndim == 1 else answer.argmax(axis=-1)
        right += int((guess == labels[part]).sum())
    return 100 * right / len(labels)


def parameters(model: onnx.ModelProto) -> int:
    """The number of elements in the float initializers."""
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
    return sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type in floats)


def forget_paths(model: onnx.ModelProto) -> None:
    """Cut the folders off the source files that exporters write into a model's metadata.

    They name the machine that made the model, and would make its hash depend on it.
    """

    def cut(text: str) -> str:
        text = re.sub(r'File "[^"]*/site-packages/', 'File "', text)
        return text.replace(f"{MODELS.parent}/", "")

    for node in model.graph.node:
        node.doc_string = cut(node.doc_string)
        for entry in node.metadata_props:
            entry.value = cut(entry.value)


def record(name: str, exporter: str, data: str, evaluation: Path, output: str) -> None:
    """Check the model ``name`` that was just written, measure it, and enter it into ``models.json``.

    ``data`` names what it was trained on, as ``samples`` takes it.
    """
    path = MODELS / name / "model.onnx"
    model = onnx.load(path)
    forget_paths(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    entry = {
        "path": path.relative_to(MODELS).as_posix(),
        "data": data,
        "eval": evaluation.relative_to(MODELS).as_posix(),
        "labels_output": output,
        "accuracy": round(accuracy(path, evaluation, output), 3),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "exporter": exporter,
        "opset": {o.domain or "ai.onnx": o.version for o in model.opset_import},
        "parameters": parameters(model),
        "bytes": path.stat().st_size,
    }
    entries = json.loads(CATALOGUE.read_text()) if CATALOGUE.exists() else {}
    entries[name] = entry
    CATALOGUE.write_text(json.dumps(dict(sorted(entries.items())), indent=2) + "\n")
    print(json.dumps(entry, indent=2))
