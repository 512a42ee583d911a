"""Scales of integer weights that are trained: in the graph that is trained as ``s · exp(t)``, with ``t`` from 0 on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, constant_tensor

Array = np.ndarray[Any, Any]

_NAME = "distill/scale"


def learn_scales(model: ir.Model) -> list[str]:
    """Put a factor on each scale that weights alone are rounded by; returns the initializers that it is made of."""
    editor = Editor(model)
    pairs: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        weight, scale = (node.inputs[0], node.inputs[1]) if node.op_type == "QuantizeLinear" else (None, None)
        if weight is not None and scale is not None and weight.is_initializer() and scale.is_initializer():
            readers = [use.node for use in node.outputs[0].uses()]
            pairs.setdefault(scale, []).extend([node, *readers])
    added = []
    for scale, nodes in pairs.items():
        tensor = constant_tensor(scale)
        if tensor is None or any(use.node not in nodes for use in scale.uses()):
            continue
        log = editor.add_constant(nodes[0], np.zeros(tuple(tensor.shape.numpy()), np.float32), _NAME)
        factor = editor.insert(nodes[0], "Exp", [log], name="")
        steps = editor.insert(nodes[0], "Mul", [scale, factor], name=log.name)
        for use in list(scale.uses()):
            if use.node is not steps.producer():
                use.node.replace_input_with(use.idx, steps)
        added.append(str(log.name))
    return added


def put_scales(trained: ir.Model, editor: Editor) -> int:
    """Put the scales that were trained into the model under edit, with those of biases that follow from them; returns
    how many changed."""
    initializers, moved = editor.model.graph.initializers, 0
    for name, factors in _factors(trained):
        value = initializers[name]
        tensor = constant_tensor(value)
        if tensor is None or (factors == 1).all():
            continue
        for use in list(value.uses()):
            if _is_bias(use.node):
                use.node.replace_input_with(1, editor.add_constant(use.node, tensor.numpy(), name))
        value.const_value = ir.Tensor((tensor.numpy() * factors).astype(np.float32), name=name)
        moved += 1
        for use in list(value.uses()):
            for reader in use.node.outputs[0].uses():
                _rescale_bias(reader.node, factors, editor)
    return moved


def _factors(trained: ir.Model) -> Iterator[tuple[str, Array]]:
    """What each scale is multiplied by."""
    for node in trained.graph:
        if node.op_type == "Mul" and (node.name or "").startswith(_NAME):
            scale, factor = node.inputs
            exponent = factor.producer() if factor is not None else None
            log = constant_tensor(exponent.inputs[0]) if exponent is not None else None
            if scale is not None and log is not None:
                yield str(scale.name), np.exp(log.numpy().astype(np.float64))


def _is_bias(node: ir.Node) -> bool:
    return node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.INT32


def _rescale_bias(layer: ir.Node, factors: Array, editor: Editor) -> None:
    """Integer kernels take the scale of a bias to be that of the inputs times that of the weight: let it be so."""
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    node = bias.producer() if bias is not None else None
    if node is None or node.op_type != "DequantizeLinear" or not _is_bias(node):
        return
    whole, scale = node.inputs[:2]
    tensor, steps = constant_tensor(whole), constant_tensor(scale)
    if whole is None or scale is None or tensor is None or steps is None or factors.size not in (1, steps.size):
        return
    old = steps.numpy()
    new = (old * factors.reshape(old.shape if factors.size > 1 else ())).astype(np.float32)
    if len(scale.uses()) == 1:
        scale.const_value = ir.Tensor(new, name=scale.name)
    else:
        node.replace_input_with(1, editor.add_constant(node, new, str(scale.name)))
    rounded = np.round(tensor.numpy() * (old / new)).astype(tensor.dtype.numpy())
    whole.const_value = ir.Tensor(rounded, tensor.dtype, name=whole.name)
