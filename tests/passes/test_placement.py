"""Measured placement, with a clock of the test's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.data import load_data
from onnxopt.errors import OptionError
from onnxopt.evaluation import Quality
from onnxopt.graph import Editor
from onnxopt.judge import Judge, carried_state
from onnxopt.model import copy, to_proto
from onnxopt.pass_base import Context, Report
from onnxopt.passes.quantize import _placement
from onnxopt.passes.quantize._budget import Budget
from onnxopt.passes.quantize._cut import Border, Kernel
from onnxopt.passes.quantize._placement import Choice, Placement, Trial
from onnxopt.passes.quantize._plan import Plan
from onnxopt.passes.quantize.quantize_static import QuantizeStatic
from onnxopt.runtime import Ratio, Snapshot
from tests.support import graph, ops

RNG = np.random.default_rng(0)
DATA = {"x": RNG.normal(size=(64, 8, 12, 12)).astype(np.float32)}


@pytest.fixture(autouse=True)
def _no_choices_of_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def network() -> ir.Model:
    def weight(*shape: int) -> np.ndarray[Any, Any]:
        return RNG.normal(scale=np.prod(shape[1:]) ** -0.5, size=shape).astype(np.float32)

    return graph(
        """g (float[N,8,12,12] x) => (float[N,8,12,12] y) {
            a = Conv <pads = [1,1,1,1]> (x, w1)
            b = Relu(a)
            y = Conv <pads = [1,1,1,1]> (b, w2)
        }""",
        w1=weight(8, 8, 3, 3),
        w2=weight(8, 8, 3, 3),
    )


def clock(monkeypatch: pytest.MonkeyPatch, ratio: float) -> None:
    """Let everything quantized take ``ratio`` of the time of the float model."""

    def measured(a: object, others: Sequence[object], *_: object, **__: object) -> list[Ratio]:
        return [Ratio(ratio, ratio, ratio, ratio)] * len(others)

    monkeypatch.setattr(_placement, "latency_ratios", measured)


def placed(model: ir.Model, **options: Any) -> tuple[ir.Model, Report]:
    result = copy(model)
    data = load_data(DATA, model)
    return result, QuantizeStatic(**options).run(Context(Editor(result), data=data, original=model))


def test_quantizes_what_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, 0.5)
    after, report = placed(network())
    assert report.changed > 0
    assert "QuantizeLinear" in ops(after)
    assert next(fact["latency_ratio"] for fact in report.facts if fact.get("node") == "model") == 0.5


def test_a_choice_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are never twice the same; equal runs give equal bytes, whatever the clock says the second time."""
    model = network()
    clock(monkeypatch, 0.5)
    first, report = placed(model)
    clock(monkeypatch, 1.08)
    second, again = placed(model)
    assert to_proto(first).SerializeToString() == to_proto(second).SerializeToString()
    assert again == report
    assert ops(placed(model, min_sqnr=10.0)[0]) == ops(model), "another question is asked anew"
    assert ops(placed(network())[0]) == ops(model), "and so is that of another model"


def test_a_choice_that_cannot_be_read_is_made_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = network()
    clock(monkeypatch, 0.5)
    placed(model)
    (file,) = (tmp_path / "onnxopt" / "placements").iterdir()
    for name in ("choice", "other"):
        np.savez(file, **{name: np.arange(7, dtype=np.uint8)})  # type: ignore[arg-type]
        clock(monkeypatch, 0.5)
        anew, _ = placed(model)
        assert "QuantizeLinear" in ops(anew)
        clock(monkeypatch, 1.08)
        assert to_proto(placed(model)[0]) == to_proto(anew), "and that is kept"


def test_returns_no_slower_model(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, 1.08)
    after, report = placed(network())
    assert report.changed == 0
    assert ops(after) == ops(network())
    assert {note.text for note in report.refusals} == {"kept float: INT8 takes 1.08 of the time here"}


@pytest.mark.parametrize("budget", [{"min_sqnr": 200.0}])
def test_returns_no_model_beyond_the_budget(monkeypatch: pytest.MonkeyPatch, budget: dict[str, float]) -> None:
    clock(monkeypatch, 0.5)
    after, report = placed(network(), **budget)
    assert report.changed == 0
    assert ops(after) == ops(network())
    assert all("no faster form stays within the budget" in note.text for note in report.refusals)


def timed(self: object, choice: Choice, made: Plan, found: object) -> list[Border]:
    """By kernels and quantizers alone both convolutions pay as integers; if crossing costs more, the second alone."""
    first, second = made.nodes
    choice.times = {first: Kernel(9.0, 10.0), second: Kernel(1.0, 11.0)}
    return [
        Border(None, (first,), False, 0.5, 0.0), Border(first, (second,), False, 0.2, 0.2),
        Border(second, (), True, 0.2, 0.2),
    ]  # fmt: skip


def race(monkeypatch: pytest.MonkeyPatch, both: float, one: float, both_db: float = 30.0) -> None:
    """Let models with both convolutions quantized, or one, take so much of the time."""

    def raced(self: Placement, wanted: Iterable[frozenset[str]]) -> None:
        for nodes in dict.fromkeys(wanted):
            ratio, db = (both, both_db) if len(nodes) > 1 else (one, 30.0)
            quality = Quality(32, {"y": db}, {"y": 0.5})
            self._trials[nodes] = Trial(nodes, Ratio(ratio, ratio, ratio, ratio), lambda quality=quality: quality)  # type: ignore[misc]

    monkeypatch.setattr(Placement, "_time", timed)
    monkeypatch.setattr(Placement, "_race", raced)


def test_where_crossing_takes_longer_than_its_quantizer_the_cut_that_is_fastest_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    race(monkeypatch, both=0.6, one=0.5)
    _, report = placed(network())
    chosen = {fact["node"]: fact["integer"] for fact in report.facts if "integer" in fact}
    assert list(chosen.values()) == [False, True]


@pytest.mark.parametrize(("both", "looked"), [(0.5, True), (0.78, False)])
def test_parts_of_what_is_much_faster_but_not_near_enough_are_looked_at(
    monkeypatch: pytest.MonkeyPatch, both: float, looked: bool
) -> None:
    race(monkeypatch, both=both, one=0.8, both_db=5.0)
    seen: list[list[int]] = []
    monkeypatch.setattr(
        Placement, "_spare", lambda self, choice, borders, fast: seen.append([len(each.nodes) for each in fast])
    )
    _, report = placed(network())
    assert seen == ([[2]] if looked else [])
    assert report.changed == 1, "what is near enough is taken if none of them is"


def test_spares_what_harms_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer sees an outlier that leaves next to no steps for the rest; the other can be quantized."""
    clock(monkeypatch, 0.5)
    model = graph(
        """g (float[N,4,16] x) => (float[N,4,16] y, float[N,4,16] z) {
            y = MatMul(x, w)
            s = Mul(x, k)
            z = MatMul(s, w2)
        }""",
        w=RNG.normal(size=(16, 16)).astype(np.float32),
        w2=np.concatenate([np.zeros((1, 16)), RNG.normal(size=(15, 16))]).astype(np.float32),
        k=np.array([3e4] + [1.0] * 15, np.float32),
    )
    data = load_data({"x": RNG.normal(size=(64, 4, 16)).astype(np.float32)}, model)
    result = copy(model)
    report = QuantizeStatic(min_sqnr=25.0, method="minmax").run(Context(Editor(result), data=data, original=model))
    float_layers = {note.node for note in report.refusals if "budget" in note.text}
    changed = {note.node for note in report.changes}
    assert "z" in float_layers or report.changed == 0  # never a model beyond the budget
    assert "z" not in changed


def test_the_budget() -> None:
    def quality(db: float, before: float = 0.9, after: float = 0.9, agreement: float = 1.0) -> Quality:
        return Quality(32, {"y": db}, {"y": agreement}, {"y": (before, after)})

    assert Budget().holds(quality(23, after=0.5))
    assert Budget().holds(quality(5, after=0.895))
    assert not Budget().holds(quality(21, after=0.88))
    assert not Budget(min_sqnr=30).holds(quality(29))
    assert not Budget(max_drop=0.001).holds(quality(50, after=0.89))
    assert Budget(min_sqnr=30, max_drop=0.02).holds(quality(31, after=0.89))
    assert not Budget().holds(Quality(32, {"y": 10.0}, {"y": 0.95}))
    assert Budget().holds(quality(22.6, after=0.5), reserve=0.5)
    assert not Budget().holds(quality(22.4, after=0.5), reserve=0.5)
    assert not Budget(max_drop=0.01).holds(quality(50, after=0.8905), reserve=0.5)


def test_without_a_budget_every_output_has_to_be_near() -> None:
    right = {"y": (0.4, 0.4)}
    assert not Budget().holds(Quality(32, {"y": 6.0}, {"y": 0.8}, right)), "as many right, but others"
    assert not Budget().holds(Quality(32, {"y": 6.0, "state": 15.0}, {"y": 1.0})), "one output's answers say nothing"
    assert Budget().holds(Quality(32, {"y": 6.0, "state": 25.0}, {"y": 1.0}))
    assert not Budget().holds(Quality(32, {"y": 30.0}, {"y": 1.0, "top": 0.9})), "indices have no SQNR"


def test_is_judged_on_samples_that_gave_no_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, 0.5)
    model = network()
    data, wider = load_data(DATA, model), load_data({"x": 20 * DATA["x"]}, model)
    for evaluation, changed in ((data, True), (wider, False)):
        report = QuantizeStatic().run(Context(Editor(copy(model)), data=data, evaluation=evaluation, original=model))
        assert bool(report.changed) == changed


def test_a_few_samples_tell_noise_but_not_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first samples leave no doubt which class is theirs; with those behind, the least noise decides."""
    clock(monkeypatch, 0.5)
    rng = np.random.default_rng(0)  # of its own: what is drawn must not hang on the tests before
    model = graph(
        "g (float[N,64] x) => (float[N,16] y) { h = MatMul(x, w) y = Mul(h, k) }",
        w=rng.normal(size=(64, 16)).astype(np.float32),
        k=np.ones(16, np.float32),
    )
    noisy = rng.normal(size=(64, 64)).astype(np.float32)
    weight = np.asarray(model.graph.initializers["w"].const_value)
    close = noisy @ weight
    gap = np.sort(close, axis=1)
    tied = noisy - ((gap[:, -1] - gap[:, -2])[:, None] * (1 - 1e-3)) * (np.linalg.pinv(weight)[close.argmax(1)]).astype(
        np.float32
    )
    clear = noisy[:32]
    judged = Budget(max_drop=0.01)
    assert not judged.told_by_few(Quality(32, {"y": 50.0}, {"y": 1.0}))
    assert Budget().told_by_few(Quality(32, {"y": 50.0}, {"y": 0.9}))
    assert not Budget().told_by_few(Quality(32, {"y": 10.0}, {"y": 1.0}))
    for samples, changed in ((clear, True), (np.concatenate([clear, tied]), False)):
        data = load_data({"x": noisy}, model)
        context = Context(Editor(copy(model)), data=data, evaluation=load_data({"x": samples}, model), original=model)
        report = QuantizeStatic(max_drop=0.05).run(context)
        assert bool(report.changed) == changed


def test_options() -> None:
    for wrong in ({"placement": "some"}, {"max_drop": 2.0}, {"threads": 0}):
        with pytest.raises(OptionError):
            QuantizeStatic(**wrong)


COUNTER = "g (float[1,4] x, float[1,4] state) => (float[1,4] y, float[1,4] stateN) { %s y = Mul(stateN, stateN) }"


def test_state_is_carried() -> None:
    model = graph(COUNTER % "stateN = Add(state, x)")
    assert carried_state(model) == {"state": "stateN"}
    drifts = graph(COUNTER % "s = Add(state, x) stateN = Add(s, e)", e=np.full(4, 0.01, np.float32))
    one, zero = np.ones((1, 4), np.float32), np.zeros((1, 4), np.float32)
    runs = [{"x": one if at % 2 == 0 else -one, "state": zero} for at in range(20)]

    def noise(count: int) -> float:
        judge = Judge(model, Snapshot.of(model), load_data(runs[:count], model))
        return judge.quality(Snapshot.of(drifts)).sqnr_db["stateN"]

    assert noise(1) == pytest.approx(40, abs=0.1)  # 0.01 of 1
    steps = np.arange(1, 21)
    assert noise(20) == pytest.approx(10 * np.log10(10 / np.sum((0.01 * steps) ** 2)), abs=0.1)  # it has added up


def test_other_outputs_are_no_state() -> None:
    model = graph("g (float[1,4] x) => (float[1,4] y, int64[1] x_out) { y = Relu(x) x_out = ArgMax<keepdims=0>(x) }")
    assert carried_state(model) == {}


def test_few_samples_have_to_be_nearer() -> None:
    """Noise counts as the root of how many times there should be more of them, and twice at most."""
    for samples, least in ((64, 22.0), (32, 22.0), (12, 22 + 5 * np.log10(32 / 12)), (8, 25.0103), (3, 25.0103)):
        assert Budget().holds(Quality(samples, {"y": least + 1e-3}))
        assert not Budget().holds(Quality(samples, {"y": least - 1e-3}))
    assert Budget().holds(Quality(12, {"y": 5.0}, {"y": 1.0})), "answers are counted as they are"
