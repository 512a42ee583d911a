"""What is measured for one task and one tool, and what is remembered.

A tool's run is stored by model, calibration data, and the tool's pins or sources; its score by the evaluation data
besides; its latency by the two files. So a re-run measures only what changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import facts, judge, venvs
from benchmarks.cleanup import measure
from benchmarks.cleanup.experiment import Store, digest
from benchmarks.quantize import latency, score
from benchmarks.quantize.task import Task
from benchmarks.quantize.tools import Tool

Record = dict[str, Any]

FORM = "1"
"""Counts up when a record gets other fields."""
TIMEOUT = 900.0
MEMORY = 12 * 10**9
"""Bytes of address space that a peer may take: some keep every activation of every sample."""
OUTPUTS = venvs.CACHE / "quantized"

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def one_thread() -> None:
    """For the tools too, which inherit it: PyTorch and BLAS have no other switch that they all obey."""
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))


def target(task: Task, tool: Tool) -> Path:
    return OUTPUTS / task.name / tool.name / "model.onnx"


def make(task: Task, tool: Tool) -> Record:
    path = target(task, tool)
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir(parents=True)
    limit = ["prlimit", f"--as={MEMORY}"] if tool.peer else []
    with tempfile.TemporaryDirectory() as empty:  # what an earlier run has found out does not count
        os.environ["XDG_CACHE_HOME"] = empty
        run = measure.run([*limit, *tool.command(task, path)], TIMEOUT, sample=True)
    record: Record = {"wall": run.wall, "cpu": run.cpu, "peak_rss": run.peak_rss}
    if not run.ok or not path.exists():
        kind, words = run.failure() if not run.ok else ("refused", "exit 0, but there is no output file")
        if limit and run.peak_rss > 0.8 * MEMORY:
            kind, words = "memory", f"more than {MEMORY / 1e9:.0f} GB: {words}"
        return record | {"state": kind, "reason": words[:400]}
    try:
        proto = facts.load(path)
        record |= {"size": facts.file_size(path), "ops": facts.op_counts(proto), "digest": digest(path)}
    except Exception as error:
        return record | {"state": "invalid", "reason": judge.first_line(error)}
    return record | {"state": "ok", "reason": "", "unchanged": path.read_bytes() == task.model.read_bytes()}


def ask(module: str, task: Task, candidate: Path) -> Record:
    """In a process of its own: a bad model can take the runtime down with it."""
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "task.json"
        said.write_text(task.dump())
        run = measure.run([sys.executable, "-m", f"benchmarks.quantize.{module}", str(said), str(candidate)], TIMEOUT)
    try:
        record: Record = json.loads(run.stdout)
        return record
    except ValueError:
        return {"failure": run.failure()}


def version(module: Any) -> str:
    return FORM + hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()[:16]


def measure_tool(task: Task, tool: Tool, store: Store, times: str) -> Record:
    """``times``: ``none``, ``missing`` or ``all``."""
    made_key = (FORM, task.key(), str(task.batch), tool.fingerprint())
    candidate = target(task, tool)
    made = store.get("quantized", made_key, lambda: make(task, tool))
    if made["state"] == "ok" and not (candidate.exists() and digest(candidate) == made["digest"]):
        made = Store(store.folder, fresh=True).get("quantized", made_key, lambda: make(task, tool))
    if made["state"] != "ok":
        return made
    both = (digest(task.model), made["digest"], task.score_key())
    scored = store.get("quality", (*both, version(score)), lambda: ask("score", task, candidate))
    if "failure" in scored:
        return made | {"state": "invalid", "reason": " ".join(scored["failure"])[:400]}
    record = made | {"quality": scored}
    if times != "none":
        held = Store(store.folder, fresh=store.fresh or times == "all")
        timed = held.get("latency", (*both, version(latency)), lambda: ask("latency", task, candidate))
        record["latency"] = None if "failure" in timed else timed
    return record


def original(task: Task) -> Record:
    proto = facts.load(task.model)
    return {
        "size": facts.file_size(task.model),
        "nodes": facts.count_nodes(proto),
        "opset": {o.domain: o.version for o in proto.opset_import},
        "metric": task.metric,
    }
