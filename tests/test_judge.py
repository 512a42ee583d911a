"""The judge against its own definition: all samples at once, by a model of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt import judge as judging
from onnxopt.data import load_data
from onnxopt.evaluation import Quality, evaluate
from onnxopt.judge import Judge
from onnxopt.passes.quantize._budget import Budget
from onnxopt.runtime import Session, Snapshot
from tests.support import graph

RNG = np.random.default_rng(11)
X = RNG.normal(size=(50, 8)).astype(np.float32)
W = RNG.normal(size=(8, 5)).astype(np.float32)


def model(noise: float = 0.0, seed: int = 0) -> ir.Model:
    """``y = x W``, with noise on the weight."""
    moved = W + noise * np.random.default_rng(seed).normal(size=W.shape)
    return graph("g (float[N,8] x) => (float[N,5] y) { y = MatMul(x, w) }", w=moved.astype(np.float32))


def judge(labels: bool = False) -> Judge:
    answers = {"labels": (X @ W).argmax(1)} if labels else {}
    return Judge(model(), Snapshot.of(model()), load_data({"x": X, **answers}, model()))


def whole(noise: float, seed: int) -> Quality:
    return evaluate(Snapshot.of(model()), Snapshot.of(model(noise, seed)), load_data({"x": X}, model()))


def test_what_was_judged_on_few_samples_goes_on() -> None:
    judge_, after = judge(), Snapshot.of(model(0.1))
    few = judge_.quality(after, 10)
    assert 10 <= few.samples < 14
    assert judge_.quality(after, 3) == few
    found = judge_.quality(after)
    assert found.samples == len(X)
    assert found.sqnr_db == pytest.approx(whole(0.1, 0).sqnr_db)
    assert found.agreement == whole(0.1, 0).agreement
    assert found == judge().quality(after)


def test_nothing_is_run_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    run = Session.run

    def counted(self: Session, feeds: Any, outputs: Any = None) -> Any:
        runs.append(len(feeds["x"]))
        return run(self, feeds, outputs)

    monkeypatch.setattr(Session, "run", counted)
    judge_ = judge()
    for samples in (10, None, None, 20):
        judge_.quality(Snapshot.of(model(0.1)), samples)
    judge_.quality(Snapshot.of(model(0.2)))
    assert sum(runs) == 3 * len(X)


def test_what_does_not_fit_into_memory_is_computed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = judge().quality(Snapshot.of(model(0.1)))
    monkeypatch.setattr(judging, "_HELD_BYTES", 100)
    judge_ = judge()
    judge_.quality(Snapshot.of(model(0.1)), 10)
    assert judge_.quality(Snapshot.of(model(0.1))) == wanted


@settings(deadline=None, max_examples=60)
@given(
    noise=st.floats(0.001, 2.0),
    seed=st.integers(0, 1000),
    budget=st.one_of(
        st.just(Budget()),
        st.builds(Budget, min_sqnr=st.floats(0, 50)),
        st.builds(Budget, max_drop=st.floats(0, 0.5)),
    ),
    labels=st.booleans(),
)
def test_what_is_stopped_would_not_have_held(noise: float, seed: int, budget: Budget, labels: bool) -> None:
    """Whether the budget holds is the same, whether or not one stops as soon as it cannot."""
    after = Snapshot.of(model(noise, seed))
    full = judge(labels).quality(after)
    stopped = judge(labels).quality(after, None, lambda quality: not budget.holds(quality))
    assert budget.holds(full) == budget.holds(stopped)
    assert stopped == full or stopped.samples < full.samples


def test_the_hopeless_are_stopped_at_once() -> None:
    found = judge().quality(Snapshot.of(model(2.0)), None, lambda quality: not Budget(min_sqnr=20).holds(quality))
    assert found.samples <= 8
