"""Which constants are parameters, and what sessions on them compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxopt.errors import DataError, GradientError, OptionError
from onnxopt.train import CrossEntropy, MeanSquaredError
from onnxopt.train.parameters import find_parameters
from onnxopt.train.trainable import Trainable
from tests import support
from tests.train.cases import initializers, perceptron, sectors, weights

Array = np.ndarray[Any, Any]
_RNG = np.random.default_rng(5)


def test_weights_biases_and_scales_are_parameters_other_constants_are_not() -> None:
    model = support.graph(
        """g (float[N,8] x) => (float[N,8] y) {
            n = Sub(x, mean)
            a = MatMul(n, w1)
            b = Add(a, b1)
            m = ReduceMean<keepdims = 1>(b, axes)
            d = Sub(b, m)
            s = Mul(d, d)
            v = ReduceMean<keepdims = 1>(s, axes)
            e = Add(v, epsilon)
            r = Sqrt(e)
            q = Div(d, r)
            k = Mul(q, gamma)
            l = Add(k, beta)
            i = Identity(w2)
            t = Transpose<perm = [1, 0]>(i)
            p = MatMul(l, t)
            y = Add(p, mask)
        }""",
        mean=np.ones(8, np.float32), w1=weights(_RNG, 8, 8), b1=np.zeros(8, np.float32), axes=np.array([-1]),
        epsilon=np.float32(1e-5), gamma=np.ones(8, np.float32), beta=np.zeros(8, np.float32),
        w2=weights(_RNG, 8, 8), mask=weights(_RNG, 8, 8),
    )  # fmt: skip
    assert find_parameters(model) == ["w1", "b1", "gamma", "beta", "w2"]
    assert find_parameters(model, include=["w*"]) == ["w1", "w2"]
    assert find_parameters(model, include=["w2", "mask"]) == ["w2", "mask"]
    assert find_parameters(model, exclude=["b*"]) == ["w1", "gamma", "w2"]
    with pytest.raises(OptionError, match="no parameter is left"):
        find_parameters(model, include=["z*"])


def test_globs_name_nodes_too() -> None:
    model = perceptron()
    for node in model.graph:
        node.name = f"/{node.op_type}"
    assert find_parameters(model, exclude=["/Gemm"]) == ["w2", "b2"]
    assert find_parameters(model, include=["/Gemm"]) == ["w1", "b1"]


def test_nothing_to_train() -> None:
    model = support.graph("g (float[N,8] x) => (float[N,8] y) { y = Mul(x, two) }", two=np.float32(2))
    with pytest.raises(OptionError, match="nothing to train"):
        find_parameters(model)


def _numeric(model: Any, arrays: dict[str, Array], name: str) -> Array:
    """The gradient of cross-entropy by finite differences in float64, of a perceptron."""
    held = {key: value.astype(np.float64) for key, value in initializers(model).items()}

    def loss() -> float:
        hidden = np.maximum(arrays["x"] @ held["w1"] + held["b1"], 0)
        scores = hidden @ held["w2"] + held["b2"]
        log = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
        return float(-log[np.arange(len(log)), arrays["labels"]].mean())

    found = np.zeros(held[name].shape)
    for place in np.ndindex(*found.shape):
        ends = []
        for step in (1e-6, -2e-6):
            held[name][place] += step
            ends.append(loss())
        held[name][place] += 1e-6
        found[place] = (ends[0] - ends[1]) / 2e-6
    return found


def test_gradients_follow_weights_changed_in_place_and_shapes() -> None:
    model = perceptron()
    trainable = Trainable(model, CrossEntropy(), sectors(8), threads=1)
    assert list(trainable.parameters) == ["w1", "b1", "w2", "b2"]
    for samples in (8, 5, 8):
        arrays = sectors(samples, seed=samples)
        trainable.gradient(arrays)
        at = trainable.trained(trainable.parameters)
        for name, gradient in trainable.gradients.items():
            np.testing.assert_allclose(gradient, _numeric(at, arrays, name), rtol=1e-3, atol=1e-5)
        for name, array in trainable.parameters.items():
            np.add(array, 0.1 * np.sign(trainable.gradients[name]), out=array)


def test_the_model_given_is_left_alone() -> None:
    model = perceptron()
    before = initializers(model)
    trainable = Trainable(model, CrossEntropy(), sectors(8))
    for array in trainable.parameters.values():
        array[...] = 7
    trained = initializers(trainable.trained(trainable.parameters))
    for name, array in initializers(model).items():
        np.testing.assert_array_equal(array, before[name])
        assert (trained[name] == 7).all()


def test_labels_must_be_classes() -> None:
    arrays = sectors(8)
    trainable = Trainable(perceptron(), CrossEntropy(), arrays)
    with pytest.raises(DataError, match="go from 0 to 3"):
        trainable.gradient({**arrays, "labels": np.array([0, 1, 2, 3, 0, 0, 0, 0])})
    with pytest.raises(DataError, match="go from -1 to"):
        trainable.outputs({**arrays, "labels": arrays["labels"] - 1}, trainable.parameters)


def test_a_loss_that_reads_no_parameter() -> None:
    arrays = {**sectors(4), "labels": np.zeros((4, 2), np.float32)}
    with pytest.raises(GradientError, match="depends on no parameter"):
        Trainable(perceptron(), MeanSquaredError("x", teacher=None), arrays)


def test_parameters_that_the_loss_does_not_reach_are_left_out() -> None:
    arrays = {**sectors(4), "teacher/t": np.zeros((4, 16), np.float32)}
    trainable = Trainable(perceptron(), MeanSquaredError("r", "t"), arrays)
    assert list(trainable.parameters) == ["w1", "b1"]


def test_an_old_opset_is_refused_at_once() -> None:
    model = support.graph("g (float[N,2] x) => (float[N,3] y) { y = MatMul(x, w) }", opset=13, w=weights(_RNG, 2, 3))
    with pytest.raises(GradientError, match="opset 13"):
        Trainable(model, CrossEntropy(), sectors(8))


_TIED = "g (float[N,2] x) => (float[N,2] y) { a = MatMul(x, v) b = Add(a, zero) c = MatMul(b, w) y = Add(c, zero) }"


def test_merged_parameters_are_untied_if_asked() -> None:
    held: dict[str, Any] = {"v": weights(_RNG, 2, 2), "w": weights(_RNG, 2, 2), "zero": np.zeros(2, np.float32)}
    arrays = {"x": sectors(4)["x"], "labels": np.array([0, 1, 1, 0])}
    tied = Trainable(support.graph(_TIED, **held), CrossEntropy(), arrays)
    untied = Trainable(support.graph(_TIED, **held), CrossEntropy(), arrays, untied=True)
    assert list(tied.parameters) == ["v", "zero", "w"]
    assert len(untied.parameters) == 4
    assert tied.gradient(arrays) == pytest.approx(untied.gradient(arrays))
    apart = [gradient for name, gradient in untied.gradients.items() if name.startswith("zero")]
    np.testing.assert_allclose(tied.gradients["zero"], sum(apart), rtol=1e-5)
    support.assert_same_outputs(untied.model, support.graph(_TIED, **held), {"x": arrays["x"]})


_NORMS = """g (float[N,2] x) => (float[N,3] y) {
    a = MatMul(x, w1)
    b = BatchNormalization<momentum = 0.8>(a, ones, zeros, zeros, ones)
    c = Mul(b, b)
    d = BatchNormalization(c, ones, zeros, zeros, ones)
    y = MatMul(d, w2)
}"""


def _norms() -> Any:
    return support.graph(
        _NORMS, w1=weights(np.random.default_rng(0), 2, 4), w2=weights(np.random.default_rng(1), 4, 3),
        ones=np.ones(4, np.float32), zeros=np.zeros(4, np.float32),
    )  # fmt: skip


def test_batch_statistics_follow_the_data_each_normalization_by_itself() -> None:
    arrays = sectors(32)
    trainable = Trainable(_norms(), CrossEntropy(), arrays, batch_norm="train", threads=1)
    assert len(trainable.statistics) == 4
    first = arrays["x"] @ initializers(_norms())["w1"]
    norm = (first - first.mean(0)) / np.sqrt(first.var(0) + 1e-5)
    second = norm**2
    trainable.gradient(arrays)
    expected = [0.2 * first.mean(0), 0.8 + 0.2 * first.var(0), 0.1 * second.mean(0), 0.9 + 0.1 * second.var(0)]
    for found, wanted in zip(trainable.statistics.values(), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_gradients_through_batch_statistics() -> None:
    arrays = sectors(16)
    trainable = Trainable(_norms(), CrossEntropy(), arrays, batch_norm="train", threads=1)
    trainable.gradient(arrays)
    gradients = {name: gradient.copy() for name, gradient in trainable.gradients.items()}
    generator = np.random.default_rng(3)
    for name, array in trainable.parameters.items():
        start = array.copy()
        direction = generator.standard_normal(array.shape, np.float32)
        ends = []
        for sign in (1, -1):
            array[...] = start + sign * 1e-2 * direction
            ends.append(trainable.gradient(arrays))
        array[...] = start
        slope = float((gradients[name] * direction).sum())
        scale = float(np.linalg.norm(gradients[name]) * np.linalg.norm(direction))
        assert abs((ends[0] - ends[1]) / 2e-2 - slope) < 2e-2 * scale + 1e-4, name


def test_frozen_statistics_stay() -> None:
    arrays = sectors(16)
    trainable = Trainable(_norms(), CrossEntropy(), arrays)
    assert not trainable.statistics
    for array in trainable.parameters.values():
        array[...] = 7
    model = trainable.trained(trainable.parameters)
    held = initializers(model)
    for node in model.graph:
        if node.op_type == "BatchNormalization":
            found = [held[str(value.name)][0] for value in node.inputs[1:] if value is not None]
            assert found == [7, 7, 0, 1]
