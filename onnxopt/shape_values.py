"""Shape arithmetic evaluated on symbols.

Exporters compute shapes at run time: ``Shape → Gather → Mul → Concat → Reshape``. Most elements of such
tensors are known from the inferred shapes, as numbers or as dims of the inputs. ``ShapeValues`` knows each
small integer tensor as an object array whose elements are ints, bools, symbols of dims (``str``, never
negative), or ``None`` where nothing is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Set
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, constant_tensor
from onnxopt.shapes import Dim, Dims

Elements = npt.NDArray[np.object_]

_TAKE_SHAPES = ("Reshape", "Expand", "ConstantOfShape")

MAX_ELEMENTS = 64
"""Longer tensors are data, not shapes."""

_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)
_KNOWABLE = (*_INTEGERS, ir.DataType.BOOL)


class ShapeValues:
    """What is known of the elements of small integer tensors."""

    def __init__(self, editor: Editor) -> None:
        """Evaluate every node of the model once, in order.

        What computed shapes say of the values that get them, and what follows for the values behind, is told to
        the facts of ``editor``: inference by onnx does not follow most of these computations.
        """
        self._editor = editor
        self._known: dict[ir.Value, Elements] = {}
        improved: set[ir.Value | None] = set()
        for graph in editor.graphs():
            for node in graph:
                if editor.facts.may_improve(node.outputs):
                    improved.update(self._infer_again(node, improved))
                rule = _RULES.get(node.op_type)
                if rule is None or node.domain != "" or len(node.outputs) != 1:
                    continue
                found = self._evaluate(rule, node)
                if found is not None and found.size <= MAX_ELEMENTS:
                    self._known[node.outputs[0]] = found

    def of(self, value: ir.Value | None) -> Elements | None:
        """The elements of ``value``, or ``None`` if it is no small integer tensor or nothing is known."""
        if value is None:
            return None
        if value not in self._known:
            tensor = constant_tensor(value)
            if tensor is None or tensor.dtype not in _KNOWABLE or tensor.size > MAX_ELEMENTS:
                return None
            self._known[value] = tensor.numpy().astype(object)
        return self._known[value]

    def computed(self) -> list[tuple[ir.Node, Elements]]:
        """What is known of the outputs of nodes, in the order of the nodes; of constants it is no news."""
        found = ((value.producer(), elements) for value, elements in self._known.items())
        return [(node, elements) for node, elements in found if node is not None and node.op_type != "Constant"]

    def _infer_again(self, node: ir.Node, improved: Set[ir.Value | None]) -> Iterator[ir.Value]:
        """Infer the outputs of ``node`` from what is known here of its inputs; yields those of which that told more."""
        facts = self._editor.facts
        found = {v: self._ints(v) for v in node.inputs if v in self._known and constant_tensor(v) is None}
        computed = {value: numbers for value, numbers in found.items() if numbers is not None}
        if computed or not improved.isdisjoint(node.inputs):
            yield from facts.infer_again(node, computed)
        shape = self.output_shape(node) if node.op_type in _TAKE_SHAPES and node.domain == "" else None
        if shape is not None and facts.refine(node.outputs[0], shape):
            yield node.outputs[0]

    def output_shape(self, node: ir.Node) -> Dims | None:
        """The dims that a node which takes a shape gives its output, as far as they are known."""
        source = node.inputs[0]
        if node.op_type == "ConstantOfShape":
            elements = self.of(source)
            return None if elements is None or elements.ndim != 1 else tuple(elements)
        elements, dims = self.of(node.inputs[1]), self._editor.shape(source)
        if elements is None or elements.ndim != 1:
            return None
        if node.op_type == "Expand":
            return None if dims is None else _broadcast(dims, tuple(elements))
        copies = attribute(node, "allowzero", 0) == 0
        known = dims or ()
        return tuple(
            (known[at] if at < len(known) else None) if x == 0 and copies else None if x == -1 else x
            for at, x in enumerate(elements)
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
        return _objects(shape[attribute(node, "start", 0) : attribute(node, "end")])

    def size(self, node: ir.Node) -> Elements | None:
        shape = self._editor.shape(node.inputs[0])
        return None if shape is None else np.array(_product(_objects(shape)), dtype=object)

    def identity(self, node: ir.Node) -> Elements | None:
        return self.of(node.inputs[0])

    def cast(self, node: ir.Node) -> Elements | None:
        elements = self.of(node.inputs[0])
        to = attribute(node, "to")
        if elements is None or to not in _KNOWABLE:
            return None
        if to == ir.DataType.BOOL:
            return _each(lambda x: None if isinstance(x, str) else bool(x), elements)
        fits = -(2**31), 2**31 - 1
        return _each(lambda x: x if isinstance(x, str) or to != ir.DataType.INT32 or fits[0] <= x <= fits[1] else None,
                     _each(lambda x: x if isinstance(x, str) else int(x), elements))  # fmt: skip

    def gather(self, node: ir.Node) -> Elements | None:
        elements, indices = self.of(node.inputs[0]), self._ints(node.inputs[1])
        if elements is None or indices is None or attribute(node, "axis", 0) not in (0, -elements.ndim):
            return None
        return _object_array(elements[indices])

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

    def arithmetic(self, node: ir.Node) -> Elements | None:
        a, b = self.of(node.inputs[0]), self.of(node.inputs[1])
        if a is None or b is None:
            return None
        if attribute(node, "fmod", 0) != 0:  # of Mod: then the sign is that of the dividend
            return None
        operation = _ARITHMETIC[node.op_type]
        left, right = np.broadcast_arrays(a, b)
        pairs = zip(left.reshape(-1), right.reshape(-1), strict=True)
        results = [None if x is None or y is None else operation(x, y) for x, y in pairs]
        return _objects(results).reshape(left.shape)

    def where(self, node: ir.Node) -> Elements | None:
        parts = [self.of(value) for value in node.inputs]
        if any(part is None for part in parts):
            return None
        condition, yes, no = np.broadcast_arrays(*[part for part in parts if part is not None])
        triples = zip(condition.reshape(-1), yes.reshape(-1), no.reshape(-1), strict=True)
        results = [(y if y == n else None) if c is None else (y if c else n) for c, y, n in triples]
        return _objects(results).reshape(condition.shape)

    def not_(self, node: ir.Node) -> Elements | None:
        elements = self.of(node.inputs[0])
        return None if elements is None else _each(lambda x: not x, elements)

    def reduce_prod(self, node: ir.Node) -> Elements | None:
        elements = self.of(node.inputs[0])
        if elements is None or elements.ndim != 1:
            return None
        product = np.array(_product(elements), dtype=object)
        return product.reshape(1) if attribute(node, "keepdims", 1) else product

    def constant_of_shape(self, node: ir.Node) -> Elements | None:
        shape = self._ints(node.inputs[0])
        fill = attribute(node, "value")
        if shape is None or shape.ndim != 1 or fill is None or fill.dtype not in _KNOWABLE:
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
        """The elements if all are numbers."""
        elements = self.of(value)
        if elements is None or not all(isinstance(x, int) for x in elements.reshape(-1)):
            return None
        return elements.astype(np.int64)


_Rule = Callable[[ShapeValues, ir.Node], Elements | None]

_RULES: dict[str, _Rule] = {
    "Shape": ShapeValues.shape_, "Size": ShapeValues.size, "Identity": ShapeValues.identity, "Cast": ShapeValues.cast,
    "Gather": ShapeValues.gather, "Slice": ShapeValues.slice_, "Concat": ShapeValues.concat,
    "Squeeze": ShapeValues.squeeze, "Unsqueeze": ShapeValues.reshape, "Reshape": ShapeValues.reshape,
    "Flatten": ShapeValues.reshape, "Transpose": ShapeValues.transpose, "Where": ShapeValues.where,
    "Not": ShapeValues.not_, "ReduceProd": ShapeValues.reduce_prod, "ConstantOfShape": ShapeValues.constant_of_shape,
    "Expand": ShapeValues.expand,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Equal", "Less", "Greater", "LessOrEqual",
                     "GreaterOrEqual", "And", "Or"), ShapeValues.arithmetic),
}  # fmt: skip


def _broadcast(a: Dims, b: Dims) -> Dims:
    """The dims of two shapes broadcast against each other, ``None`` each that depends on sizes not known."""

    def common(x: Dim, y: Dim) -> Dim:
        if x in (1, y):
            return y
        if y == 1 or (isinstance(x, int) and x > 1):
            return x
        return y if isinstance(y, int) and y > 1 else None

    rank = max(len(a), len(b))
    return tuple(map(common, (1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b))


def _objects(items: Any) -> Elements:
    array = np.empty(len(items), dtype=object)
    array[:] = list(items)
    return array


def _object_array(item: Any) -> Elements:
    """Indexing an object array down to one element gives the element itself; wrap it again."""
    if isinstance(item, np.ndarray):
        return item
    array = np.empty((), dtype=object)
    array[()] = item
    return array


def _each(function: Callable[[Any], Any], elements: Elements) -> Elements:
    results = [None if x is None else function(x) for x in elements.reshape(-1)]
    return _objects(results).reshape(elements.shape)


def _product(elements: Elements) -> int | str | None:
    """The product if all are numbers, or if all but one symbol are 1."""
    numbers = [x for x in elements if isinstance(x, int)]
    others = [x for x in elements if not isinstance(x, int)]
    product = math.prod(numbers)
    if not others:
        return product
    return others[0] if len(others) == 1 and product == 1 else None


def _is_number(x: Any) -> bool:
    return isinstance(x, int)


def _add(x: Any, y: Any) -> Any:
    if _is_number(x) and _is_number(y):
        return x + y
    return y if x == 0 else x if y == 0 else None


def _sub(x: Any, y: Any) -> Any:
    if _is_number(x) and _is_number(y):
        return x - y
    return 0 if x == y else x if y == 0 else None


def _mul(x: Any, y: Any) -> Any:
    if _is_number(x) and _is_number(y):
        return x * y
    return 0 if 0 in (x, y) else y if x == 1 else x if y == 1 else None


def _div(x: Any, y: Any) -> Any:
    if _is_number(x) and _is_number(y):
        return (abs(x) // abs(y)) * (1 if (x < 0) == (y < 0) else -1) if y else None
    return x if y == 1 else None


def _mod(x: Any, y: Any) -> Any:
    return x % y if _is_number(x) and _is_number(y) and y != 0 else None


def _max(x: Any, y: Any) -> Any:
    if _is_number(x) and _is_number(y):
        return max(x, y)
    return x if x == y else None


def _min(x: Any, y: Any) -> Any:
    if _is_number(x) and _is_number(y):
        return min(x, y)
    return x if x == y else None


def _equal(x: Any, y: Any) -> Any:
    if x == y:
        return True
    if _is_number(x) and _is_number(y):
        return False
    return False if any(_is_number(z) and z < 0 for z in (x, y)) else None  # a dim is never negative


def _less(x: Any, y: Any) -> Any:
    if _is_number(x) and _is_number(y):
        return x < y
    return False if x == y or (_is_number(y) and y <= 0) else True if _is_number(x) and x < 0 else None


_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "Add": _add, "Sub": _sub, "Mul": _mul, "Div": _div, "Mod": _mod, "Max": _max, "Min": _min, "Equal": _equal,
    "Less": _less, "Greater": lambda x, y: _less(y, x),
    "LessOrEqual": lambda x, y: None if (less := _less(y, x)) is None else not less,
    "GreaterOrEqual": lambda x, y: None if (less := _less(x, y)) is None else not less,
    "And": lambda x, y: x and y, "Or": lambda x, y: x or y,
}  # fmt: skip
