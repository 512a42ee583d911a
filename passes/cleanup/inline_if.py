"""Put the branch in place of an If whose condition is constant.

::

    y = If(true)<then_branch = {a = Relu(x); b = Neg(a)}, else_branch = …>      →      a = Relu(x); y = Neg(a)

The branch that is chosen each time is the only one that is ever computed, so the outputs are the same.
Initializers of the branch go to the enclosing graph (in a local function they become Constant nodes). A value
that leaves the branch keeps its name unless another scope uses that name too. Where an output of the graph
would have to be a constant of the branch, or two outputs the same value, an Identity stands between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxopt.graph import Editor, attribute, label
from onnxopt.pass_base import Context, Log, Pass, Refuse, Report
from onnxopt.passes.cleanup._splice import Names, connect, splice


@dataclass(frozen=True, kw_only=True)
class InlineIf(Pass):
    """Put the chosen branch in place of an If whose condition is constant."""

    name: ClassVar[str] = "inline-if"
    exact: ClassVar[bool] = True
    ops: ClassVar[frozenset[str] | None] = frozenset({"If"})

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        editor = context.editor
        names: Names | None = None
        for node in editor.nodes({"If"}):
            condition = editor.constant(node.inputs[0])
            if condition is None or condition.size != 1 or not self.may_change(node, context):
                continue
            chosen = "then_branch" if condition.reshape(()).item() else "else_branch"
            title = label(node)
            try:
                branch = _branch(node, chosen, editor)
            except Refuse as refusal:
                log.refused(title, str(refusal))
                continue
            names = names or Names(editor)
            _inline(node, branch, editor, names)
            log.changed(title, f"its {chosen} took its place")
        return log.report()


def _branch(node: ir.Node, chosen: str, editor: Editor) -> ir.Graph:
    branch = attribute(node, chosen)
    if not isinstance(branch, ir.Graph):
        raise Refuse(f"its {chosen} is given by the caller of a function")
    if any(value.const_value is None for value in branch.initializers.values()):
        raise Refuse(f"its {chosen} holds a sparse initializer")
    if branch.initializers and editor.model.ir_version < 4:
        raise Refuse(
            f"in IR version {editor.model.ir_version} each initializer is an input too; "
            "run drop-initializer-inputs first"
        )
    return branch


def _inline(node: ir.Node, branch: ir.Graph, editor: Editor, names: Names) -> None:
    for key in ("then_branch", "else_branch"):
        other = attribute(node, key)
        if other is not branch and isinstance(other, ir.Graph):
            names.forget(other)
    chosen = next(key for key, found in node.attributes.items() if found.value is branch)
    del node.attributes[chosen]  # what remains in the node is discarded with it
    results = list(branch.outputs)
    moved = {value: None for inner in branch for value in inner.outputs}
    for inner in branch:
        if inner.name:
            inner.name = names.moved_node(inner.name)
    replaced = splice(editor, branch, node, names.moved)
    connect(editor, node, [replaced.get(value, value) for value in results], moved)
    editor.remove(node)
