"""What passes that replace float weights by integers share: operators of ONNX Runtime's own, opsets, leftovers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from onnxopt.graph import AttributeValue, Editor, label
from onnxopt.pass_base import Context, Log
from onnxopt.passes.cleanup.convert_opset import ConvertOpset

DOMAIN = "com.microsoft"


def insert_contrib(
    editor: Editor,
    before: ir.Node,
    op: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, AttributeValue],
    outputs: int = 1,
) -> Sequence[ir.Value]:
    """A node of ONNX Runtime's domain in front of ``before``, whose work it takes over; returns its outputs."""
    new = editor.insert_many(before, op, inputs, attributes, outputs=outputs)
    node = new[0].producer()
    assert node is not None
    node.domain = DOMAIN
    imports = editor.model.opset_imports
    for function in editor.model.functions.values():
        if before.graph in (function.graph, *function.graph.subgraphs()):
            imports = function.opset_imports
    imports.setdefault(DOMAIN, 1)
    editor.model.opset_imports.setdefault(DOMAIN, 1)
    return new


def remove_unread(value: ir.Value, editor: Editor) -> None:
    """Take a constant out of the model if nobody reads it any more."""
    if value.uses() or value.is_graph_output():
        return
    producer = value.producer()
    if producer is not None:
        editor.remove(producer)
    elif value.graph is not None and value.name is not None:
        del value.graph.initializers[value.name]


def remove_back(node: ir.Node, editor: Editor) -> None:
    """Remove a node that nobody reads, and what nobody has read but it."""
    before = [value for value in node.inputs if value is not None]
    editor.remove(node)
    for value in dict.fromkeys(before):
        producer = value.producer()
        if producer is None:
            if value.is_initializer() and not value.is_graph_input():
                remove_unread(value, editor)
        elif producer.graph is not None and not any(o.uses() or o.is_graph_output() for o in producer.outputs):
            remove_back(producer, editor)


def other_reader(weight: ir.Value, mine: Collection[tuple[ir.Node, int]]) -> str | None:
    """What reads ``weight``, not counting these inputs of these nodes, or ``None``."""
    if weight.is_graph_output():
        return "an output of the model"
    return min((label(use.node) for use in weight.uses() if (use.node, use.idx) not in mine), default=None)


def upgrade(editor: Editor, version: int, waiting: Sequence[str], log: Log) -> bool | None:
    """Convert the model to an opset, which replaces all nodes; ``None``, with refusals of ``waiting``, if it fails."""
    report = ConvertOpset(version=version).run(Context(editor))
    if not report.changed:
        reason = report.refusals[0].text if report.refusals else "it has none"
        for name in waiting:
            log.refused(name, f"needs opset {version}, which the model cannot be converted to: {reason}")
        return None
    log.changed("model", f"{report.changes[0].text}, which the quantized operators need")
    return True
