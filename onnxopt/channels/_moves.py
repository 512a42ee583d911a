"""Operators that put slices elsewhere: an axis of the output has numbers picked from those of the inputs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxopt.channels._axes import (
    SINGLE,
    Axes,
    Axis,
    Fixed,
    Keep,
    Slices,
    Unfollowed,
    aligned,
    ints,
    positive,
    said,
)
from onnxopt.channels._sizes import resize_shape
from onnxopt.graph import attribute


def transpose(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """Axes change places."""
    x = axes.of(node.inputs[0])
    perm = attribute(node, "perm") or range(len(x))[::-1]
    return [[x[at] for at in perm]]


def squeeze(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """Axes of size 1 go."""
    x = axes.of(node.inputs[0])
    given = attribute(node, "axes")
    over = ints(axes, node, 1) if given is None else given
    if over is None:
        over = [at for at, dim in enumerate(axes.dims(node.inputs[0])) if dim == 1]
    gone = {positive(axis, len(x)) for axis in over}
    return [[axis for at, axis in enumerate(x) if at not in gone]]


def unsqueeze(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """Axes of size 1 come."""
    x = axes.of(node.inputs[0])
    given = attribute(node, "axes")
    over = (ints(axes, node, 1) if given is None else given) or []
    rank = len(x) + len(over)
    new = {positive(axis, rank) for axis in over}
    rest = iter(x)
    return [[SINGLE if at in new else next(rest) for at in range(rank)]]


def concat(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """The slices of one operand after those of the other."""
    parts = [axes.of(value) for value in node.inputs]
    along = positive(attribute(node, "axis", 0), len(parts[0]))
    columns = list(zip(*parts, strict=True))
    return [[_joined(node, each, along, axes) if at == along else axes.tie(*each) for at, each in enumerate(columns)]]


def _joined(node: ir.Node, parts: Sequence[Axis], along: int, axes: Axes) -> Axis:
    """One axis of several; what is fixed of it gets numbers of its own, which are frozen."""
    if not any(isinstance(part, np.ndarray) for part in parts):
        return next((part for part in parts if part is not SINGLE), Fixed(said(node, "single slices are put together")))
    found: list[Slices] = []
    for part, value in zip(parts, node.inputs, strict=True):
        size = axes.dims(value)[along]
        if not isinstance(part, Fixed):
            found.append(part)
        elif isinstance(size, int):
            found.append(_frozen(size, part.why, axes))
        else:
            why = said(node, "how many slices it puts together is not known")
            for other in parts:
                axes.freeze(other, why)
            return Fixed(why)
    return np.concatenate(found)


def _frozen(size: int, why: str, axes: Axes) -> Slices:
    axes.count += size
    slices = np.arange(axes.count - size, axes.count, dtype=np.int64)
    axes.freeze(slices, why)
    return slices


def split(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """Neighbouring slices go to one output."""
    x = axes.of(node.inputs[0])
    along = positive(attribute(node, "axis", 0), len(x))
    whole = x[along]
    if isinstance(whole, Fixed):
        return [x] * len(node.outputs)
    given = attribute(node, "split")
    sizes = ints(axes, node, 1) if given is None else list(given)
    if sizes is None:
        each = -(-len(whole) // len(node.outputs))
        sizes = [each] * (len(node.outputs) - 1) + [len(whole) - each * (len(node.outputs) - 1)]
    parts = np.split(whole, np.cumsum(sizes)[:-1])
    axes.pieces += parts

    def update(keep: Keep) -> None:
        counts = np.array([int(keep(part).sum()) for part in parts], dtype=np.int64)
        if counts.tolist() == sizes:
            return
        if axes.editor.opset(node) < 13:
            node.attributes["split"] = ir.AttrInt64s("split", counts.tolist())
            return
        node.attributes.pop("num_outputs", None)
        node.resize_inputs(2)
        node.replace_input_with(1, axes.editor.add_constant(node, counts, "split"))

    axes.removals.append(update)
    return [[*x[:along], part, *x[along + 1 :]] for part in parts]


def slice_(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """A range of slices."""
    x = list(axes.of(node.inputs[0]))
    if len(node.inputs) > 1:
        if axes.editor.constant(node.inputs[1]) is None or axes.editor.constant(node.inputs[2]) is None:
            return [_cut_at_run_time(node, x, axes)]
        starts, ends = ints(axes, node, 1) or [], ints(axes, node, 2) or []
        over, steps = ints(axes, node, 3), ints(axes, node, 4)
    else:
        starts, ends = list(attribute(node, "starts", ())), list(attribute(node, "ends", ()))
        over, steps = attribute(node, "axes"), None
    over = list(range(len(starts))) if over is None else [positive(axis, len(x)) for axis in over]
    bounds: dict[int, tuple[int, Slices, Slices]] = {}
    for entry, (axis, start, end) in enumerate(zip(over, starts, ends, strict=True)):
        step = 1 if steps is None else steps[entry]
        whole = x[axis]
        if isinstance(whole, Fixed):
            continue
        stop = None if step < 0 and end < -len(whole) else end
        x[axis] = part = whole[start:stop:step]
        axes.pieces.append(part)
        if step != 1:
            axes.freeze(whole, said(node, f"it takes every {abs(step)}th slice"))
        begin = range(len(whole))[start:stop:step]
        bounds[entry] = (begin.start, whole, whole[begin.start : begin.stop])
    if bounds:
        axes.removals.append(partial(_move_bounds, node, bounds, axes))
    return [x]


def _cut_at_run_time(node: ir.Node, x: list[Axis], axes: Axes) -> list[Axis]:
    """Axes of which nobody knows what is taken; those that the Slice does not name stay as they are."""
    why = said(node, "what it takes is computed at run time")
    over = range(len(x)) if len(node.inputs) < 4 or node.inputs[3] is None else ints(axes, node, 3) or []
    for axis in over:
        axes.freeze(x[axis], why)
        x[positive(axis, len(x))] = Fixed(why)
    return x


def _move_bounds(node: ir.Node, bounds: dict[int, tuple[int, Slices, Slices]], axes: Axes, keep: Keep) -> None:
    starts: dict[int, int] = {}
    ends: dict[int, int] = {}
    for entry, (start, whole, part) in bounds.items():
        if keep(whole).all():
            continue
        before = int(keep(whole[:start]).sum())
        starts[entry], ends[entry] = before, before + int(keep(part).sum())
    if not starts:
        return
    if len(node.inputs) == 1:
        for name, changes in (("starts", starts), ("ends", ends)):
            old = attribute(node, name)
            node.attributes[name] = ir.AttrInt64s(name, [changes.get(at, x) for at, x in enumerate(old)])
        return
    for at, changes in ((1, starts), (2, ends)):
        array = axes.editor.constant(node.inputs[at])
        assert array is not None
        array = array.copy()
        for entry, bound in changes.items():
            array.reshape(-1)[entry] = bound
        node.replace_input_with(at, axes.editor.add_constant(node, array, "bounds"))


def gather(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """Slices of the data, picked by number."""
    data, indices = axes.of(node.inputs[0]), node.inputs[1]
    along = positive(attribute(node, "axis", 0), len(data))
    picked = axes.editor.constant(indices)
    rank = len(axes.dims(indices))
    whole = data[along]
    if picked is None or isinstance(whole, Fixed):
        why = whole.why if isinstance(whole, Fixed) else said(node, "which slices it takes is known at run time only")
        axes.freeze(whole, why)
        new = list(axes.of(indices)) if indices in axes.computed else [Fixed(why)] * rank
        return [[*data[:along], *new, *data[along + 1 :]]]
    taken = whole[picked]
    axes.pieces.append(taken.reshape(-1))
    if rank > 1:
        axes.freeze(whole, said(node, "it spreads the slices over several axes"))
        return [[*data[:along], *[Fixed("slices are spread over it")] * rank, *data[along + 1 :]]]
    if rank == 0:
        axes.freeze(taken.reshape(-1), said(node, "it takes one slice"))

    def update(keep: Keep) -> None:
        mask = keep(whole)
        if mask.all():
            return
        places = np.cumsum(mask) - 1
        left = np.asarray(places[picked if rank == 0 else picked[keep(taken)]], dtype=picked.dtype)
        node.replace_input_with(1, axes.editor.add_constant(node, left, "indices"))

    axes.removals.append(update)
    return [[*data[:along], *([taken] if rank else []), *data[along + 1 :]]]


def pad(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """Slices of the padding are never removed."""
    x = list(axes.of(node.inputs[0]))
    given = attribute(node, "pads", attribute(node, "paddings"))
    pads = list(given) if given is not None else None
    over = ints(axes, node, 3)
    mode = attribute(node, "mode", "constant")
    chosen = list(range(len(x))) if over is None else [positive(axis, len(x)) for axis in over]
    if pads is None:
        try:
            pads = ints(axes, node, 1)
        except Unfollowed:  # most often torch pads space only, with numbers that depend on sizes
            pads = None
    for at, axis in enumerate(chosen):
        whole = x[axis]
        if isinstance(whole, Fixed):
            continue
        ends = (pads[at], pads[at + len(chosen)]) if pads is not None else (0, 0)
        why = ""
        if pads is None:
            why = "how much it pads is computed at run time"
        elif min(ends) < 0:
            why = "it cuts slices off"
        elif any(ends) and mode != "constant":
            why = "it pads with slices of its own"
        if why:
            axes.freeze(whole, said(node, why))
            x[axis] = Fixed(said(node, why))
        elif any(ends):
            before, after = (_frozen(size, said(node, "these slices are padding"), axes) for size in ends)
            x[axis] = np.concatenate([before, whole, after])
    return [x]


def expand(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """Where a slice is repeated, there may be as many of it as is wanted."""
    (x,) = aligned([axes.of(node.inputs[0])])
    dims = axes.dims(node.outputs[0])
    x = [*[SINGLE] * (len(dims) - len(x)), *x]
    rank = axes.dims(node.inputs[1])[0]
    if not isinstance(rank, int):
        raise Unfollowed("how many axes it makes is not known")
    out: list[Axis] = []
    for axis, dim in zip(x, dims, strict=True):
        free = axis is SINGLE and dim != 1
        out.append(axis if not free else axes.fresh(dim) if isinstance(dim, int) else Fixed("its size is not known"))
    first = len(dims) - rank
    resize_shape(node, 1, {at - first: axis for at, axis in enumerate(out) if at >= first}, axes)
    return [out]


def constant_of_shape(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """All slices are alike, so there may be as many as is wanted."""
    out = [
        axes.fresh(dim) if isinstance(dim, int) else Fixed("its size is not known")
        for dim in axes.dims(node.outputs[0])
    ]
    resize_shape(node, 0, dict(enumerate(out)), axes)
    return [out]


def tile(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """The slices again and again."""
    x = list(axes.of(node.inputs[0]))
    try:
        repeats = ints(axes, node, 1)
    except Unfollowed:
        repeats = None
    dims = axes.dims(node.outputs[0])
    grown: dict[int, Axis] = {}
    for at, (axis, dim) in enumerate(zip(x, dims, strict=True)):
        if axis is SINGLE:
            x[at] = Fixed("its size is not known") if not isinstance(dim, int) else axes.fresh(dim)
            grown[at] = x[at]
        elif not isinstance(axis, Fixed) and repeats is None:
            axes.freeze(axis, said(node, "how often it repeats is computed at run time"))
            x[at] = Fixed(said(node, "how often it repeats is computed at run time"))
        elif not isinstance(axis, Fixed) and repeats is not None:
            x[at] = np.tile(axis, repeats[at])
    resize_shape(node, 1, grown, axes)
    return [x]


def resize(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """Resize and Upsample change the sizes of space; sizes of the other axes are given along with them."""
    x = list(axes.of(node.inputs[0]))
    over = attribute(node, "axes")
    before, after = axes.dims(node.inputs[0]), axes.dims(node.outputs[0])
    why = said(node, "it interpolates along this axis")
    kept: dict[int, Axis] = {}
    for at in range(len(x)):
        if at > 1 or (isinstance(before[at], int) and before[at] != after[at]):
            axes.freeze(x[at], why)
            x[at] = Fixed(why)
        else:
            kept[at if over is None else list(over).index(at) if at in over else -1] = x[at]
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        resize_shape(node, 3, {entry: axis for entry, axis in kept.items() if entry >= 0}, axes)
    return [x]


def depth_to_space(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """All channels that become one go together."""
    x = list(axes.of(node.inputs[0]))
    block = attribute(node, "blocksize") ** 2
    if not isinstance(x[1], Fixed):
        columns = attribute(node, "mode", "DCR") == "CRD"
        shape = (-1, block) if columns else (block, -1)
        x[1] = axes.join(x[1].reshape(shape), 1 if columns else 0)
    return [[*x[:2], *_moved(node, x[2:], axes)]]


def space_to_depth(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """One channel becomes several."""
    x = axes.of(node.inputs[0])
    block = attribute(node, "blocksize") ** 2
    several = Fixed(said(node, "one channel becomes several"))
    order = np.repeat if attribute(node, "mode", "DCR") == "CRD" else np.tile
    channel: Axis = order(x[1], block) if not isinstance(x[1], Fixed) else several if x[1] is SINGLE else x[1]
    return [[x[0], channel, *_moved(node, x[2:], axes)]]


def _moved(node: ir.Node, space: list[Axis], axes: Axes) -> list[Axis]:
    why = said(node, "it moves places of this axis")
    for axis in space:
        axes.freeze(axis, why)
    return [Fixed(why)] * len(space)
