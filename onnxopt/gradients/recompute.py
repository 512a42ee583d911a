"""Memory for time: what the forward part computed is computed again where the backward part needs it.

The forward part is cut into segments. Only what is read behind the end of its segment is kept; the rest of what the
backward part reads is computed a second time from that, when the gradients come to the segment. With ``n`` layers
alike and about ``√n`` segments, ``√n`` values are kept and ``√n`` are there again at a time, for at most one more
forward pass. The last segment is not computed twice: its gradients come first.

A runtime merges nodes that compute the same, and may run early what depends on nothing late. So there are stops on the
way back: whatever is read behind a stop, gradients and values of the forward part, is read through a ``Reshape`` to the
shape that it has, plus zero times a number that everything made before the stop has a part in. To the runtime that is
another value, which cannot be had any earlier; nothing is copied. There is a stop where a segment is to be computed
again, and there are more of them behind nodes with gradients that are asked for: ONNX Runtime would make the gradients
of all values first and those of weights last, and hold all that they are made of.

Source: Chen, Xu, Zhang and Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from typing import Any

import onnx_ir as ir

from onnxopt.gradients.emit import Emitter
from onnxopt.graph import Editor, bodies

_DRAWN = frozenset(
    {"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
"""A second draw is another one."""
_BETWEEN = 1 / 6
"""Between two stops lies at least this share of what is in memory at most."""


def recompute(editor: Editor, emitter: Emitter, forward: Sequence[ir.Node]) -> None:
    """Let the backward part of a gradient graph, whose nodes ``emitter`` has the owners of, read values that are
    computed again."""
    uses = _Uses(editor, emitter.owners, forward)
    ends, stops = _ends(uses)
    starts = dict(zip(ends, [0, *ends], strict=False))
    zero: ir.Value | None = None
    for before, stop, after in zip([len(forward), *stops], stops, [*stops[1:], 0], strict=False):
        first = next((node for place in reversed(range(stop)) for node in uses.backward[place]), None)
        if first is None:
            break
        with emitter.before(first, scope="again"):
            late = _Late(emitter, uses, before, stop, zero)
            if (zero := late.zero) is None:  # nothing was computed that could be waited for
                continue
            again = _repeat(emitter, uses, starts[stop], stop, late) if stop in starts else ()
            late.hold(after, again)


class _Uses:
    """Where in the forward part values are made and read, and what they weigh."""

    def __init__(self, editor: Editor, owners: Mapping[ir.Node, ir.Node], forward: Sequence[ir.Node]) -> None:
        self.nodes = forward
        self._places = {node: at for at, node in enumerate(forward)}
        self._owners = owners
        self.backward: list[list[ir.Node]] = [[] for _ in forward]
        """By place, the nodes of the backward part that are for the node there."""
        self.asked: set[int] = set()
        """The places whose nodes have gradients that are asked for."""
        self.bytes: dict[ir.Value, int] = {}
        """Of the values that can be computed again."""
        self.last: dict[ir.Value, int] = {}
        """The last place that reads them, in the forward part or in the gradient of a node of it."""
        self.saved: set[ir.Value] = set()
        """What the backward part reads."""
        for node in editor.model.graph:
            if node in owners and (place := self.place(node)) is not None:
                self.backward[place].append(node)
        for at, node in enumerate(forward):
            if any(self.is_asked_for(v) for each in self.backward[at] for v in each.outputs):
                self.asked.add(at)
            if not _repeatable(editor, node):
                continue
            for value in node.outputs:
                readers = [use.node for use in value.uses()]
                places = [found for reader in readers if (found := self.place(reader)) is not None]
                if len(places) < len(readers) or value.is_graph_output():
                    continue  # also read by bodies
                self.bytes[value] = _bytes(editor, value)
                self.last[value] = max(places, default=at)
                if any(reader in owners for reader in readers):
                    self.saved.add(value)

    def place(self, node: ir.Node) -> int | None:
        """The place of a node in the forward part, or of that whose gradient it is for."""
        return self._places.get(self._owners.get(node, node))

    def is_asked_for(self, gradient: ir.Value) -> bool:
        """Whether it is read, or given, when the walk back is over."""
        return gradient.is_graph_output() or any(self.place(use.node) is None for use in gradient.uses())

    def inner(self, value: ir.Value, end: int) -> bool:
        """Whether a value of the segment that goes to ``end`` need not be kept."""
        return value in self.last and self.last[value] < end


def _repeatable(editor: Editor, node: ir.Node) -> bool:
    """Whether a second run of the node gives the same, and can be made to wait."""
    waits = any(v is not None and v.const_value is None and editor.static_shape(v) is not None for v in node.inputs)
    sized = all(editor.static_shape(value) is not None and editor.dtype(value) for value in node.outputs if value.name)
    return waits and sized and node.op_type not in _DRAWN and not any(bodies(node))


def _bytes(editor: Editor, value: ir.Value) -> int:
    dtype = editor.dtype(value)
    return math.ceil(math.prod(editor.static_shape(value) or ()) * (dtype.itemsize if dtype is not None else 0))


# -- where to cut ------------------------------------------------------------------------------------


def _ends(uses: _Uses) -> tuple[list[int], list[int]]:
    """Where all segments but the last end, such that what is kept and the largest segment together are least; and all
    stops on the way back."""
    size = len(uses.nodes)
    whole = sum(uses.bytes[value] for value in uses.saved)
    best: tuple[int, list[int]] = (whole, [])
    parts = itertools.takewhile(lambda n: n <= size, (round(2 ** (i / 2)) for i in itertools.count(2)))
    for limit in dict.fromkeys(whole // n for n in parts):
        best = min(best, _cut(uses, limit))
    return best[1], _stops(uses, best[1], best[0] * _BETWEEN)


def _stops(uses: _Uses, ends: Sequence[int], least: float) -> list[int]:
    """From the last on, the ends of segments, and places with gradients that are asked for between which at least so
    many bytes are made."""
    found, made = [], 0
    for at in reversed(range(1, len(uses.nodes))):
        made += sum(uses.bytes.get(value, 0) for value in uses.nodes[at].outputs)
        if at in ends or (at in uses.asked and made >= least):
            found.append(at)
            made = 0
    return found


def _cut(uses: _Uses, limit: int) -> tuple[int, list[int]]:
    """The cuts into segments that hold at most ``limit`` bytes each, one node at least, for which what is kept is
    least; what that and the largest segment come to is told before them."""
    size = len(uses.nodes)
    kept: list[float] = [0, *[math.inf] * size]
    came = [(0, 0)] * (size + 1)
    """From where, and how much the segment holds."""
    for start in range(size):
        for end, more, held in _from(uses, start):
            if held > limit and end > start + 1:
                break
            if kept[start] + more < kept[end]:
                kept[end], came[end] = kept[start] + more, (start, held)
    ends, largest, end = [], 0, size
    while end:
        ends.append(end)
        end, held = came[end]
        largest = max(largest, held)
    return int(kept[size]) + largest, ends[:0:-1]


def _from(uses: _Uses, start: int) -> Iterator[tuple[int, int, int]]:
    """The ends of segments from ``start`` on; the bytes that each has to keep, and those that it holds."""
    kept = held = 0
    leaving: dict[int, list[ir.Value]] = defaultdict(list)
    for at in range(start, len(uses.nodes)):
        for value in uses.nodes[at].outputs:
            if value in uses.bytes:
                kept += uses.bytes[value]
                leaving[uses.last[value]].append(value)
        for value in leaving.pop(at, ()):
            kept -= uses.bytes[value]
            held += uses.bytes[value] if value in uses.saved else 0
        yield at + 1, kept, held


# -- what is written -----------------------------------------------------------------------------------


class _Late:
    """Values as they can be had when the backward part has come down to a stop, and not before."""

    def __init__(self, emitter: Emitter, uses: _Uses, before: int, stop: int, zero: ir.Value | None) -> None:
        """Let all that the gradients from ``before`` on give to later ones wait for each other. ``zero`` is that of the
        stop before."""
        self._op, self._uses, self._stop = emitter.op, uses, stop
        self._late: dict[ir.Value, ir.Value] = {}
        made = [value for nodes in uses.backward[stop:before] for node in nodes for value in node.outputs]
        passing = {value: [use for use in value.uses() if self._is_behind(use.node)] for value in made}
        given = [value for value in made if passing[value] or uses.is_asked_for(value)]
        self.zero = self._zero(given, emitter) if given else zero
        """A vector of one integer, zero, that cannot be had earlier."""
        for value in given:
            for node, index in passing[value]:
                node.replace_input_with(index, self(value))

    def __call__(self, value: ir.Value) -> ir.Value:
        """``value``, from then on."""
        if value not in self._late:
            shape = self._op("Add", self._op("Shape", value), self.zero)
            self._late[value] = self._op("Reshape", value, shape, allowzero=1)
        return self._late[value]

    def hold(self, after: int, again: Collection[ir.Value]) -> None:
        """Let the gradients down to ``after`` wait for all that they read of the forward part, but for what is computed
        ``again`` here."""
        uses = self._uses
        own = [node for nodes in uses.backward[after : self._stop] for node in nodes]
        made = {value for node in own for value in node.outputs} | {*again, *self._late.values()}
        for node in own:
            for index, value in enumerate(node.inputs):
                if value is not None and value.const_value is None and value not in made:
                    node.replace_input_with(index, self(value))

    def _zero(self, given: Sequence[ir.Value], emitter: Emitter) -> ir.Value:
        firsts = [self._op("Gather", self._op("Reshape", v, emitter.ints(-1)), emitter.ints(0)) for v in given]
        numbers = [self._op("Cast", first, to=int(ir.DataType.FLOAT)) for first in firsts]
        whole = self._op("Cast", self._op("Sum", *numbers), to=int(ir.DataType.INT64))
        return self._op("Mul", whole, emitter.ints(0))

    def _is_behind(self, node: ir.Node) -> bool:
        place = self._uses.place(node)
        return place is not None and place < self._stop


def _repeat(emitter: Emitter, uses: _Uses, start: int, end: int, late: _Late) -> list[ir.Value]:
    """Write the second run of the segment, and let its gradients read that; returns what it computes."""
    own = [node for nodes in uses.backward[start:end] for node in nodes]
    made = {value for node in uses.nodes[start:end] for value in node.outputs}
    needed = {v for node in own for v in node.inputs if v in made and uses.inner(v, end)}
    again: dict[ir.Value, ir.Value] = {}
    for node in _repeated(uses, start, end, needed):
        inputs = [None if value is None else again.get(value, value) for value in node.inputs]
        if again.keys().isdisjoint(node.inputs):  # else it waits for those
            inputs = [v if v is None or v.const_value is not None else late(v) for v in inputs]
        attributes: dict[str, Any] = dict(node.attributes)
        outputs = emitter.ops(node.op_type, *inputs, outputs=len(node.outputs), domain=node.domain, **attributes)
        for value, second in zip(node.outputs, outputs, strict=True):
            second.name = second.name if value.name else ""
            second.type, second.shape = value.type, value.shape
            again[value] = second
    for node in own:
        for index, read in enumerate(node.inputs):
            if read in needed:
                node.replace_input_with(index, again[read])
    return list(again.values())


def _repeated(uses: _Uses, start: int, end: int, needed: Set[ir.Value]) -> list[ir.Node]:
    """The nodes that have to run again for these values, in order."""
    wanted = set(needed)
    found = []
    for node in reversed(uses.nodes[start:end]):
        if not wanted.isdisjoint(node.outputs):
            found.append(node)
            wanted.update(v for v in node.inputs if v is not None and uses.inner(v, end))
    return found[::-1]
