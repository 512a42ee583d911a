"""A ``MatMul`` or ``Gemm`` by a constant matrix: what it reads, and what it adds.

``y = α · x · wᵀ + β · c`` with ``w`` (n × k), a row for each output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, constant_tensor
from onnxopt.pass_base import Refuse

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class LinearNode:
    """One such node; ``by_rows``: the weight is stored as n × k, and not as k × n."""

    node: ir.Node
    weight: ir.Value
    by_rows: bool
    alpha: float = 1.0
    beta: float = 1.0

    @property
    def x(self) -> ir.Value:
        """What it reads now: other nodes may have been replaced since it was looked at."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def added(self) -> ir.Value | None:
        """``c``."""
        return self.node.inputs[2] if len(self.node.inputs) > 2 else None

    def matrix(self, editor: Editor) -> Array:
        """``w`` (n × k, float32)."""
        stored = editor.constant(self.weight)
        assert stored is not None
        return stored if self.by_rows else np.ascontiguousarray(stored.T)

    def bias(self, editor: Editor, n: int) -> Array | None:
        """``β · c`` as a vector (n), if it is a constant that is added to each row of the product."""
        c = editor.constant(self.added)
        if c is None or c.dtype != np.float32 or (c.ndim > 1 and c.shape[0] != 1) or c.size not in (1, n):
            return None
        return np.broadcast_to(c.reshape(-1) * np.float32(self.beta), (n,)).copy()

    def add_rest(self, editor: Editor, product: ir.Value) -> ir.Value:
        """``product + β · c``, in front of the node; ``α`` is the caller's to apply."""
        if self.added is None or self.beta == 0:
            return product
        added = self.added
        if self.beta != 1:
            beta = editor.add_constant(self.node, np.array(self.beta, np.float32), f"{added.name}_beta")
            added = editor.insert(self.node, "Mul", [added, beta], name="")
        return editor.insert(self.node, "Add", [product, added], name="")


def linear_node(node: ir.Node, editor: Editor) -> LinearNode:
    """The ``MatMul`` or ``Gemm`` ``node``. Raises ``Refuse`` if its weight is no constant float32 matrix."""
    x, weight = node.inputs[0], node.inputs[1]
    assert x is not None
    assert weight is not None
    tensor = constant_tensor(weight)
    if tensor is None:
        if constant_tensor(x) is not None:
            raise Refuse("its constant is the left operand")
        raise Refuse(_why_not_constant(weight))
    check_weight(weight, tensor, 2, editor)
    if node.op_type == "MatMul":
        return LinearNode(node, weight, by_rows=False)
    settings = [attribute(node, name, default) for name, default in _DEFAULTS.items()]
    if any(value is None for value in settings):
        raise Refuse("an attribute of it is an attribute of its function; run inline-functions first")
    alpha, beta, trans_a, trans_b = settings
    if trans_a:
        raise Refuse("its input is transposed (transA)")
    return LinearNode(node, weight, bool(trans_b), float(alpha), float(beta))


def check_weight(weight: ir.Value, tensor: ir.TensorProtocol, rank: int | None, editor: Editor) -> None:
    """Refuse a constant that is not float32, not of this rank, empty or not finite."""
    if tensor.dtype != ir.DataType.FLOAT:
        raise Refuse(f"its weight is {tensor.dtype.name}, not FLOAT")
    if rank is not None and len(tensor.shape) != rank:
        raise Refuse(f"its weight has rank {len(tensor.shape)}, not {rank}")
    if tensor.size == 0:
        raise Refuse("its weight is empty")
    array = editor.constant(weight)
    if array is None or not np.isfinite(array).all():
        raise Refuse("its weight holds NaN or infinity")


def _why_not_constant(weight: ir.Value) -> str:
    producer = weight.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        return "its weight is quantized already, or it multiplies quantized activations; run dequantize first"
    if weight.is_initializer():
        return "callers may override its weight, which is an input too; run drop-initializer-inputs first"
    return "it multiplies two computed tensors, so it has no weight"


_DEFAULTS: dict[str, float] = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
