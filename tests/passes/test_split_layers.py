"""``split-matmul`` and ``split-conv``: what is split, how far, with which weights, and every refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.errors import OptionError
from onnxopt.macs import count_macs
from onnxopt.passes.lowrank import _trials
from onnxopt.passes.lowrank.separate_conv import SeparateConv
from onnxopt.passes.lowrank.split_conv import SplitConv
from onnxopt.passes.lowrank.split_matmul import SplitMatmul
from tests.pruning import prune, refusals
from tests.support import graph, ops, outputs

RNG = np.random.default_rng(3)
Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def _every_split_pays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # no choices of before
    clock(monkeypatch, 1.0, 0.5)


def clock(monkeypatch: pytest.MonkeyPatch, whole: float, split: float) -> None:
    """Let each layer take so long."""

    def seconds(model: ir.Model, write: Any, feeds: object) -> dict[str, float]:
        from onnxopt.graph import Editor

        nodes = write(Editor(model).copy())
        return {key: split if len(each) > 1 else whole for key, each in nodes.items()}

    monkeypatch.setattr(_trials, "layer_seconds", seconds)


def low_rank(rows: int, columns: int, rank: int) -> Array:
    return (RNG.normal(size=(rows, rank)) @ RNG.normal(size=(rank, columns))).astype(np.float32)


def weights(model: ir.Model) -> dict[str, Array]:
    return {name: v.const_value.numpy() for name, v in model.graph.initializers.items() if v.const_value is not None}


def product(weight: Array, **more: Any) -> ir.Model:
    k, n = weight.shape
    return graph(f"g (float[N,{k}] x) => (float[N,{n}] y) {{ y = MatMul(x, w) }}", w=weight, **more)


# -- what comes out --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "shape", "bias"),
    [
        ("y = MatMul(x, w)", (48, 32), None),
        ("h = MatMul(x, w) y = Add(h, b)", (48, 32), (32,)),
        ("y = Gemm(x, w, b)", (48, 32), (32,)),
        ("y = Gemm<transB = 1, beta = 0.5>(x, w, b)", (32, 48), (32,)),
    ],
)
def test_a_product_of_low_rank_stays_the_same(nodes: str, shape: tuple[int, int], bias: Any) -> None:
    given = {"w": low_rank(*shape, 8)} | ({} if bias is None else {"b": RNG.normal(size=bias).astype(np.float32)})
    before = graph(f"g (float[N,48] x) => (float[N,32] y) {{ {nodes} }}", **given)
    x = RNG.normal(size=(64, 48)).astype(np.float32)
    for data in (None, {"x": x}):
        after, report = prune(SplitMatmul(rank=0.25), before, data)
        assert report.changed == 1
        assert ops(after)[:2] == [
            "MatMul",
            nodes.split("(", maxsplit=1)[0].split("<", maxsplit=1)[0].rsplit(maxsplit=1)[-1],
        ]
        assert {w.shape for w in weights(after).values() if w.ndim == 2} == {
            (48, 8),
            (8, 32)[:: 1 - 2 * ("transB" in nodes)],
        }
        np.testing.assert_allclose(outputs(after, {"x": x})[0], outputs(before, {"x": x})[0], rtol=1e-3, atol=2e-4)


CONVS = [
    ("", (24, 16, 3, 3), (16, 9, 9)),
    ("<pads = [1,1,1,1]>", (24, 16, 3, 3), (16, 9, 9)),
    ("<strides = [2,1], pads = [0,2,1,0], dilations = [1,2]>", (24, 16, 3, 3), (16, 9, 12)),
    ("<group = 2, pads = [1,1,1,1]>", (48, 16, 3, 3), (32, 9, 9)),
    ('<auto_pad = "SAME_UPPER", strides = [2,2]>', (24, 16, 3, 3), (16, 9, 8)),
    ("<strides = [2], pads = [2,1]>", (24, 16, 5), (16, 21)),
    ("<strides = [1,2,1]>", (24, 16, 2, 3, 2), (16, 5, 7, 4)),
    ("", (32, 24, 1, 1), (24, 5, 5)),
]


@pytest.mark.parametrize(("attributes", "shape", "size"), CONVS)
def test_a_convolution_of_low_rank_stays_the_same(attributes: str, shape: Any, size: Any) -> None:
    """Strided, dilated, padded to one side, in groups, over one to three axes."""
    groups = 2 if "group" in attributes else 1
    kernel = np.concatenate(
        [low_rank(shape[0] // groups, int(np.prod(shape[1:])), 4).reshape(-1, *shape[1:]) for _ in range(groups)]
    )
    dims = ",".join(map(str, size))
    out = ",".join(["N", *"abcd"[: len(size)]])
    before = graph(
        f"g (float[N,{dims}] x) => (float[{out}] y) {{ y = Conv{attributes}(x, w, b) }}",
        w=kernel,
        b=RNG.normal(size=shape[0]).astype(np.float32),
    )
    x = RNG.normal(size=(4, *size)).astype(np.float32)
    after, report = prune(SplitConv(rank=4 / min(shape[0] // groups, np.prod(shape[1:])), round_to=1), before)
    assert report.changed == 1
    assert ops(after) == ["Conv", "Conv"]
    np.testing.assert_allclose(outputs(after, {"x": x})[0], outputs(before, {"x": x})[0], rtol=1e-3, atol=1e-3)
    share = next(fact["macs"] for fact in report.facts if "macs" in fact)
    assert share == pytest.approx(count_macs(after).total / count_macs(before).total)


def test_names_and_metadata_stay() -> None:
    before = product(low_rank(48, 32, 8))
    node = before.graph[0]
    node.name, node.doc_string = "layer", "why"
    after, _ = prune(SplitMatmul(rank=0.25), before)
    first, last = list(after.graph)
    assert (last.name, last.doc_string, first.name, last.outputs[0].name) == ("layer", "why", "layer_0", "y")


def test_every_method_gives_back_what_it_can_write() -> None:
    """A kernel of each structure comes back in fewer weights, whichever form is taken for it."""
    c, n = 16, 32
    spatial = np.einsum("nrk,rcl->nclk", RNG.normal(size=(n, 4, 3)), RNG.normal(size=(4, c, 3)))
    inner = np.einsum("nrkl,rc->nckl", RNG.normal(size=(n, 4, 3, 3)), RNG.normal(size=(4, c)))
    for kernel in (spatial, inner):
        before = graph(
            f"g (float[N,{c},8,8] x) => (float[N,{n},8,8] y) {{ y = Conv<pads = [1,1,1,1]>(x, w) }}",
            w=kernel.astype(np.float32),
        )
        x = RNG.normal(size=(4, c, 8, 8)).astype(np.float32)
        after, _ = prune(SplitConv(ratio=0.6, round_to=4), before)
        np.testing.assert_allclose(outputs(after, {"x": x})[0], outputs(before, {"x": x})[0], rtol=1e-3, atol=5e-3)


@pytest.mark.parametrize("options", [{"rank": 0.12}, {"error": 0.01}, {"energy": 0.99}, {"ratio": 0.8}])
def test_separates(options: dict[str, float]) -> None:
    kernel = RNG.normal(size=(64, 8, 1, 1)) * RNG.normal(size=(1, 8, 3, 3))
    before = graph(
        "g (float[N,8,9,9] x) => (float[N,64,5,5] y) { y = Conv<pads = [1,1,1,1], strides = [2,2]>(x, w) }",
        w=kernel.astype(np.float32),
    )
    x = RNG.normal(size=(16, 8, 9, 9)).astype(np.float32)
    after, report = prune(SeparateConv(**options), before, {"x": x} if "error" in options else None)  # type: ignore[arg-type]
    assert ops(after) == ["Conv", "Conv"]
    assert "rank 1:" in report.changes[0].text
    assert {w.shape for w in weights(after).values() if w.ndim > 1} == {(8, 1, 3, 3), (64, 8, 1, 1)}
    np.testing.assert_allclose(outputs(after, {"x": x})[0], outputs(before, {"x": x})[0], rtol=1e-3, atol=2e-3)


# -- how far ---------------------------------------------------------------------------------------------------


def test_without_data_no_matrix_of_the_rank_is_nearer() -> None:
    weight = RNG.normal(size=(64, 48)).astype(np.float32)
    after, _ = prune(SplitMatmul(rank=0.25, round_to=1), product(weight))
    a, b = weights(after).values()
    singular = np.linalg.svd(weight.astype(np.float64), compute_uv=False)
    assert a.shape == (64, 12)
    assert np.linalg.norm(weight - a.astype(np.float64) @ b) == pytest.approx(np.linalg.norm(singular[12:]), rel=1e-5)


@pytest.mark.parametrize("energy", [0.5, 0.9])
def test_energy_takes_the_least_rank(energy: float) -> None:
    weight = low_rank(64, 64, 16) + 0.05 * RNG.normal(size=(64, 64)).astype(np.float32)
    after, _ = prune(SplitMatmul(energy=energy, round_to=1), product(weight))
    squares = np.linalg.svd(weight.astype(np.float64), compute_uv=False) ** 2
    least = int(np.argmax(np.cumsum(squares) >= energy * squares.sum())) + 1
    assert weights(after)["w_0"].shape == (64, least)


def test_the_error_of_the_output_is_kept() -> None:
    basis = RNG.normal(size=(6, 64))
    x = (RNG.normal(size=(800, 6)) @ basis + 0.1 * RNG.normal(size=(800, 64))).astype(np.float32)
    before = product(RNG.normal(size=(64, 64)).astype(np.float32))
    after, report = prune(SplitMatmul(error=0.02, round_to=1), before, {"x": x})
    y, z = (outputs(model, {"x": x})[0].astype(np.float64) for model in (before, after))
    assert report.changed == 1
    assert np.sum((y - z) ** 2) / np.sum((y - y.mean(0)) ** 2) < 0.025


def test_data_tell_more_than_weights() -> None:
    """Inputs lie near a plane that the weights do not know of."""
    basis = RNG.normal(size=(8, 64))
    x = (RNG.normal(size=(800, 8)) @ basis + 0.05 * RNG.normal(size=(800, 64))).astype(np.float32)
    before = product(RNG.normal(size=(64, 64)).astype(np.float32))
    y = outputs(before, {"x": x})[0].astype(np.float64)

    def error(data: Any) -> float:
        after, _ = prune(SplitMatmul(rank=0.25, round_to=1), before, data)
        return float(np.sum((y - outputs(after, {"x": x})[0]) ** 2))

    assert error({"x": x}) < 0.05 * error(None)


@pytest.mark.parametrize("of", ["parameters", "macs"])
def test_a_budget_goes_where_it_costs_least(of: Any) -> None:
    """One of two layers has hardly any rank; the other all."""
    before = graph(
        "g (float[N,64] x) => (float[N,64] y) { h = MatMul(x, a) y = MatMul(h, b) }",
        a=low_rank(64, 64, 8) + 0.01 * RNG.normal(size=(64, 64)).astype(np.float32),
        b=np.linalg.qr(RNG.normal(size=(64, 64)))[0].astype(np.float32),
    )
    after, report = prune(SplitMatmul(ratio=0.3, of=of), before)
    assert [note.node for note in report.changes] == ["h"]
    assert sum(w.size for w in weights(after).values()) <= 0.7 * 2 * 64 * 64


@pytest.mark.parametrize("decibels", [15.0, 30.0, 150.0])
def test_outputs_keep_so_many_decibels(decibels: float) -> None:
    """As much is saved as they allow."""
    basis = RNG.normal(size=(64, 64)) * np.geomspace(1, 1e-5, 64)[:, None]
    x = (RNG.normal(size=(1000, 64)) @ basis).astype(np.float32)
    before = graph(
        "g (float[N,64] x) => (float[N,64] y) { h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }",
        a=RNG.normal(size=(64, 64)).astype(np.float32),
        b=RNG.normal(size=(64, 64)).astype(np.float32),
    )
    after, report = prune(SplitMatmul(min_sqnr=decibels, round_to=1), before, {"x": x})
    y, z = (outputs(model, {"x": x})[0].astype(np.float64) for model in (before, after))
    assert bool(report.changed) == (decibels < 150)
    if report.changed:
        assert 10 * np.log10(np.sum(y**2) / np.sum((y - z) ** 2)) > decibels - 0.5


def test_a_share_of_the_time() -> None:
    """The clock says that a split layer takes half of the time, whatever its rank; so one of two has to go."""
    before = graph(
        "g (float[N,64] x) => (float[N,64] y) { h = MatMul(x, a) y = MatMul(h, b) }",
        a=low_rank(64, 64, 8) + 0.01 * RNG.normal(size=(64, 64)).astype(np.float32),
        b=np.linalg.qr(RNG.normal(size=(64, 64)))[0].astype(np.float32),
    )
    _, report = prune(SplitMatmul(ratio=0.2, of="latency"), before)
    assert [note.node for note in report.changes] == ["h"]
    with pytest.raises(OptionError, match=r"of latency cannot be reached: at most 50\.0%"):
        prune(SplitMatmul(ratio=0.6, of="latency"), before)


def test_later_layers_make_up_for_earlier_ones() -> None:
    x = RNG.normal(size=(2000, 64)).astype(np.float32)
    before = graph(
        "g (float[N,64] x) => (float[N,64] y) { h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }",
        a=RNG.normal(size=(64, 64)).astype(np.float32),
        b=RNG.normal(size=(64, 64)).astype(np.float32),
    )
    y = outputs(before, {"x": x})[0].astype(np.float64)
    both, _ = prune(SplitMatmul(rank=0.25, round_to=1), before, {"x": x})
    apart, _ = prune(SplitMatmul(rank=0.25, round_to=1, include=("y",)), before, {"x": x})
    apart, _ = prune(SplitMatmul(rank=0.25, round_to=1, include=("h",)), apart, {"x": x})

    def error(model: ir.Model) -> float:
        return float(np.sum((y - outputs(model, {"x": x})[0]) ** 2))

    assert error(both) < 0.95 * error(apart)


# -- refusals --------------------------------------------------------------------------------------------------


def test_a_layer_that_is_not_faster_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    before = product(low_rank(64, 64, 8))
    again = []
    for whole, split in ((1.0, 0.99), (1.0, 0.5)):
        clock(monkeypatch, whole, split)
        again.append(prune(SplitMatmul(rank=0.25), before)[1])
    report, second = again
    assert second == report, "a choice is made once, whatever the clock says the second time"
    assert report.changed == 0
    assert "would take 990000 µs instead of 1000000" in refusals(report)
    _, report = prune(SplitMatmul(rank=0.25, timed=False), before)
    assert report.changed == 1
    clock(monkeypatch, 1.0, 0.99)
    _, report = prune(SplitMatmul(ratio=0.3), before)
    assert report.changed == 0


def test_a_layer_too_small_for_the_block_says_so() -> None:
    _, report = prune(SplitMatmul(ratio=0.3), product(low_rank(12, 12, 2)))
    assert "no rank that is a multiple of 8 saves anything" in refusals(report)


@pytest.mark.parametrize(
    ("model", "pass_", "reason"),
    [
        (product(low_rank(64, 64, 8)), SplitMatmul(rank=0.9), "saves nothing"),
        (
            graph("g (float[N,8,5] x) => (float[N,8,3] y) { y = Conv<group = 8>(x, w) }", w=np.ones((8, 1, 3), "f")),
            SplitConv(rank=0.5),
            "depthwise",
        ),
        (
            graph("g (float[N,8] x, float[8,8] w) => (float[N,8] y) { y = MatMul(x, w) }"),
            SplitMatmul(rank=0.5),
            "not a constant",
        ),
        (product(np.full((32, 32), np.nan, np.float32)), SplitMatmul(rank=0.25), "not finite"),
        (
            graph(
                "g (float[N,32] x) => (float[N,32] y) { h = MatMul(x, w) y = Add(h, w) }",
                w=low_rank(32, 32, 2),
            ),
            SplitMatmul(rank=0.25),
            "shared",
        ),
        (
            graph(
                "g (float[N,32] x) => (float[N,32] y) { v = DequantizeLinear(w, s) y = MatMul(x, v) }",
                w=RNG.integers(-9, 9, (32, 32)).astype(np.int8),
                s=np.float32(0.1),
            ),
            SplitMatmul(rank=0.25),
            "quantized",
        ),
        (graph("g (float[N,8] x) => (float[N,8] y) { y = Relu(x) }"), SplitMatmul(), "no layer"),
    ],
)
def test_refuses(model: ir.Model, pass_: Any, reason: str) -> None:
    _, report = prune(pass_, model)
    assert report.changed == 0
    assert reason in refusals(report)


def test_a_budget_that_cannot_be_met_says_what_can() -> None:
    with pytest.raises(OptionError, match="at most"):
        prune(SplitMatmul(ratio=0.99), product(low_rank(64, 64, 8)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"ratio": 0.0}, {"ratio": 1.0}, {"energy": 1.1}, {"error": 1.0}, {"rank": 0.0}, {"of": "nodes"},
        {"energy": 0.9, "rank": 0.5}, {"round_to": -1}, {"seed": -1},
    ],
)  # fmt: skip
def test_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        SplitMatmul(**wrong)


@pytest.mark.parametrize("options", [{"error": 0.1}, {"min_sqnr": 20.0}])
def test_errors_need_data(options: dict[str, float]) -> None:
    with pytest.raises(OptionError, match="data"):
        prune(SplitMatmul(**options), product(low_rank(64, 64, 8)))  # type: ignore[arg-type]


def test_inputs_that_show_few_directions_leave_weights_finite() -> None:
    x = np.repeat(RNG.normal(size=(1, 64)), 100, axis=0).astype(np.float32)
    before = product(RNG.normal(size=(64, 64)).astype(np.float32))
    after, _ = prune(SplitMatmul(rank=0.25, round_to=1), before, {"x": x})
    assert all(np.abs(w).max() < 100 for w in weights(after).values())


def test_the_same_twice() -> None:
    x = RNG.normal(size=(64, 64)).astype(np.float32)
    before = product(RNG.normal(size=(64, 64)).astype(np.float32))
    first, second = (weights(prune(SplitMatmul(ratio=0.3), before, {"x": x})[0]) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)
