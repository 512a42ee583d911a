"""Counts and fidelity, against figures worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest

from onnxopt import metrics
from onnxopt.model import from_proto, load, save
from tests.support import graph


def w(*dims: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.zeros(dims, dtype)


# -- fidelity --------------------------------------------------------------------------------------------


def test_sqnr_is_twenty_decibels_for_a_tenth() -> None:
    x = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    assert metrics.sqnr([x, x], [x * np.float32(1.1), x * np.float32(0.9)]) == pytest.approx(20, abs=1e-4)


def test_sqnr_weighs_all_samples_together() -> None:
    expected = [np.array([3.0]), np.array([4.0])]
    assert metrics.sqnr(expected, [np.array([3.0]), np.array([4.5])]) == pytest.approx(10 * np.log10(25 / 0.25))


@pytest.mark.parametrize(
    ("x", "y", "decibels"),
    [([1.0], [1.0], np.inf), ([0.0], [0.0], np.inf), ([0.0], [1.0], -np.inf), ([1.0], [1.0, 1.0], -np.inf)],
)
def test_sqnr_at_the_ends(x: list[float], y: list[float], decibels: float) -> None:
    assert metrics.sqnr([np.array(x)], [np.array(y)]) == decibels


def test_fidelity_leaves_out_what_is_no_number() -> None:
    runs = [[np.array([1.0]), np.array(["a"], dtype=object), [np.array([1.0])]]]
    assert metrics.fidelity(["y", "text", "sequence"], runs, runs) == {"y": np.inf}


# -- counts ----------------------------------------------------------------------------------------------

NESTED = """g (float[N] x, bool c) => (float[N] y) <float[3] w = {1, 2, 3}> {
    k = Constant <value = float[2] {1, 2}> ()
    a = Relu(x)
    y = If (c) <
        then_branch = t () => (float[N] u) <float[2] v = {1, 2}> { u = Relu(a) },
        else_branch = e () => (float[N] z) { i = Identity(a) z = Neg(i) }
    >
}"""


def test_bodies_count_and_constants_are_data() -> None:
    model = graph(NESTED)
    assert metrics.operators(model) == {"Relu": 2, "If": 1, "Identity": 1, "Neg": 1}
    assert metrics.nodes(model) == 5
    assert metrics.parameters(model) == 3 + 2 + 2
    assert metrics.weights(model) == {"FLOAT": 28}


def test_a_tensor_that_is_shared_counts_once() -> None:
    model = graph("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { a = Add(x, w) y = Add(a, v) }", v=w(2))
    values = model.graph.initializers
    values["v"].const_value = values["w"].const_value
    assert metrics.parameters(model) == 2


def test_unused_functions_do_not_count() -> None:
    function = oh.make_function(
        "my", "Used", ["x"], ["y"], [oh.make_node("Relu", ["x"], ["a"]), oh.make_node("Neg", ["a"], ["y"])],
        [oh.make_opsetid("", 18)],
    )  # fmt: skip
    unused = oh.make_function(
        "my", "Unused", ["x"], ["y"], [oh.make_node("Abs", ["x"], ["y"])], [oh.make_opsetid("", 18)]
    )
    x, y = (oh.make_tensor_value_info(name, 1, [2]) for name in "xy")
    model = from_proto(
        oh.make_model(
            oh.make_graph([oh.make_node("Used", ["x"], ["y"], domain="my")], "g", [x], [y]),
            opset_imports=[oh.make_opsetid("", 18), oh.make_opsetid("my", 1)], functions=[function, unused],
        )
    )  # fmt: skip
    assert metrics.operators(model) == {"my::Used": 1, "Relu": 1, "Neg": 1}


def test_file_sizes_include_external_data(tmp_path: Any) -> None:
    model = graph("g (float[100] x) => (float[100] y) { y = MatMul(x, w) }", w=w(100, 100))
    assert metrics.file_bytes(model) is None
    save(model, tmp_path / "m.onnx", external_data=True)
    loaded = load(tmp_path / "m.onnx")
    assert metrics.external_files(loaded) == {str((tmp_path / "m.onnx.data").resolve()): 40_000}
    assert metrics.file_bytes(loaded) == (tmp_path / "m.onnx").stat().st_size + 40_000
    save(model, tmp_path / "inline.onnx")
    assert metrics.external_files(load(tmp_path / "inline.onnx")) == {}


def test_sparse_weights_count_what_is_stored() -> None:
    sparse = oh.make_sparse_tensor(
        oh.make_tensor("s", onnx.TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]),
        oh.make_tensor("i", onnx.TensorProto.INT64, [3], [0, 4, 9]),
        [100],
    )
    x, y = (oh.make_tensor_value_info(name, 1, [100]) for name in "xy")
    nodes = [oh.make_node("Add", ["x", "s"], ["y"])]
    model = from_proto(oh.make_model(oh.make_graph(nodes, "g", [x], [y], sparse_initializer=[sparse])))
    assert metrics.parameters(model) == 3
    assert list(metrics.weights(model)) == ["sparse"]
