"""``prune-heads``: whole heads go, the others compute what they did, and every refusal says why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import onnxopt.passes.prune._structured as module
from models._common import samples
from onnxopt.channels import ChannelGraph, kept
from onnxopt.data import load_data
from onnxopt.errors import OptionError
from onnxopt.evaluation import evaluate
from onnxopt.graph import Editor, label
from onnxopt.model import copy, to_proto
from onnxopt.passes.prune.prune_heads import PruneHeads
from onnxopt.runtime import Ratio, Snapshot
from tests.pruning import prune, refusals
from tests.support import graph, outputs

MODELS = Path(__file__).parents[2] / "models"
Array = np.ndarray[Any, Any]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


X = normal(3, 5, 8, seed=7)

SHAPES = "int64[4] by_head = {0, 0, -1, 4}, int64[3] flat = {0, 0, -1}, int64[5] shared = {1, 1, 2, 1, 1}"
SCORES = """s = MatMul(qt, kt) p = Softmax<axis=-1>(s) c = MatMul(p, vt)
    t = Transpose<perm=[0,2,1,3]>(c) f = Reshape(t, flat) y = MatMul(f, wo)"""


def weights(heads: int = 4, keys: int = 4) -> dict[str, Any]:
    """Queries, keys, values of 4 features a head, and the projection that reads them."""
    wide, narrow = 4 * heads, 4 * keys
    return {
        "wq": normal(8, wide, seed=1), "wk": normal(8, narrow, seed=2), "wv": normal(8, narrow, seed=3),
        "wo": normal(wide, 6, seed=4),
    }  # fmt: skip


def attention(
    scores: str = SCORES,
    extra: str = "",
    ins: str = "float[N,T,8] x",
    outs: str = "float[N,T,6] y",
    **arrays: Any,
) -> ir.Model:
    return graph(
        f"""g ({ins}) => ({outs}) <{SHAPES}> {{
            q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
            q4 = Reshape(q, by_head) k4 = Reshape(k, by_head) v4 = Reshape(v, by_head)
            qt = Transpose<perm=[0,2,1,3]>(q4) kt = Transpose<perm=[0,2,3,1]>(k4) vt = Transpose<perm=[0,2,1,3]>(v4)
            {extra} {scores}
        }}""",
        **{**weights(), **arrays},
    )


def grouped() -> ir.Model:
    """Four heads of queries, of which two share each of two heads of keys, as exporters write it."""
    return graph(
        f"""g (float[N,T,8] x) => (float[N,T,6] y) <{SHAPES}, int64[1] two = {{2}}, int64[4] four = {{0, 4, -1, 4}}> {{
            q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
            q4 = Reshape(q, by_head) k4 = Reshape(k, by_head) v4 = Reshape(v, by_head)
            qt = Transpose<perm=[0,2,1,3]>(q4) k0 = Transpose<perm=[0,2,1,3]>(k4) v0 = Transpose<perm=[0,2,1,3]>(v4)
            k1 = Unsqueeze(k0, two) k2 = Expand(k1, shared) k3 = Reshape(k2, four)
            v1 = Unsqueeze(v0, two) v2 = Expand(v1, shared) vt = Reshape(v2, four)
            kt = Transpose<perm=[0,1,3,2]>(k3) {SCORES}
        }}""",
        **weights(4, 2),
    )


def operator(heads: int, keys: int) -> ir.Model:
    """The same as one ``Attention``."""
    return graph(
        f"""g (float[N,T,8] x) => (float[N,T,6] y) <{SHAPES}> {{
            q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
            q4 = Reshape(q, by_head) k4 = Reshape(k, by_head) v4 = Reshape(v, by_head)
            qt = Transpose<perm=[0,2,1,3]>(q4) kt = Transpose<perm=[0,2,1,3]>(k4) vt = Transpose<perm=[0,2,1,3]>(v4)
            c = Attention<scale=0.5>(qt, kt, vt)
            t = Transpose<perm=[0,2,1,3]>(c) f = Reshape(t, flat) y = MatMul(f, wo)
        }}""",
        opset=23,
        ir_version=10,
        **weights(heads, keys),
    )


def by_einsum() -> ir.Model:
    return attention(
        """s = Einsum<equation="nhqd,nhdk->nhqk">(qt, kt) p = Softmax<axis=-1>(s)
        c = Einsum<equation="nhqk,nhkd->nqhd">(p, vt) f = Reshape(c, flat) y = MatMul(f, wo)"""
    )


def shape(model: ir.Model, name: str) -> tuple[int, ...]:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tuple(tensor.shape.numpy())


def zeroed(model: ir.Model, pruned: ir.Model, readers: Mapping[str, int]) -> ir.Model:
    """The whole model, in which nobody reads what was removed: zeros in these weights, along these axes."""
    result = copy(model)
    for name, axis in readers.items():
        value = result.graph.initializers[name]
        assert value.const_value is not None
        array = np.moveaxis(value.const_value.numpy().copy(), axis, 0)
        array[np.setdiff1d(np.arange(len(array)), kept(pruned)[name][axis])] = 0
        value.const_value = ir.Tensor(np.moveaxis(array, 0, axis), name=name)
    return result


# -- what is left computes what it did ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "queries", "keys"),
    [
        pytest.param(attention, 8, 8, id="written out"),
        pytest.param(grouped, 8, 4, id="queries share keys"),
        pytest.param(lambda: operator(4, 4), 8, 8, id="Attention"),
        pytest.param(lambda: operator(4, 2), 8, 4, id="Attention with shared keys"),
        pytest.param(by_einsum, 8, 8, id="Einsum"),
    ],
)
def test_the_same_as_reading_zeros(model: Any, queries: int, keys: int) -> None:
    before = model()
    after, report = prune(PruneHeads(ratio=0.5), before)
    assert report.changed == 1
    widths = [shape(after, name) for name in ("wq", "wk", "wv", "wo")]
    assert widths == [(8, queries), (8, keys), (8, keys), (queries, 6)]
    left = kept(after)["wo"][0].reshape(-1, 4)
    np.testing.assert_array_equal(left % 4, np.tile(np.arange(4), (len(left), 1)))  # whole heads
    expected = outputs(zeroed(before, after, {"wo": 0}), {"x": X})[0]
    np.testing.assert_allclose(outputs(after, {"x": X})[0], expected, rtol=1e-5, atol=1e-5)


def test_queries_go_with_the_key_that_they_share() -> None:
    after, _ = prune(PruneHeads(ratio=0.5), grouped())
    stays = kept(after)["wk"][1][0] // 4
    np.testing.assert_array_equal(kept(after)["wq"][1], np.arange(8) + 8 * stays)


def test_of_queries_that_share_a_single_key_some_go() -> None:
    before = operator(4, 1)
    after, _ = prune(PruneHeads(ratio=0.5), before)
    assert (shape(after, "wq"), shape(after, "wk")) == ((8, 8), (8, 4))
    expected = outputs(zeroed(before, after, {"wo": 0}), {"x": X})[0]
    np.testing.assert_allclose(outputs(after, {"x": X})[0], expected, rtol=1e-5, atol=1e-5)


def test_a_trained_transformer(sentiment: ir.Model) -> None:
    train, _ = samples("sentiment_text", "train")
    with np.load(MODELS / "transformer_sentiment" / "eval.npz") as arrays:
        held_out = load_data({name: arrays[name][:600] for name in arrays}, sentiment)
    after, report = prune(PruneHeads(ratio=0.5), sentiment, {"input_ids": train[:128]})
    assert [(fact["heads"], fact["kept"]) for fact in report.facts] == [(4, 2), (4, 2)]
    readers = {"onnx::MatMul_326": 0, "onnx::MatMul_335": 0}
    ids = {"input_ids": train[:8]}
    expected = outputs(zeroed(sentiment, after, readers), ids)[0]
    np.testing.assert_allclose(outputs(after, ids)[0], expected, rtol=1e-4, atol=1e-4)
    found = evaluate(Snapshot.of(sentiment), Snapshot.of(after), held_out)
    whole, left = found.accuracy["logits"]
    assert left >= whole - 0.02
    assert found.agreement["logits"] >= 0.94


def test_a_mask_of_computed_shape_is_spread_over_the_heads() -> None:
    """As from Hugging Face: the mask is expanded to a shape of which inference does not know that it has one head."""
    before = attention(
        "s0 = MatMul(qt, kt) s = Add(s0, mask) p = Softmax<axis=-1>(s) c = MatMul(p, vt)"
        "t = Transpose<perm=[0,2,1,3]>(c) f = Reshape(t, flat) y = MatMul(f, wo)",
        extra="""size = Shape(x) n = Slice(size, a, b) len = Slice(size, b, d) sizes = Concat<axis=0>(n, b, len, len)
        none = Equal(sizes, minus) target = Where(none, ones, sizes) mask = Expand(zero, target)""",
        a=np.array([0]), b=np.array([1]), d=np.array([2]), minus=np.array([-1] * 4), ones=np.array([1] * 4),
        zero=np.zeros((1, 1, 1, 1), np.float32),
    )  # fmt: skip
    after, _ = prune(PruneHeads(ratio=0.5), before)
    assert shape(after, "wq") == (8, 8)
    expected = outputs(zeroed(before, after, {"wo": 0}), {"x": X})[0]
    np.testing.assert_allclose(outputs(after, {"x": X})[0], expected, rtol=1e-5, atol=1e-5)


def test_the_weight_behind_tells_how_wide_the_heads_are_together() -> None:
    """As from Hugging Face: samples and places are counted elsewhere, and the rest is -1."""
    before = attention(
        SCORES.replace("flat", "wide"),
        extra="size = Shape(z) wide = Concat<axis=0>(size, rest)",
        ins="float[N,T,8] x, float[M,S] z",
        rest=np.array([-1]),
    )
    after, _ = prune(PruneHeads(ratio=0.5), before)
    feeds = {"x": X, "z": np.zeros(X.shape[:2], np.float32)}
    expected = outputs(zeroed(before, after, {"wo": 0}), feeds)[0]
    np.testing.assert_allclose(outputs(after, feeds)[0], expected, rtol=1e-5, atol=1e-5)


def test_of_two_axes_that_become_one_the_first_can_be_cut() -> None:
    """As keys, and the queries that share each: here both are made by layers."""
    before = graph(
        """g (float[N,4] x) => (float[N,2] y)
        <int64[1] one = {1}, int64[1] two = {2}, int64[2] flat = {0, 15}> {
            a = MatMul(x, u) b = MatMul(x, v) a3 = Unsqueeze(a, two) b3 = Unsqueeze(b, one)
            m = Mul(a3, b3) f = Reshape(m, flat) y = MatMul(f, w)
        }""",
        u=normal(4, 3), v=normal(4, 5), w=normal(15, 2),
    )  # fmt: skip
    after = copy(before)
    channels = ChannelGraph(Editor(after), "head")
    first, second = (next(group for group in channels.groups if name in map(label, group.makers)) for name in "ab")
    assert not first.frozen
    assert "it becomes one with an axis of which slices can be removed" in second.frozen[0]
    channels.remove({first.number: [1]})
    x = normal(6, 4, seed=2)
    expected = outputs(zeroed(before, after, {"w": 0}), {"x": x})[0]
    np.testing.assert_allclose(outputs(after, {"x": x})[0], expected, rtol=1e-5, atol=1e-5)


# -- which heads go ----------------------------------------------------------------------------------------------


def test_the_heads_of_the_least_weights_go() -> None:
    """The oracle: the same sums of squares, written out."""
    after, _ = prune(PruneHeads(ratio=0.5, importance="l2"), attention())
    given = weights()
    squares = [
        sum((given[n][:, h] ** 2).sum() for n in ("wq", "wk", "wv")) + (given["wo"][h] ** 2).sum()
        for h in (slice(4 * at, 4 * at + 4) for at in range(4))
    ]
    np.testing.assert_array_equal(kept(after)["wo"][0][::4] // 4, np.sort(np.argsort(squares)[2:]))


def test_a_head_that_always_says_the_same_goes_first() -> None:
    """Its values have large weights but are all zero, so nothing varies with it: only data can tell."""
    given = weights()
    given["wv"][0, 4:8] = 50
    x = X.copy()
    given["wv"][1:, 4:8] = 0
    x[:, :, 0] = 0
    after, report = prune(PruneHeads(ratio=0.25), attention(**given), {"x": x})
    np.testing.assert_array_equal(kept(after)["wo"][0], np.delete(np.arange(16), np.arange(4, 8)))
    assert report.facts[0]["lost"] == pytest.approx(0, abs=1e-9)
    by_weights, _ = prune(PruneHeads(ratio=0.25, importance="l2"), attention(**given), {"x": x})
    assert 4 in kept(by_weights)["wo"][0]


def two_attentions() -> ir.Model:
    """The second one has weights a hundred times smaller in two of its heads."""
    small = np.repeat([1, 1, 0.01, 0.01], 4).astype(np.float32)
    second: dict[str, Any] = {f"{name}2": array for name, array in weights().items()}
    second |= {name: second[name] * small for name in ("wq2", "wk2", "wv2")}
    second["wo2"] = second["wo2"] * small[:, None]
    body = """q{} = MatMul(x, wq{}) k{} = MatMul(x, wk{}) v{} = MatMul(x, wv{})
        q4{} = Reshape(q{}, by_head) k4{} = Reshape(k{}, by_head) v4{} = Reshape(v{}, by_head)
        qt{} = Transpose<perm=[0,2,1,3]>(q4{}) kt{} = Transpose<perm=[0,2,3,1]>(k4{})
        vt{} = Transpose<perm=[0,2,1,3]>(v4{}) s{} = MatMul(qt{}, kt{}) p{} = Softmax<axis=-1>(s{})
        c{} = MatMul(p{}, vt{}) t{} = Transpose<perm=[0,2,1,3]>(c{}) f{} = Reshape(t{}, flat) y{} = MatMul(f{}, wo{})"""
    return graph(
        f"g (float[N,T,8] x) => (float[N,T,6] y, float[N,T,6] y2) <{SHAPES}> "
        f"{{ {body.replace('{}', '')} {body.replace('{}', '2')} }}",
        **weights(), **second,
    )  # fmt: skip


def test_global_scope_takes_from_the_attention_that_is_worth_least() -> None:
    before = two_attentions()
    after, report = prune(PruneHeads(ratio=0.25, importance="l2", scope="global"), before)
    assert (shape(after, "wo"), shape(after, "wo2")) == ((16, 6), (8, 6))
    assert "q: its 4 heads stay: those of other attentions are worth less" in refusals(report)
    everywhere, _ = prune(PruneHeads(ratio=0.25, importance="l2"), before)
    assert (shape(everywhere, "wo"), shape(everywhere, "wo2")) == ((12, 6), (12, 6))


def test_every_attention_keeps_a_head() -> None:
    after, _ = prune(PruneHeads(ratio=0.99), two_attentions())
    assert (shape(after, "wo"), shape(after, "wo2")) == ((4, 6), (4, 6))


def test_ratios_of_single_attentions() -> None:
    options: dict[str, Any] = {"ratio": 0.5, "ratios": (("q2", 0.75), ("q", 0.0), ("nothing", 0.5))}
    after, report = prune(PruneHeads(**options), two_attentions())
    assert (shape(after, "wo"), shape(after, "wo2")) == ((16, 6), (4, 6))
    assert "no group that may be pruned is called 'nothing'" in refusals(report)


def test_random_heads_follow_the_seed() -> None:
    pruned = {seed: prune(PruneHeads(ratio=0.5, importance="random", seed=seed), attention())[0] for seed in range(8)}
    again, _ = prune(PruneHeads(ratio=0.5, importance="random", seed=3), attention())
    assert to_proto(pruned[3]) == to_proto(again)
    assert len({tuple(kept(each)["wo"][0].tolist()) for each in pruned.values()}) > 1


# -- what stays ----------------------------------------------------------------------------------------------------


def test_slower_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "measured", lambda before, after, feeds: Ratio(1.3, 1.2, 1.4, 1.3))
    _, report = prune(PruneHeads(), attention())
    assert report.changed == 0
    assert "takes 1.30 times as long" in refusals(report)


def test_an_excluded_attention_stays() -> None:
    after, report = prune(PruneHeads(ratio=0.5, exclude=("q2",)), two_attentions())
    assert (shape(after, "wo"), shape(after, "wo2")) == ((8, 6), (16, 6))
    assert report.changed == 1


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            lambda: graph(
                "g (float[N,8,4,4] x) => (float[N,4,4,4] y) { h = Conv<group=4>(x, a) r = Relu(h) y = Conv(r, b) }",
                a=normal(16, 2, 1, 1), b=normal(4, 16, 1, 1),
            ),
            id="groups of a convolution",
        ),
        pytest.param(
            lambda: graph(
                """g (float[N,4,4,4] x) => (float[N,4,4,4] y)
                <int64[5] apart = {0, 2, 4, 4, 4}, int64[4] back = {0, 8, 4, 4}>
                { h = Conv(x, a) s = Reshape(h, apart) t = Transpose<perm=[0,2,1,3,4]>(s) u = Reshape(t, back)
                  y = Conv(u, b) }""",
                a=normal(8, 4, 1, 1), b=normal(4, 8, 1, 1),
            ),
            id="a shuffle of channels",
        ),
    ],
)  # fmt: skip
def test_only_heads_of_attentions_are_heads(model: Any) -> None:
    _, report = prune(PruneHeads(ratio=0.5), model())
    assert refusals(report) == "model: no layer that may be changed has heads that can be removed"


@pytest.mark.parametrize(
    ("model", "why"),
    [
        pytest.param(
            lambda: attention(outs="float[N,T,6] y, float[N,4,T,T] p"),
            "s: its heads stay: it is an axis of the output",
            id="an output",
        ),
        pytest.param(
            lambda: graph(
                f"""g (float[N,T,8] x) => (float[N,T,6] y) <{SHAPES}, int64[3] merged = {{-1, 0, 4}}> {{
                    q = MatMul(x, wq) q4 = Reshape(q, by_head) qt = Transpose<perm=[1,0,2,3]>(q4)
                    q3 = Reshape(qt, merged) kt = Transpose<perm=[0,2,1]>(q3) s = MatMul(q3, kt) c = MatMul(s, q3)
                    z = Shape(qt) b4 = Reshape(c, z) t = Transpose<perm=[1,0,2,3]>(b4) f = Reshape(t, flat)
                    y = MatMul(f, wo)
                }}""",
                **{name: array for name, array in weights().items() if name in ("wq", "wo")},
            ),
            "its heads stay: ",
            id="one axis with the samples",
        ),
        pytest.param(
            lambda: graph("g (float[N,T,4] x) => (float[N,T,T] y) { k = Transpose<perm=[0,2,1]>(x) y = MatMul(x, k) }"),
            "y: its heads stay: the input 'x' has this axis",
            id="no heads",
        ),
        pytest.param(
            lambda: graph(
                """g (float[N,H,T,4] q, float[N,H,4,T] k) => (float[N,H,T,T] y) { y = MatMul(q, k) }""",
            ),
            "y: its heads stay: the input 'q' has this axis",
            id="an input",
        ),
    ],
)  # fmt: skip
def test_heads_that_cannot_go(model: Any, why: str) -> None:
    _, report = prune(PruneHeads(ratio=0.5), model())
    assert report.changed == 0
    assert why in refusals(report)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.0}, r"ratio is a share in \(0, 1\), got 0.0"),
        ({"ratio": 1.0}, r"ratio is a share in \(0, 1\), got 1.0"),
        ({"ratios": (("*", 1.5),)}, r"ratios are shares in \[0, 1\); '\*' got 1.5"),
        ({"importance": "fpgm"}, "importance is one of auto, l2, activation, reconstruction, random; got 'fpgm'"),
        ({"scope": "all"}, "scope is one of local, global; got 'all'"),
        ({"seed": -1}, "seed is a number from 0 on, got -1"),
    ],
)
def test_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PruneHeads(**options)


def test_activation_needs_data() -> None:
    with pytest.raises(OptionError, match="importance activation needs calibration data"):
        prune(PruneHeads(importance="activation"), attention())
