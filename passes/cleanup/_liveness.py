"""Which values of a model reach an output."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx_ir as ir

from onnxopt.graph import Editor, attribute, bodies


class Liveness:
    """The values and nodes that the outputs of a model, and the nodes in ``kept``, depend on.

    A worklist from the outputs backward; each value is looked at once. If and Loop are looked through: an
    output of theirs needs only the outputs of their bodies that belong to it.
    """

    def __init__(
        self, editor: Editor, roots: Iterable[ir.Graph], kept: Callable[[ir.Node], bool]
    ) -> None:
        self._editor = editor
        self._values: set[ir.Value] = set()
        self._nodes: set[ir.Node] = set()
        self._carried: dict[ir.Value, tuple[ir.Node, int]] = {}
        self._work: list[ir.Value] = []
        for graph in roots:
            self._need(graph.outputs)
            self._keep(graph, kept)
        while self._work:
            self._follow(self._work.pop())

    def node(self, node: ir.Node) -> bool:
        """Whether anything needs ``node``."""
        return node in self._nodes

    def value(self, value: ir.Value) -> bool:
        """Whether anything needs ``value``."""
        return value in self._values

    def carried(self, node: ir.Node, at: int) -> bool:
        """Whether a Loop needs its ``at``-th loop-carried value: a reader outside, or the next turn, does."""
        return node.outputs[at] in self._values or loop_body(node).inputs[2 + at] in self._values

    def _keep(self, graph: ir.Graph, kept: Callable[[ir.Node], bool]) -> bool:
        """Need each node that must stay, and the nodes in whose bodies one stands; whether there is any."""
        found = False
        for node in graph:
            inside = [self._keep(body, kept) for body in bodies(node)]
            if kept(node) or any(inside):
                found = True
                self._visit(node)
                self._need(node.outputs)
        return found

    def _need(self, values: Iterable[ir.Value | None]) -> None:
        for value in values:
            if value is not None and value not in self._values:
                self._values.add(value)
                self._work.append(value)

    def _follow(self, value: ir.Value) -> None:
        node = value.producer()
        if node is None:
            if value in self._carried:
                loop, place = self._carried[value]
                self._need((loop.inputs[2 + place], loop_body(loop).outputs[1 + place]))
            return
        self._visit(node)
        at = value.index()
        assert at is not None
        op = node.op_type
        if op == "If" and is_if(node):
            self._need(branch.outputs[at] for branch in bodies(node))
        elif op == "Loop" and is_loop(node):
            self._need((loop_body(node).outputs[1 + at],))
            if at < len(node.inputs) - 2:
                self._need((node.inputs[2 + at],))

    def _visit(self, node: ir.Node) -> None:
        if node in self._nodes:
            return
        self._nodes.add(node)
        op = node.op_type
        if op == "If" and is_if(node):
            self._need(node.inputs)
        elif op == "Loop" and is_loop(node):
            body = loop_body(node)
            self._need((*node.inputs[:2], body.outputs[0]))
            for at, value in enumerate(body.inputs[2:]):
                self._carried[value] = node, at
                if value in self._values:  # seen before its Loop was: a node in the body is kept
                    self._work.append(value)
            if self._editor.opset(node) < 11:  # a Loop had to carry something then
                self._need(body.inputs[2:3])
        else:
            self._need(node.inputs)
            for body in bodies(node):
                self._need(body.outputs)


def is_if(node: ir.Node) -> bool:
    """Whether ``node`` is an If whose branches and outputs correspond."""
    if node.op_type != "If" or node.domain != "":
        return False
    branches = list(bodies(node))
    return len(branches) == 2 and all(len(branch.outputs) == len(node.outputs) for branch in branches)


def is_loop(node: ir.Node) -> bool:
    """Whether ``node`` is a Loop whose body and outputs correspond."""
    if node.op_type != "Loop" or node.domain != "":
        return False
    body = attribute(node, "body")
    return (
        isinstance(body, ir.Graph)
        and len(node.inputs) == len(body.inputs)
        and len(node.outputs) == len(body.outputs) - 1
        and 2 <= len(node.inputs) <= len(node.outputs) + 2
    )


def loop_body(node: ir.Node) -> ir.Graph:
    """The body of a Loop that ``is_loop``."""
    body: ir.Graph = node.attributes["body"].as_graph()
    return body
