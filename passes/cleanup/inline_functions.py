"""Replace calls of local functions by the bodies of the functions.

::

    y = local.scale<by = 2.0>(x), where scale(a) = {c = Constant<value_float = @by>(); b = Mul(a, c)} → (b)
    →  c = Constant<value_float = 2.0>(); y = Mul(x, c)

A call means its body with inputs and attributes filled in, so this is exact. What other passes do to nodes and
shapes, they can then do across the call. An attribute is taken from the call, else from the function's
defaults, else it is absent, as is an input that the call leaves out. Values inside get names of their own, and
nodes the name of the call in front of theirs. Functions that are no longer called are removed.

A call stays if the function reads a domain by another version than the model does, is recursive, gets a graph
as attribute, or would grow the model beyond ``max_nodes`` nodes: functions that call others twice double
with every level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxopt.errors import OptionError
from onnxopt.graph import Editor, discard, label
from onnxopt.pass_base import Context, Log, Pass, Refuse, Report
from onnxopt.passes.cleanup._splice import Names, connect, named_values, rename, splice
from onnxopt.traverse import graphs

_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


@dataclass(frozen=True, kw_only=True)
class InlineFunctions(Pass):
    """Replace calls of local functions by the bodies of the functions."""

    name: ClassVar[str] = "inline-functions"
    exact: ClassVar[bool] = True

    max_nodes: int = 1_000_000
    """How many nodes the bodies that are put in may have in all."""

    def __post_init__(self) -> None:
        if self.max_nodes < 0:
            raise OptionError(f"{self.name}.max_nodes is a number of nodes, got {self.max_nodes}")

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        model = context.editor.model
        if not model.functions:
            return log.report()
        sizes, names = _Sizes(model), Names(context.editor)
        room = self.max_nodes
        work = list(reversed([node for graph in _main_graphs(model) for node in graph]))
        while work:
            node = work.pop()
            function = model.functions.get(node.op_identifier())
            if function is None or not self.may_change(node, context):
                continue
            title = label(node)
            try:
                _check(node, function, context.editor)
                if (size := sizes.of(function)) > room:
                    raise Refuse(f"its function holds {size} nodes, more than the {room} that max_nodes leaves")
            except Refuse as refusal:
                log.refused(title, str(refusal))
                continue
            came = _inline(node, function, context.editor, names)
            room -= len(came)
            work.extend(reversed(came))
            log.changed(title, f"the body of {function.name} took its place")
        self._remove_uncalled(context, log)
        return log.report()

    def _remove_uncalled(self, context: Context, log: Log) -> None:
        model = context.editor.model
        while True:
            called = {node.op_identifier() for graph in graphs(model) for node in graph}
            uncalled = [identifier for identifier in model.functions if identifier not in called]
            allowed = [i for i in uncalled if self.may_change_name(_name(i), context)]
            for identifier in allowed:
                if context.gate.closed:
                    return
                discard(model.functions.pop(identifier).graph)
                log.changed(_name(identifier), "removed: nothing calls this function any more")
            if not allowed:
                return


def _name(identifier: ir.OperatorIdentifier) -> str:
    return ":".join(part for part in identifier if part)


def _main_graphs(model: ir.Model) -> list[ir.Graph]:
    return [model.graph, *model.graph.subgraphs()]


class _Sizes:
    """How many nodes each function holds when all calls in it are put in too."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._sizes: dict[ir.OperatorIdentifier, int] = {}
        self._open: set[ir.OperatorIdentifier] = set()

    def of(self, function: ir.Function) -> int:
        """Raises ``Refuse`` for a function that calls itself, however far around."""
        identifier = function.identifier()
        if identifier in self._open:
            raise Refuse(f"the function {function.name} calls itself")
        if identifier not in self._sizes:
            self._open.add(identifier)
            try:
                total = 0
                for node in function.all_nodes():
                    callee = self._model.functions.get(node.op_identifier())
                    total += 1 if callee is None else self.of(callee)
                self._sizes[identifier] = total
            finally:
                self._open.discard(identifier)
        return self._sizes[identifier]


def _check(node: ir.Node, function: ir.Function, editor: Editor) -> None:
    if len(node.inputs) > len(function.inputs) or len(node.outputs) > len(function.outputs):
        raise Refuse(f"it gives {function.name} more inputs, or wants more outputs, than the function has")
    if any(found.type in _GRAPHS for found in node.attributes.values()):
        raise Refuse(f"it gives {function.name} a graph as attribute")
    given = {id(value) for value, argument in zip(function.inputs, node.inputs, strict=False) if argument is not None}
    for old, value in zip(node.outputs, function.outputs, strict=False):
        if value.is_graph_input() and id(value) not in given and (old.uses() or old.is_graph_output()):
            raise Refuse(f"{function.name} hands on the input {value.name!r}, which it does not give")
    imports = editor.model.opset_imports
    for domain in sorted({inner.domain for inner in function.all_nodes()}):
        wanted = function.opset_imports.get(domain)
        if domain in imports and wanted is not None and imports[domain] != wanted:
            raise Refuse(
                f"the function reads operators of the domain {domain!r} by version {wanted}, "
                f"the model by {imports[domain]}"
            )


def _inline(node: ir.Node, function: ir.Function, editor: Editor, names: Names) -> list[ir.Node]:
    """Put the body of ``function`` in place of ``node``; returns the nodes that came, at any depth."""
    body = function.clone().graph
    inner = [body, *body.subgraphs()]
    for domain in {each.domain for graph in inner for each in graph}:
        if domain in function.opset_imports:
            editor.model.opset_imports.setdefault(domain, function.opset_imports[domain])
    came = [each for graph in inner for each in graph]
    for each in came:
        _fill_in(each, node, function)
        if each.name:
            each.name = names.new_node(f"{node.name}/{each.name}" if node.name else each.name)
        each.metadata_props.update({k: v for k, v in node.metadata_props.items() if k not in each.metadata_props})
    for graph in inner:
        for value in list(named_values(graph)):
            if graph is not body:
                rename(value, editor.fresh(value.name or ""))
            elif value.producer() is not None:
                value.type = value.shape = None  # its symbols may mean something else out here
    results = list(body.outputs)
    given: dict[ir.Value, ir.Value | None] = dict.fromkeys(body.inputs)
    given.update(zip(body.inputs, node.inputs, strict=False))
    for value, argument in given.items():
        for user, at in value.uses():
            user.replace_input_with(at, argument)
            if argument is None:
                _strip(user)
    fresh = {value: None for each in body for value in each.outputs}
    splice(editor, body, node, editor.fresh)
    connect(editor, node, [given.get(value, value) for value in results], fresh)
    editor.remove(node)
    return came


def _strip(node: ir.Node) -> None:
    """Drop trailing inputs that are absent."""
    count = len(node.inputs)
    while count and node.inputs[count - 1] is None:
        count -= 1
    node.resize_inputs(count)


def _fill_in(node: ir.Node, call: ir.Node, function: ir.Function) -> None:
    """Replace references to attributes of the function by what the call, or a default, says they are."""
    for key, found in list(node.attributes.items()):
        if not found.is_ref():
            continue
        name = found.ref_attr_name or ""
        given = call.attributes.get(name) or function.attributes.get(name)
        if given is None or (given.value is None and not given.is_ref()):
            del node.attributes[key]
        elif given.is_ref():
            node.attributes[key] = ir.RefAttr(key, given.ref_attr_name or "", given.type, given.doc_string)
        else:
            node.attributes[key] = ir.Attr(key, given.type, given.value, doc_string=given.doc_string)
