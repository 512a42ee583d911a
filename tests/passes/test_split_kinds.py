"""``split-matmul`` and ``split-conv`` on shared weights, and on products that are not rows times one matrix."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.graph import Editor
from onnxopt.macs import count_macs
from onnxopt.pass_base import Context, Gate, Log, Pass, Refuse
from onnxopt.passes.lowrank import _timing
from onnxopt.passes.lowrank._forms import macs, parameters
from onnxopt.passes.lowrank._layers import splittable
from onnxopt.passes.lowrank._products import LeftProduct, StackProduct, refit_of
from onnxopt.passes.lowrank.split_conv import SplitConv
from onnxopt.passes.lowrank.split_matmul import SplitMatmul
from tests.pruning import prune, refusals
from tests.support import count_ops, graph, ops, outputs, parse

RNG = np.random.default_rng(5)
Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def _no_choices_of_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def low_rank(rows: int, columns: int, rank: int = 4) -> Array:
    return (RNG.normal(size=(rows, rank)) @ RNG.normal(size=(rank, columns)) / rank).astype(np.float32)


def normal(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def weights(model: ir.Model) -> dict[str, Array]:
    return {name: v.const_value.numpy() for name, v in model.graph.initializers.items() if v.const_value is not None}


def shapes(model: ir.Model) -> list[tuple[int, ...]]:
    """Those of the weights, without vectors."""
    return [weight.shape for weight in weights(model).values() if weight.ndim > 1]


def matmul(rank: float = 0.125) -> SplitMatmul:
    return SplitMatmul(rank=rank, round_to=1, timed=False)


def assert_same(before: ir.Model, after: ir.Model, feeds: dict[str, Array]) -> None:
    for was, now in zip(outputs(before, feeds), outputs(after, feeds), strict=True):
        np.testing.assert_allclose(now, was, rtol=1e-3, atol=2e-4 * float(np.abs(was).max()))


def assert_stays(before: ir.Model, pass_: Pass, feeds: dict[str, Array], changed: int = 1) -> ir.Model:
    """Split a model of low rank without data and with; its outputs and the names of its nodes stay."""
    names = {node.outputs[0].name for node in before.graph}
    for data in (None, feeds):
        after, report = prune(pass_, before, data)
        assert report.changed == changed, refusals(report)
        assert names <= {node.outputs[0].name for node in after.graph}
        assert_same(before, after, feeds)
        share = next(fact["macs"] for fact in report.facts if "macs" in fact)
        if len(report.facts) == 1 and "Attention" not in ops(before):
            assert share == pytest.approx(count_macs(after).total / count_macs(before).total)
    return after


# -- shared weights --------------------------------------------------------------------------------------------

SHARED = [
    ("h = MatMul(x, w) y = MatMul(h, w)", [(32, 4), (4, 32)]),
    ("h = MatMul(x, w) r = Relu(h) s = MatMul(r, w) y = Add(s, b)", [(32, 4), (4, 32)]),
    ("h = Gemm<transB = 1>(x, w, b) y = Gemm<transB = 1, beta = 0.5>(h, w, b)", [(32, 4), (32, 4)]),
]


@pytest.mark.parametrize(("nodes", "factors"), SHARED)
def test_a_shared_weight_is_split_once(nodes: str, factors: Any) -> None:
    given: dict[str, Any] = {"w": low_rank(32, 32)} | ({"b": normal(32)} if ", b)" in nodes else {})
    before = graph(f"g (float[N,32] x) => (float[N,32] y) {{ {nodes} }}", **given)
    after = assert_stays(before, matmul(), {"x": normal(64, 32)}, changed=2)
    assert shapes(after) == factors
    readers = [node for node in after.graph if node.op_type in ("MatMul", "Gemm")]
    assert [node.inputs[1] for node in readers[:2]] == [node.inputs[1] for node in readers[2:]]


def test_a_shared_kernel_is_split_once() -> None:
    """At places of its own and with pads of its own."""
    before = graph(
        "g (float[N,8,8,8] x) => (float[N,8,8,8] y) { h = Conv<pads = [1,1,1,1]>(x, w, b) "
        "y = Conv<pads = [2,2,2,2], dilations = [2,2]>(h, w, b) }",
        w=low_rank(8, 72, 2).reshape(8, 8, 3, 3),
        b=normal(8),
    )
    pass_ = SplitConv(rank=0.25, round_to=1, timed=False)
    after = assert_stays(before, pass_, {"x": normal(8, 8, 8, 8)}, changed=2)
    assert shapes(after) == [(2, 8, 3, 3), (8, 2, 1, 1)]
    _, report = prune(pass_, before)
    assert [note.node for note in report.changes] == ["h", "y"]


def test_a_shared_weight_is_fitted_to_all_that_read_it() -> None:
    """Inputs of the two nodes lie in two planes; with factors of that rank both are kept."""
    first, second = np.linalg.qr(RNG.normal(size=(32, 8)))[0].T.reshape(2, 4, 32)
    before = graph(
        "g (float[N,32] a, float[N,32] b) => (float[N,32] y, float[N,32] z) { y = MatMul(a, w) z = MatMul(b, w) }",
        w=normal(32, 32),
    )
    feeds = {
        name: (RNG.normal(size=(200, 4)) @ plane).astype(np.float32)
        for name, plane in zip("ab", (first, second), strict=True)
    }
    after, _ = prune(matmul(0.25), before, feeds)
    assert shapes(after) == [(32, 8), (8, 32)]
    for was, now in zip(outputs(before, feeds), outputs(after, feeds), strict=True):
        assert np.sum((was - now) ** 2) < 1e-4 * np.sum(was**2)


def test_a_shared_weight_is_paid_once_and_used_at_the_places_of_all() -> None:
    before = graph(
        "g (float[2,32] x, float[3,32] z) => (float[2,32] y, float[3,32] k) "
        "{ h = MatMul(x, w) y = MatMul(h, w) k = MatMul(z, w) }",
        w=low_rank(32, 32),
    )
    context = Context(Editor(before), Gate())
    (layer,) = splittable(matmul(), ["MatMul"], context, Log(matmul(), context))
    geometry = layer.geometry
    assert macs(geometry.stages, geometry) == count_macs(before).total
    assert parameters(geometry.stages, geometry) == 32 * 32


def test_a_shared_weight_takes_the_time_of_all_its_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what may be fused with them, which counts once."""
    before = graph(
        "g (float[N,32] x, float[N,32] z) => (float[N,32] y) { h = MatMul(x, w) k = MatMul(z, w) y = Add(h, k) }",
        w=low_rank(32, 32),
    )
    second = SimpleNamespace(seconds=1.0)
    monkeypatch.setattr(_timing, "kernel_times", lambda *_: None)
    monkeypatch.setattr(_timing, "by_place", lambda _, at: {place: [second] for place in at.values()})
    assert _timing.layer_seconds(before, lambda copied: {"h": list(copied.nodes(["MatMul"]))}, {}) == {"h": 3.0}


def test_a_shared_weight_in_a_function() -> None:
    """Constants of a function are nodes, which stand in front of all that read them."""
    numbers = ", ".join(map(str, low_rank(8, 8, 1).ravel()))
    before = parse(
        '<ir_version: 8, opset_import: ["" : 18, "own" : 1]> g (float[N,8] x) => (float[N,8] y) { y = own.f(x) } '
        '<opset_import: ["" : 18], domain: "own"> f (x) => (y) '
        f"{{ w = Constant<value = float[8,8] {{{numbers}}}>() h = MatMul(x, w) y = MatMul(h, w) }}"
    )
    after, report = prune(matmul(), before)
    assert report.changed == 2
    assert count_ops(after) == {"f": 1, "Constant": 2, "MatMul": 4}
    assert_same(before, after, {"x": normal(6, 8)})


def test_a_weight_that_is_shared_between_graphs_stays() -> None:
    before = graph(
        "g (float[N,32] x, bool c) => (float[N,32] y) { y = If (c) <"
        "then_branch = t () => (float[N,32] p) { p = MatMul(x, w) }, "
        "else_branch = e () => (float[N,32] q) { r = Relu(x) q = MatMul(r, w) }> }",
        w=low_rank(32, 32),
    )
    _, report = prune(matmul(), before)
    assert report.changed == 0
    assert "in another graph" in refusals(report)


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("h = MatMul(x, w) y = Add(h, w)", "another node"),
        ("h = MatMul(x, w) t = Transpose(w) y = MatMul(h, t)", "another node"),
        ("h = Gemm(x, w) y = Gemm<transB = 1>(h, w)", "another way"),
        ("h = MatMul(x, w) y = Gemm(h, w)", "another way"),
        ("h = MatMul(x, w) y = MatMul(w, h)", "another way"),
        ("y = Gemm(x, w, w)", "not a constant"),
    ],
)
def test_a_weight_that_is_read_in_another_way_stays(nodes: str, reason: str) -> None:
    before = graph(f"g (float[32,32] x) => (float[32,32] y) {{ {nodes} }}", w=low_rank(32, 32))
    after, report = prune(matmul(), before)
    assert report.changed == 0
    assert reason in refusals(report)
    assert list(weights(after)) == ["w"]


def test_a_weight_stays_where_one_of_its_nodes_may_not_change() -> None:
    before = graph("g (float[N,32] x) => (float[N,32] y) { h = MatMul(x, w) y = MatMul(h, w) }", w=low_rank(32, 32))
    _, report = prune(SplitMatmul(rank=0.125, round_to=1, timed=False, exclude=("y",)), before)
    assert report.changed == 0
    assert "h: its weight is shared with another node" in refusals(report)


# -- ConvTranspose ---------------------------------------------------------------------------------------------

TRANSPOSED = [
    ("", (16, 8, 3), (9,)),
    ("<strides = [2,2], pads = [1,0,1,2], output_padding = [1,0]>", (16, 8, 3, 4), (7, 6)),
    ("<strides = [2,3], dilations = [2,1], output_shape = [14,20]>", (16, 12, 3, 3), (6, 6)),
    ('<strides = [2,2], auto_pad = "SAME_UPPER">', (16, 8, 2, 2), (5, 5)),
    ("<strides = [2,2], kernel_shape = [2,2]>", (16, 8, 2, 2), (5, 5)),
]


@pytest.mark.parametrize(("attributes", "shape", "size"), TRANSPOSED)
def test_a_transposed_convolution_of_low_rank_stays_the_same(attributes: str, shape: Any, size: Any) -> None:
    c, n, *kernel = shape
    dims, out = ",".join(map(str, size)), ",".join("ab"[: len(size)])
    before = graph(
        f"g (float[N,{c},{dims}] x) => (float[N,{n},{out}] y) {{ y = ConvTranspose{attributes}(x, w, b) }}",
        w=low_rank(c, n * int(np.prod(kernel))).reshape(shape),
        b=normal(n),
    )
    after = assert_stays(before, SplitConv(rank=0.25, round_to=1, timed=False), {"x": normal(16, c, *size)})
    assert ops(after) == ["Conv", "ConvTranspose"]
    assert shapes(after) == [(4, c, *[1] * len(kernel)), (4, n, *kernel)]


def test_a_transposed_convolution_behind_a_convolution() -> None:
    """The output of the one and what the other reads are one tensor."""
    before = graph(
        "g (float[N,8,5,5] x) => (float[N,8,a,b] y) { h = Conv(x, v, c) y = ConvTranspose<strides = [2,2]>(h, w) }",
        v=low_rank(16, 72).reshape(16, 8, 3, 3),
        c=normal(16),
        w=low_rank(16, 32).reshape(16, 8, 2, 2),
    )
    after = assert_stays(before, SplitConv(rank=0.25, round_to=1, timed=False), {"x": normal(64, 8, 5, 5)}, changed=2)
    assert ops(after) == ["Conv", "Conv", "Conv", "ConvTranspose"]


def test_a_transposed_convolution_is_fitted_to_its_inputs() -> None:
    basis = np.linalg.qr(RNG.normal(size=(16, 4)))[0]
    x = np.einsum("cr,nrl->ncl", basis, RNG.normal(size=(100, 4, 9))).astype(np.float32)
    before = graph(
        "g (float[N,16,9] x) => (float[N,16,a] y) { y = ConvTranspose<strides = [2]>(x, w) }", w=normal(16, 16, 3)
    )
    after, _ = prune(SplitConv(rank=0.25, round_to=1, timed=False), before, {"x": x})
    was, now = (outputs(model, {"x": x})[0] for model in (before, after))
    assert np.sum((was - now) ** 2) < 1e-4 * np.sum(was**2)


def test_a_transposed_convolution_in_groups_stays() -> None:
    before = graph(
        "g (float[N,16,5] x) => (float[N,16,a] y) { y = ConvTranspose<group = 2>(x, w) }", w=normal(16, 8, 3)
    )
    _, report = prune(SplitConv(rank=0.25), before)
    assert report.changed == 0
    assert "in groups" in refusals(report)


# -- constants on the left, and stacks -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(32, 6), (3, 32, 6), (2, 3, 32, 6), (32,)])
def test_a_product_with_a_constant_on_the_left(shape: tuple[int, ...]) -> None:
    dims, out = ",".join(map(str, shape)), ",".join(map(str, [48 if size == 32 else size for size in shape]))
    before = graph(f"g (float[{dims}] x) => (float[{out}] y) {{ y = MatMul(w, x) }}", w=low_rank(48, 32))
    before.graph[0].name = "layer"
    after, report = prune(matmul(), before)
    assert report.changed == 1
    assert [node.name for node in after.graph] == ["layer_0", "layer"]
    assert shapes(after) == [(4, 32), (48, 4)]
    assert_same(before, after, {"x": normal(*shape)})


def test_a_constant_on_the_left_is_fitted_to_the_columns() -> None:
    basis = np.linalg.qr(RNG.normal(size=(32, 4)))[0]
    x = (basis @ RNG.normal(size=(100, 4, 6))).astype(np.float32)
    before = graph("g (float[N,32,6] x) => (float[N,32,6] y) { y = MatMul(w, x) }", w=normal(32, 32))
    after, _ = prune(matmul(), before, {"x": x})
    was, now = (outputs(model, {"x": x})[0] for model in (before, after))
    assert shapes(after) == [(4, 32), (32, 4)]
    assert np.sum((was - now) ** 2) < 1e-4 * np.sum(was**2)


STACKS = [
    ((3, 32, 48), ("N", 3, 5, 32)),
    ((3, 32, 48), ("N", 1, 5, 32)),
    ((2, 3, 32, 48), ("N", 2, 3, 5, 32)),
    ((1, 3, 32, 48), ("N", 3, 5, 32)),
    ((1, 32, 48), ("N", 5, 32)),
    ((3, 32, 48), ("N", 32)),
]


@pytest.mark.parametrize(("shape", "dims"), STACKS)
def test_a_stack_of_low_rank_stays_the_same(shape: tuple[int, ...], dims: tuple[Any, ...]) -> None:
    stack = np.stack([low_rank(32, 48) for _ in range(int(np.prod(shape[:-2])))]).reshape(shape)
    size = (16, *dims[1:])
    out = ["N", *(str(d) for d in (normal(*size) @ stack).shape[1:])] if len(dims) > 2 else ["3", "N", "48"]
    before = graph(
        f"g (float[{','.join(map(str, dims))}] x) => (float[{','.join(out)}] y) {{ y = MatMul(x, w) }}", w=stack
    )
    after = assert_stays(before, matmul(), {"x": normal(*size)})
    assert ops(after) == ["MatMul", "MatMul"]
    assert shapes(after) == [(*shape[:-1], 4), (*shape[:-2], 4, 48)]


@pytest.mark.parametrize(("shape", "dims"), STACKS)
def test_rows_of_a_stack_times_their_matrices_are_its_product(shape: Any, dims: Any) -> None:
    x, stack = normal(4, *dims[1:]), normal(*shape)
    product = StackProduct(shape)
    g, k, n = product.size
    assert (g, k, n) == (np.prod(shape[:-2]), 32, 48)
    rows = product.rows(x, np.arange(product.count(x)))
    made = rows @ product.matrix(stack)
    np.testing.assert_allclose(np.sort(made.ravel()), np.sort((x @ stack).ravel()), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(product.mean_row(x), rows.mean(axis=1), atol=1e-5)
    np.testing.assert_array_equal(product.weight(product.matrix(stack)), stack)


def test_rows_of_a_constant_on_the_left_are_columns() -> None:
    x, weight = normal(2, 5, 7), normal(3, 5)
    product = LeftProduct((3, 5))
    rows = product.rows(x, np.arange(product.count(x)))
    made = (rows @ product.matrix(weight))[0].reshape(2, 7, 3).swapaxes(1, 2)
    np.testing.assert_allclose(made, weight @ x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(product.mean_row(x), rows.mean(axis=1), atol=1e-6)


def test_each_matrix_of_a_stack_is_fitted_to_its_own_inputs() -> None:
    planes = np.stack([np.linalg.qr(RNG.normal(size=(32, 4)))[0].T for _ in range(3)])
    x = (RNG.normal(size=(100, 3, 5, 4)) @ planes).astype(np.float32)
    before = graph("g (float[N,3,5,32] x) => (float[N,3,5,32] y) { y = MatMul(x, w) }", w=normal(3, 32, 32))
    after, _ = prune(matmul(), before, {"x": x})
    was, now = (outputs(model, {"x": x})[0] for model in (before, after))
    assert np.sum((was - now) ** 2) < 1e-4 * np.sum(was**2)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("g (float[N,32] x) => (y) { y = MatMul(x, w) }", (32,)),
        ("g (float[3,32,5] x) => (y) { y = MatMul(w, x) }", (3, 8, 32)),
        ("g (float[N,32] x) => (y) { y = MatMul(x, w) }", (2, 1, 2, 32, 32)),
    ],
)
def test_other_constants_stay(text: str, shape: tuple[int, ...]) -> None:
    before = graph(text, w=normal(*shape))
    with pytest.raises(Refuse, match="not a constant matrix"):
        refit_of(before.graph[0], Editor(before))


def test_a_stack_whose_moments_take_too_much_memory_stays() -> None:
    before = graph("g (float[N,3,5,4000] x) => (float[N,3,5,2] y) { y = MatMul(x, w) }", w=normal(3, 4000, 2))
    _, report = prune(matmul(), before)
    assert report.changed == 0
    assert "4000 weights in each of 3 groups" in refusals(report)


# -- Attention -------------------------------------------------------------------------------------------------

CONTRIB = ', "com.microsoft" : 1'


@pytest.mark.parametrize(
    ("attributes", "inputs", "out"),
    [("", "x, w, b", 32), ("", "x, w, b, m", 32), (", qkv_hidden_sizes = [32,32,16]", "x, w, b", 16)],
)
def test_an_attention_of_low_rank_stays_the_same(attributes: str, inputs: str, out: int) -> None:
    before = graph(
        f"g (float[N,5,32] x) => (float[N,5,{out}] y) "
        f"{{ y = com.microsoft.Attention<num_heads = 2{attributes}>({inputs}) }}",
        extra=CONTRIB,
        w=low_rank(32, 64 + out),
        b=normal(64 + out),
        m=np.full(16, 3, np.int32),
    )
    after = assert_stays(before, matmul(), {"x": normal(16, 5, 32)})
    assert ops(after) == ["MatMul", "Attention"]
    assert shapes(after) == [(32, 4), (4, 64 + out)]
    last = after.graph[1]
    assert len(last.inputs) == len(before.graph[0].inputs)


@pytest.mark.parametrize("shared", [False, True])
def test_an_attention_is_fitted_to_its_inputs(shared: bool) -> None:
    """These lie in a plane that does not go through zero, so it is the bias that makes up for the rest."""
    basis = np.linalg.qr(RNG.normal(size=(32, 5)))[0].T
    x = (RNG.normal(size=(100, 5, 4)) @ basis[:4] + 3 * basis[4]).astype(np.float32)
    before = graph(
        "g (float[N,5,32] x) => (float[N,5,32] y, float[96] c) "
        f"{{ y = com.microsoft.Attention<num_heads = 2>(x, w, b) c = Neg({'b' if shared else 'd'}) }}",
        extra=CONTRIB,
        w=normal(32, 96),
        b=normal(96),
        d=normal(96),
    )
    after, _ = prune(matmul(5 / 32 if shared else 4 / 32), before, {"x": x})
    was, now = (outputs(model, {"x": x}) for model in (before, after))
    assert np.sum((was[0] - now[0]) ** 2) < 1e-4 * np.sum(was[0] ** 2)
    np.testing.assert_array_equal(was[1], now[1])


def test_an_attention_without_constant_weights_stays() -> None:
    before = graph(
        "g (float[N,5,32] x, float[32,96] w) => (float[N,5,32] y) "
        "{ y = com.microsoft.Attention<num_heads = 2>(x, w, b) }",
        extra=CONTRIB,
        b=normal(96),
    )
    _, report = prune(matmul(), before)
    assert "not a constant matrix" in refusals(report)
