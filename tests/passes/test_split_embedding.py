"""``split-embedding``: no table of that rank is nearer, with rows weighted as they are read; every refusal says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models._common import samples
from onnxopt.data import random_data
from onnxopt.errors import OptionError
from onnxopt.graph import Editor
from onnxopt.model import copy, load
from onnxopt.pass_base import Context, Report
from onnxopt.passes.lowrank.split_embedding import SplitEmbedding
from onnxopt.pipeline import PassManager
from onnxopt.recipes import parse_pipeline
from tests import pruning
from tests.pruning import refusals
from tests.support import count_ops, graph, ops, outputs

MODELS = Path(__file__).parents[2] / "models"
RNG = np.random.default_rng(0)
V, D = 60, 24
TABLE = (RNG.standard_normal((V, D)) * RNG.random(D) ** 2).astype(np.float32)
READ = np.array([3, 3, 3, 3, 7, 7, 0, -1, -2])
"""What one sample reads."""
SAMPLES = {"ids": np.tile(READ, (8, 1))}
"""All alike, so that it does not matter which are fitted to."""
ALL = np.arange(V)[None]


def split(before: ir.Model, data: Any = None, **options: Any) -> tuple[ir.Model, Report]:
    return pruning.prune(SplitEmbedding(**{"round_to": 1, **options}), before, data)


def model(body: str = "y = Gather(table, ids)", outs: str = "float[N,T,24] y", **weights: Any) -> ir.Model:
    ins = weights.pop("ins", "int64[N,T] ids")
    return graph(f"g ({ins}) => ({outs}) {{ {body} }}", **{"table": TABLE, **weights})


def table_of(after: ir.Model, feed: str = "ids") -> Any:
    """All rows as the model gives them."""
    return outputs(after, {feed: ALL})[0][0].astype(np.float64)


def product_of(after: ir.Model) -> Any:
    """The table that the two factors make."""
    first, second = (np.asarray(after.graph.initializers[name].const_value) for name in ("table", "table_1"))
    return first.astype(np.float64) @ second.astype(np.float64)


def weights(*, read: bool) -> Any:
    """Of rows: half by how often they are read, half alike; or all alike."""
    counts = np.bincount(READ % V, minlength=V)
    return counts / counts.sum() + 1 / V if read else np.ones(V)


def loss(rows: Any, weight: Any) -> float:
    return float(
        np.sum(weight[:, None] * (TABLE - rows) ** 2) / np.sum(weight[:, None] * TABLE.astype(np.float64) ** 2)
    )


def tail(weight: Any, rank: int) -> float:
    """The least loss that any table of this rank has (Eckart and Young)."""
    squares = np.linalg.svd(np.sqrt(weight)[:, None] * TABLE.astype(np.float64))[1] ** 2
    return float(squares[rank:].sum() / squares.sum())


# -- what it becomes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [None, SAMPLES])
@pytest.mark.parametrize("rank", [1, 6, 16])
def test_no_table_of_that_rank_is_nearer(rank: int, data: Any) -> None:
    after, report = split(model(), data, rank=rank / D)
    weight = weights(read=data is not None)
    assert ops(after) == ["Gather", "MatMul"]
    assert loss(table_of(after), weight) == pytest.approx(tail(weight, rank), rel=1e-4)
    assert np.linalg.matrix_rank(table_of(after), tol=1e-4) == rank
    assert report.facts[0]["rank"] == rank
    assert report.facts[0]["saved"] == V * D - rank * (V + D)


def test_what_is_reported() -> None:
    after, report = split(model(), SAMPLES, rank=0.25)
    rows = table_of(after)
    counts = np.bincount(READ % V, minlength=V).astype(np.float64)
    fact = report.facts[0]
    assert fact["error"] == pytest.approx(loss(rows, np.ones(V)), rel=1e-4)
    assert fact["error_as_read"] == pytest.approx(loss(rows, counts), rel=1e-3)
    assert report.changes[0].text == (
        f"rank 6 of 24: 35% of the numbers of 'table', error {fact['error']:.2g}, of what held-out samples read "
        f"{fact['error_as_read']:.2g}"
    )


def test_data_pay_for_what_is_read_and_cost_little_elsewhere() -> None:
    (blind, _), (seen, _) = split(model(), rank=0.25), split(model(), SAMPLES, rank=0.25)
    counts = np.bincount(READ % V, minlength=V).astype(np.float64)
    assert loss(table_of(seen), counts) < 0.5 * loss(table_of(blind), counts)
    even = np.ones(V)
    best = loss(table_of(blind), even)
    assert best <= loss(table_of(seen), even)
    mixed = [np.sum(weights(read=True)[:, None] * (TABLE - table_of(each)) ** 2) for each in (seen, blind)]
    assert np.sum((TABLE - table_of(seen)) ** 2) / V <= mixed[0] * (1 + 1e-4) <= mixed[1] * (1 + 2e-4)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.integers(2, 40), st.integers(2, 40), st.floats(0.05, 0.95), st.sampled_from([1, 3, 8]))
def test_the_ratio_is_saved_and_no_more_than_a_multiple_beyond(v: int, d: int, ratio: float, multiple: int) -> None:
    before = model(outs=f"float[N,T,{d}] y", table=RNG.standard_normal((v, d)).astype(np.float32))
    _, report = split(before, ratio=ratio, round_to=multiple)
    if report.changed:
        rank = int(str(report.facts[0]["rank"]))
        assert rank % multiple == 0
        assert rank * (v + d) <= (1 - ratio) * v * d < (rank + multiple) * (v + d)
    else:
        assert (1 - ratio) * v * d < multiple * (v + d)
        assert f"no rank that is a multiple of {multiple} saves" in refusals(report)


@pytest.mark.parametrize("data", [None, SAMPLES])
@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99])
def test_the_least_rank_that_keeps_the_energy(energy: float, data: Any) -> None:
    _, report = split(model(), data, energy=energy)
    weight = weights(read=data is not None)
    wanted = next(rank for rank in range(D) if tail(weight, rank) <= 1 - energy)
    assert report.facts[0]["rank"] == wanted
    _, report = split(model(), data, energy=energy, round_to=4)
    assert report.facts[0]["rank"] == -(-wanted // 4) * 4


def test_a_table_of_low_rank_is_found_again() -> None:
    low = (RNG.standard_normal((V, 3)) @ RNG.standard_normal((3, D))).astype(np.float32)
    after, report = split(model(table=low), SAMPLES, energy=1.0)
    assert report.facts[0]["rank"] == 3
    np.testing.assert_allclose(table_of(after), low, atol=1e-5 * np.abs(low).max())


def test_the_factors_are_balanced() -> None:
    after, _ = split(model(), rank=0.25)
    first, second = (np.asarray(after.graph.initializers[name].const_value) for name in ("table", "table_1"))
    np.testing.assert_allclose(np.linalg.norm(first, axis=0), np.linalg.norm(second, axis=1), rtol=1e-4)


def test_zeros() -> None:
    after, report = split(model(table=np.zeros((V, D), np.float32)), SAMPLES)
    np.testing.assert_array_equal(table_of(after), 0)
    assert report.facts[0]["error"] == 0


def test_half_precision() -> None:
    before = model(outs="float16[N,T,24] y", table=TABLE.astype(np.float16))
    after, _ = split(before, rank=0.25)
    assert loss(table_of(after), np.ones(V)) == pytest.approx(tail(np.ones(V), 6), rel=1e-2)


# -- where -----------------------------------------------------------------------------------------------------------


def test_lookups_that_share_a_table_split_it_once() -> None:
    body = "a = Gather(table, ids) b = Gather<axis = -2>(table, other) y = Add(a, b)"
    before = model(body, ins="int64[N,T] ids, int64[N,T] other")
    after, report = split(before, {"ids": SAMPLES["ids"][:, :5], "other": SAMPLES["ids"][:, 4:]}, rank=0.25)
    assert report.changed == 1
    assert count_ops(after) == {"Gather": 2, "MatMul": 2, "Add": 1}
    assert sorted(after.graph.initializers) == ["table", "table_1"]


def test_ids_that_are_computed_are_counted() -> None:
    before = model("j = Add(ids, ids) y = Gather(table, j)")
    after, report = split(before, SAMPLES, rank=0.25)
    counts = np.bincount(2 * READ % V, minlength=V)
    found = product_of(after)
    weight = counts / counts.sum() + 1 / V
    assert loss(found, weight) == pytest.approx(tail(weight, 6), rel=1e-4)
    assert report.facts[0]["error_as_read"] == pytest.approx(loss(found, counts), rel=1e-3)


def test_names_and_metadata() -> None:
    before = model("e = Gather(table, ids) y = Relu(e)")
    node = next(iter(before.graph))
    node.name, node.metadata_props["of"], node.outputs[0].metadata_props["of"] = "words", "node", "value"
    after, _ = split(before, rank=0.25)
    gather, product, relu = after.graph
    assert [gather.name, product.name] == ["words", "words_1"]
    assert product.outputs[0] is relu.inputs[0]
    assert (product.outputs[0].name, product.outputs[0].metadata_props["of"]) == ("e", "value")
    assert gather.metadata_props["of"] == product.metadata_props["of"] == "node"


@pytest.mark.parametrize("ids", [np.array([-60, 59]), np.zeros((2, 0, 3), np.int64)])
def test_ids_of_any_shape(ids: Any) -> None:
    dims = ",".join(map(str, ids.shape))
    after, _ = split(model(ins=f"int64[{dims}] ids", outs=f"float[{dims},24] y"), rank=0.625)
    np.testing.assert_allclose(outputs(after, {"ids": ids})[0], product_of(after)[ids], rtol=1e-4, atol=1e-5)


def test_a_single_id() -> None:
    before = model("i = Squeeze(ids) y = Gather(table, i)", "float[24] y", ins="int64[1] ids")
    after, _ = split(before, rank=0.625)
    rows = outputs(after, {"ids": np.array([5])})[0]
    np.testing.assert_allclose(rows, product_of(after)[5], rtol=1e-4, atol=1e-5)


def test_in_branches_and_functions() -> None:
    before = graph(
        """g (int64[N] ids, bool c) => (float[N,24] y) {
            y = If (c) <then_branch = t () => (float[N,24] p) { p = Gather(table, ids) },
                        else_branch = e () => (float[N,24] q) { q0 = Gather(table, ids) q = Neg(q0) }>
        }""",
        table=TABLE,
    )
    after, report = split(before, rank=0.25)
    assert report.facts[0]["saved"] == V * D - 6 * (V + 2 * D)
    for flag, sign in ((True, 1), (False, -1)):
        rows = outputs(after, {"ids": ALL[0], "c": np.array(flag)})[0]
        assert loss(sign * rows, np.ones(V)) == pytest.approx(tail(np.ones(V), 6), rel=1e-4)
    inside = graph(
        """g (int64[N] ids) => (float[N,3] y) { y = local.f(ids) }
        <domain: "local", opset_import: ["" : 18]> f (i) => (r)
        { t = Constant<value = float[4,3] {1,2,3,2,4,6,3,6,9,4,8,12}>() r = Gather(t, i) }""",
        extra=', "local" : 1',
    )
    after, _ = split(inside, {"ids": np.array([[0], [1]])}, rank=0.3)
    ids = {"ids": np.arange(4)}
    np.testing.assert_allclose(outputs(after, ids)[0], outputs(inside, ids)[0], rtol=1e-5)


def test_a_trained_transformer() -> None:
    before = load(MODELS / "transformer_sentiment" / "model.onnx")
    ids, _ = samples("sentiment_text", "train")
    blind, seen = (
        PassManager([SplitEmbedding()], data=data, evaluation={"input_ids": ids[512:768]}).run(before)[1]
        for data in (None, {"input_ids": ids[:512]})
    )
    (blind_quality,), (seen_quality,) = (each.fidelity["split-embedding"].values() for each in (blind, seen))
    assert blind.changed == seen.changed == 1
    assert seen_quality > blind_quality


# -- what weighs alike, and what stays -------------------------------------------------------------------------------


def test_without_samples_that_tell_rows_weigh_alike() -> None:
    before = model()
    context = Context(Editor(copy(before)), data=random_data(before, 8))
    texts = [SplitEmbedding(round_to=1).run(context).changes[0].text]
    texts += [split(before, data)[1].changes[0].text for data in (None, {"ids": READ[None]})]
    reasons = ["random data do not tell what is read", "there are no samples", "one sample is too few"]
    assert [text.partition("with all rows alike, for ")[2] for text in texts] == reasons


def test_ids_in_a_loop_are_not_counted() -> None:
    before = graph(
        """g (int64[T] ids, int64 n) => (float[K,T,24] y) <bool yes = {1}> {
            y = Loop(n, yes) <body = b (int64 i, bool c) => (bool d, float[T,24] r) {
                d = Identity(c) r = Gather(table, ids)
            }>
        }""",
        table=TABLE,
    )
    data = [{"ids": READ, "n": np.array(2)}] * 3
    after, report = split(before, data, rank=0.25)
    assert report.changes[0].text.endswith(
        "with all rows alike, for its ids cannot be read: it is in the body of the Loop 'y'"
    )
    rows = outputs(after, {"ids": ALL[0], "n": np.array(1)})[0][0]
    assert loss(rows, np.ones(V)) == pytest.approx(tail(np.ones(V), 6), rel=1e-4)


QUANTIZED = (TABLE * 30).astype(np.int8)


@pytest.mark.parametrize(
    ("before", "options", "why"),
    [
        pytest.param(
            model("h = Gather(table, ids) t = Transpose(table) y = MatMul(h, t)", "float[N,T,60] y"), {},
            "h: Transpose 't' reads all of 'table' too, as for the scores of words", id="tied",
        ),
        pytest.param(
            model("y = Gather(table, ids) z = Gather<axis = 1>(table, ids)", "float[N,T,24] y, float[60,N,T] z"), {},
            "y: Gather 'z' reads all of 'table' too", id="columns too",
        ),
        pytest.param(
            model("y = Gather(table, ids)", "float[N,T,24] y, float[60,24] table"), {}, "y: 'table' is an output too",
            id="an output",
        ),
        pytest.param(
            model("q = Gather(table, ids) y = DequantizeLinear(q, s)", table=QUANTIZED, s=np.float32(0.1)), {},
            "q: 'table' is quantized: split it before", id="integers behind it",
        ),
        pytest.param(
            graph("g (int64[N,T] ids) => (float[N,T,24] y) { t = DequantizeLinear(q, s) y = Gather(t, ids) }",
                  q=QUANTIZED, s=np.float32(0.1)), {},
            "y: 't' is quantized: split it before", id="integers in front of it",
        ),
        pytest.param(
            model("y = Gather(table, ids)", "int8[N,T,24] y", table=QUANTIZED), {},
            "y: 'table' is of INT8, not of floats", id="integers",
        ),
        pytest.param(
            graph("g (int64[N] ids, float[60,24] x) => (float[N,24] y) { y = Gather(x, ids) }"), {},
            "y: 'x' is no constant", id="not constant",
        ),
        pytest.param(
            model("e = Gather(table, ids) h = MatMul(e, w) y = Mul(h, u)", "float[N,T,K] y",
                  w=np.ones((24, 400), np.float32), u=np.ones((400, 400), np.float32)), {},
            "e: 'table' has 0.84% of the weights of the model, too few to matter", id="small",
        ),
        pytest.param(model(table=np.where(TABLE > 2, np.nan, TABLE)), {}, "'table' has numbers that are not finite",
                     id="NaN"),
        pytest.param(model(), {"rank": 0.9}, "y: rank 22 of 24 saves nothing", id="rank too high"),
        pytest.param(model(), {"energy": 1.0}, "y: rank 24 of 24 saves nothing", id="all of it"),
        pytest.param(model(), {"ratio": 0.6, "round_to": 8},
                     "y: no rank that is a multiple of 8 saves 60% of its numbers", id="no multiple"),
        pytest.param(model("y = Gather<axis = 1>(table, ids)", "float[60,N,T] y"), {}, "model: there is no embedding",
                     id="columns"),
        pytest.param(model("y = Gather(table, i)", "float[2,24] y", i=np.array([1, 2])), {},
                     "model: there is no embedding", id="constant ids"),
    ],
)  # fmt: skip
def test_what_stays(before: ir.Model, options: dict[str, Any], why: str) -> None:
    _, report = split(before, **options)
    assert report.changed == 0
    assert why in refusals(report)


def test_an_excluded_embedding_stays() -> None:
    before = model("a = Gather(table, ids) b = Gather(second, ids) y = Add(a, b)", second=TABLE.copy())
    after, report = split(before, exclude=("b",))
    assert [note.node for note in report.changes] == ["a"]
    assert "second_1" not in after.graph.initializers


def test_options() -> None:
    assert parse_pipeline("split-embedding{energy=0.9,round_to=4}") == [SplitEmbedding(energy=0.9, round_to=4)]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"ratio": 0.0}, r"split-embedding.ratio is a share in \(0, 1\), got 0.0"),
        ({"rank": 1.0}, r"split-embedding.rank is a share in \(0, 1\), got 1.0"),
        ({"energy": 1.5}, r"split-embedding.energy is a share in \(0, 1\], got 1.5"),
        ({"energy": 0.5, "rank": 0.5}, "split-embedding: give one of energy and rank"),
        ({"round_to": -1}, "split-embedding.round_to is a number from 0 on, got -1"),
    ]
    for options, text in wrong:
        with pytest.raises(OptionError, match=text):
            SplitEmbedding(**options)
