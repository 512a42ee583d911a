"""Layers: operators with weights, which make channels of others."""

from __future__ import annotations

import onnx_ir as ir

from onnxopt.channels._axes import (
    SINGLE,
    Axes,
    Axis,
    Fixed,
    Slices,
    Unfollowed,
    aligned,
    follow_count,
    positive,
    said,
)
from onnxopt.channels._elementwise import spatial
from onnxopt.graph import attribute


def convolution(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """Conv and ConvTranspose. In groups, all groups lose the same channels, or whole groups go."""
    x, w = axes.of(node.inputs[0]), axes.of(node.inputs[1])
    transposed = node.op_type == "ConvTranspose"
    rest = spatial(node, x[2:], axes)
    spatial(node, w[2:], axes)
    axes.places += [axis for axis in w[2:] if not isinstance(axis, Fixed)]
    groups = attribute(node, "group", 1)
    bias: Axis = axes.of(node.inputs[2])[0] if len(node.inputs) > 2 and node.inputs[2] is not None else SINGLE
    if groups == 1:
        made, read = (w[1], w[0]) if transposed else (w[0], w[1])
        axes.tie(x[1], axes.reads(read))
        return [[x[0], axes.tie(made, bias), *rest]]
    out: Axis
    if isinstance(x[1], Fixed):
        axes.freeze(w[0], x[1].why)
        axes.freeze(w[1], x[1].why)
        out = x[1]
    elif transposed:
        out = _transposed_groups(node, x[1], w, groups, axes)
    else:
        out = _groups(node, x[1], w, groups, axes)
    axes.tie(out, bias)
    return [[x[0], out, *rest]]


def _groups(node: ir.Node, x: Slices, w: list[Axis], groups: int, axes: Axes) -> Axis:
    if isinstance(w[0], Fixed):
        axes.freeze(x, w[0].why)
        return w[0]
    made, read = w[0].reshape(groups, -1), x.reshape(groups, -1)
    if read.shape[1] == 1 or made.shape[1] == 1 or axes.choose(node, 2, x) == 1:
        whole = axes.tie(axes.join(made, 1), axes.join(read, 1))
        follow_count(node, "group", whole, axes)
        axes.freeze(w[1], said(node, "only whole groups are removed"))
    else:
        axes.join(made, 0)
        axes.tie(axes.join(read, 0), axes.reads(w[1]))
    return w[0]


def _transposed_groups(node: ir.Node, x: Slices, w: list[Axis], groups: int, axes: Axes) -> Axis:
    """The weight is (inputs × outputs of a group); the outputs of different groups have no slice in common."""
    if isinstance(w[1], Fixed) and w[1] is not SINGLE:
        axes.freeze(x, w[1].why)
        axes.freeze(w[0], w[1].why)
        return w[1]
    out = axes.fresh(groups * (1 if isinstance(w[1], Fixed) else len(w[1])))
    assert not isinstance(out, Fixed)
    axes.tie(x, axes.reads(w[0]))
    whole = axes.join(x.reshape(groups, -1), 1)
    axes.tie(whole, axes.join(out.reshape(groups, -1), 1))
    axes.freeze(w[1], said(node, "it is shared by all groups"))
    follow_count(node, "group", whole, axes)
    return out


def gemm(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """Rows of one matrix against columns of the other."""
    a, b = axes.of(node.inputs[0]), axes.of(node.inputs[1])
    a = a[::-1] if attribute(node, "transA", 0) else a
    b = b[::-1] if attribute(node, "transB", 0) else b
    axes.tie(_contracted(a[1], node.inputs[0], axes), _contracted(b[0], node.inputs[1], axes))
    out: list[Axis] = [a[0], b[1]]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        out = [axes.tie(*parts) for parts in zip(*aligned([out, axes.of(node.inputs[2])]), strict=True)]
    return [out]


def matmul(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """The last axis of one against the last but one of the other; axes in front are broadcast."""
    a, b = axes.of(node.inputs[0]), axes.of(node.inputs[1])
    if not a or not b:
        raise Unfollowed("it multiplies a scalar")
    axes.tie(_contracted(a[-1], node.inputs[0], axes), _contracted(b[max(len(b) - 2, 0)], node.inputs[1], axes))
    batch = [axes.tie(*parts) for parts in zip(*aligned([a[:-2], b[:-2]]), strict=True)] if a[:-2] or b[:-2] else []
    if not any(axes.is_weight(value) for value in node.inputs):
        for axis in batch:
            axes.attends(node, axis)
    return [[*batch, *a[-2:-1], *(b[-1:] if len(b) > 1 else [])]]


def _contracted(axis: Axis, value: ir.Value | None, axes: Axes) -> Axis:
    """An axis that is summed over: that of a weight reads what comes along that of the other operand."""
    return axes.reads(axis) if axes.is_weight(value) else axis


def einsum(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """Axes with the same letter have the same slices."""
    equation = str(attribute(node, "equation", "")).replace(" ", "")
    if "..." in equation:
        raise Unfollowed("its equation has an ellipsis")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        right = "".join(sorted(letter for letter in set(left) - {","} if left.count(letter) == 1))
    found: dict[str, Axis] = {}
    for term, value in zip(terms, node.inputs, strict=True):
        for letter, axis in zip(term, axes.of(value), strict=True):
            own = axis if letter in right else _contracted(axis, value, axes)
            found[letter] = axes.tie(found[letter], own) if letter in found else own
    for letter in right:
        if len(terms) > 1 and all(letter in term for term in terms) and not any(map(axes.is_weight, node.inputs)):
            axes.attends(node, found[letter])
    for letter in sorted(set(left) - set(right)):
        if left.count(letter) == 1:  # summed over, with nothing that reads it
            axes.blur(found.get(letter, SINGLE))
    return [[found[letter] for letter in right]]


def batch_norm(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """Scale, bias, mean and variance go with the channels."""
    x = axes.of(node.inputs[0])
    if attribute(node, "spatial", 1) == 0:
        raise Unfollowed("its scales belong to places")
    if attribute(node, "training_mode", 0):
        for axis in (x[0], *x[2:]):
            axes.blur(axis)
    channel = axes.tie(x[1], *(axes.of(value)[0] for value in node.inputs[1:]))
    return [[x[0], channel, *x[2:]], *([channel] for _ in node.outputs[1:])]


def instance_norm(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """Each channel is normalised by itself, over space."""
    x = axes.of(node.inputs[0])
    for axis in x[2:]:
        axes.blur(axis)
    channel = axes.tie(x[1], *(axes.of(value)[0] for value in node.inputs[1:]))
    return [[x[0], channel, *x[2:]]]


def layer_norm(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """LayerNormalization, RMSNormalization and their forms in ONNX Runtime: statistics go over the last axes."""
    skip = node.op_type.startswith("Skip")
    x = list(axes.of(node.inputs[0]))
    if skip:
        x = [axes.tie(*parts) for parts in zip(x, axes.of(node.inputs[1]), strict=True)]
    first = positive(attribute(node, "axis", -1), len(x))
    for at in range(first, len(x)):
        axes.blur(x[at])
    for value in node.inputs[2 if skip else 1 :]:
        if value is not None:
            x = [axes.tie(*parts) for parts in zip(*aligned([x, axes.of(value)]), strict=True)]
    kept = x[:first] + [SINGLE] * (len(x) - first)
    return [x if at in (0, 3) and (skip or at == 0) else kept for at in range(len(node.outputs))]


def group_norm(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """Statistics go over the channels of a group: every group loses the same ones, or whole groups go."""
    x = list(axes.of(node.inputs[0]))
    groups = attribute(node, "num_groups")
    for axis in x[2:]:
        axes.blur(axis)
    parameters = [axes.of(value)[0] for value in node.inputs[1:]]
    if isinstance(x[1], Fixed):
        axes.tie(x[1], *parameters)
        return [x]
    grid, whole = x[1].reshape(groups, -1), None
    if groups > 1 and (grid.shape[1] == 1 or axes.choose(node, 2, x[1]) == 1):
        whole = axes.join(grid, 1)
        follow_count(node, "num_groups", whole, axes)
    else:
        axes.blur(axes.join(grid, 0))
    for parameter in parameters:
        if isinstance(parameter, Fixed) or len(parameter) == len(x[1]):
            axes.tie(x[1], parameter)
        elif whole is not None:
            axes.tie(whole, parameter)
        else:
            axes.freeze(parameter, said(node, "it has one entry a group"))
    return [x]


_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """LSTM, GRU and RNN: a hidden unit goes in all gates, in both directions, in state and output."""
    inputs: list[ir.Value | None] = [*node.inputs, *[None] * (8 - len(node.inputs))]
    x, w, r = (axes.of(value) for value in inputs[:3])
    gates = _GATES[node.op_type]
    axes.tie(x[2], axes.reads(w[2]))
    hidden = axes.reads(r[2])
    if isinstance(hidden, Fixed):
        raise Unfollowed("it has a single hidden unit")
    parts = [(w[1], gates), (r[1], gates)]
    if inputs[3] is not None:
        parts.append((axes.of(inputs[3])[1], 2 * gates))
    if inputs[7] is not None:
        parts.append((axes.of(inputs[7])[1], 3))
    for axis, count in parts:
        axes.tie(hidden, axis if isinstance(axis, Fixed) else axes.join(axis.reshape(count, -1), 0))
    samples, steps = (x[0], x[1]) if attribute(node, "layout", 0) else (x[1], x[0])
    axes.freeze(steps, said(node, "it goes along this axis"))
    directions = [axes.of(value)[0] for value in (*inputs[1:4], inputs[7]) if value is not None]
    for state in inputs[5:7]:
        if state is not None:
            found = axes.of(state)
            axes.tie(hidden, found[2])
            axes.tie(samples, found[0 if attribute(node, "layout", 0) else 1])
            directions.append(found[1 if attribute(node, "layout", 0) else 0])
    if inputs[4] is not None:
        axes.tie(samples, axes.of(inputs[4])[0])
    for axis in directions:
        axes.freeze(axis, said(node, "this axis counts directions"))
    follow_count(node, "hidden_size", hidden, axes)
    made = Fixed(said(node, "this axis counts directions"))
    if attribute(node, "layout", 0):
        return [[x[0], x[1], made, hidden], *([x[0], made, hidden] for _ in node.outputs[1:])]
    return [[x[0], made, x[1], hidden], *([made, x[1], hidden] for _ in node.outputs[1:])]
