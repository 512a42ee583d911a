"""Batches: the same from wherever the data come, and what a teacher says goes with the right samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxopt.data import load_data
from onnxopt.train import SGD, CrossEntropy, MeanSquaredError, TrainConfig, train
from onnxopt.train.batches import Batches, Teacher
from onnxopt.train.loss_graph import TeacherValue
from tests import support
from tests.train.cases import dataset, perceptron, sectors, weights

Array = np.ndarray[Any, Any]
_CONFIG = TrainConfig(steps=10, batch=32, optimizer=SGD(), lr=0.05, threads=1)


def test_files_arrays_and_both_at_once_give_the_same(tmp_path: Path) -> None:
    data = sectors()
    np.savez(tmp_path / "a.npz", x=data["x"][:120], labels=data["labels"][:120])
    np.savez(tmp_path / "b.npz", x=data["x"][120:], labels=data["labels"][120:])
    runs = [train(perceptron(), CrossEntropy(), d, _CONFIG) for d in (dataset(), load_data(tmp_path, perceptron()))]
    for run in runs:
        list(run)
    for name, array in runs[0].parameters.items():
        np.testing.assert_array_equal(array, runs[1].parameters[name])


def test_any_step_can_be_had_at_any_time() -> None:
    forward, backward = (Batches(dataset(), 32, seed=3, labelled=True) for _ in range(2))
    found = {index: backward.at(index) for index in reversed(range(20))}
    for index in range(20):
        for (arrays, samples), (other, count) in zip(forward.at(index), found[index], strict=True):
            assert samples == count
            for name, array in arrays.items():
                np.testing.assert_array_equal(array, other[name])


@pytest.mark.parametrize("bound", [1 << 30, 1000])
def test_what_the_teacher_says_goes_with_the_samples(monkeypatch: pytest.MonkeyPatch, bound: int) -> None:
    monkeypatch.setattr("onnxopt.train.batches.MAX_BYTES", bound)
    teacher = perceptron()
    values = (TeacherValue("r"), TeacherValue("", scores=True))
    batches = Batches(dataset(), 24, part=10, seed=1, teacher=Teacher(teacher, values, 1))
    teacher.graph.outputs[:] = [v for node in teacher.graph for v in node.outputs if v.name in ("r", "y")]
    for index in range(2 * batches.steps):
        for arrays, samples in batches.at(index):
            assert samples == len(arrays["x"]) <= 10
            r, y = support.outputs(teacher, {"x": arrays["x"]})
            np.testing.assert_allclose(arrays["teacher/r"], r, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(arrays["teacher//scores"], y, rtol=1e-5, atol=1e-6)


def test_a_teacher_whose_value_has_no_samples_in_front_is_asked_for_each_batch() -> None:
    model = support.graph(
        "g (float[N,2] x) => (float[3,N] t) { y = MatMul(x, w) t = Transpose<perm = [1, 0]>(y) }",
        w=weights(np.random.default_rng(0), 2, 3),
    )
    run = train(model, MeanSquaredError(), dataset(), _CONFIG, teacher=model)
    assert max(step.loss for step in run) < 1e-10


def test_samples_of_two_shapes_in_one_batch(tmp_path: Path) -> None:
    """They go into the model apart, and count alike."""
    model = support.graph(
        "g (float[N,T,2] x) => (float[N,3] y) { m = ReduceMean<keepdims = 0>(x, axes) y = MatMul(m, w) }",
        w=weights(np.random.default_rng(0), 2, 3), axes=np.array([1]),
    )  # fmt: skip
    data = sectors(40)
    wide = np.repeat(data["x"][:, None], 4, axis=1)
    np.savez(tmp_path / "a.npz", x=wide[:25, :3], labels=data["labels"][:25])
    np.savez(tmp_path / "b.npz", x=wide[25:], labels=data["labels"][25:])
    config = TrainConfig(steps=6, batch=16, optimizer=SGD(), lr=0.05, threads=1)
    apart = train(model, CrossEntropy(), load_data(tmp_path, model), config)
    alike = train(model, CrossEntropy(), load_data({"x": wide, "labels": data["labels"]}, model), config)
    for a, b in zip(apart, alike, strict=True):
        assert a.samples == b.samples
        assert a.loss == pytest.approx(b.loss, rel=1e-4)
    np.testing.assert_allclose(apart.parameters["w"], alike.parameters["w"], rtol=1e-4)
