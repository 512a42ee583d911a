"""Scale the channels between two layers so that the weights on both sides have equal ranges.

A weight that is quantized with one scale for the whole tensor loses most in the channels whose weights are small.
For a channel that one layer makes and another reads, with nothing but positively homogeneous functions between
(``f(s x) = s f(x)`` for ``s > 0``: Relu, LeakyRelu, pooling, reshaping, sums of equally scaled terms),

    W₂ f(W₁ x + b₁) = (W₂ S⁻¹) f(S W₁ x + S b₁),    S = diag(√(r₂ / r₁)),

where ``r₁[c]`` and ``r₂[c]`` are the largest magnitudes of the weights that make and read channel ``c``. Outputs are
kept up to rounding; what changes is how well they survive quantization. Depthwise convolutions are layers like others.
Fold normalizations first (``fold-batch-norm``). Channels behind Sigmoid, HardSwish or Clip stay as they are, since
these are not homogeneous.

Source: Nagel, van Baalen, Blankevoort and Welling, "Data-Free Quantization Through Weight Equalization and Bias
Correction", ICCV 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, constant_tensor, label
from onnxopt.pass_base import Context, Log, Pass, Refuse, Report
from onnxopt.passes.cleanup._linear import Layer, layer_of
from onnxopt.passes.quantize._equalization import Coupling, equalizing_scales
from onnxopt.passes.quantize._grid import Array
from onnxopt.passes.quantize._scaling import Group, group_behind, layer_behind_product

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

_WORTH_IT = 0.05
"""Factors nearer to 1 than 2 to this power are left alone: the channels are equal enough."""


@dataclass(frozen=True, kw_only=True)
class EqualizeChannels(Pass):
    """Scale the channels between layers so that the weights on both sides have equal ranges."""

    name: ClassVar[str] = "equalize-channels"
    exact: ClassVar[bool] = False
    keeps_function: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = _LAYERS

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        groups = self._groups(context, log)
        layers = {layer.node: layer for group in groups for layer in (*group.layers, *(r.layer for r in group.readers))}
        index = {node: at for at, node in enumerate(layers)}
        matrices = [magnitudes(layer) for layer in layers.values()]
        couplings = [
            Coupling([index[x.node] for x in g.layers], [(index[r.layer.node], r.inner) for r in g.readers])
            for g in groups
        ]
        for group, scale in zip(groups, equalizing_scales(matrices, couplings), strict=True):
            name = label(group.layers[0].node)
            moved = float(np.max(np.abs(np.log2(scale)), initial=0.0))
            if moved <= _WORTH_IT:
                log.refused(name, "its channels have equal ranges already")
            elif context.gate.allows(self.name, name):
                group.scale(scale, context.editor)
                readers = ", ".join(label(r.layer.node) for r in group.readers)
                low, high = float(np.min(scale)), float(np.max(scale))
                log.changed(name, f"its channels, read by {readers}, are scaled by {low:.3g} to {high:.3g}")
        return log.report()

    def _groups(self, context: Context, log: Log) -> list[Group]:
        """The groups that may be scaled, each once; the reasons for the others go into the log."""
        editor = context.editor
        found: list[Group] = []
        seen: set[ir.Node] = set()
        for graph in editor.graphs():
            for node in graph:
                layer = layer_of(node, editor) if node.op_type in _LAYERS and not node.domain else None
                if layer is None or node in seen or not self.selects(node):
                    continue
                try:
                    group = _group_of(layer, editor)
                except Refuse as refusal:
                    log.refused(label(node), str(refusal))
                    continue
                seen.update(other.node for other in group.layers)
                others = [other for other in group.affine if other.op_type not in ("Add", "Sub")]
                if others:
                    log.refused(label(node), f"its channels are also made by {label(others[0])!r}")
                elif all(self.selects(other) for other in group.nodes()):
                    found.append(group)
        return found


def _group_of(layer: Layer, editor: Editor) -> Group:
    whole = layer_behind_product(layer.node, editor) or layer
    rank = editor.rank(whole.output)
    if rank is None:
        raise Refuse(f"the rank of {whole.output.name!r} is unknown")
    return group_behind(whole.output, layer.channels_out, rank + whole.channel_axis, editor)


def magnitudes(layer: Layer) -> Array:
    """The largest magnitude of the weights between each output and each input (outputs × inputs)."""
    tensor = constant_tensor(layer.weight)
    assert tensor is not None
    weight = np.abs(tensor.numpy().astype(np.float64))
    if layer.node.op_type == "MatMul" or (layer.node.op_type == "Gemm" and not attribute(layer.node, "transB", 0)):
        return weight.T.copy()
    if layer.node.op_type == "Gemm":
        return weight
    weight = weight.reshape(*weight.shape[:2], -1).max(axis=2, initial=0.0)
    groups = layer.groups
    found = np.zeros((layer.channels_out, layer.channels_in))
    outs, ins = layer.channels_out // groups, layer.channels_in // groups
    for g in range(groups):
        block = found[g * outs : (g + 1) * outs, g * ins : (g + 1) * ins]
        if layer.node.op_type == "Conv":
            block[:] = weight[g * outs : (g + 1) * outs]
        else:
            block[:] = weight[g * ins : (g + 1) * ins].T
    return found
