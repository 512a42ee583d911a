"""``adaround``: a better choice by exact count, on the same grid, or a reason."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx.checker
import onnx_ir as ir
import pytest

from models._common import MODELS, samples
from onnxopt.data import load_data
from onnxopt.evaluation import evaluate
from onnxopt.graph import Editor
from onnxopt.model import copy, load, to_proto
from onnxopt.pass_base import Context, Pass, Report
from onnxopt.passes.quantize._adaround import Moments, choose
from onnxopt.passes.quantize._products import Product
from onnxopt.passes.quantize._quantized_layers import stored
from onnxopt.passes.quantize.adaround import Adaround
from onnxopt.passes.quantize.correct_bias import CorrectBias
from onnxopt.passes.quantize.equalize_channels import EqualizeChannels
from onnxopt.passes.quantize.quantize_static import QuantizeStatic
from onnxopt.pipeline import PassManager
from onnxopt.recipes import parse_pipeline, recipe
from onnxopt.runtime import Snapshot
from tests.support import graph, outputs

Array = np.ndarray[Any, Any]

INT4 = QuantizeStatic(target="generic", weight_type="int4", placement="all", method="minmax")


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def chain(model: ir.Model, data: Any, *passes: Pass) -> tuple[ir.Model, Report]:
    """The passes in a row on a copy, and what the last one says."""
    after, dataset = copy(model), load_data(data, model)
    editor = Editor(after)
    for pass_ in passes:
        before = to_proto(after)
        report = pass_.run(Context(editor, data=dataset, original=model))
        assert bool(report.changed) == (to_proto(after) != before)
    onnx.checker.check_model(to_proto(after), full_check=True)
    return after, report


def integers(model: ir.Model) -> dict[str, Array]:
    return {name: v.const_value.numpy() for name, v in model.graph.initializers.items() if v.const_value is not None}


# -- numbers ---------------------------------------------------------------------------------------------------


def losses(w: Array, chosen: Array, x: Array, rounded: Array) -> Array:
    """The squared error of each output on these rows (r × k)."""
    found: Array = np.sum((x @ w - rounded @ chosen) ** 2, axis=0)
    return found


def problem(seed: int, k: int, n: int) -> tuple[Array, ...]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((400, k)) @ rng.standard_normal((k, k))
    rounded = x + 0.05 * rng.standard_normal(x.shape)
    w = rng.standard_normal((k, n))
    step = np.abs(w).max(axis=0) / 7
    low = np.floor(w / step) * step
    return x, rounded, w, low, low + step


def test_choice_is_near_the_best_of_all() -> None:
    """All 2¹⁰ choices are tried: most of what the best of them gains over rounding to nearest is found."""
    choices = np.array(list(itertools.product([False, True], repeat=10)))
    gained = possible = 0.0
    for seed in range(6):
        x, rounded, w, low, high = problem(seed, 10, 6)
        moments = Moments(w[None])
        moments.add(x[None].astype(np.float32), rounded[None].astype(np.float32))
        up = choose(w[None], low[None], high[None], moments)[0]
        found = losses(w, np.where(up, high, low), x, rounded)
        nearest = losses(w, np.where(w - low > high - w, high, low), x, rounded)
        for j in range(6):
            each = np.where(choices, high[:, j], low[:, j]).T
            best = losses(w[:, [j]], each, x, rounded).min()
            assert found[j] >= best * (1 - 1e-9)
            gained, possible = gained + nearest[j] - found[j], possible + nearest[j] - best
    assert gained > 0.75 * possible > 0


def test_no_single_move_is_left_that_gains() -> None:
    x, rounded, w, low, high = problem(9, 40, 12)
    moments = Moments(w[None])
    moments.add(x[None].astype(np.float32), rounded[None].astype(np.float32))
    up = choose(w[None], low[None], high[None], moments)[0]
    gram, cross = moments.gram[0], moments.cross[0] + 0.05 * np.trace(rounded.T @ rounded) / 40 * w

    def loss(chosen: Array) -> Array:
        y = np.where(chosen, high, low)
        return np.sum(y * (gram @ y), axis=0) - 2 * np.sum(y * cross, axis=0)  # type: ignore[no-any-return]

    now = loss(up)
    for i in range(40):
        moved = up.copy()
        moved[i] ^= True
        assert (loss(moved) >= now - 1e-6 * np.abs(now)).all()


LAYERS = {
    "conv": ("Conv <pads = [1, 0, 1, 2], strides = [2, 1]> (x, w)", (2, 4, 7, 6), (6, 4, 3, 2)),
    "grouped": ("Conv <group = 2, dilations = [2, 1]> (x, w)", (2, 4, 7, 6), (6, 2, 3, 2)),
    "depthwise": ('Conv <group = 4, auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w)', (2, 4, 7, 6), (4, 1, 3, 3)),
    "same lower": ('Conv <auto_pad = "SAME_LOWER"> (x, w)', (2, 4, 7), (5, 4, 4)),
    "transposed": ("ConvTranspose <strides = [2, 3]> (x, w)", (2, 4, 3, 5), (4, 5, 2, 3)),
    "transposed, grouped": ("ConvTranspose <group = 2, strides = [2]> (x, w)", (2, 4, 3), (4, 3, 2)),
    "gemm": ("Gemm(x, w)", (5, 4), (4, 3)),
    "gemm transposed": ("Gemm <transB = 1> (x, w)", (5, 4), (3, 4)),
    "matmul": ("MatMul(x, w)", (2, 5, 4), (4, 3)),
}


@pytest.mark.parametrize(("text", "x_shape", "w_shape"), LAYERS.values(), ids=LAYERS)
def test_a_layer_is_the_product_of_rows_and_matrix(
    text: str, x_shape: tuple[int, ...], w_shape: tuple[int, ...]
) -> None:
    dims = ",".join(map(str, x_shape))
    x, w = normal(*x_shape), normal(*w_shape, seed=1)
    model = graph(f"g (float[{dims}] x) => (float[{','.join('abcd'[: len(x_shape)])}] y) {{ y = {text} }}", w=w)
    (y,) = outputs(model, {"x": x})
    product = Product(model.graph[0], w_shape)
    np.testing.assert_array_equal(product.weight(product.matrix(w)), w)
    g, k, _ = product.size
    rows = product.rows(x, np.arange(product.count(x)))
    assert rows.shape == (g, product.count(x), k)
    by_product = rows @ product.matrix(w)
    np.testing.assert_allclose(np.sort(by_product, axis=None), np.sort(y, axis=None), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(product.mean_row(x), rows.mean(axis=1), rtol=1e-4, atol=1e-5)
    channels = y.shape[1] if "Conv" in text else y.shape[-1]
    of_channel = by_product.mean(axis=1).reshape(channels, -1).mean(axis=1)
    axes = tuple(i for i in range(y.ndim) if i != (1 if "Conv" in text else y.ndim - 1))
    np.testing.assert_allclose(of_channel, y.mean(axis=axes), rtol=1e-4, atol=1e-5)


# -- the pass --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet() -> tuple[ir.Model, dict[str, Array], Array]:
    model, _ = PassManager(recipe("cleanup"), verify="off").run(load(MODELS / "resnet8_mnist_hard" / "model.onnx"))
    x, _ = samples("mnist_hard", "train")
    held_out, labels = samples("mnist_hard", "test")
    return model, {"image": x[:64]}, {"image": held_out[:200], "labels": labels[:200]}  # type: ignore[return-value]


@pytest.fixture(scope="module")
def four_bits(resnet: Any) -> tuple[ir.Model, ir.Model, Report]:
    """The network with weights of 4 bits: rounded to nearest, and adapted, with the report of that."""
    model, data, _ = resnet
    return chain(model, data, INT4)[0], *chain(model, data, INT4, Adaround())


def test_makes_four_bits_nearly_as_good_as_floats(resnet: Any, four_bits: Any) -> None:
    model, _, held_out = resnet
    before, after, report = four_bits
    changed = {note.node for note in report.changes}
    assert len(changed) >= 8
    for fact in report.facts:
        assert (fact["error_after"] < fact["error_before"]) == (fact["node"] in changed)
    evaluation = load_data(held_out, model)
    worse, better = (evaluate(Snapshot.of(model), Snapshot.of(each), evaluation) for each in (before, after))
    assert better.sqnr_db["logits"] > worse.sqnr_db["logits"] + 6
    exact, rounded = better.accuracy["logits"]
    assert rounded >= exact - 0.01


def test_weights_stay_on_their_grid_next_to_the_float_ones(resnet: Any, four_bits: Any) -> None:
    model, _, _ = resnet
    before, after, _ = four_bits
    old, new = integers(before), integers(after)
    assert old.keys() == new.keys()
    moved = {name for name in old if not np.array_equal(old[name], new[name])}
    assert moved
    editor, floats = Editor(after), integers(model)
    sources = {node.name: node.inputs[1].name for node in model.graph if node.op_type in ("Conv", "Gemm")}
    for node in after.graph:
        weight = stored(node.inputs[1], editor) if node.name in sources else None
        if weight is None:
            continue
        name = weight.reader.inputs[0].name or ""  # type: ignore[union-attr]
        moved.discard(name)
        steps, _ = weight.grid.aligned(weight.integers.ndim)
        off = np.abs(floats[sources[node.name] or ""] - weight.array) / steps
        assert off.max() <= 1.001
        assert np.abs(new[name].astype(int) - old[name].astype(int)).max() <= 1
        assert new[name].astype(int).min() >= old[name].astype(int).min()
        assert new[name].astype(int).max() <= old[name].astype(int).max()
    assert not moved, "only weights may have moved"


def test_a_run_is_repeatable_and_the_seed_counts(resnet: Any) -> None:
    model, data, _ = resnet
    small = {name: x[:16] for name, x in data.items()}
    one, two, other = (
        to_proto(chain(model, small, INT4, Adaround(seed=seed, include=("*.0/conv1/*",)))[0]) for seed in (0, 0, 1)
    )
    assert one.SerializeToString(deterministic=True) == two.SerializeToString(deterministic=True)
    assert one != other


def test_leaves_out_what_filters_leave_out(resnet: Any) -> None:
    model, data, _ = resnet
    small = {name: x[:32] for name, x in data.items()}
    _, report = chain(model, small, INT4, Adaround(include=("/head/*",)))
    assert [note.node for note in report.changes] == ["/head/Gemm"]


def linear(**arrays: Array) -> ir.Model:
    given: dict[str, Any] = {"w": normal(8, 6), "v": normal(6, 6, seed=1), "b": normal(6, seed=2), **arrays}
    return graph("g (float[N,8] x) => (float[N,6] y) { a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v) }", **given)


DATA = {"x": normal(40, 8, seed=5)}


def test_says_why_not() -> None:
    model = linear()
    _, report = chain(model, DATA, Adaround())
    assert report.changed == 0
    assert "run quantize-static first" in str(report.refusals[0])
    uneven = linear(v=normal(6, 6) * np.array([[100], [1], [1], [0.01], [1], [1]], np.float32))
    _, report = chain(uneven, DATA, EqualizeChannels(), INT4, Adaround())
    assert report.changed == 0
    assert "by another lossy pass" in str(report.refusals[0])
    _, report = chain(model, {"x": DATA["x"][:1]}, INT4, Adaround())
    assert "one sample is too few" in str(report.refusals[0])
    quantized, _ = chain(model, DATA, INT4)
    _, report = chain(quantized, DATA, Adaround())
    assert "whose float form is not known" in str(report.refusals[0])


def test_takes_what_equalized_channels_compute_for_the_original() -> None:
    uneven = linear(v=normal(6, 6) * np.array([[100], [1], [1], [0.01], [1], [1]], np.float32))
    data = {"x": normal(400, 8, seed=5)}
    passes = [EqualizeChannels(), INT4, Adaround(), CorrectBias()]
    learnt, report = PassManager(passes, data=data).run(uneven)
    assert all(each.changed > 0 for each in report.passes[:3])
    assert not any("changed before" in str(note) for each in report.passes for note in each.refusals)
    rounded, _ = PassManager(passes[:2], data=data).run(uneven)
    others = load_data({"x": normal(2000, 8, seed=6)}, uneven)
    found = [evaluate(Snapshot.of(uneven), Snapshot.of(each), others).least_sqnr_db for each in (learnt, rounded)]
    assert found[0] > found[1]


def test_refuses_a_weight_that_two_layers_share() -> None:
    model = graph(
        "g (float[N,8] x) => (float[N,8] y) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, w) }", w=normal(8, 8)
    )
    _, report = chain(model, DATA, INT4, Adaround())
    assert report.changed == 0
    assert all("shared with another layer" in note.text for note in report.refusals)
    assert len(report.refusals) == 2


def test_runs_in_a_pipeline(resnet: Any) -> None:
    model, data, _ = resnet
    passes = parse_pipeline("quantize-static{placement=all},adaround{seed=3},correct-bias")
    after, report = PassManager(passes, data=data).run(model)
    assert [each.changed > 0 for each in report.passes] == [True, True, True]
    assert report.overall is not None
    assert report.overall.sqnr_db["logits"] > 30
    assert "Conv" in {node.op_type for node in after.graph}
