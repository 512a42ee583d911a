"""Graphs inside graphs: If, Loop, Scan and local functions, whose bodies read what stands outside."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from tests.fuzz.builder import BOOL, INT64, Builder, Skip, Value
from tests.fuzz.steps import ELEMENTWISE, SHAPES, Step, is_single

DOMAIN = "onnxopt.fuzz"
_INNER: tuple[Step, ...] = (*ELEMENTWISE, *SHAPES)


def run_steps(b: Builder, steps: tuple[Step, ...], count: int) -> None:
    """Up to ``count`` of ``steps``; one that does not apply is passed over, with what it had begun."""
    for _ in range(count):
        marks = len(b.nodes), len(b.values), len(b.initializers), len(b.constants)
        try:
            b.choose(steps)(b)
        except Skip:
            del b.nodes[marks[0] :], b.values[marks[1] :], b.initializers[marks[2] :], b.constants[marks[3] :]


def _ending(inner: Builder, like: Value) -> Value:
    """The last value of a body that can stand for ``like``."""
    fits = [v for v in inner.values if (v.dtype, v.shape) == (like.dtype, like.shape)]
    return fits[-1] if fits and inner.flip() else inner.choose(fits or [like])


def conditional(b: Builder) -> Value:
    if b.depth >= 2:
        raise Skip
    x = b.pick(is_single)
    conditions = [v for v in b.values if v.dtype == BOOL and v.shape == ()]
    condition = b.choose(conditions) if conditions and b.flip() else b.constant(np.array(b.flip()))
    ends, graphs = [], []
    for name in ("then_branch", "else_branch"):
        inner = b.body()
        run_steps(inner, (*_INNER, conditional) if b.depth == 0 else _INNER, b.number(0, 3))
        end = _ending(inner, x)
        ends.append(end)
        graphs.append(inner.finish_body(name, [], [end]))
    rough, bound = any(e.rough for e in ends), max(e.bound for e in ends)
    return b.one(
        "If", [condition], x.dtype, x.shape, rough=rough, bound=bound, then_branch=graphs[0], else_branch=graphs[1]
    )


def loop(b: Builder) -> list[Value]:
    """A few rounds over one carried value, collecting another."""
    if b.depth >= 2 or b.opset < 11:
        raise Skip
    x = b.pick(is_single)
    rounds = b.number(0, 2)
    limit = b.constant(np.array(rounds, dtype=np.int64))
    inner = b.body()
    step, go_on = Value(inner.fresh(), INT64, ()), Value(inner.fresh(), BOOL, ())
    carried = Value(inner.fresh(), x.dtype, x.shape, rough=True, bound=1e6)
    inner.values += [step, go_on, carried]
    run_steps(inner, _INNER, b.number(0, 3))
    infos = [helper.make_tensor_value_info(v.name, v.dtype, []) for v in (step, go_on)]
    infos.append(helper.make_tensor_value_info(carried.name, carried.dtype, None))
    end = _ending(inner, carried)
    outputs = [go_on, end] + ([end] if b.flip() else [])
    body = inner.finish_body("loop_body", infos, outputs)
    made = [(x.dtype, x.shape)] + [(x.dtype, ((rounds, rounds), *x.shape))] * (len(outputs) - 2)
    condition = None if b.flip() else b.constant(np.array(True))
    return b.emit("Loop", [limit, condition, x], made, rough=True, bound=1e6, body=body)


def scan(b: Builder) -> list[Value]:
    """Along the first axis of a value, with a carried one."""
    if b.depth >= 2 or b.opset < 9:
        raise Skip
    x = b.pick(lambda v: is_single(v) and v.rank >= 1 and min(v.shape[0]) >= 1)
    state = b.pick(is_single)
    inner = b.body()
    carried = Value(inner.fresh(), state.dtype, state.shape, rough=True, bound=1e6)
    row = Value(inner.fresh(), x.dtype, x.shape[1:], rough=x.rough, bound=x.bound)
    inner.values += [carried, row]
    run_steps(inner, _INNER, b.number(0, 3))
    infos = [helper.make_tensor_value_info(v.name, v.dtype, None) for v in (carried, row)]
    body = inner.finish_body("scan_body", infos, [_ending(inner, carried), _ending(inner, row)])
    return b.emit(
        "Scan", [state, x], [(state.dtype, state.shape), (x.dtype, x.shape)], rough=True, bound=1e6, body=body,
        num_scan_inputs=1,
    )  # fmt: skip


def function_call(b: Builder) -> Value:
    """A call of a local function, which is made if there is none or by a second throw."""
    if b.depth >= 2:
        raise Skip
    x = b.pick(is_single)
    if not b.functions or b.flip():
        name = f"F{len(b.functions)}"
        two = helper.make_tensor("", TensorProto.FLOAT, [], [2.0])
        leaky = helper.make_node("LeakyRelu", ["c"], ["d"])
        leaky.attribute.add(name="alpha", ref_attr_name="alpha", type=1)
        nodes = [
            helper.make_node(b.choose(("Identity", "Neg", "Relu")), ["a"], ["b"]),
            helper.make_node("Constant", [], ["two"], value=two),
            helper.make_node(b.choose(("Mul", "Add")), ["b", "two"], ["c"]),
            leaky,
            helper.make_node("Identity", [b.choose(("d", "c"))], ["e"]),
        ]
        imports = [helper.make_opsetid("", b.opset)]
        b.functions.append(helper.make_function(DOMAIN, name, ["a"], ["e"], nodes, imports, ["alpha"]))
    function = b.choose(b.functions)
    return b.one(function.name, [x], x.dtype, x.shape, rough=True, bound=2 * x.bound + 2, domain=DOMAIN, alpha=0.5)


NESTED: tuple[Step, ...] = (conditional, conditional, loop, scan, function_call)
