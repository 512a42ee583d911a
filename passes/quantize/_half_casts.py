"""Carry out a change of types: constants rewritten, types noted, and Casts where two types meet.

A tensor is stored in the type that its producer makes. Whoever needs the other type reads a ``Cast`` that stands
right behind the producer; there is one for all readers, at any depth. Constants are not cast but written in the
type that is read, twice only if both types are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, bodies, constant_tensor
from onnxopt.passes.cleanup._operands import write_constant
from onnxopt.passes.quantize._grid import Array
from onnxopt.passes.quantize._half_types import LARGEST, Slots, narrowed

_FLOAT = ir.DataType.FLOAT

AS_THEY_COME = frozenset({"Cast", "Shape", "Size"})
"""Operators that take any type and answer the same."""

MASK_LIMIT = 32752.0
"""What a mask is cut to: half of the largest float16, so that scores or another mask can be added to it."""


def walk(graph: ir.Graph) -> Iterator[ir.Node]:
    """The nodes of a graph and of the bodies in it, a node before its bodies."""
    for node in graph:
        yield node
        for body in bodies(node):
            yield from walk(body)


class Recast:
    """One change of types of a model: ``chosen`` are the nodes that compute in ``half`` from now on."""

    def __init__(
        self, editor: Editor, half: ir.DataType, chosen: Mapping[ir.Node, Slots], masks: frozenset[ir.Value]
    ) -> None:
        self._editor, self._half, self._chosen, self._masks = editor, half, chosen, masks
        self._float = {v for v in self._values() if editor.dtype(v) == _FLOAT}
        self._stored_half = {node.outputs[at] for node, found in chosen.items() for at in found.outputs}
        for node in chosen:
            self._stored_half.update(v for body in bodies(node) for v in body.inputs if v in self._float)
        self._casts: dict[ir.Value, ir.Value] = {}
        self._constants: dict[tuple[ir.Value, ir.Graph | None], ir.Value] = {}

    def run(self, followers: Mapping[ir.Node, Slots]) -> None:
        """Edit the model. ``followers`` make no floats; each takes what its inputs are stored in."""
        nodes = list(walk(self._editor.model.graph))
        halves = dict(self._chosen)
        for node, found in followers.items():
            given = [v for at in found.inputs if (v := node.inputs[at]) is not None and constant_tensor(v) is None]
            if given and all(v in self._stored_half for v in given):
                halves[node] = found
        self._set_types()
        everywhere = self._read_only_as_half(nodes, halves)
        for value in everywhere:
            self._rewrite(value, self._readers(value))
        for node in nodes:
            self._inputs(node, halves.get(node), everywhere)
            for body in bodies(node):
                for at, value in enumerate(body.outputs):
                    if value in self._float:
                        body.outputs[at] = self._read(value, node in self._chosen, node, everywhere)
        self._outputs()

    def _values(self) -> Iterator[ir.Value]:
        graph = self._editor.model.graph
        yield from (*graph.inputs, *graph.initializers.values())
        for node in walk(graph):
            yield from node.outputs
            for body in bodies(node):
                yield from (*body.inputs, *body.initializers.values())

    def _set_types(self) -> None:
        for value in self._stored_half:
            self._editor.facts.learn(value, self._half, self._editor.shape(value))
            if value.type is not None:
                value.type = ir.TensorType(self._half)
        for node in self._chosen:
            if node.op_type == "Cast":
                node.attributes["to"] = ir.AttrInt64("to", self._half.value)
            elif node.op_type == "ConstantOfShape":
                old = node.attributes.get("value")
                array = np.zeros(1, np.float32) if old is None else old.as_tensor().numpy()
                tensor = ir.tensor(self._narrow(array, node.outputs[0] in self._masks))
                node.attributes["value"] = ir.AttrTensor("value", tensor)

    def _narrow(self, array: Array, is_mask: bool) -> Array:
        limit = LARGEST[self._half]
        return narrowed(array, self._half, limit=min(limit, MASK_LIMIT) if is_mask else limit)

    def _readers(self, value: ir.Value) -> list[ir.Node]:
        return [use.node for use in value.uses()]

    def _read_only_as_half(self, nodes: list[ir.Node], halves: Mapping[ir.Node, Slots]) -> set[ir.Value]:
        """The float constants that every reader takes in half precision, in order."""
        found: dict[ir.Value, bool] = {}
        for node in nodes:
            for at, value in enumerate(node.inputs):
                if value in self._float and constant_tensor(value) is not None and node.op_type not in AS_THEY_COME:
                    fits = node in halves and at in halves[node].inputs
                    found[value] = found.get(value, True) and fits
            for body in bodies(node):
                for value in body.outputs:
                    if value in self._float and constant_tensor(value) is not None:
                        found[value] = found.get(value, True) and node in self._chosen
        return {v for v, only in found.items() if only and v not in self._editor.model.graph.outputs}

    def _rewrite(self, value: ir.Value, readers: list[ir.Node]) -> None:
        array = self._editor.constant(value)
        assert array is not None
        is_mask = any(out in self._masks for node in readers for out in node.outputs)
        write_constant(value, self._narrow(array, is_mask), self._editor)
        if value.type is not None:
            value.type = ir.TensorType(self._half)

    def _inputs(self, node: ir.Node, found: Slots | None, everywhere: set[ir.Value]) -> None:
        if node.op_type in AS_THEY_COME:
            return
        for at, value in enumerate(node.inputs):
            if value is not None and value in self._float:
                new = self._read(value, found is not None and at in found.inputs, node, everywhere)
                if new is not value:
                    node.replace_input_with(at, new)

    def _read(self, value: ir.Value, half: bool, user: ir.Node, everywhere: set[ir.Value]) -> ir.Value:
        """``value`` in the type that is wanted."""
        if constant_tensor(value) is None:
            return value if (value in self._stored_half) == half else self._cast(value)
        if not half or value in everywhere:
            return value
        key = (value, user.graph)
        if key not in self._constants:
            array = self._editor.constant(value)
            assert array is not None
            is_mask = any(out in self._masks for out in user.outputs)
            name = f"{value.name}_{self._half.name.lower()}"
            self._constants[key] = self._editor.add_constant(user, self._narrow(array, is_mask), name)
        return self._constants[key]

    def _cast(self, value: ir.Value) -> ir.Value:
        """``value`` in the other of the two types."""
        if value not in self._casts:
            to = _FLOAT if value in self._stored_half else self._half
            source, producer, graph = value, value.producer(), value.graph
            assert graph is not None
            added: list[ir.Node] = []
            if to != _FLOAT and value in self._masks:
                low = next(iter(walk(graph)))
                bound = self._editor.add_constant(low, np.array(-MASK_LIMIT, np.float32), f"{value.name}_least")
                added.append(ir.node("Max", [value, bound]))
                source = added[-1].outputs[0]
                source.name = self._editor.fresh(f"{value.name}_bounded")
            added.append(ir.node("Cast", [source], {"to": to.value}))
            new = added[-1].outputs[0]
            new.name = self._editor.fresh(f"{value.name}_{'float32' if to == _FLOAT else to.name.lower()}")
            if producer is not None:
                graph.insert_after(producer, added)
            else:
                graph.insert_before(graph[0], added)
            self._editor.facts.learn(new, to, self._editor.shape(value))
            self._casts[value] = new
        return self._casts[value]

    def _outputs(self) -> None:
        """The interface stays float32: an output that is half now is cast, and the Cast takes its name."""
        graph = self._editor.model.graph
        for value in [v for v in graph.outputs if v in self._stored_half]:
            if value not in graph.outputs:
                continue
            new, name = self._cast(value), value.name or ""
            value.name = self._editor.fresh(f"{name}_{self._half.name.lower()}")
            new.name, new.shape, new.type = name, value.shape, ir.TensorType(_FLOAT)
            new.doc_string = value.doc_string
            new.metadata_props.update(value.metadata_props)
            for at, output in enumerate(graph.outputs):
                if output is value:
                    graph.outputs[at] = new
