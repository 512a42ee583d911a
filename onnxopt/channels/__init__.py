"""Channels: which slices of which tensors have to go together.

Structured pruning removes a channel for good: the filter that makes it, its bias, its entries in a normalization,
and the weights of all layers that read it. What goes together reaches through additions, concatenations, reshapes
and shared weights. ``ChannelGraph`` finds it once for all: each operator has a rule that says which slices of its
inputs and outputs are the same, and a channel is all slices that are tied by these, directly or through others.
A channel is the least that can be removed by itself, and any set of channels can be removed together.

What no rule can follow is frozen, with the reason; nothing is guessed.

Source: Fang, Ma, Song, Mi and Wang, "DepGraph: Towards Any Structural Pruning", CVPR 2023. There the closure is
searched anew for each set of channels; here every slice has a number, and the components of the graph of ties are
the channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.channels._axes import Axes, Axis, Fixed, Keep, Slices, Unit, slices_of
from onnxopt.channels._dims import learn_dims
from onnxopt.channels._record import Left, Record, kept, left
from onnxopt.channels._walk import walk
from onnxopt.errors import OptionError
from onnxopt.graph import Editor, constant_tensor, label
from onnxopt.shapes import Facts

__all__ = ["ChannelGraph", "Group", "Left", "Member", "Slices", "Unit", "kept", "left"]

_OUTPUT = "it is an axis of the output {!r}"


@dataclass(frozen=True, eq=False)
class Member:
    """An axis of a constant along which there are channels of a group."""

    value: ir.Value
    axis: int
    role: Literal["out", "in"]
    """``out``: its slices make the channel or go with it, like filters, biases and the scale of a normalization;
    ``in``: its slices read the channel."""
    nodes: tuple[ir.Node, ...]
    """Who reads the constant."""
    index: Slices
    """(channels × k): the places along the axis that belong to each channel."""


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that have slices in the same axes of the same constants."""

    number: int
    size: int
    """How many channels there are."""
    members: tuple[Member, ...]
    outputs: tuple[tuple[ir.Value, int, Slices], ...]
    """Where the channels are computed: value, axis, and the places (channels × k) along it."""
    frozen: tuple[str, ...]
    """Why none of them can be removed; empty if they can."""
    exact: bool
    """Whether a channel has no part in what is computed of the others, so that removing it is the same as reading
    zeros in its place; where a normalization takes statistics over channels, it is not."""
    heads: bool = False
    """Whether the channels are heads: products of activations, as in an attention, are taken one by one."""

    @property
    def makers(self) -> tuple[ir.Node, ...]:
        """The nodes whose weights (of two axes or more) make the channels; none where nothing does."""
        made = [n for m in self.members if m.role == "out" and len(m.value.shape or ()) > 1 for n in m.nodes]
        return tuple(dict.fromkeys(made))

    @property
    def name(self) -> str:
        """How reports and filters call the group: the first node that makes its channels, or reads a constant."""
        return label((*self.makers, *(node for member in self.members for node in member.nodes))[0])


class ChannelGraph:
    """The channels of a model, and how to remove some of them."""

    def __init__(self, editor: Editor, unit: Unit = "channel") -> None:
        """Analyse the model under edit.

        ``unit``: where a Reshape splits channels into heads, whether a channel of each head goes or a whole head.
        """
        self._editor = editor
        learn_dims(editor)
        choices: dict[ir.Node, int] = {}
        whys: dict[ir.Node, dict[str, None]] = {}
        while True:
            self._axes = axes = Axes(editor, unit, choices)
            walk(editor.model.graph, axes)
            for value in editor.model.graph.outputs:
                axes.freeze_all([value], _OUTPUT.format(value.name))
            for value, why in axes.numbers.items():
                for axis in axes.computed.get(value) or axes.constants.get(value) or ():
                    axes.freeze(axis, why)
            self._channel = _components(axes)
            """By slice, its channel."""
            self._is_frozen = np.zeros(len(self._channel), dtype=bool)
            self._freeze_unmet()
            for slices, _ in axes.frozen:
                self._is_frozen[self._channel[slices]] = True
            for node, why in self._stuck_heads().items():
                whys.setdefault(node, {})[why] = None
            # where nothing can be removed the way a node was read, another way may do
            stuck = [n for n, (_, slices) in axes.options.items() if self._is_frozen[self._channel[slices]].all()]
            retried = [node for node in stuck if choices.get(node, 0) + 1 < axes.options[node][0]]
            if not retried:
                break
            for node in retried:
                choices[node] = choices.get(node, 0) + 1
        self.stuck_heads: Mapping[ir.Node, tuple[str, ...]] = {n: tuple(whys[n]) for n in self._stuck_heads()}
        """Products of activations that have no axis of heads of which any could be removed, and why."""
        self.groups = self._groups()

    def remove(self, removed: Mapping[int, Iterable[int]]) -> None:
        """Remove channels (by number of the group, 0 to its size) from the model; afterwards this object is spent.

        Raises ``OptionError`` if a group is frozen or would be left empty.
        """
        gone = np.zeros(len(self._channel), dtype=bool)
        for number, channels in removed.items():
            if not 0 <= number < len(self.groups):
                raise OptionError(f"there is no group {number}: they are 0 to {len(self.groups) - 1}")
            group, chosen = self.groups[number], sorted(set(channels))
            if chosen and group.frozen:
                raise OptionError(f"no channel of group {number} can be removed: {group.frozen[0]}")
            if chosen and not 0 <= chosen[0] <= chosen[-1] < group.size:
                raise OptionError(f"group {number} has channels 0 to {group.size - 1}, not {chosen[0]} to {chosen[-1]}")
            gone[self._numbers[number][np.array(chosen, dtype=np.int64)]] = True
        if not gone.any():
            return

        def keep(slices: Slices) -> npt.NDArray[np.bool_]:
            """Which of these slices stay."""
            return ~gone[self._channel[slices]]

        for value, found in [*self._axes.constants.items(), *self._axes.computed.items()]:
            for axis in found:
                if isinstance(axis, np.ndarray) and axis.size and not keep(axis).any():
                    raise OptionError(f"nothing would be left of an axis of {value.name!r}: keep one of its channels")
        for removal in self._axes.removals:
            removal(keep)
        record = Record(self._editor.model)
        for value, found in self._axes.constants.items():
            masks = {at: keep(axis) for at, axis in enumerate(found) if isinstance(axis, np.ndarray)}
            masks = {at: mask for at, mask in masks.items() if not mask.all()}
            if masks:
                _cut(value, masks, self._editor)
                record.constant(value, masks)
        for value, found in self._axes.computed.items():
            _declare(value, found, keep)
            record.computed(value, found, keep)
        record.write()
        self._editor.facts = Facts(self._editor.model)

    def _freeze_unmet(self) -> None:
        """Freeze what is neither tied to anything nor computed: no rule has said what it is."""
        axes = self._axes
        met = np.zeros(len(self._channel), dtype=bool)
        for tie in axes.ties:
            for side in tie:
                met[side] = True
        for found in axes.computed.values():
            for axis in found:
                if isinstance(axis, np.ndarray):
                    met[axis] = True
        for slices, _ in axes.frozen:
            met[slices] = True
        for found in axes.constants.values():
            for axis in found:
                if isinstance(axis, np.ndarray) and not met[axis].all():
                    axes.freeze(axis, "nothing says what goes with it")

    def _stuck_heads(self) -> dict[ir.Node, str]:
        found: dict[ir.Node, str] = {}
        free: set[ir.Node] = set()
        reason = np.full(len(self._channel), -1, dtype=np.int64)
        for at, (slices, _) in reversed(list(enumerate(self._axes.frozen))):
            reason[self._channel[slices]] = at
        for node, axis in self._axes.heads:
            at = -1 if isinstance(axis, Fixed) else int(reason[self._channel[axis]].min())
            if isinstance(axis, Fixed):
                found[node] = axis.why
            elif at < 0:
                free.add(node)
            else:
                found[node] = self._axes.frozen[at][1]
        return {node: why for node, why in found.items() if node not in free}

    # -- channels to groups ------------------------------------------------------------------------------

    def _groups(self) -> tuple[Group, ...]:
        """The groups in the order in which their constants are met."""
        axes = self._axes
        under_windows = {int(slices[0]) for slices in axes.places}
        places = [(v, at, axis) for v, found in axes.constants.items() for at, axis in enumerate(found)
                  if isinstance(axis, np.ndarray) and axis[0] not in under_windows]  # fmt: skip
        signatures: dict[int, list[int]] = {}
        for number, slices in enumerate([*(slices for _, _, slices in places), *axes.pieces]):
            for channel in self._channel[slices].tolist():
                if number < len(places) or channel in signatures:
                    signatures.setdefault(channel, []).append(number)
        by_signature: dict[tuple[bool, tuple[int, ...]], list[int]] = {}
        for channel, met in signatures.items():
            by_signature.setdefault((bool(self._is_frozen[channel]), tuple(met)), []).append(channel)
        self._numbers = [np.array(sorted(channels), dtype=np.int64) for channels in by_signature.values()]
        finder = _Finder(self._channel, self._numbers)
        outputs = self._outputs(finder)
        why = self._whys(finder)
        blurred = {number for slices in axes.inexact for number in finder.groups(slices)}
        heads = {n for _, axis in axes.heads if not isinstance(axis, Fixed) for n in finder.groups(axis)}
        reads = np.zeros(len(self._channel), dtype=bool)
        for slices in axes.readers:
            reads[slices] = True
        found = []
        for number, (_, signature) in enumerate(by_signature):
            members = tuple(
                Member(value, at, "in" if reads[axis[0]] else "out", _readers(value), finder.places(axis)[number])
                for value, at, axis in (places[p] for p in dict.fromkeys(signature) if p < len(places))
            )
            size, reasons = len(self._numbers[number]), why.get(number, ())
            if not reasons and size == 1:
                reasons = ("all its slices go together, and nothing would be left",)
            exact, is_heads = number not in blurred, number in heads
            found.append(Group(number, size, members, outputs.get(number, ()), reasons, exact, is_heads))
        return tuple(found)

    def _outputs(self, finder: _Finder) -> dict[int, tuple[tuple[ir.Value, int, Slices], ...]]:
        found: dict[int, list[tuple[ir.Value, int, Slices]]] = {}
        for value, shape in self._axes.computed.items():
            for at, axis in enumerate(shape):
                if isinstance(axis, np.ndarray) and value.producer() is not None and value.name:
                    for number, index in finder.places(axis).items():
                        found.setdefault(number, []).append((value, at, index))
        return {number: tuple(each) for number, each in found.items()}

    def _whys(self, finder: _Finder) -> dict[int, tuple[str, ...]]:
        found: dict[int, dict[str, None]] = {}
        for slices, why in self._axes.frozen:
            for number in finder.groups(slices):
                found.setdefault(number, {})[why] = None
        return {number: tuple(whys) for number, whys in found.items()}


class _Finder:
    """Finds the channels of groups among slices."""

    def __init__(self, channel: Slices, numbers: Sequence[Slices]) -> None:
        """``channel``: by slice, its channel; ``numbers``: the channels of each group."""
        self._channel, self._sizes = channel, [len(channels) for channels in numbers]
        self._group, self._rank = (np.full(len(channel), -1, dtype=np.int64) for _ in range(2))
        for number, channels in enumerate(numbers):
            self._group[channels] = number
            self._rank[channels] = np.arange(len(channels))
        self._known: dict[int, dict[int, Slices]] = {}

    def groups(self, slices: Slices) -> list[int]:
        """The groups that these slices belong to."""
        found: list[int] = np.unique(self._group[self._channel[slices]]).tolist()
        return [number for number in found if number >= 0]

    def places(self, axis: Slices) -> dict[int, Slices]:
        """By group, where along an axis its channels are (channels × k), if all are there equally often."""
        found = self._known.get(id(axis))  # values that have the same slices share the array, which stays alive
        if found is None:
            found = self._known[id(axis)] = self._places(axis)
        return found

    def _places(self, axis: Slices) -> dict[int, Slices]:
        channel = self._channel[axis]
        group, rank = self._group[channel], self._rank[channel]
        order = np.lexsort((rank, group))
        ends = np.flatnonzero(np.diff(group[order], append=-2)) + 1
        found = {}
        for at in np.split(order, ends[:-1]):
            if not len(at) or (number := int(group[at[0]])) < 0:
                continue
            if len(at) % (size := self._sizes[number]) == 0:
                index = at.reshape(size, -1)
                if (rank[index] == np.arange(size)[:, None]).all():
                    found[number] = index
        return found


def _components(axes: Axes) -> Slices:
    """By slice, the least number of those that are tied to it."""
    channel = np.arange(axes.count, dtype=np.int64)
    if not axes.ties:
        return channel
    a, b = (np.concatenate(side) for side in zip(*axes.ties, strict=True))
    while True:
        # hook the larger root under the smaller one, then let every slice point to its root
        low, high = np.minimum(channel[a], channel[b]), np.maximum(channel[a], channel[b])
        open_ = low != high
        if not open_.any():
            return channel
        a, b = a[open_], b[open_]
        np.minimum.at(channel, high[open_], low[open_])
        while not np.array_equal(channel, jumped := channel[channel]):
            channel = jumped


def _readers(value: ir.Value) -> tuple[ir.Node, ...]:
    return tuple(dict.fromkeys(use.node for use in value.uses()))


def _cut(value: ir.Value, masks: Mapping[int, npt.NDArray[np.bool_]], editor: Editor) -> None:
    """Take slices out of a constant."""
    tensor = constant_tensor(value)
    assert tensor is not None
    array = tensor.numpy()
    for axis, mask in masks.items():
        array = np.compress(mask, array, axis)
    cut = ir.Tensor(np.ascontiguousarray(array), dtype=tensor.dtype, name=tensor.name, doc_string=tensor.doc_string)
    producer = value.producer()
    if producer is None:
        value.shape = ir.Shape(array.shape)
        value.const_value = cut
    else:
        producer.attributes.clear()
        producer.attributes["value"] = ir.AttrTensor("value", cut)
        value.shape = ir.Shape(array.shape) if value.shape is not None else None


def _declare(value: ir.Value, found: Sequence[Axis], keep: Keep) -> None:
    """Let the declared shape of a value say what is left of its axes."""
    if value.shape is None or len(value.shape) != len(found):
        return
    dims: list[int | ir.SymbolicDim | None] = list(value.shape)
    for at, axis in enumerate(found):
        mask = keep(slices_of(axis))
        if isinstance(dims[at], int) and not mask.all():
            dims[at] = None if isinstance(axis, Fixed) else int(mask.sum())
    value.shape = ir.Shape(dims)  # a new one: shapes of a model that was read are frozen
