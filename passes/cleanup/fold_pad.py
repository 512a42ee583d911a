"""Let a convolution or a pooling do the padding of the ``Pad`` in front of it.

``Conv`` pads with zeros, so a ``Pad`` with zeros of the spatial axes adds to its ``pads``. ``AveragePool`` does if
it counts its own padding, or has none yet and can be told to. ``MaxPool`` ignores its padding, which is the same
as a fill that no element is below: −∞, or 0 after ``Relu``. Every window of a pooling keeps at least one element of
the input, since ONNX Runtime wants pads to be smaller than the kernel.

``Conv(Pad(x, 1 on each side), w, pads=0)``  →  ``Conv(x, w, pads=1)``
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxopt.graph import Editor, attribute, sole_reader
from onnxopt.pass_base import NodePass, Refuse
from onnxopt.passes.cleanup._operands import Padding, discard, is_read, numbers, padding, put_numbers, value_range


@dataclass(frozen=True, kw_only=True)
class FoldPad(NodePass):
    """Let a convolution or a pooling do the padding of the ``Pad`` in front of it."""

    name: ClassVar[str] = "fold-pad"
    exact: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = frozenset({"Pad"})

    def rewrite(self, node: ir.Node, editor: Editor) -> str | None:
        source = node.inputs[0]
        reader = sole_reader(node.outputs[0])
        if source is None or reader is None or reader.op_type not in ("Conv", "AveragePool", "MaxPool"):
            return None
        if editor.opset(node) < 7:
            return None  # AveragePool could not count its padding yet
        if reader.domain or reader.graph is not node.graph or reader.inputs[0] is not node.outputs[0]:
            return None
        pads = padding(node, editor)
        rank = editor.rank(source)
        if rank is None and reader.op_type == "Conv":
            rank = editor.rank(reader.inputs[1])
        kernel = numbers(reader, "kernel_shape")
        rank = len(kernel) + 2 if rank is None and kernel else rank
        if pads is None or rank is None:
            raise Refuse(f"how much it pads in front of {reader.op_type} is not known before the model runs")
        before, after = [0] * rank, [0] * rank
        for axis, b, a in zip(pads.axes, pads.before, pads.after, strict=True):
            before[axis], after[axis] = b, a
        if pads.value is None:
            raise Refuse("what it fills in is not known before the model runs")
        if pads.mode != "constant":
            raise Refuse(f"it pads by {pads.mode}, {reader.op_type} with a constant")
        if any((*before[:2], *after[:2])) or min((*before, *after)) < 0:
            return None  # the reader can neither pad batch and channels nor crop
        own = _own_pads(reader, rank - 2)
        if own is None:
            raise Refuse(f"{reader.op_type} pads to a size of its own accord")
        total = tuple(p + q for p, q in zip((*before[2:], *after[2:]), own, strict=True))
        if reader.op_type == "Conv":
            if pads.value != 0:
                raise Refuse(f"it fills in {pads.value}, Conv pads with 0")
        else:
            _check_pooling(reader, source, pads, own, total, editor)
        reader.replace_input_with(0, source)
        put_numbers(reader, "pads", total)
        reader.attributes.pop("auto_pad", None)
        if reader.op_type == "AveragePool":
            put_numbers(reader, "count_include_pad", 1)
        old = node.inputs[1:]
        editor.remove(node)
        discard(*old)
        return f"{reader.op_type} pads now"


def _own_pads(reader: ir.Node, spatial: int) -> tuple[int, ...] | None:
    """What the reader pads itself; ``None`` if that depends on the input."""
    auto = attribute(reader, "auto_pad", "NOTSET")
    if auto == "VALID":
        return (0,) * (2 * spatial)
    own = numbers(reader, "pads", (0,) * (2 * spatial))
    return own if auto == "NOTSET" and own is not None and len(own) == 2 * spatial else None


def _check_pooling(
    reader: ir.Node, source: ir.Value, pads: Padding, own: tuple[int, ...], total: tuple[int, ...], editor: Editor
) -> None:
    """Refuse where a pooling would not do the same with its own padding."""
    kernel, dilations = numbers(reader, "kernel_shape"), numbers(reader, "dilations")
    if kernel is None or dilations is None or attribute(reader, "ceil_mode", 0) != 0 or set(dilations) > {1}:
        raise Refuse(f"{reader.op_type} rounds its size up or is dilated")
    if any(p >= k for p, k in zip(total, (*kernel, *kernel), strict=True)):
        raise Refuse(f"{reader.op_type} cannot pad as much as its kernel is wide")
    if reader.op_type == "AveragePool":
        if pads.value != 0:
            raise Refuse(f"it fills in {pads.value}, AveragePool counts padding as 0")
        if any(own) and attribute(reader, "count_include_pad", 0) != 1:
            raise Refuse("AveragePool leaves its own padding out of the average")
        return
    if any(is_read(indices) for indices in reader.outputs[1:]):
        raise Refuse("MaxPool returns indices, which count the padding")
    found = value_range(source, editor)
    lowest = -math.inf if found is None else found.low
    if pads.value is None or not pads.value <= lowest:
        raise Refuse(f"MaxPool may pick the {pads.value} that it fills in")
