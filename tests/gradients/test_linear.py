"""Matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from onnxopt.errors import GradientError
from onnxopt.gradients import gradient_graph
from onnxopt.model import from_proto, to_proto
from tests import support
from tests.gradients.checks import Array, check_node

_RNG = np.random.default_rng(0)

SHAPES = [
    ((3, 4), (4, 5)),
    ((4,), (4,)),
    ((4,), (4, 5)),
    ((3, 4), (4,)),
    ((2, 3, 4), (4,)),
    ((4,), (2, 4, 5)),
    ((2, 3, 4), (4, 5)),
    ((3, 4), (2, 4, 5)),
    ((2, 3, 4), (2, 4, 5)),
    ((2, 3, 4), (1, 4, 5)),
    ((1, 3, 4), (2, 4, 5)),
    ((3, 4), (1, 1, 4, 5)),
    ((4,), (1, 4, 5)),
    ((2, 1, 3, 4), (3, 4, 5)),
    ((2, 1, 3, 4), (1, 3, 4, 5)),
    ((3, 2, 4, 3), (2, 3, 1)),
    ((2, 3, 1, 4), (2, 3, 4, 1)),
]


def _normal(*shape: int) -> Array:
    return _RNG.standard_normal(shape)


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("wrt", [[0, 1], [0], [1]])
def test_matmul(shapes: tuple[tuple[int, ...], tuple[int, ...]], wrt: list[int]) -> None:
    a, b = shapes
    check_node("MatMul", _normal(*a), _normal(*b), wrt=wrt, opset=26 if len(a) == 2 else 18)


@pytest.mark.parametrize("c", [None, (), (1,), (5,), (3, 1), (1, 5), (3, 5)])
@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("factors", [{}, {"alpha": 0.5, "beta": -2.0}])
def test_gemm(c: tuple[int, ...] | None, trans_a: int, trans_b: int, factors: dict[str, Any]) -> None:
    a, b = _normal(*((4, 3) if trans_a else (3, 4))), _normal(*((5, 4) if trans_b else (4, 5)))
    inputs = [a, b] if c is None else [a, b, _normal(*c)]
    check_node("Gemm", *inputs, transA=trans_a, transB=trans_b, **factors)


@pytest.mark.parametrize("shapes", [shapes for shapes in SHAPES if min(map(len, shapes)) > 1])
@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_fused_matmul(shapes: tuple[tuple[int, ...], tuple[int, ...]], trans_a: int, trans_b: int) -> None:
    a, b = (_normal(*shape) for shape in shapes)
    stored = [_swapped(x) if trans else x for x, trans in zip((a, b), (trans_a, trans_b), strict=True)]
    options: dict[str, Any] = {"transA": trans_a, "transB": trans_b, "alpha": 0.5}
    fused = _gradients("FusedMatMul", stored[0], stored[1], domain="com.microsoft", **options)
    plain = _gradients("MatMul", 0.5 * a, b)
    expected = [0.5 * plain[0], plain[1]]
    for found, want, trans in zip(fused, expected, (trans_a, trans_b), strict=True):
        np.testing.assert_allclose(found, _swapped(want) if trans else want, rtol=1e-4, atol=1e-5)


def test_refuses_to_transpose_batches() -> None:
    model = _model("FusedMatMul", _normal(3, 2, 4), _normal(2, 4, 5), domain="com.microsoft", transBatchA=1)
    y = model.graph[0].outputs[0]
    y.type, y.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([2, 3, 5])
    with pytest.raises(GradientError, match="transposes axes of the batch"):
        gradient_graph(model, "loss", ["a"])


def test_the_gradient_of_weights_is_one_product_of_all_rows() -> None:
    found = gradient_graph(_model("MatMul", _normal(8, 16, 4), _normal(4, 5)), "loss", ["b"])
    nodes = [node.op_type for node in found.model.graph if node.op_type in ("MatMul", "Gemm", "ReduceSum", "Transpose")]
    assert nodes == ["MatMul", "ReduceSum", "Gemm"]  # the first two are the layer and its loss


def _swapped(x: Array) -> Array:
    return x.swapaxes(-1, -2) if x.ndim > 1 else x


def _model(op: str, a: Array, b: Array, domain: str = "", **attributes: Any) -> ir.Model:
    nodes = [
        helper.make_node(op, ["a", "b"], ["y"], domain=domain, **attributes),
        helper.make_node("Mul", ["y", "y"], ["squared"]),
        helper.make_node("ReduceSum", ["squared"], ["loss"], keepdims=0),
    ]
    inputs = [helper.make_tensor_value_info(name, 1, x.shape) for name, x in (("a", a), ("b", b))]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("loss", 1, [])])
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return from_proto(helper.make_model(graph, opset_imports=imports, ir_version=10))


def _gradients(op: str, a: Array, b: Array, domain: str = "", **attributes: Any) -> list[Array]:
    found = gradient_graph(_model(op, a, b, domain, **attributes), "loss", ["a", "b"])
    feeds = {"a": a.astype(np.float32), "b": b.astype(np.float32)}
    outputs = support.outputs(from_proto(to_proto(found.model)), feeds)
    return [np.asarray(x) for x in outputs[1:]]
