"""Plans carried out and measured: what the model costs then, and what it loses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import onnx
import onnx_ir as ir

from onnxopt.evaluation import evaluate
from onnxopt.macs import count_macs
from onnxopt.model import from_proto, to_proto
from onnxopt.pass_base import Pass
from onnxopt.passes.quantize.quantize_static import QuantizeStatic
from onnxopt.pipeline import PassManager
from onnxopt.runtime import Snapshot, one_thread_ratio
from onnxopt.search.allocation import Plan
from onnxopt.search.bench import Bench, file_size, unpack
from onnxopt.search.jobs import Evaluations, Failure, Job
from onnxopt.search.metric import Loss
from onnxopt.search.plans import few_bits, fixed_integers, measured_integers, pipeline, structure

_SECONDS = 0.7
_MOST_BYTES = 64 << 20
"""Models that take more are not sent and kept, but made again when they are wanted."""
_RUINED = 1e3


@dataclass(frozen=True)
class Made:
    """What a job tells of a plan."""

    loss: Loss
    noise: float
    size: int
    macs: int
    nodes: tuple[str, ...]
    content: bytes


@dataclass(frozen=True)
class Measured:
    """A plan, and the model that it makes."""

    plan: Plan
    loss: Loss
    """On the samples that plans are compared on."""
    noise: float
    """At the outputs, in units of the signal."""
    latency: float
    """On one thread, in units of the original's;"""
    bytes: int
    """of the model as a file;"""
    macs: int
    nodes: tuple[str, ...] = ()
    """Those that are computed with integers."""
    problem: str = ""
    """Why nothing came of it."""
    middle: tuple[float, float] | None = None
    """Between these is half of the latencies that were measured."""


@dataclass
class Trials:
    """Carries plans out on one model."""

    bench: Bench
    evaluations: Evaluations
    made: dict[Plan, Measured] = field(default_factory=dict)
    """All that were measured."""
    _snapshots: dict[Plan, Snapshot] = field(default_factory=dict)

    def measure(self, plans: Sequence[Plan]) -> list[Measured]:
        """What these plans come to."""
        new = [plan for plan in dict.fromkeys(plans) if plan not in self.made]
        made = self.evaluations.run([Job(carry_out, (plan,), Made, str(plan)) for plan in new])
        for plan, result in zip(new, made, strict=True):
            if isinstance(result, Failure):
                self.made[plan] = Measured(plan, Loss(0, 0, 0, 1, 0), _RUINED, 1.0, 0, 0, problem=result.reason)
                continue
            snapshot = Snapshot(result.content, None) if result.content else self._make(plan, result.nodes)
            self._snapshots[plan] = snapshot
            time = partial(self._latency, snapshot)
            latency = self.evaluations.remembered(f"latency {plan!r}", dict[str, float], time)
            self.made[plan] = Measured(
                plan, result.loss, result.noise, latency["median"], result.size, result.macs, result.nodes,
                middle=(latency["low"], latency["high"]),
            )  # fmt: skip
        return [self.made[plan] for plan in plans]

    def replayed(self, measured: Measured) -> Snapshot:
        """The model that the plan makes, made once more by its recipe."""
        self._snapshots[measured.plan] = self._make(measured.plan, measured.nodes)
        return self._snapshots[measured.plan]

    def model_of(self, measured: Measured) -> ir.Model:
        """The same, to be saved."""
        snapshot = self._snapshots.get(measured.plan) or self.replayed(measured)
        return from_proto(onnx.ModelProto.FromString(snapshot.content), snapshot.directory or ".")

    def passes(self, measured: Measured) -> list[Pass]:
        """The pipeline that makes it after cleanup, with nothing left to measure."""
        return _passes(measured.plan, measured.nodes, self.bench)

    def _make(self, plan: Plan, nodes: tuple[str, ...]) -> Snapshot:
        passes = pipeline(_passes(plan, nodes, self.bench))
        return Snapshot.of(PassManager(passes, verify="off", data=self.bench.data).run(self.bench.model)[0])

    def _latency(self, snapshot: Snapshot) -> dict[str, float]:
        found = one_thread_ratio(self.bench.original, snapshot, self.bench.feeds, seconds=_SECONDS)
        return {"median": found.median, "low": found.low, "high": found.high}


def carry_out(shared: bytes, plan: Plan) -> Made:
    """A job: the model that a plan makes, and what it loses."""
    bench = unpack(shared)
    passes = _passes(plan, (), bench)
    if plan.of("int8"):
        passes.append(measured_integers(plan, bench.cleaned))
    model, report = PassManager(pipeline(passes), verify="off", data=bench.data).run(bench.model)
    notes = (note for each in report.passes if each.name == QuantizeStatic.name for note in each.changes)
    nodes = tuple(dict.fromkeys(note.node for note in notes))
    snapshot = Snapshot.of(model)
    loss = bench.yardstick.loss(snapshot)
    noise = min(evaluate(bench.original, snapshot, bench.compared).noise, _RUINED)
    size = file_size(model)
    content = to_proto(model).SerializeToString() if size <= _MOST_BYTES else b""
    return Made(loss, noise, size, count_macs(model).total, nodes, content)


def _passes(plan: Plan, nodes: Sequence[str], bench: Bench) -> list[Pass]:
    passes = [*structure(plan, bench.cleaned), *few_bits(plan)]
    return [*passes, fixed_integers(nodes)] if nodes else passes
