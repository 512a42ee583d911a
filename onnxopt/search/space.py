"""What may be done to a model: each layer or group of channels, in each way, with what that gains and harms alone.

Harm is the noise at the outputs in units of the signal, with that change only, after what recovers from it without
training; gains are seconds, multiply–accumulates and bytes. Times come from whole models in which everything is
changed in one way, kernel by kernel: a layer that is timed alone would leave out what its neighbours have to do for it.
"""

from __future__ import annotations

import glob
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import onnx_ir as ir

from onnxopt.channels import Group
from onnxopt.errors import EngineError
from onnxopt.graph import Editor, label
from onnxopt.model import copy
from onnxopt.pass_base import Context, Pass
from onnxopt.passes.lowrank.split_conv import SplitConv
from onnxopt.passes.lowrank.split_matmul import SplitMatmul
from onnxopt.passes.prune._structured import trial
from onnxopt.passes.prune.reconstruct import Reconstruct
from onnxopt.passes.quantize._roles import LAYERS
from onnxopt.passes.quantize.quantize_dynamic import QuantizeDynamic
from onnxopt.passes.quantize.quantize_static import QuantizeStatic
from onnxopt.passes.quantize.quantize_weights import QuantizeWeights
from onnxopt.runtime import Snapshot
from onnxopt.search.bench import Bench, file_size, unpack
from onnxopt.search.jobs import Evaluations, Failure, Job
from onnxopt.search.node_costs import node_bytes, node_macs, node_seconds

Method = Literal["prune", "split", "quantize"]
METHODS: tuple[Method, ...] = ("prune", "split", "quantize")
Precision = Literal["int8", "dynamic-int8", "weight-int8", "weight-int4"]
"""Activations and weights in INT8, on fixed grids or on those of each run; or weights alone in so many bits."""

SHARES = (0.5, 0.25, 0.75, 0.125)
"""The shares of its channels that a group may lose, those first that tell most."""
RANKS = (0.25, 0.5)
"""The shares of its rank that a layer may be split at."""
WEIGHTS: dict[Precision, int] = {"weight-int8": 8, "weight-int4": 4}
"""The bits of weights, where activations are floats."""
STORED = ("MatMul", "Gemm", "Conv", "LSTM", "GRU", "RNN", "Gather")
"""The operators whose weights can be stored so."""
_RUINED = 1e3
"""More noise, in units of the signal, is all the same."""
_FITTED = 256
"""To so many samples readers are fitted anew."""
_MATTERS = 0.003
"""A layer that has less than this share of the time, of the arithmetic and of the bytes is left alone."""


@dataclass(frozen=True)
class Effect:
    """What one change does: the noise that it makes, and what it saves."""

    noise: float
    seconds: float
    macs: float
    bytes: float


@dataclass(frozen=True)
class GroupLevels:
    """A group of channels, and what it is to lose shares of them."""

    name: str
    layers: tuple[str, ...]
    """The layers that make the channels,"""
    readers: tuple[str, ...]
    """and the other layers whose weights have slices for them."""
    levels: dict[float, Effect]
    """By the share of channels that go."""


@dataclass(frozen=True)
class LayerLevels:
    """A layer, and what it is to write it as factors, or to compute it with integers."""

    name: str
    op: str
    seconds: float
    macs: float
    bytes: float
    """Of its weights;"""
    split: dict[float, Effect]
    """by the share of the rank that is left;"""
    precisions: dict[Precision, Effect]
    """by what its numbers are stored and computed in."""


@dataclass(frozen=True)
class Space:
    """All that may be done."""

    groups: tuple[GroupLevels, ...]
    layers: tuple[LayerLevels, ...]
    seconds: float
    macs: float
    bytes: float
    """What the whole model costs."""
    left: tuple[tuple[str, str], ...] = ()
    """Groups of channels of which none goes, with the reason."""

    @property
    def size(self) -> int:
        """How many changes there are."""
        split = sum(len(layer.split) + len(layer.precisions) for layer in self.layers)
        return split + sum(len(group.levels) for group in self.groups)


def explore(bench: Bench, methods: Sequence[Method], evaluations: Evaluations, *, small: bool = False) -> Space:
    """Measure every change by ``methods``; those that there is no time for are not in what is returned.

    ``small``: whether weights alone in few bits, which make a model small and seldom fast, are measured too.
    Raises ``EngineError`` if the model does not run.
    """
    cleaned = bench.cleaned
    timed = evaluations.remembered("times", dict[str, float], lambda: node_seconds(cleaned, bench.feeds))
    macs, weights = node_macs(cleaned), node_bytes(cleaned)
    seconds, all_macs, size = sum(timed.values()), sum(macs.values()), float(bench.size)

    def matters(names: Sequence[str]) -> bool:
        parts = ((timed, seconds), (macs, all_macs), (weights, size))
        return any(sum(part.get(name, 0.0) for name in names) > _MATTERS * whole for part, whole in parts)

    ops = {label(node): node.op_type for node in cleaned.graph}
    names = [name for name in ops if weights.get(name) and matters([name])]
    groups = [group for group in bench.groups if matters(_nodes(group))] if "prune" in methods else []
    shares = {group.number: _shares(group, bench) for group in groups}
    minor = [group.name for group in bench.groups if group not in groups] if "prune" in methods else []
    jobs = {
        "integers": [Job(quantizing, (), dict[str, tuple[float, float]], "what integers are worth")],
        "dynamic": [Job(rounding, (), dict[str, tuple[float, float, float]], "what rounding at run time is worth")],
        "store": [
            Job(storing, (name, bits), tuple[float, float], "what few bits are worth")
            for name in names for bits in WEIGHTS.values() if ops[name] in STORED
        ],
        "prune": [
            Job(pruning_noise, (group.number, share), float, f"what {share:.0%} of the channels of a layer are worth")
            for share in SHARES for group in groups if share in shares[group.number]
        ],
        "split": [
            Job(splitting, (name,), dict[float, tuple[float, float, float]], "what factors are worth")
            for name in names if ops[name] in SplitConv.ops | SplitMatmul.ops
        ],
    }  # fmt: skip
    quantized = "quantize" in methods
    wanted = {"integers": quantized, "dynamic": quantized, "store": small and quantized, "split": "split" in methods}
    jobs = {kind: each if wanted.get(kind, True) else [] for kind, each in jobs.items()}
    evaluations.planned += sum(map(len, jobs.values()))
    found = {kind: _results(each, evaluations) for kind, each in jobs.items()}

    integers: dict[str, tuple[float, float]] = found["integers"].get((), {})
    dynamic: dict[str, tuple[float, float, float]] = found["dynamic"].get((), {})
    stored = _stored(found["store"], timed, bench, evaluations)
    split = {name: levels for (name,), levels in found["split"].items()}
    layers = []
    for name in (name for name in ops if weights.get(name) or name in integers):
        own, weight = macs.get(name, 0.0), weights.get(name, 0.0)
        levels = {
            rank: Effect(noise, saved, own * share, weight * share)
            for rank, (noise, saved, share) in split.get(name, {}).items()
        }
        precisions = dict(stored.get(name, {}))
        if name in integers:
            saved, noise = integers[name]
            precisions["int8"] = Effect(noise, saved, 0.0, weight * 0.75)
        if name in dynamic:
            saved, noise, fewer = dynamic[name]
            precisions["dynamic-int8"] = Effect(noise, saved, 0.0, fewer)
        layers.append(LayerLevels(name, ops[name], timed.get(name, 0.0), own, weight, levels, precisions))
    left = [*bench.frozen, *((name, "it has next to nothing of time, arithmetic and bytes") for name in minor)]
    return Space(
        _groups(groups, found["prune"], timed, bench, evaluations), tuple(layers), seconds, all_macs, size,
        tuple(left) if "prune" in methods else (),
    )  # fmt: skip


def _shares(group: Group, bench: Bench) -> set[float]:
    """The shares by which, once rounded, different numbers of channels go."""
    first: dict[int, float] = {}
    for share in SHARES:
        first.setdefault(len(bench.least(group, share)), share)
    return {share for count, share in first.items() if count}


def _results(jobs: Sequence[Job], evaluations: Evaluations) -> dict[tuple[Any, ...], Any]:
    """By their arguments, those of the jobs that came to something."""
    results = zip(jobs, evaluations.run(jobs), strict=True)
    return {job.arguments: found for job, found in results if not isinstance(found, Failure)}


def _groups(
    groups: Sequence[Group], noises: Mapping[tuple[Any, ...], float], timed: Mapping[str, float], bench: Bench,
    evaluations: Evaluations,
) -> tuple[GroupLevels, ...]:  # fmt: skip
    touched = {group.number: _nodes(group) for group in groups}
    shared = Counter(name for names in touched.values() for name in names)
    pruned = {}
    for share in {share for _, share in noises}:
        what = f"times without {share:g} of the channels"
        pruned[share] = evaluations.remembered(what, dict[str, float], partial(_seconds_without, groups, share, bench))
    found = []
    for group in groups:
        levels = {}
        for share in (share for share in SHARES if (group.number, share) in noises and pruned[share]):
            saved = sum((timed.get(n, 0) - pruned[share].get(n, 0)) / shared[n] for n in touched[group.number])
            left = {group.number: group.size - len(bench.least(group, share))}
            macs = bench.costs.macs({}) - bench.costs.macs(left)
            parameters = bench.costs.parameters({}) - bench.costs.parameters(left)
            levels[share] = Effect(noises[group.number, share], saved, macs, 4 * parameters)
        if levels:
            makers = tuple(map(label, group.makers))
            readers = tuple(name for name in touched[group.number] if name not in makers)
            found.append(GroupLevels(group.name, makers, readers, levels))
    return tuple(found)


def pruning_noise(shared: bytes, number: int, share: float) -> float:
    """A job: the noise of the cleaned model without this share of one group, with its readers fitted anew."""
    bench = unpack(shared)
    group = next(each for each in bench.groups if each.number == number)
    context = bench.context(trial(bench.cleaned, "channel", {group.number: bench.least(group, share)}))
    assert context.data is not None
    context.data = context.data.take(_FITTED)
    Reconstruct(include=tuple(map(glob.escape, _nodes(group)))).run(context)
    return _judged(bench, context.editor.model)


def _seconds_without(groups: Sequence[Group], share: float, bench: Bench) -> dict[str, float]:
    """The time of each node if every group loses this share; nothing if that model does not run."""
    chosen = {group.number: bench.least(group, share) for group in groups}
    try:
        return node_seconds(trial(bench.cleaned, "channel", chosen), bench.feeds)
    except EngineError:
        return {}


def splitting(shared: bytes, name: str) -> dict[float, tuple[float, float, float]]:
    """A job: what one layer as two factors is worth, by the share of its rank."""
    bench = unpack(shared)
    op = next(node.op_type for node in bench.cleaned.graph if label(node) == name)
    kind = SplitConv if op in SplitConv.ops else SplitMatmul
    rows = kind(include=(glob.escape(name),)).survey(bench.context(bench.cleaned), RANKS)
    return {  # a larger rank may save nothing, and has no row then
        share: (_noise(db), (before - after) * 1e-6, 1 - macs)
        for share, (_, _, macs, _, before, after, db) in zip(RANKS, rows, strict=False)
        if not math.isnan(after)
    }


def _stored(
    found: Mapping[tuple[Any, ...], tuple[float, float]], timed: Mapping[str, float], bench: Bench,
    evaluations: Evaluations,
) -> dict[str, dict[Precision, Effect]]:  # fmt: skip
    """By layer, what it is worth to store its weights in few bits."""
    levels: dict[str, dict[Precision, Effect]] = {}
    for precision, bits in WEIGHTS.items():
        rows = {name: row for (name, b), row in found.items() if b == bits and row[1] > 0}
        if not rows:
            continue
        what = f"times with weights of {bits} bits"
        faster = evaluations.remembered(what, dict[str, float], partial(_seconds_stored, bits, bench))
        for name, (noise, saved) in rows.items():
            if faster:
                seconds = timed.get(name, 0.0) - faster.get(name, 0.0)
                levels.setdefault(name, {})[precision] = Effect(noise, seconds, 0.0, saved)
    return levels


def stored_weights(bits: int, names: Sequence[str]) -> QuantizeWeights:
    """The pass that stores the weights of these nodes, globs, in few bits."""
    return QuantizeWeights(bits=bits, operators=STORED, min_elements=0, include=tuple(names))


def storing(shared: bytes, name: str, bits: int) -> tuple[float, float]:
    """A job: the noise of one layer whose weights are stored in few bits, and the bytes that this saves."""
    return _alone(unpack(shared), stored_weights(bits, [glob.escape(name)]))


def _alone(bench: Bench, pass_: Pass) -> tuple[float, float]:
    """The noise of one change, kept to no budget, and the bytes that it saves."""
    context = replace(bench.context(copy(bench.cleaned)), evaluation=None)
    pass_.run(context)
    model = context.editor.model
    return _judged(bench, model), float(bench.size - file_size(model))


def _judged(bench: Bench, model: ir.Model) -> float:
    return min(bench.judge.quality(Snapshot.of(model)).noise, _RUINED)


def _seconds_stored(bits: int, bench: Bench) -> dict[str, float]:
    """The time of each node if all weights are stored in few bits; nothing if that model does not run."""
    context = Context(Editor(copy(bench.cleaned)))
    stored_weights(bits, ["*"]).run(context)
    try:
        return node_seconds(context.editor.model, bench.feeds)
    except EngineError:
        return {}


def quantizing(shared: bytes) -> dict[str, tuple[float, float]]:
    """A job: what integers are worth in each layer."""
    bench = unpack(shared)
    rows = QuantizeStatic().survey(bench.context(bench.cleaned))
    return {
        name: ((as_float - as_integer) * 1e-6, _noise(db))
        for name, op, as_float, as_integer, db in rows
        if op in LAYERS
    }


def dynamic_integers(names: Sequence[str]) -> QuantizeDynamic:
    """The pass that computes these nodes, globs, with integers on the grids of each run."""
    return QuantizeDynamic(where="everywhere", include=tuple(names))


def rounding(shared: bytes) -> dict[str, tuple[float, float, float]]:
    """A job: what integers on the grids of each run are worth in each layer that they make faster: the seconds they
    save, their noise, and the bytes that they save."""
    bench = unpack(shared)
    found = {}
    for fact in QuantizeDynamic(max_drop=1.0).run(bench.context(copy(bench.cleaned))).facts:
        name, times = fact.get("node"), (fact.get("float_us"), fact.get("integer_us"))
        if not isinstance(name, str) or not isinstance(times[0], float) or not isinstance(times[1], float):
            continue
        if times[1] < times[0]:
            found[name] = (times[0] - times[1]) * 1e-6, *_alone(bench, dynamic_integers([glob.escape(name)]))
    return found


def _nodes(group: Group) -> list[str]:
    return list(dict.fromkeys(label(node) for member in group.members for node in member.nodes))


def _noise(decibels: float | None) -> float:
    return 0.0 if decibels is None else min(10 ** (-decibels / 10), _RUINED)
