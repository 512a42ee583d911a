"""Patterns of operators, for ``rewrite.py``: what they are made of, and the builder that traces them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from types import EllipsisType
from typing import Any


@dataclass(frozen=True, eq=False)
class Variable:
    """Any value; the same one wherever the variable stands."""

    name: str


@dataclass(frozen=True, eq=False)
class Number:
    """A constant of one element, equal to ``value`` within what its type can tell apart."""

    value: float | None
    """``None``: any value."""
    name: str = ""


@dataclass(frozen=True, eq=False)
class Call:
    """The first output of a node."""

    op: str
    inputs: tuple[Pattern, ...]
    more: bool
    """Whether the node may have inputs beyond these."""
    attributes: Mapping[str, Any]

    @cached_property
    def heads(self) -> frozenset[str]:
        """The operator types that a match may end in."""
        return frozenset({self.op})

    @cached_property
    def orders(self) -> tuple[tuple[Pattern, ...], ...]:
        """The inputs in each order that means the same."""
        if self.op in COMMUTATIVE and len(self.inputs) == 2 and self.inputs[0] is not self.inputs[1]:
            return self.inputs, self.inputs[::-1]
        return (self.inputs,)

    @cached_property
    def looks(self) -> tuple[tuple[tuple[int, frozenset[str]], ...], ...]:
        """For each order, the operator types that must have made the input at each position that a node makes."""
        return tuple(
            tuple((at, p.heads) for at, p in enumerate(order) if isinstance(p, Call | AnyOf) and p.heads is not None)
            for order in self.orders
        )

    @cached_property
    def needs(self) -> frozenset[str]:
        """Operator types that are in every match."""
        return frozenset({self.op}).union(*(needs(each) for each in self.inputs))


@dataclass(frozen=True, eq=False)
class AnyOf:
    """The first alternative that leads to a match; never nested."""

    options: tuple[Pattern, ...]

    @cached_property
    def heads(self) -> frozenset[str] | None:
        """The operator types that a match may end in, ``None`` if it may be no node at all."""
        ops = [option.op for option in self.options if isinstance(option, Call)]
        return frozenset(ops) if len(ops) == len(self.options) else None

    @cached_property
    def needs(self) -> frozenset[str]:
        """Operator types that are in every match."""
        return frozenset.intersection(*(needs(option) for option in self.options))


Pattern = Variable | Number | Call | AnyOf


COMMUTATIVE = frozenset({"Add", "Mul", "Max", "Min"})


def needs(pattern: Pattern) -> frozenset[str]:
    """Operator types without which ``pattern`` cannot match."""
    return pattern.needs if isinstance(pattern, Call | AnyOf) else frozenset()


class Op:
    """Builds patterns: every attribute is an operator."""

    def __getattr__(self, op: str) -> Callable[..., Pattern]:
        def call(*inputs: Pattern | float | EllipsisType, **attributes: Any) -> Pattern:
            more = bool(inputs) and inputs[-1] is ...
            given = tuple(_pattern(i) for i in inputs if not isinstance(i, EllipsisType))
            return Call(op, given, more, attributes)

        return call

    def any(self, *options: Pattern) -> Pattern:
        """One of several patterns; earlier ones are tried first."""
        flat: list[Pattern] = []
        for option in options:
            flat.extend(option.options if isinstance(option, AnyOf) else (option,))
        return AnyOf(tuple(flat))

    def number(self, name: str) -> Pattern:
        """Any constant of one element; ``Match.number(name)`` reads it."""
        return Number(None, name)

    def product(self, *factors: Pattern | float) -> Pattern:
        """The product of ``factors``, multiplied in any order; a number may also divide as its reciprocal."""
        given = [_pattern(factor) for factor in factors]
        if len(given) == 1:
            return given[0]
        options: list[Pattern] = []
        first, rest = given[0], range(1, len(given))
        for size in range(len(rest)):
            for chosen in combinations(rest, size):  # with the first, on one side; the others on the other
                left = [first, *(given[i] for i in chosen)]
                right = [given[i] for i in rest if i not in chosen]
                options.append(self.Mul(self.product(*left), self.product(*right)))
                for one, others in ((left, right), (right, left)):
                    factor = one[0]
                    if len(one) == 1 and isinstance(factor, Number) and factor.value is not None:
                        options.append(self.Div(self.product(*others), 1 / factor.value))
        return self.any(*options)

    def square(self, x: Pattern) -> Pattern:
        """``x²``, as a power or a product."""
        return self.any(self.Pow(x, 2.0), self.Mul(x, x))

    def clip(self, x: Pattern, low: float, high: float) -> Pattern:
        """``x`` held between two numbers: ``Clip`` of any opset, or ``Min`` and ``Max``."""
        options = [
            self.Clip(x, low, high),
            self.Clip(x, min=low, max=high),
            self.Min(self.Max(x, low), high),
            self.Max(self.Min(x, high), low),
        ]
        if low == 0:
            options.append(self.Min(self.Relu(x), high))
        return self.any(*options)


def _pattern(given: Pattern | float) -> Pattern:
    return Number(float(given)) if isinstance(given, int | float) else given


def trace(pattern: Callable[..., Pattern]) -> tuple[Call, ...]:
    """The alternatives that a lambda over ``op`` and named values stands for."""
    names = list(inspect.signature(pattern).parameters)[1:]
    traced = pattern(Op(), *(Variable(name) for name in names))
    found: list[Call] = []
    for option in traced.options if isinstance(traced, AnyOf) else (traced,):
        if not isinstance(option, Call):
            raise TypeError("a pattern must end in an operator")
        found.append(option)
    return tuple(found)
