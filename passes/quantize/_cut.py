"""Which kernels to compute with integers, so that all of them and the quantizers in between take least time.

Each kernel costs its time as integers or as float; a tensor that a float kernel makes and an integer kernel
reads costs a QuantizeLinear, one that goes the other way a DequantizeLinear, once each however many read it.
That is a cut through a graph with the integer kernels on one side and the float kernels on the other, and the
cheapest one is a minimum cut, exact in polynomial time.

Source: Greig, Porteous and Seheult, "Exact Maximum A Posteriori Estimation for Binary Images", JRSS B 1989.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

_INTEGER, _FLOAT = 0, 1
"""The two ends of the graph that is cut."""


@dataclass(frozen=True)
class Kernel:
    """What a kernel costs in both forms."""

    as_integer: float
    as_float: float


@dataclass(frozen=True)
class Border:
    """A tensor between kernels, and what it costs to cross there."""

    maker: str | None
    """The kernel that makes it; ``None`` for what always is float."""
    readers: tuple[str, ...]
    """The kernels that read it, in whichever form they are."""
    read_as_float: bool
    """Whether something else reads it, which always is float."""
    quantize: float
    dequantize: float

    def dearer(self, factor: float) -> Border:
        """The same where it costs so many times as much."""
        return replace(self, quantize=factor * self.quantize, dequantize=factor * self.dequantize)


def cheapest(kernels: Mapping[str, Kernel], borders: Sequence[Border]) -> set[str]:
    """The kernels to compute with integers; where it makes no difference, float."""
    names = sorted(kernels)
    place = {name: at + 2 for at, name in enumerate(names)}
    flow = _Flow(len(names) + 2 + 2 * len(borders))
    for name in names:
        flow.pay(place[name], _FLOAT, kernels[name].as_integer)
        flow.pay(_INTEGER, place[name], kernels[name].as_float)
    for at, border in enumerate(borders):
        maker = _FLOAT if border.maker is None else place[border.maker]
        wanted, spared = len(names) + 2 + 2 * at, len(names) + 3 + 2 * at
        for reader in border.readers:
            flow.pay(place[reader], wanted, math.inf)
            flow.pay(spared, place[reader], math.inf)
        flow.pay(wanted, maker, border.quantize)
        if border.maker is not None:
            flow.pay(maker, _FLOAT if border.read_as_float else spared, border.dequantize)
    reached = flow.saturate()
    return {name for name in names if reached[place[name]] >= 0}


class _Flow:
    """The greatest flow from integer to float through pipes as wide as the costs: what it fills is the cut.

    Source: Dinic, "Algorithm for Solution of a Problem of Maximum Flow in Networks with Power Estimation", 1970.
    """

    def __init__(self, size: int) -> None:
        self._room: list[dict[int, float]] = [{} for _ in range(size)]
        self._whole = 0.0

    def pay(self, a: int, b: int, cost: float) -> None:
        """Let it cost so much to have ``a`` among the integers and ``b`` not."""
        if cost > 0 and a != b:
            self._room[a][b] = self._room[a].get(b, 0.0) + cost
            self._room[b].setdefault(a, 0.0)
            self._whole += cost if math.isfinite(cost) else 0.0

    def saturate(self) -> list[int]:
        """Let all flow that can; returns how far each place is from integer through what has room, -1 if cut off."""
        least = 1e-12 * self._whole  # less than that is what rounding leaves
        while (depth := self._depths(least))[_FLOAT] >= 0:
            ways = [list(room) for room in self._room]
            while self._push(depth, ways, least):
                pass
        return depth

    def _depths(self, least: float) -> list[int]:
        depth = [-1] * len(self._room)
        depth[_INTEGER] = 0
        queue = [_INTEGER]
        for a in queue:  # which grows meanwhile
            for b, room in self._room[a].items():
                if depth[b] < 0 and room > least:
                    depth[b] = depth[a] + 1
                    queue.append(b)
        return depth

    def _push(self, depth: list[int], ways: list[list[int]], least: float) -> bool:
        """Fill one shortest way to float, if there is one left among ``ways``; those that lead nowhere are dropped."""
        path = [_INTEGER]
        while path[-1] != _FLOAT:
            a = path[-1]
            while ways[a] and not (depth[ways[a][-1]] == depth[a] + 1 and self._room[a][ways[a][-1]] > least):
                ways[a].pop()
            if ways[a]:
                path.append(ways[a][-1])
                continue
            path.pop()
            if not path:
                return False
            ways[path[-1]].pop()
        pairs = list(pairwise(path))
        amount = min(self._room[a][b] for a, b in pairs)
        for a, b in pairs:
            self._room[a][b] -= amount
            self._room[b][a] += amount
        return True
