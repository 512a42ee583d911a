"""Which form each layer gets, so that all together cost no more than is allowed and do the least damage.

Each layer has a few options, one of which is to be taken; costs and damages add up. That is a knapsack problem with
multiple choices, solved by dynamic programming over what is spent beyond the cheapest options. It is spent in steps, so
each layer may leave as much as a step unused.

Source: Dudziński and Walukiewicz, "Exact Methods for the Knapsack Problem and its Generalizations", European Journal of
Operational Research 1987.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_STEPS = 1 << 16
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Choices:
    """The options of one layer: what each costs, and what damage it does."""

    costs: tuple[float, ...]
    damages: tuple[float, ...]


def allocate(layers: Sequence[Choices], allowed: float) -> list[int] | None:
    """For each layer the number of its option, with least damage in all at a cost of at most ``allowed``; ``None`` if
    even the cheapest options cost more."""
    spare = allowed - sum(min(each.costs) for each in layers)
    if spare < 0:
        return None
    least = np.zeros(_STEPS + 1)  # the damage of the layers so far that is done with at most so many steps
    taken = []
    for each in layers:
        dearer = np.array(each.costs) - min(each.costs)
        steps = np.where(dearer > spare, _STEPS + 1, np.ceil(dearer / (spare or 1.0) * _STEPS - _ROUNDING)).astype(
            np.int64
        )
        before, least = least, np.full(_STEPS + 1, np.inf)
        option = np.zeros(_STEPS + 1, np.int64)
        for at, (needed, damage) in enumerate(zip(steps, each.damages, strict=True)):
            if needed <= _STEPS:
                found = before[: _STEPS + 1 - needed] + damage
                better = found < least[needed:]
                least[needed:][better] = found[better]
                option[needed:][better] = at
        taken.append((option, steps))
    chosen, left = [], _STEPS
    for option, steps in reversed(taken):
        chosen.append(int(option[left]))
        left -= int(steps[option[left]])
    return chosen[::-1]
