"""Walk over a graph in order, and let the rule of each operator say what becomes of the slices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxopt.channels import _attention, _bodies, _elementwise, _indexed, _layers, _moves, _reshape
from onnxopt.channels._axes import SINGLE, Axes, Axis, Fixed, Repeated, Unfollowed, said
from onnxopt.graph import bodies
from onnxopt.shapes import Dim

Rule = Callable[[ir.Node, Axes], list[list[Axis]]]

_RULES: dict[str, Rule] = {
    **dict.fromkeys(_elementwise.ELEMENTWISE, _elementwise.elementwise),
    **dict.fromkeys(_elementwise.POOLS, _elementwise.pool),
    **dict.fromkeys(_elementwise.REDUCTIONS, _elementwise.reduction),
    **dict.fromkeys(_elementwise.OVER_AXIS, _elementwise.over_axis),
    "Dropout": _elementwise.dropout,
    "LRN": _elementwise.local_response,
    "Shape": _elementwise.shape,
    "Size": _elementwise.size,
    "QuantizeLinear": _elementwise.dequantize,
    "DequantizeLinear": _elementwise.dequantize,
    "Conv": _layers.convolution,
    "ConvTranspose": _layers.convolution,
    "Gemm": _layers.gemm,
    "MatMul": _layers.matmul,
    "Einsum": _layers.einsum,
    "BatchNormalization": _layers.batch_norm,
    "InstanceNormalization": _layers.instance_norm,
    "LayerNormalization": _layers.layer_norm,
    "RMSNormalization": _layers.layer_norm,
    "SimplifiedLayerNormalization": _layers.layer_norm,
    "SkipLayerNormalization": _layers.layer_norm,
    "SkipSimplifiedLayerNormalization": _layers.layer_norm,
    "GroupNormalization": _layers.group_norm,
    "LSTM": _layers.recurrent,
    "GRU": _layers.recurrent,
    "RNN": _layers.recurrent,
    "Attention": _attention.attention,
    "RotaryEmbedding": _attention.rotary,
    "Transpose": _moves.transpose,
    "Squeeze": _moves.squeeze,
    "Unsqueeze": _moves.unsqueeze,
    "Concat": _moves.concat,
    "Split": _moves.split,
    "Slice": _moves.slice_,
    "Gather": _moves.gather,
    "Pad": _moves.pad,
    "Expand": _moves.expand,
    "ConstantOfShape": _moves.constant_of_shape,
    "Tile": _moves.tile,
    "Resize": _moves.resize,
    "Upsample": _moves.resize,
    "DepthToSpace": _moves.depth_to_space,
    "SpaceToDepth": _moves.space_to_depth,
    "GridSample": _indexed.grid_sample,
    "RoiAlign": _indexed.pool_of_regions,
    "MaxRoiPool": _indexed.pool_of_regions,
    "ReverseSequence": _indexed.reverse_sequence,
    "Trilu": _indexed.triangle,
    "Compress": _indexed.compress,
    "GatherElements": _indexed.gather_elements,
    "ScatterElements": _indexed.scatter_elements,
    "GatherND": _indexed.gather_nd,
    "ScatterND": _indexed.scatter_nd,
    "Reshape": _reshape.reshape,
    "Flatten": _reshape.flatten,
}
_OF_MICROSOFT: dict[str, Rule] = {
    **dict.fromkeys(("BiasGelu", "FastGelu", "QuickGelu"), _elementwise.elementwise),
    "SkipLayerNormalization": _layers.layer_norm,
    "SkipSimplifiedLayerNormalization": _layers.layer_norm,
    "SimplifiedLayerNormalization": _layers.layer_norm,
    "QuantizeLinear": _elementwise.dequantize,
    "DequantizeLinear": _elementwise.dequantize,
    "Attention": _attention.self_attention,
    "MultiHeadAttention": _attention.multi_head_attention,
    "GroupQueryAttention": _attention.grouped_attention,
    "RotaryEmbedding": _attention.rotary,
}
_REPEATED = {
    *("Dropout", "Gemm", "InstanceNormalization", "MatMul", "Reshape", "Shape", "Softmax", "Squeeze", "Transpose"),
    *("Unsqueeze", *_elementwise.ELEMENTWISE, *_elementwise.REDUCTIONS),
}
"""Operators whose rules allow for axes of unknown size along which slices are repeated."""
_WITH_BODIES = {"If": _bodies.if_, "Loop": _bodies.loop, "Scan": _bodies.scan}


def walk(graph: ir.Graph, axes: Axes) -> None:
    """Visit every node of ``graph`` and of the bodies in it."""
    for node in graph:
        if node.op_type == "Constant" and node.domain == "":
            continue
        if node.inputs and all(value is None or axes.is_weight(value) for value in node.inputs):
            axes.derived.update(node.outputs)
        if node.op_type not in _REPEATED:
            for axis in (axis for value in node.inputs if value is not None for axis in axes.computed.get(value, ())):
                if isinstance(axis, Repeated):
                    axes.freeze(axis, axis.why)
        seen: set[ir.Value] = set()
        axes.seen = seen
        try:
            out = _follow(node, axes)
        except Unfollowed as unfollowed:
            _give_up(node, said(node, str(unfollowed)), axes)
            continue
        for value in node.inputs:
            if value is not None and value not in seen:
                axes.numbers.setdefault(value, said(node, f"it takes numbers from {value.name!r}"))
        for value, found in zip(node.outputs, out, strict=False):
            dims = axes.editor.shape(value) or [None] * len(found)
            axes.computed[value] = [_settled(node, axis, dim, axes) for axis, dim in zip(found, dims, strict=True)]
        for value in node.outputs[len(out) :]:
            _fix(value, said(node, "this output is not followed"), axes)


def _follow(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    if node.domain in ("", "ai.onnx"):
        if node.op_type in _WITH_BODIES:
            return _WITH_BODIES[node.op_type](node, axes, lambda body: walk(body, axes))
        rule = _RULES.get(node.op_type)
    else:
        rule = _OF_MICROSOFT.get(node.op_type) if node.domain == "com.microsoft" else None
    if rule is None:
        raise Unfollowed("no rule says which slices of this operator go together")
    try:
        out = rule(node, axes)
    except (IndexError, ValueError, TypeError) as error:  # a node that ONNX Runtime will refuse as well
        raise Unfollowed("its shapes do not fit together") from error
    for value, found in zip(node.outputs, out, strict=False):
        dims = axes.editor.shape(value)
        if dims is not None and (len(dims) != len(found) or any(map(_differ, found, dims))):
            raise Unfollowed("its shapes do not fit together")
    return out


def _differ(axis: Axis, dim: Dim) -> bool:
    return isinstance(dim, int) and (dim != len(axis) if isinstance(axis, np.ndarray) else axis is SINGLE and dim != 1)


def _settled(node: ir.Node, axis: Axis, dim: Dim, axes: Axes) -> Axis:
    """The same, but that a single slice cannot go: without it there would be nothing left."""
    if isinstance(axis, Fixed) and dim == 1:
        return SINGLE
    if isinstance(axis, np.ndarray) and len(axis) < 2:
        axes.freeze(axis, said(node, "it makes a single slice"))
        return SINGLE if len(axis) else Fixed(said(node, "it makes no slice"))
    return axis


def _give_up(node: ir.Node, why: str, axes: Axes) -> None:
    """Nothing that the node reads can be cut, nor what it makes."""
    axes.freeze_all(node.inputs, why)
    for body in bodies(node):
        for inner in (inner for g in (body, *body.subgraphs()) for inner in g):
            axes.freeze_all((v for v in inner.inputs if v in axes.computed or axes.is_weight(v)), why)
        axes.freeze_all((v for v in body.outputs if v in axes.computed or axes.is_weight(v)), why)
    for value in node.outputs:
        _fix(value, why, axes)


def _fix(value: ir.Value, why: str, axes: Axes) -> None:
    dims = axes.editor.shape(value)
    if dims is not None:
        axes.computed[value] = [SINGLE if dim == 1 else Fixed(why) for dim in dims]
