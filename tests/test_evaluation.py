"""What is said of a lossy pass: SQNR, agreement and accuracy, against numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.data import load_data
from onnxopt.evaluation import MAX_LABELLED, MAX_SAMPLES, Measure, Quality, Samples, evaluate
from onnxopt.runtime import Snapshot
from tests.support import graph

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((6, 4)).astype(np.float32)
X = RNG.standard_normal((300, 6)).astype(np.float32)
LABELS = RNG.integers(0, 4, 300)


def classifier(weight: Any) -> ir.Model:
    nodes = "y = MatMul(x, w) top = ArgMax<axis = 1, keepdims = 0>(y)"
    return graph(f"g (float[N, 6] x) => (float[N, 4] y, int64[N] top) {{ {nodes} }}", w=weight)


def test_agrees_with_numpy_over_batches() -> None:
    other = WEIGHT + 0.3 * RNG.standard_normal((6, 4)).astype(np.float32)
    before, after = classifier(WEIGHT), classifier(other)
    data = load_data({"x": X, "labels": LABELS}, before)
    found = evaluate(Snapshot.of(before), Snapshot.of(after), data)
    a, b = X.astype(np.float64) @ WEIGHT, X.astype(np.float64) @ other
    assert found.samples == 300
    assert found.sqnr_db["y"] == pytest.approx(10 * np.log10(np.sum(a**2) / np.sum((a - b) ** 2)), abs=1e-3)
    same = np.mean(a.argmax(1) == b.argmax(1))
    assert found.agreement == {"y": same, "top": same}
    assert list(found.sqnr_db) == ["y"]  # of indices it would say nothing
    right = np.mean(a.argmax(1) == LABELS), np.mean(b.argmax(1) == LABELS)
    assert found.accuracy == {"y": right, "top": right}


@pytest.mark.parametrize(
    ("before", "after", "decibels"),
    [
        ([1.0, 2.0], [1.0, 2.0], math.inf),
        ([3.0, 4.0], [3.0, 3.5], 20.0),
        ([0.0, 0.0], [0.0, 0.1], -math.inf),
        ([1.0, -math.inf], [1.0, -math.inf], math.inf),
        ([3.0, math.nan, 4.0], [3.0, math.nan, 3.5], 20.0),
        ([1.0, 1.0], [1.0, math.nan], -math.inf),
        ([1.0, 1.0], [1.0], -math.inf),
    ],
)
def test_sqnr_of_odd_values(before: list[float], after: list[float], decibels: float) -> None:
    measure = Measure(["y"])
    measure.add([np.array(before, np.float32)], [np.array(after, np.float32)])
    assert measure.result(1).sqnr_db["y"] == pytest.approx(decibels)


def test_what_to_expect_of_other_samples() -> None:
    """As often as one in six, other samples of as many show less; told from one draw, where the noise of one is not
    that of another."""
    rng = np.random.default_rng(0)
    everything = rng.normal(size=(20000, 8)).astype(np.float32)
    noise = everything * 0 + rng.normal(size=everything.shape) * rng.choice([0.02, 0.3], (20000, 1), p=[0.8, 0.2])
    other = (everything + noise).astype(np.float32)
    whole = 10 * np.log10(np.sum(everything**2) / np.sum(noise**2))
    below = []
    for start in range(0, 20000, 32):
        measure = Measure(["y"])
        for at in (start, start + 16):
            measure.add([everything[at : at + 16]], [other[at : at + 16]])
        found = measure.result(32)
        assert found.sure_db["y"] < found.sqnr_db["y"]
        below.append(found.sure_db["y"] <= whole)
    assert 0.75 < np.mean(below) < 0.92


@pytest.mark.parametrize("x", [np.ones((1, 4), np.float32), np.float32(1.0), np.zeros((0, 3), np.float32)])
def test_one_sample_says_nothing_of_others(x: Any) -> None:
    measure = Measure(["y"])
    measure.add([np.asarray(x)], [np.asarray(x) + np.float32(0.1)])
    found = measure.result(1)
    assert found.sure_db == found.sqnr_db


def test_answers_are_equal_or_not() -> None:
    measure = Measure(["index", "word", "byte"])
    words = np.array(["cat", "dog", "cat", "dog"])
    byte = np.array([100, 100, 100, 100], np.uint8)
    measure.add([np.array([900, 1, 2, 3]), words, byte], [np.array([901, 1, 2, 3]), words[::-1], byte + 10])
    measure.add([np.array([1, 2]), words, byte], [np.array([1, 2, 3]), words, byte])
    found = measure.result(8)
    assert found.agreement == {"index": 3 / 6, "word": 4 / 8}
    assert found.sqnr_db == pytest.approx({"byte": 10 * np.log10(2 * 100**2 / 10**2)})
    assert found.noise == 0.5
    assert found.lost == {"index": 0.5, "word": 0.5}


def test_what_was_right_counts_as_lost() -> None:
    found = Quality(100, {"y": 5.0}, {"y": 0.9}, {"y": (0.8, 0.6), "z": (0.5, 0.6)})
    assert found.lost == {"y": pytest.approx(0.2), "z": 0.0}
    assert Quality(100, {"y": 5.0}, {"y": 0.9}, {"y": (0.8, 0.8)}).lost == {"y": pytest.approx(0.1)}


def test_labels_that_fit_no_output_give_no_accuracy() -> None:
    measure = Measure(["y", "s"])
    y = np.zeros((2, 4), np.float32)
    measure.add([y, ["a", "b"]], [y, ["a", "b"]], np.zeros((2, 7), np.int64))
    found = measure.result(2)
    assert (found.accuracy, found.agreement, list(found.sqnr_db)) == ({}, {"y": 1.0}, ["y"])


def test_half_of_the_data_is_held_out() -> None:
    model = classifier(WEIGHT)
    samples = Samples.of({"x": np.concatenate([X, X])}, None, model)
    assert samples.calibration is not None
    assert samples.evaluation is not None
    assert samples.held_out is not None
    assert (len(samples.calibration), len(samples.evaluation), len(samples.held_out)) == (300, 300, MAX_SAMPLES)
    assert not samples.warnings
    labelled = Samples.of({"x": np.concatenate([X, X]), "labels": np.concatenate([LABELS, LABELS])}, None, model)
    assert labelled.held_out is not None
    assert len(labelled.held_out) == MAX_LABELLED


def test_one_sample_serves_for_both_and_it_is_said() -> None:
    samples = Samples.of({"x": X[:1]}, None, classifier(WEIGHT))
    assert samples.evaluation is samples.calibration
    assert "on the same data" in samples.warnings[0]
