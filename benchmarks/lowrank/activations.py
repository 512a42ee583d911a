"""What layers read and give, by ONNX Runtime with its optimisations off."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, helper

from benchmarks import judge
from benchmarks.lowrank.cases import Feed
from benchmarks.lowrank.layers import Array, Layer, is_conv, setting


def read(model: ModelProto, names: Sequence[str], feeds: Iterable[Feed]) -> Iterator[dict[str, Array]]:
    """These tensors for each feed."""
    shown = copy.deepcopy(model)
    there = {output.name for output in model.graph.output} | {port.name for port in model.graph.input}
    new = [name for name in dict.fromkeys(names) if name not in there]
    shown.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in new)
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(shown, Path(folder) / "shown.onnx")
        session = judge.session(Path(folder) / "shown.onnx", "ORT_DISABLE_ALL")
    for feed in feeds:
        asked = [name for name in dict.fromkeys(names) if name not in feed]
        yield {**feed, **dict(zip(asked, session.run(asked, feed), strict=True))}


def grams(model: ModelProto, chosen: Sequence[Layer], feeds: Iterable[Feed]) -> dict[str, Array]:
    """``XᵀX`` (k × k) of each layer, with a row of ``X`` for each place of its output."""
    found: dict[str, Array] = {}
    for arrays in read(model, [layer.node.input[0] for layer in chosen], feeds):
        for layer in chosen:
            rows = patches(layer, arrays[layer.node.input[0]])
            found[layer.name] = found.get(layer.name, 0) + (rows.T @ rows).astype(np.float64)
    return found


def patches(layer: Layer, x: Array) -> Array:
    """The rows (k) that a layer multiplies by its matrix."""
    spatial = layer.kernel.shape[2:]
    axes = range(2, 2 + len(spatial))
    if not spatial:
        return x.reshape(-1, x.shape[-1])
    if setting(layer.node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise ValueError(f"{layer.name} pads by itself")
    pads = setting(layer.node, "pads", [0] * 2 * len(spatial))
    strides, dilations = (setting(layer.node, name, [1] * len(spatial)) for name in ("strides", "dilations"))
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[: len(spatial)], pads[len(spatial) :], strict=True)])
    wide = [(size - 1) * dilation + 1 for size, dilation in zip(spatial, dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, wide, axis=tuple(axes))
    steps = [slice(None, None, step) for step in (*strides, *dilations)]
    windows = np.moveaxis(windows[(slice(None), slice(None), *steps)], 1, 1 + len(spatial))
    return windows.reshape(-1, math.prod(layer.shape[1:]))


def places(model: ModelProto, chosen: Sequence[Layer], feed: Feed) -> dict[str, tuple[int, int]]:
    """At how many places of its input and its output each layer computes, for one sample."""
    names = [name for layer in chosen for name in (layer.node.input[0], layer.node.output[0])]
    (arrays,) = read(model, names, [feed])

    def count(layer: Layer, name: str) -> int:
        shape = arrays[name].shape
        return math.prod(shape[2:] if is_conv(layer.node) else shape[1:-1])

    return {layer.name: (count(layer, layer.node.input[0]), count(layer, layer.node.output[0])) for layer in chosen}
