"""Residual branches: what is computed of a stream and then added to it.

In ``y = x + f(x)``, ``x`` is the stream and ``f`` the branch; without the branch ``y = x``. The side of an addition
that the other is computed from is the stream. It may be a sum itself, as in ``(x + f(x)) + g(x)``: then it is enough
that one of its terms is what the branch starts from. What else reads the sum, be it a normalization or an activation,
reads the stream afterwards.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.graph import Editor, bodies, constant_tensor, label
from onnxopt.macs import count_macs
from onnxopt.passes.cleanup._operands import discard, is_read
from onnxopt.shapes import Dims

_SUMS = ("Add", "Sum")


@dataclass(frozen=True, eq=False)
class Branch:
    """A branch that can be removed."""

    add: ir.Node
    """Where it meets the stream."""
    side: int
    """Which input of the addition it is."""
    nodes: frozenset[ir.Node]
    """What is there for the branch alone."""
    parameters: int
    """The elements of the constants that are."""

    @property
    def name(self) -> str:
        """How reports and filters call it."""
        return label(self.add)

    @property
    def stream(self) -> ir.Value:
        """What is left of the sum."""
        value = self.add.inputs[1 - self.side]
        assert value is not None
        return value


class Branches:
    """The residual branches of the main graph."""

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self.found: list[Branch] = []
        self.refused: list[tuple[ir.Node, str]] = []
        """Sums of branches of which none can be removed, and why."""
        counted = count_macs(editor.model)
        self.total = counted.total
        """The multiply–accumulates of the model."""
        self._macs, self._unknown = counted.by_output, frozenset(counted.unknown)
        graph = editor.model.graph
        self._nodes = list(graph)
        self._order = {node: at for at, node in enumerate(self._nodes)}
        self._owner = {inner: node for node in graph for body in bodies(node) for inner in body.all_nodes()}
        self._bits: dict[ir.Value, int] = {}
        self._before: dict[ir.Value, int] = {}
        """What each value is computed of, a bit each."""
        for node in graph:
            before = 0
            for value in reads(node):
                if constant_tensor(value) is None:
                    before |= self._bit(value) | self._before.get(value, 0)
            self._before.update(dict.fromkeys(node.outputs, before))
            if node.op_type in _SUMS and node.domain == "" and len(node.inputs) == 2:
                self._look_at(node)

    def macs(self, nodes: Iterable[ir.Node]) -> int:
        """The multiply–accumulates of these nodes."""
        return sum(self._macs.get(node.outputs[0].name or "", 0) for node in nodes if node.outputs)

    def uncounted(self, nodes: Iterable[ir.Node]) -> list[str]:
        """Those of these nodes whose multiply–accumulates are not known."""
        return sorted(label(node) for node in nodes if label(node) in self._unknown)

    def _bit(self, value: ir.Value) -> int:
        return self._bits.setdefault(value, 1 << len(self._bits))

    def _look_at(self, add: ir.Node) -> None:
        a, b = add.inputs
        if a is None or b is None or a is b or _is_fixed(a, self._before) or _is_fixed(b, self._before):
            return
        if _differ(self._editor.shape(a), self._editor.shape(b)):
            return  # one is spread over the other, like a mask over scores
        ways = [at for at, (end, other) in enumerate(((a, b), (b, a))) if self._starts_from(end, other)]
        alone = [self._alone(add, at) for at in (0, 1)]
        if len(ways) != 1:
            if all(map(self._works, alone)) and self._before.get(a, 0) & self._before.get(b, 0):
                why = "each is computed of the other" if ways else "neither is what the other starts from"
                self.refused.append((add, f"both sides are branches with layers of their own: {why}"))
            return
        nodes, value, stream = alone[ways[0]], (a, b)[ways[0]], (b, a)[ways[0]]
        if self._works(nodes):
            own = [v for n in nodes for v in reads(n) if all(self._outer(use.node) in nodes for use in v.uses())]
            parameters = sum(tensor.size for v in dict.fromkeys(own) if (tensor := constant_tensor(v)) is not None)
            self.found.append(Branch(add, ways[0], nodes, parameters))
        elif is_read_twice(value):
            between = self._before.get(value, 0) & ~self._before.get(stream, 0)
            made = [v.producer() for v, bit in self._bits.items() if bit & between] + [value.producer()]
            if self._works(node for node in made if node is not None and node is not stream.producer()):
                others = [label(use.node) for use in value.uses() if use.node is not add] or ["the caller"]
                self.refused.append((add, f"its branch stays: {', '.join(others)} reads it too"))

    def _starts_from(self, end: ir.Value, stream: ir.Value) -> bool:
        """Whether ``end`` is computed of ``stream``, or of a term of the sum that this is."""
        return any(self._bits.get(term, 0) & self._before.get(end, 0) for term in _terms(stream))

    def _works(self, nodes: Iterable[ir.Node]) -> bool:
        """Whether there is a layer among these nodes."""
        nodes = list(nodes)
        return self.macs(nodes) > 0 or bool(self.uncounted(nodes))

    def _outer(self, node: ir.Node) -> ir.Node:
        """The node of the main graph that ``node`` is, or in whose body it is."""
        return self._owner.get(node, node)

    def _alone(self, add: ir.Node, side: int) -> frozenset[ir.Node]:
        """The nodes that nobody needs once ``add`` does not read this input."""
        dead: set[ir.Node] = set()
        todo: list[int] = []
        seen: set[int] = set()

        def look_at(value: ir.Value | None) -> None:
            node = value.producer() if value is not None else None
            place = self._order.get(node, -1) if node is not None else -1
            if place >= 0 and place not in seen:
                seen.add(place)
                heapq.heappush(todo, -place)  # so that readers come before what they read

        look_at(add.inputs[side])
        while todo:
            node = self._nodes[-heapq.heappop(todo)]
            uses = [use for output in node.outputs for use in output.uses()]
            if not any(output.is_graph_output() for output in node.outputs) and all(
                self._outer(use.node) in dead or (use.node is add and use.idx == side) for use in uses
            ):
                dead.add(node)
                for value in reads(node):
                    look_at(value)
        return frozenset(dead)


def _is_fixed(value: ir.Value, before: Mapping[ir.Value, int]) -> bool:
    """Whether ``value`` depends on no input."""
    return constant_tensor(value) is not None or (value.producer() is not None and not before.get(value))


def _differ(a: Dims | None, b: Dims | None) -> bool:
    """Whether two shapes are different for certain."""
    if a is None or b is None:
        return False
    return len(a) != len(b) or any(
        isinstance(x, int) and isinstance(y, int) and x != y for x, y in zip(a, b, strict=True)
    )


def reads(node: ir.Node) -> list[ir.Value]:
    """What a node and its bodies read."""
    inner = [each for body in bodies(node) for each in body.all_nodes()]
    return [value for each in (node, *inner) for value in each.inputs if value is not None]


def is_read_twice(value: ir.Value) -> bool:
    """Whether more than one node reads ``value``, or a caller of the model does too."""
    return len(value.uses()) > 1 or value.is_graph_output()


def _terms(value: ir.Value) -> set[ir.Value]:
    """``value`` and the terms that it is a sum of."""
    found, work = {value}, [value]
    while work:
        node = work.pop().producer()
        if node is not None and node.op_type in _SUMS and node.domain == "":
            new = {v for v in node.inputs if v is not None and constant_tensor(v) is None} - found
            found |= new
            work += new
    return found


def remove(branch: Branch, editor: Editor) -> None:
    """Let all that read the sum read the stream, and take out what nobody needs then."""
    add = branch.add
    if editor.redirect(add.outputs[0], branch.stream):
        _drop(add, editor)
    else:
        value = add.inputs[branch.side]
        editor.replace_node(add, "Identity", [branch.stream])
        if value is not None and (producer := value.producer()) is not None:
            _drop(producer, editor)


def _drop(node: ir.Node, editor: Editor) -> None:
    work = [node]
    while work:
        node = work.pop()
        if node.graph is None or any(map(is_read, node.outputs)):
            continue
        read = reads(node)
        editor.remove(node)
        discard(*read)
        work += [p for v in read if (p := v.producer()) is not None and p.graph is editor.model.graph]
