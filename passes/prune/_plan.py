"""How many channels each group keeps, and what the model costs then.

Weights and products shrink by the product of what is left of their axes, so parameters and multiply–accumulates of a
pruned model are told from those of the whole one without building it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.channels import Group
from onnxopt.graph import Editor, constant_tensor
from onnxopt.macs import count_macs

Array = np.ndarray[Any, Any]

_NEARLY = 1e-3
"""A share that was searched for is right to so much of a channel."""
_STEPS = 24
"""How often the share of channels is halved towards the target."""
_ROUNDING = 1e-9
"""Of a cost, what tells nothing: ratios are not exact in binary."""


@dataclass(frozen=True, eq=False)
class Costs:
    """What a model costs, as a function of the channels that its groups keep."""

    parameters: Callable[[Mapping[int, int]], float]
    macs: Callable[[Mapping[int, int]], float]


def costs(editor: Editor, groups: Sequence[Group]) -> Costs:
    """The costs of the model under edit."""
    sizes = {group.number: group.size for group in groups}
    constants: dict[ir.Value, dict[int, list[tuple[int, int]]]] = {}  # axis → (group, slices a channel)
    computed: dict[ir.Value, dict[int, list[tuple[int, int]]]] = {}
    for group in groups:
        for member in group.members:
            axes = constants.setdefault(member.value, {})
            axes.setdefault(member.axis, []).append((group.number, member.index.shape[1]))
        for value, axis, index in group.outputs:
            computed.setdefault(value, {}).setdefault(axis, []).append((group.number, index.shape[1]))

    def left(axes: Mapping[int, Sequence[tuple[int, int]]], shape: Sequence[Any], kept: Mapping[int, int]) -> float:
        """The share of the elements of a tensor that is left."""
        share = 1.0
        for axis, parts in axes.items():
            gone = sum(k * (sizes[number] - kept.get(number, sizes[number])) for number, k in parts)
            share *= 1 - gone / shape[axis] if isinstance(shape[axis], int) else 1.0
        return share

    weights = {v: tuple(t.shape.numpy()) for v in constants if (t := constant_tensor(v)) is not None}
    whole = sum(
        math.prod(tensor.shape.numpy())
        for graph in editor.graphs()
        for tensor in (v.const_value for v in graph.initializers.values())
        if tensor is not None and tensor.dtype.is_floating_point()
    )

    def parameters(kept: Mapping[int, int]) -> float:
        return whole - sum(math.prod(s) * (1 - left(constants[v], s, kept)) for v, s in weights.items())

    by_output = count_macs(editor.model).by_output
    products: list[tuple[int, list[tuple[Mapping[int, Sequence[tuple[int, int]]], Sequence[Any]]]]] = []
    for graph in editor.graphs():
        for node in graph:
            count = by_output.get(node.outputs[0].name or "", 0) if node.outputs else 0
            if count:
                products.append((count, _shares(node, constants, computed, weights, editor)))

    def macs(kept: Mapping[int, int]) -> float:
        return sum(count * math.prod(left(axes, shape, kept) for axes, shape in parts) for count, parts in products)

    return Costs(parameters, macs)


def _shares(
    node: ir.Node, constants: Mapping[ir.Value, Any], computed: Mapping[ir.Value, Any],
    weights: Mapping[ir.Value, tuple[int, ...]], editor: Editor,
) -> list[tuple[Any, Sequence[Any]]]:  # fmt: skip
    """The axes whose shares the work of a node is proportional to: those of its weight, or of its operands."""
    own = [value for value in node.inputs if value is not None and len(weights.get(value, ())) > 1]
    if own:
        largest = max(own, key=lambda value: int(np.prod(weights[value])))
        return [(constants[largest], weights[largest])]
    output, operand = node.outputs[0], node.inputs[0]
    found: list[tuple[Any, Sequence[Any]]] = [(computed.get(output, {}), editor.shape(output) or ())]
    if operand is not None and (shape := editor.shape(operand)) is not None:
        summed = {axis: parts for axis, parts in computed.get(operand, {}).items() if axis == len(shape) - 1}
        found.append((summed, shape))
    return found


@dataclass(frozen=True)
class Limits:
    """What a group may shrink to."""

    multiple: int = 1
    """The number of channels that is left is a multiple of this."""
    least: int = 1


def rounded(count: int, size: int, limits: Limits) -> int:
    """The number of channels nearest to ``count`` that the limits allow; ``size`` if they allow no smaller one."""
    near = max(1, round(count / limits.multiple)) * limits.multiple
    while near < limits.least:
        near += limits.multiple
    return min(near, size)


def layers(groups: Sequence[Group]) -> list[list[int]]:
    """The numbers of the groups, together those whose channels the same weights make: the parts of one layer."""
    found: list[tuple[set[tuple[ir.Value, int]], list[int]]] = []
    for group in groups:
        made = {(m.value, m.axis) for m in group.members if m.role == "out" and len(m.value.shape or ()) > 1}
        numbers = [group.number]
        apart = []
        for axes, others in found:
            if axes & made:
                made, numbers = made | axes, others + numbers
            else:
                apart.append((axes, others))
        found = [*apart, (made, numbers)]
    return [sorted(numbers) for _, numbers in found]


def kept_counts(
    scores: Mapping[int, Array], share: float, limits: Mapping[int, Limits], together: Sequence[Sequence[int]]
) -> dict[int, int]:
    """How many channels each group keeps when ``share`` of them is removed.

    Of groups that are ranked ``together`` those channels go that have the lowest scores of all.
    """
    found: dict[int, int] = {}
    for numbers in together:
        everything = np.concatenate([scores[n] for n in numbers])
        kept = int(len(everything) * (1 - share) + _NEARLY)
        order = np.argsort(everything, kind="stable")
        stays = np.ones(len(everything), dtype=bool)
        stays[order[: len(everything) - kept]] = False
        parts = np.split(stays, np.cumsum([len(scores[n]) for n in numbers])[:-1])
        found.update(
            (n, rounded(int(part.sum()), len(part), limits[n])) for n, part in zip(numbers, parts, strict=True)
        )
    return found


def reaches(cost: float, target: float) -> bool:
    """Whether a cost is at most the target, up to rounding."""
    return cost <= target * (1 + _ROUNDING)


def cheapest(
    scores: Mapping[int, Array],
    kept: Mapping[int, int],
    limits: Mapping[int, Limits],
    cost: Callable[[Mapping[int, int]], float],
    target: float,
) -> dict[int, int]:
    """How many channels each group keeps when, from those ``kept`` on, always the step is taken that loses the least
    score for what it saves, until the cost is at most ``target`` or nothing is left to take.

    ``scores`` name the groups that may shrink. A step goes to the next number of channels that the limits allow.
    What a step saves only falls as other groups shrink, so that a price which is still the lowest when it is asked for
    anew is the lowest of all.
    """
    current = dict(kept)
    lost = {n: np.concatenate([[0.0], np.cumsum(np.sort(each))]) for n, each in scores.items()}

    def price(number: int) -> tuple[float, int]:
        count, size = current[number], len(scores[number])
        multiple = limits[number].multiple
        after = (count - 1) // multiple * multiple
        if after < max(limits[number].least, 1):
            return math.inf, count
        saved = cost(current) - cost({**current, number: after})
        harm = float(lost[number][size - after] - lost[number][size - count])
        return (harm / saved if saved > 0 else math.inf), after

    heap = [(price(number)[0], number) for number in scores]
    heapq.heapify(heap)
    while heap and not reaches(cost(current), target):
        _, number = heapq.heappop(heap)
        now, after = price(number)
        if heap and (now, number) > heap[0]:
            heapq.heappush(heap, (now, number))
        elif now < math.inf:
            current[number] = after
            heapq.heappush(heap, (price(number)[0], number))
    return current


def share_for(target: float, cost: Callable[[float], float]) -> float:
    """The least share of channels to remove so that the cost is at most ``target``; 1 if none is enough.

    ``cost`` falls with the share.
    """
    low, high = 0.0, 1.0
    if not reaches(cost(high), target):
        return high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if reaches(cost(middle), target) else (middle, high)
    return high
