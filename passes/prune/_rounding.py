"""Numbers of channels that the kernels of ONNX Runtime want.

Its kernels of convolutions keep channels in blocks of 8 or 16, fill up what is missing, and take numbers that 4 does
not divide in another, slow form. A convolution in groups is blocked only if each of its groups reads and makes whole
blocks; else its groups are products of matrices one by one, for which no number is better than another. Products of
matrices work on 8 columns or more.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.channels import Group, Slices
from onnxopt.graph import constant_tensor
from onnxopt.nodes import attribute

_BLOCK = 16
_ALIGNED = 4
_COLUMNS = 8
_LAYERS = ("Conv", "ConvTranspose")


def wanted_multiple(group: Group) -> int:
    """What the number of channels that are left of ``group`` is to be a multiple of: a power of two."""
    found = [multiple for value, axis, index in group.outputs if axis == 1 for multiple in _of(value, index)]
    if found:
        return max(found)
    layers = any(node.op_type in _LAYERS for member in group.members for node in member.nodes)
    return _BLOCK if layers else _COLUMNS


def _of(value: ir.Value, index: Slices) -> Iterator[int]:
    """For each convolution that makes or reads ``value``, of which each channel has a row of ``index``."""
    rows = index.shape[1]
    producer = value.producer()
    made = [] if producer is None else [producer]
    read = [use.node for use in value.uses() if use.idx == 0]
    for node in (*made, *read):
        if node.op_type in _LAYERS:
            yield _whole_blocks(rows)
            groups = attribute(node, "group", 1)
            if rows % groups == 0 and _width(node, value, groups) >= _BLOCK:
                yield _whole_blocks(rows // groups)


def _whole_blocks(rows: int) -> int:
    """The least power of two of channels, each of so many slices, that fill a block and are an aligned number."""
    multiple = 1
    while multiple * rows < _BLOCK or multiple * rows % _ALIGNED:
        multiple *= 2
    return multiple


def _width(node: ir.Node, value: ir.Value, groups: int) -> int:
    """How many slices of ``value``, which it makes or reads, each group of a convolution has; 0 if unknown."""
    weight = constant_tensor(node.inputs[1])
    if weight is None:
        return 0
    first, second = weight.shape.numpy()[:2]
    whole = (value is node.outputs[0]) == (node.op_type == "Conv")  # the axis that has the slices of all groups
    return int(first // groups if whole else second)
