"""Layers with weights, and activations and normalizations written out as exporters write them.

Each written-out form sometimes has a number that is not the right one, so that what looks like a layer but is
none is met too.
"""

from __future__ import annotations

from math import prod

import numpy as np

from tests.fuzz.builder import FLOAT, Builder, Skip, Value, broadcast
from tests.fuzz.steps import Step, is_full, is_single, transpose_


def convolution(b: Builder) -> Value:
    x = b.pick(lambda v: is_single(v) and v.rank == 4 and is_full(v) and v.shape[1][0] == v.shape[1][1])
    channels = x.shape[1][0]
    kernel, edge = b.choose(((1, 0), (3, 1), (2, 0)))
    if min(min(d) for d in x.shape[2:]) + 2 * edge < kernel:
        raise Skip
    depthwise = b.flip()
    made = channels if depthwise else b.choose((1, 2, 4))
    w = b.weights(FLOAT, made, 1 if depthwise else channels, kernel, kernel)
    bias = [b.weights(FLOAT, made)] if b.flip() else []
    space = tuple((m + 2 * edge - kernel + 1, n + 2 * edge - kernel + 1) for m, n in x.shape[2:])
    shape = (x.shape[0], (made, made), *space)
    y = b.one(
        "Conv", [x, w, *bias], FLOAT, shape, group=channels if depthwise else 1, pads=[edge] * 4,
        kernel_shape=[kernel] * 2, bound=x.bound * 2 * kernel * kernel * channels + 2,
    )  # fmt: skip
    follower = b.choose((None, batch_norm, scale_channels, "Relu"))
    if follower == "Relu":
        return b.one("Relu", [y], FLOAT, shape)
    return follower(b, y) if callable(follower) else y


def batch_norm(b: Builder, x: Value | None = None) -> Value:
    if x is None:
        x = b.pick(lambda v: is_single(v) and v.rank >= 3 and is_full(v) and v.shape[1][0] == v.shape[1][1])
    count = x.shape[1][0]
    scale, bias, mean = (b.weights(FLOAT, count) for _ in range(3))
    variance = b.constant(np.arange(1, count + 1, dtype=np.float32))
    bound = 3 * (x.bound + 2) + 2
    return b.one("BatchNormalization", [x, scale, bias, mean, variance], FLOAT, x.shape, rough=True, bound=bound)


def scale_channels(b: Builder, x: Value | None = None) -> Value:
    """A multiplication or addition a channel, as a folded normalization leaves it."""
    if x is None:
        x = b.pick(lambda v: is_single(v) and v.rank == 4 and v.shape[1][0] == v.shape[1][1])
    w = b.weights(FLOAT, x.shape[1][0], 1, 1)
    return b.one(b.choose(("Mul", "Add", "Sub")), [x, w], FLOAT, broadcast(x.shape, w.shape), bound=2 * x.bound + 2)


def pool(b: Builder) -> Value:
    x = b.pick(lambda v: is_single(v) and v.rank == 4 and is_full(v))
    if b.flip():
        return b.one("GlobalAveragePool", [x], FLOAT, (*x.shape[:2], (1, 1), (1, 1)), rough=True)
    if min(min(d) for d in x.shape[2:]) < 2:
        raise Skip
    shape = (*x.shape[:2], *((m // 2, n // 2) for m, n in x.shape[2:]))
    op = b.choose(("MaxPool", "AveragePool"))
    return b.one(op, [x], FLOAT, shape, rough=op != "MaxPool", kernel_shape=[2, 2], strides=[2, 2])


def linear(b: Builder) -> Value:
    """A matrix product with weights, with or without a bias after it."""
    x = b.pick(lambda v: is_single(v) and v.rank >= 2 and is_full(v) and v.shape[-1][0] == v.shape[-1][1])
    count, made = x.shape[-1][0], b.choose((1, 2, 4))
    bound = x.bound * 2 * count + 2
    if x.rank == 2 and b.flip():
        turned = b.flip()
        w = b.weights(FLOAT, made, count) if turned else b.weights(FLOAT, count, made)
        bias = [b.weights(FLOAT, *b.choose(((made,), (1, made), (), (1,))))] if b.opset < 11 or b.flip() else []
        scale = b.choose((1.0, 2.0))
        return b.one(
            "Gemm", [x, w, *bias], FLOAT, (x.shape[0], (made, made)), transB=int(turned), bound=2 * bound, alpha=scale
        )
    shape = (*x.shape[:-1], (made, made))
    y = b.one("MatMul", [x, b.weights(FLOAT, count, made)], FLOAT, shape, bound=bound)
    if b.flip():
        bias_value = b.weights(FLOAT, made)
        y = b.one("Add", [y, bias_value] if b.flip() else [bias_value, y], FLOAT, shape, bound=bound + 2)
    return y


def product(b: Builder) -> Value:
    """A matrix product of two activations."""
    x = b.pick(lambda v: is_single(v) and v.rank >= 2 and is_full(v))
    turned = transpose_(b, x, [*range(x.rank - 2), x.rank - 1, x.rank - 2])
    shape = (*x.shape[:-1], x.shape[-2])
    return b.one("MatMul", [x, turned], FLOAT, shape, bound=x.bound**2 * max(x.shape[-1]))


def reduce(b: Builder) -> Value:
    x = b.pick(lambda v: is_single(v) and v.rank >= 1 and is_full(v))
    op = b.choose(("ReduceSum", "ReduceMean", "ReduceMax"))
    axis, keep = b.number(0, x.rank - 1), b.flip()
    dims = [d for i, d in enumerate(x.shape) if i != axis or keep]
    if keep:
        dims[axis] = (1, 1)
    written = axis - x.rank if b.opset >= 11 and b.flip() else axis
    rest = {"rough": op == "ReduceMean", "bound": x.bound * max(x.shape[axis]), "keepdims": int(keep)}
    if b.opset >= 18 or (op == "ReduceSum" and b.opset >= 13):
        return b.one(op, [x, b.ints(written)], FLOAT, tuple(dims), **rest)  # type: ignore[arg-type]
    return b.one(op, [x], FLOAT, tuple(dims), axes=[written], **rest)  # type: ignore[arg-type]


def softmax(b: Builder) -> Value:
    x = b.pick(lambda v: is_single(v) and v.rank >= 1 and is_full(v))
    axis = b.choose((None, x.rank - 1, 0))
    chosen = {} if axis is None or (b.opset < 13 and x.rank < 2) else {"axis": axis}
    if not chosen and b.opset < 13 and x.rank < 2:
        chosen = {"axis": 0}
    return b.one(b.choose(("Softmax", "LogSoftmax")), [x], FLOAT, x.shape, rough=True, **chosen)


# -- written-out forms -------------------------------------------------------------------------------------------


def number(b: Builder, right: float, shape: tuple[int, ...] = ()) -> Value:
    """A constant of one number, which is now and then another one."""
    return b.constant(np.full(shape, right if b.number(0, 7) else right + 0.25, dtype=np.float32))


def product_of(b: Builder, x: Value, y: Value, bound: float = 100.0) -> Value:
    """``x · y`` in either order."""
    return b.one("Mul", [x, y] if b.flip() else [y, x], FLOAT, broadcast(x.shape, y.shape), bound=bound)


def mean(b: Builder, x: Value, axes: list[int]) -> Value:
    """The mean over ``axes``, which are kept."""
    shape = tuple((1, 1) if axis in axes else d for axis, d in enumerate(x.shape))
    written = [axis - x.rank for axis in axes] if b.opset >= 11 and b.flip() else axes
    if b.opset >= 18:
        return b.one("ReduceMean", [x, b.ints(*written)], FLOAT, shape, rough=True)
    return b.one("ReduceMean", [x], FLOAT, shape, rough=True, axes=written)


def gelu(b: Builder) -> Value:
    if b.opset < 9:
        raise Skip
    x = b.pick(lambda v: is_single(v) and v.bound < 1000)
    inner = b.one("Div", [x, number(b, 2.0**0.5)], FLOAT, x.shape, rough=True)
    inner = b.one("Erf", [inner], FLOAT, x.shape)
    factor = b.one("Add", [inner, number(b, 1.0)], FLOAT, x.shape)
    if b.flip():
        return product_of(b, product_of(b, x, factor), number(b, 0.5), x.bound)
    return product_of(b, product_of(b, x, number(b, 0.5)), factor, x.bound)


def gelu_by_tanh(b: Builder) -> Value:
    x = b.pick(lambda v: is_single(v) and v.bound < 30)
    cube = b.one("Pow", [x, number(b, 3.0)], FLOAT, x.shape, rough=True, bound=30000.0)
    inner = b.one("Add", [x, product_of(b, cube, number(b, 0.044715))], FLOAT, x.shape, bound=2000.0)
    tanh = b.one("Tanh", [product_of(b, inner, number(b, (2 / np.pi) ** 0.5))], FLOAT, x.shape, bound=1.0)
    factor = b.one("Add", [tanh, number(b, 1.0)], FLOAT, x.shape, bound=2.0)
    return product_of(b, product_of(b, x, number(b, 0.5)), factor, x.bound)


def hard_sigmoid_and_swish(b: Builder) -> Value:
    x = b.pick(lambda v: is_single(v) and v.bound < 1000)
    y = b.one("Add", [x, number(b, 3.0)], FLOAT, x.shape, rough=True)
    if b.opset < 11:
        y = b.one("Clip", [y], FLOAT, x.shape, min=0.0, max=6.0)
    else:
        y = b.one("Clip", [y, number(b, 0.0), number(b, 6.0)], FLOAT, x.shape, bound=6.0)
    form = b.choose(("sigmoid", "swish", "swish at the end"))
    if form == "swish":
        y = product_of(b, x, y, 6 * x.bound)
    y = b.one("Div", [y, number(b, 6.0)], FLOAT, x.shape)
    return product_of(b, x, y, x.bound) if form == "swish at the end" else y


def smooth(b: Builder) -> Value:
    """Swish, softplus, mish."""
    x = b.pick(lambda v: is_single(v) and v.bound < 30)
    form = b.choose(("swish", "softplus", "mish"))
    if form == "swish":
        return product_of(b, x, b.one("Sigmoid", [x], FLOAT, x.shape, rough=True, bound=1.0), x.bound)
    if form == "mish":
        y = b.one("Softplus", [x], FLOAT, x.shape, rough=True, bound=x.bound + 1)
        return product_of(b, x, b.one("Tanh", [y], FLOAT, x.shape, bound=1.0), x.bound)
    y = b.one("Exp", [x], FLOAT, x.shape, rough=True, bound=1e9)
    y = b.one("Add", [y, number(b, 1.0)], FLOAT, x.shape, bound=1e9)
    return b.one("Log", [y], FLOAT, x.shape, bound=x.bound + 1)


def normalization(b: Builder) -> Value:
    """Layer, instance and root-mean-square normalization, with or without scale and bias."""
    x = b.pick(lambda v: is_single(v) and v.rank >= 2 and is_full(v) and v.bound < 100)
    kind = b.choose(("layer", "layer", "root mean square", "instance"))
    if kind == "instance" and x.rank < 3:
        raise Skip
    axes = list(range(2, x.rank)) if kind == "instance" else [x.rank - 1]
    gap = x
    if kind != "root mean square":
        gap = b.one("Sub", [x, mean(b, x, axes)], FLOAT, x.shape, bound=2 * x.bound)
    if b.flip():
        square = b.one("Pow", [gap, number(b, 2.0)], FLOAT, x.shape, rough=True, bound=gap.bound**2)
    else:
        square = b.one("Mul", [gap, gap], FLOAT, x.shape, rough=True, bound=gap.bound**2)
    spread = mean(b, square, axes)
    root = b.one("Sqrt", [b.one("Add", [spread, number(b, 0.5)], FLOAT, spread.shape)], FLOAT, spread.shape)
    y = b.one("Div", [gap, root], FLOAT, x.shape, bound=10.0)
    tied = x.shape[1] if kind == "instance" else x.shape[-1]
    if tied[0] == tied[1] and b.flip():
        dims = (tied[0], *(1,) * (x.rank - 2)) if kind == "instance" else (tied[0],)
        y = product_of(b, y, b.weights(FLOAT, *dims), 20.0)
        if b.flip():
            y = b.one("Add", [y, b.weights(FLOAT, *dims)], FLOAT, x.shape, bound=22.0)
    return y


def attention(b: Builder) -> Value:
    """``softmax(q kᵀ · s) v`` of one sequence, in heads or without."""
    x = b.pick(lambda v: is_single(v) and v.rank in (3, 4) and is_full(v) and v.bound < 30)
    if x.shape[-1][0] != x.shape[-1][1]:
        raise Skip
    width = x.shape[-1][0]
    bound = 2 * x.bound * width
    q, k, v = (b.one("MatMul", [x, b.weights(FLOAT, width, width)], FLOAT, x.shape, bound=bound) for _ in range(3))
    turned = transpose_(b, k, [*range(x.rank - 2), x.rank - 1, x.rank - 2])
    scores_shape = (*x.shape[:-1], x.shape[-2])
    scores = b.one("MatMul", [q, turned], FLOAT, scores_shape, rough=True, bound=bound**2 * width)
    scores = product_of(b, scores, number(b, 0.0625))
    weights = b.one("Softmax", [scores], FLOAT, scores_shape, axis=x.rank - 1, bound=1.0)
    return b.one("MatMul", [weights, v], FLOAT, x.shape, bound=bound)


def flatten_after_transpose(b: Builder) -> Value:
    """The channels moved last before a dense layer, as converters from other layouts leave it."""
    x = b.pick(lambda v: is_single(v) and v.rank == 4 and is_full(v) and all(m == n for m, n in v.shape[1:]))
    count = prod(m for m, _ in x.shape[1:])
    y = transpose_(b, x, [0, 2, 3, 1])
    y = b.one("Flatten", [y], FLOAT, (x.shape[0], (count, count)))
    w = b.weights(FLOAT, count, 3)
    return b.one("MatMul", [y, w], FLOAT, (x.shape[0], (3, 3)), bound=2 * x.bound * count)


NETWORKS: tuple[Step, ...] = (
    convolution, convolution, batch_norm, scale_channels, pool, linear, linear, product, reduce, softmax,
    flatten_after_transpose,
)  # fmt: skip
WRITTEN_OUT: tuple[Step, ...] = (
    gelu, gelu_by_tanh, hard_sigmoid_and_swish, smooth, normalization, normalization, attention,
)  # fmt: skip
