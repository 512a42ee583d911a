"""Which form each layer gets, so that all together cost no more than is allowed and do the least damage.

Each layer has a few options, one of which is to be taken; costs and damages add up. That is a knapsack problem with
multiple choices, solved exactly as an integer program (HiGHS).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Choices:
    """The options of one layer: what each costs, and what damage it does."""

    costs: tuple[float, ...]
    damages: tuple[float, ...]


def allocate(layers: Sequence[Choices], allowed: float) -> list[int] | None:
    """For each layer the number of its option, with least damage in all at a cost of at most ``allowed``; ``None`` if
    even the cheapest options cost more."""
    if sum(min(each.costs) for each in layers) > allowed:
        return None
    if not layers:
        return []
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    kept = [_sensible(each) for each in layers]
    owner = np.concatenate([np.full(len(each), at) for at, each in enumerate(kept)])
    costs = np.concatenate([np.take(each.costs, own) for each, own in zip(layers, kept, strict=True)])
    damages = np.concatenate([np.take(each.damages, own) for each, own in zip(layers, kept, strict=True)])
    unit, scale = max(allowed, 1e-300), max(float(damages.max()), 1e-300)
    one_each = csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    found = milp(
        damages / scale,
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint((costs / unit)[None], -np.inf, 1 + 1e-9)],
        integrality=np.ones(len(owner)),
        bounds=Bounds(0, 1),
    )
    assert found.x is not None  # the cheapest options are a solution
    return [int(own[np.argmax(found.x[owner == at])]) for at, own in enumerate(kept)]


def _sensible(each: Choices) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """The options of which no other costs as little and does less damage."""
    order = np.lexsort((each.damages, each.costs))
    best, kept = np.inf, []
    for at in order:
        if each.damages[at] < best:
            best = each.damages[at]
            kept.append(at)
    return np.array(kept)
