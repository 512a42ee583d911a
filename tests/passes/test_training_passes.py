"""finetune, distill and qat: weights go back where they came from, better than before."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from scipy.special import softmax

from onnxopt.api import optimize
from onnxopt.data import Dataset, load_data
from onnxopt.errors import DataError, OptionError
from onnxopt.graph import Editor
from onnxopt.model import copy, save, to_proto
from onnxopt.pass_base import Context, Pass, Report
from onnxopt.passes.distill.distill import Distill
from onnxopt.passes.distill.finetune import Finetune
from onnxopt.passes.distill.qat import Qat
from onnxopt.passes.quantize.quantize_static import QuantizeStatic
from tests.support import count_ops, graph, outputs, parse
from tests.train.cases import dataset, initializers, perceptron, sectors, weights

_FAST: dict[str, Any] = {"epochs": 8, "batch": 20, "lr": 0.02}


def _run(pass_: Pass, before: ir.Model, data: Dataset, original: ir.Model | None = None) -> tuple[ir.Model, Report]:
    after = copy(before)
    return after, pass_.run(Context(Editor(after), data=data, evaluation=data, original=original))


def _shaken(model: ir.Model, by: float) -> ir.Model:
    """The model with noise on its weights."""
    found, generator = copy(model), np.random.default_rng(4)
    for value in found.graph.initializers.values():
        assert value.const_value is not None
        array = value.const_value.numpy()
        value.const_value = ir.Tensor(array + by * generator.standard_normal(array.shape).astype(array.dtype))
    return found


def _right(model: ir.Model, seed: int = 1) -> float:
    given = sectors(400, seed)
    return float(np.mean(outputs(model, {"x": given["x"]})[0].argmax(-1) == given["labels"]))


def _off(model: ir.Model, other: ir.Model, by: Callable[..., Any] = np.asarray) -> float:
    x = {"x": sectors(400, 1)["x"]}
    return float(np.mean((by(outputs(model, x)[0]) - by(outputs(other, x)[0])) ** 2))


def _taught() -> ir.Model:
    return _run(Finetune(epochs=40, batch=20, lr=0.02), perceptron(), dataset(400))[0]


def test_finetune_learns_from_labels() -> None:
    before = perceptron()
    after, report = _run(Finetune(**_FAST), before, dataset(400))
    assert _right(before) < 0.6
    assert _right(after) > 0.9
    assert report.changed == 1
    assert [fact["epoch"] for fact in report.facts] == list(range(1, 9))
    assert initializers(before).keys() == initializers(after).keys()
    assert count_ops(before) == count_ops(after)


def test_finetune_of_numbers() -> None:
    before = graph(
        "g (float[N,2] x) => (float[N,1] y) { y = Gemm(x, w, b) }",
        w=np.zeros((2, 1), np.float32), b=np.zeros(1, np.float32),
    )  # fmt: skip
    x = np.random.default_rng(0).standard_normal((200, 2)).astype(np.float32)
    data = load_data({"x": x, "labels": (x @ [[2.0], [-1.0]] + 0.5).astype(np.float32)}, before)
    after, _ = _run(Finetune(epochs=60, batch=20, lr=0.05), before, data)
    np.testing.assert_allclose(initializers(after)["w"], [[2], [-1]], atol=0.02)
    np.testing.assert_allclose(initializers(after)["b"], [0.5], atol=0.02)


def test_finetune_without_labels_is_refused() -> None:
    data = load_data({"x": sectors(40)["x"]}, perceptron())
    after, report = _run(Finetune(), perceptron(), data)
    assert report.changed == 0
    assert "no labels" in report.refusals[0].text
    assert _off(after, perceptron()) == 0


def test_distill_comes_back_to_the_model_before_without_labels() -> None:
    teacher = _taught()
    shaken = _shaken(teacher, 0.3)
    data = load_data({"x": sectors(400)["x"]}, teacher)
    after, report = _run(Distill(**_FAST), shaken, data, original=teacher)
    assert report.changed == 1
    assert _right(after) > _right(shaken)
    assert _right(after) > _right(teacher) - 0.02


def test_distill_of_numbers_comes_near_them() -> None:
    first, second = weights(np.random.default_rng(0), 2, 8), weights(np.random.default_rng(1), 8, 1)
    teacher = graph(
        "g (float[N,2] x) => (float[N,1] y) { a = Gemm(x, w1, b1) r = Relu(a) y = MatMul(r, w2) }",
        w1=first, b1=np.ones(8, np.float32), w2=second,
    )  # fmt: skip
    shaken = _shaken(teacher, 0.3)
    after, _ = _run(Distill(**_FAST), shaken, load_data({"x": sectors(400)["x"]}, teacher), original=teacher)
    assert _off(after, teacher) < 0.1 * _off(shaken, teacher)


def test_an_unchanged_model_has_nothing_to_learn() -> None:
    _, report = _run(Distill(), perceptron(), dataset())
    assert "change it first, or name a teacher" in report.refusals[0].text


def test_a_teacher_from_a_file(tmp_path: Path) -> None:
    save(_taught(), tmp_path / "teacher.onnx")
    small = perceptron(seed=3, hidden=6)
    data = load_data({"x": sectors(400)["x"]}, small)
    after, _ = _run(Distill(teacher=str(tmp_path / "teacher.onnx"), epochs=40, batch=20, lr=0.02), small, data)
    assert _right(small) < 0.8
    assert _right(after) > 0.9


@pytest.mark.parametrize(
    ("teacher", "why"),
    [
        ("g (float[N,2] z) => (float[N,3] y) { y = MatMul(z, w) }", "the teacher has an input 'z'"),
        (
            "g (float[N,2] x) => (float[N] y) { m = MatMul(x, w) y = ReduceMean<keepdims = 0>(m, a) }",
            "no output like 'y'",
        ),
    ],
)
def test_teachers_that_do_not_fit(tmp_path: Path, teacher: str, why: str) -> None:
    made = graph(teacher, w=np.ones((2, 3), np.float32), a=np.array([1]))
    save(made, tmp_path / "teacher.onnx")
    with pytest.raises(DataError, match=why):
        _run(Distill(teacher=str(tmp_path / "teacher.onnx")), perceptron(), dataset())


def test_pruned_weights_stay_zero() -> None:
    teacher = _taught()
    pruned = copy(teacher)
    tensor = pruned.graph.initializers["w1"].const_value
    assert tensor is not None
    array = tensor.numpy().copy()
    array[:, ::2] = 0
    pruned.graph.initializers["w1"].const_value = ir.Tensor(array, name="w1")
    after, report = _run(Distill(**_FAST), pruned, dataset(400), original=teacher)
    assert report.changed == 1
    found = initializers(after)["w1"]
    assert not found[:, ::2].any()
    assert found[:, 1::2].all()
    free, _ = _run(Distill(**_FAST, keep_zeros=False), pruned, dataset(400), original=teacher)
    assert initializers(free)["w1"][:, ::2].any()


def test_an_old_opset_and_local_functions_stay() -> None:
    text = """<ir_version: 8, opset_import: ["" : 13, "own" : 1]>
    g (float[N,2] x) => (float[N,3] y) { a = Gemm(x, w1, b1) r = own.Act(a) y = MatMul(r, w2) }
    <domain: "own", opset_import: ["" : 13]> Act (a) => (r) { r = Relu(a) }"""
    own = initializers(perceptron())
    before = parse(text, **{name: own[name] for name in ("w1", "b1", "w2")})
    after, report = _run(Finetune(**_FAST), before, dataset(400))
    assert report.changed == 1
    assert (after.opset_imports[""], len(after.functions)) == (13, 1)
    assert _right(after) > 0.9


def test_filters_name_weights() -> None:
    before = perceptron()
    after, _ = _run(Finetune(**_FAST, exclude=("w1", "b1")), before, dataset(400))
    first, second = initializers(before), initializers(after)
    assert [name for name in first if not np.array_equal(first[name], second[name])] == ["w2", "b2"]


def test_what_has_no_rule_is_refused_by_name() -> None:
    before = graph(
        "g (float[N,2] x) => (float[N,3] y) { a = MatMul(x, w) y = Hardmax(a) }", w=np.ones((2, 3), np.float32)
    )
    _, report = _run(Finetune(epochs=1, batch=8), before, dataset(40))
    assert report.changed == 0
    assert report.refusals


def test_the_same_bits_each_time(tmp_path: Path) -> None:
    first, second = (
        to_proto(_run(Finetune(**_FAST), perceptron(), dataset(400))[0]).SerializeToString() for _ in range(2)
    )
    assert first == second


def _quantized(model: ir.Model) -> ir.Model:
    pass_ = QuantizeStatic(target="generic", placement="all", weight_type="int4")
    return _run(pass_, model, dataset(400))[0]


def test_qat_trains_integers() -> None:
    teacher = _taught()
    quantized, scores = _quantized(teacher), partial(softmax, axis=-1)
    after, report = _run(Qat(epochs=20, batch=20, lr=0.001, hard=0), quantized, dataset(400), original=teacher)
    assert report.changed == 1
    assert count_ops(after) == count_ops(quantized)
    assert _off(after, teacher, scores) < 0.75 * _off(quantized, teacher, scores)
    first, second = initializers(quantized), initializers(after)
    moved = [name for name in first if not np.array_equal(first[name], second[name])]
    assert moved
    assert all(first[name].dtype == second[name].dtype for name in first)
    assert all(first[name].dtype.kind != "f" for name in moved)  # scales stay


def test_qat_learns_scales_and_those_of_biases_follow() -> None:
    teacher, scores = _taught(), partial(softmax, axis=-1)
    quantized = _quantized(teacher)
    options: dict[str, Any] = {"epochs": 20, "batch": 20, "lr": 0.003, "hard": 0, "scales": "learned"}
    after, report = _run(Qat(**options), quantized, dataset(400), original=teacher)
    assert "scales" in report.changes[0].text
    assert count_ops(after) == count_ops(quantized)
    assert _off(after, teacher, scores) < 0.75 * _off(quantized, teacher, scores)
    first, second = initializers(quantized), initializers(after)
    assert [(name, array.dtype) for name, array in first.items()] == [(n, array.dtype) for n, array in second.items()]
    floats = [name for name, array in first.items() if array.dtype == np.float32]
    moved = [name for name in floats if not np.array_equal(first[name], second[name])]
    (layer,) = (node for node in after.graph if node.op_type == "Gemm")
    x, w, b = (value.producer().inputs[1].const_value.numpy() for value in layer.inputs)  # type: ignore[union-attr]
    assert str(layer.inputs[1].producer().inputs[1].name) in moved  # type: ignore[union-attr]
    np.testing.assert_allclose(b, x * w, rtol=1e-5)


def test_qat_wants_integers() -> None:
    _, report = _run(Qat(), perceptron(), dataset(), original=_taught())
    assert "run quantize-static first" in report.refusals[0].text


def test_in_a_pipeline() -> None:
    data = sectors(400)
    text = "prune-weights{sparsity=0.6},distill{epochs=20,batch=20,lr=0.02}"
    result = optimize(_taught(), passes=text, data=data, evaluation=sectors(200, seed=1))
    pruned, distilled = (quality.accuracy["y"] for quality in result.report.quality.values())
    assert distilled[1] >= pruned[1]
    assert sum(int(np.sum(array == 0)) for array in initializers(result.model).values()) >= 0.5 * (2 * 16 + 16 * 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Finetune(epochs=0),
        lambda: Finetune(lr=0.0),
        lambda: Finetune(batch=0),
        lambda: Finetune(smoothing=1.0),
        lambda: Finetune(optimizer="adam"),  # type: ignore[arg-type]
        lambda: Finetune(schedule="up"),  # type: ignore[arg-type]
        lambda: Finetune(warmup=-1),
        lambda: Distill(temperature=0.0),
        lambda: Distill(hard=1.5),
        lambda: Distill(features=-1.0),
        lambda: Qat(scales="free"),  # type: ignore[arg-type]
    ],
)
def test_options_out_of_range(make: Any) -> None:
    with pytest.raises(OptionError):
        make()


def test_a_batch_larger_than_the_data() -> None:
    with pytest.raises(DataError, match="choose a smaller batch"):
        _run(Finetune(batch=64), perceptron(), dataset(20))


def test_labels_out_of_range() -> None:
    data = sectors(100)
    data["labels"] = data["labels"] + 7
    with pytest.raises(DataError, match="classes 0 to 2"):
        _run(Finetune(batch=20), perceptron(), load_data(data, perceptron()))


def test_numbers_that_run_away_leave_the_model_as_it_was() -> None:
    before = perceptron()
    after, report = _run(Finetune(epochs=2, batch=20, lr=1e30, clip=0.0, optimizer="sgd"), before, dataset(200))
    assert report.changed == 0
    assert "not finite" in report.refusals[0].text or "NaN or infinity" in report.refusals[0].text
    assert _off(after, before) == 0
