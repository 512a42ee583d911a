"""Counts and fidelity, against figures worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest

from onnxopt import metrics
from onnxopt.errors import OptionError
from onnxopt.macs import count_macs, dynamic_dims
from onnxopt.model import from_proto, load, save
from tests.support import graph, parse


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


# -- multiply–accumulates --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "weights", "macs"),
    [
        ("(float[2,3,8,8] x) => (float[a,b,c,d] y) { y = Conv(x, w) }", [w(5, 3, 3, 3)], 2 * 5 * 6 * 6 * 27),
        ("(float[1,4,8,8] x) => (float[a,b,c,d] y) { y = Conv <group = 4, strides = [2, 2]> (x, w) }",
         [w(4, 1, 3, 3)], 4 * 3 * 3 * 9),
        ("(float[1,3,4,4] x) => (float[a,b,c,d] y) { y = ConvTranspose <strides = [2, 2]> (x, w) }",
         [w(3, 5, 2, 2)], 3 * 16 * 5 * 4),
        ("(float[2,3] x) => (float[a,b] y) { y = Gemm(x, w) }", [w(3, 7)], 2 * 3 * 7),
        ("(float[3,2] x) => (float[a,b] y) { y = Gemm <transA = 1, transB = 1> (x, w) }", [w(7, 3)], 2 * 3 * 7),
        ("(float[5,2,3] x) => (float[a,b,c] y) { y = MatMul(x, w) }", [w(3, 7)], 5 * 2 * 3 * 7),
        ("(float[3] x) => (float y) { y = MatMul(x, w) }", [w(3)], 3),
        ("(float[6,2,4] x) => (float[a,b,c,d] y) { y, h = RNN <hidden_size = 8> (x, w, v) }",
         [w(1, 8, 4), w(1, 8, 8)], 6 * 2 * 8 * (4 + 8)),
        ("(float[6,2,4] x) => (float[a,b,c,d] y) { y = GRU <hidden_size = 8> (x, w, v) }",
         [w(1, 24, 4), w(1, 24, 8)], 6 * 2 * 3 * 8 * (4 + 8)),
        ('(float[6,2,4] x) => (float[a,b,c,d] y) { y = LSTM <hidden_size = 8, direction = "bidirectional"> (x, w, v) }',
         [w(2, 32, 4), w(2, 32, 8)], 6 * 2 * 2 * 4 * 8 * (4 + 8)),
        ('(float[2,3,4] x) => (float[a,b,c] y) { y = Einsum <equation = "bij,bjk->bik"> (x, w) }',
         [w(2, 4, 5)], 2 * 3 * 4 * 5),
        ('(float[7,2,3,4] x) => (float[a,b,c,d] y) { y = Einsum <equation = "...ij, jk -> ...ik"> (x, w) }',
         [w(4, 5)], 7 * 2 * 3 * 4 * 5),
        ('(float[2,3] x) => (float[a] y) { y = Einsum <equation = "ij->i"> (x) }', [], 0),
        ("(uint8[2,3] x) => (int32[a,b] y) { y = MatMulInteger(x, w) }", [w(3, 7, dtype=np.uint8)], 2 * 3 * 7),
        ("(uint8[1,3,8,8] x) => (int32[a,b,c,d] y) { y = ConvInteger(x, w) }",
         [w(5, 3, 3, 3, dtype=np.uint8)], 5 * 6 * 6 * 27),
        ("(float[2,3] x) => (float[2,3] y) { y = Relu(x) }", [], 0),
    ],
)  # fmt: skip
def test_macs(body: str, weights: list[np.ndarray[Any, Any]], macs: int) -> None:
    initializers = dict(zip("wv", weights, strict=False))
    found = count_macs(parse(f'<ir_version: 8, opset_import: ["" : 18]> g {body}', **initializers))
    assert (found.total, found.unknown) == (macs, [])


def test_dynamic_dims_are_set() -> None:
    model = graph("g (float[N, S, 4] x) => (float[N, S, 8] y) { y = MatMul(x, w) }", w=w(4, 8))
    assert dynamic_dims(model) == {"N": 1, "S": 128}
    assert count_macs(model).total == 128 * 32
    found = count_macs(model, {"N": 3, "S": 10})
    assert (found.total, found.at) == (30 * 32, {"N": 3, "S": 10})
    with pytest.raises(OptionError, match="no input has a dynamic dim 'T'; dynamic dims: N, S"):
        count_macs(model, {"T": 1})


def test_nameless_dims_are_called_by_their_place() -> None:
    model = graph("g (float[?, 4] x) => (float[?, 8] y) { y = MatMul(x, w) }", w=w(4, 8))
    assert count_macs(model, {"x[0]": 5}).total == 5 * 32


def test_counting_leaves_the_model_alone() -> None:
    model = graph("g (float[N, 4] x) => (float[N, 8] y) { y = MatMul(x, w) }", w=w(4, 8))
    count_macs(model, {"N": 3})
    assert str(model.graph.inputs[0].shape) == "[N,4]"


def test_unknown_shapes_are_told() -> None:
    model = graph(
        "g (float[4] x, float[N] z) => (float[a,b] y) { i = NonZero(x) f = Cast <to = 1> (i) y = MatMul(f, w) "
        "m = MatMul(z, v) }",
        w=w(4, 8), v=w(1),
    )  # fmt: skip
    found = count_macs(model, {"N": 1})
    assert (found.total, found.unknown) == (1, ["y"])


def test_the_dearer_branch_and_every_round_count() -> None:
    model = graph(
        """g (float[2, 3] x, bool c) => (float[a, b] y, float[3, 3] z) <int64 n = {5}, bool t = {1}> {
            y = If (c) <then_branch = t () => (float[2, 7] u) { u = MatMul(x, w) },
                        else_branch = e () => (float[2, 1] v) { v = MatMul(x, v1) }>
            r = Relu(s)
            z = Loop (n, t, s) <body = b (int64 i, bool go, float[3, 3] l) => (bool more, float[3, 3] k) {
                more = Identity(go)
                p = MatMul(r, r)
                k = Add(l, p)
            }>
        }""",
        w=w(3, 7), v1=w(3, 1), s=w(3, 3),
    )  # fmt: skip
    found = count_macs(model)
    assert (found.total, found.unknown, found.counted_once) == (2 * 3 * 7 + 5 * 27, [], [])


def test_loops_of_unknown_length_are_told() -> None:
    model = graph(
        """g (int64 n) => (float[3, 3] z) <bool t = {1}> {
            r = Relu(s)
            z = Loop (n, t, s) <body = b (int64 i, bool go, float[3, 3] l) => (bool more, float[3, 3] k) {
                more = Identity(go)
                p = MatMul(r, r)
                k = Add(l, p)
            }>
        }""",
        s=w(3, 3),
    )
    found = count_macs(model)
    assert (found.total, found.counted_once) == (27, ["z"])


def test_a_function_counts_at_every_call() -> None:
    function = oh.make_function(
        "my", "Product", ["x", "w"], ["y"], [oh.make_node("MatMul", ["x", "w"], ["y"])], [oh.make_opsetid("", 18)]
    )
    nodes = [oh.make_node("Product", [a, "w"], [b], domain="my") for a, b in ("xa", "ay")]
    x, y = (oh.make_tensor_value_info(name, 1, [2, 3]) for name in "xy")
    weight = onnx.numpy_helper.from_array(w(3, 3), "w")
    model = from_proto(
        oh.make_model(
            oh.make_graph(nodes, "g", [x], [y], initializer=[weight]),
            opset_imports=[oh.make_opsetid("", 18), oh.make_opsetid("my", 1)], functions=[function],
        )
    )  # fmt: skip
    assert count_macs(model).total == 2 * 2 * 9
