"""Is this model still the model it was? A judge that shares no code with the product.

Outputs are compared in ONNX Runtime with optimisation off, on several probe inputs. The yardstick is the
original's own float noise: how far its outputs move between ORT's optimisation levels and when its inputs
move by one unit in the last place. A candidate may move ten times as far, and no output is asked for more
than a floor that is common to its type, relative to its largest element.

    python -m benchmarks.judge original.onnx candidate.onnx     # prints a verdict as JSON
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from benchmarks import facts, probes
from benchmarks.facts import Port
from benchmarks.probes import Feed

Array = np.ndarray[Any, Any]
Outputs = dict[str, Array]

FACTOR = 10.0
"""Noise is the largest of a handful of draws; a change of summation order can well be some times larger."""

FLOOR = {"float64": 1e-12, "float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}
"""Relative to the output's largest element."""


@dataclass
class Verdict:
    """``ok`` is False if a caller of the model would notice; ``altered`` lists what only a reader would."""

    ok: bool = True
    kind: str = "ok"
    """``ok``, ``invalid`` (checker or loading), ``interface``, ``shape``, ``outputs``, ``run`` or
    ``unjudged``."""
    reason: str = ""
    altered: list[str] = field(default_factory=list)
    """Declared dimensions or overridable inputs that were lost or renamed."""
    refined: list[str] = field(default_factory=list)
    """Declared dimensions that say more than before and agree with every run."""
    notes: list[str] = field(default_factory=list)
    worst: float = 0.0
    """The largest error in units of its tolerance."""
    worst_output: str = ""
    cases: int = 0
    blind: list[str] = field(default_factory=list)
    """Outputs that are one constant in every case: the probes cannot see a mistake there."""

    def fail(self, kind: str, reason: str) -> Verdict:
        if self.ok:
            self.ok, self.kind, self.reason = False, kind, reason
        return self


@dataclass(frozen=True)
class Case:
    """One probe: the feed, what the original answers, and the tolerance of each output (NaN: not
    repeatable)."""

    feed: Feed
    outputs: Outputs
    tolerance: dict[str, float]


def session(path: Path, level: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(sess: ort.InferenceSession, feed: Feed) -> Outputs:
    names = [o.name for o in sess.get_outputs()]
    flat: Outputs = {}
    for name, value in zip(names, sess.run(names, feed), strict=True):
        flat |= _flatten(name, value)
    return flat


def _flatten(name: str, value: Any) -> Outputs:
    """Sequences and maps (scikit-learn's ZipMap) as arrays."""
    if isinstance(value, dict):
        keys = sorted(value)
        return {f"{name}.keys": np.asarray(keys), f"{name}.values": np.asarray([value[k] for k in keys])}
    if isinstance(value, list):
        return {k: v for i, item in enumerate(value) for k, v in _flatten(f"{name}[{i}]", item).items()}
    return {name: np.asarray(value)}


def nudge(feed: Feed, up: bool) -> Feed:
    """Every float moved by one unit in the last place, alternately away and back."""
    moved: Feed = {}
    for name, x in feed.items():
        if x.dtype.kind == "f" and x.size:
            sign = np.where(np.arange(x.size).reshape(x.shape) % 2 == up, np.inf, -np.inf)
            moved[name] = np.nextafter(x, sign.astype(x.dtype)).astype(x.dtype)
        else:
            moved[name] = x
    return moved


def distance(a: Array, b: Array) -> float:
    """Largest absolute difference; infinite where only one is finite or shapes differ; a share for
    other types."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if a.size == 0:
        return 0.0
    if not is_float(a):
        return float(np.mean(a != b))
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    if not np.array_equal(x[~finite], y[~finite], equal_nan=True):
        return float("inf")
    return float(np.max(np.abs(x - y), where=finite, initial=0.0))


def is_float(x: Array) -> bool:
    return bool(x.dtype.kind == "f" or x.dtype.name == "bfloat16")


def tolerance(y: Array, others: Sequence[Array]) -> float:
    """How far a candidate may be from ``y``, given what the same model said under harmless changes."""
    noise = max((distance(y, other) for other in others), default=0.0)
    if not is_float(y):
        return FACTOR * noise
    finite = np.abs(y.astype(np.float64))
    scale = float(np.max(finite, where=np.isfinite(finite), initial=0.0))
    return max(FACTOR * noise, FLOOR[y.dtype.name] * scale, 1e-37)


def reference(path: Path) -> tuple[list[Case], list[str]]:
    """The cases that the original can run, and what was noticed on the way."""
    notes: list[str] = []
    plain = session(path, "ORT_DISABLE_ALL")
    try:
        tuned = session(path, "ORT_ENABLE_ALL")
    except Exception as error:
        tuned = None
        notes.append(f"the original does not load with optimisation: {first_line(error)}")
    cases: list[Case] = []
    for i, feed in enumerate(probes.feeds(path)):
        try:
            y = run(plain, feed)
            again = run(plain, feed)
            moved = [run(plain, nudge(feed, up)) for up in (False, True)]
            if tuned is not None:
                moved.append(run(tuned, feed))
        except Exception as error:
            notes.append(f"the original does not run case {i}: {first_line(error)}")
            continue
        limits = {k: tolerance(v, [m[k] for m in moved if k in m]) for k, v in y.items()}
        for name in y:
            if distance(y[name], again[name]) > 0:
                limits[name] = float("nan")
                notes.append(f"{name} is not repeatable")
        cases.append(Case(feed, y, limits))
    return cases, notes


def judge(original: Path, candidate: Path) -> Verdict:
    verdict = Verdict()
    check(original, candidate, verdict)
    cases, verdict.notes = reference(original)
    verdict.cases = len(cases)
    verdict.blind = sorted(blind(cases))
    observed = [{k: v.shape for k, v in (*c.feed.items(), *c.outputs.items())} for c in cases]
    compare_interface(facts.load(original), facts.load(candidate), observed, verdict)
    try:
        plain, tuned = session(candidate, "ORT_DISABLE_ALL"), session(candidate, "ORT_ENABLE_ALL")
    except Exception as error:
        return verdict.fail("invalid", f"does not load: {first_line(error)}")
    for i, case in enumerate(cases):
        compare_case(case, plain, i, verdict)
    if verdict.ok:
        compare_tuned(cases, tuned, verdict)
    if not cases:
        verdict.fail("unjudged", "the original runs none of the probes")
    return verdict


def check(original: Path, candidate: Path, verdict: Verdict) -> None:
    """The checker's word counts only where the original satisfies it."""
    try:
        onnx.checker.check_model(str(original), full_check=True)
    except Exception as error:
        verdict.notes.append(f"the original fails the checker: {first_line(error)}")
        return
    try:
        onnx.checker.check_model(str(candidate), full_check=True)
    except Exception as error:
        verdict.fail("invalid", f"checker: {first_line(error)}")


def compare_case(case: Case, sess: ort.InferenceSession, i: int, verdict: Verdict) -> None:
    try:
        got = run(sess, case.feed)
    except Exception as error:
        verdict.fail("run", f"case {i}: {first_line(error)}")
        return
    for name, y in case.outputs.items():
        if name not in got:
            verdict.fail("interface", f"output {name} is gone")
            continue
        z, limit = got[name], case.tolerance[name]
        if z.shape != y.shape:
            verdict.fail("shape", f"case {i}: {name} has shape {list(z.shape)}, was {list(y.shape)}")
        elif z.dtype != y.dtype:
            verdict.fail("interface", f"case {i}: {name} is {z.dtype}, was {y.dtype}")
        elif not np.isnan(limit):
            moved = distance(y, z)
            ratio = moved / limit if limit else (0.0 if moved == 0 else float("inf"))
            if ratio > verdict.worst:
                verdict.worst, verdict.worst_output = ratio, name
            if not ratio <= 1:
                verdict.fail("outputs", f"case {i}: {name} is off by {moved:.3g}, allowed {limit:.3g}")


def compare_tuned(cases: list[Case], sess: ort.InferenceSession, verdict: Verdict) -> None:
    """With ORT's optimisation on; a difference here alone may be the runtime's own, so it is noted,
    not judged."""
    tuned = Verdict()
    for i, case in enumerate(cases):
        compare_case(case, sess, i, tuned)
    if not tuned.ok:
        verdict.notes.append(f"under ORT's default optimisation: {tuned.reason}")


def blind(cases: list[Case]) -> set[str]:
    """Outputs that show one and the same number in all cases."""
    seen: dict[str, list[Array]] = {}
    for case in cases:
        for name, y in case.outputs.items():
            seen.setdefault(name, []).append(y.ravel())
    return {name for name, ys in seen.items() if np.unique(np.concatenate(ys)).size <= 1}


def compare_interface(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    observed: Sequence[dict[str, tuple[int, ...]]],
    verdict: Verdict,
) -> None:
    for what, old, new in (
        ("input", facts.inputs(before), facts.inputs(after)),
        ("output", facts.outputs(before), facts.outputs(after)),
    ):
        if [p.name for p in old] != [p.name for p in new]:
            verdict.fail("interface", f"{what}s were {_names(old)}, are {_names(new)}")
            continue
        for a, b in zip(old, new, strict=True):
            _compare_port(what, a, b, [shapes[a.name] for shapes in observed if a.name in shapes], verdict)
    if lost := facts.overridable(before) & _names_of_initializers(after) - facts.overridable(after):
        verdict.notes.append(f"{len(lost)} initializers can no longer be overridden")


def _compare_port(what: str, a: Port, b: Port, shapes: Sequence[tuple[int, ...]], verdict: Verdict) -> None:
    label = f"{what} {a.name}"
    if (a.elem_type, a.kind) != (b.elem_type, b.kind):
        verdict.fail("interface", f"{label} has another type")
    elif a.dims is None or b.dims is None:
        if a.dims != b.dims:
            (verdict.refined if a.dims is None else verdict.altered).append(f"{label}: {a.dims} → {b.dims}")
    elif len(a.dims) != len(b.dims):
        verdict.fail("interface", f"{label} is declared with rank {len(b.dims)}, was {len(a.dims)}")
    else:
        for axis, (old, new) in enumerate(zip(a.dims, b.dims, strict=True)):
            if old == new:
                continue
            change = f"{label}, axis {axis}: {_dim(old)} → {_dim(new)}"
            if isinstance(new, int):
                seen = {s[axis] for s in shapes if len(s) == len(b.dims)}
                if what == "input" or isinstance(old, int) or seen - {new}:
                    verdict.fail("interface", change)
                else:
                    verdict.refined.append(change)
            else:
                (verdict.refined if old is None else verdict.altered).append(change)


def _names(ports: Sequence[Port]) -> str:
    return ", ".join(p.name for p in ports)


def _names_of_initializers(model: onnx.ModelProto) -> set[str]:
    return {t.name for t in model.graph.initializer}


def _dim(dim: facts.Dim) -> str:
    return "?" if dim is None else str(dim)


def first_line(error: Exception, limit: int = 200) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0][:limit]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.judge", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("original", type=Path)
    parser.add_argument("candidate", type=Path)
    args = parser.parse_args(argv)
    verdict = judge(args.original, args.candidate)
    json.dump(asdict(verdict), sys.stdout, indent=1)
    print()
    return 0 if verdict.ok else 1


if __name__ == "__main__":
    sys.exit(main())
