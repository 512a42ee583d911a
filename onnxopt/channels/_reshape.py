"""Reshape and Flatten: which slices of the old axes make which of the new ones.

Elements keep their order, so both shapes are products of the same factors: (768,) → (12, 64) splits one axis into
two, (64, 7, 7) → (3136,) makes one of three. Axes of the input and of the output are lists of factors, and slices
are followed factor by factor. Where one axis becomes several, slices can only be removed so that a block is left:
the same ones of one factor, for every value of the others. Which factor that is, is a choice: the features inside
the heads or whole heads, the channels inside the groups or whole groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.channels._axes import SINGLE, Axes, Axis, Fixed, Repeated, Slices, Unfollowed, positive, said
from onnxopt.channels._sizes import resize_shape
from onnxopt.graph import attribute
from onnxopt.shapes import Dim


@dataclass(frozen=True)
class Factor:
    """A part of an axis of the input that is also a part of an axis of the output.

    The size is ``None``, and the axes are those of no one, where it cannot be told which parts belong together.
    """

    size: int | None
    source: int | None
    target: int | None


def factors(before: Sequence[Dim], after: Sequence[Dim]) -> list[Factor]:
    """The common factors of two shapes with the same elements, in order.

    Dims that are not known stop the search from the left and from the right. Where a single axis lies between, it is
    the product of all that lies there on the other side; else that is left open.
    """
    left, begin_in, begin_out, rest_in, rest_out = _from_left(list(before), list(after))
    middle_in, middle_out = list(before[begin_in:]), list(after[begin_out:])
    if middle_in and rest_in:
        middle_in[0] = rest_in
    if middle_out and rest_out:
        middle_out[0] = rest_out
    right, end_in, end_out, rest_in, rest_out = _from_left(middle_in[::-1], middle_out[::-1])
    found = left + [Factor(f.size, _flip(f.source, len(before)), _flip(f.target, len(after))) for f in reversed(right)]
    open_in, open_out = middle_in[: len(middle_in) - end_in], middle_out[: len(middle_out) - end_out]
    if open_in and rest_in:
        open_in[-1] = rest_in
    if open_out and rest_out:
        open_out[-1] = rest_out
    sources, targets = ([*enumerate(open_, begin)] for open_, begin in ((open_in, begin_in), (open_out, begin_out)))
    if len(sources) == 1 and targets:
        between = [Factor(_number(dim), sources[0][0], at) for at, dim in targets]
        if len(targets) == 1:
            between = [Factor(_number(sources[0][1]) or _number(targets[0][1]), sources[0][0], targets[0][0])]
    elif len(targets) == 1 and sources:
        between = [Factor(_number(dim), at, targets[0][0]) for at, dim in sources]
    else:
        between = [Factor(None, at, None) for at, _ in sources] + [Factor(None, None, at) for at, _ in targets]
    return found[: len(left)] + between + found[len(left) :]


def _number(dim: Dim) -> int | None:
    return dim if isinstance(dim, int) else None


def _flip(at: int | None, count: int) -> int | None:
    return None if at is None else count - 1 - at


def _from_left(before: list[Dim], after: list[Dim]) -> tuple[list[Factor], int, int, int, int]:
    """Factors from the left; then how many axes are used up, and what is left of the next ones (0: all)."""
    found: list[Factor] = []
    i = j = 0
    a: Dim = before[0] if before else None
    b: Dim = after[0] if after else None
    while i < len(before) and j < len(after):
        if a is None or b is None or (a != b and (isinstance(a, str) or isinstance(b, str))):
            if a == 1 or b == 1:
                pass
            else:
                break
        if a == b:
            found.append(Factor(a if isinstance(a, int) else None, i, j))
            i, j = i + 1, j + 1
            a, b = before[i] if i < len(before) else None, after[j] if j < len(after) else None
        elif a == 1:
            i += 1
            a = before[i] if i < len(before) else None
        elif b == 1:
            j += 1
            b = after[j] if j < len(after) else None
        elif isinstance(a, int) and isinstance(b, int) and b and a % b == 0:
            found.append(Factor(b, i, j))
            a, j = a // b, j + 1
            b = after[j] if j < len(after) else None
        elif isinstance(a, int) and isinstance(b, int) and a and b % a == 0:
            found.append(Factor(a, i, j))
            b, i = b // a, i + 1
            a = before[i] if i < len(before) else None
        else:
            break
    rest_in = a if i < len(before) and isinstance(a, int) and a != before[i] else 0
    rest_out = b if j < len(after) and isinstance(b, int) and b != after[j] else 0
    return found, i, j, rest_in, rest_out


def reshape(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """Follow slices from factor to factor."""
    source, target = node.inputs[0], node.outputs[0]
    out = follow(node, axes.of(source), axes.dims(source), _dims_for_readers(target, axes), axes)
    if node.op_type == "Reshape" and len(node.inputs) > 1:
        resize_shape(node, 1, dict(enumerate(out)), axes)
    elif node.op_type == "Reshape" and any(isinstance(axis, np.ndarray | Repeated) for axis in out):
        raise Unfollowed("its shape is an attribute: raise the opset to 5 or more")
    return [out]


def _dims_for_readers(value: ir.Value, axes: Axes) -> Sequence[Dim]:
    """The dims of ``value``, of which the last may be known only as what a weight takes that it is multiplied with."""
    dims = axes.dims(value)
    if dims and not isinstance(dims[-1], int):
        for use in value.uses():
            if use.node.op_type == "MatMul" and use.idx == 0 and axes.is_weight(use.node.inputs[1]):
                weight = axes.editor.shape(use.node.inputs[1]) or (None,)
                return [*dims[:-1], weight[max(len(weight) - 2, 0)]]
    return dims


def flatten(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """Axes in front become one, and so do the others."""
    x, dims = axes.of(node.inputs[0]), axes.dims(node.inputs[0])
    at = attribute(node, "axis", 1)
    at = positive(at, len(x)) if at < 0 else at
    parts = [(x[:at], dims[:at]), (x[at:], dims[at:])]
    return [[follow(node, part, sizes, (_product(sizes),), axes)[0] for part, sizes in parts]]


def _product(dims: Sequence[Dim]) -> Dim:
    known = [dim for dim in dims if isinstance(dim, int)]
    others = [dim for dim in dims if dim != 1]
    return math.prod(known) if len(known) == len(dims) else others[0] if len(others) == 1 else None


def follow(node: ir.Node, x: list[Axis], before: Sequence[Dim], after: Sequence[Dim], axes: Axes) -> list[Axis]:
    """The axes of the output of a node that leaves all elements in their order."""
    x, sizes, origins = _parts(x, before)
    found = factors(sizes, after)
    live: dict[int, Slices] = {}  # factor → its slices
    for at, axis in enumerate(x):
        if isinstance(axis, Fixed):
            continue
        own = [f for f, factor in enumerate(found) if factor.source == at and factor.size != 1]
        ways = [f for f in own if found[f].target is not None]
        split = [found[f].size for f in own]
        if not ways or split.count(None) > 1:
            axes.freeze(axis, said(node, f"what becomes of the axis {origins[at]} of its input cannot be told"))
            continue
        grid = axis.reshape([-1 if size is None else size for size in split])
        order = ways[::-1] if axes.unit == "channel" else [*ways[-2::-1], ways[-1]]
        chosen = axes.choose(node, len(order), axis)
        given = [way for way in order if _is_given(grid, own.index(way))]
        taken = given[0] if given and not chosen else order[chosen]
        for along in range(len(own) - 1, -1, -1):
            if own[along] != taken:
                grid = axes.join(grid, along)
        live[taken] = grid
    return [_target(node, at, found, live, x, after, axes) for at in range(len(after))]


def _is_given(grid: Slices, along: int) -> bool:
    """Whether the slices differ only along one factor: then nothing is lost if they go by that."""
    others = tuple(axis for axis in range(grid.ndim) if axis != along)
    return bool((grid == grid.min(others, keepdims=True)).all())


def _parts(x: list[Axis], before: Sequence[Dim]) -> tuple[list[Axis], list[Dim], list[int]]:
    """The axes and sizes with those that repeat slices taken apart, and of which axis each is a part."""
    parts: list[tuple[Axis, Dim, int]] = []
    for at, (axis, dim) in enumerate(zip(x, before, strict=True)):
        if isinstance(axis, Repeated):
            parts += [(Fixed(axis.why), None, at)] * axis.outer
            parts.append((axis.row, len(axis.row), at))
            parts += [(Fixed(axis.why), None, at)] * axis.inner
        else:
            parts.append((axis, dim if isinstance(axis, Fixed) else len(axis), at))
    return [axis for axis, _, _ in parts], [dim for _, dim, _ in parts], [at for _, _, at in parts]


def _target(
    node: ir.Node,
    at: int,
    found: list[Factor],
    live: dict[int, Slices],
    x: list[Axis],
    after: Sequence[Dim],
    axes: Axes,
) -> Axis:
    if after[at] == 1:
        return SINGLE
    own = [f for f, factor in enumerate(found) if factor.target == at and factor.size != 1]
    alive = [f for f in own if f in live]
    if not alive:
        whys = [x[s].why for f in own if (s := found[f].source) is not None and isinstance(x[s], Fixed)]  # type: ignore[union-attr]
        return Fixed(whys[0] if whys else said(node, "it splits what is removed as a whole"))
    for f in alive[1:]:  # as where keys are repeated for the queries that share them: (keys, times) become one
        axes.freeze(live[f], said(node, "it becomes one with an axis of which slices can be removed"))
    known = [size if (size := found[f].size) is not None else len(live[f]) if f in live else None for f in own]
    here = own.index(alive[0])
    begin = max((i + 1 for i in range(here) if known[i] is None), default=0)
    end = min((i for i in range(here, len(own)) if known[i] is None), default=len(own))
    shape = [size or 1 for size in known[begin:end]]
    grid = live[alive[0]].reshape([size if i == here else 1 for i, size in enumerate(shape, begin)])
    row = np.broadcast_to(grid, shape).reshape(-1)
    if end - begin == len(own):
        return row
    return Repeated(said(node, "a size is not known"), row, outer=begin > 0, inner=end < len(own))
