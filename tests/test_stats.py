"""Statistics against numpy on all activations, as ONNX Runtime computes them with its optimizations off."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxopt._cache
import onnxopt.stats
from onnxopt._accumulate import HistogramOf
from onnxopt.data import load_data
from onnxopt.errors import DataError
from onnxopt.model import from_proto, load, save, to_proto
from onnxopt.stats import BINS, Part, Statistics
from tests.support import graph, outputs

Array = np.ndarray[Any, Any]

RNG = np.random.default_rng(0)
WEIGHTS: dict[str, Any] = {
    "w": RNG.standard_normal((5, 3, 3, 3)).astype(np.float32),
    "m": RNG.standard_normal((6, 4)).astype(np.float32),
}
NET = """g (float[N, 3, 8, 8] x) => (float[N, 5, 6, 4] y) {
    c = Conv(x, w) r = Relu(c) s = Sigmoid(r) h = Mul(c, s) [last] f = MatMul(h, m) y = Softmax(f) n = Shape(f)
}"""
INNER = ["x", "c", "r", "s", "h", "f", "y"]
X = RNG.standard_normal((37, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def net() -> ir.Model:
    return graph(NET, **WEIGHTS)


def statistics(model: ir.Model, x: Any = X, **options: Any) -> Statistics:
    return Statistics(model, load_data({"x": x}, model), **({"cache": None} | options))


def activations(model: ir.Model, x: Array = X) -> dict[str, Array]:
    """The oracle: every tensor over all samples."""
    proto = to_proto(model)
    names = [name for node in proto.graph.node for name in node.output]
    del proto.graph.output[:]
    for name in names:
        proto.graph.output.add(name=name)
    return {"x": x} | dict(zip(names, outputs(from_proto(proto), {"x": x}), strict=True))


@pytest.mark.parametrize("memory", [1 << 30, 200_000, 1])
def test_ranges_are_those_of_all_activations(net: ir.Model, memory: int) -> None:
    found = statistics(net, memory=memory).ranges([*INNER, "n"])
    assert list(found) == INNER, "integers are left out"
    for name, array in activations(net).items():
        if name == "n":
            continue
        batches = [array[start : start + 16] for start in range(0, 37, 16)]
        wanted = array.min(), array.max(), np.mean([b.min() for b in batches]), np.mean([b.max() for b in batches])
        range_ = found[name]
        got = range_.low, range_.high, range_.mean_low, range_.mean_high
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
        assert range_.finite


def test_small_memory_takes_more_parts_and_smaller_batches(net: ir.Model) -> None:
    (part,) = statistics(net).parts([*INNER, "n"])
    assert part.names == tuple(INNER), "integers are left out"
    assert part.rows is not None
    assert part.rows >= 16
    few = statistics(net, memory=12 * 5 * 36 * 4 * 4).parts(["c", "r", "s", "h"])
    assert few == [Part(("c", "r", "s", "h"), 4)]
    one = statistics(net, memory=1).parts(["c", "r"])
    assert one == [Part(("c",), 1), Part(("r",), 1)]
    bulky = statistics(net, memory=1 << 20).parts(["c", "r"], {"c": 1 << 18, "r": 1 << 18})
    assert [part.names for part in bulky] == [("c",), ("r",)]


@pytest.mark.parametrize("memory", [1 << 30, 1])
def test_histograms_are_those_of_numpy(net: ir.Model, memory: int) -> None:
    found = statistics(net, memory=memory).histograms(INNER)
    for name in INNER:
        array, histogram = activations(net)[name].astype(np.float64), found[name]
        assert histogram.counts.sum() == array.size
        assert BINS < histogram.counts.size <= 2 * BINS
        assert (histogram.edges[0], histogram.edges[-1]) == (histogram.low, histogram.high)
        np.testing.assert_allclose((histogram.low, histogram.high), (array.min(), array.max()), rtol=1e-5, atol=1e-6)
        wanted = np.histogram(np.clip(array, histogram.low, histogram.high), histogram.edges)[0]
        moved = np.abs(np.cumsum(wanted) - np.cumsum(histogram.counts))  # across each edge, by rounding
        assert moved.max() <= 3, name


def test_channels_along_any_axis(net: ir.Model) -> None:
    found = statistics(net).channels({"x": 1, "c": 1, "f": -1, "r": 9})
    assert list(found) == ["x", "c", "f"], "there is no axis 9"
    for name, axes in (("x", (0, 2, 3)), ("c", (0, 2, 3)), ("f", (0, 1, 2))):
        array = activations(net)[name].astype(np.float64)
        np.testing.assert_allclose(found[name].low, array.min(axes), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[name].high, array.max(axes), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[name].mean, array.mean(axes), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("memory", [1 << 30, 1])
def test_gram_matrices_are_those_of_float64(net: ir.Model, memory: int) -> None:
    found = dict(statistics(net, memory=memory).gram(["h", "f"]))
    for name in ("h", "f"):
        array = activations(net)[name].astype(np.float64)
        matrix = array.reshape(-1, array.shape[-1])
        assert found[name].rows == len(matrix)
        np.testing.assert_allclose(found[name].xtx, matrix.T @ matrix, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("memory", [1 << 30, 1])
def test_rows_are_drawn_from_all_samples(net: ir.Model, memory: int) -> None:
    numbers = np.repeat(np.arange(37, dtype=np.float32), 192).reshape(X.shape) + np.arange(8, dtype=np.float32) / 10
    found = statistics(net, numbers, memory=memory).rows(["x", "f"], 200)
    assert (found["x"].shape, found["f"].shape) == ((200, 8), (200, 4))
    np.testing.assert_allclose(found["x"] - found["x"][:, :1], np.broadcast_to(np.arange(8) / 10, (200, 8)), atol=1e-4)
    drawn = found["x"][:, 0]
    assert (np.diff(drawn) >= 0).all()
    assert len(set(drawn.tolist())) > 30
    np.testing.assert_array_equal(statistics(net, numbers).rows(["x"], 200)["x"], found["x"])
    assert statistics(net, numbers).rows(["x"], 200, seed=1)["x"][:, 0].tolist() != drawn.tolist()
    np.testing.assert_array_equal(statistics(net, numbers).rows(["x"], 1 << 20)["x"], numbers.reshape(-1, 8))


def test_arrays_come_batch_by_batch(net: ir.Model) -> None:
    found = list(statistics(net).arrays(["h", "x", "n"]))
    assert [{name: len(array) for name, array in each.items()} for each in found] == [
        {"x": count, "h": count} for count in (16, 16, 5)
    ]
    np.testing.assert_allclose(np.concatenate([a["h"] for a in found]), activations(net)["h"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.concatenate([a["x"] for a in found]), X)
    assert [len(each["h"]) for each in statistics(net).arrays(["h"], 7)] == [7, 7, 2, 7, 7, 2, 5]


def test_a_histogram_gives_the_range_and_parts_of_the_data_have_their_own(net: ir.Model) -> None:
    whole = statistics(net)
    assert list(whole.histograms(INNER)) == INNER
    assert whole.ranges(INNER) == statistics(net).ranges(INNER)
    first, second = load_data({"x": X}, net).split(0.5)
    parts = [whole.over(first), whole.over(second)]
    counts = [part.histograms(["c"])["c"].counts.sum() for part in parts]
    assert sum(counts) == activations(net)["c"].size
    for part, data in zip(parts, (first, second), strict=True):
        assert part.ranges(["c"]) == Statistics(net, data, cache=None).ranges(["c"])


def test_equal_runs_give_equal_bits(net: ir.Model) -> None:
    first, second = statistics(net), statistics(graph(NET, **WEIGHTS))
    assert first.ranges(INNER) == second.ranges(INNER)
    for name, one in first.histograms(INNER).items():
        np.testing.assert_array_equal(one.counts, second.histograms(INNER)[name].counts)
    np.testing.assert_array_equal(first.channels({"c": 1})["c"].mean, second.channels({"c": 1})["c"].mean)
    np.testing.assert_array_equal(dict(first.gram(["f"]))["f"].xtx, dict(second.gram(["f"]))["f"].xtx)


def test_the_model_may_be_edited_meanwhile(net: ir.Model) -> None:
    found = statistics(net)
    net.graph.initializers["m"].const_value = ir.tensor(np.zeros((6, 4), np.float32))
    assert found.ranges(["f"])["f"].high > 0
    assert statistics(net).ranges(["f"])["f"].high == 0


# -- odd tensors -----------------------------------------------------------------------------------------


def test_scalars_empty_and_constant_tensors() -> None:
    model = graph(
        "g (float[N, 4] x) => (float[N, 4] y) {"
        " sum = ReduceSum<keepdims = 0>(x) zero = Constant<value = int64[1] {0}>() none = Slice(x, zero, zero)"
        " flat = Mul(x, nought) y = Add(x, sum) z = Identity(none) f = Identity(flat) }",
        nought=np.float32(0),
    )
    x = np.ones((3, 4), np.float32)
    found = statistics(model, x)
    ranges = found.ranges(["sum", "none", "flat"])
    assert list(ranges) == ["sum", "flat"]
    assert (ranges["sum"].low, ranges["sum"].high) == (12, 12)
    assert found.histograms(["flat"])["flat"].counts[0] == 12
    assert found.channels({"sum": -1, "flat": -1}).keys() == {"flat"}
    assert [name for name, _ in found.gram(["sum", "flat"])] == ["flat"]


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e37])
def test_histograms_of_extreme_ranges(scale: float) -> None:
    model = graph("g (float[N] x) => (float[N] y) { y = Identity(x) }")
    x = np.linspace(-scale, scale, 4096).astype(np.float32)
    histogram = statistics(model, x).histograms(["x"])["x"]
    assert histogram.counts.sum() == 4096
    assert histogram.counts.max() <= 6


def test_nan_and_infinity_are_told() -> None:
    model = graph("g (float[N] x) => (float[N] y) { l = Log(x) d = Reciprocal(x) y = Add(l, d) }")
    found = statistics(model, np.array([1, -1, 0, 2] * 9, np.float32))
    ranges = found.ranges(["x", "l", "d", "y"])
    assert {name: each.finite for name, each in ranges.items()} == {"x": True, "l": False, "d": False, "y": False}
    assert np.isinf(ranges["d"].high)
    assert np.isnan(ranges["l"].low)
    assert list(found.histograms(["x", "l", "d"])) == ["x"]


def test_half_and_double_precision() -> None:
    model = graph(
        "g (float[N] x) => (float16[N] h, double[N] d) { h0 = Cast<to = 10>(x) h = Add(h0, h0)"
        " d0 = Cast<to = 11>(x) d = Mul(d0, d0) b0 = Cast<to = 16>(x) b = Cast<to = 1>(b0) }"
    )
    x = np.linspace(-3, 3, 100).astype(np.float32)
    found = statistics(model, x)
    ranges = found.ranges(["h", "d", "b0"])
    assert (ranges["h"].low, ranges["h"].high) == (-6, 6)
    assert ranges["d"].high == 9
    assert ranges["b0"].high == 3
    assert {name: int(each.counts.sum()) for name, each in found.histograms(["h", "d", "b0"]).items()} == {
        "h": 100, "d": 100, "b0": 100
    }  # fmt: skip


# -- where tensors may lie -------------------------------------------------------------------------------

BRANCHES = """g (float[N, 2] x, float t) => (float[M] y) {
    zero = Constant<value = float {0}>() one = Constant<value = float {1}>()
    c = Greater(t, zero)
    y = If(c) <
        then_branch = yes () => (float[M] ty) {
            tx = Neg(x) d = Greater(t, one)
            ty = If(d) <
                then_branch = more () => (float[M] my)
                    { mx = Exp(tx) ms = ReduceSum<keepdims = 0>(mx) my = Add(ms, one) },
                else_branch = less () => (float[M] ly)
                    { lx = Abs(tx) ls = ReduceSum<keepdims = 0>(lx) ly = Add(ls, one) }
            >
        },
        else_branch = no () => (float[M] ny) { nx = Tanh(x) ns = ReduceSum<keepdims = 0>(nx) ny = Add(ns, one) }
    >
}"""


@pytest.mark.parametrize(
    ("threshold", "computed"), [(-1.0, ["nx", "ns"]), (0.5, ["tx", "lx", "ls"]), (2.0, ["tx", "mx", "ms"])]
)
def test_tensors_in_branches_of_if(threshold: float, computed: list[str]) -> None:
    model = graph(BRANCHES)
    x = RNG.standard_normal((6, 2)).astype(np.float32)
    feeds = [{"x": x[at : at + 2], "t": np.float32(threshold)} for at in (0, 2, 4)]
    found = Statistics(model, load_data(feeds, model), cache=None)
    inner = ["tx", "mx", "ms", "lx", "ls", "nx", "ns"]
    assert [found.reachable(name) for name in inner] == [None] * 7
    ranges = found.ranges(inner)
    assert sorted(ranges) == sorted(computed)
    wanted = {"nx": np.tanh(x), "tx": -x, "lx": np.abs(x), "mx": np.exp(-x)}
    for name in computed:
        if name in wanted:
            np.testing.assert_allclose(ranges[name].low, wanted[name].min(), rtol=1e-6)
            read = np.concatenate([each[name] for each in found.arrays([name])])
            np.testing.assert_allclose(read, wanted[name], rtol=1e-6)
            np.testing.assert_allclose(found.channels({name: 1})[name].mean, wanted[name].mean(0), rtol=1e-5)


def test_what_cannot_be_read_says_why() -> None:
    model = graph(
        "g (float[N] x) => (float[N] y) { n = Constant<value = int64 {2}>() c = Constant<value = bool {1}>()"
        " a = Loop(n, c, x) <body = b (int64 i, bool k, float[N] s) => (bool k2, float[N] s2)"
        " { k2 = Identity(k) inside = Neg(s) s2 = Abs(inside) }> seq = SequenceConstruct(a) y = Add(a, w) }",
        w=np.float32(1),
    )
    found = statistics(model, X[:, 0, 0, 0])
    assert found.reachable("a") is None
    assert "in the body of the Loop" in str(found.reachable("inside"))
    assert found.reachable("w") == "it is a constant"
    assert found.reachable("nobody") == "no tensor is called so"
    assert found.reachable("seq") == "it is no tensor"
    with pytest.raises(DataError, match="'inside' cannot be read: it is in the body of the Loop"):
        found.ranges(["a", "inside"])


def test_functions_are_named_as_obstacles() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18, "my": 1]> g (float[N] x) => (float[N] y) { y = my.f(x) }'
        ' <domain: "my", opset_import: ["": 18]> f (a) => (b) { inside = Neg(a) b = Abs(inside) }'
    )
    found = statistics(from_proto(proto), X[:, 0, 0, 0])
    assert "local function 'f'; run inline-functions first" in str(found.reachable("inside"))


def test_data_that_the_model_does_not_run_on(net: ir.Model) -> None:
    model = graph("g (float[N, 4] x, int64[N] i) => (float[N, 4] y) { y = Gather(x, i) }")
    data = load_data([{"x": X[:2, 0, 0, :4], "i": np.array([0, at])} for at in (1, 9)], model)
    with pytest.raises(DataError, match="does not run on batch 1 of the data"):
        Statistics(model, data, cache=None).ranges(["y"])


# -- cache -----------------------------------------------------------------------------------------------


class NoRun:
    def __init__(self, *_: Any, **__: Any) -> None:
        raise AssertionError("the model was run")


def test_nothing_is_run_twice(net: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = statistics(net, cache=tmp_path)
    wanted = first.ranges(INNER), first.histograms(["c", "x"]), first.channels({"c": 1, "f": 2, "r": 7})
    again = statistics(graph(NET, **WEIGHTS), cache=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(onnxopt.stats, "Session", NoRun)
        found = again.ranges(["f", "c", "x"]), again.histograms(["x", "c"]), again.channels({"f": 2, "c": 1, "r": 7})
        with pytest.raises(AssertionError):
            statistics(net, X[:20], cache=tmp_path).ranges(["c"])
        with pytest.raises(AssertionError):
            statistics(graph(NET, **WEIGHTS | {"m": WEIGHTS["m"] * 2}), cache=tmp_path).ranges(["c"])
        with pytest.raises(AssertionError):
            statistics(net).ranges(["c"])
    assert found[0] == {name: wanted[0][name] for name in ("f", "c", "x")}
    for kind in (1, 2):
        assert found[kind].keys() == wanted[kind].keys()
        for name, result in wanted[kind].items():
            for field in vars(result):
                np.testing.assert_array_equal(getattr(found[kind][name], field), getattr(result, field), strict=True)
    assert not list(tmp_path.glob("*.tmp"))


def test_what_is_known_grows(net: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statistics(net, cache=tmp_path).ranges(["c"])
    statistics(net, cache=tmp_path).ranges(["r"])
    monkeypatch.setattr(onnxopt.stats, "Session", NoRun)
    assert list(statistics(net, cache=tmp_path).ranges(["r", "c"])) == ["r", "c"]


def test_the_cache_goes_by_content_not_by_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    w = RNG.standard_normal((300, 300)).astype(np.float32)
    model = graph("g (float[N, 300] x) => (float[N, 300] y) { y = MatMul(x, w) }", w=w)
    x = np.ones((2, 300), np.float32)
    save(model, tmp_path / "one.onnx")
    save(model, tmp_path / "two.onnx", external_data=True)
    first = statistics(load(tmp_path / "one.onnx"), x, cache=tmp_path).ranges(["y"])
    monkeypatch.setattr(onnxopt.stats, "Session", NoRun)
    assert statistics(load(tmp_path / "two.onnx"), x, cache=tmp_path).ranges(["y"]) == first


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_damaged_files_are_made_anew(net: ir.Model, tmp_path: Path, content: bytes | None) -> None:
    wanted = statistics(net, cache=tmp_path).ranges(INNER)
    (file,) = tmp_path.glob("*.npz")
    file.write_bytes(file.read_bytes()[:200] if content is None else content)
    assert statistics(net, cache=tmp_path).ranges(INNER) == wanted


def test_a_cache_that_cannot_be_written_is_done_without(net: ir.Model, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert statistics(net, cache=tmp_path / "file").ranges(["c"])


def test_the_cache_keeps_what_was_used_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {"x": RNG.standard_normal(1000)}
    monkeypatch.setattr(onnxopt._cache, "MAX_BYTES", 20_000)
    for at, key in enumerate(("a", "b")):
        onnxopt._cache.write(tmp_path, key, arrays)
        os.utime(tmp_path / f"{key}.npz", (at, at))
    assert onnxopt._cache.read(tmp_path, "a"), "used now, so b is older"
    onnxopt._cache.write(tmp_path, "c", arrays)
    assert sorted(file.stem for file in tmp_path.iterdir()) == ["a", "c"]


# -- memory and progress ---------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    """300 MB of samples, 1.2 GB of activations: the process stays within 150 MB of what it is without them."""
    rows = np.broadcast_to(np.arange(3_000, dtype=np.float32)[:, None], (3_000, 25_000))
    np.savez(tmp_path / "data.npz", x=rows)
    save(
        graph("g (float[N, 25000] x) => (float[N, 25000] y) { a = Neg(x) b = Abs(a) c = Sqrt(b) y = Exp(a) }"),
        tmp_path / "model.onnx",
    )
    program = """
import gc, resource, sys
from onnxopt._accumulate import HistogramOf
from onnxopt.data import load_data
from onnxopt.model import load
from onnxopt.stats import Statistics
gc.disable()
model = load("model.onnx")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
few = Statistics(model, load_data([{"x": __import__("numpy").ones((1, 25000), "f")}], model), cache=None)
few.histograms(["a", "b", "c", "y"])
before = peak()
many = Statistics(model, load_data("data.npz", model), cache=None, memory=1 << 26)
assert many.histograms(["a", "b", "c", "y"])["a"].counts.sum() == 3_000 * (7 * -(-25_000 // 7) + 2)
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 150e6


def test_progress_is_told(net: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxopt.stats, "_SAY_EVERY", -1)
    seen: list[str] = []
    statistics(net, memory=1, on_progress=seen.append).ranges(["c", "r"])
    assert seen[0] == "statistics, 16 of 37 samples, part 1 of 2"
    assert seen[-1] == "statistics, 37 of 37 samples, part 2 of 2"


def test_of_large_tensors_a_part_tells_the_distribution() -> None:
    """Places along every axis count alike, however the rows are cut; and a single large value is not overlooked."""
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(12, 8, 32, 32)) * np.linspace(0.5, 4, 32)).astype(np.float32)
    x[7, 3, 0, 5] = 500.0
    whole, part, cut = HistogramOf(), HistogramOf(limit=1000), HistogramOf(limit=1000)
    for accumulator, sizes in ((whole, [12]), (part, [12]), (cut, [5, 1, 6])):
        for array in np.split(x, np.cumsum(sizes)[:-1]):
            accumulator.add(array, 0)
    all_, some, same = whole.result(), part.result(), cut.result()
    assert all_ is not None
    assert some is not None
    assert same is not None
    np.testing.assert_array_equal(some.counts, same.counts)
    assert (some.low, some.high, some.width, some.first) == (all_.low, all_.high, all_.width, all_.first)
    assert some.counts[-1] == all_.counts[-1] == 1
    shares = [np.cumsum(each.counts) / each.counts.sum() for each in (all_, some)]
    assert np.abs(shares[0] - shares[1]).max() < 1.63 / np.sqrt(12 * 1000)  # Kolmogorov and Smirnov, 1 %
