"""Attention of several heads, as ONNX Runtime fuses it."""

from __future__ import annotations

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp
from onnxopt.gradients.rules.attention import gradients, heads

_BIAS, _ADDED = 3, 5
_PAST = (6, 7, 8, 9)
_SCORES = 3


@vjp("MultiHeadAttention", domain="com.microsoft")
def _multi_head_attention(at: Backward) -> Gradients:
    """``y = P v`` with ``P = softmax(s)`` and ``s = σ q kᵀ + a``, masked, which the node itself gives: as of
    ``Attention``; the biases of the query, keys and values get the sums of their gradients, ``a`` gets ``ds``."""
    if any(at.input(i) is None for i in range(3)) or at.rank(at.inputs[0]) != 3:
        raise at.error("its query, keys and values are packed together")
    if any(at.input(i) is not None for i in _PAST):
        raise at.error("it reads a cache of keys and values")
    if any(at.gradients[1:]):
        raise at.error("the loss depends on its cache or its scores")
    of = [heads(at, value, at.attribute("num_heads")) for value in at.inputs[:3]]
    given = list(at.inputs[:3])
    if (bias := at.input(_BIAS)) is not None:
        if any(len(each.shape) != 3 for each in of):
            raise at.error("it has a bias, but its keys and values are split into heads before")
        sizes = at.ints(*(each.shape[-1] for each in of))
        parts = at.ops("Split", bias, sizes, outputs=3, axis=0)
        given = [at.op("Add", value, part) for value, part in zip(given, parts, strict=True)]
    shape = (of[0].shape[0], of[0].count, of[0].rows, of[1].rows)
    p = at.op("Softmax", at.output(_SCORES, at.dtype(at.inputs[0]), shape), axis=-1)
    *found, ds = gradients(at, of, given, p, at.attribute("scale") or of[0].size ** -0.5)
    dbias = bias and at.op("Concat", *(at.sum(d, 0, 1, keepdims=False) for d in found), axis=0)
    added = at.input(_ADDED)
    return *found, dbias, None, added and at.unbroadcast(ds, added, shape)
