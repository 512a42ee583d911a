"""Declarative rewriting: a pattern on the left, a function on the right.

A pattern is a lambda over an operator builder and named values, traced once::

    @rule(lambda op, x: op.product(x, op.Add(op.Erf(op.Div(x, 2**0.5)), 1.0), 0.5))
    def gelu(match: Match) -> ir.Value:
        match.requires("Gelu", opset=20)
        return match.insert("Gelu", [match["x"]])

What is written once in the lambda is one value in the graph: with ``d = op.Sub(x, m)`` used twice, both
readers must read the same value. A number matches a constant of one element; ``...`` as the last input
allows further ones; keyword arguments constrain attributes; ``op.any`` offers alternatives.

The engine sees to it, once for all rules, that matched nodes stand in one graph and are of the standard
domain, that nobody else reads an inner value (no other node, no body, no graph output), and that no
constant raises the rank of what it is combined with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir

from onnxopt.graph import AttributeValue, Editor, attribute, constant_tensor, label
from onnxopt.pass_base import Context, Log, NodePass, Refuse, Report
from onnxopt.patterns import AnyOf, Call, Number, Pattern, Variable, trace

_COMMUTATIVE = frozenset({"Add", "Mul", "Max", "Min"})
_BROADCASTING = _COMMUTATIVE | {"Sub", "Div", "Pow"}
_TOLERANCE = {ir.DataType.FLOAT16: 1e-3, ir.DataType.BFLOAT16: 1e-2}
_FINE = 1e-6  # for float and double: constants such as √2 are seldom written with more digits

# -- matches -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """A place in the graph that a pattern fits, and the means to build what replaces it."""

    editor: Editor
    root: ir.Node
    nodes: tuple[ir.Node, ...]
    """The matched nodes, ``root`` first."""
    values: Mapping[str, ir.Value]
    """What the variables of the pattern stand for."""
    numbers: tuple[ir.Value, ...] = ()
    """The constants that matched numbers."""

    def __getitem__(self, name: str) -> ir.Value:
        return self.values[name]

    def number(self, name: str) -> float:
        """What the constant holds that ``op.number(name)`` matched."""
        found = self.editor.scalar(self.values[name])
        assert found is not None
        return found

    def of(self, op: str) -> list[ir.Node]:
        """The matched nodes of one operator type."""
        return [node for node in self.nodes if node.op_type == op]

    def dtype(self) -> ir.DataType | None:
        """The element type of the result, also from the constants that took part."""
        found = self.editor.dtype(self.root.outputs[0])
        if found is None:
            tensors = (constant_tensor(value) for value in self.numbers)
            types = {tensor.dtype for tensor in tensors if tensor is not None}
            types = {dtype for dtype in types if dtype.is_floating_point()}  # an exponent may be an integer
            found = types.pop() if len(types) == 1 else None
        return found

    def requires(self, op: str, *, opset: int, double: bool = False) -> None:
        """Refuse unless the model's opset has ``op`` for this element type and ONNX Runtime runs it well.

        Most of what this engine fuses to has no ``double`` kernel on CPU, or one that is slower.
        """
        have = self.editor.opset(self.root)
        if have < opset:
            raise Refuse(f"{op} needs opset {opset}, the model has {have}")
        dtype = self.dtype()
        if dtype is None:
            raise Refuse(f"the element type of {self.root.outputs[0].name} is unknown")
        if dtype == ir.DataType.DOUBLE and not double:
            raise Refuse(f"ONNX Runtime runs {op} in double slowly or not at all")
        allowed = onnx.defs.get_schema(op, have).type_constraints[0].allowed_type_strs
        if not dtype.is_floating_point():
            raise Refuse(f"it computes in {dtype.name.lower()}, {op} in floats")
        if f"tensor({dtype.name.lower()})" not in allowed:
            raise Refuse(f"{op} of opset {have} does not take {dtype.name.lower()}")

    def insert(
        self, op: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, AttributeValue] | None = None
    ) -> ir.Value:
        """A new node in front of the root, with the root's metadata; the last one also gets its name."""
        return self.editor.insert(self.root, op, inputs, attributes, name="")

    def constant(self, array: np.ndarray[Any, Any], name: str) -> ir.Value:
        """A new constant that the replacement may read."""
        return self.editor.add_constant(self.root, array, name)


@dataclass(frozen=True)
class _State:
    """What is bound so far; never changed, so that going back costs nothing."""

    values: Mapping[str, ir.Value] = field(default_factory=dict)
    calls: Mapping[Call, ir.Value] = field(default_factory=dict)
    numbers: tuple[ir.Value, ...] = ()
    unsure: tuple[ir.Value, ...] = ()
    """Values of unknown rank that a constant of higher rank than zero was combined with."""


_Goals = tuple[Pattern, ir.Value, "_Goals"] | None
"""What is left to match: a linked list of pattern and value."""


class _Matcher:
    """Tries one pattern at one node, with backtracking over the order of operands and alternatives."""

    def __init__(self, editor: Editor, root: ir.Node) -> None:
        self.editor, self.root = editor, root

    def match(self, pattern: Call) -> Match | None:
        state = self._solve((pattern, self.root.outputs[0], None), _State())
        if state is None:
            return None
        if state.unsure:
            raise Refuse(f"the rank of {state.unsure[0].name} is unknown, and a constant may raise it")
        return Match(self.editor, self.root, tuple(self._nodes(state)), state.values, state.numbers)

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
                found = self._solve((option, value, rest), state)
                if found is not None:
                    return found
            return None
        if isinstance(pattern, Number):
            if not self._is_number(value, pattern.value):
                return None
            state = replace(state, numbers=(*state.numbers, value))
            if not pattern.name:
                return self._solve(rest, state)
        bound = state.values.get(pattern.name)
        if bound is None:
            return self._solve(rest, replace(state, values={**state.values, pattern.name: value}))
        return self._solve(rest, state) if bound is value else None

    def _call(self, pattern: Call, value: ir.Value, rest: _Goals, state: _State) -> _State | None:
        bound = state.calls.get(pattern)
        if bound is not None:
            return self._solve(rest, state) if bound is value else None
        node = value.producer()
        if node is None or not self._fits(node, value, pattern):
            return None
        state = replace(state, calls={**state.calls, pattern: value})
        for operands in _orders(pattern):
            after = self._ranks(node, operands, state)
            if after is None:
                continue
            goals = rest
            pairs = zip(operands, node.inputs, strict=False)  # there may be more inputs
            for operand, given in sorted(pairs, key=_likelihood, reverse=True):  # the last is tried first
                assert given is not None
                goals = (operand, given, goals)
            found = self._solve(goals, after)
            if found is not None:
                return found
        return None

    def _fits(self, node: ir.Node, value: ir.Value, pattern: Call) -> bool:
        """Whether the node itself, its inputs aside, is what the pattern says."""
        if node.op_type != pattern.op or node.domain != "" or node.graph is not self.root.graph:
            return False
        if value is not node.outputs[0] or any(a.is_ref() for a in node.attributes.values()):
            return False
        count = len(pattern.inputs)
        if len(node.inputs) < count or any(given is None for given in node.inputs[:count]):
            return False
        if not pattern.more and any(given is not None for given in node.inputs[count:]):
            return False
        return all(_allows(wanted, attribute(node, name)) for name, wanted in pattern.attributes.items())

    def _ranks(self, node: ir.Node, operands: Sequence[Pattern], state: _State) -> _State | None:
        """The state after asking whether a number raises the rank of the result; ``None`` if it does."""
        if node.op_type not in _BROADCASTING or len(operands) != 2:
            return state
        for at in (0, 1):
            tensor = constant_tensor(node.inputs[at]) if isinstance(operands[at], Number) else None
            if tensor is None or not tensor.shape:
                continue
            other = node.inputs[1 - at]
            assert other is not None
            rank = self.editor.rank(other)
            if rank is None:
                state = replace(state, unsure=(*state.unsure, other))
            elif rank < len(tensor.shape):
                return None
        return state

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


def _orders(pattern: Call) -> Iterator[tuple[Pattern, ...]]:
    yield pattern.inputs
    if pattern.op in _COMMUTATIVE and len(pattern.inputs) == 2 and pattern.inputs[0] is not pattern.inputs[1]:
        yield pattern.inputs[::-1]


def _likelihood(pair: tuple[Pattern, ir.Value | None]) -> int:
    """How likely a pattern fits: a number hardly, a variable nearly always. What is unlikely fails early."""
    return 0 if isinstance(pair[0], Number) else 2 if isinstance(pair[0], Variable) else 1


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


class RefusedMatch(Refuse):
    """A refusal that knows the nodes that it is about."""

    def __init__(self, reason: str, nodes: Sequence[ir.Node]) -> None:
        super().__init__(reason)
        self.nodes = nodes


# -- rules -------------------------------------------------------------------------------------------

Build = Callable[[Match], ir.Value | None]
"""Checks a match and builds what replaces it. ``None``: no match after all. Raises ``Refuse`` with a reason.

Must decide before it edits.
"""


@dataclass(frozen=True)
class Rule:
    """Patterns, tried in order, and what replaces them."""

    roots: Mapping[str, tuple[Call, ...]]
    """The patterns by the operator type of their last node."""
    build: Build

    @property
    def ops(self) -> frozenset[str]:
        """The operator types that the rule may begin at."""
        return frozenset(self.roots)

    def apply(self, root: ir.Node, editor: Editor) -> str | None:
        """Replace what ends in ``root``, if it matches, and say what was done."""
        for pattern in self.roots.get(root.op_type, ()):
            match = _Matcher(editor, root).match(pattern)
            if match is None:
                continue
            try:
                new = self.build(match)
            except Refuse as refusal:
                raise RefusedMatch(str(refusal), match.nodes) from None
            if new is None:
                continue
            editor.take_over(root.outputs[0], new)
            _remove(match.nodes, editor)
            producer = new.producer()
            if producer is not None:
                producer.name = root.name  # only now: ONNX Runtime refuses two nodes of one name
            count = len(match.nodes)
            return f"{count} node{'s' if count > 1 else ''} became {producer.op_type if producer else 'a value'}"
        return None


def rule(*patterns: Callable[..., Pattern]) -> Callable[[Build], Rule]:
    """Make a rule of the decorated function; each pattern is a lambda over ``op`` and named values."""
    roots: dict[str, tuple[Call, ...]] = {}
    for given in patterns:
        for option in trace(given):
            roots[option.op] = (*roots.get(option.op, ()), option)
    return lambda build: Rule(roots, build)


def _remove(nodes: Sequence[ir.Node], editor: Editor) -> None:
    """Take out the matched nodes, readers before what they read."""
    left = list(nodes)
    while left:
        unread = [node for node in left if not any(output.uses() for output in node.outputs)]
        assert unread, f"{label(left[0])} is still read"
        for node in unread:
            editor.remove(node)
        left = [node for node in left if node not in unread]


@dataclass(frozen=True, kw_only=True)
class RewritePass(NodePass):
    """A pass made of rules. Each rule sees all nodes before the next one does, so put longer ones first."""

    rules: ClassVar[tuple[Rule, ...]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "rules" in cls.__dict__:
            cls.ops = frozenset().union(*(each.ops for each in cls.rules))

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        said: set[tuple[ir.Node, str]] = set()  # a shorter rule need not repeat what a longer one refused
        for each in self.rules:

            def attempt(node: ir.Node, editor: Editor, each: Rule = each) -> str | None:
                try:
                    return each.apply(node, editor)
                except RefusedMatch as refusal:
                    reason = str(refusal)
                    if (node, reason) in said:
                        return None
                    said.update((part, reason) for part in refusal.nodes)
                    raise

            self.visit(each.ops, attempt, context, log)
        return log.report()

    def rewrite(self, node: ir.Node, editor: Editor) -> str | None:
        for each in self.rules:
            text = each.apply(node, editor)
            if text is not None:
                return text
        return None
