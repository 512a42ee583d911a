"""Write a layer as several: the stages before the last go in front of it, and it keeps its name and gets the last.

Nodes that shared the weight share those of the stages.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, constant_tensor
from onnxopt.pass_base import Refuse
from onnxopt.passes.cleanup._operands import discard, numbers, put_numbers
from onnxopt.passes.lowrank._forms import carriers
from onnxopt.passes.lowrank._layers import linear_layer
from onnxopt.passes.lowrank._products import LeftProduct, StackProduct, input_place
from onnxopt.passes.lowrank._stages import Stage
from onnxopt.passes.lowrank._svd import Array
from onnxopt.passes.prune._refits import Refit

Setting = int | tuple[int, ...] | str


def put_stages(
    refits: Sequence[Refit], stages: Sequence[Stage], biases: Sequence[Array | None], editor: Editor
) -> list[ir.Node]:
    """Let every node of a layer, all of which read one weight, be computed by ``stages``; returns the nodes of all, in
    order. ``biases`` are those to put in, one for each node.

    Raises ``Refuse`` where numbers leave the range of the weight's type.
    """
    layers = [linear_layer(refit) for refit in refits]
    weight = layers[0].weight
    tensor = constant_tensor(weight)
    assert tensor is not None
    kind = tensor.dtype.numpy()
    arrays = _arrays(refits[0], tensor.numpy().shape, stages)
    with np.errstate(over="ignore"):
        typed = [np.ascontiguousarray(array).astype(kind) for array in arrays]
    if not all(np.isfinite(each.astype(np.float64)).all() for each in typed):
        raise Refuse(f"its factors would leave the range of {tensor.dtype.name}")
    kernels = [editor.add_constant(layers[0].node, array, f"{weight.name}_{at}") for at, array in enumerate(typed)]
    made = [node for refit in refits for node in _write(refit, stages, kernels, editor)]
    discard(weight)
    for layer, bias in zip(layers, biases, strict=True):
        if bias is not None:
            layer.put_bias(bias.astype(kind), editor)
    return made


def _arrays(refit: Refit, shape: tuple[int, ...], stages: Sequence[Stage]) -> list[Array]:
    """The weight of each stage as its operator reads it, in place of one of ``shape``."""
    node, product = linear_layer(refit).node, refit.product
    kernels = [stage.kernel for stage in stages]
    if node.op_type == "Conv" or isinstance(product, LeftProduct):
        return kernels
    if node.op_type == "ConvTranspose":
        first, last = kernels
        return [first.reshape(*first.shape, *[1] * (len(shape) - 2)), last.T.reshape(-1, *shape[1:])]
    if isinstance(product, StackProduct):
        by_matrix = [kernel.reshape(product.size[0], -1, kernel.shape[1]).swapaxes(1, 2) for kernel in kernels]
        return [array.reshape(*shape[:-2], *array.shape[1:]) for array in by_matrix]
    *before, last = kernels
    return [*(kernel.T for kernel in before), last if attribute(node, "transB", 0) else last.T]


def _write(refit: Refit, stages: Sequence[Stage], kernels: Sequence[ir.Value], editor: Editor) -> list[ir.Node]:
    """Let one node be computed by stages with these ``kernels``; returns the nodes."""
    node, at = linear_layer(refit).node, input_place(refit.product)
    value, made = node.inputs[at], []
    settings = _settings(node, stages)
    for stage, (kernel, setting) in enumerate(zip(kernels[:-1], settings[:-1], strict=True)):
        operands = [kernel, value] if at else [value, kernel]
        name = f"{node.name}_{stage}" if node.name else ""
        op = "Conv" if node.op_type in ("Conv", "ConvTranspose") else "MatMul"
        value = editor.insert(node, op, operands, setting, name=name)
        producer = value.producer()
        assert producer is not None
        made.append(producer)
    node.replace_input_with(at, value)
    node.replace_input_with(1 - at, kernels[-1])
    for key, setting_ in settings[-1].items():
        if not isinstance(setting_, str):
            put_numbers(node, key, setting_)
    return [*made, node]


def _settings(node: ir.Node, stages: Sequence[Stage]) -> list[dict[str, Setting]]:
    """The attributes of each stage: what a Conv does along an axis, one stage does."""
    if node.op_type != "Conv":
        return [{} for _ in stages]
    shapes = [stage.kernel.shape for stage in stages]
    axes = len(shapes[0]) - 2
    auto = str(attribute(node, "auto_pad", "NOTSET"))
    strides, dilations = (numbers(node, name) or (1,) * axes for name in ("strides", "dilations"))
    pads = numbers(node, "pads") or (0,) * 2 * axes
    by, groups = carriers(shapes), int(attribute(node, "group", 1))
    found: list[dict[str, Setting]] = []
    for at, stage in enumerate(stages):
        own = [each == at for each in by]
        setting: dict[str, Setting] = {
            "kernel_shape": shapes[at][2:],
            "strides": tuple(s if mine else 1 for s, mine in zip(strides, own, strict=True)),
            "dilations": tuple(d if mine else 1 for d, mine in zip(dilations, own, strict=True)),
            "group": groups * stage.group,
        }
        if auto in ("NOTSET", ""):
            setting["pads"] = tuple(p if mine else 0 for p, mine in zip(pads, own * 2, strict=True))
        else:
            setting["auto_pad"] = auto
        found.append(setting)
    return found
