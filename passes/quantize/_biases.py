"""The bias of a quantized layer: where it is, on what grid, and how to add to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, sole_reader
from onnxopt.pass_base import Refuse
from onnxopt.passes.cleanup._operands import discard, input_at
from onnxopt.passes.quantize._grid import Array, Grid, bias_grid
from onnxopt.passes.quantize._quantized_layers import QuantizedLayer, Stored

_LARGEST = 2**30
"""Half of what INT32 holds: the sum that the bias is added to takes room as well."""


@dataclass(frozen=True)
class Bias:
    """A vector over the output channels that ``reader`` adds: integers, floats, or none yet."""

    reader: ir.Node
    at: int
    channels: int
    integers: Stored | None
    floats: Array | None
    grid: Grid | None
    """The grid of the integers, there already or to come; ``None`` for floats."""

    def rounded(self, shift: Array) -> Array:
        """What ``add`` makes of ``shift``."""
        if self.grid is None:
            return shift.astype(np.float32).astype(np.float64)
        steps = self.grid.scale.astype(np.float64)
        return self._moved(shift) * steps

    def add(self, shift: Array, editor: Editor) -> None:
        """Add ``shift`` (channels) to the bias, rounded to its grid."""
        name = f"{self.reader.outputs[0].name}_bias"
        if self.grid is None:
            assert self.floats is not None
            new = (self.floats.astype(np.float64) + shift).astype(self.floats.dtype)
            old = self.reader.inputs[self.at]
            self.reader.replace_input_with(self.at, editor.add_constant(self.reader, new, name))
            discard(old)
            return
        moved = self._moved(shift)
        if self.integers is not None:
            self.integers.write(self.integers.integers + moved, editor)
            return
        parts = [
            editor.add_constant(self.reader, moved.astype(np.int32), f"{name}_quantized"),
            editor.add_constant(self.reader, self.grid.scale, f"{name}_scale"),
            editor.add_constant(self.reader, self.grid.zero_point, f"{name}_zero_point"),
        ]
        axis = {"axis": 0} if self.grid.axis is not None else {}
        if len(self.reader.inputs) <= self.at:
            self.reader.resize_inputs(self.at + 1)
        value = editor.insert(self.reader, "DequantizeLinear", parts, axis, name="")
        self.reader.replace_input_with(self.at, value)

    def _moved(self, shift: Array) -> Array:
        """By how many steps the integers move."""
        assert self.grid is not None
        old = np.zeros(self.channels) if self.integers is None else self.integers.integers.astype(np.float64)
        steps = self.grid.scale.astype(np.float64)
        return (np.clip(old + np.rint(shift / steps), -_LARGEST, _LARGEST) - old).astype(np.int64)


def bias_of(layer: QuantizedLayer, editor: Editor) -> Bias:
    """The bias of ``layer``. Raises ``Refuse`` if there is none and can be none."""
    holder = layer.node if layer.adding is None else layer.adding
    channels = _channels(layer)
    if layer.bias is not None:
        at = next(i for i, v in enumerate(holder.inputs) if v is layer.bias.reader.outputs[0])
        if len(layer.bias.reader.outputs[0].uses()) > 1:
            raise Refuse("its bias is shared with another layer")
        if layer.bias.integers.shape != (channels,):
            raise Refuse(f"its bias has shape {list(layer.bias.integers.shape)}, not one number for each channel")
        return Bias(holder, at, channels, layer.bias, None, layer.bias.grid)
    if layer.node.op_type == "MatMul":
        return _behind(layer.node, channels, editor)
    value = input_at(layer.node, 2)
    if value is None:
        return Bias(layer.node, 2, channels, None, None, _grid(layer, editor))
    floats = editor.constant(value)
    if floats is None or floats.shape != (channels,):
        raise Refuse("its bias is not a constant with one number for each channel")
    return Bias(layer.node, 2, channels, None, floats, None)


def _behind(node: ir.Node, channels: int, editor: Editor) -> Bias:
    """The float bias that an Add brings to a MatMul, whose product nobody else reads."""
    adding = sole_reader(node.outputs[0])
    if adding is not None and adding.op_type == "Add" and not adding.domain:
        at = 1 if adding.inputs[0] is node.outputs[0] else 0
        floats = editor.constant(adding.inputs[at])
        if floats is not None and floats.shape == (channels,) and floats.dtype == np.float32:
            return Bias(adding, at, channels, None, floats, None)
    raise Refuse("it has no bias, and the integer kernel of a MatMul takes none")


def _grid(layer: QuantizedLayer, editor: Editor) -> Grid:
    """The INT32 grid of the sums of a layer that has no bias."""
    source = layer.node.inputs[0].producer() if layer.node.inputs[0] is not None else None
    scale = editor.constant(source.inputs[1]) if source is not None and source.op_type == "DequantizeLinear" else None
    if scale is None or scale.ndim:
        raise Refuse("it has no bias, and the scale of its input, which one would need, is not known")
    return bias_grid(np.float32(scale), layer.weight.grid)


def _channels(layer: QuantizedLayer) -> int:
    """The number of output channels."""
    shape, node = layer.float_weight.shape, layer.node
    if node.op_type == "ConvTranspose":
        return int(shape[1]) * int(attribute(node, "group", 1))
    return int(shape[0] if node.op_type == "Conv" or attribute(node, "transB", 0) else shape[-1])
