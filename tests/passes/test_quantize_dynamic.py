"""``quantize-dynamic``; the oracles are ONNX Runtime, and the definition of the operators in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.errors import OptionError
from onnxopt.model import to_proto
from onnxopt.passes.quantize import quantize_dynamic
from onnxopt.passes.quantize.quantize_dynamic import QuantizeDynamic
from onnxopt.runtime import Session, Snapshot
from tests.support import count_ops, graph, ops, outputs, run

Array = np.ndarray[Any, Any]

EVERYWHERE = QuantizeDynamic(where="everywhere", reduce_range=True)
PRODUCT = ["DynamicQuantizeLinear", "MatMulInteger", "Cast", "Mul", "Mul"]


def arrays(**shapes: tuple[int, ...]) -> Any:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def feeds(*shape: int, seed: int = 5) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


def relative(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(a))


def check(before: ir.Model, after: ir.Model, given: dict[str, Array], error: float = 0.03) -> None:
    """Outputs move by what 7 bits explain, and ONNX Runtime's fused kernels compute the same."""
    fused = Session(Snapshot.of(after), optimize=True, threads=1).run(given)
    for a, b, c in zip(outputs(before, given), outputs(after, given), fused, strict=True):
        assert a.shape == b.shape
        assert 0 < relative(a, b) < error
        assert relative(b, c) < error / 2


def test_matmul_is_what_the_definition_says() -> None:
    before = graph("g (float[B,3,40] x) => (float[B,3,16] y) { y = MatMul(x, w) }", **arrays(w=(40, 16)))
    after, report = run(EVERYWHERE, before)
    assert ops(after) == PRODUCT
    assert report.changed == 1
    given = feeds(2, 3, 40)
    x, w = given["x"].astype(np.float64), arrays(w=(40, 16))["w"].astype(np.float64)
    low, high = min(x.min(), 0), max(x.max(), 0)
    step = (high - low) / 255
    rounded = (np.clip(np.rint(x / step) + np.rint(-low / step), 0, 255) - np.rint(-low / step)) * step
    columns = np.abs(w).max(axis=0) / 64
    expected = rounded @ (np.rint(w / columns) * columns)
    assert relative(expected, outputs(after, given)[0]) < 2e-3
    check(before, after, given)


def test_one_rounding_for_all_who_read_an_input() -> None:
    before = graph(
        "g (float[B,40] x) => (float[B,16] y) { a = MatMul(x, u) b = MatMul(x, v) y = Add(a, b) }",
        **arrays(u=(40, 16), v=(40, 16)),
    )
    after, report = run(EVERYWHERE, before)
    assert report.changed == 2
    assert count_ops(after)["DynamicQuantizeLinear"] == 1
    check(before, after, feeds(4, 40))


@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm(trans_b: int) -> None:
    before = graph(
        f"g (float[4,40] x) => (float[4,16] y) {{ y = Gemm <alpha = 0.5, beta = 3.0, transB = {trans_b}> (x, w, c) }}",
        **arrays(w=(16, 40) if trans_b else (40, 16), c=(16,)),
    )
    after, _ = run(EVERYWHERE, before)
    assert ops(after) == [*PRODUCT, "Mul", "Add"]
    check(before, after, feeds(4, 40))


def test_layers_that_read_each_other_and_share_a_weight() -> None:
    before = graph(
        "g (float[4,40] x) => (float[4,40] y) { a = MatMul(x, w) r = Relu(a) b = MatMul(r, w) y = Add(a, b) }",
        **arrays(w=(40, 40)),
    )
    after, report = run(EVERYWHERE, before)
    assert report.changed == 2
    assert len(after.graph.initializers) == 2
    check(before, after, feeds(4, 40), 0.03)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_lstm(direction: str) -> None:
    d = 2 if direction == "bidirectional" else 1
    before = graph(
        f"g (float[S,B,20] x, int32[B] n, float[{d},B,16] h) => (float[S,{d},B,16] y, float[{d},B,16] c) "
        f'{{ y, , c = LSTM <hidden_size = 16, direction = "{direction}"> (x, w, r, b, n, h) }}',
        **arrays(w=(d, 64, 20), r=(d, 64, 16), b=(d, 128)),
    )
    after, report = run(EVERYWHERE, before)
    assert ops(after) == ["DynamicQuantizeLSTM"]
    assert report.changed == 1
    given = feeds(7, 3, 20) | {"n": np.array([7, 4, 1], np.int32), "h": feeds(d, 3, 16, seed=6)["x"]}
    check(before, after, given, 0.05)


@pytest.mark.parametrize("bias", ["", ", b", ", t"])
def test_convolutions_if_asked(bias: str) -> None:
    before = graph(
        f"g (float[1,4,9,9] x) => (float[1,6,9,9] y) {{ t = Neg(b) y = Conv <pads = [1, 1, 1, 1]> (x, w{bias}) }}",
        **arrays(w=(6, 4, 3, 3), b=(6,)),
    )
    after, report = run(QuantizeDynamic(operators=("Conv",)), before)
    assert report.changed == 1
    assert count_ops(after)["ConvInteger"] == 1
    check(before, after, feeds(1, 4, 9, 9), 0.03)
    _, report = run(QuantizeDynamic(), before)
    assert not report.changed


def test_bodies_are_reached() -> None:
    before = graph(
        """g (float[4,40] x, bool flag) => (float[4,16] y) { y = If(flag) <
            then_branch = t () => (float[4,16] p) { p = MatMul(x, w) },
            else_branch = e () => (float[4,16] q) { k = MatMul(x, w) q = Neg(k) } > }""",
        **arrays(w=(40, 16)),
    )
    after, report = run(EVERYWHERE, before)
    assert report.changed == 2
    for flag in (False, True):
        check(before, after, feeds(4, 40) | {"flag": np.array(flag)})


@pytest.mark.parametrize(
    ("rows", "k", "n", "pays"),
    [
        ("B", 256, 256, True), ("B", 128, 128, False), ("16", 128, 128, False), ("64", 128, 128, True),
        ("B,S", 64, 1024, False), ("4,8", 64, 1024, True), ("1024", 128, 10, False), ("B", 4096, 16, False),
    ],
)  # fmt: skip
def test_only_where_it_pays(rows: str, k: int, n: int, pays: bool) -> None:
    before = graph(f"g (float[{rows},{k}] x) => (float[{rows},{n}] y) {{ y = MatMul(x, w) }}", **arrays(w=(k, n)))
    _, report = run(QuantizeDynamic(), before)
    assert report.changed == int(pays)
    assert pays or "not be faster" in report.refusals[0].text


def test_lstm_only_where_it_pays() -> None:
    def lstm(steps: str, units: int) -> ir.Model:
        return graph(
            f"g (float[{steps},1,{units}] x) => (float[{steps},1,1,{units}] y) "
            f"{{ y = LSTM <hidden_size = {units}> (x, w, r) }}",
            **arrays(w=(1, 4 * units, units), r=(1, 4 * units, units)),
        )

    assert [run(QuantizeDynamic(), lstm(*of))[1].changed for of in (("S", 64), ("32", 64), ("S", 128))] == [0, 1, 1]


@pytest.mark.parametrize(
    ("cpu", "reduce_range", "most"),
    [
        ("ort-cpu-vnni", "auto", 127), ("ort-cpu-avx2", "auto", 64), ("ort-cpu-arm", "auto", 127),
        ("ort-cpu-vnni", True, 64), ("ort-cpu-avx2", False, 127),
    ],
)  # fmt: skip
def test_7_bits_where_the_cpu_would_overflow(
    monkeypatch: pytest.MonkeyPatch, cpu: str, reduce_range: Any, most: int
) -> None:
    monkeypatch.setattr(quantize_dynamic, "detect", lambda: cpu)
    before = graph("g (float[B,40] x) => (float[B,16] y) { y = MatMul(x, w) }", **arrays(w=(40, 16)))
    after, report = run(QuantizeDynamic(where="everywhere", reduce_range=reduce_range), before)
    stored = after.graph.initializers["w_quantized"].const_value
    assert stored is not None
    assert np.abs(stored.numpy().astype(int)).max() == most
    assert f"weights of {7 if most == 64 else 8} bits" in report.changes[0].text


def test_an_older_model_is_upgraded() -> None:
    before = graph("g (float[4,40] x) => (float[4,16] y) { y = MatMul(x, w) }", opset=9, **arrays(w=(40, 16)))
    after, report = run(EVERYWHERE, before)
    assert after.opset_imports[""] == 11
    assert "opset 9 to 11" in report.changes[0].text
    check(before, after, feeds(4, 40))


@pytest.mark.parametrize(
    ("body", "shapes", "reason"),
    [
        ("y = MatMul(x, x)", {}, "two computed tensors"),
        ("y = Gemm <transA = 1> (x, w)", {"w": (8, 8)}, "transA"),
        ("a = MatMul(x, w) s = Transpose(w) y = MatMul(a, s)", {"w": (8, 4)}, "also read by s"),
        ("y = Relu(x)", {}, "no MatMul or Gemm or LSTM"),
        ("d, s, z = DynamicQuantizeLinear(x) i = MatMulInteger(d, d, z, z) y = Cast <to = 1> (i)", {},
         "quantized already"),
    ],
)  # fmt: skip
def test_refuses_with_the_reason(body: str, shapes: dict[str, tuple[int, ...]], reason: str) -> None:
    before = graph(f"g (float[8,8] x) => (float[M,K] y) {{ {body} }}", **arrays(**shapes))
    _, report = run(EVERYWHERE, before)
    assert not report.changed
    assert any(reason in note.text for note in report.refusals), [str(note) for note in report.refusals]


def test_refuses_gru_and_lstm_with_the_batch_first() -> None:
    shapes = {"w": (1, 48, 20), "r": (1, 48, 16)}
    gru = graph(
        "g (float[S,B,20] x) => (float[S,1,B,16] y) { y = GRU <hidden_size = 16> (x, w, r) }", **arrays(**shapes)
    )
    assert "no dynamically quantized GRU" in run(EVERYWHERE, gru)[1].refusals[0].text
    lstm = graph(
        "g (float[B,S,20] x) => (float[B,S,1,16] y) { y = LSTM <hidden_size = 16, layout = 1> (x, w, r) }",
        **arrays(w=(1, 64, 20), r=(1, 64, 16)),
    )
    assert "layout" in run(EVERYWHERE, lstm)[1].refusals[0].text


def test_a_quantized_model_is_left_as_it_is() -> None:
    before = graph("g (float[B,40] x) => (float[B,16] y) { y = MatMul(x, w) }", **arrays(w=(40, 16)))
    once, _ = run(EVERYWHERE, before)
    twice, report = run(EVERYWHERE, once)
    assert not report.changed
    assert "quantized already (MatMulInteger)" in report.refusals[0].text
    assert to_proto(twice) == to_proto(once)


@pytest.mark.parametrize(
    ("options", "text"),
    [({"operators": ("GRU",)}, "some of MatMul"), ({"operators": ()}, "got none"), ({"where": "always"}, "pays or")],
)
def test_bad_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        QuantizeDynamic(**options)
