"""Multiply–accumulates, against figures worked out by hand and against the shapes that ONNX Runtime reports."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnx_ir as ir
import onnxruntime as ort
import pytest

from onnxopt.errors import OptionError
from onnxopt.macs import count_macs, dynamic_dims
from onnxopt.model import from_proto, load, to_proto
from onnxopt.probes import find_probes, interface_inputs
from onnxopt.runtime import Feeds, Session, Snapshot
from tests.support import graph

MODELS = Path(__file__).resolve().parent.parent / "models"
MICROSOFT = ', "com.microsoft" : 1'


def w(*dims: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.zeros(dims, dtype)


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
        ("(float[2,5,32] x) => (float[a,b,c] y) "
         "{ y = com.microsoft.MatMulNBits <K = 32, N = 6, block_size = 16> (x, w, v) }",
         [w(6, 2, 8, dtype=np.uint8), w(12)], 2 * 5 * 32 * 6),
        ("(uint8[5,2] x) => (float[a,b] y) <float s = {0.5}, uint8 z = {3}> "
         "{ y = com.microsoft.QGemm <transA = 1> (x, s, z, w, s, z) }", [w(5, 7, dtype=np.uint8)], 2 * 5 * 7),
        ("(float[6,2,4] x) => (float[a,b,c,d] y) <float s = {0.5}, uint8 z = {3}> "
         "{ y = com.microsoft.DynamicQuantizeLSTM <hidden_size = 8> (x, w, v, , , , , , s, z, s, z) }",
         [w(1, 4, 32, dtype=np.uint8), w(1, 8, 32, dtype=np.uint8)], 6 * 2 * 4 * 8 * (4 + 8)),
        ("(float[2,3] x) => (float[2,3] y) { y = Relu(x) }", [], 0),
    ],
)  # fmt: skip
def test_macs(body: str, weights: list[np.ndarray[Any, Any]], macs: int) -> None:
    initializers: dict[str, Any] = dict(zip("wv", weights, strict=False))
    found = count_macs(graph(f"g {body}", extra=MICROSOFT, **initializers))
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


# -- attention -------------------------------------------------------------------------------------------

B, S, T, P, H, D, V = 2, 5, 7, 3, 4, 8, 6
"""Samples, queries, keys, past keys, heads, size of a query, size of a value."""


@pytest.mark.parametrize(
    ("body", "macs"),
    [
        ("(float[2,4,5,8] q, float[2,4,7,8] k, float[2,4,7,6] v) => (float[a,b,c,d] y) { y = Attention(q, k, v) }",
         B * H * S * T * (D + V)),
        ("(float[2,5,32] q, float[2,7,16] k, float[2,7,12] v) => (float[a,b,c] y) "
         "{ y = Attention <q_num_heads = 4, kv_num_heads = 2> (q, k, v) }", B * H * S * T * (D + V)),
        ("(float[2,4,5,8] q, float[2,4,7,8] k, float[2,4,7,6] v, float[2,4,3,8] pk, float[2,4,3,6] pv) => "
         "(float[a,b,c,d] y, float[e,f,g,h] nk, float[i,j,l,m] nv) { y, nk, nv = Attention(q, k, v, , pk, pv) }",
         B * H * S * (T + P) * (D + V)),
        ("(float[2,5,10] x) => (float[a,b,c] y) { y = com.microsoft.Attention <num_heads = 4> (x, w, c) }",
         B * S * 10 * 96 + B * H * S * S * (D + D)),
        ("(float[2,5,10] x) => (float[a,b,c] y) "
         "{ y = com.microsoft.Attention <num_heads = 4, qkv_hidden_sizes = [32, 32, 24]> (x, w88, c88) }",
         B * S * 10 * 88 + B * H * S * S * (D + V)),
        ("(float[2,5,10] x, float[2,2,4,3,8] past) => (float[a,b,c] y, float[d,e,f,g,h] now) "
         "{ y, now = com.microsoft.Attention <num_heads = 4> (x, w, c, , past) }",
         B * S * 10 * 96 + B * H * S * (S + P) * (D + D)),
        ("(float[2,5,32] q, float[2,7,32] k, float[2,7,24] v) => (float[a,b,c] y) "
         "{ y = com.microsoft.MultiHeadAttention <num_heads = 4> (q, k, v) }", B * H * S * T * (D + V)),
        ("(float[2,5,32] q, float[2,4,7,8] k, float[2,4,7,8] v) => (float[a,b,c] y) "
         "{ y = com.microsoft.MultiHeadAttention <num_heads = 4> (q, k, v) }", B * H * S * T * (D + D)),
        ("(float[2,5,32] q, float[2,5,32] k, float[2,5,32] v, float[2,4,3,8] pk, float[2,4,3,8] pv) => "
         "(float[a,b,c] y, float[d,e,f,g] nk, float[h,i,j,l] nv) "
         "{ y, nk, nv = com.microsoft.MultiHeadAttention <num_heads = 4> (q, k, v, , , , pk, pv) }",
         B * H * S * (S + P) * (D + D)),
        ("(float[2,5,32] q, float[2,7,4,2,8] k) => (float[a,b,c] y) "
         "{ y = com.microsoft.MultiHeadAttention <num_heads = 4> (q, k) }", B * H * S * T * (D + D)),
        ("(float[2,5,4,3,8] q) => (float[a,b,c] y) { y = com.microsoft.MultiHeadAttention <num_heads = 4> (q) }",
         B * H * S * S * (D + D)),
        ("(uint8[2,5,10] x) => (float[a,b,c] y) <float s = {0.5}> "
         "{ y = com.microsoft.QAttention <num_heads = 4> (x, w, c, s, s) }",
         B * S * 10 * 96 + B * H * S * S * (D + D)),
        ("(float[2,5,32] q, float[2,8,16] k, float[2,8,16] v, float[2,2,3,8] pk, float[2,2,3,8] pv, int32[2] last) => "
         "(float[a,b,c] y, float[d,e,f,g] nk, float[h,i,j,l] nv) <int32 all = {8}> { y, nk, nv = "
         "com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2> (q, k, v, pk, pv, last, all) }",
         B * H * S * (S + P) * (D + D)),
        ("(float[2,5,64] q, int32[2] last, int64[2,5] mask) => (float[a,b,c] y, float[d,e,f,g] nk, float[h,i,j,l] nv) "
         "<int64 one = {1}> { m = Shape(mask) n = Gather(m, one) all = Cast <to = 6> (n) y, nk, nv = "
         "com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2> (q, , , , , last, all) }",
         B * H * S * S * (D + D)),
    ],
)  # fmt: skip
def test_attention_sums_over_size_and_over_keys(body: str, macs: int) -> None:
    matrices = {"w": w(10, 96), "c": w(96), "w88": w(10, 88), "c88": w(88)}
    used: dict[str, Any] = {name: array for name, array in matrices.items() if f" {name}" in body}
    model = graph(f"g {body}", opset=23, ir_version=10, extra=MICROSOFT, **used)
    found = count_macs(model)
    assert (found.total, found.unknown) == (macs, [])


@pytest.mark.parametrize(
    "body",
    [
        "(float[2,1,32] q, float[2,1,32] k, float[2,1,32] v, float[2,4,9,8] pk, float[2,4,9,8] pv, int32[1] used) => "
        "(float[a,b,c] y, float[d,e,f,g] nk, float[h,i,j,l] nv) "
        "{ y, nk, nv = com.microsoft.MultiHeadAttention <num_heads = 4> (q, k, v, , , , pk, pv, used) }",
        "(float[2,1,10] x, float[2,2,4,9,8] past, int32[1] used) => (float[a,b,c] y, float[d,e,f,g,h] now) { y, now = "
        "com.microsoft.Attention <num_heads = 4, past_present_share_buffer = 1> (x, w, c, , past, , used) }",
        "(float[2,1,64] q, int32[2] last, int32 all) => (float[a,b,c] y, float[d,e,f,g] nk, float[h,i,j,l] nv) "
        "{ y, nk, nv = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2> (q, , , , , last, all) }",
    ],
)
def test_how_many_keys_there_are_may_not_be_known(body: str) -> None:
    matrices: dict[str, Any] = {"w": w(10, 96), "c": w(96)} if "past," in body else {}
    assert count_macs(graph(f"g {body}", extra=MICROSOFT, **matrices)).unknown == ["y"]


# -- shapes that are computed ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "dims"),
    [
        ("a = Identity(x)", (3, 10, 16)),
        ("n = Gather(s, zero) r = Concat <axis = 0> (n, rest, four) a = Reshape(x, r)", (3, 40, 4)),
        ("i = Constant <value_int = 1> () n = Gather(s, i) o = Constant <value_float = 0.0> () b = CastLike(o, n)"
         " d = Constant <value_int = 2> () t = Range(b, n, d) f = Cast <to = 1> (t) a = Unsqueeze(f, one)", (5, 1)),
        ("n = Slice(s, zero, one) r = Concat <axis = 0> (n, rest) e = Equal(r, rest) p = Where(e, four, r)"
         " a = Expand(h, p)", (3, 4)),
        ("n = Slice(s, one, two) r = Concat <axis = 0> (n, four) a = ConstantOfShape(r)", (10, 4)),
        ("n = Gather(s, one) l = Cast <to = 1> (n) m = Mul(l, h) c = Ceil(m) k = Cast <to = 7> (c)"
         " r = Concat <axis = 0> (rest, k) a = Reshape(x, r)", (160, 3)),
        ("f = Cast <to = 1> (s) z = Div(f, tenth) a = Resize(x, none, z)", (9, 100, 6)),
    ],
    ids=["none", "reshape", "range", "expand", "constant", "rounded", "scales"],
)  # fmt: skip
def test_computed_shapes_are_known(code: str, dims: tuple[int, ...]) -> None:
    model = graph(
        f"""g (float[N, L, 16] x) => (float[A] y) <int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}},
        int64[1] four = {{4}}, int64[1] rest = {{-1}}, float[1] h = {{0.25}}, float[3] tenth = {{1, 1, 40}}>
        {{ s = Shape(x) {code} y = MatMul(a, w) }}""",
        w=w(dims[-1], 7), none=w(0),
    )  # fmt: skip
    found = count_macs(model, {"N": 3, "L": 10})
    assert (found.total, found.unknown) == (math.prod(dims) * 7, [])


def test_a_slice_of_opset_10_that_is_computed() -> None:
    model = graph(
        """g (float[N, 8] x) => (float[A, B] y) <int64[1] zero = {0}, int64[1] two = {2}> {
            s = Shape(x) n = Gather(s, zero) half = Div(n, two) c = Slice(x, zero, half, zero) y = MatMul(c, w)
        }""",
        opset=10, w=w(8, 5),
    )  # fmt: skip
    assert count_macs(model, {"N": 7}).total == 3 * 8 * 5


def test_a_constant_from_around_a_branch() -> None:
    model = graph(
        """g (float[N, 3] x, bool c) => (float[A, B] y) <int64[4] pads = {0, 1, 2, 1}> {
            p = If (c) <then_branch = t () => (float[E, F] u) { u = Pad(x, pads) },
                        else_branch = e () => (float[G, H] v) { q = Pad(x, pads) v = Relu(q) }>
            y = MatMul(p, w)
        }""",
        w=w(5, 4),
    )
    assert count_macs(model, {"N": 6}).total == 8 * 5 * 4


def test_behind_an_operator_that_onnx_does_not_know() -> None:
    model = graph(
        "g (float[N, 4] x) => (float[A, B] y) "
        "{ u = com.microsoft.Gelu(x) i = Identity(u) c = Cast <to = 1> (i) y = MatMul(c, w) }",
        extra=MICROSOFT, w=w(4, 5),
    )  # fmt: skip
    assert count_macs(model, {"N": 3}).total == 3 * 4 * 5


def test_pieces_of_a_sequence() -> None:
    model = graph(
        """g (float[N, 10] x) => (float[A, B] y) <int64 four = {4}, int64 two = {2}, int64 last = {-1}> {
            q = SplitToSequence <axis = 1> (x, four) a = SequenceAt(q, two) b = SequenceAt(q, last) s = Add(a, b)
            y = MatMul(s, w)
        }""",
        w=w(2, 5),
    )
    assert count_macs(model, {"N": 3}).total == 3 * 2 * 5


def test_only_the_branch_that_is_taken_counts() -> None:
    text = """g (float[N, 3] x) => (float[A, B] y, float[C, D] z) <int64[1] zero = {0}, int64[1] one = {1}> {
        s = Shape(x) n = Gather(s, zero) c = Equal(n, one)
        y = If (c) <then_branch = t () => (float[E, F] u) { u = MatMul(x, w) },
                    else_branch = e () => (float[G, H] v) { v = MatMul(x, v1) }>
        z = MatMul(y, m)
    }"""
    for size, columns in ((1, 7), (2, 5)):
        model = graph(text, w=w(3, 7), v1=w(3, 5), m=w(columns, 2))
        assert count_macs(model, {"N": size}).total == size * 3 * columns + size * columns * 2


def test_a_loop_runs_as_often_as_an_axis_is_long() -> None:
    model = graph(
        """g (float[N, 3] x) => (float[3, 3] z) <bool t = {1}, int64 zero = {0}> {
            d = Shape(x) n = Gather(d, zero)
            z = Loop (n, t, s) <body = b (int64 i, bool go, float[3, 3] l) => (bool more, float[3, 3] k) {
                more = Identity(go)
                p = MatMul(s, s)
                k = Add(l, p)
            }>
        }""",
        s=w(3, 3),
    )
    found = count_macs(model, {"N": 6})
    assert (found.total, found.counted_once) == (6 * 27, [])


def test_dims_that_follow_from_others_are_none_to_set() -> None:
    model = graph("g (float[N, S] x, float[S, M] p) => (float[A, B] y) { y = MatMul(x, p) }")
    model.graph.inputs[0].shape = ir.Shape(["N", "past + S"])
    model.graph.inputs[1].shape = ir.Shape(["past + S", "S"])
    assert dynamic_dims(model) == {"N": 1, "past + S": 128, "S": 128}, "of past nothing else is known"
    model.graph.inputs[0].shape = ir.Shape(["past", "past + S"])
    assert dynamic_dims(model) == {"past": 1, "S": 128}
    found = count_macs(model, {"past": 3, "S": 4})
    assert (found.total, found.at) == (3 * 7 * 4, {"past": 3, "S": 4})


def test_declared_shapes_of_unknown_operators_are_set_as_well() -> None:
    model = graph("g (float[N, S, 4] x) => (float[A, B, C] y) { u = my.own(x) y = MatMul(u, w) }",
                  extra=', "my" : 1', w=w(4, 8))  # fmt: skip
    assert count_macs(model).unknown == ["y"]
    model.graph[0].outputs[0].dtype = ir.DataType.FLOAT
    model.graph[0].outputs[0].shape = ir.Shape(["N", "S // 2", 4])
    assert count_macs(model, {"N": 3, "S": 10}).total == 3 * 5 * 4 * 8


# -- whole models ----------------------------------------------------------------------------------------


def test_a_transformer() -> None:
    words, width, blocks = 32, 64, 2
    dense = 4 * width * width + 2 * width * 4 * width  # four projections, and a hidden layer four times as wide
    found = count_macs(load(MODELS / "transformer_sentiment/model.onnx"), {"batch": 3, "length": words})
    assert (found.unknown, found.total) == ([], 3 * (blocks * words * (dense + 2 * words * width) + 2 * width))


@pytest.mark.parametrize("path", sorted(MODELS.glob("*/model.onnx")), ids=lambda path: path.parent.name)
def test_models_at_the_shapes_that_onnx_runtime_reports(path: Path, tmp_path: Path) -> None:
    model = load(path)
    for probe in find_probes(model, Session(Snapshot.of(model))):
        sizes = {
            name: size
            for value in interface_inputs(model)
            for axis, (dim, size) in enumerate(zip(value.shape or (), probe.feeds[value.name or ""].shape, strict=True))
            for name in (getattr(dim, "value", None), f"{value.name}[{axis}]")
            if name in dynamic_dims(model)
        }
        found = count_macs(model, sizes)
        assert (found.unknown, found.total) == ([], reported(model, probe.feeds, tmp_path))


def reported(model: ir.Model, feeds: Feeds, folder: Path) -> int:
    """The sum over all kernels that ONNX Runtime runs, by the shapes in its profile."""
    proto = to_proto(model)
    nodes = {f"node{at}": node for at, node in enumerate(proto.graph.node)}
    for name, node in nodes.items():
        node.name = name
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")  # else weights have no shape in the profile
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    session.run(None, dict(feeds))
    total = 0
    for event in json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")):
        node = nodes.get(event["name"].removesuffix("_kernel_time"))
        if node is None or "input_type_shape" not in event.get("args", {}):
            continue
        x, y = (
            [next(iter(each.values())) for each in event["args"][f"{kind}_type_shape"]] for kind in ("input", "output")
        )
        if node.op_type == "Conv":
            total += math.prod(y[0]) * math.prod(x[1][1:])
        elif node.op_type == "MatMul":
            total += math.prod(y[0]) * x[0][-1]
        elif node.op_type == "Gemm":
            assert not any(a.name == "transA" and a.i for a in node.attribute)
            total += math.prod(y[0]) * x[0][1]
        elif node.op_type in ("LSTM", "GRU"):
            total += x[0][0] * x[0][1] * (math.prod(x[1]) + math.prod(x[2]))
        else:
            assert node.op_type not in ("ConvTranspose", "Einsum", "RNN", "ConvInteger", "MatMulInteger")
    return total


def test_counting_needs_no_algebra() -> None:
    """sympy takes longer to import than all the rest, and is for dims that are expressions."""
    path = MODELS / "resnet8_mnist_hard" / "model.onnx"
    code = (
        "import sys; from onnxopt.macs import count_macs; from onnxopt.model import load; "
        f"count_macs(load({str(path)!r})); print('sympy.core' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"
