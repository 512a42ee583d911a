"""A model with its data: what every tool calibrates on, and what its result is judged by.

Data are ``.npz`` files whose arrays are named after the inputs and whose first axis counts samples. Where every
array has one axis more than its input, a sample is a whole feed (a recurrent state has its batch elsewhere);
otherwise samples go in as batches. Calibration and evaluation samples are disjoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from benchmarks import facts

Array = np.ndarray[Any, np.dtype[Any]]
Feed = dict[str, Array]
Metric = Literal["accuracy", "lines", "agreement", "mask", "none"]

METRICS: dict[str, str] = {
    "accuracy": "share of right labels",
    "lines": "share of text lines read without a mistake, spaces aside (greedy CTC)",
    "agreement": "share of samples with the same largest output as the original's",
    "mask": "intersection over union with the original's map, both cut at the threshold",
    "none": "no score, only SQNR",
}


@dataclass(frozen=True)
class Task:
    name: str
    group: str
    """``real``, ``own``, ``export`` or ``given``."""
    model: Path
    calibration: Path
    evaluation: Path
    """With ``labels`` where the metric needs them."""
    metric: Metric = "none"
    output: str = ""
    """The output that the metric reads; the first one if empty."""
    threshold: float = 0.5
    batch: int = 16
    """Samples of a feed in calibration and evaluation, where the model leaves that free."""
    carry: dict[str, str] = field(default_factory=dict)
    """Output → input: in evaluation the candidate's own state goes on; a state of zeros in the data starts anew."""

    def key(self) -> str:
        digest = hashlib.sha256(self.model.read_bytes())
        for path in (*facts.external_files(self.model), self.calibration):
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def score_key(self) -> str:
        said = json.dumps([self.metric, self.output, self.threshold, self.batch, self.carry])
        return hashlib.sha256(self.evaluation.read_bytes() + said.encode()).hexdigest()

    def dump(self) -> str:
        return json.dumps({k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()})


def load(text: str) -> Task:
    said = json.loads(text)
    return Task(**said | {k: Path(said[k]) for k in ("model", "calibration", "evaluation")})


def given(model: Path, calibration: Path, evaluation: Path) -> Task:
    """Any model with any data: accuracy if there are labels, else agreement where the first output has classes."""
    model, calibration, evaluation = (p.resolve() for p in (model, calibration, evaluation))  # tools run elsewhere
    with np.load(evaluation, allow_pickle=False) as arrays:
        labelled = "labels" in arrays.files
    first = facts.outputs(facts.load(model))[0]
    classes = first.rank == 2 and first.dims is not None and first.dims[1] != 1
    metric: Metric = "accuracy" if labelled else "agreement" if classes else "none"
    return Task(f"given/{model.parent.name}-{model.stem}", "given", model, calibration, evaluation, metric)


def feeds(path: Path, model: onnx.ModelProto, batch: int) -> Iterator[tuple[Feed, Array | None]]:
    """Feeds ready for ONNX Runtime, each with the labels of its samples."""
    ports = {p.name: p for p in facts.inputs(model)}
    with np.load(path, allow_pickle=False) as file:
        arrays = {k: file[k] for k in file.files}
    labels = arrays.pop("labels", None)
    if set(arrays) != set(ports):
        raise ValueError(f"{path.name} has {sorted(arrays)}, the model takes {sorted(ports)}")
    samples = len(next(iter(arrays.values())))
    if all(p.rank is not None and arrays[p.name].ndim == p.rank + 1 for p in ports.values()):
        for i in range(samples):
            yield {k: np.asarray(x[i]) for k, x in arrays.items()}, None if labels is None else labels[i : i + 1]
        return
    fixed = [p.dims[0] for p in ports.values() if p.dims and isinstance(p.dims[0], int) and p.dims[0] > 0]
    step = fixed[0] if fixed else batch
    for start in range(0, samples - samples % step if fixed else samples, step):
        part = slice(start, start + step)
        yield {k: x[part] for k, x in arrays.items()}, None if labels is None else labels[part]
