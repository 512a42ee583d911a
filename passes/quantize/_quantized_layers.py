"""The layers of a quantized model, each with the float layer that it was made from.

A layer has a weight of integers behind a DequantizeLinear. Its float form is found in the model as it was before by
the name of its output, which quantization keeps; where that is an output of the model, the rounded tensor has it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, sole_reader
from onnxopt.pass_base import Context, Log, Pass, Refuse
from onnxopt.passes.cleanup._operands import input_at, write_constant
from onnxopt.passes.quantize._grid import Array, Grid, dequantize, integer_limits
from onnxopt.passes.quantize._roles import LAYERS


@dataclass(frozen=True)
class Stored:
    """A constant of integers, and the DequantizeLinear that reads it."""

    reader: ir.Node
    integers: Array
    grid: Grid

    @property
    def array(self) -> Array:
        """The floats that it stands for."""
        return dequantize(self.integers, self.grid)

    def write(self, integers: Array, editor: Editor) -> None:
        """Put other integers on the same grid in their place."""
        value = self.reader.inputs[0]
        assert value is not None
        new = np.ascontiguousarray(integers.astype(self.grid.dtype))
        if len(value.uses()) == 1 and not value.is_graph_output():
            write_constant(value, new, editor)
        else:
            self.reader.replace_input_with(0, editor.add_constant(self.reader, new, value.name or "quantized"))


@dataclass(frozen=True)
class QuantizedLayer:
    """A layer of integers, and what it was made from."""

    node: ir.Node
    adding: ir.Node | None
    """The Add that brings the bias to a MatMul."""
    weight: Stored
    bias: Stored | None
    """INT32, on the grid of the sums."""
    float_node: ir.Node
    float_weight: Array
    float_output: str
    """The tensor of the float model that holds the result, bias included."""

    @property
    def input(self) -> str:
        """The tensor that the layer reads, rounded to its grid."""
        return self.node.inputs[0].name or ""  # type: ignore[union-attr]

    @property
    def float_input(self) -> str:
        """The same in the float model."""
        return self.float_node.inputs[0].name or ""  # type: ignore[union-attr]

    @property
    def output(self) -> str:
        """The result, bias included, before it is rounded."""
        return (self.adding or self.node).outputs[0].name or ""

    @property
    def channel_axis(self) -> int:
        """The axis of the output channels of the result."""
        return 1 if self.node.op_type in ("Conv", "ConvTranspose") else -1


def quantized_layers(pass_: Pass, context: Context, log: Log) -> list[QuantizedLayer]:
    """The layers that filters and gate leave to ``pass_``, in the order of the graph; reasons for others are logged."""
    found = []
    sources = _Sources(context.original)
    for node in context.editor.nodes(LAYERS):
        if node.domain or stored(node.inputs[1], context.editor) is None or not pass_.may_change(node, context):
            continue
        try:
            found.append(_layer(node, context.editor, sources))
        except Refuse as refusal:
            log.refused(node.name or node.outputs[0].name or node.op_type, str(refusal))
    if not found and not log.report().refusals:
        log.refused("model", "it has no layer with integer weights that may be changed: run quantize-static first")
    order = {node: at for at, node in enumerate(n for g in context.editor.graphs() for n in g)}
    return sorted(found, key=lambda layer: order[layer.node])


def stored(value: ir.Value | None, editor: Editor) -> Stored | None:
    """The integers behind ``value``, if it is a constant that is stored so."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear" or attribute(node, "block_size", 0):
        return None
    integers, scale, zero = (editor.constant(input_at(node, at)) for at in range(3))
    if integers is None or scale is None:
        return None
    axis = attribute(node, "axis", 1) % max(integers.ndim, 1) if scale.ndim else None
    zero = np.zeros(scale.shape, integers.dtype) if zero is None else zero
    return Stored(node, integers, Grid(scale, zero, integers.dtype, axis))


class _Sources:
    """The nodes of the float model by first output and by name."""

    def __init__(self, model: ir.Model | None) -> None:
        self.editor = Editor(model) if model is not None else None
        self._by_output: dict[str, ir.Node] = {}
        self._by_name: dict[str, list[ir.Node]] = {}
        for node in self.editor.nodes(LAYERS) if self.editor is not None else ():
            self._by_output.setdefault(node.outputs[0].name or "", node)
            self._by_name.setdefault(node.name or "", []).append(node)

    def of(self, node: ir.Node) -> ir.Node | None:
        named = self._by_name.get(node.name or "", []) if node.name else []
        found = named[0] if len(named) == 1 else None
        for name in _names(node.outputs[0]):
            found = self._by_output.get(name, found)
        return found if found is not None and found.op_type == node.op_type else None


def _names(value: ir.Value) -> list[str]:
    """What ``value`` may have been called: its own name, or that of the rounded tensor which took it over."""
    integers = [use.node.outputs[0] for use in value.uses() if use.node.op_type == "QuantizeLinear"]
    rounded = [use.node.outputs[0] for v in integers for use in v.uses() if use.node.op_type == "DequantizeLinear"]
    return [v.name or "" for v in (*rounded, value) if v.is_graph_output() or v is value]


def _layer(node: ir.Node, editor: Editor, sources: _Sources) -> QuantizedLayer:
    source = sources.of(node)
    if source is None or sources.editor is None:
        raise Refuse("its float form is not known: run this in one pipeline with quantize-static")
    weight = stored(node.inputs[1], editor)
    array = sources.editor.constant(source.inputs[1])
    assert weight is not None
    if array is None:
        raise Refuse("it came with integer weights, whose float form is not known")
    steps, zero = weight.grid.aligned(weight.integers.ndim)
    least, greatest = integer_limits(weight.grid.dtype)
    if array.shape != weight.integers.shape:
        raise Refuse("its weight has another shape than before: something between changed it")
    exact = np.clip(array / steps + zero, least, greatest)
    if np.max(np.abs(exact - weight.integers.astype(np.float64)), initial=0.0) > 1.01:
        raise Refuse(
            "its weights were changed before they were rounded, by another lossy pass: "
            "run that in a pipeline of its own"
        )
    adding, float_adding, bias = None, None, stored(input_at(node, 2), editor)
    if node.op_type == "MatMul":
        adding, bias = _added(node, editor)
        float_adding = sole_reader(source.outputs[0]) if adding is not None else None
        if adding is not None and (float_adding is None or float_adding.op_type != "Add"):
            raise Refuse("the Add of its bias is not found in the float model")
    output = (float_adding or source).outputs[0].name or ""
    return QuantizedLayer(node, adding, weight, bias, source, array, output)


def _added(node: ir.Node, editor: Editor) -> tuple[ir.Node | None, Stored | None]:
    """The Add behind a MatMul that brings an integer bias, and this."""
    reader = sole_reader(node.outputs[0])
    if reader is None or reader.op_type != "Add" or reader.domain:
        return None, None
    bias = stored(reader.inputs[1 if reader.inputs[0] is node.outputs[0] else 0], editor)
    known = bias is not None and bias.grid.dtype == np.int32
    return (reader, bias) if known else (None, None)
