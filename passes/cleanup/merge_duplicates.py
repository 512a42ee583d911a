"""Compute once what is computed twice.

Two nodes are twins if operator, attributes and inputs are the same; the later one is dropped, and the earlier
one read in its place (common subexpression elimination; nodes are looked up by value number, as in Cocke and
Schwartz, "Programming Languages and their Compilers", 1970)::

    a = Relu(x); b = Relu(x); y = Add(a, b)      →      a = Relu(x); y = Add(a, a)

This is exact for operators that give the same output for the same input, which the standard ones do, but for
the random ones: ``RandomNormal`` and the like, ``Bernoulli``, ``Multinomial``, and ``Dropout`` in training.
Operators of other domains, and calls of local functions, merge only if their domain is named in ``domains``.
A node with bodies never merges. The twin that stays must be computed wherever the other was: it stands earlier
in the same graph, or in front of the node in whose body the other stands. Two twins that both are outputs of
the graph stay, for both names are wanted.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxopt.graph import Editor, bodies, label
from onnxopt.pass_base import Context, Log, Pass, Report
from onnxopt.passes.cleanup._content import digest, is_sampled_whole, sample

_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
_PLAIN = (ir.AttributeType.INT, ir.AttributeType.STRING)
_LISTS = (ir.AttributeType.INTS, ir.AttributeType.STRINGS)

_Seen = dict[Hashable, ir.Node]


@dataclass(frozen=True, kw_only=True)
class MergeDuplicates(Pass):
    """Compute once what is computed twice."""

    name: ClassVar[str] = "merge-duplicates"
    exact: ClassVar[bool] = True

    domains: tuple[str, ...] = ()
    """Further domains whose operators and functions give the same output for the same input."""

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        model = context.editor.model
        for graph in (model.graph, *(function.graph for function in model.functions.values())):
            self._merge(graph, {}, context, log)
        return log.report()

    def _merge(self, graph: ir.Graph, seen: _Seen, context: Context, log: Log) -> None:
        """Merge in ``graph`` and its bodies; ``seen`` holds what is computed before ``graph`` is entered.

        It holds each node under its operator and inputs, and, once there is a second one, under its full key.
        """
        own: list[Hashable] = []

        def see(key: Hashable, node: ir.Node) -> None:
            seen[key] = node
            own.append(key)

        for node in graph:
            for body in bodies(node):
                self._merge(body, seen, context, log)
            rough = node.op_type, node.inputs
            first = seen.get(rough)
            if first is None:
                see(rough, node)
                continue
            key = self._key(node, context.editor)
            if key is None:
                continue
            if (of_first := self._key(first, context.editor)) is not None and of_first not in seen:
                see(of_first, first)
            twin = seen.get(key)
            if twin is None:
                see(key, node)
            elif _may_stand_for(twin, node) and self.may_change(node, context):
                title, other = label(node), label(twin)
                for old, new in zip(node.outputs, twin.outputs, strict=True):
                    context.editor.redirect(old, new)
                context.editor.remove(node)
                log.changed(title, f"computed the same as {other}")
        for key in own:
            del seen[key]

    def _key(self, node: ir.Node, editor: Editor) -> Hashable | None:
        """What twins have in common; ``None`` for a node that has none."""
        if node.domain not in ("", "ai.onnx.ml", *self.domains):
            return None
        if node.op_identifier() in editor.model.functions and node.domain not in self.domains:
            return None
        if node.domain == "" and (node.op_type in _RANDOM or not node.outputs or _drops_out(node, editor)):
            return None
        attributes = []
        for name, attribute in sorted(node.attributes.data.items()):
            content = _content(attribute)
            if content is None:
                return None
            attributes.append((name, attribute.type, content))
        # how many outputs there are says into how many parts a Split goes
        outputs = tuple(bool(value.name) for value in node.outputs)
        return node.op_identifier(), outputs, node.inputs, tuple(attributes)


def _may_stand_for(twin: ir.Node, node: ir.Node) -> bool:
    for old, new in zip(node.outputs, twin.outputs, strict=True):
        if old.is_graph_output():
            graph = node.graph
            assert graph is not None
            if new.is_graph_output() or twin.graph is not graph or sum(o is old for o in graph.outputs) > 1:
                return False
    return True


def _drops_out(node: ir.Node, editor: Editor) -> bool:
    """Whether this is a Dropout that may be random: by its flag, or in opsets where it was by another name."""
    if node.op_type != "Dropout":
        return False
    opset = editor.opset(node)
    if opset < 7:
        return True
    if opset < 12 or len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    training = editor.constant(node.inputs[2])
    return training is None or bool(training.any())


def _content(attribute: ir.Attr) -> Hashable | None:
    """The value of an attribute in a form that is equal for equal bits; ``None`` for graphs and rare types."""
    if attribute.is_ref():
        return "reference", attribute.ref_attr_name
    if attribute.type in _PLAIN:
        return attribute.value  # type: ignore[no-any-return]
    if attribute.type in _LISTS:
        return tuple(attribute.value)
    if attribute.type == ir.AttributeType.FLOAT:
        return float(attribute.value).hex()  # 0.0 == -0.0, but 1/x tells them apart
    if attribute.type == ir.AttributeType.FLOATS:
        return tuple(float(item).hex() for item in attribute.value)
    if attribute.type == ir.AttributeType.TENSOR:
        return sample(attribute.value) if is_sampled_whole(attribute.value) else digest(attribute.value)
    return None
