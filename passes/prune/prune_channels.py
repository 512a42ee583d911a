"""Remove whole channels: filters, neurons, hidden units, features of attention, and all that belongs to them.

The model gets smaller and faster by itself, on any runtime: what is removed is gone from every weight, bias and
normalization that it has a part in (see ``onnxopt.channels``). Which channels go is a matter of their importance
(see ``_importance``), and how many, of one of these: the same share of each layer (``scope=local``), or always those
next that are worth least for what they cost (``scope=global``). The share can be one of channels, of parameters, of
multiply–accumulates, or of the time that the model takes, as measured.

Kernels work on blocks of channels, and a model with 41 instead of 64 is often no faster, or even slower. So the
numbers that are left are rounded to what the kernels of ONNX Runtime want, and a model that gets slower is refused.

Afterwards run ``reconstruct``, which fits the layers that read the channels to what is left. With ``steps`` that is
done in between too: a part of the channels goes, layers are fitted anew, importance is found anew, and so on. With
``epochs`` each step, the last one too, is followed by training as well: layers are fitted, and then the whole is
distilled from the original, so that what the next step removes is chosen in a model that has recovered.

Sources: Fang, Ma, Song, Mi and Wang, "DepGraph: Towards Any Structural Pruning", CVPR 2023; Han, Pool, Tran and Dally,
"Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015 (steps with training between).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from onnxopt.channels import ChannelGraph, Group
from onnxopt.errors import DataError, OptionError
from onnxopt.pass_base import Context, Log, Note, Pass, Report
from onnxopt.passes.distill.distill import Distill
from onnxopt.passes.prune._importance import CRITERIA, Array, Criterion
from onnxopt.passes.prune._plan import Limits, cheapest, costs, kept_counts, layers, reaches, share_for
from onnxopt.passes.prune._rounding import wanted_multiple
from onnxopt.passes.prune._structured import (
    Chosen,
    check_ratios,
    cut,
    free_groups,
    is_slower,
    latency_without,
    own_shares,
    scores_of,
)
from onnxopt.passes.prune.reconstruct import Reconstruct

Measure = Literal["channels", "parameters", "macs", "latency"]

_MEASURES = ("channels", "parameters", "macs", "latency")
_MULTIPLES = (0, 8, 1)
"""What kernels want, and what is tried where that is too coarse."""
_TRIALS = 6
"""How many models are measured at most to find one that is fast enough."""


@dataclass(frozen=True, kw_only=True)
class PruneChannels(Pass):
    """Remove whole channels, and all that belongs to them."""

    name: ClassVar[str] = "prune-channels"
    exact: ClassVar[bool] = False

    ratio: float = 0.3
    """The share to remove, in (0, 1)."""
    of: Measure = "channels"
    """What ``ratio`` is a share of: ``channels``, ``parameters``, ``macs``, or ``latency``."""
    importance: Criterion | Literal["auto"] = "auto"
    """``l1``, ``l2``, ``activation``, ``reconstruction``, ``fpgm``, ``bn-scale``, ``random``; ``auto``:
    ``reconstruction`` where there are data, else ``l2``."""
    scope: Literal["local", "global"] = "local"
    """``local``: the same share of each layer; ``global``: always the channels next that are worth least for what they
    cost, whatever layer they are in."""
    ratios: tuple[tuple[str, float], ...] = ()
    """Groups with a share of channels of their own, ``[[glob, share], …]`` over the names and operators of the layers
    that make them; the first that matches counts. 0 leaves a group whole."""
    round_to: int = 0
    """The number of channels left is a multiple of this; 1: any number; 0: what the kernels want, or finer where the
    ratio cannot be reached so."""
    least: int = 1
    """The number of channels that every group keeps at least."""
    steps: int = 1
    """In how many steps: of each goes the same share of what the step before has left, and in between layers are fitted
    anew as by ``reconstruct``."""
    epochs: int = 0
    """After each step, layers are fitted anew and the model is trained for so many epochs as by ``distill``,"""
    batch: int = 64
    """on so many samples at a time,"""
    lr: float = 1e-3
    """at this learning rate at most."""
    timed: bool = True
    """Whether nothing is removed if the smaller model is slower on this machine."""
    seed: int = 0
    """Which channels are drawn at random."""

    def __post_init__(self) -> None:
        for option, allowed in (
            ("of", _MEASURES), ("importance", ("auto", *CRITERIA)), ("scope", ("local", "global"))
        ):  # fmt: skip
            if getattr(self, option) not in allowed:
                wanted = ", ".join(allowed)
                raise OptionError(f"{self.name}.{option} is one of {wanted}; got {getattr(self, option)!r}")
        check_ratios(self.name, self.ratio, self.ratios)
        for option, low in (("round_to", 0), ("least", 1), ("steps", 1), ("epochs", 0), ("seed", 0)):
            if getattr(self, option) < low:
                raise OptionError(f"{self.name}.{option} is a number from {low} on, got {getattr(self, option)}")

        if self.epochs:
            self._training()

    def run(self, context: Context) -> Report:
        if self.epochs and context.data is None:
            raise DataError(f"{self.name}.epochs needs samples to train on: give data= (--data)")
        if self.steps == 1 and not self.epochs:
            return self._prune(context)
        left = (1 - self.ratio) ** (1 / self.steps)
        own = tuple((glob, 1 - (1 - share) ** (1 / self.steps)) for glob, share in self.ratios)
        last = replace(self, steps=1, ratio=1 - left, ratios=own)
        changes: list[Note] = []
        refusals: list[Note] = []
        facts: list[Mapping[str, object]] = []
        for step in range(1, self.steps + 1):
            for report in self._step(context, last, is_last=step == self.steps):
                changes += report.changes
                refusals += report.refusals
                facts += [{"step": step, **fact} for fact in report.facts]
        return Report(self.name, tuple(changes), tuple(dict.fromkeys(refusals)), tuple(facts))

    def _step(self, context: Context, pass_: PruneChannels, *, is_last: bool) -> Iterator[Report]:
        if not is_last:  # what is not the end needs no numbers that kernels want
            pass_ = replace(pass_, round_to=1)
        pruned = pass_._prune(context, last=is_last)
        yield pruned
        if pruned.changed and (self.epochs or not is_last):
            yield Reconstruct(seed=self.seed).run(context)
        if pruned.changed and self.epochs:
            yield self._training().run(context)

    def _training(self) -> Distill:
        try:
            return Distill(epochs=self.epochs, batch=self.batch, lr=self.lr, seed=self.seed)
        except OptionError as error:
            raise OptionError(f"{self.name}.epochs: {error}") from None

    def _prune(self, context: Context, *, last: bool = True) -> Report:
        log = Log(self, context)
        graph = ChannelGraph(context.editor)
        groups = free_groups(graph.groups, self, context, log)
        own = own_shares(self.ratios, groups, log)
        scores = scores_of(self.name, groups, context, self.importance, self.seed)
        chosen = self._chosen(groups, own, scores, context, log) if groups else {}
        if chosen and not (last and self.timed and is_slower("channel", chosen, context, log)):
            cut(graph, chosen, scores, "channels", context, log)
        return log.report()

    def _chosen(
        self, groups: Sequence[Group], own: Mapping[int, float], scores: Mapping[int, Array], context: Context, log: Log
    ) -> Chosen:
        """The channels to remove. If the kernels' multiples are too coarse for the ratio, finer ones are tried."""
        *coarse, finest = _MULTIPLES if self.round_to == 0 else (self.round_to,)
        for multiple in coarse:
            try:
                return _Selection(replace(self, round_to=multiple), groups, own, scores, context).chosen(log)
            except _OutOfReach:
                continue
        return _Selection(replace(self, round_to=finest), groups, own, scores, context).chosen(log)


class _OutOfReach(OptionError):
    """With these multiples the ratio cannot be reached."""


class _Selection:
    """Which channels of these groups are to go."""

    def __init__(
        self,
        pass_: PruneChannels,
        groups: Sequence[Group],
        own: Mapping[int, float],
        scores: Mapping[int, Array],
        context: Context,
    ) -> None:
        self._pass, self._scores, self._context = pass_, scores, context
        self._groups = {group.number: group for group in groups}
        self._limits = {n: _limits(pass_, group) for n, group in self._groups.items()}
        self._free = {n: each for n, each in scores.items() if n not in own}
        self._layers = layers([group for group in groups if group.number not in own])
        self._start = {group.number: group.size for group in groups}
        for number, share in own.items():
            self._start |= kept_counts(scores, share, self._limits, [[number]])
        self._cost = _cost(pass_.of, groups, context)

    def chosen(self, log: Log) -> Chosen:
        """By number of the group, the channels to remove; groups that stay whole are logged."""
        pass_ = self._pass
        if pass_.of == "latency":
            kept = self._fast_enough()
        elif pass_.of == "channels":
            kept = self._kept(pass_.ratio)
        else:
            kept = self._within(pass_.ratio)
        for number, count in kept.items():
            size = self._groups[number].size
            if count == size and number in self._free:
                multiple = self._limits[number].multiple
                log.refused(self._groups[number].name, f"its {size} channels stay, in multiples of {multiple}")
        return {number: channels for number, channels in self._channels(kept).items() if channels}

    def _channels(self, kept: Mapping[int, int]) -> dict[int, list[int]]:
        order = {n: np.argsort(each, kind="stable").tolist() for n, each in self._scores.items()}
        return {n: sorted(order[n][: len(order[n]) - count]) for n, count in kept.items()}

    def _kept(self, share: float) -> dict[int, int]:
        """How many channels each group keeps when this share of the cost, or of each layer, is removed."""
        if self._pass.scope == "local":
            return self._start | kept_counts(self._free, share, self._limits, self._layers)
        target = self._cost({}) * (1 - share)
        return cheapest(self._free, self._start, self._limits, self._cost, target)

    def _within(self, ratio: float) -> dict[int, int]:
        """As few channels less as it takes to lower the cost by this share. Raises ``OptionError`` if none does."""
        pass_ = self._pass
        whole, least = self._cost({}), self._cost(self._kept(1.0))
        if not whole:
            raise OptionError(f"{pass_.name}.of {pass_.of}: the shapes that these follow from are not known")
        if not reaches(least, whole * (1 - ratio)):
            raise _OutOfReach(
                f"{pass_.name}.ratio {ratio} of {pass_.of} cannot be reached: at most {1 - least / whole:.1%} can be "
                f"removed with these groups, round_to and least"
            )
        if pass_.scope == "global":
            return self._kept(ratio)
        return self._kept(share_for(whole * (1 - ratio), lambda share: self._cost(self._kept(share))))

    def _fast_enough(self) -> dict[int, int]:
        """The fewest channels less that were found with which the model takes as little time as is wanted."""
        pass_ = self._pass
        low, high, best = 0.0, 1.0, self._kept(1.0)
        for step in range(_TRIALS):
            middle = (low + high) / 2 if step else 1.0
            kept = self._kept(middle)
            ratio = latency_without("channel", self._channels(kept), self._context)
            if ratio is None:
                raise OptionError(f"{pass_.name}.of latency needs inputs to measure with: give data= (--data)")
            if step == 0 and ratio > 1 - pass_.ratio:
                raise OptionError(
                    f"{pass_.name}.ratio {pass_.ratio} of latency cannot be reached: with the fewest channels the "
                    f"model still takes {ratio:.2f} times as long"
                )
            if ratio <= 1 - pass_.ratio:
                high, best = middle, kept
            else:
                low = middle
        return best


def _cost(of: Measure, groups: Sequence[Group], context: Context) -> Callable[[Mapping[int, int]], float]:
    """What the model costs with so many channels left of groups; time is taken to follow its arithmetic."""
    sizes = {group.number: group.size for group in groups}
    if of == "channels":
        return lambda kept: float(sum({**sizes, **kept}.values()))
    found = costs(context.editor, groups)
    return found.parameters if of == "parameters" else found.macs


def ranking(groups: Sequence[Group], context: Context) -> dict[int, Array]:
    """By number of the group, its channels from the least important on, as ``prune-channels`` would remove them."""
    scores = scores_of("prune-channels", groups, context, "auto", 0)
    return {n: np.argsort(each, kind="stable") for n, each in scores.items()}


def _limits(pass_: PruneChannels, group: Group) -> Limits:
    return Limits(pass_.round_to or wanted_multiple(group), pass_.least)
