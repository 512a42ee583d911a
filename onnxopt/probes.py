"""Make inputs that a model runs on, when the user gives none.

Float inputs are drawn from a normal distribution. Integer inputs respect what the graph does with them:
indices stay below the size of the table that they index, values compared with constants are drawn from
those constants, masks hold ones and zeros, lengths stay within the sequence. Every dynamic dim is tried at
several sizes, and only sizes on which the original itself runs are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from onnxopt.errors import DataError, EngineError
from onnxopt.graph import attribute, constant_tensor
from onnxopt.runtime import Feeds, Session

_BATCH_SIZES = (2, 1)
_OTHER_SIZES = (5, 16, 64, 96, 128, 224, 256, 320, 512, 1024, 4096, 16000, 48000)
_MAX_ELEMENTS = 1 << 23
_PASS_THROUGH = {
    "Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Flatten", "Expand", "Slice", "Concat",
    "Tile", "Clip",
}  # fmt: skip


def interface_inputs(model: ir.Model) -> list[ir.Value]:
    """The inputs that a caller has to give."""
    return [value for value in model.graph.inputs if not value.is_initializer()]


class Probe(NamedTuple):
    """One set of inputs, and what the model computes for it."""

    feeds: Feeds
    outputs: list[Any]


def find_probes(model: ir.Model, session: Session, *, count: int = 2, seed: int = 0) -> list[Probe]:
    """Up to ``count`` sets of inputs on which ``session`` runs, at different sizes of the dynamic dims.

    Raises ``DataError`` if none is found, saying which inputs the model wants.
    """
    rng = np.random.default_rng(seed)
    inputs = interface_inputs(model)
    for value in inputs:
        if not isinstance(value.type, ir.TensorType) or value.shape is None:
            raise DataError(f"the input {value.name!r} is not a tensor of known rank; give data for it")
    names = {dim for value in inputs for dim in _symbols(value)}
    batch = {dim for value in inputs for dim in list(_symbols(value, axis=0))}
    found: list[Probe] = []
    used: list[tuple[int, int]] = []
    failure: EngineError | None = None
    for batch_size, size, sizes in _assignments(batch, names - batch, count):
        if len(found) == count:
            break
        if names and any(batch_size == b > 1 or (size == s and names - batch) for b, s in used):
            continue  # what is known at one size is worth less than another size
        try:
            feeds = {value.name or "": _draw(value, sizes, size, rng) for value in inputs}
            found.append(Probe(feeds, session.run(feeds)))
        except EngineError as error:
            failure = failure or error
        except _TooLarge:
            continue
        else:
            used.append((batch_size, size))
    if not found:
        wanted = ", ".join(f"{v.name} {v.dtype.name if v.dtype else '?'} {v.shape}" for v in inputs)
        raise DataError(f"no inputs were found on which the model runs ({wanted}); give data. {failure or ''}".strip())
    return found


class _TooLarge(Exception):
    """An input would take too much memory at these sizes."""


def _assignments(
    batch: set[str], others: set[str], count: int
) -> Iterator[tuple[int, int, dict[str, int]]]:
    """What to try: the batch size, the size that stands for "long", and both by dim.

    First all dims are alike but for the batch; then one dim at a time is long and all others are 1, for models
    whose dims hang together.
    """
    if not others:
        for size in _BATCH_SIZES if batch else (1,) * count:
            yield size, 16, dict.fromkeys(batch, size)
    for other in _OTHER_SIZES if others else ():
        for size in _BATCH_SIZES if batch else (1,):
            yield size, other, {**dict.fromkeys(others, other), **dict.fromkeys(batch, size)}
    for dim in sorted(others):
        for other in _OTHER_SIZES:
            yield 1, other, {**dict.fromkeys(others | batch, 1), dim: other}


def _symbols(value: ir.Value, axis: int | None = None) -> Iterator[str]:
    """The names of the dynamic dims of an input; an unnamed one is called after its place."""
    for at, dim in enumerate(value.shape or ()):
        if axis is None or at == axis:
            name = _symbol(value, at, dim)
            if name is not None and _EXPRESSION.isdisjoint(name):
                yield name


_EXPRESSION = frozenset("+-*/()")


def _symbol(value: ir.Value, at: int, dim: int | ir.SymbolicDim) -> str | None:
    """The name of a dynamic dim, ``None`` of a fixed one; some exporters write −1 for "dynamic"."""
    if isinstance(dim, int):
        return None if dim >= 0 else f"{value.name}[{at}]"
    return dim.value or f"{value.name}[{at}]"


def _size(value: ir.Value, at: int, dim: int | ir.SymbolicDim, sizes: dict[str, int], default: int) -> int:
    name = _symbol(value, at, dim)
    if name is None:
        return int(dim)  # type: ignore[arg-type]
    if name in sizes:
        return sizes[name]
    try:  # an expression such as "past + 1"
        size = dim.evaluate(sizes)  # type: ignore[union-attr]
    except Exception:  # a name that is no expression
        return default
    return size if isinstance(size, int) else default


def _draw(value: ir.Value, sizes: dict[str, int], default: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    dims = tuple(_size(value, at, dim, sizes, default) for at, dim in enumerate(value.shape or ()))
    dtype = value.dtype
    assert dtype is not None
    if int(np.prod(dims, dtype=np.int64)) > _MAX_ELEMENTS:
        raise _TooLarge
    if dtype == ir.DataType.STRING:
        return rng.choice(np.array(["a", "b", "12", "the end"], dtype=object), size=dims)
    numpy_type = dtype.numpy()
    name = (value.name or "").lower()
    if dtype == ir.DataType.BOOL:
        return rng.integers(0, 2, size=dims).astype(bool)
    if "mask" in name:
        return _mask(dims, rng).astype(numpy_type)
    if dtype.is_integer():
        return _integers(value, dims, dtype, default, rng).astype(numpy_type)
    return rng.standard_normal(size=dims).astype(np.float32).astype(numpy_type)


def _mask(dims: tuple[int, ...], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Ones with some zeros at the end, as padding leaves them."""
    mask = np.ones(dims, dtype=np.int64)
    if dims and dims[-1] > 2:
        mask[..., dims[-1] - int(rng.integers(0, dims[-1] // 2)) :] = 0
    return mask


def _integers(
    value: ir.Value, dims: tuple[int, ...], dtype: ir.DataType, default: int, rng: np.random.Generator
) -> np.ndarray[Any, Any]:
    bound, choices = _integer_range(value)
    if choices:
        return rng.choice(np.array(sorted(choices)), size=dims)
    name = (value.name or "").lower()
    if bound is None and "len" in name:
        return rng.integers(max(1, default // 2), default + 1, size=dims)
    if bound is None:
        bound = 256 if dtype in (ir.DataType.UINT8, ir.DataType.INT8) else 2
    low = -128 if dtype == ir.DataType.INT8 and bound == 256 else 0
    return rng.integers(low, low + max(1, bound), size=dims)


def _integer_range(value: ir.Value) -> tuple[int | None, set[int]]:
    """The bound below which indices must stay, and the constants that the input is compared with."""
    bound: int | None = None
    choices: set[int] = set()
    seen: set[ir.Value] = set()
    todo = [value]
    while todo and len(seen) < 200:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        for use in current.uses():
            node, at = use
            limit: int | None = None
            if node.op_type in ("Gather", "GatherElements") and at == 1:
                limit = _table_size(node)
            elif node.op_type == "OneHot" and at == 0:
                depth = constant_tensor(node.inputs[1])
                limit = int(depth.numpy().reshape(-1)[0]) if depth is not None else None
            elif node.op_type == "Equal":
                other = constant_tensor(node.inputs[1 - at])
                if other is not None and other.size == 1 and other.dtype.is_integer():
                    choices.add(int(other.numpy().reshape(())))
            elif node.op_type in _PASS_THROUGH and at == 0:
                todo.extend(node.outputs)
            if limit is not None:
                bound = limit if bound is None else min(bound, limit)
    if bound is not None:  # compared with a padding id, and used as an index: any index will do
        choices = set()
    return bound, {c for c in choices if c > 1}


def _table_size(node: ir.Node) -> int | None:
    table = node.inputs[0]
    if table is None or table.shape is None or (axis := attribute(node, "axis", 0)) is None:
        return None
    dim = table.shape[axis]
    return dim if isinstance(dim, int) else None
