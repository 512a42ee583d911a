"""What a layer can be split into, and what that costs, told from shapes alone.

A layer is seen as a convolution with a kernel (N × C × spatial axes), in each of its groups; a product of matrices has
no spatial axes. With ranks ``r`` it becomes, stage by stage,

=============  =======================================================================
svd            the whole kernel to r channels, then 1×1 to N
input-svd      1×1 to r channels, then the whole kernel to N
spatial-svd    the kernel's first axis to r channels, then its other axes to N
tucker         1×1 to r₁ channels, the whole kernel to r₂, 1×1 to N
cp             1×1 to r channels, each axis of the kernel by channel, 1×1 to N
separable      the whole kernel by channel, r times each, then 1×1 to N
=============  =======================================================================
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Method = Literal["svd", "input-svd", "spatial-svd", "tucker", "cp", "separable"]

_LARGEST = {"input-svd": 1 << 18, "spatial-svd": 1 << 20, "tucker": 1 << 18, "cp": 1 << 16}
"""Kernels with more weights take too long to fit, several seconds each."""
_STEPS = 24
"""About so many ranks are considered."""


@dataclass(frozen=True)
class Geometry:
    """What the arithmetic of a layer follows from."""

    kernel: tuple[int, ...]
    """The kernel of one group: N × C × spatial axes."""
    groups: int
    strides: tuple[int, ...]
    places: int
    """At how many places of its output it is computed; 1 if that is not known."""

    @property
    def stages(self) -> list[tuple[int, ...]]:
        """The layer as it is, as its only stage."""
        return [self.kernel]

    @property
    def weights(self) -> int:
        """How many weights an output has."""
        return math.prod(self.kernel[1:])


@dataclass(frozen=True)
class Form:
    """A way to split a layer."""

    method: Method
    ranks: tuple[int, ...]

    def __str__(self) -> str:
        ranks = " and ".join(map(str, self.ranks))
        return f"{self.method}, rank{'s' if len(self.ranks) > 1 else ''} {ranks}"

    def stages(self, geometry: Geometry) -> list[tuple[int, ...]]:
        """The kernels of the stages (out × in of a group × spatial axes)."""
        n, c, *k = geometry.kernel
        ones, r = (1,) * len(k), self.ranks[0]
        match self.method:
            case "svd":
                return [(r, c, *k), (n, r, *ones)]
            case "input-svd":
                return [(r, c, *ones), (n, r, *k)]
            case "spatial-svd":
                return [(r, c, k[0], *ones[1:]), (n, r, 1, *k[1:])]
            case "tucker":
                return [(r, c, *ones), (self.ranks[1], r, *k), (n, self.ranks[1], *ones)]
            case "cp":
                axes = [(r, 1, *ones[:a], k[a], *ones[a + 1 :]) for a in range(len(k)) if k[a] > 1]
                return [(r, c, *ones), *axes, (n, r, *ones)]
            case "separable":
                return [(c * r, 1, *k), (n, c * r, *ones)]


def carriers(stages: Sequence[tuple[int, ...]]) -> list[int]:
    """For each spatial axis the stage that strides, dilates and pads along it: the one whose kernel is longer than 1,
    else the first."""
    axes = range(2, len(stages[0]))
    return [next((at for at, shape in enumerate(stages) if shape[axis] > 1), 0) for axis in axes]


def parameters(stages: Sequence[tuple[int, ...]], geometry: Geometry) -> int:
    """The number of weights."""
    return geometry.groups * sum(math.prod(shape) for shape in stages)


def macs(stages: Sequence[tuple[int, ...]], geometry: Geometry) -> int:
    """Multiply–accumulates; what is computed before a stride is computed at more places."""
    carried = carriers(stages)
    total = 0
    for at, shape in enumerate(stages):
        more = math.prod(s for s, by in zip(geometry.strides, carried, strict=True) if by > at)
        total += math.prod(shape) * more
    return geometry.groups * geometry.places * total


def forms(method: Method, geometry: Geometry, multiple: int) -> Iterator[Form]:
    """The forms by this method with less arithmetic than the layer, from the smallest on; ranks are multiples of
    ``multiple``."""
    if not applies(method, geometry.kernel):
        return
    for ranks in _ranks(method, geometry, multiple):
        form = Form(method, ranks)
        stages = form.stages(geometry)
        if macs(stages, geometry) < macs(geometry.stages, geometry):
            yield form


def applies(method: Method, kernel: tuple[int, ...]) -> bool:
    """Whether a kernel (N × C × spatial axes) can be split by this method at all."""
    long = sum(size > 1 for size in kernel[2:])
    if math.prod(kernel) > _LARGEST.get(method, math.inf):
        return False
    if method == "svd":
        return min(kernel[:2]) > 1
    if method == "spatial-svd":
        return long > 1 and kernel[2] > 1
    return long > 0 and min(kernel[:2]) > 1


def full_rank(method: Method, geometry: Geometry) -> int:
    """The rank with which nothing is lost; of cp, for which none is known, one with which hardly anything is."""
    n, c, *k = geometry.kernel
    match method:
        case "svd":
            return min(c * math.prod(k), n)
        case "input-svd" | "tucker":
            return min(c, n * math.prod(k))
        case "spatial-svd":
            return min(c * k[0], n * math.prod(k[1:]))
        case "cp":
            return 2 * max(n, c)
        case "separable":
            return min(math.prod(k), n)


def _ranks(method: Method, geometry: Geometry, multiple: int) -> Iterator[tuple[int, ...]]:
    n, c = geometry.kernel[:2]
    if method == "tucker":
        for step in range(1, _STEPS):
            share = step / _STEPS
            yield _rounded(c * share, multiple, c), _rounded(n * share, multiple, n)
        return
    largest = full_rank(method, geometry)
    step = max(1, round(largest / multiple / _STEPS)) * multiple
    yield from ((rank,) for rank in range(step, largest, step))


def _rounded(count: float, multiple: int, most: int) -> int:
    return min(max(1, round(count / multiple)) * multiple, most)
