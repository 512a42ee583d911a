"""merge-initializers."""

from pathlib import Path

import numpy as np
import onnx_ir as ir

import onnxopt
from onnxopt.external import OFFLOAD_BYTES
from onnxopt.passes.cleanup.merge_initializers import MergeInitializers
from tests.support import assert_same_outputs, graph, run

TWO = "g (float[N, 2] x) => (float[N, 2] y) { a = Mul(x, v) y = Mul(a, w) }"
ONES = np.ones(2, np.float32)


def test_equal_initializers_become_one() -> None:
    after, report = run(MergeInitializers(), graph(TWO, v=ONES, w=ONES.copy()))
    assert report.changed == 1
    assert list(after.graph.initializers) == ["v"]


def test_other_type_dims_or_bits_are_not_equal() -> None:
    for other in (np.ones((1, 2), np.float32), np.array([1, 2], np.float32), np.array([1, -0.0], np.float32)):
        first = np.array([1, 0.0], np.float32) if other[-1].sum() == 0 else ONES
        _, report = run(MergeInitializers(), graph(TWO, v=first, w=other))
        assert report.changed == 0
    before = graph(
        "g (float[2] x, int64[2] i) => (float[2] y, int64[2] j) { y = Mul(x, v) j = Mul(i, w) }",
        v=np.zeros(2, np.float32), w=np.zeros(2, np.int64),
    )  # fmt: skip
    assert run(MergeInitializers(), before)[1].changed == 0


def test_nan_equals_itself_and_strings_merge() -> None:
    nan = np.array([np.nan, 1], np.float32)
    assert run(MergeInitializers(), graph(TWO, v=nan, w=nan))[1].changed == 1
    text = "g () => (string[2] y) <string[1] a = {\"p\"}, string[1] b = {\"p\"}> { y = Concat<axis = 0>(a, b) }"
    after, report = run(MergeInitializers(), graph(text), verify=False)
    assert report.changed == 1
    assert list(after.graph.initializers) == ["a"]


def test_an_overridable_default_never_merges() -> None:
    before = graph(
        "g (float[N, 2] x, float[2] v) => (float[N, 2] y) <float[2] v = {1.0, 1.0}, float[2] w = {1.0, 1.0}>"
        "{ a = Mul(x, v) y = Mul(a, w) }"
    )
    after, report = run(MergeInitializers(), before)
    assert report.changed == 0
    assert set(after.graph.initializers) == {"v", "w"}


def test_one_that_is_an_output_stays() -> None:
    before = graph(
        "g (float[N, 2] x) => (float[N, 2] y, float[2] w) <float[2] v = {1.0, 1.0}, float[2] w = {1.0, 1.0}>"
        "{ a = Mul(x, v) y = Mul(a, w) }"
    )
    after, report = run(MergeInitializers(), before)
    assert report.changed == 0
    assert set(after.graph.initializers) == {"v", "w"}


def test_one_around_a_body_serves_the_body_but_siblings_do_not_serve_each_other() -> None:
    text = """g (float[N] x, bool c) => (float[N] y) %s {
            k = Add(x, x)
            y = If (c) <then_branch = t () => (float[N] a) <float[1] v = {2.0}> { a = Mul(k, v) },
                        else_branch = e () => (float[N] b) <float[1] w = {2.0}> { b = Sub(k, w) }> }"""
    assert run(MergeInitializers(), graph(text % ""))[1].changed == 0
    after, report = run(MergeInitializers(), graph((text % "<float[1] u = {2.0}>").replace("Add(x, x)", "Add(x, u)")))
    assert report.changed == 2
    assert list(after.graph.initializers) == ["u"]


def test_large_mapped_weights_are_compared_without_mapping_them(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(OFFLOAD_BYTES,)).astype(np.float32)
    other = weight.copy()
    other[weight.size // 2] += 1  # neither at the beginning nor at the end
    model = graph(
        f"g (float[{weight.size}] x) => (float[{weight.size}] y) {{ a = Mul(x, u) b = Mul(a, v) y = Mul(b, w) }}",
        u=weight, v=weight, w=other,
    )  # fmt: skip
    onnxopt.save(model, tmp_path / "m.onnx", external_data=True)
    before = onnxopt.load(tmp_path / "m.onnx")
    after, report = run(MergeInitializers(), before)
    assert report.changed == 1
    assert list(after.graph.initializers) == ["u", "w"]
    fresh = onnxopt.load(tmp_path / "m.onnx")
    result = onnxopt.optimize(tmp_path / "m.onnx", passes=[MergeInitializers()], verify="off").model
    kept = result.graph.initializers["u"].const_value
    assert isinstance(kept, ir.ExternalTensor)
    assert kept.raw is None
    assert_same_outputs(fresh, result)


def test_nothing_is_left_to_do_after_it() -> None:
    after, _ = run(MergeInitializers(), graph(TWO, opset=7, v=ONES, w=ONES))
    assert run(MergeInitializers(), after)[1].changed == 0
