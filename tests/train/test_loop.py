"""The loop: it learns, it is deterministic, and each option does what it says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.data import load_data
from onnxopt.errors import DataError, GradientError, OptionError, TrainingError
from onnxopt.train import (
    SGD,
    AdamW,
    CrossEntropy,
    Distillation,
    MeanSquaredError,
    Schedule,
    Step,
    TrainConfig,
    Training,
    WeightedSum,
    accuracy,
    train,
)
from tests import support
from tests.train.cases import dataset, initializers, perceptron, sectors

Array = np.ndarray[Any, Any]
CONFIG = TrainConfig(steps=30, batch=32, lr=0.02, threads=1)


def _trained(config: TrainConfig = CONFIG, **options: Any) -> tuple[Training, list[Step]]:
    run = train(perceptron(), CrossEntropy(), dataset(), config, **options)
    return run, list(run)


def _change(**changes: Any) -> TrainConfig:
    return dataclasses.replace(CONFIG, **changes)


def _bits(run: Training) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in initializers(run.result()).items()}


def test_learns() -> None:
    held_out = dataset(300, seed=1)
    run, steps = _trained(_change(steps=0, epochs=30), held_out=held_out, metric=accuracy)
    assert steps[-1].loss < 0.3 < steps[0].loss
    assert run.metric is not None
    assert run.metric > 0.93
    test = sectors(300, seed=2)
    scores = support.outputs(run.result(), {"x": test["x"]})[0]
    assert (scores.argmax(-1) == test["labels"]).mean() > 0.92


def test_says_what_happens() -> None:
    run, steps = _trained(_change(steps=0, epochs=2, schedule=Schedule("linear", warmup=2)))
    assert run.total == len(steps) == 14  # 200 samples are 6 batches of 32 and one of 8
    assert [step.index for step in steps] == list(range(14))
    assert [step.epoch for step in steps] == [0] * 7 + [1] * 7
    assert [step.samples for step in steps] == ([32] * 6 + [8]) * 2
    assert [step.lr for step in steps[:3]] == pytest.approx([0.01, 0.02, 0.02])
    assert all(step.norm > 0 and step.seconds > 0 and step.metric is None for step in steps)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not() -> None:
    first, second, other = (_trained(_change(seed=seed, ema=0.9))[0] for seed in (3, 3, 4))
    assert _bits(first) == _bits(second)
    assert _bits(first) != _bits(other)


def test_every_sample_is_seen_once_an_epoch_in_another_order() -> None:
    seen: list[Array] = []

    def augment(feeds: dict[str, Array], generator: np.random.Generator) -> dict[str, Array]:
        seen.append(feeds["x"].copy())
        return feeds

    _trained(_change(steps=0, epochs=2), augment=augment)
    first, second = np.concatenate(seen[1:8]), np.concatenate(seen[8:])  # one more was looked at to begin with
    whole = sectors()["x"]
    for epoch in (first, second):
        np.testing.assert_array_equal(np.sort(epoch, axis=0), np.sort(whole, axis=0))
    assert (first != second).any()
    assert (first != whole).any()


def test_recomputed_values_train_to_the_same_weights() -> None:
    found, expected = (initializers(_trained(_change(recompute=each))[0].result()) for each in (True, False))
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("micro_batch", [1, 5, 16, 31])
def test_accumulation_equals_the_large_batch(micro_batch: int) -> None:
    config = _change(optimizer=SGD(), lr=0.05)
    (whole, steps), (parts, in_parts) = _trained(config), _trained(dataclasses.replace(config, micro_batch=micro_batch))
    for a, b in zip(steps, in_parts, strict=True):
        assert (a.loss, a.norm) == pytest.approx((b.loss, b.norm), rel=1e-4)
    for name, array in whole.parameters.items():
        np.testing.assert_allclose(parts.parameters[name], array, rtol=1e-4, atol=1e-5)


def test_clipping_bounds_the_step() -> None:
    config = _change(steps=1, optimizer=SGD(momentum=0.0), lr=1.0, clip=0.01, schedule=Schedule("constant"))
    run, (step,) = _trained(config)
    before = initializers(perceptron())
    moved = np.sqrt(sum(((before[name] - array) ** 2).sum() for name, array in run.parameters.items()))
    assert step.norm > 0.01
    assert moved == pytest.approx(0.01, rel=1e-3)


def test_zeros_are_kept_if_asked() -> None:
    model = perceptron()
    pruned = initializers(model)["w1"]
    pruned[np.abs(pruned) < 0.5] = 0
    model.graph.initializers["w1"].const_value = ir.Tensor(pruned, name="w1")
    for keep, optimizer in ((True, AdamW(weight_decay=0.1)), (True, SGD(nesterov=True)), (False, AdamW())):
        run = train(model, CrossEntropy(), dataset(), _change(keep_zeros=keep, optimizer=optimizer, micro_batch=7))
        list(run)
        trained = initializers(run.result())
        assert ((trained["w1"] == 0) == (pruned == 0)).all() == keep
        assert (trained["w1"] != pruned)[pruned != 0].all()
        assert trained["b1"].any()  # biases start at zero, and that is no pruning


def test_what_is_frozen_does_not_move() -> None:
    before = initializers(perceptron())
    run, _ = _trained(_change(exclude=("w1", "b?")))
    after = initializers(run.result())
    assert [name for name in before if (before[name] != after[name]).any()] == ["w2"]


def test_moving_average() -> None:
    """Recomputed from the weights after each step."""
    run = train(perceptron(), CrossEntropy(), dataset(), _change(ema=0.9))
    mean = initializers(perceptron())
    for _ in run:
        mean = {name: 0.9 * array + 0.1 * run.parameters[name] for name, array in mean.items()}
    for name, array in initializers(run.result()).items():
        np.testing.assert_allclose(array, mean[name], rtol=1e-4, atol=1e-6)


def test_the_best_weights_are_kept() -> None:
    """With a rate that ruins the weights, those at the start are best."""
    held_out = dataset(100, seed=1)
    run, steps = _trained(_change(lr=50.0, optimizer=SGD(), clip=1.0, evaluate_every=1), held_out=held_out)
    best = max(step.metric for step in steps if step.metric is not None)
    assert run.metric is not None
    assert run.metric >= best
    assert [step.metric == run.metric for step in steps if step.is_best][-1:] in ([], [True])
    data = sectors(100, seed=1)
    scores = support.outputs(run.result(), {"x": data["x"]})[0]
    log = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    assert run.metric == pytest.approx(log[np.arange(100), data["labels"]].mean(), rel=1e-4)


def test_stops_early() -> None:
    run, steps = _trained(
        _change(steps=1000, lr=50.0, optimizer=SGD(), clip=1.0, evaluate_every=2, patience=3),
        held_out=dataset(100, seed=1),
    )
    looks = [step.is_best for step in steps if step.metric is not None]
    assert len(steps) < 1000
    assert looks[-3:] == [False] * 3
    assert list(run) == []


def test_distils() -> None:
    """The student agrees with a trained teacher, without a label."""
    teacher, _ = _trained(_change(steps=300))
    points = {"x": sectors(500, seed=7)["x"]}
    student = perceptron(seed=9, hidden=8)
    data = load_data(points, student)
    config = _change(steps=300, batch=50)
    for loss in (
        Distillation(2.0),
        MeanSquaredError(),
        WeightedSum(((0.5, Distillation()), (0.5, MeanSquaredError()))),
    ):
        run = train(student, loss, data, config, teacher=teacher.result(), held_out=data)
        list(run)
        x = sectors(300, seed=8)["x"]
        first, second = (support.outputs(m, {"x": x})[0].argmax(-1) for m in (teacher.result(), run.result()))
        assert (first == second).mean() > 0.9


def test_a_teacher_of_augmented_inputs_sees_them() -> None:
    """The teacher is the student, so that nothing is left to learn, whatever becomes of the inputs."""

    def augment(feeds: dict[str, Array], generator: np.random.Generator) -> dict[str, Array]:
        return {"x": feeds["x"] + generator.standard_normal(feeds["x"].shape, np.float32)}

    model = perceptron()
    for hook in (None, augment):
        run = train(model, MeanSquaredError(), dataset(), _change(optimizer=SGD()), teacher=model, augment=hook)
        assert max(step.loss for step in run) < 1e-10


def test_batches_that_belong_together() -> None:
    """A model with a fixed batch of 8, and feeds of different sizes."""
    model = perceptron()
    model.graph.inputs[0].shape = ir.Shape([8, 2])
    steps = list(train(model, CrossEntropy(), load_data(sectors(), model), CONFIG))
    assert {step.samples for step in steps} == {32, 8}
    data = sectors()
    cuts = [slice(at, at + size) for at, size in ((0, 30), (30, 20), (50, 30), (80, 20))]
    feeds = [({"x": data["x"][cut]}, data["labels"][cut]) for cut in cuts]
    found = list(train(perceptron(), CrossEntropy(), load_data(feeds, perceptron()), _change(steps=4, batch=25)))
    assert sorted(step.samples for step in found) == [20, 20, 30, 30]


def test_data_larger_than_memory_may_be_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    config = _change(steps=20)
    whole, _ = _trained(config)
    monkeypatch.setattr("onnxopt.train.batches.MAX_BYTES", 600)  # two of seven batches
    parts, _ = _trained(config)
    assert _bits(whole) == _bits(parts)


def test_stops_at_numbers_that_are_not_finite() -> None:
    with pytest.raises(TrainingError, match=r"step \d+.*'(loss/|grad/|[abpry12w]+').*learning rate"):
        _trained(_change(lr=1e30, optimizer=SGD()))

    def spoil(feeds: dict[str, Array], generator: np.random.Generator) -> dict[str, Array]:
        return {"x": np.full_like(feeds["x"], np.inf)}

    with pytest.raises(TrainingError, match=r"step 0: .*'x'"):
        _trained(augment=spoil)


def test_names_the_first_tensor_that_is_not_finite() -> None:
    model = support.graph(
        "g (float[N,2] x) => (float[N,3] y) { a = MatMul(x, w1) b = Exp(a) c = Exp(b) y = MatMul(c, w2) }",
        w1=np.full((2, 4), 30, np.float32), w2=np.ones((4, 3), np.float32),
    )  # fmt: skip
    with pytest.raises(TrainingError, match=r"step 0: .*'c'"):
        list(train(model, CrossEntropy(), dataset(), CONFIG))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"steps": 0}, "steps or epochs"),
        ({"epochs": 1}, "steps or epochs"),
        ({"batch": 0}, "one sample"),
        ({"lr": 0.0}, "learning rate"),
        ({"lr": float("nan")}, "learning rate"),
        ({"ema": 1.0}, "moving average"),
        ({"clip": -1.0}, "clip"),
        ({"micro_batch": -1}, "micro_batch"),
        ({"batch_norm": "off"}, "batch_norm"),
        ({"engine": "torch"}, "engine is"),
        ({"engine": "ort-training"}, "interpreter is"),
        ({"interpreter": "python"}, "interpreter is"),
        ({"engine": "ort-training", "interpreter": "python", "recompute": True}, "recompute is"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        _change(**options)


def _nothing_but_x() -> dict[str, Array]:
    return {"x": sectors()["x"]}


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: _trained(_change(batch=201)), DataError, "201 samples, but the data hold 200"),
        (lambda: train(perceptron(), CrossEntropy(), load_data(_nothing_but_x(), perceptron()), CONFIG),
         DataError, "have none"),
        (lambda: train(perceptron(), Distillation(), dataset(), CONFIG), DataError, "teacher; give one"),
        (lambda: train(perceptron(), Distillation(teacher="z"), dataset(), CONFIG, teacher=perceptron()),
         OptionError, "no value 'z'"),
        (lambda: _trained(_change(exclude=("*",))), OptionError, "no parameter is left"),
        (lambda: _trained(augment=lambda feeds, generator: {"z": feeds["x"]}), DataError, "augmentation gives"),
        (lambda: _trained(held_out=load_data(_nothing_but_x(), perceptron()), metric=accuracy), DataError, "have none"),
    ],
)  # fmt: skip
def test_what_does_not_fit(call: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()


def test_a_teacher_with_other_inputs() -> None:
    teacher = support.graph("g (float[N,2] z) => (float[N,3] y) { y = MatMul(z, w) }", w=np.ones((2, 3), np.float32))
    with pytest.raises(DataError, match="'z', which is none of the model"):
        train(perceptron(), Distillation(), dataset(), CONFIG, teacher=teacher)


def test_labels_that_are_no_classes() -> None:
    data = load_data({**_nothing_but_x(), "labels": np.full(200, 3)}, perceptron())
    with pytest.raises(DataError, match="go from 3 to 3"):
        list(train(perceptron(), CrossEntropy(), data, CONFIG))


def test_an_operator_without_a_rule() -> None:
    model = support.graph(
        "g (float[N,2] x) => (float[N,3] y) { a = MatMul(x, w) s, i = TopK(a, k) y = Add(a, s) }",
        w=np.ones((2, 3), np.float32), k=np.array([3]),
    )  # fmt: skip
    for node in model.graph:
        if node.op_type == "TopK":
            node.op_type, node.domain = "Mystery", "nobody"
    with pytest.raises(GradientError):
        train(model, CrossEntropy(), dataset(), CONFIG)


def test_an_input_that_is_called_labels() -> None:
    model = support.graph(
        "g (float[N,2] labels) => (float[N,3] y) { y = MatMul(labels, w) }", w=np.ones((2, 3), np.float32)
    )
    data = load_data([({"labels": np.ones((40, 2), np.float32)}, np.zeros(40, np.int64))], model)
    with pytest.raises(DataError, match="rename it"):
        train(model, CrossEntropy(), data, _change(batch=40))


def test_a_metric_that_is_not_a_number_is_never_the_best() -> None:
    values = iter([float("nan"), 1.0, float("nan")])
    config = _change(steps=2, evaluate_every=1)
    run, steps = _trained(config, held_out=dataset(32), metric=lambda outputs, labels: next(values))
    assert [step.is_best for step in steps] == [True, False]
    assert run.metric == 1.0


def test_half_precision_outputs() -> None:
    model = support.graph(
        "g (float[N,2] x) => (float16[N,3] y) { p = MatMul(x, w) y = Cast<to = 10>(p) }", w=np.ones((2, 3), np.float32)
    )
    steps = list(train(model, CrossEntropy(), dataset(), CONFIG, held_out=dataset(), metric=accuracy))
    assert steps[-1].loss < steps[0].loss


def test_the_average_of_the_weights_teaches() -> None:
    """What it says is that of the model with the averages, of inputs before augmentation."""
    seen: list[dict[str, Array]] = []

    def augment(feeds: dict[str, Array], _: np.random.Generator) -> dict[str, Array]:
        seen.append({"x": feeds["x"]})
        return {"x": feeds["x"] + 1}

    run = train(perceptron(), MeanSquaredError(), dataset(), _change(ema=0.5), teacher="average", augment=augment)
    steps = iter(run)
    next(steps)
    averages = run.result()
    arrays = run._batches.at(1)[0][0]
    np.testing.assert_array_equal(arrays["x"], seen[-1]["x"] + 1)
    wanted = support.outputs(averages, seen[-1])[0]
    np.testing.assert_allclose(arrays["teacher/"], wanted, rtol=1e-5, atol=1e-6)
    assert next(steps).loss > 0


def test_an_average_that_is_not_taken_cannot_teach() -> None:
    with pytest.raises(OptionError, match="give its decay"):
        train(perceptron(), MeanSquaredError(), dataset(), CONFIG, teacher="average")
