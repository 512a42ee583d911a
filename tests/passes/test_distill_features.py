"""What ``distill`` teaches inside: which values go together, and that nothing of it is left in the student."""

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
from onnxopt.passes.distill._features import Kind, pairs_of
from onnxopt.passes.distill.distill import Distill
from tests.support import graph, outputs
from tests.train.cases import initializers, perceptron, sectors, weights

_KINDS: tuple[Kind, ...] = ("attention", "hints", "similarity")


def _residual(channels: int, blocks: int, names: str = "b", seed: int = 0) -> ir.Model:
    """A stem, residual blocks at full and at half size, and a head."""
    generator = np.random.default_rng(seed)
    arrays: Any = {"stem": weights(generator, channels, 1, 3, 3), "down": weights(generator, channels, channels, 3, 3)}
    text = "s = Conv<pads = [1, 1, 1, 1]>(x, stem) "
    last = "s"
    for at in range(2 * blocks):
        if at == blocks:
            text += f"d = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>({last}, down) "
            last = "d"
        name = f"{names}{at}"
        arrays[f"w{at}"] = weights(generator, channels, channels, 3, 3) / 3
        text += f"{name}c = Conv<pads = [1, 1, 1, 1]>({last}, w{at}) {name}a = Add({last}, {name}c) "
        text += f"{name} = Relu({name}a) "
        last = name
    arrays["head"] = weights(generator, channels, 3)
    text += f"p = GlobalAveragePool({last}) f = Flatten(p) y = MatMul(f, head)"
    return graph(f"g (float[N,1,8,8] x) => (float[N,3] y) {{ {text} }}", **arrays)


def _pictures(model: ir.Model) -> Dataset:
    return load_data({"x": np.random.default_rng(0).standard_normal((40, 1, 8, 8)).astype(np.float32)}, model)


def _tokens(width: int, blocks: int) -> ir.Model:
    generator = np.random.default_rng(0)
    arrays: Any = {"e": weights(generator, 5, width), "head": weights(generator, width, 3), "axes": np.array([1])}
    text, last = "t = MatMul(x, e) ", "t"
    for at in range(blocks):
        arrays[f"w{at}"] = weights(generator, width, width) / 2
        text += f"h{at} = MatMul({last}, w{at}) r{at} = Relu(h{at}) l{at} = Add({last}, r{at}) "
        last = f"l{at}"
    text += f"m = ReduceMean<keepdims = 0>({last}, axes) y = MatMul(m, head)"
    return graph(f"g (float[N,6,5] x) => (float[N,3] y) {{ {text} }}", **arrays)


def _distilled(student: ir.Model, teacher: Path, data: Dataset, **options: Any) -> tuple[ir.Model, Report]:
    after = copy(student)
    chosen: dict[str, Any] = {"epochs": 2, "batch": 12, "lr": 0.01, "features": 1.0, **options}
    return after, Distill(teacher=str(teacher), **chosen).run(Context(Editor(after), data=data))


def _without_weights(model: ir.Model) -> bytes:
    proto = to_proto(model)
    for tensor in proto.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
    return bytes(proto.SerializeToString())


def test_blocks_are_matched_by_size_and_depth() -> None:
    student, teacher = _residual(4, 1), _residual(6, 3, "t")
    found = pairs_of(Editor(student), Editor(teacher), (), "hints", _pictures(student))
    assert [(pair.own, pair.taught) for pair in found] == [("b0", "t2"), ("b1", "t5")]
    assert [pair.axis("hints") for pair in found] == [1, 1]
    found = pairs_of(Editor(student), Editor(teacher), (), "similarity", _pictures(student))
    assert [(pair.own, pair.taught) for pair in found] == [("b0", "t2"), ("b1", "t5")]
    found = pairs_of(Editor(student), Editor(teacher), ("b0=t0", "b0=t1"), "attention", _pictures(student))
    assert [(pair.own, pair.taught) for pair in found] == [("b0", "t0"), ("b0", "t1")]


def test_tokens_are_matched_by_depth() -> None:
    student, teacher = _tokens(4, 2), _tokens(6, 6)
    data = load_data({"x": np.ones((10, 6, 5), np.float32)}, student)
    found = pairs_of(Editor(student), Editor(teacher), (), "hints", data)
    assert [(pair.own, pair.taught) for pair in found] == [("l0", "l0"), ("l1", "l1")]  # called alike
    for node in student.graph:
        node.outputs[0].name = f"own_{node.outputs[0].name}" if node.outputs[0].name != "y" else "y"
    found = pairs_of(Editor(student), Editor(teacher), (), "hints", data)
    assert [(pair.own, pair.taught) for pair in found] == [("own_l0", "l2"), ("own_l1", "l5")]
    assert [pair.axis("hints") for pair in found] == [2, 2]
    found = pairs_of(Editor(student), Editor(_tokens(4, 3)), ("own_l1=l2",), "hints", data)
    assert found[0].axis("hints") == 2  # where all sizes are the same, a product says what the channels are


@pytest.mark.parametrize("kind", _KINDS)
def test_nothing_is_left_in_the_student(tmp_path: Path, kind: Kind) -> None:
    student = _residual(4, 1)
    save(_residual(6, 2, "t", seed=1), tmp_path / "teacher.onnx")
    after, report = _distilled(student, tmp_path / "teacher.onnx", _pictures(student), feature_loss=kind)
    assert report.changed == 1
    assert _without_weights(after) == _without_weights(student)
    assert not np.array_equal(initializers(after)["w0"], initializers(student)["w0"])


def test_filters_leave_the_projection_trained(tmp_path: Path) -> None:
    student = _residual(4, 1)
    save(_residual(6, 2, "t", seed=1), tmp_path / "teacher.onnx")
    after, _ = _distilled(
        student, tmp_path / "teacher.onnx", _pictures(student), feature_loss="hints", include=("w1",)
    )  # fmt: skip
    moved = [
        name for name, array in initializers(after).items() if not np.array_equal(array, initializers(student)[name])
    ]
    assert moved == ["w1"]


def test_hints_bring_the_inside_near_the_teachers(tmp_path: Path) -> None:
    """What is inside the student tells more of what is inside the teacher, by least squares, than without hints."""
    teacher, student = perceptron(seed=1), perceptron(seed=2, hidden=6)
    save(teacher, tmp_path / "teacher.onnx")
    data = load_data({"x": sectors(400)["x"]}, student)
    left = []
    for options in ({"features": 0.0}, {"features": 4.0, "feature_loss": "hints", "pairs": ("r",)}):
        after, _ = _distilled(student, tmp_path / "teacher.onnx", data, **{"epochs": 15, "batch": 20, **options})
        inside = []
        for model in (after, teacher):
            shown = copy(model)
            shown.graph.outputs[:] = [v for node in shown.graph for v in node.outputs if v.name == "r"]
            inside.append(outputs(shown, {"x": sectors(300, 1)["x"]})[0])
        x = np.column_stack([inside[0], np.ones(300)])
        left.append(float(np.sum((x @ np.linalg.lstsq(x, inside[1], rcond=None)[0] - inside[1]) ** 2)))
    assert left[1] < 0.7 * left[0]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"pairs": ("none=t1",)}, "the model computes no value 'none'"),
        ({"pairs": ("b0=t1x",)}, "the teacher computes no value 't1x'; did you mean 't1'"),
        ({"pairs": ("b0=t3",), "feature_loss": "hints"}, "for hints they need the same sizes, but for their channels"),
        ({"pairs": ("f=f",)}, "for attention they need the same sizes"),
    ],
)
def test_pairs_that_do_not_fit(tmp_path: Path, options: dict[str, Any], why: str) -> None:
    save(_residual(6, 2, "t"), tmp_path / "teacher.onnx")
    student = _residual(4, 1)
    with pytest.raises(OptionError, match=f"distill.pairs: .*{why}"):
        _distilled(student, tmp_path / "teacher.onnx", _pictures(student), **options)


def test_nothing_that_fits(tmp_path: Path) -> None:
    save(graph("g (float[N,1,8,8] x) => (float[N,3] y) { f = Flatten(x) y = MatMul(f, w) }",
               w=np.ones((64, 3), np.float32)), tmp_path / "teacher.onnx")  # fmt: skip
    student = _residual(4, 1)
    with pytest.raises(OptionError, match=r"no value at the end of a block .* name pairs"):
        _distilled(student, tmp_path / "teacher.onnx", _pictures(student))


@pytest.mark.parametrize(
    "options", [{"pairs": ("a=b",)}, {"feature_loss": "hints"}, {"features": 1, "feature_loss": "x"}]
)
def test_options_that_say_nothing(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Distill(**options)
