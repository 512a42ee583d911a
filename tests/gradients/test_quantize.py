"""Straight-through gradients, against formulas on arrays: finite differences see no slope in a staircase."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxopt.errors import GradientError
from onnxopt.gradients import gradient_graph
from onnxopt.model import from_proto
from tests import support

Array = np.ndarray[Any, Any]

_LIMITS: dict[int, tuple[int, int]] = {
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT8: (0, 255),
    TensorProto.INT16: (-32768, 32767),
}
_RNG = np.random.default_rng(5)


def _gradients(
    x: Array, scale: Array, zero: Array | None, weights: Array, second: Array | None = None, **attributes: Any
) -> dict[str, Array]:
    """Of ``Σ weights · DQ(Q(x))`` in ``x`` and the scales."""
    kind = helper.np_dtype_to_tensor_dtype(zero.dtype) if zero is not None else TensorProto.UINT8
    parameters = ["scale", "zero"] if zero is not None else ["scale"]
    back = [("second" if second is not None else "scale"), *parameters[1:]]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *parameters], ["y"], **attributes),
        helper.make_node("DequantizeLinear", ["y", *back], ["z"], **attributes),
        helper.make_node("Mul", ["z", "weights"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted"], ["loss"], keepdims=0),
    ]
    arrays = {"scale": scale, "zero": zero, "weights": weights, "second": second}
    constants = [onnx.numpy_helper.from_array(a, name) for name, a in arrays.items() if a is not None]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("loss", TensorProto.FLOAT, [])], constants,
        value_info=[helper.make_tensor_value_info("y", kind, x.shape)],
    )  # fmt: skip
    model = from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    wrt = ["x", "scale", *(["second"] if second is not None else [])]
    found = gradient_graph(model, "loss", wrt)
    return dict(zip(wrt, support.outputs(found.model, {"x": x})[1:], strict=True))


def _expected(x: Array, scale: Array, zero: Array, kind: int, weights: Array, axes: tuple[int, ...]) -> list[Array]:
    low, high = _LIMITS[kind]
    place = x / scale + zero
    passes = (place >= low) & (place <= high)
    rounded = np.clip(np.round(x / scale) + zero, low, high) - zero
    return [weights * passes, np.sum(weights * (rounded - np.where(passes, x / scale, 0)), axis=axes)]


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16])
@pytest.mark.parametrize("offset", [0, 7])
def test_one_scale_for_all(kind: Any, offset: int) -> None:
    x = (_RNG.standard_normal((3, 4, 5)) * 12).astype(np.float32)
    scale: Array = np.array(0.0004 if kind is np.int16 else 0.11, np.float32)
    zero: Array = np.array(offset, kind)
    weights = _RNG.standard_normal(x.shape).astype(np.float32)
    found = _gradients(x, scale, zero, weights)
    type_ = helper.np_dtype_to_tensor_dtype(zero.dtype)
    dx, ds = _expected(
        x.astype(np.float64), np.asarray(scale, np.float64), np.asarray(zero, np.float64), type_, weights, (0, 1, 2)
    )
    assert 0 < np.count_nonzero(dx == 0) < x.size  # some are clipped
    np.testing.assert_allclose(found["x"], dx, rtol=1e-6)
    np.testing.assert_allclose(found["scale"], ds, rtol=1e-3, atol=1e-2 if kind is np.int16 else 1e-4)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("has_zero", [True, False])
def test_a_scale_for_each_slice(axis: int, has_zero: bool) -> None:
    x = (_RNG.standard_normal((3, 4, 5)) * 12).astype(np.float32)
    size = x.shape[axis]
    scale: Array = _RNG.uniform(0.02, 0.2, (size,)).astype(np.float32)
    zero: Array | None = _RNG.integers(-20, 20, (size,)).astype(np.int8) if has_zero else None
    weights = _RNG.standard_normal(x.shape).astype(np.float32)
    found = _gradients(x, scale, zero, weights, axis=axis)
    wide = [size if i == axis % 3 else 1 for i in range(3)]
    kind = TensorProto.INT8 if has_zero else TensorProto.UINT8
    offsets: Array = np.zeros(size)
    if zero is not None:
        offsets = zero
    dx, ds = _expected(
        x.astype(np.float64), scale.reshape(wide).astype(np.float64), offsets.reshape(wide).astype(np.float64), kind,
        weights, tuple(i for i in range(3) if i != axis % 3),
    )  # fmt: skip
    np.testing.assert_allclose(found["x"], dx, rtol=1e-6)
    np.testing.assert_allclose(found["scale"], ds, rtol=1e-4, atol=1e-4)


def test_two_scales_count_each_for_itself() -> None:
    x = np.linspace(-3, 3, 24, dtype=np.float32).reshape(4, 6)
    scale, second = np.array(0.05, np.float32), np.array(0.1, np.float32)
    weights = np.ones_like(x)
    found = _gradients(x, scale, np.array(0, np.int8), weights, second)
    np.testing.assert_allclose(found["x"], np.full_like(x, 2), rtol=1e-6)  # 0.1 / 0.05
    np.testing.assert_allclose(found["second"], np.round(x / 0.05).sum(), atol=1e-3)
    np.testing.assert_allclose(found["scale"], -(2 * x / 0.05).sum(), atol=1e-2)


def test_integer_weights_have_a_gradient_in_their_scale_only() -> None:
    weights = _RNG.integers(-127, 127, (4, 3)).astype(np.int8)
    scale = _RNG.uniform(0.01, 0.1, 3).astype(np.float32)
    model = support.graph(
        "g (float[2,4] x) => (float loss) { w = DequantizeLinear<axis = 1>(q, scale) y = MatMul(x, w)"
        " loss = ReduceSum<keepdims = 0>(y) }",
        opset=21, ir_version=10, q=weights, scale=scale,
    )  # fmt: skip
    x = _RNG.standard_normal((2, 4)).astype(np.float32)
    found = gradient_graph(model, "loss", ["scale"])
    (_, ds) = support.outputs(found.model, {"x": x})
    np.testing.assert_allclose(ds, (x.sum(0)[:, None] * weights).sum(0), rtol=1e-4, atol=1e-3)
    with pytest.raises(GradientError, match="'q' is of INT8"):
        gradient_graph(model, "loss", ["q"])


@pytest.mark.parametrize(("axis", "block"), [(0, 2), (1, 2), (-1, 3), (1, 3), (2, 5)])
@pytest.mark.parametrize("has_zero", [True, False])
def test_a_scale_for_each_block(axis: int, block: int, has_zero: bool) -> None:
    x = (_RNG.standard_normal((3, 4, 5)) * 12).astype(np.float32)
    axis_size = x.shape[axis]
    own = tuple(-(-axis_size // block) if i == axis % 3 else d for i, d in enumerate(x.shape))
    scale: Array = _RNG.uniform(0.02, 0.2, own).astype(np.float32)
    zero: Array | None = _RNG.integers(-20, 20, own).astype(np.int8) if has_zero else None
    weights = _RNG.standard_normal(x.shape).astype(np.float32)
    found = _gradients(x, scale, zero, weights, axis=axis, block_size=block)
    offsets: Array = np.zeros(own) if zero is None else zero
    wide, wide_zero = (
        np.repeat(each.astype(np.float64), block, axis).take(np.arange(axis_size), axis) for each in (scale, offsets)
    )
    kind = TensorProto.INT8 if has_zero else TensorProto.UINT8
    dx, each = _expected(x.astype(np.float64), wide, wide_zero, kind, weights, ())
    ds = np.add.reduceat(each, np.arange(0, axis_size, block), axis)
    assert 0 < np.count_nonzero(dx == 0) < x.size
    np.testing.assert_allclose(found["x"], dx, rtol=1e-6)
    np.testing.assert_allclose(found["scale"], ds, rtol=1e-4, atol=1e-4)


def test_weights_of_four_bits_have_a_gradient_in_the_scales_of_their_blocks() -> None:
    integers = _RNG.integers(-8, 8, (6, 3))
    scale = _RNG.uniform(0.01, 0.1, (3, 3)).astype(np.float32)
    packed = onnx.helper.make_tensor("q", TensorProto.INT4, integers.shape, integers.reshape(-1))
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("DequantizeLinear", ["q", "scale"], ["w"], axis=0, block_size=2),
                helper.make_node("Mul", ["w", "c"], ["p"]),
                helper.make_node("ReduceSum", ["p"], ["loss"], keepdims=0),
            ],
            "g",
            [helper.make_tensor_value_info("c", TensorProto.FLOAT, (6, 3))],
            [helper.make_tensor_value_info("loss", TensorProto.FLOAT, [])],
            [packed, onnx.numpy_helper.from_array(scale, "scale")],
        ),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    c = _RNG.standard_normal((6, 3)).astype(np.float32)
    found = gradient_graph(from_proto(model), "loss", ["scale"])
    (_, ds) = support.outputs(found.model, {"c": c})
    np.testing.assert_allclose(ds, (c * integers).reshape(3, 2, 3).sum(axis=1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("other", ["scale", "second"])
def test_a_range_of_the_input_counts_as_constant(other: str) -> None:
    x = (_RNG.standard_normal((3, 4)) * 5).astype(np.float32)
    weights = _RNG.standard_normal((3, 4)).astype(np.float32)
    model = support.graph(
        f"g (float[3, 4] x) => (float loss) {{ y, scale, zero = DynamicQuantizeLinear(x) second = Mul(scale, two)"
        f" z = DequantizeLinear(y, {other}, zero) p = Mul(z, weights) loss = ReduceSum<keepdims = 0>(p) }}",
        weights=weights, two=np.array(2, np.float32),
    )  # fmt: skip
    (_, dx) = support.outputs(gradient_graph(model, "loss", ["x"]).model, {"x": x})
    np.testing.assert_allclose(dx, weights * (2 if other == "second" else 1), rtol=1e-6)


def _around(between: str) -> Any:
    """What the model adds to ``Σ x`` is ``Σ DQ(…(Q(x)))``, its gradient to 1."""
    return support.graph(
        f"g (float[1, 2, 4] x) => (float loss) {{ q = QuantizeLinear(x, scale) {between} z = DequantizeLinear(r, scale)"
        " a = ReduceSum<keepdims = 0>(z) b = ReduceSum<keepdims = 0>(x) loss = Add(a, b) }",
        opset=21, ir_version=10, scale=np.array(0.1, np.float32), shape=np.array([2, 4]), axes=np.array([0]),
    )  # fmt: skip


@pytest.mark.parametrize(
    "between",
    [
        "r = Reshape(q, shape)",
        "r = Flatten(q)",
        "r = Transpose<perm = [0, 2, 1]>(q)",
        "r = Squeeze(q, axes)",
        "r = Unsqueeze(q, axes)",
        "r = Identity(q)",
    ],
)
def test_integers_may_be_moved_between(between: str) -> None:
    x = np.array([[[-1, -0.2, 0.2, 1], [0.4, 3, 26, -3]]], np.float32)
    (_, dx) = support.outputs(gradient_graph(_around(between), "loss", ["x"]).model, {"x": x})
    np.testing.assert_array_equal(dx, np.where((x >= 0) & (x <= 25.5), 2, 1))


@pytest.mark.parametrize("between", ["r = MaxPool<kernel_shape = [1]>(q)", "i = Cast<to = 6>(q) r = Cast<to = 2>(i)"])
def test_refuses_what_computes_with_integers(between: str) -> None:
    with pytest.raises(GradientError, match="rounded to integers; run dequantize first"):
        gradient_graph(_around(between), "loss", ["x"])


def test_a_product_of_integers_has_no_rule() -> None:
    model = support.graph(
        "g (float[2, 4] x) => (float loss) { q = QuantizeLinear(x, scale) p = MatMulInteger(q, w)"
        " f = Cast<to = 1>(p) a = ReduceSum<keepdims = 0>(f) b = ReduceSum<keepdims = 0>(x) loss = Add(a, b) }",
        opset=21, ir_version=10, scale=np.array(0.1, np.float32), w=np.ones((4, 3), np.int8),
    )  # fmt: skip
    with pytest.raises(GradientError, match="rounded to integers"):
        gradient_graph(model, "loss", ["x"])
