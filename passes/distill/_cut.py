"""Blocks of a model: what lies between values at which it is cut, as models of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.errors import OptionError
from onnxopt.graph import Editor
from onnxopt.model import copy
from onnxopt.pass_base import Context
from onnxopt.passes.cleanup.remove_dead import RemoveDead
from onnxopt.passes.prune._branches import reads
from onnxopt.train.parameters import find_parameters


@dataclass(frozen=True)
class Block:
    """What computes one value of others."""

    target: str
    inputs: tuple[str, ...]
    """Values at which the model is cut, and inputs of the model."""
    shared: tuple[str, ...]
    """Initializers that are read elsewhere too."""

    def extracted(self, model: ir.Model) -> ir.Model:
        """A model of the block alone, whose first axes hold any number of samples."""
        block = copy(model)
        editor, graph = Editor(block), block.graph
        made = {str(value.name): value for node in graph for value in node.outputs}
        for name in self.inputs:
            if (old := made.get(name)) is not None:
                shape = editor.shape(old)
                new = ir.val(name, editor.dtype(old), None if shape is None else [None, *shape[1:]])
                old.name = editor.fresh(f"{name}_made")
                old.replace_all_uses_with(new)
                graph.inputs.append(new)
        graph.outputs[:] = [made[self.target]]
        RemoveDead().run(Context(Editor(block)))
        graph.inputs[:] = [value for value in graph.inputs if value.uses()]
        return block


def blocks_between(model: ir.Model, cuts: Sequence[str]) -> list[Block]:
    """The blocks that end in ``cuts``, in this order; those without weights are left out."""
    made = {str(value.name): value for node in model.graph for value in node.outputs}
    found = []
    for at, target in enumerate(cuts):
        before = set(cuts[:at])
        nodes, inputs = _between(made[target], before)
        read = {value for node in nodes for value in reads(node) if value.is_initializer()}
        shared = sorted(str(v.name) for v in read if any(use.node not in nodes for use in v.uses()))
        block = Block(target, tuple(inputs), tuple(shared))
        try:
            weights = find_parameters(block.extracted(model))
        except OptionError:
            continue
        if set(weights) - set(shared):
            found.append(block)
    return found


def _between(target: ir.Value, before: set[str]) -> tuple[set[ir.Node], list[str]]:
    """The nodes that ``target`` is computed by, as far back as values ``before`` and inputs, and these."""
    nodes: set[ir.Node] = set()
    inputs: dict[str, None] = {}
    work = [target]
    while work:
        value = work.pop()
        node = value.producer()
        if value.name in before or (node is None and value.is_graph_input() and not value.is_initializer()):
            inputs[str(value.name)] = None
        elif node is not None and node not in nodes:
            nodes.add(node)
            work += reads(node)
    return nodes, list(inputs)
