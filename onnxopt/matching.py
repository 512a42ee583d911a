"""Finding a pattern in a graph, for ``rewrite.py``: one node and its producers, with backtracking."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import onnx_ir as ir

from onnxopt.graph import Editor, attribute, constant_tensor
from onnxopt.pass_base import Refuse
from onnxopt.patterns import COMMUTATIVE, AnyOf, Call, Number, Pattern, Variable

_BROADCASTING = COMMUTATIVE | {"Sub", "Div", "Pow"}
_TOLERANCE = {ir.DataType.FLOAT16: 1e-3, ir.DataType.BFLOAT16: 1e-2}
_FINE = 1e-6  # for float and double: constants such as √2 are seldom written with more digits


class Found(NamedTuple):
    """A place in the graph that a pattern fits."""

    nodes: tuple[ir.Node, ...]
    """The matched nodes, the root first."""
    values: Mapping[str, ir.Value]
    """What the variables of the pattern stand for."""
    numbers: tuple[ir.Value, ...]
    """The constants that matched numbers."""


class _State(NamedTuple):
    """What is bound so far; never changed, so that going back costs nothing."""

    values: Mapping[str, ir.Value]
    calls: Mapping[Call, ir.Value]
    numbers: tuple[ir.Value, ...]
    unsure: tuple[ir.Value, ...]
    """Values of unknown rank that a constant of higher rank than zero was combined with."""


_Goals = tuple[Pattern, ir.Value, "_Goals"] | None
"""What is left to match: a linked list of pattern and value."""


class Matcher:
    """Tries one pattern at one node, with backtracking over the order of operands and alternatives."""

    def __init__(self, editor: Editor, root: ir.Node) -> None:
        self.editor, self.root = editor, root

    def match(self, pattern: Call) -> Found | None:
        """Where ``pattern`` fits, ending in the root; ``None`` if it does not."""
        made_by = [producer.op_type if v and (producer := v.producer()) else None for v in self.root.inputs]
        for look in pattern.looks:
            if all(at < len(made_by) and made_by[at] in ops for at, ops in look):
                break
        else:
            return None  # as almost always: say so before anything is made
        state = self._call(pattern, self.root.outputs[0], None, _State({}, {}, (), ()))
        if state is None:
            return None
        if state.unsure:
            raise Refuse(f"the rank of {state.unsure[0].name} is unknown, and a constant may raise it")
        return Found(tuple(self._nodes(state)), state.values, state.numbers)

    def _nodes(self, state: _State) -> dict[ir.Node, None]:
        producers = (value.producer() for value in state.calls.values())
        return dict.fromkeys(node for node in producers if node is not None)

    def _solve(self, goals: _Goals, state: _State) -> _State | None:
        if goals is None:
            return state if self._is_closed(state) else None
        pattern, value, rest = goals
        if isinstance(pattern, Call):
            return self._call(pattern, value, rest, state)
        if isinstance(pattern, AnyOf):
            for option in pattern.options:
                if self._may_fit(option, value):
                    found = self._solve((option, value, rest), state)
                    if found is not None:
                        return found
            return None
        if isinstance(pattern, Number):
            state = _State(state.values, state.calls, (*state.numbers, value), state.unsure)
            if not pattern.name:
                return self._solve(rest, state)
        bound = state.values.get(pattern.name)
        if bound is None:
            values = {**state.values, pattern.name: value}
            return self._solve(rest, _State(values, state.calls, state.numbers, state.unsure))
        return self._solve(rest, state) if bound is value else None

    def _call(self, pattern: Call, value: ir.Value, rest: _Goals, state: _State) -> _State | None:
        bound = state.calls.get(pattern)
        if bound is not None:
            return self._solve(rest, state) if bound is value else None
        node = value.producer()
        if node is None or node.op_type != pattern.op:
            return None
        inputs, fits, calls = node.inputs, False, {**state.calls, pattern: value}
        for operands in pattern.orders:
            if not self._may_fit_all(operands, inputs):
                continue
            fits = fits or self._fits(node, value, pattern)
            unsure = self._raised_ranks(node, operands) if fits else None
            if unsure is None:
                continue
            goals = rest
            pairs = zip(operands, inputs, strict=False)  # there may be more inputs
            for operand, given in sorted(pairs, key=_order_of_goal, reverse=True):  # the last is tried first
                assert given is not None
                goals = (operand, given, goals)
            found = self._solve(goals, _State(state.values, calls, state.numbers, (*state.unsure, *unsure)))
            if found is not None:
                return found
        return None

    def _may_fit_all(self, operands: Sequence[Pattern], inputs: Sequence[ir.Value | None]) -> bool:
        for operand, given in zip(operands, inputs, strict=False):
            if given is None or not self._may_fit(operand, given):
                return False
        return len(inputs) >= len(operands)

    def _may_fit(self, pattern: Pattern, value: ir.Value) -> bool:
        """A first look: whether ``value`` is that number, or made by such a node. Final for numbers."""
        if isinstance(pattern, Variable):
            return True
        if isinstance(pattern, Number):
            return self._is_number(value, pattern.value)
        if pattern.heads is None:
            return True
        node = value.producer()
        return node is not None and node.op_type in pattern.heads

    def _fits(self, node: ir.Node, value: ir.Value, pattern: Call) -> bool:
        """Whether the node is what the pattern says, apart from its type and what its inputs are."""
        if node.domain != "" or node.graph is not self.root.graph or value is not node.outputs[0]:
            return False
        if any(a.is_ref() for a in node.attributes.values()):
            return False
        if not pattern.more and any(given is not None for given in node.inputs[len(pattern.inputs) :]):
            return False
        return all(_allows(wanted, attribute(node, name)) for name, wanted in pattern.attributes.items())

    def _raised_ranks(self, node: ir.Node, operands: Sequence[Pattern]) -> tuple[ir.Value, ...] | None:
        """Operands whose rank a number may raise, their own being unknown; ``None`` if one surely is raised."""
        if node.op_type not in _BROADCASTING or len(operands) != 2:
            return ()
        for at in (0, 1):
            tensor = constant_tensor(node.inputs[at]) if isinstance(operands[at], Number) else None
            if tensor is None or not tensor.shape:
                continue
            other = node.inputs[1 - at]
            assert other is not None
            rank = self.editor.rank(other)
            if rank is None:
                return (other,)
            if rank < len(tensor.shape):
                return None
        return ()

    def _is_number(self, value: ir.Value, wanted: float | None) -> bool:
        tensor = constant_tensor(value)
        if tensor is None or tensor.size != 1:
            return False
        got = self.editor.scalar(value)
        return got is not None and (wanted is None or _close(got, wanted, tensor.dtype))

    def _is_closed(self, state: _State) -> bool:
        """Whether nobody but matched nodes reads what is going to disappear, the replacement included."""
        nodes = self._nodes(state)
        if any(value.producer() in nodes for value in state.values.values()):
            return False
        for pattern, value in state.calls.items():
            node = value.producer()
            further = node.inputs[len(pattern.inputs) :] if node is not None else ()
            if any(given is not None and given.producer() in nodes for given in further):
                return False
        for node in nodes:
            for output in node.outputs:
                if output is self.root.outputs[0]:
                    continue
                if output.is_graph_output() or any(use.node not in nodes for use in output.uses()):
                    return False
        return True


def _order_of_goal(pair: tuple[Pattern, ir.Value | None]) -> int:
    """Which goal comes first: a variable binds anything, so it comes last."""
    return 1 if isinstance(pair[0], Variable) else 0


def _allows(wanted: Any, got: Any) -> bool:
    if callable(wanted):
        return bool(wanted(got))
    if isinstance(wanted, float):
        return isinstance(got, float) and _close(got, wanted, ir.DataType.FLOAT)
    if isinstance(got, str | bytes | int | float) or got is None:
        return bool(got == wanted)
    return list(got) == list(wanted)


def _close(got: float, wanted: float, dtype: ir.DataType) -> bool:
    if not dtype.is_floating_point():
        return got == wanted
    return math.isclose(got, wanted, rel_tol=_TOLERANCE.get(dtype, _FINE))
