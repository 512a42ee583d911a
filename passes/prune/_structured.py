"""What all passes that remove whole channels share: which groups they may cut, what these are worth, and whether the
result pays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxopt import _cache
from onnxopt._version import VERSION
from onnxopt.channels import ChannelGraph, Group, Unit
from onnxopt.data import Dataset
from onnxopt.errors import DataError, GradientError, OptionError
from onnxopt.graph import Editor, label
from onnxopt.model import copy, slim_proto
from onnxopt.pass_base import Context, Log, Pass, Refuse
from onnxopt.passes.prune._elimination import elimination_scores
from onnxopt.passes.prune._gradients import gradient_scores
from onnxopt.passes.prune._importance import BY_DATA, BY_GRADIENT, Array, Criterion, activations, importance
from onnxopt.probes import find_probes
from onnxopt.runtime import Feeds, Ratio, Session, Snapshot, one_thread_ratio

Chosen = Mapping[int, Sequence[int]]
"""By number of the group, the channels to remove."""

PAYS = 1.02
"""A model that takes more than this times as long as before is slower, and not just measured so."""

_SECONDS = 0.7
_FORMAT = "1"
"""To be raised when scores are computed in another way."""


def check_ratios(pass_: str, ratio: float, ratios: Sequence[tuple[str, float]]) -> None:
    """Raise ``OptionError`` unless these are shares of channels to remove."""
    if not 0 < ratio < 1:
        raise OptionError(f"{pass_}.ratio is a share in (0, 1), got {ratio}")
    for glob, share in ratios:
        if not 0 <= share < 1:
            raise OptionError(f"{pass_}.ratios are shares in [0, 1); {glob!r} got {share}")


def free_groups(
    groups: Sequence[Group], pass_: Pass, context: Context, log: Log, noun: str = "channels"
) -> list[Group]:
    """The groups that may be cut; the reasons for the others that layers make are logged, where channels are called
    ``noun``."""
    found = []
    for group in groups:
        if not group.makers or not all(pass_.may_change(node, context) for node in group.makers):
            continue
        if group.frozen:
            log.refused(group.name, f"its {group.size} {noun} stay: {'; '.join(group.frozen[:3])}")
        else:
            found.append(group)
    if not found and not log.report().refusals:
        log.refused("model", f"no layer that may be changed has {noun} that can be removed")
    return found


def trial(model: ir.Model, unit: Unit, chosen: Chosen) -> ir.Model:
    """A copy of the model without these channels."""
    copied = copy(model)
    ChannelGraph(Editor(copied), unit).remove(chosen)
    return copied


def latency_without(unit: Unit, chosen: Chosen, context: Context) -> float | None:
    """How long the model takes without these channels, in units of what it takes now; ``None`` if there is nothing to
    run it on."""
    feeds = sample_feeds(context)
    model = context.editor.model
    return None if feeds is None else measured(model, trial(model, unit, chosen), feeds).best


def sample_feeds(context: Context) -> Feeds | None:
    """One sample to measure time on; ``None`` if there is none."""
    data = context.evaluation or context.data
    if data is not None:
        return data.one().feeds
    model = context.editor.model
    try:
        return find_probes(model, Session(Snapshot.of(model)), count=1)[0].feeds
    except DataError:
        return None


def measured(before: ir.Model, after: ir.Model, feeds: Feeds) -> Ratio:
    """How long ``after`` takes in units of ``before``, on one thread."""
    return one_thread_ratio(Snapshot.of(before), Snapshot.of(after), feeds, seconds=_SECONDS)


def own_shares(ratios: Sequence[tuple[str, float]], groups: Sequence[Group], log: Log) -> dict[int, float]:
    """By number of the group, the share that the first of ``ratios`` gives it whose glob matches one of its layers;
    globs that match none are logged."""
    names = {group.number: [name for node in group.makers for name in (label(node), node.op_type)] for group in groups}
    found: dict[int, float] = {}
    for glob, share in ratios:
        matched = [n for n, each in names.items() if any(fnmatchcase(name, glob) for name in each)]
        if not matched:
            log.refused("model", f"ratios: no group that may be pruned is called {glob!r}")
        for number in matched:
            found.setdefault(number, share)
    return found


def scores_of(
    pass_: str, groups: Sequence[Group], context: Context, criterion: Criterion | Literal["auto"], seed: int
) -> dict[int, Array]:
    """The importance of the channels of each group, comparable between groups; ``auto`` is ``reconstruction`` where
    there are data, else ``l2``. Raises ``OptionError`` if a criterion lacks data."""
    if criterion == "auto":
        criterion = "l2" if context.data is None else "reconstruction"
    if criterion in BY_DATA and context.data is None:
        raise OptionError(f"{pass_}.importance {criterion} needs calibration data: give data= (--data), or take l2")
    found: dict[int, Array] = {}
    if criterion in BY_GRADIENT and context.data is not None:
        try:
            found = gradient_scores(groups, criterion, context.editor.model, context.data, seed)
        except (Refuse, GradientError) as why:
            raise OptionError(f"{pass_}.importance {criterion} cannot be told: {why}") from why
    if criterion == "reconstruction" and context.data is not None:
        found = _elimination_scores(groups, context, context.data, seed)
    rest = [group for group in groups if group.number not in found]
    statistics = context.statistics() if criterion in ("activation", "reconstruction") and rest else None
    if statistics is not None:
        axes = activations(rest)
        statistics.channels({name: axis for name, axis in axes.items() if statistics.reachable(name) is None})
    rng = np.random.default_rng(seed)
    unit = float(np.median([scores.mean() for scores in found.values()])) if found else 1.0
    for group in rest:
        scores = importance(group, criterion, statistics, rng)
        found[group.number] = scores * unit / (scores.mean() or 1.0)
    return {group.number: found[group.number] for group in groups}


def _elimination_scores(groups: Sequence[Group], context: Context, data: Dataset, seed: int) -> dict[int, Array]:
    """From disk, if these groups of this model were looked at on these data before: it takes longest of all."""
    model = _cache.digest(*slim_proto(context.editor.model))
    numbers = [str(group.number) for group in groups]
    key = _cache.key(VERSION, _FORMAT, np.__version__, model, data.fingerprint, str(seed), *numbers)
    directory = _cache.user_directory() / "scores"
    if not (stored := _cache.read(directory, key)):
        found = elimination_scores(groups, context.editor, data, seed, context.on_progress)
        stored = {str(number): scores for number, scores in found.items()}
        _cache.write(directory, key, stored)
    return {int(number): scores for number, scores in stored.items()}


def is_slower(unit: Unit, chosen: Chosen, context: Context, log: Log) -> bool:
    """Whether the model takes longer without these channels, which is then logged."""
    ratio = latency_without(unit, chosen, context) if context.gate.is_open else None
    if ratio is None or ratio <= PAYS:
        return False
    log.refused("model", f"nothing is removed: the smaller model takes {ratio:.2f} times as long; try another ratio")
    return True


def cut(
    graph: ChannelGraph, chosen: Chosen, scores: Mapping[int, Array], noun: str, context: Context, log: Log
) -> None:
    """Remove these channels, which reports call ``noun``, as far as the gate allows."""
    done = {}
    for number, channels in chosen.items():
        if context.gate.closed:
            break
        done[number] = channels
        group, name, worth = graph.groups[number], graph.groups[number].name, scores[number]
        kept = group.size - len(channels)
        involved = dict.fromkeys(label(node) for member in group.members for node in member.nodes)
        others = [other for other in involved if other != name]
        log.changed(name, f"keeps {kept} of {group.size} {noun}" + (f", with {', '.join(others)}" if others else ""))
        lost = float(worth[list(channels)].sum() / (worth.sum() or 1.0))
        log.measured(**{"node": name, noun: group.size, "kept": kept, "lost": lost})
    graph.remove(done)
