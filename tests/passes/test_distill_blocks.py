"""``distill-blocks``: each block comes near what it gave, by the samples that judge, and nothing else moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.data import Dataset, load_data
from onnxopt.errors import OptionError
from onnxopt.graph import Editor
from onnxopt.model import copy, save, to_proto
from onnxopt.pass_base import Context, Report
from onnxopt.passes.distill.distill_blocks import DistillBlocks
from onnxopt.passes.quantize.quantize_static import QuantizeStatic
from tests.support import count_ops, graph, outputs
from tests.train.cases import initializers, weights

_FAST: dict[str, Any] = {"epochs": 8, "batch": 20, "lr": 0.01}


def _residual(hidden: int = 16, tied: bool = False) -> ir.Model:
    """Three blocks of two layers on a stream of rows, and a head."""
    generator = np.random.default_rng(0)
    text, last = "e = MatMul(x, stem) ", "e"
    arrays: Any = {"stem": weights(generator, 6, 8), "head": weights(generator, 8, 3)}
    for at in range(3):
        own = 0 if tied else at
        arrays |= {f"u{own}": weights(generator, 8, hidden), f"v{own}": weights(generator, hidden, 8)}
        text += f"a{at} = MatMul({last}, u{own}) r{at} = Relu(a{at}) o{at} = MatMul(r{at}, v{own}) "
        text += f"s{at} = Add({last}, o{at}) "
        last = f"s{at}"
    return graph(f"g (float[N,6] x) => (float[N,3] y) {{ {text} y = MatMul({last}, head) }}", **arrays)


def _samples(model: ir.Model, seed: int = 0) -> Dataset:
    return load_data({"x": np.random.default_rng(seed).standard_normal((300, 6)).astype(np.float32)}, model)


def _shaken(model: ir.Model, *names: str) -> ir.Model:
    found, generator = copy(model), np.random.default_rng(4)
    for name in names:
        array = initializers(model)[name]
        noise = 0.2 * generator.standard_normal(array.shape)
        found.graph.initializers[name].const_value = ir.Tensor((array + noise).astype(np.float32), name=name)
    return found


def _run(before: ir.Model, original: ir.Model | None, **options: Any) -> tuple[ir.Model, Report]:
    after = copy(before)
    pass_ = DistillBlocks(**{**_FAST, **options})
    return after, pass_.run(Context(Editor(after), data=_samples(before), original=original))


def _off(model: ir.Model, other: ir.Model) -> float:
    x = {"x": np.random.default_rng(1).standard_normal((300, 6)).astype(np.float32)}
    return float(np.mean((outputs(model, x)[0] - outputs(other, x)[0]) ** 2))


@pytest.mark.parametrize("inputs", ["student", "teacher"])
def test_blocks_are_won_back_and_others_stay(inputs: str) -> None:
    teacher = _residual()
    shaken = _shaken(teacher, "u0", "v2")
    after, report = _run(shaken, teacher, inputs=inputs)
    assert _off(after, teacher) < 0.3 * _off(shaken, teacher)
    assert {"s0", "s2"} <= {note.node for note in report.changes}
    assert all(fact["kept"] for fact in report.facts if fact["block"] in ("s0", "s2"))
    assert count_ops(after) == count_ops(shaken)
    assert initializers(after).keys() == initializers(shaken).keys()


def test_what_is_as_it_was_stays() -> None:
    teacher = _residual()
    after, report = _run(_shaken(teacher, "u2"), teacher)
    assert {note.node for note in report.refusals} >= {"s0", "s1"}
    assert all("gives what it gives" in note.text for note in report.refusals if note.node in ("s0", "s1"))
    moved = [
        name for name, array in initializers(teacher).items() if not np.array_equal(array, initializers(after)[name])
    ]
    assert set(moved) <= {"u2", "v2", "head"}


def test_narrower_blocks_of_a_teacher_from_a_file(tmp_path: Path) -> None:
    save(_residual(), tmp_path / "teacher.onnx")
    student = _residual(hidden=10)
    after, report = _run(student, None, teacher=str(tmp_path / "teacher.onnx"), epochs=15)
    assert report.changed >= 3
    assert _off(after, _residual()) < 0.5 * _off(student, _residual())


def test_integers_are_trained_as_integers() -> None:
    teacher = _residual()
    quantized = copy(teacher)
    data = _samples(teacher)
    pass_ = QuantizeStatic(target="generic", placement="all", weight_type="int4")
    pass_.run(Context(Editor(quantized), data=data, evaluation=data))
    after, report = _run(quantized, teacher, epochs=20, lr=0.002)
    assert report.changed
    assert count_ops(after) == count_ops(quantized)
    assert _off(after, teacher) < 0.9 * _off(quantized, teacher)
    assert [array.dtype for array in initializers(after).values()] == [
        array.dtype for array in initializers(quantized).values()
    ]


def test_weights_of_several_blocks_stay() -> None:
    teacher = _residual(tied=True)
    after, _ = _run(_shaken(teacher, "u0"), teacher)
    assert np.array_equal(initializers(after)["u0"], initializers(_shaken(teacher, "u0"))["u0"])


def test_the_same_bits_each_time() -> None:
    one, other = (_run(_shaken(_residual(), "u0"), _residual(), epochs=2)[0] for _ in range(2))
    assert to_proto(one) == to_proto(other)


def test_nothing_to_learn_from() -> None:
    _, report = _run(_residual(), None)
    assert "change it first" in report.refusals[0].text
    other = graph("g (float[N,6] x) => (float[N,3] z) { z = MatMul(x, w) }", w=np.ones((6, 3), np.float32))
    _, report = _run(_residual(), other)
    assert "no value that both compute" in report.refusals[0].text


def test_options_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(OptionError):
        DistillBlocks(inputs="x")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"distill-blocks\.teacher"):
        _run(_residual(), None, teacher=str(tmp_path / "none.onnx"))
