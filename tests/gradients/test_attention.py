"""Attention, and rotary embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.errors import GradientError
from onnxopt.gradients import gradient_graph
from tests import support
from tests.gradients.checks import Array, check_node

_RNG = np.random.default_rng(6)
BATCH, ROWS, KEYS = 2, 3, 4


def _random(*shape: int) -> Array:
    return _RNG.uniform(-1, 1, shape)


def _heads(query: int, shared: int) -> list[Array]:
    return [_random(BATCH, query, ROWS, 6), _random(BATCH, shared, KEYS, 6), _random(BATCH, shared, KEYS, 5)]


def _rows(query: int, shared: int) -> list[Array]:
    return [_random(BATCH, ROWS, query * 6), _random(BATCH, KEYS, shared * 6), _random(BATCH, KEYS, shared * 5)]


@pytest.mark.parametrize("opset", [23, 24, 25, 26])
@pytest.mark.parametrize(("query", "shared"), [(1, 1), (2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize("attributes", [{}, {"is_causal": 1, "scale": 0.7}, {"softcap": 0.5, "scale": 2.0}])
def test_attention(opset: int, query: int, shared: int, attributes: dict[str, Any]) -> None:
    check_node("Attention", *_heads(query, shared), opset=opset, **attributes)
    counts: dict[str, Any] = {"q_num_heads": query, "kv_num_heads": shared}
    check_node("Attention", *_rows(query, shared), opset=opset, **counts, **attributes)


@pytest.mark.parametrize("wrt", [[0], [1], [2], [3]])
def test_attention_in_part(wrt: list[int]) -> None:
    check_node("Attention", *_heads(4, 2), _random(ROWS, KEYS), wrt=wrt, opset=23)


@pytest.mark.parametrize("shape", [(ROWS, KEYS), (4, ROWS, KEYS), (1, 1, ROWS, KEYS), (2, 4, ROWS, KEYS)])
@pytest.mark.parametrize("attributes", [{}, {"is_causal": 1}, {"softcap": 0.8}])
def test_mask_that_is_added(shape: tuple[int, ...], attributes: dict[str, Any]) -> None:
    for opset in (23, 25):
        check_node("Attention", *_heads(4, 2), _random(*shape), opset=opset, **attributes)


@pytest.mark.parametrize("shape", [(1, KEYS), (4, 1, KEYS), (ROWS, 2), (2, 1, ROWS, 3)])
@pytest.mark.parametrize("attributes", [{}, {"softcap": 0.8}])
def test_mask_of_one_row_or_of_the_first_keys(shape: tuple[int, ...], attributes: dict[str, Any]) -> None:
    check_node("Attention", *_heads(4, 2), _random(*shape), opset=25, **attributes)


@pytest.mark.parametrize("opset", [23, 25])
def test_mask_that_forbids(opset: int) -> None:
    mask = _RNG.uniform(size=(BATCH, 1, ROWS, KEYS)) > 0.4
    mask[0, 0, 1] = False  # one row reads nothing at all
    check_node("Attention", *_heads(4, 2), mask, opset=opset)
    check_node("Attention", *_heads(2, 2), mask, is_causal=1, opset=opset)


@pytest.mark.parametrize("opset", [24, 25])
def test_lengths(opset: int) -> None:
    lengths = np.array([2, 4], np.int64)
    check_node("Attention", *_heads(2, 1), None, None, None, lengths, opset=opset)
    check_node("Attention", *_heads(2, 1), _random(ROWS, KEYS), None, None, lengths, opset=opset)


@pytest.mark.parametrize("window", [(1, -1), (-1, 0), (0, 1), (1, 2)])
def test_window(window: tuple[int, int]) -> None:
    left, right = window
    check_node("Attention", *_heads(4, 2), opset=25, left_window_size=left, right_window_size=right)


@pytest.mark.parametrize("outputs", [(0,), (0, 1, 2)])
@pytest.mark.parametrize("attributes", [{}, {"is_causal": 1}])
@pytest.mark.parametrize("opset", [23, 25])
def test_cache(outputs: tuple[int, ...], attributes: dict[str, Any], opset: int) -> None:
    past = [_random(BATCH, 2, 2, 6), _random(BATCH, 2, 2, 5)]
    options: dict[str, Any] = {"outputs": outputs, "opset": opset, **attributes}
    check_node("Attention", *_heads(4, 2), _random(ROWS, 2 + KEYS), *past, **options)
    check_node("Attention", *_rows(4, 2), None, *past, q_num_heads=4, kv_num_heads=2, **options)


_FEEDS = {
    name: _random(2, 2, *shape).astype(np.float32) for name, shape in {"q": (3, 6), "k": (4, 6), "v": (4, 5)}.items()
}


def _graph(body: str) -> ir.Model:
    inputs = ", ".join(f"float{list(x.shape)} {name}" for name, x in _FEEDS.items())
    return support.graph(
        f"g ({inputs}) => (float loss) {{ {body} loss = ReduceSum<keepdims=0>(y) }}",
        opset=23, ir_version=10,
    )  # fmt: skip


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_scores_have_no_gradient(mode: int) -> None:
    model = _graph(f"x, a, b, y = Attention<qk_matmul_output_mode={mode}>(q, k, v)")
    with pytest.raises(GradientError, match="the loss depends on its scores"):
        gradient_graph(model, "loss", ["q"])


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_scores_that_others_read(mode: int) -> None:
    scores = f"x, , , s = Attention<qk_matmul_output_mode={mode}>(q, k, v) c = Ceil(s) t = ReduceSum<keepdims=0>(c)"
    found = gradient_graph(_graph(f"{scores} y = Add(x, t)"), "loss", ["q", "k", "v"])
    other = gradient_graph(_graph("y = Attention(q, k, v)"), "loss", ["q", "k", "v"])
    for one, another in zip(*(support.outputs(each.model, _FEEDS)[1:] for each in (found, other)), strict=True):
        np.testing.assert_allclose(one, another, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("opset", [23, 26])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("turned", [0, 4])
@pytest.mark.parametrize("by_position", [False, True])
def test_rotary_embedding(opset: int, interleaved: int, turned: int, by_position: bool) -> None:
    half = (turned or 6) // 2
    angles = _random(9, half) if by_position else _random(2, 3, half)
    caches = [np.cos(angles), np.sin(angles), _RNG.integers(0, 9, (2, 3)) if by_position else None]
    options: dict[str, Any] = {"interleaved": interleaved, "rotary_embedding_dim": turned, "opset": opset}
    check_node("RotaryEmbedding", _random(2, 4, 3, 6), *caches, wrt=[0], num_heads=4, **options)
    check_node("RotaryEmbedding", _random(2, 3, 24), *caches, wrt=[0], num_heads=4, **options)


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary_embedding_of_onnx_runtime(interleaved: int) -> None:
    angles = _random(9, 3).astype(np.float32)
    constants = {"cos": np.cos(angles), "sin": np.sin(angles), "at": _RNG.integers(0, 9, (2, 3))}
    feeds = {name: _random(2, 4, 3, 6).astype(np.float32) for name in ("x", "w")}
    found = []
    for domain, inputs in (("", "x, cos, sin, at"), ("com.microsoft", "x, at, cos, sin")):
        body = f"y = {domain}{'.' * bool(domain)}RotaryEmbedding<interleaved={interleaved}>({inputs})"
        model = support.graph(
            f"g (float[2,4,3,6] x, float[2,4,3,6] w) => (float loss) {{ {body} z = Mul(y, w)"
            " loss = ReduceSum<keepdims=0>(z) }",
            opset=23, ir_version=10, extra=', "com.microsoft": 1', **constants,
        )  # fmt: skip
        found.append(support.outputs(gradient_graph(model, "loss", ["x"]).model, feeds)[1])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_rotary_embedding_by_caches_that_move() -> None:
    angles = _random(2, 3, 3)
    with pytest.raises(GradientError, match="its caches of sines and cosines"):
        check_node("RotaryEmbedding", _random(2, 4, 3, 6), np.cos(angles), np.sin(angles), wrt=[1], opset=23)


_MULTI_HEAD = {
    "(q, k, v)": "y = Attention<q_num_heads=2, kv_num_heads=2>(q, k, v)",
    "(q, k, v, b)": "y = Attention<q_num_heads=2, kv_num_heads=2>(q1, k1, v1)",
    "(q, kh, vh)": "y = Attention<q_num_heads=2, kv_num_heads=2>(q, k, v)",
    "<scale=0.7>(q, k, v, b, , a)": "y = Attention<q_num_heads=2, kv_num_heads=2, scale=0.7>(q1, k1, v1, a)",
    "<unidirectional=1>(q, q, q)": "y = Attention<q_num_heads=2, kv_num_heads=2, is_causal=1>(q, q, q)",
    "(q, k, v, b, keys, a)": "m = Add(a, low) y = Attention<q_num_heads=2, kv_num_heads=2>(q1, k1, v1, m)",
}
"""Of ONNX Runtime, and of the standard."""


@pytest.mark.parametrize("call", _MULTI_HEAD)
def test_multi_head_attention(call: str) -> None:
    shapes = {"q": (2, 3, 8), "k": (2, 3, 8), "v": (2, 3, 8), "b": (24,), "a": (1, 2, 3, 3), "w": (2, 3, 8)}
    feeds = {name: _random(*shape).astype(np.float32) for name, shape in shapes.items()}
    keys = np.array([[1, 1, 0], [1, 1, 1]], np.int32)
    constants = {"keys": keys, "low": np.float32(-1e4 * (1 - keys)[:, None, None]), "split": np.array([0, 0, 2, -1])}
    biased = "bq, bk, bv = Split<axis=0, num_outputs=3>(b) q1 = Add(q, bq) k1 = Add(k, bk) v1 = Add(v, bv)"
    by_heads = "k2 = Reshape(k, split) v2 = Reshape(v, split) kh = Transpose<perm=[0,2,1,3]>(k2)"
    by_heads += " vh = Transpose<perm=[0,2,1,3]>(v2)"
    contrib = f"y = com.microsoft.MultiHeadAttention{call.replace('(', '<num_heads=2>(') if call[0] == '(' else call}"
    contrib = contrib.replace("<scale", "<num_heads=2, scale").replace("<uni", "<num_heads=2, uni")
    wrt = [name for name in ("q", "k", "v", "b", "a") if name in call.partition("(")[2].replace("keys", "")]
    found = []
    for body in (f"{by_heads} {contrib}", f"{biased} {_MULTI_HEAD[call]}"):
        inputs = ", ".join(f"float{list(x.shape)} {name}" for name, x in feeds.items())
        model = support.graph(
            f"g ({inputs}) => (float loss) {{ {body} z = Mul(y, w) loss = ReduceSum<keepdims=0>(z) }}",
            opset=23, ir_version=10, extra=', "com.microsoft": 1', **constants,
        )  # fmt: skip
        found.append(support.outputs(gradient_graph(model, "loss", wrt).model, feeds))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


_MULTI_HEAD_REFUSED = {
    "y = com.microsoft.MultiHeadAttention<num_heads=2>(p)": "are packed together",
    "y, c, d = com.microsoft.MultiHeadAttention<num_heads=2>(q, h, h, , , , h, h)": "a cache of keys",
    "x, y, d = com.microsoft.MultiHeadAttention<num_heads=2>(q, q, q)": "on its cache or its scores",
    "y = com.microsoft.MultiHeadAttention<num_heads=2>(q, h, h, b)": "split into heads before",
}


@pytest.mark.parametrize("body", _MULTI_HEAD_REFUSED)
def test_multi_head_attention_refused(body: str) -> None:
    model = support.graph(
        "g (float[2,3,8] q, float[2,3,2,3,4] p, float[2,2,3,4] h, float[24] b) => (float loss)"
        f" {'<float[2,2,3,4] y>' * ('x, y' in body)} {{ {body} loss = ReduceSum<keepdims=0>(y) }}",
        opset=23, ir_version=10, extra=', "com.microsoft": 1',
    )  # fmt: skip
    with pytest.raises(GradientError, match=_MULTI_HEAD_REFUSED[body]):
        gradient_graph(model, "loss", ["p" if "(p)" in body else "q"])
