"""If, Loop and Scan: slices go into bodies and come out of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from onnxopt.channels._axes import SINGLE, Axes, Axis, Fixed, Unfollowed
from onnxopt.graph import bodies

Walk = Callable[[ir.Graph], None]


def if_(node: ir.Node, axes: Axes, walk: Walk) -> list[list[Axis]]:
    """Both branches make the same slices."""
    ways = []
    for body in bodies(node):
        walk(body)
        ways.append([_not_broadcast(axes.of(value)) for value in body.outputs])
    out = []
    for pair in zip(*ways, strict=True):
        if len({len(shape) for shape in pair}) > 1:
            raise Unfollowed("its branches make different ranks")
        out.append([axes.tie(*each) for each in zip(*pair, strict=True)])
    return out


def loop(node: ir.Node, axes: Axes, walk: Walk) -> list[list[Axis]]:
    """What is carried from turn to turn has the same slices in each."""
    (body,) = bodies(node)
    for value in body.inputs[:2]:
        axes.computed[value] = []
    carried = [axes.of(value) for value in node.inputs[2:]]
    return _turns(body, body.inputs[2:], carried, body.outputs[1:], axes, walk)


def scan(node: ir.Node, axes: Axes, walk: Walk) -> list[list[Axis]]:
    """The same, and a slice of each scanned input goes in."""
    if axes.editor.opset(node) < 9 or any(name.startswith("scan_") for name in node.attributes):
        raise Unfollowed("it scans along other axes than the first")
    (body,) = bodies(node)
    scanned = int(node.attributes["num_scan_inputs"].as_int())
    states = len(node.inputs) - scanned
    for value, outer in zip(body.inputs[states:], node.inputs[states:], strict=True):
        whole = axes.of(outer)
        axes.freeze(whole[0], "a Scan walks along this axis")
        axes.computed[value] = whole[1:]
    carried = [axes.of(value) for value in node.inputs[:states]]
    return _turns(body, body.inputs[:states], carried, body.outputs, axes, walk)


def _turns(
    body: ir.Graph,
    inputs: Sequence[ir.Value],
    carried: list[list[Axis]],
    outputs: Sequence[ir.Value],
    axes: Axes,
    walk: Walk,
) -> list[list[Axis]]:
    carried = [_not_broadcast(shape) for shape in carried]
    for value, shape in zip(inputs, carried, strict=True):
        axes.computed[value] = shape
    walk(body)
    for value, before in zip(outputs, carried, strict=False):
        after = axes.of(value)
        if len(after) != len(before):
            raise Unfollowed("what it carries changes its rank")
        for pair in zip(before, after, strict=True):
            axes.tie(*pair)
    stacked: list[list[Axis]] = [[Fixed("it counts turns"), *axes.of(value)] for value in outputs[len(carried) :]]
    return carried + stacked


def _not_broadcast(shape: list[Axis]) -> list[Axis]:
    """The same, but that a single slice does not fit to any other axis: it may be one now, and several in the next
    turn or the other branch."""
    return [Fixed(SINGLE.why) if axis is SINGLE else axis for axis in shape]
