"""A BatchNormalization as a layer with one weight a channel.

At inference it is ``a x + b`` with ``a = γ / √(σ² + ε)`` and ``b = β − μ a``. Statistics that no longer fit are put
right by other ``γ`` and ``β``: these can give any ``a`` and ``b``, those of new ``μ`` and ``σ²`` among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, constant_tensor
from onnxopt.pass_base import Refuse
from onnxopt.passes.cleanup._operands import discard, is_read

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class BatchNorm:
    """A BatchNormalization with constant parameters, at inference."""

    node: ir.Node

    def __post_init__(self) -> None:
        node = self.node
        if attribute(node, "training_mode", 0) or any(is_read(value) for value in node.outputs[1:]):
            raise Refuse("it normalizes by the statistics of each batch")
        if attribute(node, "spatial", 1) != 1 or any(constant_tensor(value) is None for value in node.inputs[1:5]):
            raise Refuse("its parameters are not one constant for each channel")

    @property
    def output(self) -> ir.Value:
        """What it computes."""
        return self.node.outputs[0]

    @property
    def weight(self) -> ir.Value:
        """``γ``."""
        return self.node.inputs[1]  # type: ignore[return-value]

    def weights(self) -> tuple[Array, Array]:
        """``a`` and ``b`` in float64."""
        gamma, beta, mean, deviation = self._parameters()
        return gamma / deviation, beta - mean * gamma / deviation

    def put(self, weight: Array, bias: Array | None, editor: Editor) -> None:
        """Choose ``γ`` and ``β`` so that ``a`` and ``b`` are these."""
        assert bias is not None
        _, _, mean, deviation = self._parameters()
        new = weight * deviation, bias + mean * weight
        for at, array in enumerate(new, 1):
            old = self.node.inputs[at]
            tensor = constant_tensor(old)
            assert old is not None
            assert tensor is not None
            value = editor.add_constant(self.node, array.astype(tensor.dtype.numpy()), old.name or "parameter")
            self.node.replace_input_with(at, value)
            discard(old)

    def _parameters(self) -> tuple[Array, Array, Array, Array]:
        tensors = [constant_tensor(value) for value in self.node.inputs[1:5]]
        gamma, beta, mean, variance = (t.numpy().astype(np.float64) for t in tensors if t is not None)
        return gamma, beta, mean, np.sqrt(variance + float(attribute(self.node, "epsilon", 1e-5)))


class EachChannel:
    """Its product: a group a channel, one input and one output in each (see ``Product``)."""

    def __init__(self, channels: int) -> None:
        self.size = (channels, 1, 1)

    def matrix(self, weight: Array) -> Array:
        """The weight as g × 1 × 1."""
        return weight.reshape(self.size)

    def weight(self, matrix: Array) -> Array:
        """The other way round."""
        return matrix.reshape(-1)

    def count(self, x: Array) -> int:
        """How many rows there are."""
        return x.size // self.size[0]

    def rows(self, x: Array, places: Array) -> Array:
        """The rows at ``places``, as g × r × 1."""
        taken = np.moveaxis(x, 1, -1).reshape(-1, self.size[0])[places]
        return np.ascontiguousarray(taken.T[:, :, None])
