"""Move the content of one graph into another: what inlining an If and inlining a function have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import onnx_ir as ir

from onnxopt.graph import Editor, bodies
from onnxopt.traverse import is_external


def renamed(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """The same data under another name; ``tensor`` may belong to other models too and keeps its own."""
    doc, metadata = tensor.doc_string, dict(tensor.metadata_props)
    if is_external(tensor):
        return ir.ExternalTensor(
            tensor.location, tensor.offset, tensor.length, tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()), name=name, base_dir=tensor.base_dir,
            doc_string=doc, metadata_props=metadata,
        )  # fmt: skip
    if tensor.dtype == ir.DataType.STRING:
        strings = [bytes(item) for item in tensor.string_data()]  # type: ignore[attr-defined]
        return ir.StringTensor(
            strings, shape=ir.Shape(tensor.shape.numpy()), name=name, doc_string=doc, metadata_props=metadata
        )
    return ir.Tensor(
        tensor.numpy(), tensor.dtype, shape=tensor.shape, name=name, doc_string=doc, metadata_props=metadata  # type: ignore[arg-type]
    )


def rename(value: ir.Value, name: str) -> None:
    """Give ``value`` another name without touching a tensor that other models share."""
    if value.name == name:
        return
    tensor = value.const_value
    value.const_value = None
    value.name = name
    value.const_value = None if tensor is None else renamed(tensor, name)


def named_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Every value that ``graph`` itself defines under a name: inputs, initializers, outputs of nodes."""
    yield from (v for v in graph.inputs if v.name)
    yield from (v for v in graph.initializers.values() if not v.is_graph_input())
    for node in graph:
        yield from (v for v in node.outputs if v.name)


class Names:
    """How many values and nodes of a model bear each name.

    Sibling bodies may use the same, nested scopes must not; ONNX Runtime also refuses a graph in which two
    nodes share a name.
    """

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self._values = Counter(v.name for graph in editor.graphs() for v in named_values(graph))
        self._nodes = Counter(node.name for graph in editor.graphs() for node in graph if node.name)
        self._tried: Counter[str] = Counter()

    def forget(self, graph: ir.Graph) -> None:
        """``graph`` and the bodies in it are about to vanish."""
        for value in named_values(graph):
            self._values[value.name] -= 1
        for node in graph:
            self._nodes[node.name or ""] -= 1
            for body in bodies(node):
                self.forget(body)

    def moved(self, name: str) -> str:
        """The name for a value that leaves its scope: its own if nobody else has it."""
        if self._values[name] > 1:
            self._values[name] -= 1
            name = self._editor.fresh(name)
            self._values[name] = 1
        return name

    def moved_node(self, name: str) -> str:
        """The same for a node."""
        if self._nodes[name] > 1:
            self._nodes[name] -= 1
            name = self.new_node(name)
        return name

    def new_node(self, name: str) -> str:
        """The name for a node that comes in: ``name``, with a number if another has it."""
        found = name
        while self._nodes[found] > 0:
            self._tried[name] += 1
            found = f"{name}_{self._tried[name]}"
        self._nodes[found] = 1
        return found


def splice(
    editor: Editor, source: ir.Graph, before: ir.Node, name: Callable[[str], str]
) -> dict[ir.Value, ir.Value]:
    """Move initializers and nodes of ``source`` in front of ``before``, each value named by ``name``.

    Returns what replaces the initializers that had to become Constant nodes, in a local function.
    """
    target = before.graph
    assert target is not None
    source.outputs.clear()
    editor.outdate_facts()  # out here more is known of what the nodes read
    replaced: dict[ir.Value, ir.Value] = {}
    for value in list(source.initializers.values()):
        assert value.name is not None
        assert value.const_value is not None
        del source.initializers[value.name]
        rename(value, name(value.name))
        if editor.in_function(before):
            constant = editor.insert(before, "Constant", [], {"value": value.const_value}, name="")
            value.replace_all_uses_with(constant)
            replaced[value] = constant
        else:
            target.register_initializer(value)
    nodes = tuple(source)
    source.remove(nodes)
    for node in nodes:
        for output in node.outputs:
            if output.name:
                rename(output, name(output.name))
    target.insert_before(before, nodes)
    return replaced


def connect(
    editor: Editor, node: ir.Node, results: Sequence[ir.Value | None], fresh: Mapping[ir.Value, object]
) -> None:
    """Let ``results`` stand where the outputs of ``node`` stood.

    Of these, ``fresh`` ones may take over the name of an output; others only hand their data on, through an
    Identity if an output of the graph is to bear it.
    """
    taken: set[ir.Value] = set()
    for old, new in zip(node.outputs, results, strict=False):
        if new is None or (not old.uses() and not old.is_graph_output()):
            continue
        if new in fresh and new not in taken:
            editor.take_over(old, new)
        elif old.is_graph_output():
            editor.take_over(old, editor.insert(node, "Identity", [new], name=""))
        else:
            editor.redirect(old, new)
        taken.add(new)
