"""What the recurrent operators have in common.

Each direction of a layer is looked at alone. The products of the weights with all times are one ``Gemm`` before and one
after; only what depends on the step before it stands in the body of a ``Scan``, which is faster in ONNX Runtime than
the same nodes written out for every time, and of a size that does not depend on the number of times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.gradients.emit import Step, Values
from onnxopt.gradients.node import Backward

X, W, R, B, SEQUENCE_LENS, INITIAL_H = range(6)
"""The inputs of all recurrent operators."""


@dataclass(frozen=True)
class Direction:
    """One direction of a layer: T times, a batch of N, I inputs, H hidden units, G gates."""

    at: Backward
    index: int
    reverse: bool
    """Whether the last time is its first."""

    @property
    def sizes(self) -> tuple[int, int, int]:
        """T, N and H."""
        t, n, _ = self.at.shape(self.at.inputs[X])
        return t, n, self.at.shape(self.at.inputs[R])[2]

    def of(self, value: ir.Value, *shape: int, axis: int = 0) -> ir.Value:
        """The part of ``value`` that is of this direction, along ``axis``, with the dims ``shape``."""
        if self.at.shape(self.at.inputs[W])[0] > 1:
            value = self.at.op("Gather", value, self.at.const(np.int64(self.index)), axis=axis)
        return self.at.reshape(value, *shape)

    def state(self, value: ir.Value | None) -> ir.Value:
        """The part of a state (directions × N × H), or of its gradient; zeros if there is none."""
        _, n, h = self.sizes
        return self.zeros(n, h) if value is None else self.of(value, n, h)

    def sequence(self, value: ir.Value | None) -> ir.Value:
        """The part (T × N × H) of the output of all times, or of its gradient; zeros if there is none."""
        return self.zeros(*self.sizes) if value is None else self.of(value, *self.sizes, axis=1)

    def zeros(self, *shape: int) -> ir.Value:
        """Zeros of the type of the layer."""
        return self.at.op("Expand", self.at.number(0, self.at.inputs[X]), self.at.ints(*shape))

    def rows(self) -> ir.Value:
        """The input of all times, T·N × I."""
        t, n, i = self.at.shape(self.at.inputs[X])
        return self.at.reshape(self.at.inputs[X], t * n, i)

    def weights(self, place: int) -> ir.Value:
        """``W`` or ``R``, G·H × I or H."""
        return self.of(self.at.inputs[place], *self.at.shape(self.at.inputs[place])[1:])

    def biases(self) -> Sequence[ir.Value | None]:
        """Those of ``W`` and of ``R``, each G·H."""
        if (b := self.at.input(B)) is None:
            return None, None
        return self.at.ops("Split", self.of(b, self.at.shape(b)[1]), outputs=2, axis=0, num_outputs=2)

    def bias(self) -> ir.Value | None:
        """Their sum."""
        return None if self.at.input(B) is None else self.at.op("Add", *self.biases())

    def of_x(self, bias: ir.Value | None) -> ir.Value:
        """``x Wᵀ`` and a bias, of all times, T·N × G·H."""
        return self.at.op("Gemm", self.rows(), self.weights(W), bias, transB=1)

    def by_time(self, *values: ir.Value) -> list[ir.Value]:
        """T·N × … as T × N × …."""
        return [self.at.reshape(value, *self.sizes[:2], -1) for value in values]

    def before(self) -> ir.Value:
        """The output of the step before each time, T·N × H: the initial one, then those of all times but the last."""
        t, n, h = self.sizes
        first = self.at.reshape(self.state(self.at.input(INITIAL_H)), 1, n, h)
        found = first
        if t > 1:
            start, end = (1, t) if self.reverse else (0, t - 1)
            y = self.sequence(all_times(self.at))
            rest = self.at.op("Slice", y, self.at.ints(start), self.at.ints(end), self.at.ints(0))
            if self.reverse and self.lengths is not None:
                rest = self.at.op("Where", self.runs(np.arange(1, t)), rest, first)
            found = self.at.op("Concat", *((rest, first) if self.reverse else (first, rest)), axis=0)
        return self.at.reshape(found, t * n, h)

    @property
    def lengths(self) -> ir.Value | None:
        """How long each sequence of the batch is; ``None`` where all have the length T."""
        lengths = self.at.input(SEQUENCE_LENS)
        known = self.at.constant(lengths)
        return None if known is not None and (known == self.sizes[0]).all() else lengths

    def runs(self, times: np.ndarray) -> ir.Value:
        """Whether each sequence has these times, each × N × 1."""
        lengths = self.at.inputs[SEQUENCE_LENS]
        return self.at.op(
            "Less", self.at.const(times.astype(np.int32).reshape(-1, 1, 1)), self.at.reshape(lengths, -1, 1)
        )

    def scan(self, step: Step, states: Values, sequences: Values, *, back: bool = False) -> list[ir.Value]:
        """The states after the last step, then what all steps gave; the steps go with the direction, or ``back``. At
        times that a sequence does not have, its states stay as they are, and what is given is 0. ONNX Runtime takes
        states of 0, not the initial ones, for the last ones of an empty sequence."""
        at, reverse = self.at, self.reverse != back
        if self.lengths is None:
            return at.scan(step, states, sequences, reverse=reverse)
        dtype, zero = at.dtype(at.inputs[X]), at.number(0, at.inputs[X])
        if back:
            has_any = at.reshape(self.runs(np.arange(1)), -1, 1)
            states = [at.op("Where", has_any, state, zero) for state in states]

        def step_if_it_runs(*values: ir.Value) -> tuple[Values, Values]:
            *before, running = values
            after, given = step(*before)
            runs = at.op("Cast", running, to=ir.DataType.BOOL)
            kept = [at.op("Where", runs, new, old) for new, old in zip(after, before, strict=False)]
            return kept, [at.op("Where", runs, value, zero) for value in given]

        running = at.op("Cast", self.runs(np.arange(self.sizes[0])), to=dtype)
        return at.scan(step_if_it_runs, states, [*sequences, running], reverse=reverse)


def directions(at: Backward, activations: Sequence[str]) -> list[Direction]:
    """The directions of a layer; raises ``GradientError`` of forms that have no rule. ``activations`` are those of one
    direction that have one."""
    if at.attribute("layout", 0):
        raise at.error("its layout is 1, which ONNX Runtime does not implement")
    if at.attribute("clip"):
        raise at.error("it clips what its activations read")
    direction = at.attribute("direction", "forward")
    found = [Direction(at, i, reverse) for i, reverse in enumerate(_REVERSE[direction])]
    given = [name.lower() for name in at.attribute("activations", ())]
    if given and given != [name.lower() for name in activations] * len(found):
        raise at.error(f"its activations are {', '.join(given)}; only {', '.join(activations)} have a rule")
    return found


_REVERSE = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}


def all_times(at: Backward) -> ir.Value:
    """``Y``, which the layer may leave out."""
    t, n, _ = at.shape(at.inputs[X])
    count, _, h = at.shape(at.inputs[R])
    return at.output(0, at.dtype(at.inputs[X]), (t, count, n, h))


@dataclass(frozen=True)
class Found:
    """What the walk back through one direction gives."""

    part: Direction
    da: ir.Value
    """Of ``x Wᵀ`` and its bias, T·N × G·H."""
    dr: ir.Value
    """Of ``R``, G·H × H."""
    db: ir.Value
    """Of the bias of ``R``, G·H."""
    others: Sequence[ir.Value | None]
    """Of the inputs from ``initial_h`` on."""


def gradients(at: Backward, found: Sequence[Found]) -> list[ir.Value | None]:
    """Those of all inputs: ``dx = da W``, ``dW = daᵀ x``, ``db = Σ da``, and what the directions found."""
    dx: ir.Value | None = None
    for each in found:
        dx = at.op("Gemm", each.da, each.part.weights(W), *([] if dx is None else [dx]))
    dw = [at.op("Gemm", each.da, each.part.rows(), transA=1) for each in found]
    db = [at.op("Concat", at.sum(each.da, 0, keepdims=False), each.db, axis=0) for each in found]
    others = zip(*[each.others for each in found], strict=True)
    rest: list[Sequence[ir.Value | None]] = [dw, [each.dr for each in found], db, [], *others]
    return [dx and at.reshape(dx, *at.shape(at.inputs[X])), *(_stacked(at, i, v) for i, v in enumerate(rest, W))]


def _stacked(at: Backward, place: int, parts: Sequence[ir.Value | None]) -> ir.Value | None:
    """The parts of the directions as one, of the shape of the input at ``place``; ``None`` if that is missing."""
    known = [part for part in parts if part is not None]
    if (like := at.input(place)) is None or not known:
        return None
    whole = known[0] if len(known) == 1 else at.op("Concat", *known, axis=0)
    return at.reshape(whole, *at.shape(like))
