"""Remove what no output depends on.

Every operator of ONNX is a function of its inputs (a random one, of a hidden seed as well): a node whose
outputs nobody reads can go, and then perhaps the nodes before it. One walk from the outputs backward marks
what is needed, in bodies and local functions too, and the rest is removed: nodes, initializers, trailing
optional outputs (the mask of a Dropout), functions that nothing calls, and outputs of If and Loop together
with what computes them inside::

    y, z = If(c)<then_branch = {a = Relu(x); b = Neg(x)} → (a, b), …>, z unread
    →  y = If(c)<then_branch = {a = Relu(x)} → (a), …>

A value that a Loop carries goes if neither a reader outside nor anything but itself needs it. Inputs and
outputs of the model and of functions stay, as do nodes without outputs (they are there for a side effect) and
the training outputs of a BatchNormalization, whose number selects its mode. Linear in the size of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableSequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxopt.graph import Editor, bodies, discard, label
from onnxopt.pass_base import Context, Log, Pass, Report
from onnxopt.passes.cleanup._liveness import Liveness, is_if, is_loop, loop_body
from onnxopt.passes.cleanup._operands import is_read

_OPTIONAL_AFTER_FIRST = frozenset(
    {"Dropout", "MaxPool", "LayerNormalization", "LSTM", "GRU", "RNN", "Unique", "SoftmaxCrossEntropyLoss"}
)
"""Operators whose outputs after the first are optional and change nothing in the others."""


@dataclass(frozen=True, kw_only=True)
class RemoveDead(Pass):
    """Remove nodes, outputs, initializers and functions that no output depends on."""

    name: ClassVar[str] = "remove-dead"
    exact: ClassVar[bool] = True

    def run(self, context: Context) -> Report:
        model = context.editor.model
        log = Log(self, context)
        if context.editor.is_flat and _all_is_read(model.graph):
            return log.report()
        self._remove_functions(model, context, log)
        roots = (model.graph, *(function.graph for function in model.functions.values()))
        live = Liveness(
            context.editor, roots, lambda node: not node.outputs or not self.may_change(node, context)
        )
        sweep = _Sweep(self, context, live, log)
        for graph in roots:
            sweep.graph(graph)
        for graph in list(context.editor.graphs()):
            self._remove_initializers(graph, context, log)
        return log.report()

    def _remove_functions(self, model: ir.Model, context: Context, log: Log) -> None:
        if not model.functions:
            return
        called: set[ir.OperatorIdentifier] = set()
        work: list[Iterable[ir.Node]] = [model.graph.all_nodes()]
        while work:
            for node in work.pop():
                identifier = node.op_identifier()
                if identifier in model.functions and identifier not in called:
                    called.add(identifier)
                    work.append(model.functions[identifier].all_nodes())
        for identifier in [i for i in model.functions if i not in called]:
            name = ":".join(part for part in identifier if part)
            if self.may_change_name(name, context):
                discard(model.functions.pop(identifier).graph)
                log.changed(name, "removed: nothing calls this function")

    def _remove_initializers(self, graph: ir.Graph, context: Context, log: Log) -> None:
        for name, value in list(graph.initializers.items()):
            if value.uses() or value.is_graph_input() or value.is_graph_output():
                continue
            if self.may_change_name(name, context):
                del graph.initializers[name]
                log.changed(name, "removed: nothing reads this initializer")


def _all_is_read(graph: ir.Graph) -> bool:
    """Whether somebody reads every output and initializer of a graph without bodies; then all of it is needed."""
    return all(is_read(value) for node in graph for value in node.outputs) and all(
        is_read(value) or value.is_graph_input() for value in graph.initializers.values()
    )


class _Sweep:
    """Removes what is not live, readers before what they read, so that it may stop after any change."""

    def __init__(self, pass_: Pass, context: Context, live: Liveness, log: Log) -> None:
        self._pass, self._editor, self._gate = pass_, context.editor, context.gate
        self._live, self._log = live, log

    def graph(self, graph: ir.Graph, *, part_of_change: bool = False) -> None:
        """Remove dead nodes of ``graph``; if they are part of a larger change, do not count them."""
        dead: list[ir.Node] = []
        for node in reversed(tuple(graph)):
            if self._gate.closed and not part_of_change:
                break
            if not self._live.node(node):
                self._detach(node)
                dead.append(node)
                if not part_of_change:
                    self._log.changed(label(node), "removed: nothing needs it")
            elif is_loop(node):
                self._loop(node, part_of_change)
            else:
                inner = list(bodies(node))  # an If is made anew around them
                if is_if(node):
                    self._if(node, part_of_change)
                else:
                    self._trim(node, part_of_change)
                for body in inner:
                    self.graph(body, part_of_change=part_of_change)
        graph.remove(dead)

    def _detach(self, node: ir.Node) -> None:
        node.resize_inputs(0)
        for body in bodies(node):
            discard(body)

    def _unread(self, node: ir.Node) -> list[int]:
        """The outputs of ``node`` that nothing needs."""
        return [at for at, value in enumerate(node.outputs) if not self._live.value(value)]

    def _count(self, node: ir.Node, texts: list[str], part_of_change: bool) -> None:
        if not part_of_change:
            self._log.changed(label(node), f"dropped the unread {', '.join(texts)}")

    def _trim(self, node: ir.Node, part_of_change: bool) -> None:
        if node.domain != "" or node.op_type not in _OPTIONAL_AFTER_FIRST:
            return
        keep = len(node.outputs)
        while keep > 1 and (not node.outputs[keep - 1].name or not self._live.value(node.outputs[keep - 1])):
            keep -= 1
        dropped = [value.name for value in node.outputs[keep:] if value.name]
        if dropped:
            node.resize_outputs(keep)
            self._count(node, dropped, part_of_change)

    def _if(self, node: ir.Node, part_of_change: bool) -> None:
        unread = self._unread(node)
        if not unread:
            return
        names = [node.outputs[at].name or f"output {at}" for at in unread]
        for branch in bodies(node):
            _drop(branch.outputs, unread)
        self._count(_rebuilt(node, node.inputs, unread, self._editor), names, part_of_change)

    def _loop(self, node: ir.Node, part_of_change: bool) -> None:
        """Drop unread values of a Loop; what computes them inside goes in the same change, for a value that
        is carried but never comes out would leave the Loop broken."""
        body = loop_body(node)
        count = len(node.inputs) - 2
        carried = [at for at in range(count) if not self._live.carried(node, at)]
        unread = carried + [at for at in self._unread(node) if at >= count]
        if not unread:
            self.graph(body, part_of_change=part_of_change)
            return
        names = [node.outputs[at].name or f"output {at}" for at in unread]
        _drop(body.outputs, [1 + at for at in unread])
        self.graph(body, part_of_change=True)
        _drop(body.inputs, [2 + at for at in carried])
        inputs = [value for at, value in enumerate(node.inputs) if at - 2 not in carried]
        self._count(_rebuilt(node, inputs, unread, self._editor), names, part_of_change)


def _drop(values: MutableSequence[ir.Value], places: list[int]) -> None:
    for at in reversed(places):
        values.pop(at)


def _rebuilt(
    node: ir.Node, inputs: Iterable[ir.Value | None], without: list[int], editor: Editor
) -> ir.Node:
    """``node`` anew, with these inputs and without some outputs; it keeps bodies, names and metadata."""
    kept = [value for at, value in enumerate(node.outputs) if at not in set(without)]
    attributes = list(node.attributes.values())
    node.attributes.clear()
    new = ir.Node(
        node.domain, node.op_type, tuple(inputs), attributes, overload=node.overload, num_outputs=len(kept),
        version=node.version, name=node.name, doc_string=node.doc_string,
        metadata_props=dict(node.metadata_props), device_configurations=node.device_configurations,
    )  # fmt: skip
    new.meta.update(node.meta)
    graph = node.graph
    assert graph is not None
    graph.insert_before(node, new)
    for old, output in zip(kept, new.outputs, strict=True):
        editor.take_over(old, output)
    editor.remove(node)
    return new
