"""Optimizers on arrays, in place.

Weights are updated a block at a time, so that a block of the weight, of its gradient and of what the optimizer
remembers stay in the processor's cache from the first operation to the last, and no temporary array is as large as
a weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from onnxopt.errors import OptionError

Floats = npt.NDArray[np.float32]

_BLOCK = 1 << 15
"""So many numbers are updated at once."""


class Rule(Protocol):
    """How one weight moves."""

    slots: ClassVar[tuple[str, ...]]
    """What is remembered of each weight: arrays of its shape, at first zero."""

    @property
    def weight_decay(self) -> float:
        """How strongly weights are drawn to zero."""

    def update(
        self, weight: Floats, gradient: Floats, slots: Sequence[Floats], lr: float, decay: float, t: int
    ) -> None:
        """Move ``weight``, flat, in place; ``t`` counts the steps from 1 on."""


class Optimizer:
    """A rule at work on some weights, and what it remembers of them."""

    def __init__(self, rule: Rule, weights: Sequence[Floats], decayed: Sequence[bool] | None = None) -> None:
        """``weights`` are contiguous and moved in place; ``decayed`` says which of them decay, by default those of two
        axes or more, so neither biases nor the scales of normalizations."""
        self.rule = rule
        self.steps = 0
        """How many were made."""
        self._weights = [weight.reshape(-1) for weight in weights]
        assert all(np.shares_memory(flat, w) for flat, w in zip(self._weights, weights, strict=True) if w.size)
        self._decayed = [w.ndim >= 2 for w in weights] if decayed is None else decayed
        self._slots = [[np.zeros_like(flat) for _ in rule.slots] for flat in self._weights]

    def step(self, gradients: Sequence[Floats], lr: float) -> None:
        """Move the weights once."""
        self.steps += 1
        for weight, gradient, slots, decayed in zip(self._weights, gradients, self._slots, self._decayed, strict=True):
            decay = self.rule.weight_decay if decayed else 0.0
            self.rule.update(weight, gradient.reshape(-1), slots, lr, decay, self.steps)

    def state(self) -> dict[str, Floats]:
        """What is remembered, as arrays that change with the next step."""
        return {
            f"{name}/{at}": slot
            for at, slots in enumerate(self._slots)
            for name, slot in zip(self.rule.slots, slots, strict=True)
        }

    def restore(self, state: Mapping[str, Floats], steps: int) -> None:
        """Go on from ``state``, as it was after so many steps."""
        self.steps = steps
        for name, slot in self.state().items():
            slot[...] = state[name]


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent: ``v ← momentum · v + g + decay · w``, ``w ← w − lr · v``; after Nesterov
    ``w ← w − lr · (g + decay · w + momentum · v)`` (Sutskever et al., 2013)."""

    slots: ClassVar[tuple[str, ...]] = ("velocity",)

    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_share("momentum", self.momentum)
        _check_decay(self.weight_decay)

    def update(
        self, weight: Floats, gradient: Floats, slots: Sequence[Floats], lr: float, decay: float, t: int
    ) -> None:
        """Move ``weight``."""
        for w, g, v, a in _blocks(weight, gradient, *slots):
            self._move(w, g, v, a, lr, decay)

    def _move(self, w: Floats, g: Floats, v: Floats, a: Floats, lr: float, decay: float) -> None:
        v *= self.momentum
        v += g
        if decay:
            v += np.multiply(w, decay, out=a)
        if self.nesterov:
            np.multiply(v, self.momentum, out=a)
            a += g
            a *= lr
            w *= 1 - lr * decay
        else:
            np.multiply(v, lr, out=a)
        w -= a


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled decay: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019.

    ``m`` and ``v``, the means of ``g`` and ``g²``, are remembered as sums, ``m / (1 − β₁)`` and ``v / (1 − β₂)``, which
    saves operations.
    """

    slots: ClassVar[tuple[str, ...]] = ("mean", "square")

    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        for beta in self.betas:
            _check_share("beta", beta)
        _check_decay(self.weight_decay)
        if not self.epsilon > 0:
            raise OptionError(f"epsilon is above 0, got {self.epsilon}")

    def update(
        self, weight: Floats, gradient: Floats, slots: Sequence[Floats], lr: float, decay: float, t: int
    ) -> None:
        """Move ``weight``."""
        first, second = _corrections(self.betas, t)
        for w, g, m, v, a in _blocks(weight, gradient, *slots):
            _remember(g, m, v, a, self.betas)
            _direction(m, v, a, first * lr, second, self.epsilon)
            if decay:
                np.multiply(w, 1 - lr * decay, out=w)
            np.subtract(w, a, out=w)


@dataclass(frozen=True)
class LAMB(AdamW):
    """AdamW whose step is as long as a share of the weight, tensor by tensor, for large batches: You et al., "Large
    Batch Optimization for Deep Learning: Training BERT in 76 minutes", 2020."""

    epsilon: float = 1e-6

    def update(
        self, weight: Floats, gradient: Floats, slots: Sequence[Floats], lr: float, decay: float, t: int
    ) -> None:
        """Move ``weight``; the direction is computed twice, since it is nowhere kept as a whole."""
        first, second = _corrections(self.betas, t)
        length = moved = 0.0
        for w, g, m, v, a, b in _blocks(weight, gradient, *slots, scratch=2):
            _remember(g, m, v, a, self.betas)
            self._direction(w, m, v, a, b, first, second, decay)
            length += float(w @ w)
            moved += float(a @ a)
        trust = math.sqrt(length / moved) if length > 0 and moved > 0 else 1.0
        for w, m, v, a, b in _blocks(weight, *slots, scratch=2):
            self._direction(w, m, v, a, b, first, second, decay)
            np.subtract(w, np.multiply(a, lr * trust, out=a), out=w)

    def _direction(
        self, w: Floats, m: Floats, v: Floats, a: Floats, b: Floats, first: float, second: float, decay: float
    ) -> None:
        _direction(m, v, a, first, second, self.epsilon)
        if decay:
            a += np.multiply(w, decay, out=b)


def squared_norm(arrays: Sequence[Floats]) -> float:
    """The sum of the squares of all numbers."""
    return sum(float(a @ a) for array in arrays for (a,) in _blocks(array.reshape(-1), scratch=0))


def scale(arrays: Sequence[Floats], factor: float) -> None:
    """Multiply all numbers, in place."""
    for array in arrays:
        np.multiply(array, factor, out=array)


def accumulate(sums: Sequence[Floats], arrays: Sequence[Floats], factor: float) -> None:
    """Add ``factor · arrays`` to ``sums``, in place."""
    for total, array in zip(sums, arrays, strict=True):
        for s, x, a in _blocks(total.reshape(-1), array.reshape(-1)):
            np.add(s, np.multiply(x, factor, out=a), out=s)


def average(means: Sequence[Floats], arrays: Sequence[Floats], decay: float) -> None:
    """Let ``means`` become ``decay · means + (1 − decay) · arrays``, in place."""
    for mean, array in zip(means, arrays, strict=True):
        for m, x, a in _blocks(mean.reshape(-1), array.reshape(-1)):
            np.subtract(x, m, out=a)
            np.add(m, np.multiply(a, 1 - decay, out=a), out=m)


def _corrections(betas: tuple[float, float], t: int) -> tuple[float, float]:
    """What sums of ``g`` and ``g²`` are to be multiplied by to be means without the bias of starting at zero."""
    first, second = ((1 - beta) / (1 - beta**t) for beta in betas)
    return first, second


def _remember(g: Floats, m: Floats, v: Floats, a: Floats, betas: tuple[float, float]) -> None:
    """``m ← β₁ m + g``, ``v ← β₂ v + g²``."""
    m *= betas[0]
    m += g
    v *= betas[1]
    v += np.multiply(g, g, out=a)


def _direction(m: Floats, v: Floats, a: Floats, first: float, second: float, epsilon: float) -> None:
    """``a ← first · m / (√(second · v) + ε)``, with the factors drawn together."""
    root = math.sqrt(second)
    np.sqrt(v, out=a)
    a += epsilon / root
    np.divide(m, a, out=a)
    a *= first / root


def _blocks(*arrays: Floats, scratch: int = 1) -> Iterator[tuple[Floats, ...]]:
    """The same part of each flat array, one after the other, and room for as many numbers besides."""
    size = arrays[0].size
    room = [np.empty(min(size, _BLOCK), np.float32) for _ in range(scratch)]
    for start in range(0, size, _BLOCK):
        part = slice(start, start + _BLOCK)
        yield *[array[part] for array in arrays], *[a[: min(_BLOCK, size - start)] for a in room]


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise OptionError(f"{name} is in [0, 1), got {value}")


def _check_decay(value: float) -> None:
    if not value >= 0:
        raise OptionError(f"the weight decay is 0 or more, got {value}")
