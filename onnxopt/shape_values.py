"""Shape arithmetic evaluated on symbols.

Exporters compute shapes at run time: ``Shape → Gather → Mul → Concat → Reshape``. Most elements of such
tensors are known from the inferred shapes, as numbers or as dims of the inputs. ``ShapeValues`` knows each
small tensor as an object array whose elements are ints, bools, floats of NumPy's, symbols of dims (``str``, never
negative), or ``None`` where nothing is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Set
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt._contrib_shapes import EXTRA_NORMALIZATIONS
from onnxopt._output_shapes import output_shapes
from onnxopt._symbols import ARITHMETIC, UNARY, Elements, both, each, finite, objects, product, whole, wrapped
from onnxopt.graph import Editor, attribute, bodies, constant_tensor

__all__ = ["MAX_ELEMENTS", "Elements", "ShapeValues"]

MAX_ELEMENTS = 64
"""Longer tensors are data, not shapes."""
_MAX_FLOATS = 8
"""The same of constants of floats, which may be factors of sizes: one for each axis."""

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
_COUNTABLE = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)
_KNOWABLE = (*_COUNTABLE, *_FLOATS)


class ShapeValues:
    """What is known of the elements of small tensors that shapes may be computed of."""

    def __init__(self, editor: Editor) -> None:
        """Evaluate every node of the model once, in order, those of a body before the node that holds it.

        What computed shapes say of the values that get them, and what follows for the values behind, is told to
        the facts of ``editor``: inference by onnx does not follow most of these computations.
        """
        self._editor = editor
        self._known: dict[ir.Value, Elements] = {}
        model = editor.model
        improved: set[ir.Value | None] = set()
        for graph in (model.graph, *(function.graph for function in model.functions.values())):
            self._visit(graph, improved)

    def _visit(self, graph: ir.Graph, improved: set[ir.Value | None]) -> None:
        facts, is_flat = self._editor.facts, self._editor.is_flat
        for node in graph:
            if not is_flat:
                for body in bodies(node):
                    self._visit(body, improved)
            if facts.may_improve(node.outputs):
                improved.update(self._infer_again(node, improved))
            rule = _RULES.get(node.op_type)
            if rule is None or node.domain != "" or len(node.outputs) != 1:
                continue
            found = self._evaluate(rule, node)
            if found is not None and found.size <= MAX_ELEMENTS:
                self._known[node.outputs[0]] = found

    def of(self, value: ir.Value | None) -> Elements | None:
        """The elements of ``value``, or ``None`` if it is no small tensor of such numbers or nothing is known."""
        if value is None:
            return None
        if value not in self._known:
            tensor = constant_tensor(value)
            if tensor is None or tensor.dtype not in _KNOWABLE:
                return None
            is_float = tensor.dtype in _FLOATS
            if tensor.size > (_MAX_FLOATS if is_float else MAX_ELEMENTS):
                return None
            array = tensor.numpy()
            if is_float:  # each keeps its type, so that what is computed is rounded to it
                self._known[value] = each(finite, objects(list(array.reshape(-1))).reshape(array.shape))
            else:
                self._known[value] = array.astype(object)
        return self._known[value]

    def computed(self) -> list[tuple[ir.Node, Elements]]:
        """What is known of the outputs of nodes, in the order of the nodes; of constants it is no news."""
        found = ((value.producer(), elements) for value, elements in self._known.items())
        return [(node, elements) for node, elements in found if node is not None and node.op_type != "Constant"]

    def _infer_again(self, node: ir.Node, improved: Set[ir.Value | None]) -> Iterator[ir.Value]:
        """Infer the outputs of ``node`` from what is known here of its inputs; yields those of which that told more."""
        facts = self._editor.facts
        found = {v: self._numbers(v) for v in node.inputs if v in self._known and constant_tensor(v) is None}
        computed = {value: numbers for value, numbers in found.items() if numbers is not None}
        onnx_stops = node.domain != "" or node.op_type in EXTRA_NORMALIZATIONS
        if computed or onnx_stops or not improved.isdisjoint(node.inputs) or self._reads_outer_constant(node):
            yield from facts.infer_again(node, computed)
        for value, dtype, shape in output_shapes(node, self._editor, self.of):
            if shape is not None and facts.refine(value, shape, dtype):
                yield value

    def _reads_outer_constant(self, node: ir.Node) -> bool:
        """Whether a node in a body reads a constant that onnx does not see there."""
        graph = node.graph
        return graph is not self._editor.model.graph and any(
            value is not None and value.graph is not graph and constant_tensor(value) is not None
            for value in node.inputs
        )

    def _evaluate(self, rule: _Rule, node: ir.Node) -> Elements | None:
        try:
            return rule(self, node)
        except (ValueError, IndexError, TypeError, AttributeError):  # a node that ONNX Runtime will refuse as well
            return None

    # -- one rule an operator ------------------------------------------------------------------------

    def shape_(self, node: ir.Node) -> Elements | None:
        shape = self._editor.shape(node.inputs[0])
        if shape is None:
            return None
        return objects(shape[attribute(node, "start", 0) : attribute(node, "end")])

    def size(self, node: ir.Node) -> Elements | None:
        shape = self._editor.shape(node.inputs[0])
        return None if shape is None else np.array(product(objects(shape)), dtype=object)

    def identity(self, node: ir.Node) -> Elements | None:
        return self.of(node.inputs[0])

    def cast(self, node: ir.Node) -> Elements | None:
        return _cast(self.of(node.inputs[0]), attribute(node, "to"))

    def cast_like(self, node: ir.Node) -> Elements | None:
        return _cast(self.of(node.inputs[0]), self._editor.dtype(node.inputs[1]))

    def gather(self, node: ir.Node) -> Elements | None:
        elements, indices = self.of(node.inputs[0]), self._ints(node.inputs[1])
        if elements is None or indices is None or attribute(node, "axis", 0) not in (0, -elements.ndim):
            return None
        return wrapped(elements[indices])

    def slice_(self, node: ir.Node) -> Elements | None:
        elements = self.of(node.inputs[0])
        if elements is None or elements.ndim == 0:
            return None
        axis = 0
        if len(node.inputs) > 1:
            parts = [self._ints(v) if v is not None else None for v in node.inputs[1:]]
            parts += [None] * (4 - len(parts))
            starts, ends, axes, steps = parts
            if starts is None or ends is None or (axes is None) != (len(node.inputs) < 4 or node.inputs[3] is None):
                return None
            if (steps is None) != (len(node.inputs) < 5 or node.inputs[4] is None):
                return None
            axis = 0 if axes is None or axes.size != 1 else int(axes.reshape(-1)[0])
        else:
            starts, ends = (np.array(attribute(node, name)) for name in ("starts", "ends"))
            axis = int(next(iter(attribute(node, "axes", (0,))), 0))
            steps = None
        if starts.size != 1:
            return None
        step = 1 if steps is None else int(steps.reshape(-1)[0])
        start, end = int(starts.reshape(-1)[0]), int(ends.reshape(-1)[0])
        stop = None if step < 0 and end < -elements.shape[axis] else end
        return elements[(slice(None),) * (axis % elements.ndim) + (slice(start, stop, step),)]

    def transpose(self, node: ir.Node) -> Elements | None:
        elements = self.of(node.inputs[0])
        perm = attribute(node, "perm")
        if elements is None or (perm is None and "perm" in node.attributes):
            return None
        return elements.transpose(perm)

    def concat(self, node: ir.Node) -> Elements | None:
        parts = []
        for value in node.inputs:
            elements = self.of(value)
            if elements is None:
                shape = self._editor.static_shape(value)
                if shape is None or len(shape) != 1 or shape[0] > MAX_ELEMENTS:
                    return None
                elements = np.full(shape, None, dtype=object)
            parts.append(elements)
        if any(part.ndim != 1 for part in parts):
            return None
        return np.concatenate(parts)

    def squeeze(self, node: ir.Node) -> Elements | None:
        elements = self.of(node.inputs[0])
        return None if elements is None or elements.size != 1 else self._reshaped(node, elements)

    def reshape(self, node: ir.Node) -> Elements | None:
        elements = self.of(node.inputs[0])
        return None if elements is None else self._reshaped(node, elements)

    def _reshaped(self, node: ir.Node, elements: Elements) -> Elements | None:
        shape = self._editor.static_shape(node.outputs[0])
        return None if shape is None or math.prod(shape) != elements.size else elements.reshape(shape)

    def unary(self, node: ir.Node) -> Elements | None:
        elements = self.of(node.inputs[0])
        return None if elements is None else each(UNARY[node.op_type], elements)

    def arithmetic(self, node: ir.Node) -> Elements | None:
        a = self.of(node.inputs[0])
        b = self.of(node.inputs[1]) if a is not None else None
        if a is None or b is None:
            return None
        if attribute(node, "fmod", 0) != 0:  # of Mod: then the sign is that of the dividend
            return None
        return both(ARITHMETIC[node.op_type], a, b)

    def where(self, node: ir.Node) -> Elements | None:
        parts = [self.of(value) for value in node.inputs]
        if any(part is None for part in parts):
            return None
        condition, yes, no = np.broadcast_arrays(*[part for part in parts if part is not None])
        triples = zip(condition.reshape(-1), yes.reshape(-1), no.reshape(-1), strict=True)
        results = [(y if y == n else None) if c is None else (y if c else n) for c, y, n in triples]
        return objects(results).reshape(condition.shape)

    def reduce_prod(self, node: ir.Node) -> Elements | None:
        elements = self.of(node.inputs[0])
        if elements is None or elements.ndim != 1:
            return None
        found = np.array(product(elements), dtype=object)
        return found.reshape(1) if attribute(node, "keepdims", 1) else found

    def constant_of_shape(self, node: ir.Node) -> Elements | None:
        shape = self._ints(node.inputs[0])
        fill = attribute(node, "value")
        if shape is None or shape.ndim != 1 or fill is None or fill.dtype not in _COUNTABLE:
            return None
        if math.prod(int(d) for d in shape) > MAX_ELEMENTS:
            return None
        return np.full([int(d) for d in shape], fill.numpy().reshape(-1)[0].item(), dtype=object)

    def expand(self, node: ir.Node) -> Elements | None:
        elements, shape = self.of(node.inputs[0]), self._ints(node.inputs[1])
        if elements is None or shape is None or math.prod(int(d) for d in shape) > MAX_ELEMENTS:
            return None
        target = np.broadcast_shapes(elements.shape, tuple(int(d) for d in shape))
        return np.broadcast_to(elements, target)

    def _ints(self, value: ir.Value | None) -> npt.NDArray[np.int64] | None:
        """The elements if all are whole numbers."""
        elements = self.of(value)
        if elements is None or not all(isinstance(x, int) for x in elements.reshape(-1)):
            return None
        return elements.astype(np.int64)

    def _numbers(self, value: ir.Value | None) -> npt.NDArray[Any] | None:
        """The elements, of the type of ``value``, if all are numbers."""
        elements, dtype = self.of(value), self._editor.dtype(value)
        if elements is None or dtype is None or any(x is None or isinstance(x, str) for x in elements.reshape(-1)):
            return None
        return elements.astype(dtype.numpy())


def _cast(elements: Elements | None, to: int | None) -> Elements | None:
    """The elements as those of another type, where these are known."""
    if elements is None or to not in _KNOWABLE:
        return None
    dtype = ir.DataType(to)
    if dtype not in (ir.DataType.INT32, ir.DataType.INT64):
        convert = bool if dtype == ir.DataType.BOOL else dtype.numpy().type
        return each(lambda x: None if isinstance(x, str) else convert(x), elements)
    bits = 31 if dtype == ir.DataType.INT32 else 63
    return each(lambda x: x if isinstance(x, str) else whole(x, bits), elements)


_Rule = Callable[[ShapeValues, ir.Node], Elements | None]

_RULES: dict[str, _Rule] = {
    "Shape": ShapeValues.shape_, "Size": ShapeValues.size, "Identity": ShapeValues.identity, "Cast": ShapeValues.cast,
    "CastLike": ShapeValues.cast_like, "Gather": ShapeValues.gather, "Slice": ShapeValues.slice_,
    "Concat": ShapeValues.concat, "Squeeze": ShapeValues.squeeze, "Unsqueeze": ShapeValues.reshape,
    "Reshape": ShapeValues.reshape, "Flatten": ShapeValues.reshape, "Transpose": ShapeValues.transpose,
    "Where": ShapeValues.where, "ReduceProd": ShapeValues.reduce_prod,
    "ConstantOfShape": ShapeValues.constant_of_shape, "Expand": ShapeValues.expand,
    **dict.fromkeys(UNARY, ShapeValues.unary), **dict.fromkeys(ARITHMETIC, ShapeValues.arithmetic),
}  # fmt: skip
