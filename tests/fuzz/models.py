"""Random valid models, as a hypothesis strategy, with inputs for two sizes of every dynamic dim."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.checker
from hypothesis import assume
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.conformance import oracle
from tests.fuzz.builder import BOOL, FLOAT, INT64, SYMBOLS, Builder, Shape, Skip, Value, at
from tests.fuzz.nesting import DOMAIN, NESTED, run_steps
from tests.fuzz.networks import NETWORKS, WRITTEN_OUT
from tests.fuzz.steps import ELEMENTWISE, SHAPES, Step

OPSETS = (7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24)
NEW_OPSETS = (18, 20, 21, 22, 23, 24)

FLAVOURS: dict[str, tuple[Step, ...]] = {
    "elementwise": (*ELEMENTWISE, *SHAPES[:4]),
    "shapes": (*SHAPES, *SHAPES, *ELEMENTWISE),
    "networks": (*NETWORKS, *NETWORKS, *ELEMENTWISE),
    "written out": (*WRITTEN_OUT, *WRITTEN_OUT, *NETWORKS),
    "nested": (*NESTED, *ELEMENTWISE, *SHAPES[:6]),
    "everything": (*ELEMENTWISE, *SHAPES, *NETWORKS, *WRITTEN_OUT, *NESTED),
}
"""What the graphs of a test are mostly made of."""

tried: Counter[str] = Counter()
"""How many graphs were made, and how many of them ONNX Runtime or the checker would not take."""


ROUNDING = 1e-7
"""One unit in the last place of a float, relative to it."""


@dataclass(frozen=True, repr=False)
class Sample:
    """A model, inputs for it, and what it computes on them."""

    model: onnx.ModelProto
    feeds: list[dict[str, Any]]
    expected: list[list[Any]]

    def __repr__(self) -> str:
        return onnx.printer.to_text(self.model)

    def check(self, after: onnx.ModelProto) -> None:
        """Assert that ``after`` is valid, looks the same from outside, and computes the same."""
        onnx.checker.check_model(after, full_check=True)
        assert [v.SerializeToString() for v in required(after)] == [v.SerializeToString() for v in required(self.model)]
        outputs = [output.name for output in self.model.graph.output]
        assert [v.SerializeToString() for v in after.graph.output] == [
            v.SerializeToString() for v in self.model.graph.output
        ]
        given = {value.name for value in after.graph.input}
        feeds = [{name: array for name, array in each.items() if name in given} for each in self.feeds]
        for run, (expected, got) in enumerate(zip(self.expected, oracle.by_runtime(after, feeds), strict=True)):
            for name, x, y in zip(outputs, expected, got, strict=True):
                text = oracle.difference(x, y)
                if text is not None:
                    text = oracle.difference(x, y, 10 * self._noise(run, outputs.index(name)))
                assert text is None, f"output {name!r}: {text}"

    def _noise(self, run: int, output: int) -> float:
        """How far rounding moves an output: seen when its float inputs move by one unit in the last place and
        under ONNX Runtime's optimizations, and at least the rounding of the largest value on the way, of which
        the output may be a small difference."""
        moved = {
            name: np.nextafter(array, np.asarray(np.inf, array.dtype)) if array.dtype.kind == "f" else array
            for name, array in self.feeds[run].items()
        }
        expected = self.expected[run][output]
        tries = [oracle.by_runtime(self.model, [moved])[0]]
        optimized = oracle.session(self.model, optimize=True)
        tries.append(list(optimized.run(None, self.feeds[run])))
        seen = max(oracle.movement(expected, each[output]) for each in tries)
        return max(seen, ROUNDING * self._peak(run))

    def _peak(self, run: int) -> float:
        """The largest finite number among the values of the main graph."""
        model = onnx.ModelProto.FromString(self.model.SerializeToString())
        known = {output.name for output in model.graph.output}
        names = [name for node in model.graph.node for name in node.output if name and name not in known]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        peak = 1.0
        for value in oracle.by_runtime(model, [self.feeds[run]])[0]:
            if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                finite = np.abs(value[np.isfinite(value)].astype(np.float64))
                peak = max(peak, float(np.max(finite, initial=0.0)))
        return peak


def required(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs without a default."""
    given = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in given]


@st.composite
def samples(draw: Any, flavour: str, size: int = 20) -> Sample:
    """A model of up to about ``size`` steps that passes the checker and runs."""
    b = Builder(draw, draw(st.sampled_from(OPSETS) | st.sampled_from(NEW_OPSETS)))
    inputs = _inputs(b)
    defaults = _overridable(b)
    run_steps(b, FLAVOURS[flavour], b.number(min(4, size), size))
    try:
        outputs = _outputs(b)
    except Skip:
        assume(False)
        raise
    model = _model(b, inputs, defaults, outputs)
    feeds = [_feeds(inputs, run) for run in (0, 1)]
    if defaults and model.ir_version > 3 and b.flip():
        feeds[1][defaults[0].name] = np.array([2, -1], dtype=np.float32)
    tried["made"] += 1
    try:
        onnx.checker.check_model(model, full_check=True)
        expected = oracle.by_runtime(model, feeds)
    except Exception as error:
        tried[f"{type(error).__name__}: {str(error)[:200]}"] += 1
        tried["refused"] += 1
        assume(False)
        raise
    return Sample(model, feeds, expected)


def _inputs(b: Builder) -> list[tuple[Value, list[str | int | None]]]:
    made: list[tuple[Value, list[str | int | None]]] = []
    for _ in range(b.number(1, 3)):
        kind = b.choose(("image", "rows", "any", "any", "int", "flag"))
        dtype = {"int": INT64, "flag": BOOL}.get(kind, FLOAT)
        if kind == "any":
            dtype = b.choose((FLOAT, FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16))
        dims: list[str | int | None]
        if kind == "image":
            dims = [_dim(b, "N", 1, 2), b.choose((1, 2, 4)), _dim(b, "H", 4), 4]
        elif kind == "rows":
            dims = [_dim(b, "N", "N", 2), _dim(b, "seq len", 3), b.choose((1, 4))]
        elif kind == "flag":
            dims = []
        else:
            dims = [_dim(b, "N", "seq len", 1, 2, 3, 4) for _ in range(b.number(0, 3))]
            if dims and b.number(0, 15) == 0:
                dims[0] = 0
        shape: Shape = tuple(SYMBOLS[d] if isinstance(d, str) else (int(d or 0),) * 2 for d in dims)
        value = Value(b.fresh(), dtype, shape, rough=dtype == TensorProto.FLOAT16)
        b.values.append(value)
        made.append((value, [None if isinstance(d, str) and b.number(0, 3) == 0 else d for d in dims]))
    return made


def _dim(b: Builder, *options: str | int) -> str | int:
    return b.choose(options)


def _overridable(b: Builder) -> list[Value]:
    """Sometimes an initializer that is an input too, which callers may override."""
    if b.number(0, 3):
        return []
    value = Value(b.fresh(), FLOAT, ((2, 2),))
    b.initializers.append(numpy_helper.from_array(np.array(b.choose(([1, 1], [0, 0], [2, 3])), np.float32), value.name))
    b.values.append(value)
    return [value]


def _outputs(b: Builder) -> list[Value]:
    """Most values that nothing reads, so that little of the graph is dead, and some that are read too; now
    and then one of them twice, or an input, through an Identity."""
    own = [v for v in b.values if b.owns(v)]
    if not own:
        raise Skip
    read = _read_names(b.nodes)
    ends = [v for v in own if v.name not in read]
    chosen: list[Value] = [v for v in ends if b.number(0, 3)] or [own[-1]]
    for _ in range(b.number(0, 2)):
        extra = b.choose(own)
        if extra in chosen:
            extra = b.one("Identity", [extra], extra.dtype, extra.shape, rough=extra.rough)
        chosen.append(extra)
    if b.number(0, 4) == 0:
        source = b.values[0]
        chosen.append(b.one("Identity", [source], source.dtype, source.shape, rough=source.rough))
    return chosen


def _read_names(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    names: set[str] = set()
    for node in nodes:
        names.update(node.input)
        for attribute in node.attribute:
            names |= _read_names(attribute.g.node)
    return names


def _model(
    b: Builder, inputs: list[tuple[Value, list[str | int | None]]], defaults: list[Value], outputs: list[Value]
) -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(v.name, v.dtype, dims) for v, dims in inputs]
    infos += [helper.make_tensor_value_info(v.name, v.dtype, at(v.shape, 0)) for v in defaults]
    ends = [
        helper.make_tensor_value_info(v.name, v.dtype, _declared(v.shape, i if b.flip() else None))
        for i, v in enumerate(outputs)
    ]
    ir_version = max(8, helper.find_min_ir_version_for([helper.make_opsetid("", b.opset)]))
    nested = any(attribute.HasField("g") for node in b.nodes for attribute in node.attribute)
    if b.opset < 9 and not b.functions and not nested and b.flip():
        ir_version = 3  # in which every initializer had to be an input too
        known = {info.name for info in infos}
        infos += [
            helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in b.initializers if t.name not in known
        ]
    graph = helper.make_graph(b.nodes, "fuzz", infos, ends, b.initializers)
    imports = [helper.make_opsetid("", b.opset)] + ([helper.make_opsetid(DOMAIN, 1)] if b.functions else [])
    return helper.make_model(graph, opset_imports=imports, functions=b.functions, ir_version=ir_version)


def _declared(shape: Shape, output: int | None) -> list[str | int | None]:
    """The dims of an output as exporters declare them, or nothing but the rank."""
    if output is None:
        return [None] * len(shape)
    return [m if m == n else f"out{output}_{axis}" for axis, (m, n) in enumerate(shape)]


def _feeds(inputs: list[tuple[Value, list[str | int | None]]], run: int) -> dict[str, Any]:
    rng = np.random.default_rng(run)
    feeds = {}
    for value, _ in inputs:
        array = rng.integers(-3, 4, size=at(value.shape, run))
        feeds[value.name] = np.asarray(array).astype(helper.tensor_dtype_to_np_dtype(value.dtype))
    return feeds
