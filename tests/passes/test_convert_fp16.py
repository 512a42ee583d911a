"""``convert-fp16`` and ``convert-bf16``: types, Casts and refusals; the oracle is the float32 model in ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.graph import Editor
from onnxopt.metrics import sqnr
from onnxopt.model import copy, load, to_proto
from onnxopt.pass_base import Context, Report
from onnxopt.passes.quantize._half_types import narrowed, what_is_lost
from onnxopt.passes.quantize.convert_bf16 import ConvertBf16
from onnxopt.passes.quantize.convert_fp16 import ConvertFp16
from onnxopt.stats import Range
from tests.support import count_ops, graph, ops, outputs, run

MODELS = Path(__file__).parents[2] / "models"
HALF = ir.DataType.FLOAT16


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return rng(seed).standard_normal(shape).astype(np.float32)


def texts(report: Report) -> str:
    return "\n".join(str(note) for note in report.refusals)


def near(before: ir.Model, after: ir.Model, feeds: dict[str, Any]) -> float:
    """The worst SQNR over the outputs, whose types must be those of before."""
    pairs = list(zip(outputs(before, feeds), outputs(after, feeds), strict=True))
    assert all(x.dtype == y.dtype for x, y in pairs)
    return min(sqnr([x], [y]) for x, y in pairs)


class Measured(Context):
    """A context whose statistics are given."""

    def __init__(self, editor: Editor, known: dict[str, Range]) -> None:
        super().__init__(editor, data=object())  # type: ignore[arg-type]
        self._known = known

    def statistics(self) -> Any:
        known = self._known

        class Statistics:
            def ranges(self, names: Any) -> dict[str, Range]:
                return {name: known.get(name, Range(-1, 1, -1, 1, True)) for name in names}

        return Statistics()


def test_converts_a_network() -> None:
    before = graph(
        "g (float[N,3,8,8] x) => (float[N,4] y) "
        "{ c = Conv(x, k) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, w, b) }",
        k=normal(4, 3, 3, 3), w=normal(4, 4), b=normal(4),
    )  # fmt: skip
    after, report = run(ConvertFp16(), before)
    assert report.changed == 5
    assert ops(after) == ["Cast", "Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm", "Cast"]
    assert all(value.const_value.dtype == HALF for value in after.graph.initializers.values() if value.const_value)
    assert near(before, after, {"x": normal(2, 3, 8, 8, seed=1)}) > 50


def test_one_cast_serves_all_readers() -> None:
    before = graph(
        "g (float[4,4] x) => (float[4,4] y, float[4,4] z, float[4,4] t) "
        "{ y = MatMul(x, w) z = MatMul(x, v) a = Mul(y, z) t = MatMul(a, w) }",
        w=normal(4, 4), v=normal(4, 4),
    )  # fmt: skip
    after, _ = run(ConvertFp16(), before)
    assert count_ops(after)["Cast"] == 4  # x in, and y, z, t out
    assert [v.name for v in after.graph.outputs] == ["y", "z", "t"]
    assert near(before, after, {"x": normal(4, 4)}) > 50


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y0 = MatMul(x, w) y1 = Mul(y0, c) y = MatMul(y1, w)", "reaches 1e+06"),
        ("y0 = MatMul(x, w) y1 = Exp(y0) y = MatMul(y1, w)", "give data to know"),
        ("y0 = MatMul(x, w) y1 = Add(y0, e) y = MatMul(y1, w)", "few digits or none"),
    ],
)
def test_leaves_what_float16_cannot_hold(body: str, reason: str) -> None:
    before = graph(
        f"g (float[4,64] x) => (float[4,64] y) <float c = {{1e6}}, float e = {{1e-12}}> {{ {body} }}",
        w=(normal(64, 64) / 100),
    )
    after, report = run(ConvertFp16(), before)
    assert report.changed == 2
    assert reason in texts(report)
    inner = next(node for node in after.graph if node.op_type in ("Mul", "Exp", "Add"))
    assert Editor(after).dtype(inner.outputs[0]) == ir.DataType.FLOAT


def test_data_show_what_leaves_the_range() -> None:
    before = graph(
        "g (float[4,64] x) => (float[4,64] y) { a = MatMul(x, w) b = Exp(a) c = Relu(b) y = MatMul(c, w) }",
        w=normal(64, 64),
    )
    wide = Range(0, 5e4, 0, 5e4, True)
    after = copy(before)
    report = ConvertFp16().run(Measured(Editor(after), {"b": wide}))
    assert {note.node for note in report.changes} == {"a", "y"}
    assert "'b' reaches 5e+04" in texts(report)
    after = copy(before)
    assert ConvertFp16().run(Measured(Editor(after), {})).changed == 4, "in range, Exp is converted too"
    odd = ConvertFp16().run(Measured(Editor(copy(before)), {"a": Range(-1, 1, -1, 1, finite=False)}))
    assert "holds NaN or infinity" in texts(odd)


def test_masks_are_cut_so_that_a_fully_masked_row_stays_finite() -> None:
    before = graph(
        """g (float[N,6] x, int64[N,6] m) => (float[N,6] y) <float one = {1}, float huge = {-3.4e38}>
        { s = MatMul(x, w) f = Cast <to = 1> (m) g = Sub(one, f) h = Mul(g, huge) a = Add(s, h) y = Softmax(a) }""",
        w=normal(6, 6) * 100,
    )
    after, report = run(ConvertFp16(), before)
    feeds = {"x": normal(3, 6), "m": np.array([[1] * 6, [1, 0] * 3, [0] * 6], np.int64)}
    assert report.changed >= 3
    expected, got = outputs(before, feeds)[0], outputs(after, feeds)[0]
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[:2], expected[:2], atol=0.05)
    assert not got[1, 1::2].any()


def test_a_huge_constant_that_masks_nothing_is_kept() -> None:
    before = graph(
        "g (float[4,64] x, bool[4,64] m) => (float[4,64] y, float[4,64] z) <float c = {-1e9}> "
        "{ s = MatMul(x, w) z = Where(m, s, c) y = Softmax(z) }",
        w=normal(64, 64),
    )
    after, report = run(ConvertFp16(), before)
    assert "'c' reaches 1e+09" in texts(report)
    m = rng().random((4, 64)) > 0.5
    feeds = {"x": normal(4, 64), "m": m}
    assert float(outputs(after, feeds)[1].min()) == float(np.float32(-1e9))


def test_counts_stay_exact() -> None:
    before = graph(
        """g (float[N,8] x) => (int64 s, float[N,8] y) <float half = {0.5}, int64 zero = {0}>
        {
            y = MatMul(x, w)
            shape = Shape(y)
            n = Gather(shape, zero)
            f = Cast <to = 1> (n)
            h = Mul(f, half)
            s = Cast <to = 7> (h)
        }""",
        w=normal(8, 8),
    )
    after, report = run(ConvertFp16(), before)
    assert "it counts" in texts(report)
    assert outputs(after, {"x": normal(8191, 8)})[0] == 4095


def test_angles_are_computed_in_float32() -> None:
    before = graph(
        """g (float[N,8] x, int64[N,1] at) => (float[N,8] y)
        { a = MatMul(x, w) p = Cast <to = 1> (at) t = MatMul(p, f) s = Sin(t) m = Mul(a, s) y = MatMul(m, w) }""",
        w=normal(8, 8), f=np.geomspace(1, 1e-3, 8, dtype=np.float32)[None],
    )  # fmt: skip
    after, report = run(ConvertFp16(), before)
    assert report.changed == 3
    assert near(before, after, {"x": normal(9, 8), "at": np.arange(5001, 5010)[:, None]}) > 50


def test_limits_of_clip_are_cut() -> None:
    before = graph(
        "g (float[4,64] x) => (float[4,64] y) <float low = {-3.4e38}, float high = {6}> "
        "{ a = MatMul(x, w) c = Clip(a, low, high) y = MatMul(c, w) }",
        w=normal(64, 64) / 8,
    )
    after, report = run(ConvertFp16(), before)
    assert report.changed == 3
    assert near(before, after, {"x": normal(4, 64)}) > 50


def test_scales_of_resize_stay_float32() -> None:
    before = graph(
        "g (float[1,1,4,4] x) => (float[1,1,8,8] y) <float[4] scales = {1, 1, 2, 2}> "
        "{ c = Conv(x, k) r = Resize(c, , scales) y = Conv(r, k) }",
        k=normal(1, 1, 1, 1),
    )
    after, report = run(ConvertFp16(), before)
    assert report.changed == 3
    assert near(before, after, {"x": normal(1, 1, 4, 4)}) > 50


@pytest.mark.parametrize("flag", [True, False])
def test_converts_the_branches_of_if(flag: bool) -> None:
    before = graph(
        """g (float[4,4] x, bool flag) => (float[4,4] y)
        {
            a = MatMul(x, w)
            b = If(flag) <
                then_branch = t () => (float[4,4] bt) { bt = MatMul(a, w) },
                else_branch = e () => (float[4,4] be) { e0 = Exp(a) be = Identity(e0) }
            >
            y = MatMul(b, w)
        }""",
        w=normal(4, 4),
    )
    after, report = run(ConvertFp16(), before)
    assert {"a", "b", "bt", "y"} <= {note.node for note in report.changes}
    assert near(before, after, {"x": normal(4, 4), "flag": np.array(flag)}) > 50


def test_carried_values_of_loop_and_scan_change_type_together() -> None:
    before = graph(
        """g (float[4,4] x) => (float[4,4] y, float[S,4,4] all, float[4] z) <int64 n = {3}, bool yes = {1}>
        {
            a = MatMul(x, w)
            y, all = Loop(n, yes, a) <body = b (int64 i, bool c, float[4,4] s) => (bool d, float[4,4] t, float[4,4] u)
                { d = Identity(c) t = MatMul(s, w) u = Exp(t) }>
            z, zs = Scan <num_scan_inputs = 1, body = f (float[4] p, float[4] q) => (float[4] r, float[4] v)
                { r = Add(p, q) v = Identity(r) }> (init, a)
        }""",
        w=normal(4, 4) / 4,
        init=np.zeros(4, np.float32),
    )
    after, report = run(ConvertFp16(), before)
    assert {"a", "y", "z"} <= {note.node for note in report.changes}
    assert near(before, after, {"x": normal(4, 4)}) > 45


def test_quantized_regions_stay_as_they_are() -> None:
    before = graph(
        """g (float[4,8] x) => (float[4,8] y) <float s = {0.02}, int8 z = {0}, float sw = {0.01}>
        {
            q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) dw = DequantizeLinear(wq, sw, z)
            m = MatMul(d, dw) q2 = QuantizeLinear(m, s, z) d2 = DequantizeLinear(q2, s, z)
            y = MatMul(d2, v)
        }""",
        opset=21,
        ir_version=10,
        wq=rng().integers(-127, 127, (8, 8), np.int8),
        v=normal(8, 8),
    )
    after, report = run(ConvertFp16(), before)
    assert report.changed == 0
    assert "in integers" in texts(report)
    assert to_proto(after) == to_proto(before)


def test_weights_that_alone_are_quantized_become_half() -> None:
    before = graph(
        "g (float[4,64] x) => (float[4,64] y) <float s = {0.02}, int8 z = {0}> "
        "{ d = DequantizeLinear(wq, s, z) y = MatMul(x, d) }",
        opset=21,
        ir_version=10,
        wq=rng().integers(-127, 127, (64, 64), np.int8),
    )
    after, report = run(ConvertFp16(), before)
    assert report.changed == 2
    assert near(before, after, {"x": normal(4, 64)}) > 50


def test_says_what_calls_functions_and_what_is_not_standard() -> None:
    before = graph(
        "g (float[4,4] x) => (float[4,4] y) { a = local.Twice(x) y = MatMul(a, a) } "
        '<domain: "local", opset_import: ["" : 18]> Twice (p) => (r) { r = Add(p, p) }',
        extra=', "local" : 1',
    )
    _, report = run(ConvertFp16(), before)
    assert "run inline-functions first" in texts(report)


def test_an_initializer_that_callers_may_override_stays_an_input() -> None:
    before = graph(
        "g (float[4,64] x, float[64,64] w) => (float[4,64] y) { a = MatMul(x, w) y = MatMul(a, v) }",
        w=normal(64, 64), v=normal(64, 64),
    )  # fmt: skip
    after, _ = run(ConvertFp16(), before)
    assert [str(v.type) for v in after.graph.inputs] == [str(v.type) for v in before.graph.inputs]
    assert near(before, after, {"x": normal(4, 64)}) > 50


def test_nothing_to_convert_is_no_change() -> None:
    before = graph("g (int64[N] x) => (int64[N] y) { y = Add(x, x) }")
    _, report = run(ConvertFp16(), before)
    assert report.changed == 0


@pytest.mark.parametrize("name", sorted(json.loads((MODELS / "models.json").read_text())))
def test_trained_models_keep_their_outputs_at_half_the_size(name: str) -> None:
    entry = json.loads((MODELS / "models.json").read_text())[name]
    before = load(MODELS / entry["path"])
    after, report = run(ConvertFp16(), before)
    assert report.changed
    data = np.load(MODELS / entry["eval"], allow_pickle=False)
    feeds = {value.name or "": data[value.name or ""][:64] for value in before.graph.inputs}
    pairs = zip(outputs(before, feeds), outputs(after, feeds), strict=True)
    floats = [(x, y) for x, y in pairs if isinstance(x, np.ndarray) and x.dtype == np.float32]
    assert min((sqnr([x], [y]) for x, y in floats), default=99) > 40

    def weights(model: ir.Model) -> int:
        return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)

    if weights(before) > 100_000:
        assert weights(after) < 0.6 * weights(before)


def test_bfloat16_is_refused_unless_asked_for() -> None:
    before = graph("g (float[4,64] x) => (float[4,64] y) { y = MatMul(x, w) }", w=normal(64, 64))
    _, report = run(ConvertBf16(), before)
    assert report.changed == 0
    assert "unverified=true" in texts(report)
    after, report = run(ConvertBf16(unverified=True), before)
    assert report.changed == 1
    assert after.graph.initializers["w"].const_value.dtype == ir.DataType.BFLOAT16  # type: ignore[union-attr]


def test_operators_that_know_no_bfloat16_stay_float32() -> None:
    before = graph("g (float[4,64] x) => (float[4,64] y) { a = MatMul(x, w) y = Relu(a) }", opset=12, w=normal(64, 64))
    _, report = run(ConvertBf16(unverified=True), before)
    assert report.changed == 0
    assert "opset 12 has no bfloat16" in texts(report)


def test_narrowing_is_the_rounding_of_numpy() -> None:
    x = normal(1000) * 1e4
    np.testing.assert_array_equal(narrowed(x, HALF), x.astype(np.float16))
    cut = narrowed(np.array([1e9, -np.inf, -1e9, 3], np.float32), HALF, limit=65504)
    np.testing.assert_array_equal(cut, np.array([65504, -np.inf, -65504, 3], np.float16))
    assert what_is_lost(np.array([1.0, 1e-9], np.float32), HALF) is None
    assert what_is_lost(np.array([1e-9], np.float32), HALF) is not None
    assert what_is_lost(np.array([1e5], np.float32), HALF) is not None
    assert what_is_lost(np.array([1e5], np.float32), ir.DataType.BFLOAT16) is None
