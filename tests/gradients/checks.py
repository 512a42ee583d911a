"""Gradients against finite differences in float64, and as ONNX Runtime computes them in float32.

The oracle of float64 is the reference implementation of onnx: the derivative of the loss along random directions, by
central differences, against the inner product of the gradient with that direction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
from onnx import helper

from onnxopt.gradients import gradient_graph
from onnxopt.model import from_proto, to_proto
from tests import support
from tests.gradients.reference import REPAIRED

Array = np.ndarray[Any, Any]
_DIRECTIONS = 3
_STEP = 1e-6
_Run = Callable[[onnx.ModelProto, Sequence[str], Mapping[str, Array]], list[Array]]


def check_node(
    op: str,
    *inputs: Array | None,
    wrt: Sequence[int] | None = None,
    constants: Sequence[int] = (),
    outputs: Sequence[int] = (0,),
    opset: int = 18,
    domain: str = "",
    runtime: bool = True,
    **attributes: Any,
) -> None:
    """Check the rule of ``op`` at these inputs: in those at ``wrt`` (default: all that are floats and no constants).

    ``constants`` become initializers, the other inputs of the graph; integers always become initializers unless the
    test says otherwise. ``outputs`` are the places of the outputs that the loss reads. ``runtime`` says that ONNX
    Runtime implements the operator.
    """
    fixed = {i for i, x in enumerate(inputs) if x is not None and (i in constants or x.dtype.kind != "f")}
    names = ["" if x is None else f"x{i}" for i, x in enumerate(inputs)]
    asked = [f"x{i}" for i, x in enumerate(inputs) if x is not None and i not in fixed and (wrt is None or i in wrt)]
    made = [f"y{i}" if i in outputs else "" for i in range(max(outputs) + 1)]
    node = helper.make_node(op, names, made, domain=domain, **attributes)
    arrays = {f"x{i}": x for i, x in enumerate(inputs) if x is not None}
    read = [f"y{i}" for i in outputs]
    check([node], arrays, asked, read, constants=[f"x{i}" for i in fixed], opset=opset, domain=domain, runtime=runtime)


def check(
    nodes: Sequence[onnx.NodeProto],
    arrays: Mapping[str, Array],
    wrt: Sequence[str],
    outputs: Sequence[str],
    *,
    constants: Sequence[str] = (),
    opset: int = 18,
    domain: str = "",
    runtime: bool = True,
) -> None:
    """The same of a graph of ``nodes``."""
    feeds = {name: x for name, x in arrays.items() if name not in constants}
    exact = _model(nodes, _as(arrays, np.float64), outputs, constants, opset, domain)
    gradients = _gradients(exact, wrt, _as(feeds, np.float64), _by_reference)
    assert all(gradients[name].shape == arrays[name].shape for name in wrt)
    _along_directions(exact, _as(feeds, np.float64), gradients)
    if runtime:
        single = _model(nodes, _as(arrays, np.float32), outputs, constants, opset, domain)
        for name, found in _gradients(single, wrt, _as(feeds, np.float32), _by_runtime).items():
            scale = np.abs(gradients[name]).max(initial=1e-3)
            np.testing.assert_allclose(found, gradients[name], rtol=0, atol=2e-4 * scale, err_msg=name)


def _along_directions(model: ir.Model, feeds: Mapping[str, Array], gradients: Mapping[str, Array]) -> None:
    generator = np.random.default_rng(7)
    evaluator = onnx.reference.ReferenceEvaluator(to_proto(model), new_ops=REPAIRED)
    for name, gradient in gradients.items():
        for _ in range(_DIRECTIONS):
            direction = generator.standard_normal(gradient.shape)
            ends = []
            for sign in (1, -1):
                moved = {**feeds, name: feeds[name] + sign * _STEP * direction}
                ends.append(float(np.asarray(next(iter(evaluator.run(["loss"], moved)))).reshape(())))
            numeric = (ends[0] - ends[1]) / (2 * _STEP)
            scale = np.linalg.norm(gradient) * np.linalg.norm(direction) + abs(ends[0]) * 1e-3 + 1e-9
            assert abs(numeric - float((gradient * direction).sum())) <= 2e-6 * scale, name


def _gradients(model: ir.Model, wrt: Sequence[str], feeds: Mapping[str, Array], run: _Run) -> dict[str, Array]:
    found = gradient_graph(model, "loss", wrt)
    names = [found.gradients[name] for name in wrt]
    return dict(zip(wrt, run(to_proto(found.model), names, feeds), strict=True))


def _by_reference(proto: onnx.ModelProto, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
    evaluator = onnx.reference.ReferenceEvaluator(proto, new_ops=REPAIRED)
    return [np.asarray(x) for x in evaluator.run(list(names), dict(feeds))]


def _by_runtime(proto: onnx.ModelProto, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
    found = dict(zip([str(o.name) for o in proto.graph.output], support.outputs(from_proto(proto), feeds), strict=True))
    return [np.asarray(found[name]) for name in names]


def _as(arrays: Mapping[str, Array], dtype: Any) -> dict[str, Array]:
    return {name: x.astype(dtype) if x.dtype.kind == "f" else x for name, x in arrays.items()}


def _model(
    nodes: Sequence[onnx.NodeProto],
    arrays: Mapping[str, Array],
    outputs: Sequence[str],
    constants: Sequence[str],
    opset: int,
    domain: str,
) -> ir.Model:
    """The graph with ``loss``: the outputs weighted by random numbers and added up."""
    generator = np.random.default_rng(11)
    dtype = next(x.dtype for x in arrays.values() if x.dtype.kind == "f")
    element = helper.np_dtype_to_tensor_dtype(dtype)
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in arrays.items()
        if name not in constants
    ]
    initializers = [onnx.numpy_helper.from_array(np.asarray(arrays[name]), name) for name in constants]
    values = [helper.make_tensor_value_info(name, element, None) for name in outputs]
    graph = helper.make_graph(list(nodes), "g", inputs, values, initializers)
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    feeds = {name: x for name, x in arrays.items() if name not in constants}
    results = onnx.reference.ReferenceEvaluator(model, new_ops=REPAIRED).run(None, feeds)
    losses = []
    for name, result in zip(outputs, results, strict=True):
        weights = generator.uniform(0.5, 1.5, result.shape) * generator.choice([-1, 1], result.shape)
        graph.initializer.append(onnx.numpy_helper.from_array(weights.astype(dtype), f"{name}_weights"))
        graph.node.append(helper.make_node("Mul", [name, f"{name}_weights"], [f"{name}_weighted"]))
        graph.node.append(helper.make_node("ReduceSum", [f"{name}_weighted"], [f"{name}_loss"], keepdims=0))
        losses.append(f"{name}_loss")
    graph.node.append(helper.make_node("Sum", losses, ["loss"]))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("loss", element, []))
    return from_proto(helper.make_model(graph, opset_imports=imports, ir_version=10))
