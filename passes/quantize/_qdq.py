"""Apply a plan: put QuantizeLinear and DequantizeLinear where it says, and integers in place of weights.

``x → QuantizeLinear → DequantizeLinear → reader`` for activations, ``integers → DequantizeLinear → reader`` for
weights and other constants, and for the bias of a layer INT32 with the scale ``s_x · s_w`` of its sums. Tensors
and nodes keep their names; only where a pair ends at an output of the model, the pair takes the name over.
A body that reads a tensor from outside gets the DequantizeLinear inside, where its kernels can take it in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor
from onnxopt.passes.cleanup._operands import discard
from onnxopt.passes.quantize._grid import (
    Array,
    Grid,
    bias_grid,
    grid_of_range,
    integer_limits,
    quantize,
    weight_grid,
    within,
)
from onnxopt.passes.quantize._hard import clip_integers, grid_from_knee
from onnxopt.passes.quantize._plan import Layer, Placed, Plan
from onnxopt.passes.quantize._ranges import Bounds, union

_LARGEST_BIAS = 2.0**30
"""Half of what INT32 holds: the sum that it is added to takes room as well."""

Weights = dict[tuple[str, int | None], tuple[Grid, Array]]
"""Weights that were quantized already, to be kept between plans of one model."""


def activation_grids(plan: Plan, ranges: Mapping[str, Bounds]) -> dict[str, Grid]:
    """The grid of each group of tensors, from the range of each tensor; one that is missing has none of its own.

    Raises ``ValueError`` for a group without any range, or one that is not finite.
    """
    settings, grids = plan.settings, {}
    for group, tensors in plan.groups().items():
        known = {name: ranges[name] for name in tensors if name in ranges}
        if not known:
            raise ValueError(f"no range is known of {group}")
        low, high = union(known)
        least = max(plan.tensors[name].limits[0] for name in tensors)
        greatest = min(plan.tensors[name].limits[1] for name in tensors)
        knee = next((plan.tensors[name].knee for name in tensors if plan.tensors[name].knee is not None), None)
        if knee is not None:
            grids[group] = grid_from_knee(knee, min(high, greatest), settings.activation)
            continue
        grid = grid_of_range(max(low, least), min(high, greatest), settings.activation, settings.symmetric)
        grids[group] = grid if settings.symmetric else within(grid, least, greatest)
    return grids


def apply(editor: Editor, plan: Plan, grids: Mapping[str, Grid], weights: Weights | None = None) -> None:
    """Quantize the model of ``editor``, a copy of the one that was planned on, with a grid for each group.

    ``weights`` keeps quantized weights for the next plan of the same model and settings.
    """
    work = _Application(editor, plan, grids, {} if weights is None else weights)
    for name, placed in sorted(plan.tensors.items()):
        work.activation(name, placed)
    for (node, at), group in sorted(plan.constants.items()):
        work.constant(node, at, group)
    work.layers()
    for node in plan.hard:
        clip_integers(editor, work.nodes[node])
    for node in plan.pools:
        editor.replace_node(work.nodes[node], "GlobalAveragePool", work.nodes[node].inputs[:1])


class _Application:
    def __init__(self, editor: Editor, plan: Plan, grids: Mapping[str, Grid], weights: Weights) -> None:
        self.editor, self.plan, self.grids, self.weights = editor, plan, grids, weights
        self.nodes: dict[str, ir.Node] = {}
        self.values: dict[str, ir.Value] = {}
        for graph in editor.graphs():
            self.values.update((v.name, v) for v in graph.inputs if v.name)
            self.values.update(graph.initializers)
            for node in graph:
                self.nodes.setdefault(node.outputs[0].name or "", node)
                self.values.update((v.name, v) for v in node.outputs if v.name)
        self._steps: dict[str, tuple[ir.Value, ir.Value]] = {}
        self._weights: dict[tuple[str, ir.Graph | None], ir.Value] = {}
        self._constants: dict[tuple[Any, ...], ir.Value] = {}

    def activation(self, name: str, placed: Placed) -> None:
        """Put a pair behind the tensor, and let its readers read that."""
        value, group = self.values[name], self.plan.group(name)
        scale, zero = self._grid_values(group)
        graph, producer = value.graph, value.producer()
        assert graph is not None
        integers = self._behind(graph, producer, "QuantizeLinear", [value, scale, zero], value)
        pairs = {graph: self._behind(graph, integers.producer(), "DequantizeLinear", [integers, scale, zero], value)}
        readers = [(self.nodes[node], at) for node, at in sorted(placed.readers)]
        if placed.everywhere:
            readers = [(use.node, use.idx) for use in value.uses() if use.node is not integers.producer()]
        for node, at in readers:
            inside = node.graph
            assert inside is not None
            if inside not in pairs:
                pairs[inside] = self._behind(inside, None, "DequantizeLinear", [integers, scale, zero], value)
            node.replace_input_with(at, pairs[inside])
        if placed.everywhere and value.is_graph_output():
            self.editor.take_over(value, pairs[graph])
            quantizer = integers.producer()
            assert quantizer is not None
            quantizer.replace_input_with(0, value)

    def constant(self, node: str, at: int, group: str | None) -> None:
        """Quantize a constant operand, on its own range or on the grid of a tensor."""
        reader = self.nodes[node]
        value = reader.inputs[at]
        array = self.editor.constant(value)
        assert value is not None
        assert array is not None
        settings = self.plan.settings
        if group is None:
            grid = grid_of_range(array.min(initial=0), array.max(initial=0), settings.activation, settings.symmetric)
        else:
            grid = self.grids[self.plan.group(group)]
        reader.replace_input_with(at, self._dequantized(reader, quantize(array, grid), grid, value.name or ""))
        discard(value)

    def layers(self) -> None:
        """Quantize all weights, then the biases, whose scales depend on those."""
        widths = self._bias_widths()
        grids = {layer.weight: self._weight(layer, widths.get(layer.weight)) for layer in self.plan.layers.values()}
        for layer in self.plan.layers.values():
            grid, integers = grids[layer.weight]
            node = self.nodes[layer.node]
            value = node.inputs[layer.weight_at]
            assert value is not None
            here = (layer.weight, node.graph)
            if here not in self._weights:
                self._weights[here] = self._dequantized(node, integers, grid, layer.weight)
            node.replace_input_with(layer.weight_at, self._weights[here])
            discard(value)
            if layer.bias is not None:
                self._bias(layer, grid)

    def _bias_widths(self) -> dict[str, Array]:
        """The least scale of each output channel of each weight with which the biases fit into INT32."""
        found: dict[str, Array] = {}
        for layer in self.plan.layers.values():
            bias = self.editor.constant(self.values[layer.bias]) if layer.bias is not None else None
            if bias is not None:
                width = np.abs(bias.astype(np.float64).reshape(-1)) / (self._input_scale(layer) * _LARGEST_BIAS)
                found[layer.weight] = np.maximum(found.get(layer.weight, 0.0), width)
        return found

    def _weight(self, layer: Layer, width: Array | None) -> tuple[Grid, Array]:
        known = (layer.weight, layer.axis)
        settings = self.plan.settings
        array = self.editor.constant(self.values[layer.weight])
        assert array is not None
        if known not in self.weights:
            symmetric = integer_limits(settings.weight)[0] < 0
            grid = weight_grid(array, layer.axis, settings.weight, symmetric, settings.reduce_range)
            self.weights[known] = grid, quantize(array, grid)
        grid, integers = self.weights[known]
        if width is None:
            return grid, integers
        least = width if layer.axis is not None else width.max(initial=0.0)
        if (least <= grid.scale).all():
            return grid, integers
        scale = np.maximum(np.broadcast_to(grid.scale, np.shape(grid.scale)), least).astype(np.float32)
        wider = Grid(scale, grid.zero_point, grid.dtype, grid.axis)
        return wider, quantize(array, wider)

    def _bias(self, layer: Layer, weight: Grid) -> None:
        reader = self.nodes[layer.bias_node]
        value = reader.inputs[layer.bias_at]
        array = self.editor.constant(value)
        assert value is not None
        assert array is not None
        array = array.reshape(-1)
        grid = bias_grid(self._input_scale(layer), weight)
        if grid.axis is not None:
            array = np.broadcast_to(array, grid.scale.shape)
        integers = self._dequantized(reader, quantize(array, grid), grid, value.name or "")
        reader.replace_input_with(layer.bias_at, integers)
        discard(value)

    def _input_scale(self, layer: Layer) -> float:
        return float(self.grids[self.plan.group(layer.input)].scale)

    def _grid_values(self, group: str) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point of a group, in the main graph, where every body can read them."""
        if group not in self._steps:
            grid, somebody = self.grids[group], self.editor.model.graph[0]
            self._steps[group] = (
                self._constant(somebody, grid.scale, f"{group}_scale"),
                self._constant(somebody, grid.zero_point, f"{group}_zero_point"),
            )
        return self._steps[group]

    def _dequantized(self, reader: ir.Node, integers: Array, grid: Grid, name: str) -> ir.Value:
        add = self._constant if integers.ndim < 2 else self.editor.add_constant
        parts = [
            add(reader, integers, f"{name}_quantized"),
            self._constant(reader, grid.scale, f"{name}_scale"),
            self._constant(reader, grid.zero_point, f"{name}_zero_point"),
        ]
        attributes = {"axis": grid.axis} if grid.axis is not None else {}
        return self.editor.insert(reader, "DequantizeLinear", parts, attributes, name="")

    def _constant(self, reader: ir.Node, array: Array, name: str) -> ir.Value:
        """A scale, a zero point or a bias; those that are equal are one."""
        if self.editor.in_function(reader):
            return self.editor.add_constant(reader, array, name)
        key = reader.graph, array.dtype.str, array.shape, array.tobytes()
        if key not in self._constants:
            self._constants[key] = self.editor.add_constant(reader, array, name)
        return self._constants[key]

    def _behind(
        self, graph: ir.Graph, producer: ir.Node | None, op: str, inputs: list[ir.Value], like: ir.Value
    ) -> ir.Value:
        """A new node right behind ``producer``, or at the start of ``graph``; its output has the shape of ``like``."""
        new = self.editor.insert(producer or graph[0], op, inputs, name="")
        node = new.producer()
        assert node is not None
        if producer is not None:
            graph.remove(node)
            graph.insert_after(producer, node)
        node.metadata_props.clear()
        node.doc_string = None
        integers = ir.DataType.from_numpy(self.plan.settings.activation)
        new.name = self.editor.fresh(f"{like.name}_{op}")
        dtype = integers if op == "QuantizeLinear" else ir.DataType.FLOAT
        self.editor.facts.learn(new, dtype, self.editor.facts.shape(like))
        return new
