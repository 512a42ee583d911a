"""What is measured for one model: first whether each tool's result is right, then how long it took.

Both are stored by what they depend on (model, tool, judge), so that a run that was cut off goes on where it
stopped and a peer is not asked twice. Times are taken for all tools of a run together, alternating, or not
at all: times of different days do not compare.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import facts, judge, probes, venvs
from benchmarks.cleanup import measure
from benchmarks.cleanup.tools import Tool
from benchmarks.corpus.fetch import Model

Record = dict[str, Any]

FORM = "1"
"""Counts up when a record gets other fields."""

ROUNDS = 5
TIMEOUT = 900.0


class Store:
    """One JSON file a result, by a key that says what it depends on."""

    def __init__(self, folder: Path, fresh: bool = False) -> None:
        self.folder, self.fresh = folder, fresh

    def get(self, kind: str, key: Sequence[str], make: Callable[[], Record]) -> Record:
        path = self.folder / kind / (hashlib.sha256("\0".join(key).encode()).hexdigest()[:24] + ".json")
        if path.exists() and not self.fresh:
            record: Record = json.loads(path.read_text())
            return record
        record = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(record))
        partial.replace(path)
        return record


def digest(path: Path) -> str:
    """Of the model, its data files, and the probes that lie beside it."""
    hashed = hashlib.sha256(path.read_bytes())
    for extra in (*facts.external_files(path), path.with_suffix(".probe.json")):
        if extra.exists():
            hashed.update(extra.read_bytes())
    return hashed.hexdigest()


def judge_version() -> str:
    sources = (judge.__file__, facts.__file__, probes.__file__)
    return FORM + hashlib.sha256(b"".join(Path(s).read_bytes() for s in sources)).hexdigest()[:16]


def original(model: Model) -> Record:
    proto = facts.load(model.path)
    return {
        "group": model.group,
        "nodes": facts.count_nodes(proto),
        "size": facts.file_size(model.path),
        "opset": {o.domain: o.version for o in proto.opset_import},
        "producer": proto.producer_name,
        "functions": len(facts.used_functions(proto)),
    }


def outcome(model: Model, tool: Tool, work: Path) -> Record:
    """Run the tool twice as a whole process; judge what the first run left, compare it with the second."""
    python = tool.python()
    before = digest(model.path)
    targets = [_fresh(work / f"{tool.name}{i}") / "model.onnx" for i in (1, 2)]
    runs = [measure.run(tool.whole(python, model.path, t), TIMEOUT, sample=True) for t in targets]
    record: Record = {"peak_rss": max(r.peak_rss for r in runs), "input_intact": digest(model.path) == before}
    if not runs[0].ok or not targets[0].exists():
        kind, words = runs[0].failure() if not runs[0].ok else ("refused", "exit 0, but there is no output file")
        return record | {"state": kind, "reason": words}
    record["deterministic"] = targets[1].exists() and digest(targets[0]) == digest(targets[1])
    record |= _described(model.path, targets[0]) | _judged(model.path, targets[0])
    for target in targets:
        shutil.rmtree(target.parent)
    return record


def _described(source: Path, target: Path) -> Record:
    try:
        proto, old = facts.load(target), facts.load(source)
        return {
            "nodes": facts.count_nodes(proto),
            "ops": facts.op_counts(proto),
            "size": facts.file_size(target),
            "opset": {o.domain: o.version for o in proto.opset_import},
            "ir_version": [old.ir_version, proto.ir_version],
            "unchanged": target.read_bytes() == source.read_bytes(),
            "kept": asdict(facts.kept(old, proto)),
        }
    except Exception as error:
        return {"unreadable": judge.first_line(error)}


def _judged(source: Path, target: Path) -> Record:
    """In a process of its own: a bad model can take the runtime down with it."""
    run = measure.run([sys.executable, "-m", "benchmarks.judge", str(source), str(target)], TIMEOUT)
    try:
        verdict = json.loads(run.stdout)
    except ValueError:
        kind, words = run.failure()
        return {
            "state": "invalid",
            "reason": f"the judge did not survive it: {kind}, {words}",
            "verdict": None,
        }
    if not verdict["ok"]:
        state = "invalid" if verdict["kind"] == "invalid" else "wrong"
        state = "unjudged" if verdict["kind"] == "unjudged" else state
        return {"state": state, "reason": verdict["reason"], "verdict": verdict}
    return {"state": "altered" if verdict["altered"] else "ok", "reason": "", "verdict": verdict}


def timings(model: Model, tools: Sequence[Tool], work: Path) -> Record:
    """Whole processes in rounds, each round all tools in turn; then each tool in process."""
    record: Record = {t.name: {"whole_wall": [], "whole_cpu": [], "peak_rss": []} for t in tools}
    spent = 0.0
    for done in range(ROUNDS):
        if done >= 3 and spent > 300:
            break  # a model this slow needs no more rounds to tell the tools apart
        for tool in tools:
            target = _fresh(work / tool.name) / "model.onnx"
            run = measure.run(tool.whole(tool.python(), model.path, target), TIMEOUT)
            spent += run.wall
            if run.ok:
                record[tool.name]["whole_wall"].append(run.wall)
                record[tool.name]["whole_cpu"].append(run.cpu)
                record[tool.name]["peak_rss"].append(run.peak_rss)
    for tool in tools:
        target = _fresh(work / tool.name) / "model.onnx"
        run = measure.run(tool.in_process(tool.python(), model.path, target, ROUNDS), TIMEOUT)
        if run.ok:
            said = json.loads(run.stdout[run.stdout.index("{") :])
            record[tool.name] |= {"in_process_wall": said["wall"], "in_process_cpu": said["cpu"]}
        else:
            record[tool.name]["in_process_failure"] = run.failure()
        shutil.rmtree(target.parent)
    record["load"] = os.getloadavg()[0]
    return record


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def measure_model(model: Model, tools: Sequence[Tool], store: Store, retime: str) -> Record:
    """``retime``: ``none``, ``missing`` or ``all``."""
    work = venvs.CACHE / "work" / f"{os.getpid()}"
    key = digest(model.path)
    record: Record = {"name": model.name, "original": original(model), "tools": {}, "times": {}}
    for tool in tools:
        make = functools.partial(outcome, model, tool, work)
        record["tools"][tool.name] = store.get("outcome", (key, tool.fingerprint(), judge_version()), make)
    able = [t for t in tools if "nodes" in record["tools"][t.name]]
    if retime != "none" and able:
        held = Store(store.folder, fresh=store.fresh or retime == "all")
        record["times"] = held.get(
            "times", (key, *(t.fingerprint() for t in able)), functools.partial(timings, model, able, work)
        )
    shutil.rmtree(work, ignore_errors=True)
    return record
