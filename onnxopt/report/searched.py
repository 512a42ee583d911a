"""The report of a search: what was chosen for each layer, what was refused and why, and all that was measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from onnxopt import inspection
from onnxopt.report import before_after, values
from onnxopt.report.document import (
    Axis,
    Cell,
    Column,
    Document,
    Fact,
    Facts,
    Figure,
    Point,
    Section,
    Series,
    Shown,
    Table,
)
from onnxopt.report.origin import Origin, run_section
from onnxopt.report.refusals import Change, changes
from onnxopt.search.allocation import Plan, Target
from onnxopt.search.auto import AutoResult
from onnxopt.search.budget import Found
from onnxopt.search.space import Method, Space

_TARGETS: dict[Target, str] = {"latency": "latency", "size": "size", "macs": "multiply–accumulates"}
_METHODS: dict[Method, str] = {"prune": "prune channels", "split": "split", "quantize": "integers"}
_LEAST = 1e-9
"""Less noise is drawn as this: a logarithm has no zero."""


def document(found: AutoResult, origin: Origin) -> Document:
    """Everything that a search found."""
    every = list(changes(found))
    target, chosen = found.budget.target, found.chosen
    told = [f"The budget holds: {_loss_text(found)}."] if found.holds else []
    if found.problem:
        told.append(f"{'' if found.holds else 'The budget does not hold: '}{found.problem}.")
    told.append(f"The model has ×{chosen.cost(target):.2f} of the {_TARGETS[target]}: {chosen.measured.plan}.")
    table, *bars = before_after.sections(_measures(found), before_after.dims(found.before))
    return Document(
        "auto", origin.model or "Search", found.holds, " ".join(told),
        (
            table, _budget(found), Section("pareto", "All models that were measured", _pareto(found), _PARETO),
            _layers(found.space, every),
            Section("sensitivity", "What each change gains and harms alone", _sensitivity(found, every), _ALONE),
            _alternatives(every), _models(found), *bars, run_section(origin),
        ),
    )  # fmt: skip


_PARETO = "Point at a model to see what it does. Bars are what its loss surely is between (95 % each way)."
_ALONE = "Up and to the left is dear, down and to the right is cheap. Noise is in units of the signal at the outputs."


def _measures(found: AutoResult) -> list[before_after.Measure]:
    chosen, after = found.chosen, inspection.costs(found.model)
    after.file_bytes, after.macs = chosen.measured.bytes, chosen.measured.macs
    size, *rest = before_after.costs(found.before, after)
    latency = before_after.latency(chosen.latency, *(chosen.measured.middle or ()))
    loss = chosen.final or chosen.measured.loss
    return [size, latency, *rest, *before_after.scores(found.metric, loss)]


def _loss_text(found: AutoResult) -> str:
    loss = found.chosen.final or found.chosen.measured.loss
    return (
        f"the loss of {found.metric} is {values.share(loss.drop, 2).text}, surely at most "
        f"{values.share(loss.high, 2).text}, of {found.budget.max_drop:.2%} "
        f"allowed, on {loss.samples:,} samples that nothing was fitted to or chosen by"
    )


def _budget(found: AutoResult) -> Section:
    budget, chosen = found.budget, found.chosen
    loss = chosen.final or chosen.measured.loss
    facts = [
        Fact("target", "To be least", Shown(budget.target, _TARGETS[budget.target])),
        Fact("max_drop", f"Largest loss of {found.metric} allowed", values.share(budget.max_drop, 2)),
        Fact("drop", "Loss", values.share(loss.drop, 2)),
        Fact("low", "Loss, surely at least", values.share(loss.low, 2)),
        Fact("high", "Loss, surely at most", values.share(loss.high, 2)),
        Fact("samples", "Samples that it was judged on", values.whole(loss.samples)),
    ]
    for name, limit in budget.limits.items():
        facts.append(Fact(f"max_{name}", f"Most {_TARGETS[name]} allowed", values.times(limit)))
        facts.append(Fact(name, f"{_TARGETS[name].capitalize()} reached", values.times(chosen.cost(name))))
    facts += [
        Fact("holds", "Holds", values.plain(found.holds)),
        Fact("problem", "Problem", Shown(found.problem, found.problem or "none")),
        Fact("evaluations", "Evaluations in this run", values.whole(found.evaluations)),
        Fact("reused", "Known from before", values.whole(found.reused)),
    ]
    return Section("budget", "Budget", Facts(tuple(facts)))


# -- models ------------------------------------------------------------------------------------------------


def _pareto(found: AutoResult) -> Figure:
    target = found.budget.target
    frontier = sorted((_point(each, target) for each in found.pareto), key=lambda point: float(point.x))
    series = (
        Series("measured", "measured", tuple(_point(each, target) for each in found.found), "faint"),
        Series("frontier", "no other beats it", tuple(frontier), "steps"),
        Series("chosen", "chosen", (_point(found.chosen, target),), "star"),
        Series("original", "original", (Point(1.0, 0.0, ("the original",)),)),
    )
    limits = ((found.budget.max_drop, "largest loss allowed"),)
    return Figure(
        Axis(f"{_TARGETS[target]}, in units of the original's"),
        Axis(f"loss of {found.metric}", share=True), series, limits,
    )  # fmt: skip


def _point(found: Found, target: Target) -> Point:
    loss = found.measured.loss
    about = (
        str(found.measured.plan),
        f"loss {loss.drop:z.2%} ({loss.low:z.2%} … {loss.high:z.2%})",
        f"latency ×{found.latency:.2f}, size ×{found.size:.2f}, MACs ×{found.macs:.2f}",
        f"noise {found.measured.noise:.2g}",
    )
    return Point(found.cost(target), loss.drop, tuple(map(values.minus, about)), loss.low, loss.high)


def _models(found: AutoResult) -> Section:
    columns = (
        Column("plan", "What was done"), Column("epochs", "Epochs", True), Column("latency", "Latency", True),
        Column("size", "Size", True), Column("macs", "MACs", True), Column("drop", "Loss", True),
        Column("low", "at least", True), Column("high", "at most", True), Column("final", "In the end, at most", True),
        Column("noise", "Noise", True), Column("verdict", ""),
    )  # fmt: skip
    on_frontier = {each.measured.plan for each in found.pareto}
    rows, marked = [], set()
    for at, each in enumerate(sorted(found.found, key=lambda f: (f.cost(found.budget.target), f.measured.loss.drop))):
        measured, loss = each.measured, each.measured.loss
        if chosen := each.measured.plan == found.chosen.measured.plan:
            marked.add(at)
        final = found.chosen.final if chosen else each.final
        verdict = "chosen" if chosen else "no other beats it" if each.measured.plan in on_frontier else "beaten"
        if not found.budget.is_held(loss):
            verdict += ", may lose too much"
        elif final is not None and not found.budget.is_held(final):
            verdict += ", but may lose too much on the samples kept for the end"
        rows.append((
            Shown(_json(measured.plan), str(measured.plan)), values.whole(measured.plan.epochs),
            values.times(each.latency), values.times(each.size), values.times(each.macs), values.share(loss.drop, 2),
            values.share(loss.low, 2), values.share(loss.high, 2),
            values.share(None if final is None else final.high, 2), values.noise(measured.noise), verdict,
        ))  # fmt: skip
    intro = (
        "Losses are on the samples that models are compared on. Those that looked best were judged in the end, on "
        "samples that were kept for that: some lose more there than they seemed to."
    )
    return Section("models", "Models", Table(columns, tuple(rows), frozenset(marked)), intro)


def _json(plan: Plan) -> dict[str, object]:
    return {
        "prune": dict(plan.prune),
        "split": dict(plan.split),
        "precisions": dict(plan.precisions),
        "epochs": plan.epochs,
    }


# -- layers ------------------------------------------------------------------------------------------------


@dataclass
class _Layer:
    op: str = ""
    seconds: float | None = None
    macs: float | None = None
    bytes: float | None = None


def _layers(space: Space, every: Sequence[Change]) -> Section:
    """One row a layer: what is done to it."""
    columns = (
        Column("layer", "Layer"), Column("op", "Operator"), Column("chosen", "What was chosen"),
        Column("noise", "Noise alone", True), Column("seconds", "Time", True), Column("saved", "Saved", True),
        Column("macs", "MACs", True), Column("bytes", "Weights", True),
    )  # fmt: skip
    layers = {layer.name: _Layer(layer.op, layer.seconds, layer.macs, layer.bytes) for layer in space.layers}
    for group in space.groups:
        for name in group.layers:
            layers.setdefault(name, _Layer())
    for name, _ in space.left:
        layers.setdefault(name, _Layer())
    rows: list[tuple[Cell, ...]] = []
    marked = set()
    for name, layer in layers.items():
        chosen = [change for change in every if change.chosen and name in change.layers]
        if chosen:
            marked.add(len(rows))
        rows.append((
            name, layer.op, Shown([change.json for change in chosen], "; ".join(c.text for c in chosen) or "as it was"),
            values.noise(sum(change.effect.noise for change in chosen)) if chosen else values.NOTHING,
            values.seconds(layer.seconds or None),
            values.seconds(sum(change.effect.seconds for change in chosen)) if chosen else values.NOTHING,
            values.whole(None if layer.macs is None else round(layer.macs)),
            values.size(None if layer.bytes is None else round(layer.bytes)),
        ))  # fmt: skip
    intro = (
        "Noise and what is saved are those of each change alone, before plans were measured; channels that several "
        "layers share count at each of them."
    )
    return Section("layers", "Layer by layer", Table(columns, tuple(rows), frozenset(marked)), intro)


def _alternatives(every: Iterable[Change]) -> Section:
    columns = (
        Column("place", "Layer or channels"), Column("method", "Method"), Column("level", "How far"),
        Column("noise", "Noise alone", True), Column("seconds", "Saves", True), Column("macs", "MACs", True),
        Column("bytes", "Weights", True), Column("decision", "Decision"), Column("why", "Why"),
    )  # fmt: skip
    rows, marked = [], set()
    for at, change in enumerate(every):
        effect = change.effect
        if change.chosen:
            marked.add(at)
        known = change.level is not None
        rows.append((
            change.place, Shown(change.method, _METHODS[change.method]), Shown(change.level, change.level_text),
            values.noise(effect.noise) if known else values.NOTHING,
            values.seconds(effect.seconds) if known else values.NOTHING,
            values.whole(round(effect.macs)) if known else values.NOTHING,
            values.size(round(effect.bytes)) if known else values.NOTHING,
            "chosen" if change.chosen else "refused", change.why,
        ))  # fmt: skip
    intro = "Everything that could be done, what each saves and how much noise it makes alone."
    return Section("alternatives", "What was refused, and why", Table(columns, tuple(rows), frozenset(marked)), intro)


def _sensitivity(found: AutoResult, every: Sequence[Change]) -> Figure:
    target = found.budget.target
    whole = {"latency": found.space.seconds, "size": found.space.bytes, "macs": found.space.macs}[target] or 1.0

    def points(changes: Iterable[Change]) -> Iterator[Point]:
        for change in changes:
            effect = change.effect
            saved = {"latency": effect.seconds, "size": effect.bytes, "macs": effect.macs}[target] / whole
            about = (
                change.place, change.text, f"noise {values.noise(effect.noise).text}",
                f"saves {values.seconds(effect.seconds).text}, {effect.macs:,.0f} MACs, "
                f"{values.size(round(effect.bytes)).text}", "chosen" if change.chosen else change.why,
            )  # fmt: skip
            yield Point(saved, max(effect.noise, _LEAST), about)

    known = [change for change in every if change.level is not None]
    series = [
        Series(method, name, tuple(points(c for c in known if c.method == method)))
        for method, name in _METHODS.items()
        if any(change.method == method for change in known)
    ]
    series.append(Series("chosen", "chosen", tuple(points(c for c in known if c.chosen)), "star"))
    return Figure(
        Axis(f"what it saves of the {_TARGETS[target]}", share=True), Axis("noise", scale="log"), tuple(series)
    )
