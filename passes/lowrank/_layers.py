"""The layers that can be split, and what is known of them: their geometry, and moments of their inputs and outputs.

Nodes that read one constant in the same way are one layer, computed at the places of all: their weight is split once,
for what all of them read and give.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, label
from onnxopt.macs import Macs, count_macs
from onnxopt.pass_base import Context, Log, Pass, Refuse
from onnxopt.passes.cleanup._linear import Layer
from onnxopt.passes.cleanup._operands import numbers
from onnxopt.passes.lowrank._forms import Geometry
from onnxopt.passes.lowrank._products import refit_of
from onnxopt.passes.lowrank._svd import Problem
from onnxopt.passes.prune._least_squares import Array, Moments
from onnxopt.passes.prune._refits import LARGEST, Refit


@dataclass(frozen=True, eq=False)
class Splittable:
    """A weight, its shape, and the nodes that read it."""

    refits: tuple[Refit, ...]
    """One for each node, in the order of the graph."""
    geometry: Geometry

    @property
    def names(self) -> list[str]:
        """How reports call its nodes."""
        return [refit.name for refit in self.refits]

    @property
    def nodes(self) -> list[ir.Node]:
        """The nodes in the model."""
        return [linear_layer(refit).node for refit in self.refits]

    def matrices(self) -> Array:
        """The weight of each group (g × k × n, float64)."""
        refit = self.refits[0]
        matrices: Array = refit.product.matrix(refit.layer.weights()[0])
        return matrices

    def kernel(self, matrix: Array) -> Array:
        """The weight of a group (k × n) as a kernel (N × C × spatial axes)."""
        return matrix.T.reshape(self.geometry.kernel)

    def problems(self, moments: Sequence[Moments]) -> list[Problem]:
        """What each group is to give at all nodes, from the moments of each."""
        known = list(zip(self.refits, moments, strict=True))
        return [
            reduce(_together, [_problem(own, at, centred=refit.has_bias) for refit, own in known])
            for at in range(self.geometry.groups)
        ]

    def data_free(self) -> list[Problem]:
        """The same where nothing is known but the weights."""
        return [Problem.data_free(weight) for weight in self.matrices()]

    def biases(self, moments: Sequence[Moments], matrices: Array) -> list[Array | None]:
        """The best bias of each node with these weights (g × k × n), where there is a place for one."""
        return [
            _bias(own, matrices) if refit.has_bias else None for refit, own in zip(self.refits, moments, strict=True)
        ]


def linear_layer(refit: Refit) -> Layer:
    """The layer of a ``refit`` that is not one by channel."""
    assert isinstance(refit.layer, Layer)
    return refit.layer


def _problem(moments: Moments, at: int, *, centred: bool) -> Problem:
    """What a group is to give: all, or what there is about the means, which are left to a bias."""
    gram, cross, squares = moments.gram[at], moments.cross[at], moments.squares[at]
    if not centred:
        return Problem(gram[:-1, :-1], cross[:-1], float(squares.sum()))
    rows = max(moments.rows, 1)
    x, y = gram[-1, :-1], cross[-1]
    return Problem(
        gram[:-1, :-1] - np.outer(x, x) / rows,
        cross[:-1] - np.outer(x, y) / rows,
        max(float(squares.sum() - y @ y / rows), 0.0),
    )


def _together(one: Problem, other: Problem) -> Problem:
    """The problem of the rows of both."""
    return Problem(one.gram + other.gram, one.cross + other.cross, one.energy + other.energy)


def _bias(moments: Moments, matrices: Array) -> Array:
    rows = max(moments.rows, 1)
    mean = moments.gram[:, -1, :-1] / rows
    bias: Array = moments.cross[:, -1] / rows - np.einsum("gk,gkn->gn", mean, matrices)
    return bias.reshape(-1)


def splittable(pass_: Pass, ops: Collection[str], context: Context, log: Log) -> list[Splittable]:
    """The layers of these operators that filters and gate leave to ``pass_``; reasons against others are logged."""
    editor = context.editor
    macs = count_macs(editor.model)
    readers: dict[ir.Value, list[tuple[Refit, Geometry]]] = {}
    for node in _nodes(ops, editor):
        if not pass_.may_change(node, context):
            continue
        try:
            _check_type(node)
            refit = refit_of(node, editor)
            geometry = _geometry(refit, macs, editor)
        except Refuse as refusal:
            log.refused(label(node), str(refusal))
        else:
            readers.setdefault(linear_layer(refit).weight, []).append((refit, geometry))
    found = []
    for known in readers.values():
        try:
            found.append(_shared(known))
        except Refuse as refusal:
            for refit, _ in known:
                log.refused(refit.name, str(refusal))
    return found


def _nodes(ops: Collection[str], editor: Editor) -> Iterator[ir.Node]:
    """The nodes of these operators, in order; an ``Attention`` with weights is one of ONNX Runtime."""
    for graph in editor.graphs():
        for node in graph:
            if node.op_type in ops and node.domain == ("com.microsoft" if node.op_type == "Attention" else ""):
                yield node


def _check_type(node: ir.Node) -> None:
    """Refuse a weight of integers, whether it is used as it is or made to floats first."""
    weight = node.inputs[1]
    maker = weight.producer() if weight is not None else None
    if maker is not None and maker.op_type in ("DequantizeLinear", "Cast"):
        raise Refuse(f"its weight comes from a {maker.op_type}: it is quantized; run dequantize first")


def _geometry(refit: Refit, macs: Macs, editor: Editor) -> Geometry:
    layer = linear_layer(refit)
    node, weight = layer.node, layer.weights()[0]
    g, k, n = refit.product.size
    if not np.isfinite(weight).all():
        raise Refuse("its weight has numbers that are not finite")
    if g * k**2 > LARGEST**2:
        groups = f" in each of {g} groups" if g > 1 else ""
        raise Refuse(f"each output has {k} weights{groups}, and this takes memory for the square of at most {LARGEST}")
    spatial = weight.shape[2:] if node.op_type == "Conv" else ()
    channels = weight.shape[1] if node.op_type == "Conv" else k
    if min(n, channels) < 2:
        by_channel = node.op_type == "Conv" and g > 1
        raise Refuse(
            "it has one channel a group (depthwise): there is nothing to gain" if by_channel else "it has rank 1"
        )
    strides = (numbers(node, "strides") or (1,) * len(spatial)) if spatial else ()
    return Geometry((n, channels, *spatial), g, tuple(strides), max(_places(node, weight.size, macs, editor), 1))


def _places(node: ir.Node, weights: int, macs: Macs, editor: Editor) -> int:
    """How often each of its weights is used."""
    if node.op_type != "Attention":
        return macs.by_output.get(node.outputs[0].name or "", 0) // max(weights, 1)
    dims = editor.shape(node.inputs[0]) or ()  # what it counts has the products of queries and keys as well
    return math.prod(dim if isinstance(dim, int) else macs.at.get(dim or "", 1) for dim in dims[:-1])


def _shared(known: Sequence[tuple[Refit, Geometry]]) -> Splittable:
    """The layer of all nodes that read one weight. Raises ``Refuse`` if not all read it in the same way."""
    refits, geometries = zip(*known, strict=True)
    layers = [linear_layer(refit) for refit in refits]
    weight = layers[0].weight
    if len(weight.uses()) > len(layers) or weight.is_graph_output():
        raise Refuse("its weight is shared with another node, which is not split")
    if len({layer.node.graph for layer in layers}) > 1:
        raise Refuse("its weight is shared with a node in another graph")
    ways = {
        (layer.node.op_type, attribute(layer.node, "transB", 0), type(refit.product), replace(geometry, places=1))
        for layer, (refit, geometry) in zip(layers, known, strict=True)
    }
    if len(ways) > 1:
        raise Refuse("its weight is shared with a node that reads it in another way")
    return Splittable(refits, replace(geometries[0], places=sum(geometry.places for geometry in geometries)))


def found_in(editor: Editor, layers: Iterable[Splittable]) -> list[Splittable]:
    """The same layers in the model of ``editor``, a copy of theirs or what it has become."""
    made = {node.outputs[0].name: node for graph in editor.graphs() for node in graph if node.outputs}
    return [
        replace(layer, refits=tuple(refit_of(made[node.outputs[0].name], editor) for node in layer.nodes))
        for layer in layers
    ]
