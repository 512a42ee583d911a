"""How much each channel of a group is worth: what is removed first has the lowest score.

================== =====================================================================================
``l1``, ``l2``     mean over all weights of the group, and the scales of its normalizations, of the sum of ``|w|``,
                   ``w²`` of the channel's slices; filters of a depthwise convolution do not count: they say little
                   about a channel that a normalization scales behind them
``activation``     ``Σ σ²[c] · ‖w[c]‖²`` over the layers that read channel ``c``: how much of what they compute
                   varies with it, where ``σ²`` is its variance over the data; its mean can go into a bias
``reconstruction`` what the layers that read it lose even when they are fitted anew (see ``_elimination``)
``fpgm``           distance from the other filters of the layer: what is near the middle can be stood in for
``bn-scale``       ``|γ|`` of the normalizations of the group
``taylor``         how much the loss of labels moves without the channel, to first order (see ``_gradients``)
``hessian``        how much the outputs move without it, to second order; needs no labels (see ``_gradients``)
``random``         drawn: what a criterion is worth is seen against this
================== =====================================================================================

Sources: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (``l1``); Fang et al., "DepGraph: Towards Any
Structural Pruning", CVPR 2023 (means over a group); Liu et al., "Learning Efficient Convolutional Networks through
Network Slimming", ICCV 2017 (``bn-scale``); He et al., "Filter Pruning via Geometric Median", CVPR 2019 (``fpgm``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from onnxopt.channels import Group, Member
from onnxopt.graph import constant_tensor
from onnxopt.passes.prune._changes import is_depthwise
from onnxopt.stats import Statistics

Array = np.ndarray[Any, Any]
Criterion = Literal["l1", "l2", "activation", "reconstruction", "fpgm", "bn-scale", "taylor", "hessian", "random"]
CRITERIA = ("l1", "l2", "activation", "reconstruction", "fpgm", "bn-scale", "taylor", "hessian", "random")
BY_GRADIENT = ("taylor", "hessian")
BY_DATA = ("activation", "reconstruction", *BY_GRADIENT)


def importance(group: Group, criterion: Criterion, statistics: Statistics | None, rng: np.random.Generator) -> Array:
    """The score of each channel of ``group`` (float64 [channels], none below 0).

    Where the criterion has nothing to go by, as ``bn-scale`` in a group without normalization, ``l2`` stands in;
    ``activation`` does for ``reconstruction``, which cannot be told of one group alone.
    """
    if criterion == "random":
        return rng.random(group.size)
    rules: dict[str, Callable[[], Array | None]] = {
        "l1": lambda: _magnitude(group, 1),
        "activation": lambda: _activation(group, statistics),
        "reconstruction": lambda: _activation(group, statistics),
        "fpgm": lambda: _distance(group),
        "bn-scale": lambda: _mean([np.abs(slices(member)).mean(axis=1) for member in scales(group)]),
    }
    found = rules[criterion]() if criterion in rules else None
    if found is None:
        found = _magnitude(group, 2)
    return np.zeros(group.size) if found is None else found


def slices(member: Member) -> Array:
    """What the constant holds for each channel (float64, channels × elements)."""
    tensor = constant_tensor(member.value)
    assert tensor is not None
    return slices_of(tensor.numpy(), member)


def slices_of(array: Array, member: Member) -> Array:
    """The same of an array of its shape."""
    moved = np.moveaxis(array.astype(np.float64), member.axis, 0)
    return moved[member.index.reshape(-1)].reshape(len(member.index), -1)


def _weights(group: Group) -> list[Member]:
    """The members that mix channels: biases, and what scales each by itself, come and go with them."""
    return [member for member in group.members if len(member.value.shape or ()) > 1 and not _is_by_channel(member)]


def _is_by_channel(member: Member) -> bool:
    """Whether each of its slices is added to a channel, or multiplied with it, alone."""
    return all(node.op_type in ("Add", "Sub", "Sum", "Mul") or is_depthwise(node) for node in member.nodes)


def _magnitude(group: Group, power: int) -> Array | None:
    members = [*_weights(group), *scales(group)]
    return _mean([(np.abs(slices(member)) ** power).sum(axis=1) for member in members])


def _distance(group: Group) -> Array | None:
    filters = [slices(member) for member in _weights(group) if member.role == "out"]
    if not filters:
        return None
    rows = np.concatenate(filters, axis=1)
    squares = (rows**2).sum(axis=1)
    distances: Array = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * rows @ rows.T, 0.0))
    scores: Array = distances.sum(axis=1)
    return scores


def scales(group: Group) -> list[Member]:
    """The ``γ`` of normalizations over the channels, also of those that are written out: a factor for each channel."""
    wanted = ("BatchNormalization", "InstanceNormalization", "LayerNormalization")
    return [
        member
        for member in group.members
        if any(node.op_type in wanted and node.inputs[1] is member.value for node in member.nodes)
        or all(node.op_type == "Mul" for node in member.nodes)
    ]


def _mean(scores: Sequence[Array]) -> Array | None:
    mean: Array | None = np.mean(scores, axis=0) if scores else None
    return mean


def _activation(group: Group, statistics: Statistics | None) -> Array | None:
    if statistics is None:
        return None
    places = {value: (axis, index) for value, axis, index in group.outputs}
    total = np.zeros(group.size)
    read = [
        (member, value) for member in group.members if member.role == "in" for value in _data_inputs(member, places)
    ]
    for member, value in read:
        axis, index = places[value]
        variance = statistics.channels({value.name or "": axis}).get(value.name or "")
        if variance is None or variance.variance.size <= int(index.max()):
            return None
        norms = (slices(member) ** 2).sum(axis=1)
        total += variance.variance[index].mean(axis=1) * norms
    return total if read else None


def _data_inputs(member: Member, places: dict[ir.Value, Any]) -> list[ir.Value]:
    """The tensors of the group's channels that this weight is multiplied with."""
    return [value for node in member.nodes for value in node.inputs[:2] if value is not None and value in places]


def activations(groups: Sequence[Group]) -> dict[str, int]:
    """The tensors, with their channel axes, whose statistics ``activation`` reads of these groups."""
    found: dict[str, int] = {}
    for group in groups:
        places = {value: (axis, index) for value, axis, index in group.outputs}
        for member in group.members:
            for value in _data_inputs(member, places) if member.role == "in" else ():
                found[value.name or ""] = places[value][0]
    return found
