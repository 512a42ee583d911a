"""What pruning costs on our trained models: beside Torch-Pruning's one-shot at equal multiply–accumulates.

    python -m benchmarks.prune.damage NAME OUTPUT_FOLDER RATIO        # JSON on stdout

Torch-Pruning removes the share ``RATIO`` of the channels of each layer; the multiply–accumulates that this leaves are
what ours have to come down to. ``l1`` and ``l2`` are one-shot with the importance of the same name and no recovery, on
both sides; ours before any cleanup then, for Torch-Pruning ranks weights whose BatchNormalization is not folded either.
``recovered`` is ours with its own criterion and ``reconstruct``, on unlabelled training samples: ``plain`` at equal
multiply–accumulates, ``rounded`` at the same ratio of channels in the multiples that kernels want, ``half`` at half of
the multiply–accumulates, ``steps`` there too in three steps, from whatever layer. Where Torch-Pruning cannot be given
the model, ``plain`` goes by channels too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxopt
from models._common import MODELS, accuracy, samples
from onnxopt.macs import count_macs
from onnxopt.passes.prune.prune_channels import PruneChannels
from onnxopt.passes.prune.reconstruct import Reconstruct
from onnxopt.recipes import recipe

from benchmarks import facts, judge
from benchmarks.prune import peer
from benchmarks.prune.counts import slower_or_not
from benchmarks.prune.prepared import prepared

Record = dict[str, Any]
TWINS = ("resnet8_mnist_hard", "dwcnn_mnist_hard", "densenet_mnist_hard", "cnn1d_mnist1d", "transformer_sentiment")
"""The models that Torch-Pruning can be given (see ``twins.py``)."""
POWERS = {"l1": 1, "l2": 2}
SAMPLES = 1000


def names() -> list[str]:
    """Our trained models whose weights are in ONNX's own layers."""
    return [name for name in json.loads((MODELS / "models.json").read_text()) if name != "pipeline_mnist1d"]


class Model:
    """One of our trained models with its data."""

    def __init__(self, name: str) -> None:
        self.name, self.entry = name, json.loads((MODELS / "models.json").read_text())[name]
        self.path = MODELS / self.entry["path"]

    def accuracy(self, path: Path) -> float:
        return accuracy(path, MODELS / self.entry["eval"], self.entry["labels_output"])

    def data(self) -> dict[str, np.ndarray[Any, Any]]:
        """Training samples without labels, in the form of the evaluation file."""
        x, _ = samples(self.entry["data"], "train")
        with np.load(MODELS / self.entry["eval"], allow_pickle=False) as arrays:
            (name,) = set(arrays.files) - {"labels"}
            shape = arrays[name].shape[1:]
        chosen = np.random.default_rng(0).permutation(len(x))[:SAMPLES]
        return {name: x[chosen].reshape(-1, *shape)}


def macs(model: ir.Model) -> int:
    return count_macs(model).total


def sized(model: Model, twin: Path) -> ir.Model:
    """The model with its shapes folded, for inputs as long as the twin's, that the arithmetic of both is the same."""
    found = prepared(model.path)
    for ours, theirs in zip(found.graph.inputs, facts.load(twin).graph.input, strict=True):
        ours.shape = ir.Shape([dim.dim_param or dim.dim_value for dim in theirs.type.tensor_type.shape.dim])
    return found


def theirs(model: Model, folder: Path, power: int, ratio: float) -> Record:
    """Accuracy and the share of multiply–accumulates that is left."""
    whole, target = folder / "twin.onnx", folder / f"theirs-{power}-{ratio}.onnx"
    try:
        for path, share in ((whole, 0.0), (target, ratio)):
            peer.run("one_shot", model.name, str(model.path), str(path), str(power), str(share))
        before, after = (macs(onnxopt.optimize(path, verify="off").model) for path in (whole, target))
        return {"accuracy": model.accuracy(target), "macs": after / before}
    except Exception as error:
        return {"failure": judge.first_line(error)}


def ours(model: Model, start: Path | ir.Model, passes: list[Any], target: Path, data: Any = None) -> Record:
    """Accuracy and the share of multiply–accumulates that is left of ``start`` as cleanup leaves it."""
    clean = onnxopt.optimize(start, verify="off").model
    with slower_or_not():
        result = onnxopt.optimize(start, passes=[*passes, *recipe("cleanup")], data=data, verify="off")
    result.save(target, force=True)
    if result.report.problems:
        return {"failure": "; ".join(result.report.problems)[:300]}
    reports = [r for r in result.report.passes if r.name in ("prune-channels", "reconstruct")]
    return {
        "accuracy": model.accuracy(target),
        "macs": macs(result.model) / max(macs(clean), 1),
        "changed": [r.changed for r in reports],
        "refused": sorted({str(note) for r in reports for note in r.refusals})[:20],
    }


def compare(name: str, folder: Path, ratio: float) -> Record:
    model = Model(name)
    record: Record = {"name": name, "ratio": ratio, "dense": model.accuracy(model.path), "theirs": {}, "ours": {}}
    of: dict[str, Any] = {"of": "channels", "ratio": ratio}
    start: Path | ir.Model = model.path
    for importance, power in POWERS.items():
        if name in TWINS:
            peers = record["theirs"][importance] = theirs(model, folder, power, ratio)
            if "macs" in peers:
                of, start = {"of": "macs", "ratio": 1 - peers["macs"]}, sized(model, folder / "twin.onnx")
        plain = PruneChannels(importance=importance, round_to=1, **of)  # type: ignore[arg-type]
        record["ours"][importance] = tried(model, start, [plain], folder / f"ours-{importance}-{ratio}.onnx")
    variants = {
        "plain": PruneChannels(round_to=1, **of),
        "rounded": PruneChannels(ratio=ratio),
        "half": PruneChannels(of="macs", ratio=0.5, round_to=1),
        "steps": PruneChannels(of="macs", ratio=0.5, round_to=1, scope="global", steps=3),
    }
    for variant, pass_ in variants.items():
        target = folder / f"{variant}-{ratio}.onnx"
        at = start if variant == "plain" else model.path
        record["ours"][f"{variant}-before"] = tried(model, at, [*recipe("cleanup"), pass_], target, model.data())
        record["ours"][f"{variant}-recovered"] = tried(
            model, at, [*recipe("cleanup"), pass_, Reconstruct()], target, model.data()
        )
    return record


def tried(*arguments: Any) -> Record:
    try:
        return ours(*arguments)
    except onnxopt.OnnxoptError as error:
        return {"failure": str(error)}


def main() -> None:
    name, folder, ratio = sys.argv[1:]
    (target := Path(folder) / name).mkdir(parents=True, exist_ok=True)
    print(json.dumps(compare(name, target, float(ratio))))


if __name__ == "__main__":
    main()
