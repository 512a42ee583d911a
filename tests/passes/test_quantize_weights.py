"""``quantize-weights``; the oracles are ONNX Runtime, and numpy on the rounded weights read back from the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.data import load_data
from onnxopt.errors import OptionError
from onnxopt.graph import Editor
from onnxopt.model import copy, to_proto
from onnxopt.pass_base import Context, Report
from onnxopt.passes.quantize._census import census
from onnxopt.passes.quantize.dequantize import Dequantize
from onnxopt.passes.quantize.quantize_weights import QuantizeWeights
from onnxopt.pipeline import PassManager
from onnxopt.recipes import recipe
from onnxopt.runtime import Session, Snapshot
from tests.support import count_ops, graph, ops, outputs, run

Array = np.ndarray[Any, Any]

K, N = 100, 24


def arrays(**shapes: tuple[int, ...]) -> Any:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def matmul(k: int = K, n: int = N) -> ir.Model:
    return graph(f"g (float[B,3,{k}] x) => (float[B,3,{n}] y) {{ y = MatMul(x, w) }}", opset=21, **arrays(w=(k, n)))


def feeds(*shape: int, seed: int = 5) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


def everything(**options: Any) -> QuantizeWeights:
    return QuantizeWeights(min_elements=0, **options)


def relative(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(a))


def check(before: ir.Model, after: ir.Model, given: dict[str, Array], error: float) -> None:
    """The outputs move, by no more than the rounding of weights explains; and the float form computes the same."""
    (expected,), (got,) = outputs(before, given), outputs(after, given)
    assert got.shape == expected.shape
    assert 0 < relative(expected, got) < error
    floats, _ = run(Dequantize(), after)
    assert relative(outputs(floats, given)[0], got) < 1e-5


def with_data(model: ir.Model, pass_: QuantizeWeights, data: list[dict[str, Array]]) -> tuple[ir.Model, Report]:
    """One run with a budget in which everything is."""
    result = copy(model)
    return result, replace(pass_, max_drop=1.0).run(Context(Editor(result), data=load_data(data, model)))


# -- forms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("form", "block"), [("matmulnbits", 16), ("dequantize-linear", 32), ("dequantize-linear", 0)])
def test_matmul(bits: int, symmetric: bool, form: Any, block: int) -> None:
    before = matmul()
    options = {"bits": bits, "symmetric": symmetric, "form": form, "block_size": block, "accuracy_level": 0}
    after, report = run(everything(**options), before)
    assert ops(after) == (["MatMulNBits"] if form == "matmulnbits" else ["DequantizeLinear", "MatMul"])
    assert report.changed == 1
    assert "w" not in after.graph.initializers
    check(before, after, feeds(2, 3, K), 0.25 if bits == 4 else 0.02)


@pytest.mark.parametrize("form", ["matmulnbits", "dequantize-linear"])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize(("bias", "inside"), [((N,), True), ((1, N), True), ((1,), True), ((2, 1), False)])
def test_gemm(form: Any, trans_b: int, bias: tuple[int, ...], inside: bool) -> None:
    text = f"y = Gemm <alpha = 0.5, beta = 3.0, transB = {trans_b}> (x, w, c)"
    before = graph(
        f"g (float[2,{K}] x) => (float[2,{N}] y) {{ {text} }}",
        opset=21,
        **arrays(w=(N, K) if trans_b else (K, N), c=bias),
    )
    after, _ = run(everything(bits=8, form=form, accuracy_level=0), before)
    if form == "matmulnbits":
        assert ops(after) == (["MatMulNBits"] if inside else ["MatMulNBits", "Mul", "Add"])
    check(before, after, feeds(2, K), 0.02)


def test_gemm_with_a_computed_bias() -> None:
    before = graph(
        f"g (float[2,{K}] x) => (float[2,{N}] y) {{ c = ReduceSum(x) y = Gemm(x, w, c) }}", **arrays(w=(K, N))
    )
    after, _ = run(everything(accuracy_level=0), before)
    assert ops(after) == ["ReduceSum", "MatMulNBits", "Add"]
    check(before, after, feeds(2, K), 0.2)


def test_embeddings_and_what_gathers_from_them() -> None:
    before = graph("g (int64[A,B] x) => (float[A,B,64] y) { y = Gather(w, x) }", **arrays(w=(50, 64)))
    given = {"x": np.array([[0, 49, -1], [7, -50, 3]], np.int64)}
    for bits in (4, 8):
        after, _ = run(everything(operators=("Gather",), bits=bits), before)
        assert ops(after) == ["GatherBlockQuantized"]
        check(before, after, given, 0.2 if bits == 4 else 0.01)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("form", ["matmulnbits", "dequantize-linear"])
def test_convolutions_if_asked(bits: int, symmetric: bool, form: Any) -> None:
    before = graph(
        "g (float[1,4,9,9] x) => (float[1,6,7,7] y) { y = Conv(x, w, b) }", opset=21, **arrays(w=(6, 4, 3, 3), b=(6,))
    )
    after, _ = run(everything(bits=bits, symmetric=symmetric, form=form, operators=("Conv",)), before)
    written = ["DequantizeLinear"] if form == "dequantize-linear" else ["Cast", *["Sub"] * (not symmetric), "Mul"]
    assert ops(after) == [*written, "Conv"]
    check(before, after, feeds(1, 4, 9, 9), 0.25 if bits == 4 else 0.02)


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(op: str, directions: int = 1, units: int = 16) -> ir.Model:
    way = "bidirectional" if directions == 2 else "forward"
    rows = GATES[op] * units
    return graph(
        f"g (float[S,B,20] x) => (float[S,{directions},B,{units}] y) "
        f'{{ y = {op} <hidden_size = {units}, direction = "{way}"> (x, w, r, b) }}',
        **arrays(w=(directions, rows, 20), r=(directions, rows, units), b=(directions, 2 * rows)),
    )


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("form", ["matmulnbits", "dequantize-linear"])
def test_recurrent_weights_have_8_bits_and_a_scale_a_gate(op: str, directions: int, form: Any) -> None:
    before = recurrent(op, directions)
    after, report = run(everything(form=form, symmetric=True), before)
    assert report.changed == 2 + (form == "dequantize-linear" and after.opset_imports[""] != 18)
    stored = {name: value.const_value for name, value in after.graph.initializers.items()}
    for name, k in (("w", 20), ("r", 16)):
        original, q, scale = (v.const_value for v in (before.graph.initializers[name], *(
            after.graph.initializers[f"{name}_{part}"] for part in ("quantized", "scale")
        )))  # fmt: skip
        assert original is not None
        assert q is not None
        assert scale is not None
        rows = original.numpy().reshape(-1, k)
        middle = 128 if form == "dequantize-linear" else 0
        made = (q.numpy().reshape(-1, k).astype(int) - middle) * scale.numpy().reshape(-1, 1)
        assert (np.abs(made - rows) <= np.abs(rows).max(axis=1, keepdims=True) / 127 * 0.51 + 1e-6).mean() > 0.99
    assert not {"w", "r"} & stored.keys()
    check(before, after, feeds(7, 3, 20), 0.05)


@pytest.mark.parametrize("op", [*GATES, "Conv"])
def test_onnx_runtime_makes_floats_of_stored_weights_when_it_loads_them(op: str) -> None:
    if op == "Conv":
        before = graph(
            "g (float[1,4,9,9] x) => (float[1,6,7,7] y) { y = Conv(x, w) }", opset=21, **arrays(w=(6, 4, 3, 3))
        )
    else:
        before = recurrent(op)
    after, _ = run(everything(operators=(op,)), before)
    assert {"Cast", "Mul"} <= set(ops(after))
    assert [k.op for k in census(Snapshot.of(after)) if "Reorder" not in k.op] == [op]


def test_a_cleaned_model_keeps_its_stored_weights() -> None:
    before = recurrent("LSTM", units=64)
    after, report = PassManager(recipe("int4-weights")).run(before)
    assert not report.problems
    size = len(to_proto(after).SerializeToString()) / len(to_proto(before).SerializeToString())
    assert size < 0.35
    assert [k.op for k in census(Snapshot.of(after))] == ["LSTM"]


def test_the_file_gets_smaller_by_what_is_promised() -> None:
    before = matmul(1024, 256)
    after, _ = run(QuantizeWeights(), before)
    size = len(to_proto(after).SerializeToString()) / len(to_proto(before).SerializeToString())
    assert size == pytest.approx((4 + (32 + 4) / 32) / 32, rel=0.02)


def test_an_older_model_is_upgraded_for_blocks_of_dequantize_linear() -> None:
    before = graph(f"g (float[2,{K}] x) => (float[2,{N}] y) {{ y = MatMul(x, w) }}", opset=13, **arrays(w=(K, N)))
    after, report = run(everything(form="dequantize-linear"), before)
    assert after.opset_imports[""] == 21
    assert any(note.node == "model" and "opset 13 to 21" in note.text for note in report.changes)
    check(before, after, feeds(2, K), 0.25)
    per_row, _ = run(everything(form="dequantize-linear", block_size=0, bits=8), before)
    assert per_row.opset_imports[""] == 13


def test_a_model_that_cannot_be_upgraded_is_refused() -> None:
    before = graph(
        f"g (float[2,{K}] x) => (float[2,{N}] y) {{ a = local.Same(x) y = MatMul(a, w) }} "
        '<domain: "local", opset_import: ["" : 13]> Same (p) => (r) { r = Identity(p) }',
        opset=13,
        extra=', "local" : 1',
        **arrays(w=(K, N)),
    )
    _, report = run(everything(form="dequantize-linear"), before)
    assert not report.changed
    assert "inline-functions" in report.refusals[0].text


# -- where weights are -----------------------------------------------------------------------------------------


def test_a_shared_weight_is_packed_once() -> None:
    before = graph(
        f"g (float[2,{K}] x, float[2,{K}] z) => (float[2,{N}] y) {{ a = MatMul(x, w) b = MatMul(z, w) y = Add(a, b) }}",
        **arrays(w=(K, N)),
    )
    after, report = run(everything(accuracy_level=0), before)
    assert report.changed == 2
    first, second, _ = after.graph
    assert first.inputs[1] is second.inputs[1]
    assert len(after.graph.initializers) == 3
    check(before, after, feeds(2, K) | {"z": feeds(2, K, seed=6)["x"]}, 0.2)


def test_bodies_and_functions() -> None:
    before = graph(
        f"""g (float[2,{K}] x, bool flag) => (float[2,{N}] y) {{
            a = If(flag) <
                then_branch = t () => (float[2,{N}] p) {{ p = MatMul(x, w) }},
                else_branch = e () => (float[2,{N}] q) {{ k = MatMul(x, w) q = Neg(k) }}
            >
            y = local.Product(a)
        }}
        <domain: "local", opset_import: ["" : 18]> Product (p) => (r) {{
            m = Constant <value = float[{N},2] {{{",".join("0.5" if i % 3 else "-1.5" for i in range(2 * N))}}}> ()
            v = Constant <value = float[2,{N}] {{{",".join("0.5" if i % 5 else "2.5" for i in range(2 * N))}}}> ()
            o = MatMul(p, m) r = MatMul(o, v)
        }}""",
        extra=', "local" : 1',
        **arrays(w=(K, N)),
    )
    after, report = run(everything(accuracy_level=0), before)
    assert report.changed == 4
    assert count_ops(after)["MatMulNBits"] == 4
    assert sum(name.startswith("w_quantized") for name in after.graph.initializers) == 1
    for flag in (False, True):
        given = feeds(2, K) | {"flag": np.array(flag)}
        (expected,), (got,) = outputs(before, given), outputs(after, given)
        assert 0 < relative(expected, got) < 0.3


def test_layers_that_read_each_other() -> None:
    before = graph(
        f"g (float[2,{K}] x) => (float[2,{N}] y) {{ a = MatMul(x, u) c = MatMul(a, v) y = Gemm(a, v, c) }}",
        **arrays(u=(K, K), v=(K, N)),
    )
    after, report = run(everything(bits=8, accuracy_level=0), before)
    assert report.changed == 3
    check(before, after, feeds(2, K), 0.02)


def test_a_vector_as_input() -> None:
    before = graph(f"g (float[{K}] x) => (float[{N}] y) {{ y = MatMul(x, w) }}", **arrays(w=(K, N)))
    after, _ = run(everything(accuracy_level=0), before)
    check(before, after, feeds(K), 0.2)


def test_keeps_names_and_metadata() -> None:
    before = matmul()
    before.graph[0].name = "layer"
    before.graph[0].metadata_props["k"] = "v"
    after, _ = run(everything(), before)
    (node,) = after.graph
    assert (node.name, node.outputs[0].name, node.metadata_props["k"]) == ("layer", "y", "v")


@pytest.mark.parametrize(
    ("body", "shapes", "reason"),
    [
        ("y = MatMul(x, x)", {}, "two computed tensors"),
        ("y = MatMul(w, x)", {"w": (4, 8)}, "left operand"),
        ("y = MatMul(x, w)", {"w": (2, 8, 8)}, "rank 3"),
        ("y = Gemm <transA = 1> (x, w)", {"w": (8, 8)}, "transA"),
        ("a = MatMul(x, w) s = Transpose(w) y = MatMul(a, s)", {"w": (8, 4)}, "also read by s"),
        ("h = Cast <to = 10> (x) k = Constant <value = float16[8,1] {1,1,1,1,1,1,1,1}> () y = MatMul(h, k)", {},
         "FLOAT16"),
        ("d = DequantizeLinear(i, s) y = MatMul(x, d)", {"s": ()}, "quantized already"),
        ("y = Relu(x)", {}, "no MatMul or Gemm"),
    ],
)  # fmt: skip
def test_refuses_with_the_reason(body: str, shapes: dict[str, tuple[int, ...]], reason: str) -> None:
    extra: dict[str, Any] = {"i": np.ones((8, 8), np.int8)} if "(i, s)" in body else {}
    y = "float16[M,1]" if "float16" in body else "float[M,K]"
    before = graph(f"g (float[8,8] x) => ({y} y) {{ {body} }}", **arrays(**shapes), **extra)
    if "rank 3" in reason:
        before.graph.outputs[0].shape = ir.Shape([2, 8, 8])
    _, report = run(everything(), before)
    assert not report.changed
    assert any(reason in note.text for note in report.refusals), [str(note) for note in report.refusals]


def test_refuses_weights_that_are_not_finite_or_that_callers_may_override() -> None:
    broken = matmul()
    stored = broken.graph.initializers["w"]
    assert stored.const_value is not None
    w = stored.const_value.numpy().copy()
    w[3, 3] = np.nan
    stored.const_value = ir.Tensor(w, name="w")
    assert "NaN" in run(everything(), broken)[1].refusals[0].text
    before = graph(
        "g (float[2,4] x, float[4,4] w) => (float[2,4] y) <float[4,4] w> { y = MatMul(x, w) }", **arrays(w=(4, 4))
    )
    assert "override" in run(everything(), before)[1].refusals[0].text


def test_small_and_short_weights_stay_in_float_unless_asked() -> None:
    _, report = run(QuantizeWeights(), matmul())
    assert "2400 elements" in report.refusals[0].text
    _, report = run(QuantizeWeights(min_elements=1000), matmul())
    assert "100 inputs" in report.refusals[0].text


def test_a_quantized_model_is_left_as_it_is() -> None:
    once, _ = run(everything(), matmul())
    twice, report = run(everything(), once)
    assert not report.changed
    assert "MatMulNBits" in report.refusals[0].text
    assert to_proto(twice) == to_proto(once)


# -- data ------------------------------------------------------------------------------------------------------


def layers(k: int = 256, n: int = 64) -> tuple[ir.Model, list[dict[str, Array]]]:
    """Two layers on one input, a third on their sum; with inputs that are correlated, as those of layers are."""
    model = graph(
        f"g (float[B,{k}] x) => (float[B,{n}] y) "
        "{ p = MatMul(x, u) q = MatMul(x, v) s = Add(p, q) r = Relu(s) y = MatMul(r, w) }",
        **arrays(u=(k, n), v=(k, n), w=(n, n)),
    )
    rng = np.random.default_rng(3)
    x = rng.standard_normal((600, 16)) @ rng.standard_normal((16, k)) + 0.2 * rng.standard_normal((600, k))
    x *= np.exp(rng.standard_normal(k))
    return model, [{"x": part.astype(np.float32)} for part in np.split(x, 6)]


def test_methods_that_use_data_move_held_out_outputs_less() -> None:
    model, data = layers()
    held_out = data[-1]
    (expected,) = outputs(model, held_out)
    error = {}
    for method in ("rtn", "hqq", "awq", "gptq", "auto"):
        after, report = with_data(model, everything(method=method, accuracy_level=0), data[:-1])
        assert report.changed == 3
        assert all("output error" in note.text for note in report.changes)
        error[method] = relative(expected, outputs(after, held_out)[0])
    assert error["gptq"] < 0.7 * error["rtn"]
    assert error["awq"] < 0.9 * error["rtn"]
    assert error["hqq"] < error["rtn"]
    assert error["auto"] == error["gptq"]


def test_awq_divides_an_input_once_for_all_who_read_it() -> None:
    model, data = layers()
    after, _ = with_data(model, everything(method="awq"), data)
    assert ops(after)[:3] == ["Mul", "MatMulNBits", "MatMulNBits"]


def test_reports_the_error_that_it_makes() -> None:
    model, data = layers()
    after, report = with_data(model, everything(accuracy_level=0), data)
    x = np.concatenate([part["x"] for part in data])
    floats, _ = run(Dequantize(), after)
    u = model.graph.initializers["u"].const_value
    weight = floats.graph[0].inputs[1]
    rounded = weight.const_value if weight is not None else None
    assert u is not None
    assert rounded is not None
    fact = next(fact for fact in report.facts if fact["node"] != "model")
    assert fact["method"] == "gptq"
    assert fact["output_error"] == pytest.approx(relative(x @ u.numpy(), x @ rounded.numpy()), rel=1e-3)
    assert fact["weight_error"] == pytest.approx(relative(u.numpy(), rounded.numpy()), rel=1e-3)


def test_a_weight_on_two_inputs_is_rounded_for_both() -> None:
    rng = np.random.default_rng(4)
    model = graph(
        "g (float[B,256] x, float[B,256] z) => (float[B,64] y) { a = MatMul(x, w) b = MatMul(z, w) y = Sub(a, b) }",
        **arrays(w=(256, 64)),
    )

    def some(rows: int) -> dict[str, Array]:
        return {
            name: (rng.standard_normal((rows, 8)) @ np.random.default_rng(i).standard_normal((8, 256))).astype(
                np.float32
            )
            for i, name in enumerate(("x", "z"))
        }

    data, held_out = [some(300)], some(200)
    (expected,) = outputs(model, held_out)
    error = {}
    for method in ("rtn", "gptq"):
        after, report = with_data(model, everything(method=method, accuracy_level=0), data)
        assert report.changed == 2
        error[method] = relative(expected, outputs(after, held_out)[0])
    assert error["gptq"] < 0.6 * error["rtn"]


def test_layers_without_statistics_fall_back_and_say_so() -> None:
    before = graph(
        f"g (float[2,{K}] x, bool flag) => (float[2,{N}] y) {{ y = If(flag) < "
        f"then_branch = t () => (float[2,{N}] p) {{ p = MatMul(x, v) }}, "
        f"else_branch = e () => (float[2,{N}] q) {{ a = Neg(x) q = MatMul(a, w) }} > }}",
        **arrays(w=(K, N), v=(K, N)),
    )
    after, report = with_data(before, everything(), [feeds(2, K) | {"flag": np.array(True)}])
    assert count_ops(after)["MatMulNBits"] == 2
    ran, never = (note.text for note in report.changes)
    assert "by gptq" in ran
    assert "by hqq" in never
    assert "no statistics of its input a" in never


def test_the_same_every_time() -> None:
    model, data = layers()
    first, _ = with_data(model, everything(), data)
    second, _ = with_data(model, everything(), data)
    assert to_proto(first) == to_proto(second)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_methods_that_need_data_say_so(method: Any) -> None:
    with pytest.raises(OptionError, match="--data"):
        run(QuantizeWeights(method=method), matmul())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"bits": 3}, "one of 4, 8"),
        ({"block_size": 48}, "one of 0, 16"),
        ({"block_size": 0}, "form=dequantize-linear"),
        ({"method": "best"}, "one of auto"),
        ({"form": "qdq"}, "one of matmulnbits"),
        ({"accuracy_level": 2}, "one of 0, 4"),
        ({"operators": ("Softmax",)}, "some of MatMul"),
        ({"operators": ()}, "got none"),
        ({"min_elements": -1}, "number of elements"),
    ],
)
def test_bad_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        QuantizeWeights(**options)


# -- the kernel ------------------------------------------------------------------------------------------------


def test_the_kernel_that_runs_is_the_integer_one() -> None:
    """With level 4 activations are rounded to 8 bits, block by block; with level 0 they are not."""
    before = matmul(256, 64)
    given = feeds(1, 3, 256)
    exact, _ = run(everything(accuracy_level=0), before)
    fast, _ = run(everything(), before)
    floats, _ = run(Dequantize(), exact)
    (expected,) = outputs(floats, given)
    assert relative(expected, outputs(exact, given)[0]) < 1e-6
    assert 1e-4 < relative(expected, outputs(fast, given)[0]) < 0.02


def test_onnx_runtime_makes_the_same_kernel_of_both_forms() -> None:
    after, _ = run(everything(form="dequantize-linear"), matmul(256, 64))
    session = Session(Snapshot.of(after), optimize=True, threads=1)
    (expected,) = outputs(after, feeds(1, 3, 256))
    assert 1e-4 < relative(expected, session.run(feeds(1, 3, 256))[0]) < 0.02
