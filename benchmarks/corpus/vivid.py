"""The onnx package's ``light`` models with weights that can be told apart.

As shipped their weights are made by ``ConstantOfShape``: every output is one constant, and a wrong fold shows
nowhere. The twins made here hold random initializers instead, listed as graph inputs as their exporter did.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

LARGEST = 150_000_000
"""Bytes of weights: AlexNet, VGG-19 and ZFNet are left out, they are dense layers for the most part."""

Array = np.ndarray[Any, Any]


def make_all(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.onnx")):
        out = target / path.name.replace("light_", "vivid_")
        if not out.exists() and (model := vivid(onnx.load(str(path)))) is not None:
            partial = out.with_suffix(".partial")
            partial.write_bytes(model.SerializeToString(deterministic=True))
            partial.replace(out)


def vivid(model: ModelProto) -> ModelProto | None:
    """The twin, or None if it would be too large."""
    rng = np.random.default_rng(0)
    graph = model.graph
    known = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    made = {n.output[0]: [int(d) for d in known[n.input[0]]] for n in graph.node if n.op_type == "ConstantOfShape"}
    if 4 * sum(int(np.prod(shape)) for shape in made.values()) > LARGEST:
        return None
    rest = [n for n in graph.node if n.op_type != "ConstantOfShape"]
    shapes = {n.input[0] for n in graph.node if n.op_type == "ConstantOfShape"} - {i for n in rest for i in n.input}
    roles = {name: (node, place) for node in rest for place, name in enumerate(node.input)}
    for name, shape in made.items():
        value = _weight(*roles[name], shape, rng) if name in roles else np.zeros(shape, np.float32)
        graph.initializer.append(numpy_helper.from_array(value, name))
        graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    _replace(graph.node, rest)
    _replace(graph.initializer, [t for t in graph.initializer if t.name not in shapes])
    _replace(graph.input, [v for v in graph.input if v.name not in shapes])
    return model


def _weight(node: NodeProto, place: int, shape: list[int], rng: np.random.Generator) -> Array:
    """Values that keep the signal's size through many layers."""
    if node.op_type == "BatchNormalization" and place in (1, 4):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if node.op_type in ("Conv", "Gemm") and place == 1:
        gain = np.sqrt(2 / np.prod(shape[1:])).astype(np.float32)
        return rng.standard_normal(shape, np.float32) * np.float32(gain)
    return rng.uniform(-0.2, 0.2, shape).astype(np.float32)


def _replace(field: Any, items: list[Any]) -> None:
    copies = [type(item).FromString(item.SerializeToString()) for item in items]
    del field[:]
    field.extend(copies)
