"""Steps that make, mix, move and split channels, for graphs in which many can be removed.

Widths are large enough to be split, and no value is an output itself: every end is read by a last layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from tests.fuzz.builder import BOOL, FLOAT, INT64, Builder, Shape, Skip, Value, broadcast, fixed
from tests.fuzz.steps import Step, is_full, is_single, slice_, transpose_

WIDTHS = (2, 3, 4, 6, 8)


def floats(b: Builder, *dims: int) -> Value:
    """A weight without zeros, now and then one that is there already."""
    rng = np.random.default_rng(b.number(0, 3))
    signs = rng.choice(np.array([-1, 1], dtype=np.float32), dims)
    array = signs * rng.uniform(0.5, 1.5, dims).astype(np.float32) / np.float32(max(1, prod(dims[1:])) ** 0.5)
    value = b.constant(np.asarray(array, dtype=np.float32))
    if value in b.values:  # no step is to take it for an activation
        b.values.remove(value)
    return value


def image(b: Builder) -> Value:
    """Samples of channels of two dims."""
    return b.pick(lambda v: is_single(v) and v.rank == 4 and is_full(v) and v.shape[1][0] == v.shape[1][1])


def features(b: Builder) -> Value:
    """Features along the last axis."""
    return b.pick(lambda v: is_single(v) and v.rank in (2, 3) and is_full(v) and v.shape[-1][0] == v.shape[-1][1])


def width(x: Value, axis: int) -> int:
    """The first of the two sizes."""
    return x.shape[axis][0]


def with_axis(x: Value, axis: int, size: int) -> Shape:
    """The shape of ``x`` with another size along ``axis``."""
    axis %= x.rank
    return (*x.shape[:axis], (size, size), *x.shape[axis + 1 :])


def channel_axis(x: Value) -> int:
    return 1 if x.rank == 4 else x.rank - 1


def make(b: Builder, op: str, inputs: Sequence[Value | None], shape: Shape, **attributes: object) -> Value:
    return b.one(op, inputs, FLOAT, shape, rough=True, bound=3.0, **attributes)


# -- layers --------------------------------------------------------------------------------------------------


def convolution(b: Builder, x: Value | None = None, groups: int = 0) -> Value:
    x = x or image(b)
    channels = width(x, 1)
    groups = groups or b.choose([g for g in (1, 1, 2, 3, 4, channels) if channels % g == 0])
    kernel = b.choose([k for k in (1, 3) if k == 1 or min(min(d) for d in x.shape[2:]) >= 1])
    edge = kernel // 2
    if b.flip() or groups == 1:
        made = groups * b.choose((1, 2, 3)) if groups > 1 else b.choose(WIDTHS)
        inputs = [x, floats(b, made, channels // groups, kernel, kernel)]
        op = "Conv"
    else:
        each = b.choose((1, 2, 3))
        made, op = groups * each, "ConvTranspose"
        inputs = [x, floats(b, channels, each, kernel, kernel)]
    if b.flip():
        inputs.append(floats(b, made))
    return make(b, op, inputs, with_axis(x, 1, made), group=groups, pads=[edge] * 4)


def linear(b: Builder, x: Value | None = None) -> Value:
    x = x or features(b)
    read, made = width(x, -1), b.choose(WIDTHS)
    if x.rank == 2 and b.flip():
        turned = b.flip()
        w = floats(b, made, read) if turned else floats(b, read, made)
        return make(b, "Gemm", [x, w, floats(b, made)], with_axis(x, 1, made), transB=int(turned))
    w = transpose_(b, floats(b, made, read), [1, 0]) if b.flip() else floats(b, read, made)
    y = make(b, "MatMul", [x, w], with_axis(x, -1, made))
    return make(b, "Add", [y, floats(b, made)], y.shape) if b.flip() else y


def recurrent(b: Builder) -> Value:
    x = b.pick(lambda v: is_single(v) and v.rank == 3 and is_full(v) and v.shape[-1][0] == v.shape[-1][1])
    op, gates = b.choose((("LSTM", 4), ("GRU", 3), ("RNN", 1)))
    both, hidden = b.choose((1, 2)), b.choose((2, 3, 4))
    samples = x.shape[1]
    inputs: list[Value | None] = [
        x, floats(b, both, gates * hidden, width(x, 2)), floats(b, both, gates * hidden, hidden),
        floats(b, both, 2 * gates * hidden) if b.flip() else None,
    ]  # fmt: skip
    if samples[0] == samples[1] and b.flip():
        inputs += [None, floats(b, both, samples[0], hidden)]
        if op == "LSTM":
            inputs += [floats(b, both, samples[0], hidden), floats(b, both, 3 * hidden)]
    y = make(b, op, inputs, (x.shape[0], (both, both), samples, (hidden, hidden)), hidden_size=hidden,
             direction="bidirectional" if both == 2 else "forward")  # fmt: skip
    y = transpose_(b, y, [0, 2, 1, 3])
    return reshape(b, y, (*x.shape[:2], (both * hidden,) * 2), [0, 0, both * hidden])


def normalization(b: Builder) -> Value:
    x = b.pick(lambda v: is_single(v) and v.rank in (3, 4) and is_full(v) and v.shape[1][0] == v.shape[1][1])
    count = width(x, 1)
    kinds = ["batch", "batch", "instance"] + (["layer"] if b.opset >= 17 else []) + (["group"] if b.opset >= 21 else [])
    kind = b.choose(kinds)
    if kind == "batch":
        mean, scale, bias = (floats(b, count) for _ in range(3))
        return make(b, "BatchNormalization", [x, scale, bias, mean, make(b, "Abs", [mean], mean.shape)], x.shape)
    if kind == "layer":
        count = width(x, -1)
        if x.shape[-1][1] != count:
            raise Skip
        return make(b, "LayerNormalization", [x, floats(b, count), floats(b, count)], x.shape)
    groups = {"num_groups": b.choose([g for g in (1, 2, count) if count % g == 0])} if kind == "group" else {}
    op = "GroupNormalization" if kind == "group" else "InstanceNormalization"
    return make(b, op, [x, floats(b, count), floats(b, count)], x.shape, **groups)


def gate(b: Builder) -> Value:
    """Channels scaled by what is computed of their means."""
    x = image(b)
    count, inner = width(x, 1), b.choose((2, 3))
    y = make(b, "GlobalAveragePool", [x], (*x.shape[:2], (1, 1), (1, 1)))
    y = make(b, "Conv", [y, floats(b, inner, count, 1, 1)], with_axis(y, 1, inner))
    y = make(b, "Relu", [y], y.shape)
    y = make(b, "Sigmoid", [make(b, "Conv", [y, floats(b, count, inner, 1, 1)], with_axis(y, 1, count))],
             with_axis(y, 1, count))  # fmt: skip
    return make(b, "Mul", [x, y] if b.flip() else [y, x], x.shape)


def activation(b: Builder) -> Value:
    x = b.pick(lambda v: is_single(v) and v.rank >= 2)
    axis = channel_axis(x)
    if x.shape[axis][0] == x.shape[axis][1] and b.flip():
        dims = [width(x, axis)] + [1] * (x.rank - axis - 1)
        return make(
            b,
            b.choose(("PRelu", "Mul", "Add", "Sub", *(("Max",) if b.opset >= 8 else ()))),
            [x, floats(b, *dims)],
            x.shape,
        )
    return make(b, b.choose(("Relu", "Tanh", "Sigmoid", "Neg", "LeakyRelu", "Exp")), [x], x.shape)


# -- several values --------------------------------------------------------------------------------------------


def combine(b: Builder) -> Value:
    x = b.pick(is_single)
    y = b.choose([v for v in b.values if is_single(v) and v.rank == x.rank and is_full(v)])
    return make(b, b.choose(("Add", "Mul", "Sub")), [x, y], broadcast(x.shape, y.shape))


def concat(b: Builder) -> Value:
    x = b.pick(lambda v: is_single(v) and v.rank >= 2 and is_full(v))
    axis = channel_axis(x)
    fits = [v for v in b.values if is_single(v) and v.rank == x.rank
            and all(i == axis or d == e for i, (d, e) in enumerate(zip(v.shape, x.shape, strict=True)))]  # fmt: skip
    parts = [b.choose(fits) for _ in range(b.number(1, 2))] + [x]
    size = (sum(width(p, axis) for p in parts), sum(p.shape[axis][1] for p in parts))
    if max(size) > 24:
        raise Skip
    return make(b, "Concat", list(parts), (*x.shape[:axis], size, *x.shape[axis + 1 :]), axis=axis)


def attention(b: Builder) -> Value:
    """Heads split off a projection, and scores without a Softmax over channels."""
    x = b.pick(lambda v: is_single(v) and v.rank == 3 and is_full(v) and v.shape[-1][0] == v.shape[-1][1])
    heads, each = b.choose((1, 2, 3)), b.choose((2, 3))
    whole = heads * each
    split = (*x.shape[:2], (heads, heads), (each, each))
    parts = []
    for _ in range(3):
        y = make(b, "MatMul", [x, floats(b, width(x, 2), whole)], with_axis(x, 2, whole))
        parts.append(transpose_(b, reshape(b, y, split, [0, 0, heads, each]), [0, 2, 1, 3]))
    q, k, v = parts
    scores = (x.shape[0], (heads, heads), x.shape[1], x.shape[1])
    y = make(b, "Softmax", [make(b, "MatMul", [q, transpose_(b, k, [0, 1, 3, 2])], scores)], scores, axis=3)
    y = transpose_(b, make(b, "MatMul", [y, v], q.shape), [0, 2, 1, 3])
    return reshape(b, y, with_axis(x, 2, whole), [0, 0, whole])


def conditional(b: Builder) -> Value:
    """An activation in one branch, a layer with weights of its own in the other."""
    x = b.pick(lambda v: is_single(v) and v.rank in (2, 3) and is_full(v) and v.shape[-1][0] == v.shape[-1][1])
    count = width(x, -1)
    flags = [v for v in b.values if v.dtype == BOOL]
    graphs = []
    for name in ("then_branch", "else_branch"):
        inner = b.body()
        y = make(inner, "MatMul", [x, floats(inner, count, count)], x.shape) if b.flip() else x
        y = make(inner, "Relu", [y], y.shape)
        graphs.append(inner.finish_body(name, [], [y]))
    return make(b, "If", [b.choose(flags)], x.shape, then_branch=graphs[0], else_branch=graphs[1])


# -- moves -----------------------------------------------------------------------------------------------------


def reshape(b: Builder, x: Value, shape: Shape, written: list[int]) -> Value:
    """To a shape that is given as a constant, or computed in parts at run time."""
    if b.opset >= 11 and b.flip():
        sizes = [written[i] if written[i] else None for i in range(len(written))]
        of = b.one("Shape", [x], INT64, fixed(x.rank), bound=100)
        parts = [b.ints(n) if n else slice_(b, of, i, i + 1, 0) for i, n in enumerate(sizes)]
        return make(b, "Reshape", [x, b.one("Concat", parts, INT64, fixed(len(parts)), axis=0)], shape)
    return make(b, "Reshape", [x, b.ints(*written)], shape)


def pick_some(b: Builder) -> Value:
    """A range of channels, some in another order, or both parts of a split in turn."""
    x = b.pick(lambda v: is_single(v) and v.rank in (2, 3, 4) and is_full(v))
    axis = channel_axis(x)
    count = width(x, axis)
    if x.shape[axis][1] != count or count < 3:
        raise Skip
    kind = b.choose(("slice", "gather", "split", "pad", "tile"))
    if kind == "slice":
        return slice_(b, x, b.choose((0, 1, -2)), 2**31 - 1, axis)
    if kind == "gather":
        order = [b.number(-count, count - 1) for _ in range(b.number(2, 5))]
        shape = with_axis(x, axis, len(order))
        return make(b, "Gather", [x, b.constant(np.array(order, dtype=np.int64))], shape, axis=axis)
    if kind == "pad":
        pads = [0] * (2 * x.rank)
        pads[axis], pads[axis + x.rank] = b.choose((0, 1)), b.choose((0, 2))
        given = {"pads": pads} if b.opset < 11 else {}
        inputs: list[Value | None] = [x] if given else [x, b.ints(*pads)]
        return make(b, "Pad", inputs, with_axis(x, axis, count + pads[axis] + pads[axis + x.rank]), **given)
    if kind == "tile":
        times = [2 if i == axis else 1 for i in range(x.rank)]
        return make(b, "Tile", [x, b.ints(*times)], with_axis(x, axis, 2 * count))
    first = b.number(1, count - 1)
    sizes = [first, count - first]
    shapes = [(FLOAT, with_axis(x, axis, size)) for size in sizes]
    if b.opset < 13:
        parts = b.emit("Split", [x], shapes, rough=True, bound=3.0, axis=axis, split=sizes)
    else:
        parts = b.emit("Split", [x, b.ints(*sizes)], shapes, rough=True, bound=3.0, axis=axis)
    return make(b, "Concat", list(parts[::-1]), x.shape, axis=axis)


def shuffle(b: Builder) -> Value:
    x = image(b)
    count = width(x, 1)
    groups = b.choose([g for g in (2, 3, 4) if count % g == 0])
    space = [d[0] if d[0] == d[1] else 0 for d in x.shape[2:]]
    if not all(space):
        raise Skip
    split = (x.shape[0], (groups, groups), (count // groups,) * 2, *x.shape[2:])
    y = transpose_(b, reshape(b, x, split, [0, groups, count // groups, *space]), [0, 2, 1, 3, 4])
    return reshape(b, y, x.shape, [0, count, *space])


def blocks(b: Builder) -> Value:
    x = image(b)
    (h, h2), (w, w2), count = *x.shape[2:], width(x, 1)
    if count % 4 == 0 and b.flip():
        modes = {"mode": b.choose(("DCR", "CRD"))} if b.opset >= 11 else {}
        shape = (x.shape[0], (count // 4,) * 2, (2 * h, 2 * h2), (2 * w, 2 * w2))
        return make(b, "DepthToSpace", [x], shape, blocksize=2, **modes)
    if h % 2 or h2 % 2 or w % 2 or w2 % 2 or count > 6:
        raise Skip
    shape = (x.shape[0], (4 * count,) * 2, (h // 2, h2 // 2), (w // 2, w2 // 2))
    return make(b, "SpaceToDepth", [x], shape, blocksize=2)


def to_rows(b: Builder) -> Value:
    """An image as rows of features: the places in turn, the means, or all of it."""
    x = image(b)
    kind = b.choose(("places", "means", "all"))
    (h, h2), (w, w2) = x.shape[2:]
    if kind == "means":
        y = make(b, "GlobalAveragePool", [x], (*x.shape[:2], (1, 1), (1, 1)))
        return make(b, "Flatten", [y], x.shape[:2])
    if (h, w) != (h2, w2):
        raise Skip
    if kind == "all":
        return make(b, "Flatten", [x], (x.shape[0], (width(x, 1) * h * w,) * 2))
    y = reshape(b, x, (*x.shape[:2], (h * w, h * w)), [0, width(x, 1), h * w])
    return transpose_(b, y, [0, 2, 1])


def expand(b: Builder) -> Value:
    """One number a sample spread over all features."""
    x = features(b)
    if b.opset < 8:
        raise Skip
    y = make(b, "MatMul", [x, floats(b, width(x, -1), 1)], with_axis(x, -1, 1))
    of = b.one("Shape", [x], INT64, fixed(x.rank), bound=100)
    return make(b, "Mul", [make(b, "Expand", [y, of], x.shape), x], x.shape)


def first_layers(b: Builder) -> None:
    """Channels made of the inputs, which themselves have none that could be removed."""
    inputs = [v for v in b.values if is_single(v)]
    for _ in range(2):
        convolution(b, inputs[0], 1)
        linear(b, inputs[1])
    for value in inputs:
        b.values.remove(value)


def last_layer(b: Builder, x: Value) -> Value:
    """Reads all channels of an end, so that they need not stay."""
    if x.rank == 4:
        return make(b, "Conv", [x, floats(b, 2, width(x, 1), 1, 1)], with_axis(x, 1, 2))
    return make(b, "MatMul", [x, floats(b, width(x, -1), 2)], with_axis(x, -1, 2))


CHANNELS: tuple[Step, ...] = (
    convolution, convolution, convolution, linear, linear, linear, recurrent, normalization, gate, activation,
    activation, combine, combine, concat, concat, attention, conditional, pick_some, pick_some, shuffle, blocks,
    to_rows, expand,
)  # fmt: skip
