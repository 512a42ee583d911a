"""``dequantize``; the oracles are ONNX Runtime's own quantizer, and the float models that it was given."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.metrics import sqnr
from onnxopt.model import from_proto, to_proto
from onnxopt.passes.quantize.dequantize import Dequantize
from tests.support import count_ops, graph, ops, outputs, run

Array = np.ndarray[Any, Any]

MS = ', "com.microsoft" : 1'
GRID = "float s = {0.05}, uint8 z = {100}, float sw = {0.02}, int8 zw = {3}, float so = {0.2}, uint8 zo = {128}"


def net() -> ir.Model:
    """Convolutions with Relu and Relu6, a residual sum, pooling, and a dense layer."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return np.asarray(rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:])), np.float32)

    return graph(
        """g (float[N,3,12,12] x) => (float[N,5] y) <float low = {0}, float high = {6}> {
            c = Conv <pads = [1, 1, 1, 1]> (x, k, kb)
            r = Relu(c)
            d = Conv <pads = [1, 1, 1, 1], group = 8> (r, m, mb)
            e = Clip(d, low, high)
            t = Add(r, e)
            p = GlobalAveragePool(t)
            f = Flatten(p)
            y = Gemm <transB = 1> (f, w, b)
        }""",
        opset=17,
        k=normal(8, 3, 3, 3) * 3, kb=normal(8), m=normal(8, 1, 3, 3) * 20, mb=normal(8), w=normal(5, 8), b=normal(5),
    )  # fmt: skip


def batches() -> list[dict[str, Array]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((4, 3, 12, 12)).astype(np.float32)} for _ in range(4)]


def quantized(model: ir.Model, folder: Path, kind: str) -> ir.Model:
    """What ONNX Runtime's quantizer makes of a model."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(batches())

        def get_next(self) -> Any:
            return next(self.left, None)

    source, result = folder / "float.onnx", folder / "quantized.onnx"
    onnx.save(to_proto(model), source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "dynamic":
            quantize_dynamic(source, result)
        else:
            quantize_static(
                source, result, Reader(),
                quant_format=QuantFormat.QOperator if kind == "qoperator" else QuantFormat.QDQ,
                per_channel=kind == "per channel",
                activation_type=QuantType.QInt8 if kind == "signed" else QuantType.QUInt8,
                extra_options={"ActivationSymmetric": False},
            )  # fmt: skip
    return from_proto(onnx.load(result))


@pytest.mark.parametrize("kind", ["signed", "per channel", "qoperator", "dynamic"])
def test_what_onnx_runtime_quantized(tmp_path: Path, kind: str) -> None:
    original = net()
    before = quantized(original, tmp_path, kind)
    after, report = run(Dequantize(), before)
    assert not report.refusals
    left = count_ops(after)
    assert not [op for op in left if any(word in op for word in ("Quant", "QLinear", "Integer"))]
    assert left["Conv"] == 2
    stored = [value.const_value for value in after.graph.initializers.values()]
    assert {tensor.dtype for tensor in stored if tensor is not None} <= {ir.DataType.FLOAT, ir.DataType.INT64}
    x = batches()[0]
    exact, rounded, floats = (outputs(model, x) for model in (original, before, after))
    assert sqnr(exact, floats) > 28, "only the rounding of weights is left"
    assert sqnr(exact, floats) > sqnr(exact, rounded) - 1


def unary(body: str, **options: Any) -> ir.Model:
    return graph(
        f"g (float[2,8] x) => (float[A,B] y) <{GRID}> {{ {body} }}", opset=21, ir_version=10, extra=MS, **options
    )


def integers(*shape: int, dtype: Any = np.int8) -> Array:
    return np.random.default_rng(2).integers(0 if dtype == np.uint8 else -100, 100, shape).astype(dtype)


def check(
    before: ir.Model, expected: list[str], steps: float = 0.3, *, given: dict[str, Array] | None = None
) -> ir.Model:
    """All float, and nearer to the quantized model than some steps of its grid."""
    after, report = run(Dequantize(), before)
    assert ops(after) == expected
    assert not report.refusals
    given = given or {"x": np.random.default_rng(3).standard_normal((2, 8)).astype(np.float32)}
    for a, b in zip(outputs(before, given), outputs(after, given), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(b, a, atol=steps, rtol=0)
        assert np.ptp(a) > 2 * steps, "the test needs a signal"
    return after


Q, DQ = "q = QuantizeLinear(x, s, z) ", " y = DequantizeLinear(o, so, zo)"


def test_qlinear_matmul_and_its_weight_by_column() -> None:
    body = f"{Q} o = QLinearMatMul(q, s, z, w, sc, zc, so, zo){DQ}"
    after = check(
        unary(body, w=integers(8, 4), sc=np.array([0.02, 0.01, 0.03, 0.04], np.float32), zc=np.zeros(4, np.int8)),
        ["MatMul"],
        steps=0.5,
    )
    weight = after.graph[0].inputs[1]
    stored = weight.const_value if weight is not None else None
    assert stored is not None
    np.testing.assert_allclose(
        stored.numpy(), integers(8, 4) * np.array([0.02, 0.01, 0.03, 0.04], np.float32), rtol=1e-6
    )


@pytest.mark.parametrize("trans_b", [0, 1])
def test_qgemm(trans_b: int) -> None:
    body = f"{Q} o = com.microsoft.QGemm <transB = {trans_b}> (q, s, z, w, sw, zw, c, so, zo){DQ}"
    arrays = {"w": integers(4, 8) if trans_b else integers(8, 4), "c": integers(4).astype(np.int32) * 50}
    check(unary(body, **arrays), ["Gemm"], steps=0.5)


@pytest.mark.parametrize(("op", "plain"), [("QLinearAdd", "Add"), ("QLinearMul", "Mul")])
def test_sums_and_products(op: str, plain: str) -> None:
    body = f"{Q} o = com.microsoft.{op}(q, s, z, w, sw, zu, so, zo){DQ}"
    check(unary(body, w=integers(1, 8, dtype=np.uint8), zu=np.array(50, np.uint8)), [plain])


def test_functions_of_one_input() -> None:
    check(unary(f"{Q} o = com.microsoft.QLinearSigmoid(q, s, z, sw, zo){DQ.replace('so', 'sw')}"), ["Sigmoid"], 0.05)
    check(unary(f"{Q} o = com.microsoft.QLinearLeakyRelu <alpha = 0.3> (q, s, z, so, zo){DQ}"), ["LeakyRelu"], 0.3)


def test_concat_and_where() -> None:
    body = f"{Q} o = com.microsoft.QLinearConcat <axis = 0> (so, zo, q, s, z, w, sw, zu){DQ}"
    check(unary(body, w=integers(3, 8, dtype=np.uint8), zu=np.array(50, np.uint8)), ["Concat"])
    body = f"m = Less(x, so) {Q} o = com.microsoft.QLinearWhere(m, q, s, z, w, sw, zu, so, zo){DQ}"
    check(unary(body, w=integers(1, 8, dtype=np.uint8), zu=np.array(50, np.uint8)), ["Less", "Where"], steps=0.3)


def test_pooling_and_moves_between_roundings() -> None:
    before = graph(
        f"g (float[1,2,4,4] x) => (float[4,2] y) <{GRID}, int64[2] shape = {{2, 4}}> {{ {Q} "
        "m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (q) r = Reshape(m, shape) o = Transpose(r) "
        "y = DequantizeLinear(o, s, z) }",
        opset=21,
        ir_version=10,
    )
    given = {"x": np.random.default_rng(3).standard_normal((1, 2, 4, 4)).astype(np.float32)}
    check(before, ["MaxPool", "Reshape", "Transpose"], 0.06, given=given)


def test_run_time_rounding_in_any_order_of_its_scales() -> None:
    start = "q, sx, zx = DynamicQuantizeLinear(x) i = MatMulInteger(q, w, zx, zw) c = Cast <to = 1> (i) "
    for scaled in ("m = Mul(sx, sw) y = Mul(c, m)", "m = Mul(c, sx) y = Mul(m, sw)", "m = Mul(sw, c) y = Mul(sx, m)"):
        check(unary(start + scaled, w=integers(8, 4)), ["MatMul"], 0.3)


@pytest.mark.parametrize("op", ["DynamicQuantizeMatMul", "MatMulIntegerToFloat"])
def test_fused_run_time_rounding(op: str) -> None:
    arrays = {"w": integers(8, 4), "c": np.arange(4, dtype=np.float32)}
    body = "y = com.microsoft.DynamicQuantizeMatMul(x, w, sw, zw, c)"
    if op == "MatMulIntegerToFloat":
        body = "q, sx, zx = DynamicQuantizeLinear(x) y = com.microsoft.MatMulIntegerToFloat(q, w, sx, sw, zx, zw, c)"
    check(unary(body, **arrays), ["MatMul", "Add"], 0.3)


def test_weights_of_dequantize_linear_in_every_form() -> None:
    for options, scale, zero in (
        ("", np.array(0.5, np.float32), np.array(3, np.int8)),
        ("<axis = 0>", np.arange(1, 9, dtype=np.float32), np.arange(8, dtype=np.int8)),
        ("<axis = 0, block_size = 4>", np.arange(1, 9, dtype=np.float32).reshape(2, 4), np.zeros((2, 4), np.int8)),
    ):
        before = unary(
            f"d = DequantizeLinear {options} (w, sc, zc) y = MatMul(x, d)", w=integers(8, 4), sc=scale, zc=zero
        )
        after, _ = run(Dequantize(), before)
        assert ops(after) == ["MatMul"]
        given = {"x": np.random.default_rng(3).standard_normal((2, 8)).astype(np.float32)}
        np.testing.assert_allclose(outputs(after, given)[0], outputs(before, given)[0], rtol=1e-5, atol=1e-3)


def test_relu_and_relu6_that_the_rounding_stood_for_come_back() -> None:
    given = {"x": np.linspace(-9, 9, 16, dtype=np.float32).reshape(2, 8)}
    for scale, expected in ((0.1, ["Neg", "Relu"]), (6 / 255, ["Neg", "Clip"])):
        before = unary(
            "n = Neg(x) q = QuantizeLinear(n, sc, zc) y = DequantizeLinear(q, sc, zc)",
            sc=np.array(scale, np.float32), zc=np.array(0, np.uint8),
        )  # fmt: skip
        check(before, expected, 0.11, given=given)


def test_no_relu_where_nothing_is_negative_or_the_user_gives_the_data() -> None:
    ends = {"sc": np.array(0.1, np.float32), "zc": np.array(0, np.uint8)}
    tail = "q = QuantizeLinear(n, sc, zc) y = DequantizeLinear(q, sc, zc)"
    for body, expected in (
        (f"n = Sigmoid(x) {tail}", ["Sigmoid"]),
        (f"a = Abs(x) n = Add(a, sc) {tail}", ["Abs", "Add"]),
        ("q = QuantizeLinear(x, sc, zc) y0 = DequantizeLinear(q, sc, zc) y = Neg(y0)", ["Neg"]),
    ):
        after, _ = run(Dequantize(), unary(body, **ends))
        assert ops(after) == expected


def test_an_output_that_is_an_input_keeps_its_name() -> None:
    before = unary(f"{Q} y = DequantizeLinear(q, s, z)")
    after, _ = run(Dequantize(), before)
    assert ops(after) == ["Identity"]
    assert after.graph.outputs[0].name == "y"


@pytest.mark.parametrize(
    ("body", "arrays", "reason"),
    [
        (f"{Q} y = DequantizeLinear(q, so, z)", {}, "another scale"),
        (f"{Q} o = QLinearMatMul(q, s, z, w, sw, zw, sx, zo) y = DequantizeLinear(o, sx, zo)",
         {"w": integers(8, 4), "sx": np.array([0.1, 0.2], np.float32)}, "several scales"),
        ("i = Cast <to = 6> (x) a = Cast <to = 3> (i) m = MatMulInteger(a, w) y = Cast <to = 1> (m)",
         {"w": integers(8, 4)}, "does not come from DynamicQuantizeLinear"),
        ("q, sx, zx = DynamicQuantizeLinear(x) i = MatMulInteger(q, w, zx) y = Cast <to = 1> (i)",
         {"w": integers(8, 4)}, "not multiplied by the scale"),
        ("a = Cast <to = 2> (x) y = DequantizeLinear(a, s, z)", {}, "come from Cast"),
        ("y = Relu(x)", {}, "no quantized operators"),
    ],
)  # fmt: skip
def test_refuses_with_the_reason(body: str, arrays: dict[str, Array], reason: str) -> None:
    before = unary(body, **arrays)
    after, report = run(Dequantize(), before)
    assert not report.changed
    assert any(reason in note.text for note in report.refusals), [str(note) for note in report.refusals]
    assert to_proto(after) == to_proto(before)


def test_unknown_quantized_operators_stay_and_are_named() -> None:
    before = graph(
        f"g (float[1,2,4] x) => (float[1,2,4] y) <{GRID}> {{ {Q} "
        "o = com.microsoft.QLinearReduceMean <axes = [1], keepdims = 1> (q, s, z, so, zo) "
        "d = DequantizeLinear(o, so, zo) y = Add(x, d) }",
        opset=17,
        extra=MS,
    )
    _, report = run(Dequantize(), before)
    assert not report.changed
    texts = [note.text for note in report.refusals]
    assert "the float form of QLinearReduceMean is not known here" in texts
