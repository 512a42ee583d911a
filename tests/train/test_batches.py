"""Batches: the same from wherever the data come, and what a teacher says goes with the right samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import special

from onnxopt.data import load_data
from onnxopt.errors import DataError
from onnxopt.train import SGD, CrossEntropy, MeanSquaredError, TrainConfig, train
from onnxopt.train.batches import Batches
from onnxopt.train.loss_graph import TeacherValue
from onnxopt.train.teachers import Teacher
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
    batches = Batches(dataset(), 24, part=10, seed=1, teacher=Teacher([teacher], values, 1))
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


def _probabilities(scores: Array, temperature: float) -> Array:
    return np.asarray(special.softmax(scores.astype(np.float64) / temperature, -1))


def test_several_teachers_are_averaged_as_probabilities() -> None:
    models = [perceptron(seed) for seed in (1, 2, 3)]
    models[2].graph.outputs[0].name = "another"
    value, x = TeacherValue("y", scores=True, temperature=3.0), sectors(20)["x"]
    said = Teacher(models, (value, TeacherValue("y"), TeacherValue("r")), 1)({"x": x})
    scores = [support.outputs(model, {"x": x})[0] for model in models]
    expected = np.mean([_probabilities(each, 3) for each in scores], axis=0)
    np.testing.assert_allclose(_probabilities(said[value.key], 3), expected, rtol=1e-5)
    np.testing.assert_allclose(said["teacher/y"], np.mean(scores, axis=0), rtol=1e-5, atol=1e-6)
    alone = Teacher(models[:1], (TeacherValue("r"),), 1)({"x": x})
    np.testing.assert_array_equal(said["teacher/r"], alone["teacher/r"])  # a value inside: of the first


def test_teachers_that_cannot_be_averaged() -> None:
    other = support.graph("g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }")
    with pytest.raises(DataError, match="give them alike"):
        Teacher([perceptron(), other], (TeacherValue("y"),), 1)({"x": sectors(4)["x"]})


class _Counted(Teacher):
    asked = 0

    def __call__(self, feeds: Any) -> dict[str, Array]:
        self.asked += 1
        return super().__call__(feeds)


def test_what_does_not_fit_into_memory_is_asked_once_and_found_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("onnxopt.train.batches.MAX_BYTES", 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    values, runs = (TeacherValue("r"), TeacherValue("", scores=True)), []
    for epochs in (1, 3):
        teacher = _Counted([perceptron()], values, 1)
        batches = Batches(dataset(), 24, seed=1, teacher=teacher)
        runs.append([batches.at(index) for index in range(epochs * batches.steps)])
        asked = teacher.asked
    (file,) = tmp_path.rglob("*.npy")
    assert asked == 1  # to see the sizes
    for (first, _), (second, _) in zip(runs[0][0], runs[1][0], strict=True):
        np.testing.assert_array_equal(first["teacher/r"], second["teacher/r"])
    file.write_bytes(file.read_bytes()[:-1])  # a file that is damaged is made anew
    teacher = _Counted([perceptron()], values, 1)
    assert Batches(dataset(), 24, seed=1, teacher=teacher).at(0)
    assert teacher.asked > 1
    monkeypatch.setattr("onnxopt.train.answers.MAX_BYTES", 100)
    Batches(dataset(), 24, seed=1, teacher=_Counted([perceptron(2)], values, 1))
    assert list(tmp_path.rglob("*.npy")) == [file]
