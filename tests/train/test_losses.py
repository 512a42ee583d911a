"""Each loss against its formula in NumPy, and its gradient against finite differences of that formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from scipy import special

from onnxopt.errors import DataError, OptionError
from onnxopt.gradients import gradient_graph
from onnxopt.train import (
    AttentionTransfer,
    Cosine,
    CrossEntropy,
    Distillation,
    Loss,
    LossModel,
    MeanSquaredError,
    Relational,
    SelfDistillation,
    SimilarityPreserving,
    WeightedSum,
)
from onnxopt.train.loss_graph import LABELS, LossGraph
from onnxopt.train.trainable import with_sizes
from tests import support

Array = np.ndarray[Any, Any]
_Formula = Callable[[Array], float]


def _model(rank: int, end: str = "y = Mul(x, one)") -> ir.Model:
    dims = ",".join("NCDE"[:rank])
    return support.graph(f"g (float[{dims}] x) => (float[{dims}] y) {{ {end} }}", one=np.float32(1))


def _normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _check(loss: Loss, x: Array, extra: dict[str, Array], formula: _Formula, end: str = "y = Mul(x, one)") -> None:
    at = LossGraph(with_sizes(_model(x.ndim, end), {"x": x}), extra)
    value = loss.build(at)
    found = gradient_graph(at.editor.model, str(value.name), ["x"])
    result, gradient = support.outputs(found.model, {"x": x, **extra})
    assert result.shape == ()
    assert result == pytest.approx(formula(x.astype(np.float64)), rel=1e-5, abs=1e-6)
    numeric = np.zeros(x.shape)
    for place in np.ndindex(*x.shape):
        step = np.zeros(x.shape)
        step[place] = 1e-5
        numeric[place] = (formula(x + step) - formula(x - step)) / 2e-5
    np.testing.assert_allclose(gradient, numeric, rtol=1e-3, atol=1e-4 * float(np.abs(numeric).max()))


def _cross_entropy(labels: Array, smoothing: float, axis: int) -> _Formula:
    def formula(x: Array) -> float:
        log = np.moveaxis(special.log_softmax(x, axis), axis, -1)
        right = np.take_along_axis(log, labels[..., None], -1)[..., 0]
        return float(-np.mean((1 - smoothing) * right + smoothing * log.mean(-1)))

    return formula


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("shape", "axis"), [((5, 4), -1), ((2, 3, 4), -1), ((2, 4, 3), 1)])
def test_cross_entropy(shape: tuple[int, ...], axis: int, smoothing: float) -> None:
    wanted = tuple(d for i, d in enumerate(shape) if i != axis % len(shape))
    labels = np.random.default_rng(1).integers(0, 4, wanted)
    loss = CrossEntropy(smoothing=smoothing, axis=axis)
    _check(loss, _normal(*shape), {LABELS: labels}, _cross_entropy(labels, smoothing, axis))


def test_a_softmax_at_the_end_is_left_out() -> None:
    labels, x = np.array([0, 2, 1]), _normal(3, 4) * 30  # the logarithm of a softmax would be that of zero
    _check(CrossEntropy(), x, {LABELS: labels}, _cross_entropy(labels, 0, -1), "m = Mul(x, one) y = Softmax(m)")


def _divergence(teacher: Array, temperature: float) -> _Formula:
    def formula(x: Array) -> float:
        q, p = special.softmax(x / temperature, -1), special.softmax(teacher.astype(np.float64) / temperature, -1)
        return float(temperature**2 * special.rel_entr(p, q).sum(-1).mean())

    return formula


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation(temperature: float) -> None:
    teacher = _normal(5, 4, seed=1)
    loss = Distillation(temperature)
    (value,) = loss.teacher_values()
    _check(loss, _normal(5, 4), {value.key: teacher}, _divergence(teacher, temperature))


def test_the_teacher_inside_does_not_move() -> None:
    """Its gradient is that of a teacher outside that says the same."""
    x = _normal(5, 4)
    gradients = []
    for loss in (SelfDistillation(2.0, "y", "t"), Distillation(2.0, "y", "t")):
        model = support.graph("g (float[N,C] x) => (float[N,C] y, float[N,C] t) { y = Tanh(x) t = Softplus(x) }")
        extra = {value.key: np.log1p(np.exp(x)) for value in loss.teacher_values()}
        at = LossGraph(with_sizes(model, {"x": x}), extra)
        found = gradient_graph(at.editor.model, str(loss.build(at).name), ["x"])
        gradients.append(support.outputs(found.model, {"x": x, **extra})[1])
    np.testing.assert_allclose(gradients[0], gradients[1], atol=1e-3)
    assert np.abs(gradients[0]).max() > 0.01


def test_gradient_of_distillation_keeps_its_size_at_high_temperatures() -> None:
    """Hinton et al.: for large temperatures the gradient is that of squared differences, whatever the temperature."""
    teacher, x = _normal(5, 4, seed=1), _normal(5, 4)
    gradients = []
    for temperature in (50.0, 100.0):
        loss = Distillation(temperature)
        at = LossGraph(with_sizes(_model(2), {"x": x}), {loss.teacher_values()[0].key: teacher})
        found = gradient_graph(at.editor.model, str(loss.build(at).name), ["x"])
        gradients.append(support.outputs(found.model, {"x": x, loss.teacher_values()[0].key: teacher})[1])
    centred = [each - each.mean(-1, keepdims=True) for each in (x, teacher)]
    for gradient in gradients:
        np.testing.assert_allclose(gradient, (centred[0] - centred[1]) / 20, atol=2e-3)


def _key(loss: Loss) -> str:
    return loss.teacher_values()[0].key


def test_mean_squared_error() -> None:
    x, y = _normal(3, 4), _normal(3, 4, seed=1)
    _check(MeanSquaredError(), x, {_key(MeanSquaredError()): y}, lambda x: float(np.mean((x - y) ** 2)))
    _check(MeanSquaredError(teacher=None), x, {LABELS: y}, lambda x: float(np.mean((x - y) ** 2)))
    one = y[:, :1]
    _check(MeanSquaredError(teacher=None), x[:, :1], {LABELS: one[:, 0]}, lambda x: float(np.mean((x - one) ** 2)))


def test_cosine() -> None:
    x, y = _normal(3, 2, 4), _normal(3, 2, 4, seed=1)

    def formula(x: Array) -> float:
        lengths = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
        return float(1 - np.mean((x * y).sum(-1) / lengths))

    _check(Cosine(), x, {_key(Cosine()): y}, formula)


def test_attention_transfer() -> None:
    x, y = _normal(2, 3, 2, 4), _normal(2, 5, 2, 4, seed=1)  # other channels

    def attention(x: Array) -> Array:
        flat = (x.astype(np.float64) ** 2).mean(1).reshape(len(x), -1)
        return np.asarray(flat / np.linalg.norm(flat, axis=1, keepdims=True))

    _check(
        AttentionTransfer(), x, {_key(AttentionTransfer()): y},
        lambda x: float(np.mean((attention(x) - attention(y)) ** 2)),
    )  # fmt: skip


def test_similarity_preserving() -> None:
    x, y = _normal(4, 3, 2), _normal(4, 5, seed=1)

    def similarity(x: Array) -> Array:
        rows = x.reshape(len(x), -1).astype(np.float64)
        return np.asarray((g := rows @ rows.T) / np.linalg.norm(g, axis=1, keepdims=True))

    _check(
        SimilarityPreserving(), x, {_key(SimilarityPreserving()): y},
        lambda x: float(np.sum((similarity(x) - similarity(y)) ** 2) / 16),
    )  # fmt: skip


def test_relational() -> None:
    from scipy.spatial.distance import pdist

    x, y = _normal(5, 3, 2), 9 * _normal(5, 4, seed=1)
    y[0] *= 20  # so far away that Huber's loss is linear

    def formula(x: Array) -> float:
        first, second = (pdist(each.reshape(len(each), -1).astype(np.float64)) for each in (x, y))
        return float(special.huber(1, first / first.mean() - second / second.mean()).mean())

    _check(Relational(), x, {_key(Relational()): y}, formula)


@pytest.mark.parametrize("loss", [Relational(), SimilarityPreserving()])
def test_equal_samples_have_finite_gradients(loss: Loss) -> None:
    x, y = np.ones((3, 4), np.float32), _normal(3, 4)
    for batch in (x, x[:1]):
        at = LossGraph(with_sizes(_model(2), {"x": batch}), {_key(loss): y[: len(batch)]})
        found = gradient_graph(at.editor.model, str(loss.build(at).name), ["x"])
        for result in support.outputs(found.model, {"x": batch, _key(loss): y[: len(batch)]}):
            assert np.isfinite(result).all()


def test_weighted_sum() -> None:
    labels, teacher = np.array([0, 3, 1]), _normal(3, 4, seed=1)
    loss = WeightedSum(((0.3, CrossEntropy()), (0.7, Distillation(2.0))))
    assert loss.labelled
    first, second = _cross_entropy(labels, 0, -1), _divergence(teacher, 2.0)
    extra = {LABELS: labels, loss.teacher_values()[0].key: teacher}
    _check(loss, _normal(3, 4), extra, lambda x: 0.3 * first(x) + 0.7 * second(x))


def test_a_loss_of_ones_own() -> None:
    """Its names collide with those of the model, and its inputs come from everywhere."""
    own = LossModel(
        support.graph(
            "g (float[N,4] y, float[N,4] labels, float[N,4] teacher_) => (float loss) { a = Sub(y, labels)"
            " x = Mul(a, one) b = Mul(x, a) c = Mul(b, teacher_) loss = ReduceSum<keepdims = 0>(c) }",
            one=np.float32(3),
        )
    )
    for value in own.model.graph.inputs:
        value.name = str(value.name).replace("teacher_", "teacher/")
    assert own.labelled
    assert [value.name for value in own.teacher_values()] == [""]
    y, teacher = _normal(3, 4, seed=1), _normal(3, 4, seed=2)
    _check(own, _normal(3, 4), {LABELS: y, "teacher/": teacher}, lambda x: float(np.sum(3 * (x - y) ** 2 * teacher)))


def test_a_loss_of_another_opset() -> None:
    own = LossModel(support.graph("g (float[N,4] y) => (float loss) { loss = ReduceSum<keepdims = 0>(y) }", opset=19))
    with pytest.raises(OptionError, match="opset 19"):
        own.build(LossGraph(with_sizes(_model(2), {"x": _normal(3, 4)}), {}))


@pytest.mark.parametrize(
    ("loss", "extra", "error", "match"),
    [
        (CrossEntropy(), {LABELS: np.zeros(3, np.float32)}, DataError, "numbers of classes"),
        (CrossEntropy(), {LABELS: np.zeros((3, 1), np.int64)}, DataError, r"must be \[3\]"),
        (CrossEntropy("z"), {LABELS: np.zeros(3, np.int64)}, OptionError, "'z'"),
        (CrossEntropy(axis=2), {LABELS: np.zeros(3, np.int64)}, OptionError, "axis 2"),
        (Distillation(), {"teacher//scores/4": _normal(3, 5)}, DataError, "one shape"),
        (MeanSquaredError(teacher=None), {LABELS: np.zeros(3, np.float32)}, DataError, "labels"),
        (AttentionTransfer(), {"teacher/": _normal(3, 4)}, OptionError, "maps"),
    ],
)  # fmt: skip
def test_what_does_not_fit(loss: Loss, extra: dict[str, Array], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        loss.build(LossGraph(with_sizes(_model(2), {"x": _normal(3, 4)}), extra))


@pytest.mark.parametrize(
    "make", [lambda: CrossEntropy(smoothing=1.0), lambda: Distillation(0.0), lambda: WeightedSum(())]
)
def test_options_out_of_range(make: Callable[[], object]) -> None:
    with pytest.raises(OptionError):
        make()


def test_shapes_behind_operators_that_onnx_infers_nothing_of_are_known() -> None:
    x, w = _normal(3, 4), _normal(4, 2, seed=1)
    body = "s = ai.onnx.ml.Scaler <offset = [1.0], scale = [2.0]> (x) y = MatMul(s, w)"
    model = support.graph(f"g (float[N,4] x) => (float[N,2] y) {{ {body} }}", w=w)
    model.opset_imports["ai.onnx.ml"] = 3
    at = LossGraph(with_sizes(model, {"x": x}), {LABELS: np.array([0, 1, 1])})
    assert at.shape(at.output("s")) == (3, 4)
    loss = CrossEntropy().build(at)
    found = gradient_graph(at.editor.model, str(loss.name), ["w"])
    _, gradient = support.outputs(found.model, {"x": x, LABELS: np.array([0, 1, 1])})
    inputs = 2 * (x - 1)
    wanted = inputs.T @ (special.softmax(inputs @ w, 1) - np.eye(2)[[0, 1, 1]]) / 3
    np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-6)
