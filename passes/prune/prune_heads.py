"""Remove whole heads of attentions: their queries, keys and values, and the rows of the projection that reads them.

An attention of ``h`` heads computes ``Σ softmax(Q[i] K[i]ᵀ / √d) V[i] O[i]`` over its heads, so without one of them it
is the same sum with a term less. Nothing inside of the others changes, and the model gets faster by what the head
cost. Where several queries share a key, as in grouped-query attention, they go together with it.

Of each attention, or of the model (``scope=global``), the heads of the least importance go (see ``_importance``); each
attention keeps one at least. Afterwards run ``reconstruct``, which fits the projections to what is left.

``prune-channels`` removes features of all heads instead. That costs more: with half of what makes queries, keys and
values removed from a sentence encoder of 6 layers and 12 heads, as heads or as features, what was left was as fast, and
its outputs had 5.5 against 3.6 dB SQNR, with ``reconstruct`` 11.6 against 7.1.

Sources: Michel, Levy and Neubig, "Are Sixteen Heads Really Better than One?", NeurIPS 2019; Voita et al., "Analyzing
Multi-Head Self-Attention: Specialized Heads Do the Heavy Lifting, the Rest Can Be Pruned", ACL 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from onnxopt.channels import ChannelGraph, Group
from onnxopt.errors import OptionError
from onnxopt.graph import label
from onnxopt.pass_base import Context, Log, Pass, Report
from onnxopt.passes.prune._importance import Array
from onnxopt.passes.prune._plan import Limits, kept_counts
from onnxopt.passes.prune._structured import (
    Chosen,
    check_ratios,
    cut,
    free_groups,
    is_slower,
    own_shares,
    scores_of,
)

_CRITERIA = ("auto", "l2", "activation", "reconstruction", "random")


@dataclass(frozen=True, kw_only=True)
class PruneHeads(Pass):
    """Remove whole heads of attentions."""

    name: ClassVar[str] = "prune-heads"
    exact: ClassVar[bool] = False

    ratio: float = 0.25
    """The share of heads to remove, in (0, 1)."""
    importance: Literal["auto", "l2", "activation", "reconstruction", "random"] = "auto"
    """``l2``, ``activation``, ``reconstruction``, ``random``; ``auto``: ``reconstruction`` where there are data, else
    ``l2``."""
    scope: Literal["local", "global"] = "local"
    """``local``: the same share of each attention; ``global``: the least important heads of the model."""
    ratios: tuple[tuple[str, float], ...] = ()
    """Attentions with a share of heads of their own, ``[[glob, share], …]`` over the names and operators of the layers
    that make queries, keys and values; the first that matches counts. 0 leaves an attention whole."""
    seed: int = 0
    """Which heads are drawn at random."""

    def __post_init__(self) -> None:
        for option, allowed in (("importance", _CRITERIA), ("scope", ("local", "global"))):
            if getattr(self, option) not in allowed:
                wanted = ", ".join(allowed)
                raise OptionError(f"{self.name}.{option} is one of {wanted}; got {getattr(self, option)!r}")
        check_ratios(self.name, self.ratio, self.ratios)
        if self.seed < 0:
            raise OptionError(f"{self.name}.seed is a number from 0 on, got {self.seed}")

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        graph = ChannelGraph(context.editor, "head")
        for node, whys in graph.stuck_heads.items():
            if self.may_change(node, context):
                log.refused(label(node), f"its heads stay: {'; '.join(whys[:3])}")
        found = free_groups([group for group in graph.groups if group.heads], self, context, log, "heads")
        groups = {group.number: group for group in found}
        own = own_shares(self.ratios, found, log)
        scores = scores_of(self.name, found, context, self.importance, self.seed)
        chosen = self._chosen(groups, own, scores, log)
        if chosen and not is_slower("head", chosen, context, log):
            cut(graph, chosen, scores, "heads", context, log)
        return log.report()

    def _chosen(self, groups: dict[int, Group], own: dict[int, float], scores: dict[int, Array], log: Log) -> Chosen:
        """By number of the group, the heads to remove; attentions that stay whole are logged."""
        limits = dict.fromkeys(groups, Limits())
        rest = [number for number in groups if number not in own]
        together = [rest] if self.scope == "global" and rest else [[number] for number in rest]
        kept = kept_counts(scores, self.ratio, limits, together)
        for number, share in own.items():
            kept |= kept_counts(scores, share, limits, [[number]])
        chosen = {}
        for number, count in sorted(kept.items()):
            size = groups[number].size
            if count < size:
                chosen[number] = sorted(np.argsort(scores[number], kind="stable")[: size - count].tolist())
            elif own.get(number) != 0:
                log.refused(groups[number].name, f"its {size} heads stay: those of other attentions are worth less")
        return chosen
