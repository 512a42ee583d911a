"""``correct-bias``: means come back to those of the float model, on the grid of the bias, or a reason."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.errors import OptionError
from onnxopt.graph import Editor
from onnxopt.passes.quantize._quantized_layers import stored
from onnxopt.passes.quantize.correct_bias import CorrectBias
from onnxopt.passes.quantize.quantize_static import QuantizeStatic
from onnxopt.recipes import parse_pipeline
from tests.passes.test_adaround import INT4, Array, chain, normal
from tests.support import graph, outputs

both = pytest.mark.parametrize("method", ["fast", "sequential"])
Method = Literal["fast", "sequential"]

DATA = {"x": np.abs(normal(64, 3, 6, 6, seed=4)) + 1}


def conv(bias: bool = True) -> ir.Model:
    """Two layers whose inputs are all positive, so that rounding moves their means."""
    b = ("b", "c") if bias else ("", "")
    arrays: dict[str, Any] = {"w": normal(8, 3, 3, 3), "v": normal(5, 8, 1, 1, seed=1)}
    if bias:
        arrays |= {"b": normal(8, seed=2), "c": normal(5, seed=3)}
    text = ", ".join(filter(None, ("x, w", b[0]))), ", ".join(filter(None, ("r, v", b[1])))
    return graph(
        f"g (float[N,3,6,6] x) => (float[N,5,6,6] y) {{ a = Conv <pads = [1, 1, 1, 1]> ({text[0]}) r = Relu(a) "
        f"y = Conv({text[1]}) }}",
        **arrays,
    )  # fmt: skip


def means(model: ir.Model, data: dict[str, Array]) -> Array:
    found: Array = outputs(model, data)[0].mean(axis=(0, 2, 3), dtype=np.float64)
    return found


@both
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "none yet"])
def test_brings_the_means_back(method: Method, bias: bool) -> None:
    model = conv(bias)
    before, _ = chain(model, DATA, INT4)
    after, report = chain(model, DATA, INT4, CorrectBias(method=method))
    assert report.changed == 2
    exact = means(model, DATA)
    off, left = (float(np.linalg.norm(means(each, DATA) - exact)) for each in (before, after))
    assert left < 0.5 * off
    for fact in report.facts:
        assert fact["mean_error_after"] < fact["mean_error_before"]  # type: ignore[operator]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "none yet"])
def test_stays_on_the_grid_of_the_sums(bias: bool) -> None:
    model = conv(bias)
    before, _ = chain(model, DATA, INT4)
    after, _ = chain(model, DATA, INT4, CorrectBias())
    editor = Editor(after)
    for old, new in zip(*([n for n in m.graph if n.op_type == "Conv"] for m in (before, after)), strict=True):
        weight, found = stored(new.inputs[1], editor), stored(new.inputs[2], editor)
        assert weight is not None
        assert found is not None
        scale = editor.constant(new.inputs[0].producer().inputs[1])
        np.testing.assert_array_equal(found.grid.scale, scale * weight.grid.scale)
        assert found.integers.dtype == np.int32
        assert not found.grid.zero_point.any()
        kept = stored(old.inputs[1], Editor(before))
        assert kept is not None
        np.testing.assert_array_equal(kept.integers, weight.integers)


def test_the_last_layer_ends_within_half_a_step_where_nothing_is_rounded_behind_it() -> None:
    """Measured on all that it is tested on: both halves are the same samples twice."""
    half = normal(32, 8, seed=5) + 2
    data = {"x": np.repeat(half, 2, axis=0)}
    model = graph("g (float[N,8] x) => (float[N,6] y) { y = Gemm(x, w, b) }", w=normal(8, 6), b=normal(6, seed=1))
    static = QuantizeStatic(target="ort-cpu-vnni", placement="all", method="minmax", reduce_range=True)
    after, report = chain(model, data, static, CorrectBias())
    assert report.changed == 1
    (fact,) = report.facts
    halves = [np.flatnonzero(np.isin(np.arange(64), part)) for part in _halves(64)]
    exact, found = outputs(model, data)[0], outputs(after, data)[0]
    editor = Editor(after)
    node = next(n for n in after.graph if n.op_type == "Gemm")
    bias = stored(node.inputs[2], editor)
    assert bias is not None
    measured = (exact - found)[halves[0]].mean(axis=0, dtype=np.float64)
    assert (np.abs(measured) <= 0.5 * bias.grid.scale + 1e-5).all()
    judged = (exact - found)[halves[1]].mean(axis=0, dtype=np.float64)
    assert fact["mean_error_after"] == pytest.approx(np.sqrt(np.mean(judged**2)), rel=0.05, abs=1e-6)


def _halves(samples: int) -> tuple[Array, Array]:
    order = np.random.default_rng(0).permutation(samples)
    return order[: samples // 2], order[samples // 2 :]


def test_each_correction_counts_on_those_before() -> None:
    """Corrected one after the other, the error left at the end is less than if all were estimated at once. All samples
    are one, for what differs between those learnt from and others is no less than that."""
    arrays: dict[str, Any] = {f"w{i}": np.abs(normal(8, 8, 1, 1, seed=i)) / 8 for i in range(6)}
    text, name = "", "x"
    for i in range(6):
        text += f"a{i} = Conv({name}, w{i}) r{i} = Relu(a{i}) "
        name = f"r{i}"
    model = graph(f"g (float[N,8,16,16] x) => (float[N,8,16,16] y) {{ {text} y = Identity({name}) }}", **arrays)
    left = dict.fromkeys(("none", "fast", "sequential"), 0.0)
    for seed in range(9, 13):
        data = {"x": np.repeat(np.abs(normal(1, 8, 16, 16, seed=seed)), 8, axis=0)}
        for method in left:
            corrections = [] if method == "none" else [CorrectBias(method=method)]  # type: ignore[arg-type]
            after, _ = chain(model, data, INT4, *corrections)
            left[method] += float(np.linalg.norm(means(after, data) - means(model, data)))
    assert left["sequential"] < left["fast"] < left["none"]


@both
def test_a_float_bias_behind_a_matmul_is_shifted(method: Method) -> None:
    model = graph(
        "g (float[N,T,8] x) => (float[N,T,6] y) { m = MatMul(x, w) y = Add(b, m) }", w=normal(8, 6), b=normal(6)
    )
    data = {"x": np.abs(normal(64, 5, 8, seed=2))}
    static = QuantizeStatic(target="ort-cpu-vnni", placement="all", method="minmax", reduce_range=True)
    before, _ = chain(model, data, static)
    after, report = chain(model, data, static, CorrectBias(method=method))
    assert report.changed == 1
    exact = outputs(model, data)[0].mean(axis=(0, 1))
    off, left = (np.linalg.norm(outputs(m, data)[0].mean(axis=(0, 1)) - exact) for m in (before, after))
    assert left < off
    assert sorted(n.op_type for n in after.graph) == sorted(n.op_type for n in before.graph)
    assert len(after.graph.initializers) == len(before.graph.initializers)


def test_says_why_not() -> None:
    data = {"x": normal(32, 8)}
    model = graph("g (float[N,8] x) => (float[N,6] y) { m = MatMul(x, w) y = Relu(m) }", w=normal(8, 6))
    _, report = chain(model, data, INT4, CorrectBias())
    assert report.changed == 0
    assert "the integer kernel of a MatMul takes none" in str(report.refusals[0])
    _, report = chain(model, data, CorrectBias())
    assert "run quantize-static first" in str(report.refusals[0])
    _, report = chain(model, {"x": data["x"][:1]}, INT4, CorrectBias())
    assert report.changed == 0
    model = graph(
        "g (float[N,3,6,6] x) => (float[N,4,A,B] y) { y = ConvTranspose <strides = [2, 2]> (x, w) }",
        w=normal(3, 4, 3, 3),
    )
    _, report = chain(model, DATA, INT4, CorrectBias(method="fast"))
    assert "overlaps itself" in str(report.refusals[0])
    _, report = chain(model, DATA, INT4, CorrectBias())
    assert report.changed == 1


def test_keeps_a_bias_that_is_right() -> None:
    """Weights on the grid lose nothing, so there is nothing to correct."""
    w = np.random.default_rng(0).integers(-7, 8, (8, 6)).astype(np.float32)
    w[0] = 7
    model = graph("g (float[N,8] x) => (float[N,6] y) { y = Gemm(x, w, b) }", w=w, b=np.zeros(6, np.float32))
    _, report = chain(model, {"x": normal(32, 8)}, INT4, CorrectBias(method="fast"))
    assert report.changed == 0
    assert "best as they are" in str(report.refusals[0])


def test_method_is_checked() -> None:
    assert parse_pipeline("correct-bias{method=fast}") == [CorrectBias(method="fast")]
    with pytest.raises(OptionError, match="sequential or fast"):
        CorrectBias(method="slow")  # type: ignore[arg-type]
