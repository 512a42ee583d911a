"""``convert-qoperator``; the oracle is ONNX Runtime, with its own fusion of QDQ models and without."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.data import load_data
from onnxopt.graph import Editor
from onnxopt.model import copy, from_proto, to_proto
from onnxopt.pass_base import Context
from onnxopt.passes.quantize.convert_qoperator import ConvertQoperator
from onnxopt.passes.quantize.quantize_static import QuantizeStatic
from onnxopt.runtime import Session, Snapshot
from tests.support import count_ops, graph, ops, outputs, run

STEP = 0.05
"""The scale of every activation below."""

HEADER = f"float s = {{{STEP}}}, uint8 z = {{120}}, float sw = {{0.01}}, int8 zw = {{0}}, float sb = {{{STEP * 0.01}}}"


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def qdq(body: str, dims: str = "4,8", out: str = "4,8", *, more: str = "", opset: int = 21, **arrays: Any) -> ir.Model:
    """A model that quantizes ``x`` to ``d``, and dequantizes ``q`` to ``y``, by ``s`` and ``z``."""
    return graph(
        f"g (float[{dims}] x) => (float[{out}] y) <{HEADER}{more}> {{ q0 = QuantizeLinear(x, s, z) "
        f"d = DequantizeLinear(q0, s, z) {body} y = DequantizeLinear(q, s, z) }}",
        opset=opset,
        ir_version=10,
        **arrays,
    )


def as_fused(model: ir.Model, feeds: dict[str, Any]) -> list[Any]:
    """What ONNX Runtime computes after its own fusion."""
    return Session(Snapshot.of(model), optimize=True, threads=1).run(feeds)


def check(before: ir.Model, after: ir.Model, shape: tuple[int, ...], steps: float = 1.001) -> None:
    """Equal to the model before, and to what ONNX Runtime makes of it, up to one step."""
    feeds = {"x": (rng(7).standard_normal(shape) * 3).astype(np.float32)}
    got = outputs(after, feeds)[0]
    for expected in (outputs(before, feeds)[0], as_fused(before, feeds)[0]):
        assert np.abs(expected).max() > 5 * STEP, "the test needs a signal"
        np.testing.assert_allclose(got, expected, atol=steps * STEP, rtol=0)


def integers(*shape: int, dtype: Any = np.int8) -> np.ndarray[Any, Any]:
    """Of 7 bits, so that no CPU adds two products to more than 16."""
    return rng(3).integers(-64, 64, shape, dtype)


BIAS = "db = DequantizeLinear(b, sb) "
WEIGHT = "dw = DequantizeLinear(w, sw, zw) "


def test_conv_becomes_qlinearconv() -> None:
    before = qdq(
        f"{WEIGHT}{BIAS} m = Conv <pads = [1,1,1,1]> (d, dw, db) q = QuantizeLinear(m, s, z)",
        "1,3,5,5", "1,4,5,5", w=integers(4, 3, 3, 3), b=integers(4, dtype=np.int32),
    )  # fmt: skip
    after, _ = run(ConvertQoperator(), before)
    assert ops(after) == ["QuantizeLinear", "QLinearConv", "DequantizeLinear"]
    check(before, after, (1, 3, 5, 5))


def test_relu_that_cuts_more_than_saturation_is_kept() -> None:
    before = qdq(
        f"{WEIGHT} m0 = Conv(d, dw) m = Relu(m0) q = QuantizeLinear(m, s, z)",
        "1,3,5,5", "1,4,3,3", w=integers(4, 3, 3, 3),
    )  # fmt: skip
    after, _ = run(ConvertQoperator(), before)
    assert "QLinearConv" not in ops(after)
    assert "Relu" in ops(after)
    check(before, after, (1, 3, 5, 5))


def test_relu_that_saturation_does_anyway_goes() -> None:
    before = qdq(
        f"{WEIGHT} m0 = Conv(d, dw) m = Relu(m0) q1 = QuantizeLinear(m, s, z0) d1 = DequantizeLinear(q1, s, z0) "
        "q = QuantizeLinear(d1, s, z)",
        "1,3,5,5", "1,4,3,3", more=", uint8 z0 = {0}", w=integers(4, 3, 3, 3),
    )  # fmt: skip
    after, _ = run(ConvertQoperator(), before)
    assert "Relu" not in ops(after)
    assert "QLinearConv" in ops(after)
    check(before, after, (1, 3, 5, 5))


def test_weights_may_have_a_scale_for_each_channel() -> None:
    scales = np.linspace(0.005, 0.02, 4).astype(np.float32)
    before = qdq(
        "dw = DequantizeLinear <axis = 0> (w, sws, zws) db = DequantizeLinear <axis = 0> (b, sbs) "
        "m = Conv(d, dw, db) q = QuantizeLinear(m, s, z)",
        "1,3,5,5", "1,4,3,3", w=integers(4, 3, 3, 3), sws=scales, zws=np.zeros(4, np.int8),
        sbs=(scales * np.float32(STEP)), b=integers(4, dtype=np.int32),
    )  # fmt: skip
    after, _ = run(ConvertQoperator(), before)
    assert "QLinearConv" in ops(after)
    check(before, after, (1, 3, 5, 5))


@pytest.mark.parametrize(
    ("body", "operator"),
    [
        (f"{WEIGHT} m = MatMul(d, dw) q = QuantizeLinear(m, s, z)", "QLinearMatMul"),
        (f"{WEIGHT}{BIAS} m = Gemm <transB = 1> (d, dw, db) q = QuantizeLinear(m, s, z)", "QGemm"),
        ("m = Add(d, d) q = QuantizeLinear(m, s, z)", "QLinearAdd"),
        ("m = Mul(d, d) q = QuantizeLinear(m, s, z)", "QLinearMul"),
        ("m = Sigmoid(d) q = QuantizeLinear(m, s, z)", "QLinearSigmoid"),
        ("m = LeakyRelu <alpha = 0.3> (d) q = QuantizeLinear(m, s, z)", "QLinearLeakyRelu"),
        ("m = Softmax(d) q = QuantizeLinear(m, s, z)", "QLinearSoftmax"),
        ("c = Greater(x, s) m = Where(c, d, d) q = QuantizeLinear(m, s, z)", "QLinearWhere"),
    ],
)
def test_matrices_and_pointwise_operators(body: str, operator: str) -> None:
    before = qdq(body, w=integers(8, 8), b=integers(8, dtype=np.int32))
    after, _ = run(ConvertQoperator(), before)
    assert operator in ops(after)
    assert count_ops(after)["QuantizeLinear"] == count_ops(after)["DequantizeLinear"] == 1
    check(before, after, (4, 8))


@pytest.mark.parametrize(
    ("body", "out", "operator"),
    [
        ("m = Concat <axis = 1> (d, d) q = QuantizeLinear(m, s, z)", "1,6,6,6", "QLinearConcat"),
        (
            "m = AveragePool <kernel_shape = [2,2], strides = [2,2]> (d) q = QuantizeLinear(m, s, z)",
            "1,3,3,3",
            "QLinearAveragePool",
        ),
        ("m = GlobalAveragePool(d) q = QuantizeLinear(m, s, z)", "1,3,1,1", "QLinearGlobalAveragePool"),
        ("m = MaxPool <kernel_shape = [2,2]> (d) q = QuantizeLinear(m, s, z)", "1,3,5,5", "MaxPool"),
        ("m = Transpose <perm = [0,2,3,1]> (d) q = QuantizeLinear(m, s, z)", "1,6,6,3", "Transpose"),
        ("m = Reshape(d, flat) q = QuantizeLinear(m, s, z)", "1,108", "Reshape"),
        ("m = Relu(d) q = QuantizeLinear(m, s, z)", "1,3,6,6", "Clip"),
        ("m = Clip(d, low, high) q = QuantizeLinear(m, s, z)", "1,3,6,6", "Clip"),
    ],
)
def test_pictures(body: str, out: str, operator: str) -> None:
    more = ", int64[2] flat = {1, 108}, float low = {-1}, float high = {2.03}"
    before = qdq(body, "1,3,6,6", out, more=more)
    after, _ = run(ConvertQoperator(), before)
    assert ops(after) == ["QuantizeLinear", operator, "DequantizeLinear"]
    steps = 1.001 if operator.startswith("QLinear") else 0.001
    check(before, after, (1, 3, 6, 6), steps)


def test_split_moves_integers_on_all_its_outputs() -> None:
    before = qdq(
        "a, b = Split <axis = 1, num_outputs = 2> (d) qa = QuantizeLinear(a, s, z) qb = QuantizeLinear(b, s, z) "
        "da = DequantizeLinear(qa, s, z) db = DequantizeLinear(qb, s, z) m = Add(da, db) q = QuantizeLinear(m, s, z)",
        out="4,4",
    )
    after, _ = run(ConvertQoperator(), before)
    assert ops(after) == ["QuantizeLinear", "Split", "QLinearAdd", "DequantizeLinear"]
    check(before, after, (4, 8))


def test_another_grid_behind_it_is_a_reason() -> None:
    before = qdq(
        "m = Transpose <perm = [1,0]> (d) q1 = QuantizeLinear(m, s2, z) d1 = DequantizeLinear(q1, s2, z) "
        "q = QuantizeLinear(d1, s, z)",
        out="8,4", more=", float s2 = {0.07}",
    )  # fmt: skip
    after, report = run(ConvertQoperator(), before)
    assert "grid of its input" in str(report.refusals[0])
    assert count_ops(after)["QuantizeLinear"] == 3


@pytest.mark.parametrize(
    ("body", "dims", "operator"),
    [
        (f"{WEIGHT}{BIAS} y = Conv(d, dw, db)", ("1,8,5,5", "1,4,3,3"), "ConvInteger"),
        (f"{WEIGHT} y = MatMul(d, dw)", ("4,8", "4,8"), "MatMulInteger"),
    ],
)
def test_a_float_output_takes_sums_of_integers(body: str, dims: tuple[str, str], operator: str) -> None:
    w = integers(4, 8, 3, 3) if "Conv" in operator else integers(8, 8)
    before = graph(
        f"g (float[{dims[0]}] x) => (float[{dims[1]}] y) <{HEADER}> "
        f"{{ q0 = QuantizeLinear(x, s, z) d = DequantizeLinear(q0, s, z) {body} }}",
        opset=21, ir_version=10, w=w, b=integers(4, dtype=np.int32),
    )  # fmt: skip
    after, _ = run(ConvertQoperator(), before)
    assert operator in ops(after)
    feeds = {"x": rng().standard_normal([int(d) for d in dims[0].split(",")]).astype(np.float32)}
    np.testing.assert_allclose(outputs(after, feeds)[0], outputs(before, feeds)[0], rtol=1e-5, atol=1e-4)


def test_standard_only_uses_no_other_domain() -> None:
    before = qdq(
        f"{WEIGHT}{BIAS} g = Gemm <transB = 1> (d, dw, db) q1 = QuantizeLinear(g, s, z) "
        "d1 = DequantizeLinear(q1, s, z) m = Add(d1, d1) q = QuantizeLinear(m, s, z)",
        w=integers(8, 8), b=integers(8, dtype=np.int32),
    )  # fmt: skip
    after, report = run(ConvertQoperator(standard_only=True), before)
    assert {node.domain for node in after.graph} == {""}
    assert "MatMulInteger" in ops(after)
    assert "no integer form in the ONNX standard" in str(report.refusals[0])
    check(before, after, (4, 8))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"{WEIGHT} m = MatMul(x, dw) q = QuantizeLinear(m, s, z)", "is not quantized"),
        (f"{WEIGHT} m = MatMul(d, dw) q = QuantizeLinear(m, s, z8)", "and its output INT8"),
        (f"{WEIGHT} db = DequantizeLinear(b, s) m = Gemm(d, dw, db) q = QuantizeLinear(m, s, z)", "is not the product"),
    ],
)
def test_says_why_not(body: str, reason: str) -> None:
    model = graph(
        f"g (float[4,8] x) => (float[4,8] y) <{HEADER}, int8 z8 = {{0}}> {{ q0 = QuantizeLinear(x, s, z) "
        f"d = DequantizeLinear(q0, s, z) {body} y = DequantizeLinear(q, s, {'z8' if 'z8' in body else 'z'}) }}",
        opset=21, ir_version=10, w=integers(8, 8), b=integers(8, dtype=np.int32),
    )  # fmt: skip
    after, report = run(ConvertQoperator(), model)
    assert report.changed == 0
    assert reason in str(report.refusals[0])
    assert "QuantizeLinear" in ops(after)


def test_a_tensor_that_is_read_as_float_too_stays_float() -> None:
    before = graph(
        f"g (float[4,8] x) => (float[4,8] y, float[4,8] m) <{HEADER}> {{ q0 = QuantizeLinear(x, s, z) "
        "d = DequantizeLinear(q0, s, z) m = Sigmoid(d) q = QuantizeLinear(m, s, z) y = DequantizeLinear(q, s, z) }",
        opset=21, ir_version=10,
    )  # fmt: skip
    after, report = run(ConvertQoperator(), before)
    assert report.changed == 0
    assert "not only quantized" in str(report.refusals[0])
    assert "Sigmoid" in ops(after)


def net(activation: Any) -> tuple[ir.Model, dict[str, Any]]:
    """Convolutions, a residual sum, a gate and a product, quantized."""
    draw = rng(11)
    shapes = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (8, 1, 3, 3), "w4": (8, 10)}
    arrays: dict[str, Any] = {
        name: draw.normal(scale=np.prod(shape[1:]) ** -0.5, size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    model = graph(
        """g (float[N,3,12,12] x) => (float[N,10] y) {
            a = Conv <pads = [1,1,1,1]> (x, w1) b = Relu(a) c = Conv <pads = [1,1,1,1]> (b, w2) d = Add(c, b)
            e = Conv <pads = [1,1,1,1], group = 8> (d, w3) f = Sigmoid(e) h = Mul(d, f)
            p = GlobalAveragePool(h) v = Flatten(p) y = MatMul(v, w4) }""",
        **arrays,
    )
    data = load_data({"x": draw.standard_normal((16, 3, 12, 12)).astype(np.float32)}, model)
    pass_ = QuantizeStatic(activation_type=activation, placement="all", reduce_range=True)
    result = copy(model)
    pass_.run(Context(Editor(result), data=data))
    return result, {"x": draw.standard_normal((4, 3, 12, 12)).astype(np.float32)}


@pytest.mark.parametrize("activation", ["uint8", "int8"])
def test_each_operator_is_right_to_one_step(activation: str) -> None:
    """Given the very integers that the QDQ model has there, with ONNX Runtime fusing nothing."""
    before, feeds = net(activation)
    after, _ = run(ConvertQoperator(), before)
    known = values(before, feeds)
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in to_proto(after).graph.initializer}
    seen = set()
    for node in to_proto(after).graph.node:
        if "QLinear" not in node.op_type and node.op_type != "QGemm":
            continue
        given = {name: known[name] for name in node.input if name not in constants}
        kinds = {name: onnx.helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in given.items()}
        alone = onnx.helper.make_graph(
            [node], "alone",
            [onnx.helper.make_tensor_value_info(name, kinds[name], given[name].shape) for name in given],
            [onnx.ValueInfoProto(name=node.output[0])],
            [onnx.numpy_helper.from_array(constants[name], name) for name in set(node.input) & constants.keys()],
        )  # fmt: skip
        imports = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("com.microsoft", 1)]
        single = from_proto(onnx.helper.make_model(alone, opset_imports=imports, ir_version=10))
        (got,), expected = outputs(single, given), known[node.output[0]]
        apart = np.abs(got.astype(np.float64) - expected.astype(np.float64))
        if expected.dtype.kind == "f":
            assert apart.max() <= 1e-5 * np.abs(expected).max()
        else:
            assert apart.max() <= 1
            assert (apart > 0).mean() < 0.01
        seen.add(node.op_type)
    assert {"QLinearConv", "QLinearAdd", "QLinearMul", "QLinearSigmoid", "QLinearGlobalAveragePool"} <= seen


def test_signed_and_unsigned_activations_give_the_same_integers() -> None:
    """The sums are equal, and so are outputs: what differs is which groups ONNX Runtime fuses in a QDQ model."""
    made = {}
    for activation in ("uint8", "int8"):
        before, feeds = net(activation)
        after, _ = run(ConvertQoperator(), before)
        made[activation] = as_fused(after, feeds)[0]
    np.testing.assert_allclose(made["int8"], made["uint8"], atol=1e-6)


def values(model: ir.Model, feeds: dict[str, Any]) -> dict[str, Any]:
    """Every tensor that ONNX Runtime computes."""
    proto = to_proto(model)
    names = [name for node in proto.graph.node for name in node.output]
    for name in set(names) - {output.name for output in proto.graph.output}:
        proto.graph.output.append(onnx.ValueInfoProto(name=name))
    return {**feeds, **dict(zip([o.name for o in proto.graph.output], outputs(from_proto(proto), feeds), strict=True))}
