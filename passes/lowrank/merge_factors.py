"""Merge two linear layers in a row into one: the inverse of splitting a layer.

With nothing between them but the bias of the first, two layers are one:

    W₂ (W₁ x + b₁) + b₂  =  (W₂ W₁) x + (W₂ b₁ + b₂).

For convolutions the kernel of the whole is the full convolution of the two kernels. Along each axis one of the two has
to be pointwise, which is to have a kernel of size 1 and no padding:

- the second: the whole dilates and pads as the first does, and strides as far as both together;
- the first, if it does not stride: the whole strides, dilates and pads as the second does. Where that pads, it puts
  zeros in places that have the bias of the first in the whole, so there must be none.

Of groups the whole has as many as divide those of both, and inside of them the kernels are written out. A
``ConvTranspose`` is merged with a ``Conv`` before or behind it that is pointwise along all axes.

The two are merged where that takes no more weights: with r channels between c and n, two layers with
``r · (c + n) < c · n`` (times the sizes of the kernels) stay two. Exact up to rounding: the product is formed in
float64 and rounded once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, constant_tensor, label, sole_reader
from onnxopt.pass_base import NodePass, Refuse
from onnxopt.passes.cleanup._linear import LAYERS, NODE_BYTES, Layer, layer_before, layer_behind, layer_of, spare_bytes
from onnxopt.passes.cleanup._operands import discard, numbers, put_numbers
from onnxopt.passes.lowrank._stages import Stage, composed
from onnxopt.passes.lowrank._svd import Array


@dataclass(frozen=True, kw_only=True)
class MergeFactors(NodePass):
    """Merge two linear layers in a row into one where that takes no more weights."""

    name: ClassVar[str] = "merge-factors"
    exact: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = LAYERS

    def rewrite(self, node: ir.Node, editor: Editor) -> str | None:
        source = node.inputs[0]
        first = layer_behind(source, editor)
        if source is None or first is None or layer_of(node, editor) is None:
            if _is_quantized(node):
                raise Refuse("it or the layer before it has a quantized weight: merge them before they are quantized")
            return None
        if not self.selects(first.node) or first.node.graph is not node.graph:
            return None
        if sole_reader(source) is not node:
            raise Refuse(f"what {label(first.node)!r} gives is read by others than this too")
        second = layer_before(source, editor)
        if second is None or second.channel_axis != first.channel_axis:
            return None
        return _merge(first, second, editor)


@dataclass(frozen=True)
class _Axis:
    """What a convolution does along a spatial axis."""

    size: int
    stride: int
    dilation: int
    pads: tuple[int, int]
    same: str
    """``SAME_UPPER`` or ``SAME_LOWER`` if that decides how much it pads, else empty."""

    @property
    def is_pointwise(self) -> bool:
        return self.size == 1 and not any(self.pads)


def _merge(first: Layer, second: Layer, editor: Editor) -> str:
    """Merge two layers, the second of which alone reads the first; says what was done."""
    shift = first.weights()[1]
    # a MatMul has no place for a bias, and a Conv does not become a ConvTranspose: the first stays then
    unbiased = second.node.op_type == "MatMul" and second.adding is None and first.bias is not None
    into_first = unbiased or first.node.op_type == "ConvTranspose"
    kept, gone = (first, second) if into_first else (second, first)
    if not into_first and attribute(first.node, "transA", 0):
        raise Refuse(f"{label(first.node)!r} reads its input transposed")
    axes, groups = _merged_axes(first, second, biased=bool(shift.any())), math.gcd(first.groups, second.groups)
    _check_size(first, second, axes, groups)
    attributes = _attributes(kept.node, axes, groups)
    kernel = _product(_stage(first), _stage(second), groups)
    bias = second.scaled_in(np.ones(second.channels_in), shift)[1]
    weight, new_bias = kept.fitted(_written(kernel, kept.node, groups), bias, (gone.weight, gone.bias))
    if weight.nbytes > spare_bytes((kept.weight, gone.weight)) + NODE_BYTES:
        raise Refuse(f"the weight {gone.weight.name!r} of {label(gone.node)!r} is shared, so the file would grow")
    text = f"{first.node.op_type} {label(first.node)!r} and {second.node.op_type} became one {kept.node.op_type}"
    if into_first:
        editor.take_over(second.output, first.output)
    else:
        second.node.replace_input_with(0, first.node.inputs[0])
    for node in (gone.adding, gone.node):
        if node is not None:
            editor.remove(node)
    kept.put(weight, new_bias, editor)
    discard(gone.weight, gone.bias)
    for name, setting in attributes.items():
        kept.node.attributes.pop(name, None)
        if isinstance(setting, str):
            kept.node.attributes[name] = ir.AttrString(name, setting)
        elif setting is not None:
            put_numbers(kept.node, name, setting)
    return text


def _is_quantized(node: ir.Node) -> bool:
    """Whether ``node`` and the node before it are layers with constant weights, at least one of them quantized."""
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    if before is None or before.op_type not in LAYERS or before.domain:
        return False
    weights = [before.inputs[1], node.inputs[1]]
    stored = [_stored(weight) for weight in weights]
    return stored != weights and None not in map(constant_tensor, stored)


def _stored(weight: ir.Value | None) -> ir.Value | None:
    """What is dequantized to ``weight``, if anything is."""
    maker = None if weight is None else weight.producer()
    return maker.inputs[0] if maker is not None and maker.op_type == "DequantizeLinear" else weight


# -- the kernel of the whole ---------------------------------------------------------------------------------------


def _stage(layer: Layer) -> Stage:
    """A layer without its bias as a convolution; a ConvTranspose as that with the same matrix at each place."""
    weight, n = layer.weights()[0], layer.channels_out
    match layer.node.op_type:
        case "Conv":
            return Stage(weight, layer.groups)
        case "ConvTranspose":
            grouped = weight.reshape(layer.groups, -1, *weight.shape[1:]).swapaxes(1, 2)
            return Stage(grouped.reshape(n, -1, *weight.shape[2:]), layer.groups)
        case "Gemm":
            weight *= float(attribute(layer.node, "alpha", 1.0))
            return Stage(weight if attribute(layer.node, "transB", 0) else weight.T)
    return Stage(weight.T)


def _product(first: Stage, second: Stage, groups: int) -> Array:
    """The kernel of both in so many groups, each with a whole number of the groups of either."""
    pairs = zip(np.split(first.kernel, groups), np.split(second.kernel, groups), strict=True)
    inner = first.group // groups, second.group // groups
    return np.concatenate([composed([Stage(a, inner[0]), Stage(b, inner[1])]) for a, b in pairs])


def _written(kernel: Array, node: ir.Node, groups: int) -> Array:
    """A kernel (n × c / groups × spatial) as the weight of ``node``."""
    match node.op_type:
        case "Conv":
            return kernel
        case "ConvTranspose":
            grouped = kernel.reshape(groups, -1, *kernel.shape[1:]).swapaxes(1, 2)
            return grouped.reshape(-1, *grouped.shape[2:])
    return kernel if attribute(node, "transB", 0) else kernel.T


def _check_size(first: Layer, second: Layer, axes: list[_Axis], groups: int) -> None:
    tensors = [constant_tensor(layer.weight) for layer in (first, second)]
    c, r, n = first.channels_in, first.channels_out, second.channels_out
    merged = n * c // groups * math.prod(axis.size for axis in axes)
    if merged > sum(tensor.size for tensor in tensors if tensor is not None):
        raise Refuse(f"{r} channels between {c} and {n}: the two are cheaper")


# -- along the axes ------------------------------------------------------------------------------------------------


def _axes(layer: Layer) -> list[_Axis]:
    """The spatial axes of a layer; a product of matrices has none."""
    tensor, node = constant_tensor(layer.weight), layer.node
    assert tensor is not None
    sizes = tuple(int(size) for size in tensor.shape.numpy())[2:]
    ones, auto = (1,) * len(sizes), str(attribute(node, "auto_pad", "NOTSET"))
    strides, dilations = (numbers(node, name) or ones for name in ("strides", "dilations"))
    pads = (numbers(node, "pads") if auto in ("NOTSET", "") else None) or (0,) * (2 * len(sizes))
    around = zip(pads[: len(sizes)], pads[len(sizes) :], strict=True)
    same = [auto if auto.startswith("SAME") and size > 1 else "" for size in sizes]
    return [_Axis(*each) for each in zip(sizes, strides, dilations, around, same, strict=True)]


def _merged_axes(first: Layer, second: Layer, *, biased: bool) -> list[_Axis]:
    """What the whole does along each axis; ``biased``: the first adds something. Raises ``Refuse``."""
    before, behind = _axes(first), _axes(second)
    for transposed, other, axes in ((first, second, behind), (second, first, before)):
        if transposed.node.op_type != "ConvTranspose":
            continue
        if other.node.op_type != "Conv" or any(axis.stride > 1 or not axis.is_pointwise for axis in axes):
            raise Refuse("a ConvTranspose is merged only with a Conv that is pointwise")
        if transposed is second and biased:
            raise Refuse("not every place behind the ConvTranspose sees the whole bias of the first")
        return before if transposed is first else behind
    return [_merged_axis(*pair, biased=biased) for pair in zip(before, behind, strict=True)]


def _merged_axis(first: _Axis, second: _Axis, *, biased: bool) -> _Axis:
    if second.is_pointwise:
        if first.same and second.stride > 1:
            raise Refuse("how much the first pads would depend on the stride of the second")
        return replace(first, stride=first.stride * second.stride)
    if not first.is_pointwise or first.stride > 1:
        raise Refuse(
            "both have a kernel along the same axis, or the first strides or pads in front of that of the second"
        )
    if biased and (second.same or any(second.pads)):
        raise Refuse("the second pads with zeros, not with the bias of the first")
    if second.stride == 1 and sum(second.pads) > (second.size - 1) * second.dilation:
        raise Refuse("the second has more places than the first, since it pads by more than its kernel spans")
    return second


def _attributes(node: ir.Node, axes: list[_Axis], groups: int) -> dict[str, tuple[int, ...] | int | str | None]:
    """What ``node`` is told to do; ``None`` for what it is no longer told. Raises ``Refuse``."""
    if node.op_type == "ConvTranspose":
        return {"group": groups}
    if node.op_type != "Conv":
        return {"alpha": None}
    same = {axis.same for axis in axes if axis.size > 1 or any(axis.pads)} or {""}
    if len(same) > 1:
        raise Refuse("they pad in two ways")
    auto = same.pop() or None
    return {
        "kernel_shape": tuple(axis.size for axis in axes),
        "strides": tuple(axis.stride for axis in axes),
        "dilations": tuple(axis.dilation for axis in axes),
        "group": groups,
        "auto_pad": auto,
        "pads": None if auto else (*(axis.pads[0] for axis in axes), *(axis.pads[1] for axis in axes)),
    }
