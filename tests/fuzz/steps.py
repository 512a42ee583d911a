"""What a random graph is made of: each step adds one node, or a small pattern as exporters write it."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
from hypothesis import strategies as st
from onnx import helper

from tests.fuzz.builder import (
    BOOL,
    DOUBLE,
    FLOAT,
    FLOATS,
    HALF,
    INT32,
    INT64,
    NUMBERS,
    Builder,
    Shape,
    Skip,
    Value,
    at,
    broadcast,
    fixed,
    is_static,
)  # fmt: skip

Step = Callable[[Builder], object]

_EXACT_UNARY = ("Relu", "Neg", "Abs", "Identity", "Identity")
_ROUGH_UNARY = ("Sigmoid", "Tanh", "Softplus", "Elu", "Selu", "LeakyRelu", "Softsign")


def is_float(value: Value) -> bool:
    return value.dtype in FLOATS


def is_single(value: Value) -> bool:
    return value.dtype == FLOAT


def is_full(value: Value) -> bool:
    return all(0 not in dim for dim in value.shape)


def count(shape: Shape) -> tuple[int, int]:
    """The number of elements in each run."""
    return prod(at(shape, 0)), prod(at(shape, 1))


def _numpy(dtype: int) -> np.dtype[np.generic]:
    return helper.tensor_dtype_to_np_dtype(dtype)


def sizes_as_constant_or_chain(b: Builder, wanted: Shape) -> Value:
    """A shape as an int64 vector: constant if it can be, else computed from the shapes of values."""
    if is_static(wanted) and b.flip():
        return b.ints(*at(wanted, 0))
    if not wanted:
        raise Skip
    return b.one("Concat", [size_of_dim(b, dim) for dim in wanted], INT64, fixed(len(wanted)), axis=0)


def size_of_dim(b: Builder, dim: tuple[int, int]) -> Value:
    """A vector of the one number ``dim``, read off some value in scope or, where static, a constant."""
    sources = [(v, axis) for v in b.values for axis, d in enumerate(v.shape) if d == dim]
    if dim[0] == dim[1] and (not sources or b.flip()):
        return b.ints(dim[0])
    value, axis = b.choose(sources)
    shape = b.one("Shape", [value], INT64, fixed(value.rank), bound=100)
    if b.flip():
        return slice_(b, shape, axis, axis + 1, 0)
    one = b.flip()
    index = b.constant(np.array([axis] if one else axis, dtype=np.int64))
    size = b.one("Gather", [shape, index], INT64, fixed(1) if one else (), axis=0, bound=100)
    return size if one else unsqueeze_(b, size, 0)


def slice_(b: Builder, x: Value, start: int, end: int, axis: int, step: int = 1) -> Value:
    dims = list(x.shape)
    dims[axis] = (len(range(dims[axis][0])[start:end:step]), len(range(dims[axis][1])[start:end:step]))
    if b.opset < 10:
        if step != 1:
            raise Skip
        return b.one("Slice", [x], x.dtype, tuple(dims), starts=[start], ends=[end], axes=[axis])
    inputs = [x, b.ints(start), b.ints(end), b.ints(axis)] + ([b.ints(step)] if step != 1 or b.flip() else [])
    return b.one("Slice", inputs, x.dtype, tuple(dims))


def unsqueeze_(b: Builder, x: Value, axis: int) -> Value:
    shape = (*x.shape[:axis], (1, 1), *x.shape[axis:])
    written = axis - len(shape) if b.opset >= 11 and b.flip() else axis
    if b.opset < 13:
        return b.one("Unsqueeze", [x], x.dtype, shape, axes=[written])
    return b.one("Unsqueeze", [x, b.ints(written)], x.dtype, shape)


def transpose_(b: Builder, x: Value, order: list[int]) -> Value:
    shape = tuple(x.shape[i] for i in order)
    if order == list(range(x.rank))[::-1] and b.flip():
        return b.one("Transpose", [x], x.dtype, shape)
    return b.one("Transpose", [x], x.dtype, shape, perm=order)


# -- elementwise -------------------------------------------------------------------------------------------


def unary(b: Builder) -> Value:
    x = b.pick(is_float)
    if b.flip():
        return b.one(b.choose(_EXACT_UNARY), [x], x.dtype, x.shape)
    if not x.rough and x.dtype == FLOAT and b.flip():
        return b.one(b.choose(("Floor", "Ceil", "Sqrt", "Reciprocal")), [x], x.dtype, x.shape, rough=True)
    if x.dtype != FLOAT:
        raise Skip
    if x.bound < 20 and b.flip():
        return b.one("Exp", [x], x.dtype, x.shape, rough=True, bound=1e9)
    op = b.choose((*_ROUGH_UNARY, "Erf") if b.opset >= 9 else _ROUGH_UNARY)
    return b.one(op, [x], x.dtype, x.shape, rough=True, bound=max(x.bound, 3.0))


def binary(b: Builder) -> Value:
    """Two values, or a value and a constant that may be the neutral one."""
    x = b.pick(lambda v: v.dtype in NUMBERS)
    ops = ("Add", "Mul", "Sub", "Max", "Min") if x.dtype in (FLOAT, DOUBLE) and b.opset >= 8 else ("Add", "Mul", "Sub")
    op = b.choose(ops)
    if b.flip():
        y = b.pick(lambda v: v.dtype == x.dtype)
    else:
        shape = b.choose(((), (1,), (1,) * (x.rank + 1), *((d[0],) for d in x.shape[-1:] if d[0] == d[1])))
        number = b.choose((0, 1, 1, 2, -1))
        y = b.constant(np.full(shape, number, dtype=_numpy(x.dtype)))
    bound = x.bound * y.bound if op == "Mul" else x.bound + y.bound
    pair = [x, y] if b.flip() else [y, x]
    return b.one(op, pair, x.dtype, broadcast(x.shape, y.shape), bound=bound)


def divide_or_raise(b: Builder) -> Value:
    """Division by a constant without zeros (integers crash on them), and powers."""
    x = b.pick(lambda v: v.dtype in (FLOAT, INT64))
    divisor = b.constant(np.array(b.choose((1, 2, 4, 3)), dtype=_numpy(x.dtype)))
    if x.dtype == FLOAT and b.flip():
        exponent = b.constant(np.array(b.choose((1.0, 2.0)), dtype=np.float32))
        return b.one("Pow", [x, exponent], x.dtype, x.shape, rough=True, bound=x.bound**2 + 1)
    return b.one("Div", [x, divisor], x.dtype, x.shape, rough=x.dtype == FLOAT)


def compare_and_choose(b: Builder) -> Value:
    x = b.pick(lambda v: v.dtype in (FLOAT, INT64) and not (v.rough and v.dtype == FLOAT))
    if x.dtype == INT64 and b.opset < 9:
        raise Skip
    zero = b.constant(np.array(0, dtype=_numpy(x.dtype)))
    mask = b.one(b.choose(("Greater", "Less")), [x, zero], BOOL, x.shape)
    if b.flip():
        mask = b.one("Not", [mask], BOOL, x.shape)
    if b.opset < 9:
        return mask
    y = b.pick(lambda v: v.dtype in (FLOAT, INT64))
    z = b.pick(lambda v: v.dtype == y.dtype)
    bound = max(y.bound, z.bound)
    return b.one("Where", [mask, y, z], y.dtype, broadcast(x.shape, y.shape, z.shape), rough=z.rough, bound=bound)


def clip(b: Builder) -> Value:
    x = b.pick(is_single)
    low, high = b.choose(((-1.0, 2.0), (0.0, 6.0), (None, 1.0), (0.0, None), (None, None)))
    if b.opset < 11:
        limits = {k: v for k, v in (("min", low), ("max", high)) if v is not None}
        return b.one("Clip", [x], x.dtype, x.shape, **limits)  # type: ignore[arg-type]
    ends = [None if end is None else b.constant(np.array(end, dtype=np.float32)) for end in (low, high)]
    while ends and ends[-1] is None:
        ends.pop()
    return b.one("Clip", [x, *ends], x.dtype, x.shape, bound=max(x.bound, 6.0))


def cast(b: Builder) -> Value:
    x = b.pick(lambda v: not (v.rough and v.dtype in FLOATS) and v.bound < 1000)
    to = b.choose((FLOAT, DOUBLE, INT64, INT32, FLOAT, HALF, BOOL))
    return b.one("Cast", [x], to, x.shape, to=to, rough=to == HALF)


def widen(b: Builder) -> Value:
    """There and back again, which loses nothing."""
    x = b.pick(is_single)
    y = b.one("Cast", [x], DOUBLE, x.shape, to=DOUBLE, rough=x.rough)
    return b.one("Cast", [y], FLOAT, x.shape, to=FLOAT, rough=x.rough)


def pass_through(b: Builder) -> Value:
    x = b.pick(is_single)
    if b.flip() or b.opset < 7:
        return b.one("Identity", [x], x.dtype, x.shape)
    if b.opset < 12:
        return b.one("Dropout", [x], x.dtype, x.shape, ratio=0.3)
    ratio = [b.constant(np.array(0.3, dtype=np.float32))] if b.flip() else []
    if b.opset >= 13 and ratio and b.flip():
        ratio.append(b.constant(np.array(False)))
    return b.one("Dropout", [x, *ratio], x.dtype, x.shape)


def repeat(b: Builder) -> None:
    """The same node once more, under other names."""
    again = [n for n in b.nodes if len(n.output) == 1 and n.op_type not in ("If", "Loop", "Scan") and not n.domain]
    node = b.choose(again)
    known = {value.name: value for value in b.values}
    old = known[node.output[0]]
    new = Value(b.fresh(), old.dtype, old.shape, old.rough, old.bound)
    copied = type(node).FromString(node.SerializeToString())
    copied.output[0] = new.name
    copied.name = ""
    b.nodes.append(copied)
    b.values.append(new)


# -- shapes ------------------------------------------------------------------------------------------------


def transpose(b: Builder) -> Value:
    x = b.pick(lambda v: v.rank >= 1)
    order = b.draw(st.permutations(range(x.rank)))
    y = transpose_(b, x, list(order))
    if b.flip():
        back = [int(i) for i in np.argsort(order)]
        y = transpose_(b, y, list(b.draw(st.permutations(range(x.rank)))) if b.flip() else back)
    return y


def reshape(b: Builder) -> Value:
    """Merge neighbours, split one, or keep all, with the shape given in one of the usual ways."""
    x = b.pick(lambda v: is_full(v) and v.rank >= 1)
    dims = list(x.shape)
    written: list[int | None] = [0] * len(dims)  # 0: copied, None: taken from elsewhere
    if len(dims) >= 2 and b.flip():
        i = b.number(0, len(dims) - 2)
        dims[i : i + 2] = [(dims[i][0] * dims[i + 1][0], dims[i][1] * dims[i + 1][1])]
        written = [d[0] if d[0] == d[1] else None for d in dims]
        written[:i] = [0] * i
    elif dims[-1][0] == dims[-1][1] and dims[-1][0] % 2 == 0:
        dims[-1:] = [(2, 2), (dims[-1][0] // 2,) * 2]
        written[-1:] = [2, dims[-1][0]]
    if written.count(None) <= 1 and b.flip():
        return b.one("Reshape", [x, b.ints(*(-1 if w is None else w for w in written))], x.dtype, tuple(dims))
    parts = [
        size_of_dim(b, d) if any(d in v.shape for v in b.values) or d[0] == d[1] else b.ints(-1) for d in dims
    ]
    shape = b.one("Concat", parts, INT64, fixed(len(dims)), axis=0)
    if sum(not any(d in v.shape for v in b.values) and d[0] != d[1] for d in dims) > 1:
        raise Skip
    return b.one("Reshape", [x, shape], x.dtype, tuple(dims))


def flatten(b: Builder) -> Value:
    x = b.pick(lambda v: v.rank >= 1 and v.dtype == FLOAT)
    axis = b.number(0, x.rank)
    written = axis - x.rank if b.opset >= 11 and axis < x.rank and b.flip() else axis
    return b.one("Flatten", [x], x.dtype, (count(x.shape[:axis]), count(x.shape[axis:])), axis=written)


def unsqueeze(b: Builder) -> Value:
    x = b.pick(lambda v: v.rank <= 4)
    return unsqueeze_(b, x, b.number(0, x.rank))


def squeeze(b: Builder) -> Value:
    x = b.pick(lambda v: (1, 1) in v.shape)
    axis = b.choose([i for i, d in enumerate(x.shape) if d == (1, 1)])
    shape = (*x.shape[:axis], *x.shape[axis + 1 :])
    if b.opset < 13:
        return b.one("Squeeze", [x], x.dtype, shape, axes=[axis])
    return b.one("Squeeze", [x, b.ints(axis - x.rank if b.flip() else axis)], x.dtype, shape)


def slice_some(b: Builder) -> Value:
    x = b.pick(lambda v: v.rank >= 1 and v.dtype != BOOL)
    axis = b.number(0, x.rank - 1)
    start, end, step = b.choose(((0, 2**31 - 1, 1), (1, 2**31 - 1, 1), (0, -1, 1), (-2, 2**31 - 1, 1), (0, 2**40, 2)))
    return slice_(b, x, start, end, axis, step)


def expand(b: Builder) -> Value:
    x = b.pick(is_single)
    if b.opset < 8:
        raise Skip
    y = b.pick(lambda v: v.rank <= 4)
    shape = broadcast(x.shape, y.shape)
    if b.flip() and b.opset >= 9:
        of = b.one("Shape", [y], INT64, fixed(y.rank), bound=100)
        return b.one("Expand", [x, of], x.dtype, shape)
    return b.one("Expand", [x, sizes_as_constant_or_chain(b, y.shape)], x.dtype, shape)


def tile(b: Builder) -> Value:
    x = b.pick(lambda v: is_single(v) and v.rank >= 1)
    times = [b.choose((1, 1, 2)) for _ in x.shape]
    return b.one("Tile", [x, b.ints(*times)], x.dtype, tuple((d[0] * t, d[1] * t) for d, t in zip(x.shape, times)))  # noqa: B905


def gather(b: Builder) -> Value:
    x = b.pick(lambda v: v.rank >= 1 and all(0 not in d for d in v.shape))
    axis = b.number(0, x.rank - 1)
    top = min(x.shape[axis]) - 1
    picked = np.array(b.choose((0, top, [0], [top, 0], [[0], [top]])), dtype=np.int64)
    if b.opset >= 11 and b.flip():
        picked = np.array(-1, dtype=np.int64)
    shape = (*x.shape[:axis], *fixed(*picked.shape), *x.shape[axis + 1 :])
    return b.one("Gather", [x, b.constant(picked)], x.dtype, shape, axis=axis)


def concat(b: Builder) -> Value:
    x = b.pick(lambda v: v.rank >= 1 and v.dtype in NUMBERS)
    axis = b.number(0, x.rank - 1)
    fits = [
        v for v in b.values
        if v.dtype == x.dtype and v.rank == x.rank
        and all(i == axis or v.shape[i] == x.shape[i] for i in range(x.rank))
    ]  # fmt: skip
    parts = [x] + [b.choose(fits) for _ in range(b.number(0, 2))]
    total = (sum(p.shape[axis][0] for p in parts), sum(p.shape[axis][1] for p in parts))
    written = axis - x.rank if b.opset >= 11 and b.flip() else axis
    return b.one("Concat", parts, x.dtype, (*x.shape[:axis], total, *x.shape[axis + 1 :]), axis=written)


def split(b: Builder) -> list[Value]:
    x = b.pick(lambda v: v.rank >= 1 and v.dtype in (FLOAT, INT64))
    axis = b.choose([i for i, (m, n) in enumerate(x.shape) if m == n and m >= 1])
    size = x.shape[axis][0]
    first = b.number(0, size - 1) if size > 1 else size
    sizes = [first, size - first] if size > first > 0 else [size]
    outputs = [(x.dtype, (*x.shape[:axis], (s, s), *x.shape[axis + 1 :])) for s in sizes]
    if b.opset < 13:
        made = b.emit("Split", [x], outputs, axis=axis, split=sizes)
    else:
        made = b.emit("Split", [x, b.ints(*sizes)], outputs, axis=axis)
    if b.flip():
        return [b.one("Concat", made, x.dtype, x.shape, axis=axis)]
    return made


def pad(b: Builder) -> Value:
    x = b.pick(lambda v: is_single(v) and v.rank >= 1 and is_full(v))
    before, after = ([b.choose((0, 0, 1)) for _ in x.shape] for _ in range(2))
    shape = tuple((d[0] + s + e, d[1] + s + e) for d, s, e in zip(x.shape, before, after, strict=True))
    if b.opset < 11:
        return b.one("Pad", [x], x.dtype, shape, pads=before + after, mode="constant")
    value = [b.constant(np.array(b.choose((0.0, 1.0)), dtype=np.float32))] if b.flip() else []
    return b.one("Pad", [x, b.ints(*before, *after), *value], x.dtype, shape)


def fill(b: Builder) -> Value:
    if b.opset < 9:
        raise Skip
    x = b.pick(lambda v: v.rank >= 1)
    shape = sizes_as_constant_or_chain(b, x.shape)
    value = helper.make_tensor("", FLOAT, [1], [b.choose((0.0, 1.0))])
    return b.one("ConstantOfShape", [shape], FLOAT, x.shape, value=value)


def shape_arithmetic(b: Builder) -> Value:
    """Sizes computed with, as for positions and masks."""
    x = b.pick(lambda v: v.rank >= 1)
    size = size_of_dim(b, b.choose(x.shape))
    number = b.one(b.choose(("Add", "Mul")), [size, b.ints(b.number(0, 2))], INT64, fixed(1), bound=1000)
    return b.one("Cast", [number], FLOAT, fixed(1), to=FLOAT) if b.flip() else number


ELEMENTWISE: tuple[Step, ...] = (
    unary, unary, binary, binary, binary, divide_or_raise, compare_and_choose, clip, cast, widen, pass_through,
    repeat,
)  # fmt: skip
SHAPES: tuple[Step, ...] = (
    transpose, reshape, reshape, flatten, unsqueeze, squeeze, slice_some, expand, tile, gather, concat, split, pad,
    fill, shape_arithmetic,
)  # fmt: skip
