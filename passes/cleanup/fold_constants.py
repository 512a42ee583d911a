"""Compute once what depends on constants alone.

All foldable nodes are computed together, by one ONNX Runtime session without optimizations: 1,000 single-node
sessions take ten times as long. If that session fails, halves of it are tried, so that a node that cannot run
costs only itself. What ONNX Runtime has no kernel for, ``onnx.reference`` computes.

Never folded: random operators, Q/DQ nodes (they are the quantization), sequences and optionals (they are no
tensors, so they cannot be initializers), custom operators, and whatever would make the file grow. An output of a
graph becomes a Constant node. A result may be as large as the constants that die with it, plus what the nodes and
names that vanish take themselves, plus ``max_growth`` for the model as a whole: a ConstantOfShape of 100 MB stays.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir

from onnxopt.errors import EngineError, OptionError
from onnxopt.graph import Editor, bodies, constant_tensor, label
from onnxopt.pass_base import Context, Log, Pass, Report
from onnxopt.passes.cleanup._operands import NODE_BYTES, is_read
from onnxopt.runtime import Session, Snapshot

_NEVER = frozenset({
    "Constant", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli",
    "Dropout", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "If", "Loop", "Scan", "SequenceMap",
    "SequenceConstruct", "SequenceEmpty", "SequenceAt", "SequenceInsert", "SequenceErase", "SequenceLength",
    "SplitToSequence", "ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement",
})  # fmt: skip

MAX_RESULT = 256 * 1024 * 1024
"""A result of more bytes than this is not computed, whatever it would save."""


@dataclass(frozen=True, kw_only=True)
class FoldConstants(Pass):
    """Compute once what depends on constants alone."""

    name: ClassVar[str] = "fold-constants"
    exact: ClassVar[bool] = True

    max_growth: int = 0
    """By how many bytes all results together may enlarge the file."""

    def __post_init__(self) -> None:
        if self.max_growth < 0:
            raise OptionError(f"{self.name}.max_growth is a number of bytes, got {self.max_growth}")

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        editor = context.editor
        failed: set[ir.Node] = set()

        def allows(node: ir.Node) -> bool:
            return node not in failed and self.may_change(node, context)

        while True:
            plan = _Plan(editor, self.max_growth, allows)
            results = _reshaped(plan.wanted, editor)
            results |= _compute([value for value in plan.wanted if value not in results], editor)
            culprits = {node for v in plan.wanted if v not in results and (node := v.producer()) is not None}
            if not culprits:
                break
            failed |= culprits  # what they are computed from may still be folded
        for node, reason in plan.refused:
            log.refused(label(node), reason)
        for node in sorted(failed, key=label):
            log.refused(label(node), f"{node.op_type} could not be computed")
        for value in plan.wanted:
            if (array := results.get(value)) is None:
                continue
            if context.gate.closed or (producer := value.producer()) is None:
                break
            name, text = label(producer), f"{producer.op_type} is now a constant {list(array.shape)}"
            if value.is_graph_output():  # an initializer cannot take its name
                editor.replace_node(producer, "Constant", [], {"value": ir.Tensor(np.asarray(array, order="C"))})
            else:
                constant = editor.add_constant(producer, array, value.name or "constant")
                value.replace_all_uses_with(constant)
                if array.dtype.kind == "i":  # it may be a shape
                    editor.outdate_facts(constant)
            log.changed(name, text)
        return log.report()


@dataclass
class _Plan:
    """Which values become constants."""

    editor: Editor
    max_growth: int
    allows: Callable[[ir.Node], bool]
    wanted: list[ir.Value] = field(default_factory=list)
    refused: list[tuple[ir.Node, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        foldable = self._foldable()
        self._order = {node: at for at, node in enumerate(foldable)}
        budget = float(self.max_growth)
        demanded: set[ir.Value] = set()
        for node in reversed(foldable):
            outputs = [v for v in node.outputs if is_read(v) and self._is_demanded(v, demanded)]
            if not outputs:
                continue
            growth = sum(self._growth(v) for v in outputs)
            if growth > 0 and growth > budget:
                self.refused.append((node, f"its result would make the file {growth:.0f} bytes larger"))
                self._set.discard(node)
                demanded.update(v for v in node.inputs if v is not None)
                continue
            budget -= max(growth, 0)
            self.wanted += outputs
        self.wanted.reverse()

    def _foldable(self) -> list[ir.Node]:
        self._set: set[ir.Node] = set()
        found: list[ir.Node] = []
        for graph in self.editor.graphs():
            for node in graph:
                if self._is_foldable(node):
                    self._set.add(node)
                    found.append(node)
        return found

    def _is_foldable(self, node: ir.Node) -> bool:
        for value in node.inputs:  # the first look, since most nodes have an input that is no constant
            if value is not None and value.producer() not in self._set and constant_tensor(value) is None:
                return False
        if node.domain != "" or node.op_type in _NEVER or not node.outputs or any(True for _ in bodies(node)):
            return False
        if any(v.is_graph_output() for v in node.outputs) and not self._may_be_constant_node(node):
            return False
        if any(a.is_ref() for a in node.attributes.data.values()):
            return False
        if not any(v is not None for v in node.inputs) and node.op_type not in ("EyeLike",):
            return False
        return self._size(node) <= MAX_RESULT and self.allows(node)

    def _may_be_constant_node(self, node: ir.Node) -> bool:
        opset, dtype = self.editor.opset(node), self.editor.dtype(node.outputs[0])
        return len(node.outputs) == 1 and opset >= 9 and dtype not in (None, ir.DataType.STRING)

    def _size(self, node: ir.Node) -> float:
        """The bytes of the largest output, infinite if a shape is unknown and inputs are not small."""
        largest = 0.0
        for value in node.outputs:
            shape, dtype = self.editor.static_shape(value), self.editor.dtype(value)
            if shape is None or dtype is None:
                small = all(self._is_small(v) for v in node.inputs if v is not None)
                harmless = node.op_type not in _MULTIPLIERS
                largest = max(largest, 0.0 if small and harmless else math.inf)
            else:
                largest = max(largest, math.prod(shape) * dtype.itemsize)
        return largest

    def _is_small(self, value: ir.Value) -> bool:
        tensor = constant_tensor(value)
        if tensor is not None:
            return tensor.size <= 4096
        shape = self.editor.static_shape(value)
        return shape is None or math.prod(shape) <= 4096

    def _is_demanded(self, value: ir.Value, demanded: set[ir.Value]) -> bool:
        return value in demanded or value.is_graph_output() or any(use.node not in self._set for use in value.uses())

    def _growth(self, value: ir.Value) -> float:
        """The bytes that the constant adds, less those of nodes and constants that only it needed."""
        shape, dtype = self.editor.static_shape(value), self.editor.dtype(value)
        own = 0.0 if shape is None or dtype is None else math.prod(shape) * dtype.itemsize
        own += 24 + (0 if value.is_graph_output() else len(value.name or ""))  # an output has its name already
        producer = value.producer()
        assert producer is not None
        dying: set[ir.Node] = {producer}
        freed = float(NODE_BYTES + len(producer.name or ""))
        heap = [(-self._order[producer], producer)]
        while heap and freed < own + 1 and len(dying) < _MAX_CONE:  # from the last node backwards
            node = heapq.heappop(heap)[1]
            for source in dict.fromkeys(node.inputs):
                if source is None or not _only_feeds(source, dying):
                    continue
                if (tensor := constant_tensor(source)) is not None:
                    freed += tensor.nbytes + 24 + len(source.name or "")
                maker = source.producer()
                if maker in self._order and maker not in dying and all(_only_feeds(v, dying) for v in maker.outputs):
                    dying.add(maker)
                    freed += NODE_BYTES + len(maker.name or "")
                    heapq.heappush(heap, (-self._order[maker], maker))
        return own - freed


def _only_feeds(value: ir.Value, nodes: set[ir.Node]) -> bool:
    return not value.is_graph_output() and all(use.node in nodes for use in value.uses())


_MAX_CONE = 1000
"""So many nodes are searched for what dies with a folded value."""

_MULTIPLIERS = frozenset({
    "ConstantOfShape", "Expand", "Tile", "Range", "OneHot", "Pad", "Resize", "Upsample", "EyeLike"
})  # fmt: skip
"""Operators whose output can be much larger than their inputs."""


def _reshaped(values: Sequence[ir.Value], editor: Editor) -> dict[ir.Value, np.ndarray[Any, Any]]:
    """The arrays of values that hold the same elements as a constant, in another shape; no runtime is needed."""
    found = {}
    for value in values:
        node, shape = value.producer(), editor.static_shape(value)
        if node is None or node.op_type not in _RESHAPING or shape is None:
            continue
        tensor = constant_tensor(node.inputs[0])
        if tensor is not None and tensor.dtype != ir.DataType.STRING and tensor.size == math.prod(shape):
            found[value] = tensor.numpy().reshape(shape)
    return found


_RESHAPING = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten"})


def _compute(values: Sequence[ir.Value], editor: Editor) -> dict[ir.Value, np.ndarray[Any, Any]]:
    """The arrays of all values that can be computed."""
    if not values:
        return {}
    with suppress(EngineError):
        return dict(zip(values, _run(values, editor), strict=True))
    if len(values) == 1:
        array = _refer(values[0], editor)
        return {} if array is None else {values[0]: array}
    half = len(values) // 2
    return {**_compute(values[:half], editor), **_compute(values[half:], editor)}


def _run(values: Sequence[ir.Value], editor: Editor) -> list[np.ndarray[Any, Any]]:
    proto, directory = _cone(values, editor)
    session = Session(Snapshot(proto.SerializeToString(), directory))
    return [np.asarray(array) for array in session.run({})]


def _refer(value: ir.Value, editor: Editor) -> np.ndarray[Any, Any] | None:
    """What onnx's reference evaluator computes, if it can."""
    from onnx.reference import ReferenceEvaluator

    node = value.producer()
    assert node is not None
    arrays = [None if v is None else editor.constant(v) for v in node.inputs]
    if any(v is not None and a is None for v, a in zip(node.inputs, arrays, strict=True)):
        return None
    feeds: dict[str, Any] = {v.name or "": a for v, a in zip(node.inputs, arrays, strict=True) if v is not None}
    try:
        evaluator = ReferenceEvaluator(ir.serde.serialize_node(node), opsets={"": editor.opset(node)})
        results: Any = evaluator.run(None, feeds)
    except Exception:  # it has its own gaps; then the node stays
        return None
    return np.asarray(results[node.outputs.index(value)])


def _cone(values: Sequence[ir.Value], editor: Editor) -> tuple[onnx.ModelProto, Any]:
    """A model without inputs that computes the values from the constants they depend on."""
    nodes: dict[ir.Node, None] = {}
    constants: dict[ir.Value, None] = {}
    todo = [v.producer() for v in values]
    while todo:
        node = todo.pop()
        if node is None or node in nodes:
            continue
        nodes[node] = None
        for value in node.inputs:
            if value is None:
                continue
            if constant_tensor(value) is not None:
                constants[value] = None
            else:
                todo.append(value.producer())
    order = {node: i for i, node in enumerate(_in_order(nodes, editor))}
    first = values[0].producer()
    assert first is not None
    proto = onnx.ModelProto(ir_version=max(editor.model.ir_version, 4))
    proto.opset_import.add(domain="", version=editor.opset(first))
    proto.graph.name = "constants"
    directory = None
    for value in constants:
        tensor = constant_tensor(value)
        assert tensor is not None
        inline = ir.Tensor(tensor.numpy(), tensor.dtype) if isinstance(tensor, ir.ExternalTensor) else tensor
        made = ir.serde.serialize_tensor(inline)
        made.name = value.name or ""
        proto.graph.initializer.append(made)
    for node in sorted(nodes, key=order.__getitem__):
        proto.graph.node.append(ir.serde.serialize_node(node))
    for value in values:
        proto.graph.output.add(name=value.name)
    return proto, directory


def _in_order(nodes: dict[ir.Node, None], editor: Editor) -> list[ir.Node]:
    graphs = dict.fromkeys(node.graph for node in nodes)
    return [node for graph in editor.graphs() if graph in graphs for node in graph if node in nodes]
