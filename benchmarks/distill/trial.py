"""One of our trained models through one pipeline.

    python -m benchmarks.distill.trial NAME PIPELINE LABELLED FOLDER        # JSON on stdout

The pipeline sees the training samples, with their labels if ``LABELLED`` is 1; accuracy is that of the evaluation file,
in percent, before and after.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxopt
from models._common import MODELS, accuracy, samples
from onnxopt.macs import count_macs

from benchmarks.prune.counts import slower_or_not

Array = np.ndarray[Any, Any]
Record = dict[str, Any]
CATALOGUE: dict[str, dict[str, str]] = json.loads((MODELS / "models.json").read_text())


def training_data(name: str, *, labelled: bool) -> dict[str, Array]:
    """The training samples of a model, in the form of its evaluation file."""
    entry = CATALOGUE[name]
    x, y = samples(entry["data"], "train")
    with np.load(MODELS / entry["eval"], allow_pickle=False) as arrays:
        (key,) = set(arrays.files) - {"labels"}
        shape = arrays[key].shape[1:]
    return {key: x.reshape(-1, *shape)} | ({"labels": y.astype(np.int64)} if labelled else {})


def tried(name: str, pipeline: str, *, labelled: bool, folder: Path) -> Record:
    """What came of it; ``failure`` says why nothing did."""
    entry = CATALOGUE[name]
    path, target = MODELS / entry["path"], folder / f"{name}.onnx"
    clean = onnxopt.optimize(path, verify="off").model
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        with slower_or_not():
            result = onnxopt.optimize(path, passes=pipeline, data=training_data(name, labelled=labelled), verify="off")
    except onnxopt.OnnxoptError as error:
        return {"failure": f"{type(error).__name__}: {error}"}
    if result.report.problems:
        return {"failure": "; ".join(result.report.problems)}
    took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    result.save(target, force=True)
    both = [accuracy(each, MODELS / entry["eval"], entry["labels_output"]) for each in (path, target)]
    return took | {
        "accuracy": both,
        "macs": [count_macs(clean).total, count_macs(result.model).total],
        "refused": [f"{report.name}: {note}" for report in result.report.passes[-3:] for note in report.refusals][:5],
    }


def main() -> None:
    name, pipeline, labelled, folder = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    print(json.dumps(tried(name, pipeline, labelled=labelled == "1", folder=Path(folder))))


if __name__ == "__main__":
    main()
