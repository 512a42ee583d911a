"""``quantize-static``: integer kernels where the target has them, numerics of numpy, or a reason."""

from __future__ import annotations

from collections import Counter
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.data import load_data
from onnxopt.errors import DataError, OptionError
from onnxopt.graph import Editor
from onnxopt.model import copy, to_proto
from onnxopt.pass_base import Context, Gate, Report
from onnxopt.passes.quantize._calibrate import Calibration, ranges_of
from onnxopt.passes.quantize._candidates import candidates, default_nodes
from onnxopt.passes.quantize._census import Kernel, census
from onnxopt.passes.quantize._grid import dequantize, fake_quantize, grid_of_range, weight_grid
from onnxopt.passes.quantize._plan import plan
from onnxopt.passes.quantize._qdq import Weights, activation_grids, apply
from onnxopt.passes.quantize.quantize_static import QuantizeStatic
from onnxopt.runtime import Snapshot
from tests.support import graph, outputs

Array = np.ndarray[Any, Any]
VNNI: dict[str, Any] = {"target": "ort-cpu-vnni", "method": "minmax", "placement": "all"}


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def quantized(
    model: ir.Model, *, limit: int | None = None, data: Array | None = None, **options: Any
) -> tuple[ir.Model, Report]:
    """A quantized copy, checked to be valid and to keep its interface."""
    result = copy(model)
    shape = [d if isinstance(d, int) else 8 for d in model.graph.inputs[0].shape or ()]
    x = normal(*shape, seed=1) if data is None else data
    context = Context(Editor(result), Gate(limit), data=load_data({"x": x}, model))
    report = QuantizeStatic(**VNNI | options).run(context)
    onnx.checker.check_model(to_proto(result), full_check=True)
    assert [v.name for v in result.graph.outputs] == [v.name for v in model.graph.outputs]
    if not report.changed:
        assert to_proto(result) == to_proto(model)
        assert report.refusals, "a silent no-op"
    return result, report


def kernels(model: ir.Model) -> Counter[str]:
    return Counter(kernel.op for kernel in census(Snapshot.of(model)))


def integer(model: ir.Model) -> list[str]:
    """The integer kernels in order; no float layer and no quantizer inside may be left."""
    found: list[Kernel] = census(Snapshot.of(model))
    assert not {k.op for k in found} & {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
    return [k.op for k in found if k.kind == "integer"]


def close(before: ir.Model, after: ir.Model, *, db: float = 20.0, data: Array | None = None) -> None:
    shape = [d if isinstance(d, int) else 8 for d in before.graph.inputs[0].shape or ()]
    x = normal(*shape, seed=1) if data is None else data
    for a, b in zip(outputs(before, {"x": x}), outputs(after, {"x": x}), strict=True):
        assert a.shape == b.shape
        assert 10 * np.log10(np.sum(a**2) / np.sum((a - b) ** 2)) > db


def refusal(report: Report, node: str) -> str:
    return next(note.text for note in report.refusals if note.node == node)


def conv_net(**more: Any) -> ir.Model:
    return graph(
        """g (float[N,3,8,8] x) => (float[N,5] y) {
            c = Conv <pads = [1,1,1,1]> (x, w, b)  r = Relu(c)
            d = Conv <pads = [1,1,1,1], group = 4> (r, v)  s = Add(d, r)  m = MaxPool <kernel_shape = [2,2]> (s)
            p = GlobalAveragePool(m)  f = Flatten(p)  y = Gemm <transB = 1> (f, u, e)
        }""",
        w=normal(4, 3, 3, 3), b=normal(4), v=normal(4, 1, 3, 3, seed=2), u=normal(5, 4), e=normal(5), **more,
    )  # fmt: skip


# -- kernels and numerics --------------------------------------------------------------------------------------


def test_a_residual_net_is_integer_from_end_to_end() -> None:
    before = conv_net()
    after, report = quantized(before)
    assert Counter(integer(after)) == {"QLinearConv": 2, "QLinearAdd": 1, "QLinearGlobalAveragePool": 1, "QGemm": 1}
    found = kernels(after)
    assert found["QuantizeLinear"] == 1, "only the input"
    assert found["DequantizeLinear"] == 0, "QGemm gives floats"
    assert report.changed == 5
    assert not report.refusals
    close(before, after, db=25)


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_layer_computes_what_numpy_does(per_channel: bool) -> None:
    w, b, x = normal(6, 4), normal(4), normal(16, 6, seed=1)
    before = graph("g (float[N,6] x) => (float[N,4] y) { y = Gemm(x, w, b) }", w=w, b=b)
    after, _ = quantized(before, data=x, per_channel=per_channel)
    grid_x = grid_of_range(x.min(), x.max(), "uint8", symmetric=False)
    grid_w = weight_grid(w, 1 if per_channel else None, "int8", symmetric=True)
    scale = grid_x.scale.astype(np.float64) * grid_w.scale
    expected = fake_quantize(x, grid_x).astype(np.float64) @ fake_quantize(w, grid_w) + np.rint(b / scale) * scale
    np.testing.assert_allclose(outputs(after, {"x": x})[0], expected, rtol=1e-5, atol=1e-5)
    scales = [v.const_value.shape for v in after.graph.initializers.values() if v.name == "w_scale"]  # type: ignore[union-attr]
    assert scales == [(4,)] if per_channel else scales == [()]


@pytest.mark.parametrize(
    ("layer", "shape", "axis"),
    [
        ("Conv(x, w)", (5, 3, 2, 2), 0),
        ("Conv <group = 3> (x, w)", (6, 1, 2, 2), 0),
        ("ConvTranspose(x, w)", (3, 5, 2, 2), 1),
        ("ConvTranspose <group = 3> (x, w)", (3, 5, 2, 2), None),
        ("MatMul(x, w)", (8, 5), 1),
        ("MatMul(x, w)", (3, 8, 5), None),
    ],
)
def test_scales_lie_along_the_output_channels(layer: str, shape: tuple[int, ...], axis: int | None) -> None:
    w = normal(*shape)
    before = graph(f"g (float[2,3,8,8] x) => (float[A,B,C,D] y) {{ y = {layer} }}", w=w)
    after, _ = quantized(before, target="generic")
    dequantizer = next(n for n in after.graph if n.op_type == "DequantizeLinear" and n.inputs[0].name == "w_quantized")  # type: ignore[union-attr]
    assert ("axis" in dequantizer.attributes) == (axis is not None)
    integers = after.graph.initializers["w_quantized"].const_value.numpy()  # type: ignore[union-attr]
    grid = weight_grid(w, axis, "int8", symmetric=True)
    np.testing.assert_allclose(dequantize(integers, grid), w, atol=float(grid.scale.max()) * 0.51)
    close(before, after, db=25)


@pytest.mark.parametrize("bias_first", [True, False])
@pytest.mark.parametrize("rank", [2, 3])
def test_matmul_and_its_bias_become_one_integer_kernel(rank: int, bias_first: bool) -> None:
    shape = "4,6" if rank == 2 else "2,4,6"
    add = "Add(b, m)" if bias_first else "Add(m, b)"
    before = graph(
        f"g (float[{shape}] x) => (float[{shape}] y) {{ m = MatMul(x, w)  a = {add}  y = Relu(a) }}",
        w=normal(6, 6), b=normal(6),
    )  # fmt: skip
    after, _ = quantized(before)
    assert integer(after) == ["QGemm"]
    assert kernels(after)["DequantizeLinear"] == 0
    close(before, after, db=30)


FORK = "h = MatMul(x, w)  t = Tanh(h)  k = MatMul(h, v)  y = Add(t, k)"


def test_a_result_is_read_as_integers_by_all_or_as_floats_by_all() -> None:
    """ONNX Runtime has no kernel with both; TensorRT only looks at inputs."""
    before = graph(f"g (float[B,4,6] x) => (float[B,4,6] y) {{ {FORK} }}", w=normal(6, 6), v=normal(6, 6, seed=3))
    after, _ = quantized(before)
    assert integer(after) == ["QLinearMatMul", "MatMulIntegerToFloat"]
    after, _ = quantized(before, target="tensorrt")
    tanh = next(n for n in after.graph if n.op_type == "Tanh")
    assert tanh.inputs[0] is not None
    assert tanh.inputs[0].name == "h"


def test_a_float_is_read_as_float_by_those_who_want_it() -> None:
    before = graph(
        "g (float[B,4,6] x) => (float[B,4,6] y) { h = Sin(x)  t = Tanh(h)  k = MatMul(h, v)  y = Add(t, k) }",
        v=normal(6, 6, seed=3),
    )  # fmt: skip
    after, _ = quantized(before)
    tanh = next(n for n in after.graph if n.op_type == "Tanh")
    assert tanh.inputs[0] is not None
    assert tanh.inputs[0].name == "h"
    assert integer(after) == ["MatMulIntegerToFloat"]


def test_relu_and_clip_vanish_into_the_saturation() -> None:
    before = graph(
        """g (float[1,3,8,8] x) => (float[1,4,4,4] y) <float zero = {0}, float six = {6}> {
            a = Conv(x, w)  b = Clip(a, zero, six)  c = Conv(b, v)  d = Relu(c)  e = LeakyRelu(d)  y = Conv(e, u)
        }""",
        w=normal(4, 3, 3, 3) * 3, v=normal(4, 4, 2, 2), u=normal(4, 4, 2, 2),
    )  # fmt: skip
    after, _ = quantized(before)
    assert integer(after) == ["QLinearConv", "QLinearConv", "QLinearLeakyRelu", "QLinearConv"]
    assert not kernels(after).keys() & {"Clip", "Relu"}
    close(before, after, db=25)


@pytest.mark.parametrize("form", ["op", "pieces"])
@pytest.mark.parametrize("large", [1.0, 10.0])
def test_hard_swish_is_a_clip_of_integers(form: str, large: float) -> None:
    body = "h = HardSwish(a)" if form == "op" else "g = HardSigmoid <alpha = 0.16666667> (a)  h = Mul(a, g)"
    before = graph(
        f"g (float[4,3,8,8] x) => (float[4,5,5,5] y) {{ a = Conv(x, w)  {body}  y = Conv(h, v) }}",
        w=normal(4, 3, 3, 3) * large, v=normal(5, 4, 2, 2),
    )  # fmt: skip
    after, report = quantized(before)
    assert integer(after) == ["QLinearConv", "QLinearMul", "QLinearConv"]
    assert not kernels(after).keys() & {"HardSigmoid", "HardSwish", "Mul"}
    assert not report.refusals
    close(before, after, db=25)


def test_squeeze_and_excite_is_integer() -> None:
    before = graph(
        """g (float[2,3,8,8] x) => (float[2,4,5,5] y) <int64[2] axes = {2, 3}> {
            a = Conv(x, w)  p = ReduceMean(a, axes)  q = Conv(p, s)  r = Relu(q)  t = Conv(r, e)
            g = HardSigmoid <alpha = 0.2, beta = 0.5> (t)  m = Mul(a, g)  y = Conv(m, v)
        }""",
        w=normal(4, 3, 3, 3), s=normal(2, 4, 1, 1), e=normal(4, 2, 1, 1), v=normal(4, 4, 2, 2),
    )  # fmt: skip
    after, _ = quantized(before)
    assert Counter(integer(after)) == {"QLinearConv": 4, "QLinearGlobalAveragePool": 1, "QLinearMul": 1}
    close(before, after, db=25)


def test_what_lies_below_the_knee_is_kept_for_others() -> None:
    before = graph(
        "g (float[2,3,8,8] x) => (float[2,4,6,6] y) { a = Conv(x, w)  h = HardSwish(a)  t = Tanh(a)  y = Add(h, t) }",
        w=normal(4, 3, 3, 3) * 3,
    )  # fmt: skip
    _, report = quantized(before)
    assert "also read by t" in " ".join(note.text for note in report.refusals)


@pytest.mark.parametrize("between", ["Transpose", "Relu"])
def test_a_grid_that_others_need_too_does_not_begin_at_the_knee(between: str) -> None:
    before = graph(
        f"g (float[2,3,8,8] x) => (float[A,B,C,D] y) {{ a = Conv(x, w)  b = {between}(a)  y = HardSwish(b) }}",
        w=normal(4, 3, 3, 3) * 3,
    )
    _, report = quantized(before)
    assert "shares its grid" in refusal(report, "y")


def test_moved_elements_keep_their_scale() -> None:
    before = graph(
        """g (float[2,4,8] x) => (float[2,8,6] y) <int64[2] two = {2, 2}, int64[3] shape = {2, 8, 4}> {
            t = Transpose <perm = [0,2,1]> (x)  r = Reshape(t, shape)  y = MatMul(r, w)
        }""",
        w=normal(4, 6),
    )  # fmt: skip
    after, _ = quantized(before)
    assert integer(after) == ["MatMulIntegerToFloat"] or integer(after) == ["QGemm"]
    quantizers = [n for n in after.graph if n.op_type == "QuantizeLinear"]
    assert len({n.inputs[1].name for n in quantizers}) == 1, "one scale for x, t and r"  # type: ignore[union-attr]
    assert kernels(after)["QuantizeLinear"] == 1, "the Transpose moves bytes"


def concat() -> ir.Model:
    return graph(
        """g (float[2,3,8,8] x) => (float[2,4,6,6] y) {
            a = Conv(x, w)  b = Conv(x, v)  t = Tanh(b)  c = Concat <axis = 1> (a, b)  d = Conv(c, u)
            s = ReduceSum(t)  y = Add(d, s)
        }""",
        w=np.abs(normal(4, 3, 3, 3)), v=-np.abs(normal(4, 3, 3, 3, seed=5)) * 9, u=normal(4, 8, 1, 1),
    )  # fmt: skip


def test_inputs_that_only_a_concat_reads_share_its_scale() -> None:
    x = np.abs(normal(2, 3, 8, 8))  # so that a is positive, b negative, and the range of both is of neither
    after, _ = quantized(concat(), data=x)
    scales = {n.inputs[0].name: n.inputs[1].name for n in after.graph if n.op_type == "QuantizeLinear"}  # type: ignore[union-attr]
    assert scales["a"] == scales["c"]
    assert scales["b"] != scales["c"], "a Tanh reads it too"
    assert Counter(integer(after)) == {"QLinearConv": 3, "QLinearConcat": 1}
    tensorrt, _ = quantized(concat(), data=x, target="tensorrt")
    scales = {n.inputs[0].name: n.inputs[1].name for n in tensorrt.graph if n.op_type == "QuantizeLinear"}  # type: ignore[union-attr]
    assert scales["a"] == scales["b"] == scales["c"]


def test_constant_operands_are_integers_too() -> None:
    before = graph(
        """g (float[2,3,8,8] x) => (float[2,4,4,4] y) {
            a = Conv(x, w)  m = Mul(a, k)  n = Add(m, l)  y = Conv(n, v)
        }""",
        w=normal(4, 3, 3, 3), k=normal(4, 1, 1), l=normal(1, 4, 1, 1, seed=9), v=normal(4, 4, 3, 3),
    )  # fmt: skip
    after, _ = quantized(before)
    assert integer(after) == ["QLinearConv", "QLinearMul", "QLinearAdd", "QLinearConv"]
    close(before, after)


def test_a_gelu_is_not_cut_apart() -> None:
    before = graph(
        """g (float[B,4,6] x) => (float[B,4,6] y) <float root = {1.4142135}, float one = {1}, float half = {0.5}> {
            m = MatMul(x, w)  a = Add(m, b)  d = Div(a, root)  e = Erf(d)  f = Add(e, one)  h = Mul(a, f)
            g = Mul(h, half)  y = MatMul(g, v)
        }""",
        w=normal(6, 6), b=normal(6), v=normal(6, 6, seed=3),
    )  # fmt: skip
    after, _ = quantized(before)
    assert kernels(after)["BiasGelu"] == 1
    assert integer(after) == ["MatMulIntegerToFloat"] * 2


# -- options and targets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["auto", "minmax", "average", "percentile", "mse", "entropy"])
def test_every_method_keeps_the_outputs(method: str) -> None:
    before, x = conv_net(), normal(64, 3, 8, 8, seed=4)
    after, report = quantized(before, method=method, data=x)
    close(before, after, db=12 if method == "entropy" else 25, data=x)
    rows = [fact for fact in report.facts if "range" in fact]
    assert {"x", "r"} <= {row["tensor"] for row in rows}


def test_auto_resists_an_outlier() -> None:
    """One sample with a value a thousand times the others costs minmax all its precision."""
    before, x = conv_net(), normal(64, 3, 8, 8, seed=4)
    x[3, 0, 0, 0] = 3000.0
    usual = np.delete(x, 3, axis=0)

    def error(method: str) -> float:
        after, _ = quantized(before, method=method, data=x)
        a, b = outputs(before, {"x": usual})[0], outputs(after, {"x": usual})[0]
        return float(np.mean((a - b) ** 2))

    assert error("auto") <= error("minmax")


@pytest.mark.parametrize("activation", ["uint8", "int8", "uint16", "int16"])
@pytest.mark.parametrize("weight", ["int8", "uint8", "int16", "int4"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_types(activation: str, weight: str, symmetric: bool) -> None:
    before = conv_net()
    after, report = quantized(
        before, target="generic", activation_type=activation, weight_type=weight, symmetric=symmetric
    )
    narrow = {activation, weight} <= {"uint8", "int8"}
    assert after.opset_imports[""] == (18 if narrow else 21)
    assert after.graph.initializers["w_quantized"].dtype == ir.DataType[weight.upper()]
    assert any("opset" in note.text for note in report.changes) != narrow
    quantizers = [n for n in after.graph if n.op_type == "QuantizeLinear"]
    zeros = {int(n.inputs[2].const_value.numpy()) for n in quantizers}  # type: ignore[union-attr]
    if symmetric:
        assert zeros == {0 if activation.startswith("int") else 2 ** (int(activation[4:]) - 1)}
    close(before, after, db=8 if weight == "int4" else 25)


def test_avx2_leaves_a_bit_unused() -> None:
    for target, largest in (("ort-cpu-avx2", 64), ("ort-cpu-vnni", 127)):
        after, _ = quantized(conv_net(), target=target)
        w = after.graph.initializers["w_quantized"].const_value.numpy()  # type: ignore[union-attr]
        assert np.abs(w.astype(int)).max() == largest
    after, _ = quantized(conv_net(), target="ort-cpu-avx2", reduce_range=False)
    w = after.graph.initializers["w_quantized"].const_value.numpy()  # type: ignore[union-attr]
    assert np.abs(w.astype(int)).max() == 127


def test_tensorrt_gets_symmetric_inputs_and_float_biases() -> None:
    after, _ = quantized(conv_net(), target="tensorrt")
    for node in after.graph:
        if node.op_type == "QuantizeLinear":
            zero = node.inputs[2].const_value.numpy()  # type: ignore[union-attr]
            assert (zero.dtype, int(zero)) == (np.int8, 0)
    assert {"b", "e"} <= after.graph.initializers.keys()
    relu = next(n for n in after.graph if n.op_type == "Relu")
    assert relu.inputs[0] is not None
    assert relu.inputs[0].name == "c", "no pair between Conv and Relu"


@pytest.mark.parametrize("target", ["openvino", "generic", "ort-cpu-arm"])
def test_other_targets_keep_the_outputs(target: str) -> None:
    before = conv_net()
    after, _ = quantized(before, target=target)
    close(before, after, db=25)


@pytest.mark.parametrize(
    "options",
    [
        {"target": "ort-gpu"},
        {"method": "guess"},
        {"percentile": 10},
        {"activation_type": "uint16"},
        {"target": "tensorrt", "symmetric": False},
        {"target": "generic", "weight_type": "int16", "reduce_range": True},
    ],
)
def test_wrong_options(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"target|method|percentile|type|symmetric|reduce_range"):
        QuantizeStatic(**options)


def test_include_exclude_and_limit() -> None:
    _, report = quantized(conv_net(), exclude=("Gemm", "d"))
    assert {note.node for note in report.changes} == {"c"} | {note.node for note in report.changes} - {"d", "y"}
    _, report = quantized(conv_net(), include=("Conv",))
    assert [note.node for note in report.changes] == ["c", "d"]
    for limit in (0, 1, 3):
        result = copy(conv_net())
        context = Context(Editor(result), Gate(limit), data=load_data({"x": normal(8, 3, 8, 8)}, result))
        report = QuantizeStatic(**VNNI).run(context)
        assert report.changed == limit


def test_is_deterministic() -> None:
    results = [to_proto(quantized(conv_net(), method="auto")[0]).SerializeToString() for _ in range(2)]
    assert results[0] == results[1]


def test_a_plan_holds_for_any_copy_and_any_set_of_nodes() -> None:
    before, settings = conv_net(), QuantizeStatic(**VNNI).settings
    statistics = Context(Editor(before), data=load_data({"x": normal(8, 3, 8, 8)}, before)).statistics()
    known = candidates(Editor(before), settings)
    whole = plan(*known, settings, default_nodes(known[0]))
    ranges = ranges_of(Calibration(statistics).ranges(whole.sources, 256, symmetric=False))
    weights: Weights = {}
    for nodes in (whole.nodes.keys(), {"c"}, {"d", "y"}):
        made = plan(*known, settings, nodes)
        assert made.nodes.keys() == set(nodes)
        candidate = copy(before)
        apply(Editor(candidate), made, activation_grids(made, ranges), weights)
        onnx.checker.check_model(to_proto(candidate), full_check=True)
        assert sum(k.kind == "integer" for k in census(Snapshot.of(candidate))) == len(nodes)
    assert to_proto(before) == to_proto(conv_net())


# -- bad input -------------------------------------------------------------------------------------------------


def test_without_data() -> None:
    with pytest.raises(DataError, match="--data"):
        QuantizeStatic(**VNNI).run(Context(Editor(conv_net())))


def test_quantized_already() -> None:
    once, _ = quantized(conv_net())
    _, report = quantized(once)
    assert report.changed == 0
    assert "quantized already" in refusal(report, "c")


def test_partly_quantized() -> None:
    part, _ = quantized(conv_net(), include=("c",))
    after, report = quantized(part)
    assert [note.node for note in report.changes] == ["y"]
    for node in ("c", "d", "s"):
        assert "quantized already" in refusal(report, node)
    found = kernels(after)
    assert (found["QLinearConv"], found["QGemm"]) == (1, 1)


@pytest.mark.parametrize("opset", [9, 11, 12])
def test_an_old_opset_is_upgraded_and_said_so(opset: int) -> None:
    before = graph(
        "g (float[N,3,8,8] x) => (float[N,4,6,6] y) { c = Conv(x, w)  y = Relu(c) }", w=normal(4, 3, 3, 3),
        opset=opset, ir_version=4,
    )  # fmt: skip
    after, report = quantized(before)
    assert after.opset_imports[""] == 13
    assert f"from opset {opset} to 13" in report.changes[0].text
    assert integer(after) == ["QLinearConv"]


def test_an_old_model_with_nothing_to_quantize_is_not_touched() -> None:
    before = graph("g (float[N,3] x) => (float[N,3] y) { y = Tanh(x) }", opset=9, ir_version=4)
    _, report = quantized(before)
    assert "no node" in refusal(report, "model")


def test_float16_is_refused() -> None:
    before = graph("g (float16[2,4] x) => (float16[2,4] y) { y = MatMul(x, w) }", w=normal(4, 4).astype(np.float16))
    _, report = quantized(before, data=normal(2, 4).astype(np.float16))
    assert "float16; convert the model to float32 first" in refusal(report, "y")


def test_constants_only() -> None:
    before = graph("g (float[2,4] x) => (float[4,4] y) { y = MatMul(w, v) }", w=normal(4, 4), v=normal(4, 4))
    _, report = quantized(before)
    assert "fold-constants" in refusal(report, "y")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_activations_that_are_not_finite(bad: float) -> None:
    """Only the layer that reads them stays float."""
    before = graph(
        """g (float[N,4] x) => (float[N,4] y, float[N,4] z) {
            l = Mul(x, bad)  y = MatMul(l, w)  z = MatMul(x, v)
        }""",
        w=normal(4, 4), v=normal(4, 4), bad=np.float32(bad),
    )  # fmt: skip
    _, report = quantized(before)
    assert [note.node for note in report.changes] == ["z"]
    assert "holds NaN or infinity" in refusal(report, "y")


def test_weights_that_are_not_finite() -> None:
    w = normal(4, 4)
    w[1, 2] = np.inf
    _, report = quantized(graph("g (float[N,4] x) => (float[N,4] y) { y = MatMul(x, w) }", w=w))
    assert "its weight w holds NaN or infinity" in refusal(report, "y")


def test_activations_of_zeros() -> None:
    x = np.zeros((4, 3, 8, 8), np.float32)
    before = conv_net()
    after, _ = quantized(before, data=x, method="auto")
    np.testing.assert_allclose(outputs(after, {"x": x})[0], outputs(before, {"x": x})[0], atol=0.05)


@pytest.mark.parametrize("method", ["auto", "mse"])
def test_one_sample(method: str) -> None:
    before, x = conv_net(), normal(1, 3, 8, 8)
    after, _ = quantized(before, data=x, method=method)
    close(before, after, data=x)


def test_a_bias_too_large_for_32_bits_widens_its_channel() -> None:
    w, b = normal(4, 3), np.array([1e6, 0.1, -2e7], np.float32)
    w[:, 0] *= 1e-9
    before = graph("g (float[N,4] x) => (float[N,3] y) { y = Gemm(x, w, b) }", w=w, b=b)
    after, _ = quantized(before)
    y = outputs(after, {"x": normal(8, 4)})[0]
    np.testing.assert_allclose(y, outputs(before, {"x": normal(8, 4)})[0], rtol=1e-2, atol=0.05)


def test_a_pruned_channel_keeps_its_bias() -> None:
    w = normal(4, 3)
    w[:, 1] = 0
    before = graph("g (float[N,4] x) => (float[N,3] y) { y = Gemm(x, w, b) }", w=w, b=normal(3) * 0 + np.float32(0.2))
    after, _ = quantized(before)
    np.testing.assert_allclose(outputs(after, {"x": normal(8, 4)})[0][:, 1], 0.2, rtol=1e-3)


def test_a_shared_weight_stays_one() -> None:
    before = graph(
        "g (float[N,4] x) => (float[N,4] y) { a = MatMul(x, w)  b = Tanh(a)  y = MatMul(b, w) }", w=normal(4, 4)
    )
    after, report = quantized(before)
    assert report.changed == 2
    assert [v for v in after.graph.initializers if v.startswith("w")] == ["w_quantized", "w_scale", "w_zero_point"]
    _, report = quantized(before, include=("a",))
    assert report.changed == 0
    assert "also read by y, which stays float" in refusal(report, "a")


def test_a_weight_with_a_float_reader_is_not_copied() -> None:
    before = graph(
        "g (float[N,4] x) => (float[N,4] y) { a = MatMul(x, w)  s = ReduceSum(w)  y = Add(a, s) }", w=normal(4, 4)
    )
    _, report = quantized(before)
    assert "also read by" in refusal(report, "a")


def test_in_the_bodies_of_an_if() -> None:
    """A weight of the outer graph, an activation of the outer graph, and one computed inside."""
    before = graph(
        """g (float[2,4] x) => (float[2,4] y) <float zero = {0}> {
            s = ReduceSum <keepdims = 0> (x)  c = Greater(s, zero)  h = MatMul(x, w)  k = Tanh(h)
            y = If (c) <
                then_branch = a () => (float[2,4] p) { i = MatMul(k, v)  j = Tanh(i)  p = MatMul(j, w) },
                else_branch = b () => (float[2,4] q) { q = MatMul(k, u) }
            >
        }""",
        w=normal(4, 4), v=normal(4, 4), u=normal(4, 4),
    )  # fmt: skip
    x = np.stack([normal(4), normal(4) - 9, normal(4), normal(4) + 9, *normal(4, 4)])
    after, report = quantized(before, data=x)
    assert {"h", "q"} <= {note.node for note in report.changes} | {note.node for note in report.refusals}
    for note in report.refusals:
        assert note.text
    for sign in (-1, 1):
        close(before, after, db=15, data=normal(2, 4, seed=3) + np.float32(3 * sign))


def test_an_output_behind_a_kernel_keeps_its_name() -> None:
    before = graph("g (float[2,3,8,8] x) => (float[2,4,6,6] y) { y = Conv(x, w) }", w=normal(4, 3, 3, 3))
    after, _ = quantized(before)
    assert after.graph.outputs[0].producer().op_type == "DequantizeLinear"  # type: ignore[union-attr]
    assert integer(after) == ["QLinearConv"]


def test_recurrent_and_unknown_operators_stay_float() -> None:
    before = graph(
        "g (float[3,2,4] x) => (float[3,1,2,5] y) { y = LSTM <hidden_size = 5> (x, w, r) }",
        w=normal(1, 20, 4), r=normal(1, 20, 5),
    )  # fmt: skip
    _, report = quantized(before)
    assert report.changed == 0
    assert "no node" in refusal(report, "model")


def test_int4_fits_its_type() -> None:
    assert np.dtype(ml_dtypes.int4).itemsize == 1
    after, _ = quantized(conv_net(), target="generic", weight_type="int4")
    w = after.graph.initializers["w_quantized"].const_value.numpy().astype(int)  # type: ignore[union-attr]
    assert (w.min(), w.max()) == (-7, 7)
