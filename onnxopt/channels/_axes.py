"""What the rules of operators work on: for each axis of each value, which slices it has and what they go with.

Every slice of every axis of a constant has a number. A computed value that has the same slices, like the output of
Relu, carries the same numbers; where two axes meet, as in an addition, their numbers are tied, one by one. An axis
that nothing may be removed from is ``Fixed``, and ties with it freeze the other side. Numbers that are tied, directly
or through others, are one channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.graph import Editor, constant_tensor, label

Slices = npt.NDArray[np.int64]
Keep = Callable[[Slices], npt.NDArray[np.bool_]]
"""Which of these slices stay."""


@dataclass(frozen=True)
class Fixed:
    """An axis from which no slice can be removed, and why."""

    why: str


@dataclass(frozen=True, eq=False)
class Repeated(Fixed):
    """An axis whose size is not known, but that the same slices are repeated along it.

    So are the channels of a group under (groups, channels · places), and heads under (samples · heads). To a rule
    that does not know of these it is an axis from which nothing can be removed.
    """

    row: Slices
    outer: bool
    """Whether the whole row comes again and again."""
    inner: bool
    """Whether each of its slices comes several times in turn."""


Axis = Slices | Fixed

Unit = Literal["channel", "head"]
"""What goes first where a Reshape splits channels into heads: a channel of each head, or a whole head."""

SINGLE = Fixed("it has a single slice")
"""An axis of size 1: it fits to any other, and is never cut."""


class Unfollowed(Exception):
    """Raised by a rule that cannot say what becomes of the slices; the text is the reason."""


class Axes:
    """The slices of each axis of each value met so far."""

    def __init__(self, editor: Editor, unit: Unit, choices: Mapping[ir.Node, int]) -> None:
        """``choices``: which of several ways a node is to be read (see ``choose``); the first if it is not named."""
        self.editor, self.unit = editor, unit
        self.count = 0
        """How many slices there are."""
        self.constants: dict[ir.Value, list[Axis]] = {}
        """The axes of constants whose slices are looked at."""
        self.computed: dict[ir.Value, list[Axis]] = {}
        self.derived: set[ir.Value] = set()
        """What is computed of constants alone, such as transposed and dequantized weights."""
        self.ties: list[tuple[Slices, Slices]] = []
        self.frozen: list[tuple[Slices, str]] = []
        self.places: list[Slices] = []
        """Slices that are no channels, but the places under the window of a convolution."""
        self.readers: list[Slices] = []
        """Slices of weights that read a channel, while others make it."""
        self.inexact: list[Slices] = []
        """Slices whose number has a part in what is computed of the others."""
        self.removals: list[Callable[[Keep], None]] = []
        """What else is to be done when slices are removed, but for cutting the constants."""
        self.options: dict[ir.Node, tuple[int, Slices]] = {}
        """How many ways there are to read a node, and the slices that depend on which is taken."""
        self.pieces: list[Slices] = []
        """Parts of axes that must not be left empty, though no constant tells them from the rest."""
        self.heads: list[tuple[ir.Node, Axis]] = []
        """Axes along which products of two activations are taken one by one, as for the heads of an attention."""
        self.seen: set[ir.Value] = set()
        """What the rule at work has looked at."""
        self.numbers: dict[ir.Value, str] = {}
        """What nodes read without following its slices, such as shapes, and why nothing can be cut from it."""
        self._choices = choices

    # -- looking -----------------------------------------------------------------------------------------

    def of(self, value: ir.Value | None) -> list[Axis]:
        """The axes of ``value``. Raises ``Unfollowed`` if not even their number is known."""
        if value is None:
            raise Unfollowed("it lacks an input")
        self.seen.add(value)
        if value in self.computed:
            return self.computed[value]
        if value not in self.constants:
            tensor = constant_tensor(value)
            if tensor is None or tensor.dtype == ir.DataType.STRING:
                return self.fix(value, f"the input {value.name!r} has this axis")
            self.constants[value] = [self.fresh(int(size)) for size in tensor.shape.numpy()]
        return self.constants[value]

    def is_weight(self, value: ir.Value | None) -> bool:
        """Whether ``value`` is a constant, or computed of constants alone."""
        return value in self.derived or constant_tensor(value) is not None

    def fix(self, value: ir.Value, why: str) -> list[Axis]:
        """Note that no axis of ``value`` can be cut."""
        self.computed[value] = [SINGLE if dim == 1 else Fixed(why) for dim in self.dims(value)]
        return self.computed[value]

    def dims(self, value: ir.Value | None) -> tuple[int | str | None, ...]:
        """The dims of ``value``. Raises ``Unfollowed`` if their number is not known."""
        shape = self.editor.shape(value)
        if shape is None:
            raise Unfollowed(f"the shape of {value.name if value is not None else ''!r} is not known")
        return shape

    def fresh(self, size: int) -> Axis:
        """An axis with slices of its own."""
        if size == 1:
            return SINGLE
        self.count += size
        return np.arange(self.count - size, self.count, dtype=np.int64)

    # -- saying what goes together -----------------------------------------------------------------------

    def tie(self, *axes: Axis) -> Axis:
        """These axes have the same slices; returns one of them."""
        whole = [axis for axis in axes if axis is not SINGLE]
        rows = [axis for axis in whole if isinstance(axis, Repeated)]
        if rows and len(rows) == len(whole) and len({(len(r.row), r.outer, r.inner) for r in rows}) == 1:
            self.ties += [(rows[0].row, other.row) for other in rows[1:]]
            return rows[0]
        for each in rows:
            self.freeze(each, each.why)
        fixed = [axis for axis in whole if isinstance(axis, Fixed)]
        slices = [axis for axis in whole if not isinstance(axis, Fixed)]
        if fixed or not slices or any(len(axis) != len(slices[0]) for axis in slices):
            result = fixed[0] if fixed else Fixed("its sizes do not agree") if slices else SINGLE
            for axis in slices:
                self.freeze(axis, result.why)
            return result
        for axis in slices[1:]:
            if axis is not slices[0]:
                self.ties.append((slices[0], axis))
        return slices[0]

    def join(self, slices: Slices, along: int) -> Slices:
        """Tie the slices of an array that differ only in their place along ``along``; returns one of each."""
        first = np.take(slices, [0], along)
        self.ties.append((np.broadcast_to(first, slices.shape).reshape(-1), slices.reshape(-1)))
        return np.squeeze(first, along)

    def freeze(self, axis: Axis, why: str) -> None:
        """No slice of this axis can be removed."""
        slices = slices_of(axis)
        if slices.size:
            self.frozen.append((slices, why))

    def freeze_all(self, values: Iterable[ir.Value | None], why: str) -> None:
        """No slice of any axis of these values can be removed."""
        for value in values:
            if value is not None and (value in self.computed or self.editor.rank(value) is not None):
                for axis in self.of(value):
                    self.freeze(axis, why)

    def reads(self, axis: Axis) -> Axis:
        """Note that a weight reads channels along this axis of its own; returns the axis."""
        if not isinstance(axis, Fixed):
            self.readers.append(axis)
        return axis

    def blur(self, axis: Axis) -> None:
        """Note that what is computed of the other slices changes when some are removed."""
        self.inexact.append(slices_of(axis))

    def attends(self, node: ir.Node, axis: Axis) -> None:
        """Note that ``node`` multiplies activations, slice by slice of this axis."""
        self.heads.append((node, axis.row if isinstance(axis, Repeated) else axis))

    def choose(self, node: ir.Node, ways: int, slices: Slices) -> int:
        """Which of several ways to read ``node`` is to be taken, if that matters to ``slices``."""
        if ways > 1:
            self.options[node] = (ways, slices.reshape(-1))
        return self._choices.get(node, 0) % ways


def slices_of(axis: Axis) -> Slices:
    """All slices that are along an axis."""
    if isinstance(axis, Repeated):
        return axis.row
    return np.empty(0, dtype=np.int64) if isinstance(axis, Fixed) else axis.reshape(-1)


def ints(axes: Axes, node: ir.Node, at: int) -> list[int] | None:
    """The numbers of a constant vector that is the input ``at``; ``None`` if there is no such input.

    Raises ``Unfollowed`` if they are computed at run time.
    """
    value = node.inputs[at] if at < len(node.inputs) else None
    if value is None:
        return None
    array = axes.editor.constant(value)
    if array is None:
        raise Unfollowed(f"its input {value.name!r} is computed at run time")
    return [int(x) for x in array.reshape(-1)]


def follow_count(node: ir.Node, name: str, axis: Axis, axes: Axes) -> None:
    """The attribute ``name`` is the number of these slices."""
    if isinstance(axis, Fixed):
        return

    def update(keep: Keep) -> None:
        node.attributes[name] = ir.AttrInt64(name, int(keep(axis).sum()))

    axes.removals.append(update)


def positive(axis: int, rank: int) -> int:
    """An axis counted from the front."""
    return axis % rank if rank else axis


def said(node: ir.Node, why: str) -> str:
    """A reason that names the node."""
    return f"{node.op_type} {label(node)!r}: {why}"


def aligned(shapes: Sequence[list[Axis]]) -> list[list[Axis]]:
    """Axes of several operands that are broadcast, all with as many as the longest has."""
    rank = max(len(axes) for axes in shapes)
    return [[*[SINGLE] * (rank - len(axes)), *axes] for axes in shapes]
