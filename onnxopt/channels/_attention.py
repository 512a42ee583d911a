"""Attentions that are one operator: whole heads go, or the same features of every head.

All compute ``softmax(Q[h] K[h]ᵀ · scale) V[h]`` for each head ``h``, of (samples, heads, places, features). Most take
and make (samples, places, heads · features); which of the two goes then is chosen as for a Reshape that splits such an
axis. An attribute holds the number of heads. Where the scale is left to be ``1/√features``, it becomes that of before
when features go.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxopt.channels._axes import SINGLE, Axes, Axis, Fixed, Keep, Unfollowed, aligned, follow_count, said
from onnxopt.graph import attribute

_Heads = list[Axis]
"""Axes for samples, heads, places and features."""

_ALL_PLACES = "every place looks at every other"


def attention(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """Attention of the standard."""
    inputs = _padded(node, 7)
    if inputs[6] is not None:
        raise Unfollowed("it takes lengths of samples")
    q, k, v = (axes.of(value) for value in inputs[:3])
    past = [_of(value, axes) for value in inputs[4:6]]
    if len(q) == 4:
        return _attend(node, [q, k, v], _of(inputs[3], axes), past, axes)
    counts = [attribute(node, "q_num_heads"), attribute(node, "kv_num_heads")]
    names = ["q_num_heads", "kv_num_heads"]
    return _attend_flat(node, [q, k, v], counts, names, _of(inputs[3], axes), past, axes)


def multi_head_attention(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """MultiHeadAttention of ONNX Runtime; keys and values may have an axis of heads already."""
    inputs, count = _padded(node, 10), attribute(node, "num_heads")
    if inputs[1] is None or inputs[2] is None:
        raise Unfollowed("its queries, keys and values are one")
    if any(value is not None for value in inputs[8:]):
        raise Unfollowed("it shares buffers")
    operands = [axes.of(value) for value in inputs[:3]]
    if inputs[3] is not None:
        if any(len(x) != 3 for x in operands):
            raise Unfollowed("its bias belongs to several axes")
        _concatenated(axes.of(inputs[3])[0], [x[2] for x in operands], axes)
    mask, past = _of(inputs[5], axes), [_of(value, axes) for value in inputs[6:8]]
    return _attend_flat(node, operands, [count, count], ["num_heads", ""], mask, past, axes)


def self_attention(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """Attention of ONNX Runtime, whose weight makes queries, keys and values."""
    inputs = _padded(node, 7)
    if len(node.outputs) > 1 or inputs[4] is not None:
        raise Unfollowed("it keeps keys and values of before")
    if attribute(node, "do_rotary", 0):
        raise Unfollowed("it turns pairs of features")
    x, w = axes.of(inputs[0]), axes.of(inputs[1])
    axes.tie(x[2], axes.reads(w[0]))
    whole = axes.tie(w[1], axes.of(inputs[2])[0]) if inputs[2] is not None else w[1]
    mask, heads = _of(inputs[5], axes), attribute(node, "num_heads")
    for axis in x[:2]:
        axes.freeze(axis, said(node, _ALL_PLACES))
    if isinstance(whole, Fixed):
        return [[x[0], x[1], whole]]
    third = len(whole) // 3
    sizes = list(attribute(node, "qkv_hidden_sizes") or (third, third, third))
    parts = np.split(whole, np.cumsum(sizes)[:-1])
    axes.pieces += parts

    def update(keep: Keep) -> None:
        left = [int(keep(part).sum()) for part in parts]
        if left != sizes:
            node.attributes["qkv_hidden_sizes"] = ir.AttrInt64s("qkv_hidden_sizes", left)

    axes.removals.append(update)
    operands: list[list[Axis]] = [[x[0], x[1], part] for part in parts]
    return _attend_flat(node, operands, [heads, heads], ["num_heads", ""], mask, [], axes)


def grouped_attention(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """GroupQueryAttention of ONNX Runtime, which takes only so many features of a head as 8 divides: heads go."""
    inputs = _padded(node, 14)
    if inputs[1] is None or inputs[2] is None:
        raise Unfollowed("its queries, keys and values are one")
    if any(value is not None for value in inputs[12:14]):
        raise Unfollowed("its keys and values of before are quantized")
    q, k, v = (axes.of(value) for value in inputs[:3])
    past, sinks = [_of(value, axes) for value in inputs[3:5]], _of(inputs[11], axes)
    mask, names = _of(inputs[10], axes), ["num_heads", "kv_num_heads"]
    counts = [attribute(node, name) for name in names]
    return _attend_flat(node, [q, k, v], counts, names, mask, past, axes, whole_heads=True, sinks=sinks)


def rotary(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """RotaryEmbedding turns pairs of features inside of each head."""
    x, count = list(axes.of(node.inputs[0])), attribute(node, "num_heads", 0)
    why = said(node, "it turns pairs of features")
    for axis in (x[0], x[-2]):
        axes.freeze(axis, said(node, "it is told the places of every sample"))
    if len(x) == 4:
        axes.freeze(x[3], why)
        return [[*x[:3], Fixed(why)]]
    if isinstance(x[2], np.ndarray) and count > 1:
        follow_count(node, "num_heads", axes.join(x[2].reshape(count, -1), 1), axes)
    else:
        axes.freeze(x[2], why)
    return [x]


def _padded(node: ir.Node, count: int) -> list[ir.Value | None]:
    return [*node.inputs, *[None] * (count - len(node.inputs))]


def _of(value: ir.Value | None, axes: Axes) -> list[Axis] | None:
    return None if value is None else axes.of(value)


def _concatenated(whole: Axis, parts: Sequence[Axis], axes: Axes) -> None:
    """One axis is several others in a row."""
    live = [part for part in parts if isinstance(part, np.ndarray)]
    if isinstance(whole, Fixed) or len(live) < len(parts):
        axes.tie(Fixed("another part of its bias has to stay"), whole, *parts)
        return
    for part, piece in zip(live, np.split(whole, np.cumsum([len(part) for part in live])[:-1]), strict=True):
        axes.tie(part, piece)


def _attend_flat(
    node: ir.Node,
    operands: Sequence[list[Axis]],
    counts: Sequence[int],
    names: Sequence[str],
    mask: list[Axis] | None,
    past: Sequence[list[Axis] | None],
    axes: Axes,
    *,
    whole_heads: bool = False,
    sinks: list[Axis] | None = None,
) -> list[list[Axis]]:
    """Queries, keys and values of which each may be (samples, places, heads · features).

    ``counts`` and ``names``: how many heads the queries have, and the keys, and the attributes that say it.
    """
    axes_of_heads = [axis for x in operands for axis in (x[1::2] if len(x) == 4 else x[2:])]
    live = [axis for axis in axes_of_heads if isinstance(axis, np.ndarray)]
    by_heads = whole_heads
    if live and not whole_heads:
        by_heads = (axes.choose(node, 2, np.concatenate(live)) == 0) == (axes.unit == "head")
    apart = [
        x if len(x) == 4 else _apart(node, x, count, by_heads, axes)
        for x, count in zip(operands, (counts[0], counts[1], counts[1]), strict=True)
    ]
    out, *others = _attend(node, apart, mask, past, axes)
    samples, heads, places, features = out
    follow_count(node, names[0], heads, axes)
    if names[1]:
        follow_count(node, names[1], apart[1][1], axes)
    if sinks is not None:
        axes.tie(heads, sinks[0])
    merged, size = features, axes.dims(node.outputs[0])[2]
    if isinstance(heads, np.ndarray) and isinstance(size, int) and (by_heads or isinstance(features, Fixed)):
        axes.freeze(features, said(node, "whole heads go"))
        merged = np.repeat(heads, size // counts[0])
    elif isinstance(features, np.ndarray):
        axes.freeze(heads, said(node, "the same features go of every head"))
        merged = np.tile(features, counts[0])
    else:
        axes.freeze(heads, said(node, "how many features a head has is not known"))
    return [[samples, places, merged], *others]


def _apart(node: ir.Node, x: list[Axis], count: int, by_heads: bool, axes: Axes) -> _Heads:
    samples, places, whole = x
    if isinstance(whole, Fixed):
        return [samples, whole, places, whole]
    grid = whole.reshape(count, -1)
    if not by_heads:
        return [samples, Fixed(said(node, "the same features go of every head")), places, axes.join(grid, 0)]
    if count == 1:
        axes.freeze(whole, said(node, "it is the only head"))
    features = Fixed(said(node, "whole heads go"))
    return [samples, axes.join(grid, 1) if count > 1 else SINGLE, places, features]


def _attend(
    node: ir.Node,
    operands: Sequence[_Heads],
    mask: list[Axis] | None,
    past: Sequence[list[Axis] | None],
    axes: Axes,
) -> list[list[Axis]]:
    """What is computed, by heads, then keys and values of now and before, and the scores."""
    q, k, v = operands
    why = said(node, _ALL_PLACES)
    for operand, before in zip((k, v), past, strict=False):
        if before is not None:
            for at in (0, 1, 3):
                axes.tie(operand[at], before[at])
            axes.freeze(before[2], why)
    features = axes.tie(q[3], k[3])
    for axis in (q[2], k[2], v[2]):
        axes.freeze(axis, why)
    samples, heads = axes.tie(q[0], k[0], v[0]), _with_keys(q[1], axes.tie(k[1], v[1]), axes)
    if node.domain == "com.microsoft":
        axes.freeze(samples, said(node, "it may be told the lengths of samples"))
    if mask is not None:
        mask, _ = aligned([mask, q])
        samples, heads = axes.tie(samples, mask[0]), axes.tie(heads, mask[1])
        for axis in mask[2:]:
            axes.freeze(axis, why)
    _keep_scale(node, features, axes)
    axes.attends(node, heads)
    places = Fixed(why)
    made = [[samples, heads, q[2], v[3]], [samples, k[1], places, k[3]], [samples, v[1], places, v[3]]]
    return [*made, [samples, heads, q[2], places]][: len(node.outputs)]


def _with_keys(queries: Axis, keys: Axis, axes: Axes) -> Axis:
    """The heads of queries, of which neighbours may share a key: they go with it."""
    if isinstance(queries, Fixed) or isinstance(keys, Fixed) or len(queries) == len(keys):
        return queries if keys is SINGLE else axes.tie(queries, keys)
    axes.tie(axes.join(queries.reshape(len(keys), -1), 1), keys)
    return queries


def _keep_scale(node: ir.Node, features: Axis, axes: Axes) -> None:
    given = attribute(node, "scale")
    if isinstance(features, Fixed) or not (given is None or (given == 0 and node.domain == "com.microsoft")):
        return

    def update(keep: Keep) -> None:
        if not keep(features).all():
            node.attributes["scale"] = ir.AttrFloat32("scale", 1 / math.sqrt(len(features)))

    axes.removals.append(update)
