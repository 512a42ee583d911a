"""``prune-blocks``: the model without a branch, written by hand; which branches go; every refusal says why."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from models._common import samples
from onnxopt.data import load_data
from onnxopt.errors import DataError, OptionError
from onnxopt.evaluation import compare, evaluate
from onnxopt.graph import Editor
from onnxopt.macs import count_macs
from onnxopt.metrics import parameters
from onnxopt.model import load, to_proto
from onnxopt.pass_base import Report
from onnxopt.passes.prune._branches import Branches
from onnxopt.passes.prune._gates import Gates
from onnxopt.passes.prune._greedy import greedy
from onnxopt.passes.prune.prune_blocks import PruneBlocks
from onnxopt.pipeline import PassManager
from onnxopt.runtime import Snapshot
from tests import pruning
from tests.pruning import refusals
from tests.support import graph, ops, outputs

MODELS = Path(__file__).parents[2] / "models"
Array = np.ndarray[Any, Any]


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    return (scale * np.random.default_rng([seed, *shape]).standard_normal(shape)).astype(np.float32)


X = normal(32, 8, seed=9)
WEIGHTS: dict[str, Any] = {f"w{at}": normal(8, 8, seed=at, scale=0.3) for at in range(6)} | {"gain": normal(8)}


def model(body: str, outs: str = "float[N,8] y", ins: str = "float[N,8] x", **options: Any) -> ir.Model:
    """A model of these nodes, with the weights that they read."""
    read = {name: array for name, array in WEIGHTS.items() if name in body}
    return graph(f"g ({ins}) => ({outs}) {{ {body} }}", **{**read, **options})


def prune(pass_: PruneBlocks, before: ir.Model, data: Any = None) -> tuple[ir.Model, Report]:
    return pruning.prune(pass_, before, {"x": X} if data is None else data)


def removed(report: Report) -> list[str]:
    return [note.node for note in report.changes]


# -- what is left of the model -------------------------------------------------------------------------------------

SKIP = "h = Relu(x) a = MatMul(h, w0) b = Relu(a) c = MatMul(b, w1)"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(f"{SKIP} s = Add(h, c) y = MatMul(s, w2)", "h = Relu(x) y = MatMul(h, w2)", id="x + f(x)"),
        pytest.param(f"{SKIP} s = Add(c, h) y = MatMul(s, w2)", "h = Relu(x) y = MatMul(h, w2)", id="f(x) + x"),
        pytest.param(f"{SKIP} s = Sum(c, h) y = MatMul(s, w2)", "h = Relu(x) y = MatMul(h, w2)", id="Sum"),
        pytest.param(f"{SKIP} s = Add(h, c) y = Relu(s)", "h = Relu(x) y = Relu(h)", id="an activation behind"),
        pytest.param(
            "h = Relu(x) n = LayerNormalization(h, gain) a = MatMul(n, w0) s = Add(h, a) y = MatMul(s, w2)",
            "h = Relu(x) y = MatMul(h, w2)",
            id="a normalization inside",
        ),
        pytest.param(
            f"{SKIP} s = Add(h, c) n = LayerNormalization(s, gain) y = MatMul(n, w2)",
            "h = Relu(x) n = LayerNormalization(h, gain) y = MatMul(n, w2)",
            id="a normalization behind",
        ),
        pytest.param(
            "h = Relu(x) t = Tanh(h) a = MatMul(t, w0) s = Add(h, a) m = Mul(s, t) y = MatMul(m, w1)",
            "h = Relu(x) t = Tanh(h) m = Mul(h, t) y = MatMul(m, w1)",
            id="what others read stays",
        ),
        pytest.param(f"{SKIP} y = Add(h, c)", "y = Relu(x)", id="the output"),
        pytest.param("a = MatMul(x, w0) y = Add(x, a)", "y = Identity(x)", id="from input to output"),
    ],
)
def test_without_its_branch(before: str, after: str) -> None:
    pruned, report = prune(PruneBlocks(ratio=0.5), model(before))
    expected = model(after)
    assert report.changed == 1
    assert ops(pruned) == ops(expected)
    assert set(pruned.graph.initializers) == set(expected.graph.initializers)
    np.testing.assert_array_equal(outputs(pruned, {"x": X})[0], outputs(expected, {"x": X})[0])


def test_branches_side_by_side_are_branches_of_one_stream() -> None:
    """``x + f(x) + g(x)``: the sum of both is no branch, and either can go."""
    body = "h = Relu(x) a = MatMul(h, w0) b = MatMul(h, w1) s = Add(h, a) t = Add(b, s) y = MatMul(t, w2)"
    pruned, report = prune(PruneBlocks(ratio=0.9), model(body))
    assert sorted(removed(report)) == ["s", "t"]
    assert ops(pruned) == ["Relu", "MatMul"]


def test_a_branch_in_a_branch_goes_with_it() -> None:
    body = "h = Relu(x) a = MatMul(h, w0) b = MatMul(a, w1) i = Add(a, b) c = MatMul(i, w2) y = Add(h, c)"
    pruned, report = prune(PruneBlocks(ratio=0.9), model(body))
    assert removed(report)[-1] == "y"
    assert ops(pruned) == ["Relu"]
    outer, _ = prune(PruneBlocks(ratio=0.5, exclude=("i",)), model(body))
    assert ops(outer) == ["Relu"]


def test_a_body_that_belongs_to_a_branch_goes_with_it() -> None:
    body = """h = Relu(x) m = ReduceMax<keepdims=0>(h) zero = Constant<value=float {0}>() c = Greater(m, zero)
        a = If(c) <then_branch = t () => (float[N,8] at) { at = MatMul(h, w0) },
                   else_branch = e () => (float[N,8] ae) { ae = MatMul(h, w1) }>
        f = MatMul(a, w2) s = Add(h, f) y = MatMul(s, w3)"""
    pruned, _ = prune(PruneBlocks(ratio=0.5), model(body))
    assert ops(pruned) == ["Relu", "MatMul"]
    assert set(pruned.graph.initializers) == {"w3"}


# -- which branches go ---------------------------------------------------------------------------------------------


def chain(*scales: float, body: str = "") -> ir.Model:
    """A branch for each scale, one after the other; the branch of scale 0 adds nothing."""
    nodes, stream = "h = Relu(x) ", "h"
    for at in range(len(scales)):
        nodes += f"a{at} = MatMul({stream}, u{at}) t{at} = Tanh(a{at}) b{at} = MatMul(t{at}, v{at}) "
        nodes += f"s{at} = Add({stream}, b{at}) "
        stream = f"s{at}"
    arrays: dict[str, Any] = {f"u{at}": normal(8, 8, seed=at) for at in range(len(scales))}
    arrays |= {f"v{at}": normal(8, 8, seed=50 + at, scale=scale) for at, scale in enumerate(scales)}
    return graph(
        f"g (float[N,8] x) => (float[N,8] y) {{ {nodes} y = MatMul({stream}, w5) }}", w5=WEIGHTS["w5"], **arrays
    )


def test_the_branches_that_matter_least_go() -> None:
    before = chain(0.5, 0.0, 0.01, 0.4)
    pruned, report = prune(PruneBlocks(ratio=0.5), before)
    assert removed(report) == ["s1", "s2"]
    without, _ = prune(PruneBlocks(ratio=0.25), before)
    np.testing.assert_array_equal(outputs(without, {"x": X})[0], outputs(before, {"x": X})[0])
    facts = {fact["node"]: fact for fact in report.facts}
    assert [facts[f"s{at}"]["removed"] for at in range(4)] == [False, True, True, False]
    assert facts["s1"]["noise"] == 0.0
    assert facts["s0"]["parameters"] == 128
    assert facts["s0"]["macs"] == pytest.approx(128 / (4 * 128 + 64))
    assert parameters(before) - parameters(pruned) == 256


def test_noise_is_that_of_the_model_without_the_branch() -> None:
    """The oracle: each model built, and its outputs compared."""
    before = chain(0.5, 0.1, 0.3)
    _, report = prune(PruneBlocks(), before)
    for fact in report.facts:
        alone, _ = prune(PruneBlocks(ratio=0.99, include=(str(fact["node"]),)), before)
        quality = compare(["y"], [outputs(before, {"x": X})], [outputs(alone, {"x": X})])
        assert fact["noise"] == pytest.approx(quality.noise, rel=1e-4)


def test_harms_are_measured_together() -> None:
    """Of three branches ``t`` undoes half of ``s``: with ``t`` gone, ``s`` harms less than ``r``, and before more."""
    u, v = normal(8, 8, seed=1, scale=0.3), normal(8, 8, seed=2, scale=0.3)
    nodes = "h = Relu(x) a = MatMul(h, u) b = MatMul(h, m) c = MatMul(h, v) s = Add(h, a) t = Add(s, b) r = Add(t, c)"
    before = model(f"{nodes} y = MatMul(r, w5)", u=u, m=-u / 2, v=0.8 * v)
    _, report = prune(PruneBlocks(ratio=0.6), before)
    noise: dict[Any, Any] = {fact["node"]: fact["noise"] for fact in report.facts}
    assert noise["t"] < noise["r"] < noise["s"]
    assert removed(report) == ["t", "s"]


def test_greedy_finds_what_trying_all_sets_finds_where_harms_add_up() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        harms = rng.random(6).tolist()

        def harm(chosen: Iterable[int], harms: Sequence[float] = harms) -> float:
            return sum(harms[at] for at in chosen)

        order = [at for at, _ in greedy(harms, harm, len, 3)]
        assert sorted(order) == list(min(itertools.combinations(range(6), 3), key=harm))


def test_greedy_measures_again_and_counts_no_more_than_is_wanted() -> None:
    def harm(chosen: frozenset[int]) -> float:
        return {frozenset(): 0.0, frozenset({0}): 1.0, frozenset({0, 1}): 5.0, frozenset({0, 2}): 2.5}.get(chosen, 9.0)

    assert list(greedy([1.0, 1.1, 2.0], harm, len, 2)) == [(0, 1.0), (2, 2.5)]
    sizes = [1.0, 1.0, 10.0]
    cheap = greedy([0.4, 0.5, 2.0], lambda s: 0.0, lambda s: sum(sizes[at] for at in s), 1.0)
    assert [at for at, _ in cheap] == [0]
    assert list(greedy([1.0], harm, lambda s: 0.0, 1.0)) == []


def test_shares_of_branches_and_macs() -> None:
    before = chain(0.5, 0.1, 0.3, 0.2, 0.4)
    for ratio, count in ((0.2, 1), (0.21, 2), (0.4, 2), (0.6, 3), (0.99, 5)):
        assert prune(PruneBlocks(ratio=ratio), before)[1].changed == count
    pruned, _ = prune(PruneBlocks(ratio=0.5, of="macs"), before)
    assert count_macs(pruned).total <= 0.5 * count_macs(before).total
    with pytest.raises(OptionError, match=r"ratio 0.95 of macs cannot be reached: .* have 90.9% of them"):
        prune(PruneBlocks(ratio=0.95, of="macs"), before)


def test_the_same_again() -> None:
    first, second = (prune(PruneBlocks(ratio=0.5), chain(0.5, 0.1, 0.3, 0.2))[0] for _ in range(2))
    assert to_proto(first) == to_proto(second)


def test_a_trained_transformer(sentiment: ir.Model) -> None:
    train, _ = samples("sentiment_text", "train")
    with np.load(MODELS / "transformer_sentiment" / "eval.npz") as arrays:
        held_out = load_data({name: arrays[name][:600] for name in arrays}, sentiment)
    pruned, report = prune(PruneBlocks(ratio=0.5), sentiment, {"input_ids": train[:64]})
    assert removed(report) == ["/block2/Add_3", "/block2/Add_1"]
    found = evaluate(Snapshot.of(sentiment), Snapshot.of(pruned), held_out)
    whole, left = found.accuracy["logits"]
    assert left >= whole - 0.02
    assert found.agreement["logits"] >= 0.97
    assert count_macs(pruned).total <= 0.51 * count_macs(sentiment).total


def test_as_exported(sentiment: ir.Model) -> None:
    """Shapes computed at run time, written-out normalizations: the branches are the same as after cleanup."""
    exported = load(MODELS / "transformer_sentiment" / "model.onnx")
    for each in (exported, sentiment):
        names = [branch.name for branch in Branches(Editor(each)).found]
        assert names == ["/block1/Add_1", "/block1/Add_3", "/block2/Add_1", "/block2/Add_3"]


# -- what stays ----------------------------------------------------------------------------------------------------

NOTHING = "model: there is no residual branch that may be removed"


@pytest.mark.parametrize(
    ("before", "why"),
    [
        pytest.param(
            model("h = Relu(x) a = MatMul(h, w0) b = MatMul(h, w1) s = Add(a, b) y = MatMul(s, w2)"),
            "s: both sides are branches with layers of their own: neither is what the other starts from",
            id="a shortcut with weights",
        ),
        pytest.param(
            model("h = Relu(x) a = MatMul(h, w0) s = Add(h, a) q = Relu(a) y = MatMul(s, q2)", q2=normal(8, 8),
                  outs="float[N,8] y, float[N,8] q"),
            "s: its branch stays: q reads it too",
            id="read elsewhere",
        ),
        pytest.param(
            model("h = Relu(x) a = MatMul(h, w0) s = Add(h, a) y = MatMul(s, w1)", outs="float[N,8] y, float[N,8] a"),
            "s: its branch stays: the caller reads it too",
            id="an output",
        ),
        pytest.param(model("a = MatMul(x, w0) y = Relu(a)"), NOTHING, id="no sum"),
        pytest.param(model("a = Tanh(x) s = Add(x, a) y = MatMul(s, w0)"), NOTHING, id="no layer"),
        pytest.param(model("a = MatMul(x, w0) s = Add(a, b) y = Relu(s)", b=normal(8)), NOTHING, id="a bias"),
        pytest.param(
            model("m = ReduceMax<keepdims=1>(x) a = MatMul(x, w0) t = Mul(a, m) s = Add(t, m) y = MatMul(s, w1)"),
            NOTHING, id="spread over what is added",
        ),
        pytest.param(
            model("e = Compress<axis=1>(x, first) q = Mul(x, e) a = MatMul(q, w0) s = Add(a, e) y = MatMul(s, w1)",
                  first=np.array([True])),
            NOTHING, id="spread over what is added, by sizes known at run time",
        ),
        pytest.param(
            model("h = Relu(x) a = MatMul(h, w0) s = Add<broadcast=0>(h, a) y = MatMul(s, w1)", opset=6, ir_version=4),
            "s: its branch stays: trials need opset 7 or more, the model has 6", id="an old opset",
        ),
        pytest.param(
            model("c = Cast<to=6>(x) a = MatMul(c, i) s = Add(c, a) y = Cast<to=1>(s)", i=np.ones((8, 8), np.int32)),
            "s: its branch stays: its type is INT32", id="integers",
        ),
    ],
)  # fmt: skip
def test_what_is_no_branch_stays(before: ir.Model, why: str) -> None:
    _, report = prune(PruneBlocks(ratio=0.5), before)
    assert report.changed == 0
    assert why in refusals(report)


def test_a_sum_that_is_spread_at_run_time_is_left_out_among_branches() -> None:
    body = """h = Relu(x) e = Compress<axis=1>(h, first) q = Mul(h, e) a = MatMul(q, w0) s = Add(a, e)
        b = MatMul(s, w1) t = Add(s, b) y = MatMul(t, w2)"""
    pruned, report = prune(PruneBlocks(ratio=0.99), model(body, first=np.array([True])))
    assert removed(report) == ["t"]
    assert [fact["node"] for fact in report.facts] == ["t"]
    assert ops(pruned) == ["Relu", "Compress", "Mul", "MatMul", "Add", "MatMul"]


def test_residual_network_keeps_blocks_with_projections() -> None:
    before = load(MODELS / "resnet8_mnist_hard" / "model.onnx")
    images = samples("mnist_hard", "train")[0][:32]
    _, report = prune(PruneBlocks(ratio=0.5), before, {before.graph.inputs[0].name: images})
    assert len(removed(report)) == 1
    assert len(report.refusals) == 2
    assert "both sides are branches with layers of their own" in refusals(report)


def test_excluded_branches_stay() -> None:
    _, report = prune(PruneBlocks(ratio=0.99, exclude=("s1", "s2")), chain(0.5, 0.0, 0.01, 0.4))
    assert sorted(removed(report)) == ["s0", "s3"]
    _, report = prune(PruneBlocks(exclude=("*",)), chain(0.5, 0.0))
    assert NOTHING in refusals(report)


def test_macs_that_are_not_known() -> None:
    before = model("n = NonZero(x) f = Cast<to=1>(n) t = Transpose(f) a = MatMul(t, p) s = Add(t, a) y = ReduceSum(s)",
                   p=normal(2, 2), outs="float[A,B] y")  # fmt: skip
    with pytest.raises(OptionError, match=r"of macs: those of 'a' are not known"):
        prune(PruneBlocks(of="macs"), before)
    _, report = prune(PruneBlocks(ratio=0.5), before)
    assert report.changed == 1
    assert report.facts[0]["macs"] is None


def test_data_are_needed() -> None:
    with pytest.raises(DataError, match="prune-blocks needs calibration data"):
        PassManager([PruneBlocks()])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.0}, r"ratio is a share in \(0, 1\), got 0.0"),
        ({"ratio": 1.0}, r"ratio is a share in \(0, 1\), got 1.0"),
        ({"of": "latency"}, "of is one of branches, macs; got 'latency'"),
    ],
)
def test_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PruneBlocks(**options)


def test_gates_leave_the_model_alone() -> None:
    before = chain(0.5, 0.3)
    plain = to_proto(before)
    editor = Editor(before)
    gates = Gates(editor, Branches(editor).found, load_data({"x": X}, before))
    assert gates.harm(()) == 0.0
    assert gates.fits.tolist() == [True, True]
    assert to_proto(before) == plain
