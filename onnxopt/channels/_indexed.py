"""Operators that pick, put or sample elements along some axes; slices of the others go through.

Which elements they take is known at run time only, so from the axes they work along nothing can be removed.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from onnxopt.channels._axes import SINGLE, Axes, Axis, Fixed, Unfollowed, positive, said
from onnxopt.graph import attribute

_WHY = "which places it takes is known at run time only"


def grid_sample(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """Places of an image, the same for every channel."""
    x, grid = axes.of(node.inputs[0]), axes.of(node.inputs[1])
    _stay(node, [*x[2:], *grid[1:]], axes)
    return [[axes.tie(x[0], grid[0]), x[1], *_fixed(node, len(x) - 2)]]


def pool_of_regions(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """RoiAlign and MaxRoiPool: regions of images, of every channel."""
    x, regions = axes.of(node.inputs[0]), axes.of(node.inputs[1])
    _stay(node, [x[0], *x[2:], *regions], axes)
    return [[*_fixed(node, 1), x[1], *_fixed(node, len(x) - 2)]]


def reverse_sequence(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """Every sample is turned round by itself."""
    x = axes.of(node.inputs[0])
    return [_without(node, x, (attribute(node, "batch_axis", 1), attribute(node, "time_axis", 0)), axes)]


def triangle(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """Trilu sets places of the last two axes to zero."""
    return [_without(node, axes.of(node.inputs[0]), (-2, -1), axes)]


def compress(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """Some of the places along one axis."""
    x, axis = axes.of(node.inputs[0]), attribute(node, "axis")
    if axis is None:
        raise Unfollowed("it makes one axis of all")
    return [_without(node, x, (axis,), axes)]


def gather_elements(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """Along one axis, an index for every place of the output."""
    data, indices = axes.of(node.inputs[0]), axes.of(node.inputs[1])
    along = positive(attribute(node, "axis", 0), len(data))
    return [_matched(node, [data, indices], along, axes)]


def scatter_elements(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """Along one axis, an index for every update."""
    data, indices, updates = (axes.of(value) for value in node.inputs[:3])
    along = positive(attribute(node, "axis", 0), len(data))
    found = _matched(node, [data, indices, updates], along, axes)
    return [[own if own is SINGLE else axis for own, axis in zip(data, found, strict=True)]]


def gather_nd(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """The last axis of the indices says where in the first axes of the data; the rest is taken as it is."""
    data, indices, batch, depth = *_two(node, axes), attribute(node, "batch_dims", 0), _depth(node, axes)
    _stay(node, [*data[: batch + depth], *indices], axes)
    return [[*_fixed(node, len(indices) - 1), *data[batch + depth :]]]


def scatter_nd(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """The same for updates, which have the rest of the data as their last axes."""
    data, indices, depth = *_two(node, axes), _depth(node, axes)
    updates = axes.of(node.inputs[2])
    _stay(node, [*data[:depth], *indices, *updates[: len(indices) - 1]], axes)
    rest = [axes.tie(*pair) for pair in zip(data[depth:], updates[len(indices) - 1 :], strict=True)]
    return [[*(SINGLE if axis is SINGLE else Fixed(said(node, _WHY)) for axis in data[:depth]), *rest]]


def _two(node: ir.Node, axes: Axes) -> tuple[list[Axis], list[Axis]]:
    return axes.of(node.inputs[0]), axes.of(node.inputs[1])


def _depth(node: ir.Node, axes: Axes) -> int:
    depth = axes.dims(node.inputs[1])[-1]
    if not isinstance(depth, int):
        raise Unfollowed("how many axes it looks into is not known")
    return depth


def _matched(node: ir.Node, operands: list[list[Axis]], along: int, axes: Axes) -> list[Axis]:
    """The axes of operands that have the same places but along one axis, or fewer."""
    found: list[Axis] = []
    for at, parts in enumerate(zip(*operands, strict=True)):
        if at == along or len({part is SINGLE for part in parts}) > 1:
            _stay(node, parts, axes)
            found.append(Fixed(said(node, _WHY)))
        else:
            found.append(axes.tie(*parts))
    return found


def _without(node: ir.Node, x: list[Axis], over: Iterable[int], axes: Axes) -> list[Axis]:
    taken = {positive(axis, len(x)) for axis in over}
    _stay(node, (x[at] for at in taken), axes)
    return [Fixed(said(node, _WHY)) if at in taken else axis for at, axis in enumerate(x)]


def _stay(node: ir.Node, along: Iterable[Axis], axes: Axes) -> None:
    for axis in along:
        axes.freeze(axis, said(node, _WHY))


def _fixed(node: ir.Node, count: int) -> list[Axis]:
    return [Fixed(said(node, _WHY))] * count
