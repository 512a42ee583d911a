"""A graph that grows node by node and stays valid: names, types, shapes, and how exact each value is.

Every dynamic dim of the inputs takes two sizes, and a dim of any value is known by its pair of sizes, so that
shape rules are plain arithmetic done twice. Data are small whole numbers, on which sums and products are exact
whatever their order: a value is ``rough`` once division or a transcendental function made it depend on
rounding, and operators that jump (``Floor``, comparisons) are applied to values that are not rough only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf, prod
from typing import Any, TypeVar

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

Dim = tuple[int, int]
Shape = tuple[Dim, ...]
T = TypeVar("T")
Draw = Callable[[st.SearchStrategy[Any]], Any]

FLOAT, DOUBLE, HALF = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16
INT64, INT32, BOOL = TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL
FLOATS = (FLOAT, DOUBLE, HALF)
NUMBERS = (*FLOATS, INT64, INT32)

SYMBOLS: dict[str, Dim] = {"N": (2, 1), "seq len": (3, 5), "H": (4, 6)}
"""The dynamic dims and their two sizes."""

MOST_ELEMENTS = 4000
_EXACT_BELOW: dict[int, float] = {FLOAT: 2.0**20, DOUBLE: 2.0**45, HALF: 0.0}


class Skip(Exception):  # noqa: N818: a step that found nothing to work on, no error
    """The step does not apply to this graph."""


def fixed(*dims: int) -> Shape:
    """A shape that is the same in both runs."""
    return tuple((d, d) for d in dims)


def at(shape: Shape, run: int) -> tuple[int, ...]:
    """The shape in one of the two runs."""
    return tuple(d[run] for d in shape)


def is_static(shape: Shape) -> bool:
    return all(a == b for a, b in shape)


def broadcast(*shapes: Shape) -> Shape:
    """The shape of an elementwise operator's output; ``Skip`` if there is none in one of the runs."""
    try:
        first, second = (np.broadcast_shapes(*(at(s, run) for s in shapes)) for run in (0, 1))
    except ValueError as error:
        raise Skip from error
    return tuple(zip(first, second, strict=True))


@dataclass(frozen=True)
class Value:
    """A value of the graph and what is known of it."""

    name: str
    dtype: int
    shape: Shape
    rough: bool = False
    bound: float = 3.0
    """No element is larger than this, NaN and infinity apart; matters while the value is exact."""

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass
class Builder:
    """One scope: the main graph or a body, whose values include those of the scopes around it."""

    draw: Draw
    opset: int
    names: set[str] = field(default_factory=set)
    values: list[Value] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    constants: list[tuple[Value, np.ndarray[Any, Any]]] = field(default_factory=list)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    depth: int = 0

    # -- choosing ------------------------------------------------------------------------------------

    def choose(self, options: Sequence[T]) -> T:
        if not options:
            raise Skip
        chosen: T = self.draw(st.sampled_from(list(options)))
        return chosen

    def number(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def flip(self) -> bool:
        return bool(self.draw(st.booleans()))

    def pick(self, wanted: Callable[[Value], bool] = lambda value: True) -> Value:
        """A value in scope, more often a recent one, so that chains come about."""
        found = [value for value in self.values if wanted(value)]
        recent = found[-3:]
        return self.choose(recent if recent and self.flip() else found)

    # -- naming and adding ---------------------------------------------------------------------------

    def fresh(self) -> str:
        """A value name that is not taken; some look odd, some as if a tool had made them."""
        style = self.choose(("t{}", "val_{}", "y_{}", "/layer.{}/Add_output_0", "a b {}", "größe{}", "t_Conv_{}"))
        count = len(self.names)
        name = style.format(count)
        self.names.add(name)
        return name

    def emit(
        self, op: str, inputs: Sequence[Value | None], outputs: Sequence[tuple[int, Shape]], *,
        rough: bool = False, bound: float | None = None, domain: str = "", **attributes: Any,
    ) -> list[Value]:  # fmt: skip
        """A node, and its outputs given by element type and shape."""
        for _, shape in outputs:
            if max(prod(at(shape, 0)), prod(at(shape, 1))) > MOST_ELEMENTS:
                raise Skip
        given = [value for value in inputs if value is not None]
        largest = max((value.bound for value in given), default=3.0) if bound is None else bound
        rough = rough or any(value.rough for value in given if value.dtype in FLOATS)
        made = [
            Value(self.fresh(), dtype, shape, rough or largest > _EXACT_BELOW.get(dtype, inf), largest)
            for dtype, shape in outputs
        ]
        names = [value.name if value is not None else "" for value in inputs]
        node = helper.make_node(op, names, [value.name for value in made], domain=domain, **attributes)
        style = self.choose(("", "", "n{}", "/block.{}/op", "with space {}", "ünïcode {}"))
        node.name = style.format(len(self.names))
        self.nodes.append(node)
        self.values += made
        return made

    def one(
        self, op: str, inputs: Sequence[Value | None], dtype: int, shape: Shape, *,
        rough: bool = False, bound: float | None = None, **attributes: Any,
    ) -> Value:  # fmt: skip
        """A node of one output."""
        return self.emit(op, inputs, [(dtype, shape)], rough=rough, bound=bound, **attributes)[0]

    def constant(self, array: np.ndarray[Any, Any], *, share: bool = True) -> Value:
        """A constant: an initializer or a Constant node, sometimes one that is there already."""
        if share and self.flip():
            for value, known in self.constants:
                if known.dtype == array.dtype and known.shape == array.shape and np.array_equal(known, array):
                    return value
        name = self.fresh()
        tensor = numpy_helper.from_array(array, name)
        if (self.opset >= 9 or array.dtype.kind == "f") and self.number(0, 2) == 0:
            self.nodes.append(self._constant_node(array, name))
        else:
            self.initializers.append(tensor)
        bound = float(np.max(np.abs(array.astype(np.float64)), initial=0.0)) if array.dtype != bool else 1.0
        rough = tensor.data_type == HALF
        value = Value(name, tensor.data_type, fixed(*array.shape), rough, bound)
        self.values.append(value)
        self.constants.append((value, array))
        return value

    def _constant_node(self, array: np.ndarray[Any, Any], name: str) -> onnx.NodeProto:
        if self.opset >= 12 and array.dtype == np.int64 and array.ndim <= 1 and self.flip():
            key = "value_ints" if array.ndim else "value_int"
            if array.size:
                return helper.make_node("Constant", [], [name], **{key: array.tolist()})
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))

    def ints(self, *numbers: int, share: bool = True) -> Value:
        """A constant vector of int64, as shape operators take it."""
        return self.constant(np.array(numbers, dtype=np.int64), share=share)

    def weights(self, dtype: int, *dims: int) -> Value:
        """A constant of small whole numbers."""
        seed = self.number(0, 7)
        array = np.random.default_rng(seed).integers(-2, 3, size=dims)
        return self.constant(array.astype(helper.tensor_dtype_to_np_dtype(dtype)))

    # -- nesting -------------------------------------------------------------------------------------

    def body(self) -> Builder:
        """A scope inside this one: sees its values, keeps its own nodes."""
        return Builder(
            self.draw, self.opset, self.names, list(self.values), constants=list(self.constants),
            functions=self.functions, depth=self.depth + 1,
        )  # fmt: skip

    def owns(self, value: Value) -> bool:
        """Whether ``value`` is made in this scope."""
        return any(value.name in node.output for node in self.nodes)

    def finish_body(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[Value]
    ) -> onnx.GraphProto:
        """The graph of a body; outputs that it does not make itself go through an Identity."""
        made = [
            v if self.owns(v) and [o.name for o in outputs].count(v.name) == 1 else
            self.one("Identity", [v], v.dtype, v.shape) for v in outputs
        ]  # fmt: skip
        infos = [helper.make_tensor_value_info(v.name, v.dtype, None) for v in made]
        return helper.make_graph(self.nodes, name, list(inputs), infos, self.initializers)
