"""Layers of an ONNX file, and several in place of one. On raw protobuf, so that it shares nothing with the product.

A layer is seen as a convolution with a kernel (N × C × spatial axes); a product of matrices has no spatial axes. Its
matrix is (k × n): a row for each number that an output is a sum over.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Layer:
    node: NodeProto
    kernel: Array

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def shape(self) -> tuple[int, ...]:
        """N × C × spatial axes"""
        return tuple(self.kernel.shape)

    @property
    def matrix(self) -> Array:
        """In float64."""
        return np.asarray(self.kernel.reshape(len(self.kernel), -1).T, np.float64)


def layers(model: ModelProto, ops: Sequence[str] = ("Conv", "MatMul", "Gemm")) -> list[Layer]:
    """Those of constant weights in one group, with more than one channel on either side."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type in ops and node.input[1] in stored and setting(node, "group", 1) == 1:
            weight = numpy_helper.to_array(stored[node.input[1]])
            kernel = weight if is_conv(node) or setting(node, "transB", 0) else weight.T
            if (is_conv(node) or kernel.ndim == 2) and min(kernel.shape[:2]) > 1:
                found.append(Layer(node, kernel))
    return found


def is_conv(node: NodeProto) -> bool:
    return bool(node.op_type == "Conv")


def setting(node: NodeProto, name: str, default: Any = None) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def thin(first: Array, second: Array, kernel: Array) -> list[Array]:
    """Two kernels in place of ``kernel``: factors (k × r) and (r × n) of its matrix."""
    n, _, *spatial = kernel.shape
    rank = first.shape[1]
    return [first.T.reshape(rank, -1, *spatial), second.T.reshape(n, rank, *[1] * len(spatial))]


def split(model: ModelProto, stages: Mapping[str, Sequence[Array]]) -> ModelProto:
    """A copy in which layers, by the names of their nodes, are done in stages with these kernels."""
    found = copy.deepcopy(model)
    nodes = [copy.deepcopy(node) for node in found.graph.node]
    del found.graph.node[:]
    for node in nodes:
        found.graph.node.extend(_staged(node, stages[node.name], found.graph) if node.name in stages else [node])
    used = {name for node in found.graph.node for name in node.input}
    kept = [tensor for tensor in found.graph.initializer if tensor.name in used]
    del found.graph.initializer[:]
    found.graph.initializer.extend(kept)
    return found


def _staged(node: NodeProto, kernels: Sequence[Array], graph: onnx.GraphProto) -> list[NodeProto]:
    """A chain that strides and pads where the kernel is larger than 1, and has the bias at its end."""
    carrier = next((at for at, kernel in enumerate(kernels) if np.prod(kernel.shape[2:]) > 1), 0)
    settings = [a for a in node.attribute if a.name != "kernel_shape"]
    value, found = node.input[0], []
    for at, kernel in enumerate(kernels):
        last, name = at == len(kernels) - 1, f"{node.name}/{at}"
        as_it_is = is_conv(node) or (last and setting(node, "transB", 0))
        weight = np.ascontiguousarray(kernel if as_it_is else kernel.T, np.float32)
        graph.initializer.append(numpy_helper.from_array(weight, f"{name}/weight"))
        op = node.op_type if last or is_conv(node) else "MatMul"
        inputs = [value, f"{name}/weight", *(node.input[2:] if last else ())]
        value = node.output[0] if last else f"{name}/y"
        made = helper.make_node(op, inputs, [value], node.name if last else name)
        if at == carrier if is_conv(node) else last:
            made.attribute.extend(settings)
        found.append(made)
    return found


def doubled(model: ModelProto, chosen: Sequence[Layer], ending: str) -> ModelProto:
    """A copy in which each of these layers has a double that reads the same and is an output of the model.

    Node and output are called as the layer's with ``ending``; weights are copies.
    """
    found = copy.deepcopy(model)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for layer in chosen:
        node = copy.deepcopy(layer.node)
        node.name, node.output[0] = node.name + ending, node.output[0] + ending
        for at, name in enumerate(node.input):
            if name in stored:
                own = copy.deepcopy(stored[name])
                own.name = node.input[at] = f"{node.name}/{at}"
                found.graph.initializer.append(own)
        found.graph.node.append(node)
        found.graph.output.append(helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None))
    return found
