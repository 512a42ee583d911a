"""The layers that can be split, and what is known of them: their geometry, and moments of their inputs and outputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor
from onnxopt.macs import count_macs
from onnxopt.pass_base import Context, Log, Pass, Refuse
from onnxopt.passes.cleanup._linear import Layer
from onnxopt.passes.cleanup._operands import input_at, numbers
from onnxopt.passes.lowrank._forms import Geometry
from onnxopt.passes.lowrank._svd import Problem
from onnxopt.passes.prune._least_squares import Array, Moments
from onnxopt.passes.prune._refits import LARGEST, Refit, dense_layer


@dataclass(frozen=True, eq=False)
class Splittable:
    """A layer and its shape."""

    refit: Refit
    geometry: Geometry

    @property
    def name(self) -> str:
        """How reports call it."""
        return self.refit.name

    @property
    def linear(self) -> Layer:
        """The layer in the model."""
        return linear_layer(self.refit)

    def matrices(self) -> Array:
        """The weight of each group (g × k × n, float64)."""
        matrices: Array = self.refit.product.matrix(self.refit.layer.weights()[0])
        return matrices

    def kernel(self, matrix: Array) -> Array:
        """The weight of a group (k × n) as a kernel (N × C × spatial axes)."""
        return matrix.T.reshape(self.geometry.kernel)

    def problems(self, moments: Moments) -> list[Problem]:
        """What each group is to give."""
        return [Problem(*_moments(moments, at, centred=self.refit.has_bias)) for at in range(self.geometry.groups)]

    def data_free(self) -> list[Problem]:
        """The same where nothing is known but the weights."""
        return [Problem.data_free(weight) for weight in self.matrices()]

    def bias(self, moments: Moments, matrices: Array) -> Array | None:
        """The best bias with these weights (g × k × n), if there is a place for one."""
        if not self.refit.has_bias:
            return None
        rows = max(moments.rows, 1)
        mean = moments.gram[:, -1, :-1] / rows
        bias: Array = moments.cross[:, -1] / rows - np.einsum("gk,gkn->gn", mean, matrices)
        return bias.reshape(-1)


def linear_layer(refit: Refit) -> Layer:
    """The layer of a ``refit`` that is not one by channel."""
    assert isinstance(refit.layer, Layer)
    return refit.layer


def _moments(moments: Moments, at: int, *, centred: bool) -> tuple[Array, Array, float]:
    """``XᵀX``, ``XᵀY`` and ``‖Y‖²`` of a group, or what they are about the means, which are left to a bias."""
    gram, cross, squares = moments.gram[at], moments.cross[at], moments.squares[at]
    if not centred:
        return gram[:-1, :-1], cross[:-1], float(squares.sum())
    rows = max(moments.rows, 1)
    x, y = gram[-1, :-1], cross[-1]
    return (
        gram[:-1, :-1] - np.outer(x, x) / rows,
        cross[:-1] - np.outer(x, y) / rows,
        max(float(squares.sum() - y @ y / rows), 0.0),
    )


def splittable(pass_: Pass, ops: Iterable[str], context: Context, log: Log) -> list[Splittable]:
    """The layers of these operators that filters and gate leave to ``pass_``; reasons against others are logged."""
    editor = context.editor
    macs = count_macs(editor.model).by_output
    found = []
    for node in editor.nodes(ops):
        if not pass_.may_change(node, context):
            continue
        try:
            _check_type(node)
            refit = dense_layer(node, editor)
            found.append(Splittable(refit, _geometry(refit, macs, editor)))
        except Refuse as refusal:
            log.refused(node.name or (node.outputs[0].name or ""), str(refusal))
    return found


def _check_type(node: ir.Node) -> None:
    """Refuse a weight of integers, whether it is used as it is or made to floats first."""
    weight = input_at(node, 1)
    maker = weight.producer() if weight is not None else None
    if maker is not None and maker.op_type in ("DequantizeLinear", "Cast"):
        raise Refuse(f"its weight comes from a {maker.op_type}: it is quantized; run dequantize first")


def _geometry(refit: Refit, macs: Mapping[str, int], editor: Editor) -> Geometry:
    layer = linear_layer(refit)
    node, weight = layer.node, layer.weights()[0]
    g, k, n = refit.product.size
    if not np.isfinite(weight).all():
        raise Refuse("its weight has numbers that are not finite")
    if len(layer.weight.uses()) > 1:
        raise Refuse("its weight is shared with another node")
    if k > LARGEST:
        raise Refuse(f"each output has {k} weights, and this takes memory for the square of at most {LARGEST}")
    spatial = weight.shape[2:] if node.op_type == "Conv" else ()
    channels = weight.shape[1] if node.op_type == "Conv" else k
    if min(n, channels) < 2:
        raise Refuse("it has one channel a group (depthwise): there is nothing to gain" if g > 1 else "it has rank 1")
    strides = numbers(node, "strides") or (1,) * len(spatial)
    count = macs.get(node.outputs[0].name or "", 0)
    return Geometry((n, channels, *spatial), g, tuple(strides), max(count // max(weight.size, 1), 1))


def found_in(editor: Editor, outputs: Collection[str]) -> dict[str, Refit]:
    """The layers of a model, or of a copy of it, that make the tensors of these names."""
    nodes = [node for graph in editor.graphs() for node in graph if node.outputs and node.outputs[0].name in outputs]
    return {node.outputs[0].name or "": dense_layer(node, editor) for node in nodes}
