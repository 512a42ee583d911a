"""Prune one model: does it run, how much is gone, and is as much left as Torch-Pruning leaves?

    python -m benchmarks.prune.counts MODEL.onnx OUTPUT_FOLDER [ORACLE.json]        # JSON on stdout

``plain`` removes the same share of each group, with nothing rounded and no question whether it pays: the rule that
Torch-Pruning has, for ``counts``. ``default`` is ``prune-channels`` as a user calls it; its time is taken. Both come
after ``cleanup``, and run in ONNX Runtime with several sizes of each dynamic dimension.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxopt
from onnxopt.macs import count_macs
from onnxopt.passes.prune import _structured
from onnxopt.passes.prune.prune_channels import PruneChannels

from benchmarks import facts, judge, probes
from benchmarks.prune.prepared import prepared
from benchmarks.quantize import latency

Record = dict[str, Any]
RATIOS = (0.3, 0.5)


@contextlib.contextmanager
def slower_or_not() -> Iterator[None]:
    """Within this, a model is pruned even where that makes it slower: how many channels are left must not depend on
    the clock."""
    usual = _structured.PAYS
    _structured.PAYS = math.inf
    try:
        yield
    finally:
        _structured.PAYS = usual


def measured(path: Path, folder: Path) -> Record:
    """By variant and ratio what became of the model."""
    clean = onnxopt.optimize(path, verify="off").model
    found: Record = {
        "parameters": parameters(facts.load(path)),
        "macs": count_macs(clean).total,
        "convolutional": "Conv" in facts.op_counts(facts.load(path)),
        "plain": {},
        "default": {},
    }
    for ratio in RATIOS:
        key = str(ratio)
        with slower_or_not():
            plain = PruneChannels(ratio=ratio, importance="l2", round_to=1)
            found["plain"][key] = pruned(path, clean, plain, folder / f"plain-{ratio}.onnx")
        usual = PruneChannels(ratio=ratio, importance="l2")
        found["default"][key] = record = pruned(path, clean, usual, folder / f"default-{ratio}.onnx")
        if record["changed"] and record["state"] == "ok":
            record["latency"] = latency.ratio(path, folder / f"default-{ratio}.onnx", probes.feeds(path)[0])
    return found


def pruned(path: Path, clean: ir.Model, pass_: PruneChannels, target: Path) -> Record:
    result = onnxopt.optimize(clean, passes=[pass_], verify="off")
    result.save(target, force=True)
    report = result.report.passes[-1]
    if result.report.problems:
        return {"state": "failed", "reason": "; ".join(result.report.problems)[:300], "changed": 0, "refused": []}
    return {
        "changed": report.changed,
        "refused": sorted({str(note) for note in report.refusals}),
        "parameters": parameters(facts.load(target)),
        "macs": count_macs(result.model).total,
        **run(path, target),
    }


def counts(path: Path, oracle: Record) -> Record:
    """By importance and ratio: the parameters that differ in shape."""
    network = prepared(path)
    before = sizes(network)
    found: Record = {}
    if oracle["round_to"]:
        return found  # it rounds down, and ours to what is nearest
    for key, theirs in oracle["shapes"].items():
        importance, _, ratio = key.partition("-")
        pass_ = PruneChannels(ratio=float(ratio), importance=importance, scope="local", round_to=1)
        with slower_or_not():
            result = onnxopt.optimize(network, passes=[pass_], verify="off")
        if result.report.problems:
            found[key] = {"failure": "; ".join(result.report.problems)[:300]}
            continue
        ours = sizes(result.model)
        named = [name for name in before if name in theirs]
        found[key] = {
            "parameters": len(named),
            "changed": sum(theirs[name] != oracle["before"][name] for name in named),
            "differ": {n: [before[n], theirs[n], ours.get(n)] for n in named if theirs[n] != ours.get(n)},
        }
    return found


def sizes(model: ir.Model) -> dict[str, list[int]]:
    return {
        name: list(value.const_value.shape.numpy())
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }


def parameters(model: onnx.ModelProto) -> int:
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    weights = [t for graph in facts.graphs(model.graph) for t in graph.initializer if t.data_type in floats]
    nodes = [node for node in facts.all_nodes(model) if node.op_type == "Constant"]
    weights += [a.t for node in nodes for a in node.attribute if a.name == "value"]
    return sum(int(np.prod(t.dims)) for t in weights if t.data_type in floats)


def run(path: Path, pruned: Path) -> Record:
    """Valid, same interface, same shapes for every probe, finite where the original is."""
    try:
        onnx.checker.check_model(str(pruned), full_check=True)
        if facts.inputs(facts.load(pruned)) != facts.inputs(facts.load(path)):
            return {"state": "interface", "reason": "the inputs are others"}
        sessions = [judge.session(each, "ORT_ENABLE_ALL") for each in (path, pruned)]
        for feed in probes.feeds(path):
            before, after = (judge.run(session, feed) for session in sessions)
            for name, y in before.items():
                if y.shape != after[name].shape:
                    return {"state": "shape", "reason": f"{name} {y.shape} is {after[name].shape}"}
                if np.isfinite(y).all() and not np.isfinite(after[name]).all():
                    return {"state": "not finite", "reason": name}
    except Exception as error:
        return {"state": "invalid", "reason": judge.first_line(error)}
    return {"state": "ok", "reason": ""}


def main() -> None:
    path, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    record = measured(path, folder)
    if len(sys.argv) > 3:
        record["counts"] = counts(path, json.loads(Path(sys.argv[3]).read_text()))
    print(json.dumps(record))


if __name__ == "__main__":
    main()
