"""The model under edit: the few operations that every pass needs, on onnx-ir.

Graphs nest: bodies of If, Loop and Scan, and local functions. A value may be read in a body far from where
it is defined, and onnx-ir records those readers too, so ``uses()`` is complete. What onnx-ir does not do is
keep the promises of this module: names stay unique across all scopes, outputs keep their names and declared
types, and what replaces a value inherits its name and metadata.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.model import copy
from onnxopt.nodes import attribute, bodies, constant_tensor, discard, label, sole_reader
from onnxopt.shapes import Dims, Facts
from onnxopt.traverse import graphs

__all__ = ["AttributeValue", "Editor", "attribute", "bodies", "constant_tensor", "discard", "label", "sole_reader"]

AttributeValue = int | float | str | Sequence[int] | Sequence[float] | Sequence[str] | ir.TensorProtocol | ir.Graph


class Editor:
    """A model, the facts known about it, and the edits that keep both consistent."""

    def __init__(self, model: ir.Model, *, untouched: bool = False, facts: Facts | None = None) -> None:
        """Open ``model`` for editing; ``untouched`` says that it is as it was loaded, which saves time, as does what is
        known of it already."""
        self.model = model
        self.facts = facts or Facts(model, untouched=untouched)
        self._index: dict[str, list[ir.Node]] | None = None
        self._is_flat = False
        self._is_outdated = False
        self._to_infer: set[ir.Node] = set()

    def copy(self) -> Editor:
        """The same of an independent copy of the model."""
        model = copy(self.model)
        return Editor(model, facts=self.facts.of_copy(model))

    # -- looking -------------------------------------------------------------------------------------

    def graphs(self) -> Iterator[ir.Graph]:
        """The main graph, the local functions, and every body inside them."""
        return iter((self.model.graph,)) if self.is_flat else graphs(self.model)

    @property
    def is_flat(self) -> bool:
        """Whether there is only the main graph: no bodies and no local functions."""
        self._indexed()
        return self._is_flat

    def nodes(self, ops: Iterable[str]) -> Iterator[ir.Node]:
        """Every node of these operator types in the standard domain, at any depth, in order.

        Nodes inserted meanwhile are included, removed ones are not.
        """
        index = self._indexed()
        for op in _sorted(frozenset(ops)):
            for node in index.get(op, ()):  # a list that grows while we walk: new nodes get their turn
                if node.graph is not None and node.op_type == op and node.domain == "":
                    yield node

    def has_any(self, ops: Iterable[str]) -> bool:
        """Whether there may be a node of one of these operator types."""
        return not self._indexed().keys().isdisjoint(ops)

    def op_types(self) -> Collection[str]:
        """The operator types that may occur, in any domain."""
        return self._indexed().keys()

    def refresh(self) -> bool:
        """Forget the index of nodes, and infer what ``outdate_facts`` gave reason for; called between rounds.

        What is known of a value stays true, so there is no other reason to infer shapes anew. Returns whether more
        may be known now than when the last round began.
        """
        self._index = None
        if self._is_outdated:
            self.facts.infer()
        elif self._to_infer:
            self.facts.propagate(self.graphs(), self._to_infer)
        improved = self._is_outdated or self.facts.improved
        self._is_outdated, self.facts.improved, self._to_infer = False, False, set()
        return improved

    def outdate_facts(self, value: ir.Value | None = None) -> None:
        """Say that inference would know more now: a body was inlined, or, of what reads ``value``, since that became
        constant or more is known of it."""
        if value is None:
            self._is_outdated = True
        else:
            self._to_infer.update(use.node for use in value.uses())

    def adopt(self, other: ir.Model) -> None:
        """Let the model become what ``other`` is; ``other`` must not be used afterwards."""
        self.model.functions.clear()
        self.model.functions.update(other.functions)
        self.model.ir_version = other.ir_version
        self.model.metadata_props.update(other.metadata_props)
        self.replace_graph(other.graph)

    def replace_graph(self, graph: ir.Graph) -> None:
        """Put another main graph in place of the model's, and forget all that was known of the old one."""
        self.model.graph = graph
        for known in ("_functions", "_counters", "_names"):
            self.__dict__.pop(known, None)
        self.outdate_facts()
        self.refresh()

    def _indexed(self) -> dict[str, list[ir.Node]]:
        if self._index is None:
            index: dict[str, list[ir.Node]] = {}
            all_graphs = list(graphs(self.model))
            for graph in all_graphs:
                for node in graph:
                    index.setdefault(node.op_type, []).append(node)
            self._index, self._is_flat = index, len(all_graphs) == 1
        return self._index

    def opset(self, node: ir.Node) -> int:
        """The version of the standard operators that ``node`` is to be read by."""
        imports = self.model.opset_imports
        if self.model.functions and node.graph is not None and (function := self._functions.get(node.graph)):
            imports = function.opset_imports
        return imports.get("", 1)

    @cached_property
    def _functions(self) -> dict[ir.Graph, ir.Function]:
        """The local function that each graph inside a function belongs to."""
        found: dict[ir.Graph, ir.Function] = {}
        for function in self.model.functions.values():
            found[function.graph] = function
            for body in function.graph.subgraphs():
                found[body] = function
        return found

    def in_function(self, node: ir.Node) -> bool:
        """Whether ``node`` stands directly in a local function, where no initializer can stand."""
        function = self._functions.get(node.graph) if node.graph is not None else None
        return function is not None and function.graph is node.graph

    # -- facts ---------------------------------------------------------------------------------------

    def shape(self, value: ir.Value | None) -> Dims | None:
        """The dims of ``value``: a number, a symbol, or ``None`` each; ``None`` if the rank is unknown."""
        return None if value is None else self.facts.shape(value)

    def rank(self, value: ir.Value | None) -> int | None:
        """The number of dims of ``value``, ``None`` if unknown."""
        shape = self.shape(value)
        return None if shape is None else len(shape)

    def static_shape(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """The dims of ``value`` if all are numbers."""
        shape = self.shape(value)
        if shape is None or not all(isinstance(d, int) for d in shape):
            return None
        return tuple(d for d in shape if isinstance(d, int))

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """The element type of ``value``, ``None`` if unknown or not a tensor."""
        return None if value is None else self.facts.dtype(value)

    def constant(self, value: ir.Value | None) -> np.ndarray[Any, Any] | None:
        """The array of a constant: an initializer that no caller can override, or a Constant node."""
        tensor = constant_tensor(value)
        return None if tensor is None else tensor.numpy()

    def scalar(self, value: ir.Value | None) -> float | None:
        """The one number that a constant holds, whatever its rank; ``None`` if it holds several."""
        tensor = constant_tensor(value)
        if tensor is None or tensor.size != 1 or tensor.dtype == ir.DataType.STRING:
            return None
        return float(tensor.numpy().reshape(()))

    # -- editing -------------------------------------------------------------------------------------

    def insert(
        self,
        before: ir.Node,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, AttributeValue] | None = None,
        *,
        like: ir.Node | None = None,
        name: str | None = None,
    ) -> ir.Value:
        """A new node in front of ``before``; returns its output.

        ``like`` (default ``before``) is the node whose work it takes over: its doc string and metadata
        are copied, and its name if ``name`` is not given and that node is going to be removed by the
        caller (two nodes may share it until then).
        """
        return self.insert_many(before, op, inputs, attributes, outputs=1, like=like, name=name)[0]

    def insert_many(
        self,
        before: ir.Node,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, AttributeValue] | None = None,
        *,
        outputs: int,
        like: ir.Node | None = None,
        name: str | None = None,
    ) -> Sequence[ir.Value]:
        """The same for a node with several outputs, all of which are returned."""
        old = like or before
        node = ir.node(
            op,
            list(inputs),
            {k: v for k, v in (attributes or {}).items() if v is not None},
            num_outputs=outputs,
            name=name if name is not None else (old.name or ""),
            doc_string=old.doc_string,
            metadata_props=dict(old.metadata_props),
        )
        for output in node.outputs:
            output.name = self.fresh(f"{old.outputs[0].name if old.outputs else old.name}_{op}")
        assert before.graph is not None
        before.graph.insert_before(before, node)
        if self._index is not None:
            self._index.setdefault(op, []).append(node)
            self._is_flat = self._is_flat and not any(True for _ in bodies(node))
        return node.outputs

    def add_constant(
        self, user: ir.Node, array: np.ndarray[Any, Any] | np.generic | ir.TensorProtocol, name: str
    ) -> ir.Value:
        """A new constant that ``user`` may read: an initializer of its graph, named after ``name``.

        In a local function, which has no initializers, it is a Constant node in front of ``user``.
        """
        tensor = ir.Tensor(np.asarray(array, order="C")) if isinstance(array, np.ndarray | np.generic) else array
        if self.in_function(user):
            return self.insert(user, "Constant", [], {"value": tensor}, name="")
        graph = user.graph
        assert graph is not None
        if self.model.ir_version < 4:
            self.separate_initializers()
        fresh = self.fresh(name)
        tensor.name = fresh
        value = ir.Value(
            name=fresh, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
        )
        graph.register_initializer(value)
        return value

    def separate_initializers(self) -> int:
        """Raise an IR version below 4 to 4, in which initializers are no inputs; returns how many were.

        Below 4 each had to be listed as an input, also one that a pass adds, and bodies could hold none.
        ONNX Runtime lets nobody override them there, so the interface stays.
        """
        if self.model.ir_version >= 4:
            return 0
        dropped = 0
        for graph in self.graphs():
            kept = [value for value in graph.inputs if not value.is_initializer()]
            dropped += len(graph.inputs) - len(kept)
            graph.inputs[:] = kept
        self.model.ir_version = 4
        return dropped

    def take_over(self, old: ir.Value, new: ir.Value) -> None:
        """Let ``new``, fresh from ``insert``, stand wherever ``old`` stood, under the name of ``old``."""
        name = old.name or ""
        old.name = self.fresh(f"{name}_old")
        new.name = name
        self._inherit(old, new)
        old.replace_all_uses_with(new, replace_graph_outputs=True)

    def redirect(self, old: ir.Value, new: ir.Value) -> bool:
        """Let every reader of ``old`` read ``new``, which exists already and holds the same data.

        If ``old`` is an output of its graph, ``new`` becomes that output under its name; where ``new``
        cannot (it is an input, a constant, an output itself or from another graph), nothing is changed
        and the answer is ``False``.
        """
        if old.is_graph_output():
            producer = new.producer()
            if producer is None or new.is_graph_output() or producer.graph is not old.graph:
                return False
            if old.graph is not None and sum(o is old for o in old.graph.outputs) > 1:
                return False
            self.take_over(old, new)
        else:
            for improved in self.facts.join(new, old):
                self.outdate_facts(improved)
            if constant_tensor(new) is not None:
                self.outdate_facts(old)
            old.replace_all_uses_with(new)
        return True

    def _inherit(self, old: ir.Value, new: ir.Value) -> None:
        new.type, new.shape, new.doc_string = old.type, old.shape, old.doc_string or new.doc_string
        new.metadata_props.update(old.metadata_props)
        new.meta.update(old.meta)
        self.facts.learn(new, self.facts.dtype(old), self.facts.shape(old))

    def remove(self, node: ir.Node) -> None:
        """Take out a node that nobody reads any more; raises ``ValueError`` if somebody does.

        Its bodies go with it: take them out of its attributes first if they are to live on elsewhere.
        """
        assert node.graph is not None
        node.graph.remove(node, safe=True)
        for body in bodies(node):
            discard(body)

    def replace_node(
        self, node: ir.Node, op: str, inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> ir.Value:  # fmt: skip
        """Put one new node in the place of ``node`` and its first output; returns the new output."""
        new = self.insert(node, op, inputs, attributes)
        self.take_over(node.outputs[0], new)
        self.remove(node)
        return new

    # -- names ---------------------------------------------------------------------------------------

    def fresh(self, hint: str) -> str:
        """A value name that is used nowhere in the model: ``hint``, or ``hint`` with a number."""
        name, count = hint, self._counters.get(hint, 0)
        while name in self._names:
            count += 1
            name = f"{hint}_{count}"
        self._counters[hint] = count
        self._names.add(name)
        return name

    @cached_property
    def _counters(self) -> dict[str, int]:
        return {}

    @cached_property
    def _names(self) -> set[str]:
        names: set[str] = set()
        for graph in self.graphs():
            names.update(v.name for v in graph.inputs if v.name)
            names.update(graph.initializers)
            names.update(v.name for node in graph for v in node.outputs if v.name)
        return names


@cache
def _sorted(ops: frozenset[str]) -> tuple[str, ...]:
    return tuple(sorted(ops))
