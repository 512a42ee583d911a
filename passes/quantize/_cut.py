"""Which kernels to compute with integers, so that all of them and the quantizers in between take least time.

Each kernel costs its time as integers or as float; a tensor that a float kernel makes and an integer kernel
reads costs a QuantizeLinear, one that goes the other way a DequantizeLinear, once each however many read it.
That is a cut through a graph with the integer kernels on one side and the float kernels on the other, and the
cheapest one is a minimum cut, exact in polynomial time.

Source: Greig, Porteous and Seheult, "Exact Maximum A Posteriori Estimation for Binary Images", JRSS B 1989.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_NEVER = 1 << 29
_WHOLE = 1 << 27
"""The sum of all costs in whole numbers, which is what the flow is computed in."""


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


def cheapest(kernels: Mapping[str, Kernel], borders: Sequence[Border]) -> set[str]:
    """The kernels to compute with integers; where it makes no difference, float."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    names = sorted(kernels)
    place = {name: at + 2 for at, name in enumerate(names)}
    integer, float_ = 0, 1  # source and sink
    whole = sum(k.as_integer + k.as_float for k in kernels.values()) + sum(b.quantize + b.dequantize for b in borders)
    unit = max(whole, 1e-12) / _WHOLE
    edges: dict[tuple[int, int], int] = {}

    def pay(a: int, b: int, cost: float) -> None:
        """Let it cost so much to have ``a`` among the integers and ``b`` not."""
        if cost > 0:
            edges[a, b] = min(edges.get((a, b), 0) + (_NEVER if cost == np.inf else round(cost / unit)), _NEVER)

    for name in names:
        pay(place[name], float_, kernels[name].as_integer)
        pay(integer, place[name], kernels[name].as_float)
    count = len(names) + 2
    for border in borders:
        maker = float_ if border.maker is None else place[border.maker]
        wanted, spared, count = count, count + 1, count + 2
        for reader in border.readers:
            pay(place[reader], wanted, np.inf)
            pay(spared, place[reader], np.inf)
        pay(wanted, maker, border.quantize)
        if border.maker is not None:
            pay(maker, float_ if border.read_as_float else spared, border.dequantize)
    if not edges:
        return set()
    ends = np.array(list(edges)).T
    capacity = csr_array((np.array(list(edges.values()), dtype=np.int32), (ends[0], ends[1])), shape=(count, count))
    left = capacity - maximum_flow(capacity, integer, float_).flow
    left.data = np.maximum(left.data, 0)
    left.eliminate_zeros()
    reached = set(breadth_first_order(left, integer, return_predecessors=False).tolist())
    return {name for name in names if place[name] in reached}
