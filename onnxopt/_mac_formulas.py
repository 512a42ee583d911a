"""How many multiply–accumulates the definition of each operator sums; the table is in ``macs``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from onnxopt.graph import Editor, attribute
from onnxopt.shape_values import ShapeValues


class Unknown(Exception):
    """A shape that the formula needs is not known."""


class Operands:
    """What the formulas ask about one node."""

    def __init__(self, node: ir.Node, editor: Editor, values: ShapeValues) -> None:
        self._node, self._editor, self._values = node, editor, values

    def has(self, at: int) -> bool:
        """Whether input ``at`` is given."""
        return at < len(self._node.inputs) and self._node.inputs[at] is not None

    def dims(self, at: int) -> tuple[int, ...]:
        """The dims of input ``at``. Raises ``Unknown``."""
        return self._known(self._node.inputs[at])

    def out(self) -> tuple[int, ...]:
        """The dims of the first output. Raises ``Unknown``."""
        return self._known(self._node.outputs[0])

    def number(self, at: int) -> int:
        """The one number that input ``at`` holds. Raises ``Unknown``."""
        elements = self._values.of(self._node.inputs[at])
        found = elements.reshape(-1)[0] if elements is not None and elements.size == 1 else None
        if not isinstance(found, int):
            raise Unknown
        return found

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute."""
        return attribute(self._node, name, default)

    def _known(self, value: ir.Value | None) -> tuple[int, ...]:
        shape = self._editor.static_shape(value)
        if shape is None:
            raise Unknown
        return shape


Formula = Callable[[Operands], int]


def _conv(weight: int) -> Formula:
    return lambda node: math.prod(node.out()) * math.prod(node.dims(weight)[1:])


def _conv_transpose(node: Operands) -> int:
    return math.prod(node.dims(0)) * math.prod(node.dims(1)[1:])


def _product(node: Operands) -> int:
    a = node.dims(0)
    axis = -2 if node.attribute("transA", 0) and len(a) > 1 else -1
    return math.prod(node.out()) * a[axis]


def _recurrent(node: Operands) -> int:
    x = node.dims(0)
    return x[0] * x[1] * (math.prod(node.dims(1)) + math.prod(node.dims(2)))


def _block_quantized(node: Operands) -> int:
    return math.prod(node.dims(0)) * int(node.attribute("N"))


def _einsum(node: Operands) -> int:
    terms = str(node.attribute("equation")).replace(" ", "").split("->")[0].split(",")
    if len(terms) == 1:
        return 0
    sizes: dict[str, int] = {}
    for at, term in enumerate(terms):
        dims = node.dims(at)
        before, dots, after = term.partition("...")
        free = len(dims) - len(before) - len(after)
        # dims under an ellipsis are aligned at their ends, like those of a broadcast
        letters = [*before, *(f"…{i}" for i in range(free, 0, -1) if dots), *after]
        for letter, size in zip(letters, dims, strict=True):
            sizes[letter] = max(sizes.get(letter, 1), size) if size else 0
    return math.prod(sizes.values()) * (len(terms) - 1)


def _attention(node: Operands) -> int:
    """Queries, keys and values are (batch, heads, length, size), or (batch, length, heads · size); keys that are past
    are the former."""
    keys = _length(node.dims(1)) + (node.dims(4)[2] if node.has(4) else 0)
    return (math.prod(node.dims(0)) + math.prod(node.out())) * keys


def _length(keys: tuple[int, ...]) -> int:
    return keys[2] if len(keys) == 4 else keys[1]


def _packed_attention(past: int) -> Formula:
    """Of ONNX Runtime: one matrix makes queries, keys and values; the input ``past`` holds keys and values."""

    def formula(node: Operands) -> int:
        batch, length, size = node.dims(0)
        width = node.dims(1)[1]
        sizes = node.attribute("qkv_hidden_sizes") or (width // 3,) * 3
        keys = length + (_not_shared(node).dims(past)[3] if node.has(past) else 0)
        return batch * length * (size * width + (sizes[0] + sizes[2]) * keys)

    return formula


def _not_shared(node: Operands) -> Operands:
    if node.attribute("past_present_share_buffer", 0):
        raise Unknown  # the buffer is longer than what it holds
    return node


def _multi_head_attention(node: Operands) -> int:
    """Of ONNX Runtime: besides what ``Attention`` takes, keys and values in one, (batch, length, heads, 2, size), or
    with the queries, (batch, length, heads, 3, size)."""
    q = node.dims(0)
    is_packed = len(q) == 5
    keys = q[1] if is_packed else _length(node.dims(1))
    if node.has(6):
        if node.has(8):
            raise Unknown  # the past is in a buffer that is longer than it
        keys += node.dims(6)[2]
    return (math.prod(q) // (3 if is_packed else 1) + math.prod(node.out())) * keys


def _group_query_attention(node: Operands) -> int:
    """Of ONNX Runtime: how many keys there are is told by an input."""
    return 2 * math.prod(node.out()) * node.number(6)


FORMULAS: dict[tuple[str, str], Formula] = {
    ("", "Conv"): _conv(1),
    ("", "ConvInteger"): _conv(1),
    ("", "DeformConv"): _conv(1),
    ("", "QLinearConv"): _conv(3),
    ("", "ConvTranspose"): _conv_transpose,
    ("", "Gemm"): _product,
    ("", "MatMul"): _product,
    ("", "MatMulInteger"): _product,
    ("", "QLinearMatMul"): _product,
    ("", "RNN"): _recurrent,
    ("", "GRU"): _recurrent,
    ("", "LSTM"): _recurrent,
    ("", "Einsum"): _einsum,
    ("", "Attention"): _attention,
    ("com.microsoft", "FusedConv"): _conv(1),
    ("com.microsoft", "FusedGemm"): _product,
    ("com.microsoft", "FusedMatMul"): _product,
    ("com.microsoft", "QGemm"): _product,
    ("com.microsoft", "MatMulIntegerToFloat"): _product,
    ("com.microsoft", "DynamicQuantizeMatMul"): _product,
    ("com.microsoft", "DynamicQuantizeLSTM"): _recurrent,
    ("com.microsoft", "MatMulNBits"): _block_quantized,
    ("com.microsoft", "Attention"): _packed_attention(4),
    ("com.microsoft", "QAttention"): _packed_attention(8),
    ("com.microsoft", "MultiHeadAttention"): _multi_head_attention,
    ("com.microsoft", "GroupQueryAttention"): _group_query_attention,
}
