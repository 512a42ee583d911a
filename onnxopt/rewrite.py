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

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir

from onnxopt.graph import AttributeValue, Editor, constant_tensor, label
from onnxopt.matching import Matcher
from onnxopt.pass_base import Context, Log, NodePass, Refuse, Report
from onnxopt.patterns import Call, Pattern, trace


@dataclass(frozen=True)
class Match:
    """A place in the graph that a pattern fits, and the means to build what replaces it."""

    editor: Editor
    root: ir.Node
    nodes: tuple[ir.Node, ...]
    """The matched nodes, ``root`` first."""
    values: Mapping[str, ir.Value]
    """What the variables of the pattern stand for."""
    numbers: tuple[ir.Value, ...]
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


class RefusedMatch(Refuse):
    """A refusal that knows the nodes that it is about."""

    def __init__(self, reason: str, nodes: Sequence[ir.Node]) -> None:
        super().__init__(reason)
        self.nodes = nodes


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

    def among(self, present: Collection[str]) -> Rule:
        """The rule with only those patterns that can match in a model of these operator types."""
        roots = {op: tuple(p for p in patterns if p.needs.issubset(present)) for op, patterns in self.roots.items()}
        return Rule({op: patterns for op, patterns in roots.items() if patterns}, self.build)

    @property
    def ops(self) -> frozenset[str]:
        """The operator types that the rule may begin at."""
        return frozenset(self.roots)

    def apply(self, root: ir.Node, editor: Editor) -> str | None:
        """Replace what ends in ``root``, if it matches, and say what was done."""
        for pattern in self.roots.get(root.op_type, ()):
            found = Matcher(editor, root).match(pattern)
            if found is None:
                continue
            match = Match(editor, root, *found)
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
        present = context.editor.op_types()
        for each in (rule_.among(present) for rule_ in self.rules):
            if not each.roots:
                continue

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
