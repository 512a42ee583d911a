"""Let equal initializers be one.

Exporters write a weight that is shared once for each use, and small constants over and over::

    y = Add(Mul(x, w1), w2), w1 = w2      →      y = Add(Mul(x, w1), w1)

Two initializers are equal if type, dims and every byte agree (so ``-0.0`` is not ``0.0``, and a NaN equals
itself); readers then cannot tell them apart. Candidates are told apart by type and dims, then by their first
and last bytes, and only then by a 256-bit fingerprint of the data, read in pieces, so that a model larger than
memory is no problem. One in an enclosing graph serves the bodies too. An initializer that is also an input is
a default that callers may override and never merges; one that is an output stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxopt.graph import Editor, bodies
from onnxopt.pass_base import Context, Log, Pass, Report
from onnxopt.passes.cleanup._content import digest, is_sampled_whole, kind, sample


@dataclass(frozen=True, kw_only=True)
class MergeInitializers(Pass):
    """Let equal initializers of a graph and of the graphs around it be one."""

    name: ClassVar[str] = "merge-initializers"
    exact: ClassVar[bool] = True

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        model = context.editor.model
        twins = _twins(context.editor)
        if twins:
            for graph in (model.graph, *(function.graph for function in model.functions.values())):
                self._merge(graph, twins, {}, context, log)
        return log.report()

    def _merge(
        self, graph: ir.Graph, twins: dict[ir.Value, Hashable], seen: dict[Hashable, ir.Value],
        context: Context, log: Log,
    ) -> None:  # fmt: skip
        """Merge in ``graph`` and its bodies; ``seen`` holds what the graphs around it offer."""
        own: list[Hashable] = []
        for value in list(graph.initializers.values()):
            if (content := twins.get(value)) is None:
                continue
            keeper = seen.get(content)
            name = value.name or ""
            if keeper is None:
                seen[content] = value
                own.append(content)
            elif not value.is_graph_output() and self.may_change_name(name, context):
                value.replace_all_uses_with(keeper)
                del graph.initializers[name]
                log.changed(name, f"equals {keeper.name}")
        for node in graph:
            for body in bodies(node):
                self._merge(body, twins, seen, context, log)
        for content in own:
            del seen[content]


def _twins(editor: Editor) -> dict[ir.Value, Hashable]:
    """Initializers that are not alone in what they hold, each with a key that says what that is."""
    tensors = {
        value: value.const_value
        for graph in editor.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None and not value.is_graph_input()
    }
    keys: dict[ir.Value, Hashable] = {}
    measures: tuple[Callable[[ir.TensorProtocol], Hashable], ...] = (kind, sample, _whole)
    for measure in measures:
        keys = {value: measure(tensor) for value, tensor in tensors.items()}
        count = Counter(keys.values())
        tensors = {value: tensor for value, tensor in tensors.items() if count[keys[value]] > 1}
        if not tensors:
            return {}
    return {value: keys[value] for value in tensors}


def _whole(tensor: ir.TensorProtocol) -> Hashable:
    return sample(tensor) if is_sampled_whole(tensor) else digest(tensor)
