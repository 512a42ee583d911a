"""Which layers of a pruned model can be fitted anew, and what each should give.

A layer is to give what the layer of the same name gives in the dense model, in the channels that were kept. Where
nobody reads it but an Add, it is the sum that should be as in the dense model: the layer then makes up for what the
other summand has lost, such as the shortcut of a residual block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.channels import Left, Slices, left
from onnxopt.graph import Editor, attribute, constant_tensor, label, sole_reader
from onnxopt.pass_base import Context, Log, Pass, Refuse
from onnxopt.passes.cleanup._linear import LAYERS, Layer, layer_behind, layer_of
from onnxopt.passes.cleanup._operands import numbers
from onnxopt.passes.prune._batch_norms import BatchNorm, EachChannel
from onnxopt.passes.prune._changes import Changes, State, is_depthwise
from onnxopt.passes.quantize._products import Product
from onnxopt.traverse import depths

Array = np.ndarray[Any, Any]

REFITTED = LAYERS | {"BatchNormalization"}
LARGEST = 4608
"""More weights of an output than this take matrices too large for the memory."""


@dataclass(frozen=True, eq=False)
class Refit:
    """A layer to fit anew."""

    layer: Layer | BatchNorm
    product: Product | EachChannel
    source: ir.Node
    """The same in the dense model."""
    read: Slices | None = None
    """The input channels that were kept; ``None``: all."""
    made: Slices | None = None
    """The output channels that were kept; ``None``: all."""
    left: Mapping[int, Left] = field(default_factory=dict)
    """What is left of the axes of the tensor to come near to."""
    order: tuple[int, ...] = ()
    """How the axes of that are put into the order of its own output; empty: they are in it."""
    fixed: str = ""
    """Why only its bias can be fitted; empty if all can."""
    level: int = 0
    """All that it depends on is in lower ones."""
    total: ir.Value | None = None
    """The sum that is to come near to that of the dense model, instead of its own output,"""
    rest: ir.Value | None = None
    """and what else goes into it."""

    @property
    def name(self) -> str:
        """How reports call it."""
        return label(self.layer.node)

    @property
    def input(self) -> str:
        """The tensor that it reads."""
        return self.layer.node.inputs[0].name or ""  # type: ignore[union-attr]

    @property
    def target(self) -> str:
        """The tensor to come near to, of the same name in the dense model."""
        return (self.total or self.layer.output).name or ""

    @property
    def at(self) -> ir.Node:
        """The node whose output is to come near to that in the dense model."""
        return self.layer.node if self.total is None else self.total.producer()  # type: ignore[return-value]

    @property
    def has_bias(self) -> bool:
        """Whether there is a place for a bias."""
        return self.layer.node.op_type != "MatMul" or self.layer.output is not self.layer.node.outputs[0]

    @property
    def axis(self) -> int:
        """The axis of the output channels."""
        return -1 if self.layer.node.op_type in ("Gemm", "MatMul") else 1

    @property
    def bytes(self) -> int:
        """What its moments take."""
        g, k, n = self.product.size
        return 8 * g * (k + 1) * (k + 1 + n)

    def wanted(self, dense: Array, rest: Array | None = None) -> Array:
        """What its output should be, where the tensor to come near to is ``dense`` in the dense model."""
        for axis, each in self.left.items():
            dense = np.take(dense, each.places(dense.shape[axis]), axis)
        if rest is not None:
            dense = dense - rest
        return dense.transpose(self.order) if self.order else dense

    def is_row_by_row(self, y: Array, x: Array) -> bool:
        """Whether there is a row of ``y``, a tensor like its output or its input, for each of its input ``x``."""
        g, _, n = self.product.size
        return y.shape == x.shape or y.size == self.product.count(x) * g * n

    def matrix(self) -> Array:
        """Weight and bias (g × k+1 × n, float64)."""
        weight, bias = self.layer.weights()
        g, _, n = self.product.size
        return np.concatenate([self.product.matrix(weight), bias.reshape(g, 1, n)], axis=1)

    def outputs(self, y: Array, places: Array) -> Array:
        """The rows (g × r × n) of a tensor like its output that belong to those of its input at ``places``."""
        g, _, n = self.product.size
        if self.axis == 1:
            sample, *at = np.unravel_index(places, (len(y), *y.shape[2:]))
            taken = np.moveaxis(y, 1, -1)[(sample, *at)]
        else:
            taken = y.reshape(-1, y.shape[-1])[places]
        rows: Array = taken.reshape(len(places), g, n).swapaxes(0, 1)
        return rows

    def put(self, matrix: Array, editor: Editor) -> None:
        """Give the layer this weight and bias. Raises ``Refuse`` where they leave the range of its type."""
        weight = self.layer.weights()[0] if self.fixed else self.product.weight(matrix[:, :-1])
        tensor = constant_tensor(self.layer.weight)
        assert tensor is not None
        with np.errstate(over="ignore"):
            new = [np.ascontiguousarray(a).astype(tensor.dtype.numpy()) for a in (weight, matrix[:, -1].reshape(-1))]
        if not all(np.isfinite(a.astype(np.float64)).all() for a in new):
            raise Refuse(f"its new weights would leave the range of {tensor.dtype.name}")
        self.layer.put(new[0], new[1] if self.has_bias else None, editor)


def refits(pass_: Pass, context: Context, log: Log) -> list[Refit]:
    """The layers to fit anew that filters and gate leave to ``pass_``, by level; reasons for others are logged."""
    if context.original is None:
        log.refused("model", "the dense model is not known: run this in one pipeline with the pass that prunes")
        return []
    changes = Changes(context.editor, context.original)
    found = []
    for node in context.editor.nodes(REFITTED):
        if not _is_off(node, changes) or not pass_.may_change(node, context):
            continue
        try:
            found.append(_refit(node, changes, context.editor))
        except Refuse as refusal:
            log.refused(label(node), str(refusal))
    if not found and not log.report().refusals:
        log.refused("model", "its layers read and compute what those of the dense model do: prune it first")
    noted = left(context.editor.model)
    return [replace(refit, left=noted.get(refit.target, {})) for refit in levelled(found, context.editor)]


def dense_layer(node: ir.Node, editor: Editor) -> Refit:
    """``node``, to give what it gives itself. Raises ``Refuse`` if it is no layer that could be fitted anew."""
    if node.op_type == "BatchNormalization":
        norm = BatchNorm(node)
        return Refit(norm, EachChannel(len(norm.weights()[0])), node)
    layer = _whole(node, editor)
    tensor = constant_tensor(layer.weight) if layer is not None else None
    if layer is None or tensor is None:
        raise Refuse("its weight is not a constant matrix or kernel behind its input")
    if node.op_type == "ConvTranspose":
        raise Refuse("a ConvTranspose is not fitted anew")
    return Refit(layer, Product(node, tensor.numpy().shape), node)


def _is_off(node: ir.Node, changes: Changes) -> bool:
    """Whether the layer gives something else than in the dense model, in the channels that were kept."""
    maker = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node.op_type == "BatchNormalization" and maker is not None and maker.op_type in LAYERS:
        return False  # what goes in is fitted itself
    by_channel = is_depthwise(node) or node.op_type == "BatchNormalization"
    harmless = State.CUT if by_channel else State.SAME
    return changes.of(node.inputs[0]) > harmless or changes.by_itself(node) == State.CHANGED


def _refit(node: ir.Node, changes: Changes, editor: Editor) -> Refit:
    refit = dense_layer(node, editor)
    tensor, before, source = constant_tensor(refit.layer.weight), changes.dense_weight(node), changes.source(node)
    assert tensor is not None
    weight = tensor.numpy()
    if before is None or source is None:
        raise Refuse("the dense model has no such layer of this name")
    if before.shape != weight.shape:
        raise Refuse("its weight has another shape than in the dense model, and nothing says what was kept of that")
    fixed = ""
    if np.any((weight == 0) & (before != 0)):
        fixed = "its weights have zeros that are to stay"
    elif isinstance(refit.layer, Layer) and len(refit.layer.weight.uses()) > 1:
        fixed = "its weight is shared with another layer"
    elif (inputs := refit.product.size[1]) > LARGEST:
        fixed = f"each output has {inputs} weights, and this takes memory for the square of at most {LARGEST}"
    if fixed and not refit.has_bias:
        raise Refuse(f"{fixed}, and it has no bias")
    made = 0 if node.op_type in ("Conv", "BatchNormalization") or attribute(node, "transB", 0) else 1
    read_, made_ = changes.places(node, 1 - made), changes.places(node, made)
    return replace(refit, source=source, read=read_, made=made_, fixed=fixed)


def _whole(node: ir.Node, editor: Editor) -> Layer | None:
    """``node`` as a layer, with the Add that brings a bias to a MatMul."""
    layer = layer_of(node, editor)
    adding = sole_reader(node.outputs[0]) if layer is not None and node.op_type == "MatMul" else None
    behind = layer_behind(adding.outputs[0], editor) if adding is not None and adding.op_type == "Add" else None
    return behind if behind is not None and behind.node is node else layer


def levelled(found: Iterable[Refit], editor: Editor) -> list[Refit]:
    """The same by level, with the sums that they go into."""
    summed: list[Refit] = []
    taken: set[ir.Value] = set()
    # of two layers in a sum the one with more weights an output makes up for the other
    for refit in sorted(found, key=lambda refit: -refit.product.size[1]):
        output, order = _moved(refit, editor)
        adding = sole_reader(output)
        rest = None if adding is None else _summand(adding, output, editor)
        if adding is not None and rest is not None and adding.outputs[0] not in taken:
            taken.add(adding.outputs[0])
            summed.append(replace(refit, total=adding.outputs[0], rest=rest, order=order))
        else:
            summed.append(refit)
    depth_of = depths(editor.model, {refit.at for refit in summed})
    levelled = [replace(refit, level=depth_of[refit.at.outputs[0]]) for refit in summed]
    return sorted(levelled, key=lambda refit: (refit.level, refit.name))


def _moved(refit: Refit, editor: Editor) -> tuple[ir.Value, tuple[int, ...]]:
    """The output of a layer behind a Reshape of its rows and a Transpose, if there are; how to undo the latter."""
    output, reader = refit.layer.output, sole_reader(refit.layer.output)
    if reader is not None and reader.op_type == "Reshape" and refit.axis == -1:
        dims = editor.shape(reader.outputs[0])
        if dims and dims[-1] == refit.product.size[2]:
            output, reader = reader.outputs[0], sole_reader(reader.outputs[0])
    if reader is not None and reader.op_type == "Transpose":
        perm = numbers(reader, "perm")
        if perm:
            return reader.outputs[0], tuple(int(axis) for axis in np.argsort(perm))
    return output, ()


def _summand(adding: ir.Node, output: ir.Value, editor: Editor) -> ir.Value | None:
    """What ``adding`` adds to ``output``, if it is computed and as large."""
    if adding.op_type != "Add" or adding.domain or adding.graph is not output.graph:
        return None
    rest = adding.inputs[1 if adding.inputs[0] is output else 0]
    dims, own = editor.shape(rest), editor.shape(output)
    if rest is None or dims is None or own is None or len(dims) != len(own) or constant_tensor(rest) is not None:
        return None
    # names of dims say little behind a Reshape: if the sum is larger than its output, the data will tell
    unlike = any(a != b and isinstance(a, int) and isinstance(b, int) for a, b in zip(dims, own, strict=True))
    return None if unlike else rest
