"""Weights drawn anew, as what reads them wants them.

=================================  ================================================================================
read as                            drawn
=================================  ================================================================================
kernel before ReLU and its kin     normal, variance ``2 / fan_in`` (He et al., 2015)
another kernel                     normal, variance ``2 / (fan_in + fan_out)`` (Glorot and Bengio, 2010)
recurrent kernel                   orthogonal, gate by gate (Saxe, McClelland and Ganguli, 2014)
table of a look-up                 normal, variance ``1 / width``
scale, variance                    1
bias, mean                         0; of the forget gate of an LSTM 1 (Gers, Schmidhuber and Cummins, 2000)
slope of PRelu                     0.25
=================================  ================================================================================

Kernels whose product is added to a residual stream without being normalized are divided by the root of the number of
such branches, so that the stream does not grow with depth (Radford et al., "Language Models are Unsupervised Multitask
Learners", 2019).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, sole_reader
from onnxopt.passes.distill._blocks import ACTIVATIONS
from onnxopt.passes.prune._branches import Branches
from onnxopt.train.parameters import find_parameters

Array = np.ndarray[Any, Any]

_RECTIFIERS = ACTIVATIONS - {"Sigmoid", "Softsign", "Tanh", "HardSigmoid"}
_BETWEEN = frozenset({"Add", "BatchNormalization", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_SCALES: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 4), "EmbedLayerNormalization": (5,), "GroupNormalization": (1,),
    "InstanceNormalization": (1,), "LayerNormalization": (1,), "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,), "SkipLayerNormalization": (2,), "SkipSimplifiedLayerNormalization": (2,),
    "Mul": (0, 1), "Div": (0, 1),
}  # fmt: skip
_BIASES: dict[str, tuple[int, ...]] = {
    "Add": (0, 1), "BatchNormalization": (2, 3), "Conv": (2,), "ConvTranspose": (2,), "DeformConv": (3,),
    "EmbedLayerNormalization": (6,), "FusedConv": (2,), "FusedGemm": (2,), "Gemm": (2,), "GroupNormalization": (2,),
    "InstanceNormalization": (2,), "LayerNormalization": (2,), "LSTM": (7,), "SkipLayerNormalization": (3, 4),
    "SkipSimplifiedLayerNormalization": (3,), "Sub": (0, 1),
}  # fmt: skip
_TABLES: dict[str, tuple[int, ...]] = {"EmbedLayerNormalization": (2, 3, 4), "Gather": (0,)}
_PASS_ON = frozenset({"Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Transpose"})
_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_FORGET = 2
"""The place of the forget gate among those of an LSTM: input, output, forget, cell."""


@dataclass(frozen=True)
class Drawn:
    """A weight drawn anew."""

    name: str
    array: Array
    how: str
    readers: tuple[ir.Node, ...]


def drawn(model: ir.Model, seed: int) -> Iterator[Drawn]:
    """Each parameter of ``model``, and the statistics of its normalizations, drawn anew; each depends on the seed and
    its own name alone. Raises ``OptionError`` if there are none."""
    editor = Editor(model)
    constants = model.graph.initializers
    names = find_parameters(model)
    for node in model.graph:
        if node.op_type == "BatchNormalization":
            names += [str(value.name) for value in node.inputs[3:5] if value is not None and value.name in constants]
    branches = Branches(editor)
    sums = {each.add for each in branches.found} | {node for node, _ in branches.refused}
    for name in dict.fromkeys(names):
        value = constants[name]
        tensor = value.const_value
        if tensor is None:
            continue
        shape = tuple(tensor.shape.numpy())
        node, place, moved = _reader(value)
        generator = np.random.default_rng((seed, zlib.crc32(name.encode())))
        array, how = _draw(node, place, shape, moved, generator)
        if how in ("Kaiming", "Xavier") and _meets(node.outputs[0], sums):
            array /= math.sqrt(len(sums))
        readers = tuple(use.node for use in value.uses())
        yield Drawn(name, np.asarray(array, tensor.dtype.numpy()), how, readers)


def _reader(value: ir.Value) -> tuple[ir.Node, int, bool]:
    """What reads a constant as a weight, at which of its inputs, and whether two axes are exchanged before."""
    moved = False
    while True:
        use = next(iter(value.uses()))
        node = use.node
        if node.op_type not in _PASS_ON or not node.outputs[0].uses():
            return node, use.idx, moved
        if node.op_type == "Transpose":
            moved = not moved
        value = node.outputs[0]


def _draw(
    node: ir.Node, place: int, shape: Sequence[int], moved: bool, generator: np.random.Generator
) -> tuple[Array, str]:
    op = node.op_type
    if place in _SCALES.get(op, ()):
        return np.ones(shape), "ones"
    if place in _BIASES.get(op, ()) or (op in _GATES and place == 3):
        array = np.zeros(shape)
        if op == "LSTM" and place == 3 and shape:
            hidden = shape[-1] // 8
            array[..., _FORGET * hidden : (_FORGET + 1) * hidden] = 1
        return array, "zeros"
    if op == "PRelu":
        return np.full(shape, 0.25), "0.25"
    if place in _TABLES.get(op, ()):
        return generator.standard_normal(shape) / math.sqrt(shape[-1]), "normal"
    if op in _GATES and len(shape) == 3:
        gates = _GATES[op]
        pieces = (shape[0], gates, shape[1] // gates, shape[2])
        if place == 2:
            return _orthogonal(pieces, generator).reshape(shape), "orthogonal"
        return generator.standard_normal(shape) * math.sqrt(2 / (pieces[2] + pieces[3])), "Xavier"
    if len(shape) < 2:
        return np.zeros(shape), "zeros"
    fan_in, fan_out = _fans(node, place, shape, moved)
    if _is_rectified(node.outputs[0]):
        return generator.standard_normal(shape) * math.sqrt(2 / fan_in), "Kaiming"
    return generator.standard_normal(shape) * math.sqrt(2 / (fan_in + fan_out)), "Xavier"


def _orthogonal(shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    """Matrices (…, m, n) whose rows or columns, whichever are fewer, are orthonormal."""
    *most, m, n = shape
    q, r = np.linalg.qr(generator.standard_normal((*most, max(m, n), min(m, n))))
    q = q * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[..., None, :]
    return np.asarray(q if m >= n else q.swapaxes(-1, -2))


def _fans(node: ir.Node, place: int, shape: Sequence[int], moved: bool) -> tuple[int, int]:
    """How many numbers go into one output, and how many outputs one number goes into."""
    if node.op_type in ("Conv", "ConvTranspose", "DeformConv", "FusedConv"):
        group, kernel = attribute(node, "group", 1), math.prod(shape[2:])
        fans = shape[1] * kernel, shape[0] // group * kernel
        return fans[::-1] if node.op_type == "ConvTranspose" else fans
    turned = moved
    if node.op_type in ("Gemm", "FusedGemm", "FusedMatMul"):
        turned ^= bool(attribute(node, "transB" if place == 1 else "transA", 0))
    first, last = (shape[-1], shape[-2]) if turned else (shape[-2], shape[-1])
    return (first, last) if place != 0 else (last, first)


def _is_rectified(value: ir.Value) -> bool:
    """Whether what is made of ``value`` goes through ReLU or one of its kin next."""
    while (node := sole_reader(value)) is not None and node.op_type in _BETWEEN:
        value = node.outputs[0]
    readers = {use.node.op_type for use in value.uses()}
    is_written_out = readers in ({"Mul", "Sigmoid"}, {"Div", "Mul"}, {"Erf", "Mul"}, {"HardSigmoid", "Mul"})
    return bool(readers & _RECTIFIERS) or is_written_out


def _meets(value: ir.Value, sums: set[ir.Node]) -> bool:
    """Whether ``value`` is a branch at one of ``sums``, but for a bias."""
    while (node := sole_reader(value)) is not None:
        if node in sums:
            return True
        if node.op_type not in _BETWEEN - {"BatchNormalization"}:
            return False
        value = node.outputs[0]
    return False
