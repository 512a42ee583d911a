"""Types and shapes of the outputs of operators for which onnx has no inference: ONNX Runtime's own, and of ai.onnx.ml.

Most have the shape that an operator of the standard would give. The others are written out here; what they take is
described in ONNX Runtime's ``ContribOperators.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt._symbols import Dim, Dims, Known, broadcast
from onnxopt.nodes import attribute

_Result = tuple[int, Iterable[tuple[int, Dims]]]
"""The input that gives the type, and the shapes of outputs by position."""


@dataclass(frozen=True)
class Like:
    """An operator of the standard that gives the same shape."""

    op: str
    inputs: slice | tuple[int, ...] = (0,)
    """Which inputs it would take."""
    typed_by: tuple[int, ...] = (0,)
    """The first of these inputs that is given has the type of the output; none where the type is known from elsewhere.
    """

    def taken(self, node: ir.Node) -> list[ir.Value | None]:
        """The inputs of ``node`` that the other operator would take."""
        if isinstance(self.inputs, slice):
            return list(node.inputs[self.inputs])
        return [node.inputs[at] for at in self.inputs if at < len(node.inputs)]

    def dtype(self, node: ir.Node, facts: Known) -> ir.DataType | None:
        """The type of the output of ``node``, if it is told by an input."""
        given = (node.inputs[at] for at in self.typed_by if at < len(node.inputs))
        value = next((value for value in given if value is not None), None)
        return None if value is None else facts.dtype(value)


_CONTRIB = {
    **dict.fromkeys(("BiasGelu", "FastGelu", "Gelu", "QuickGelu", "RotaryEmbedding"), Like("Identity")),
    **dict.fromkeys(("QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax"), Like("Identity")),
    **dict.fromkeys(("QLinearAdd", "QLinearMul"), Like("Add", (0, 3))),
    "QLinearAveragePool": Like("AveragePool"),
    "QLinearConcat": Like("Concat", slice(2, None, 3), (2,)),
    "QLinearGlobalAveragePool": Like("GlobalAveragePool"),
    "QLinearWhere": Like("Where", (0, 1, 4), (1,)),
    "QGemm": Like("Gemm", (0, 3), (8, 1)),
    "FusedConv": Like("Conv", (0, 1)),
    "FusedGemm": Like("Gemm", (0, 1)),
    "DynamicQuantizeMatMul": Like("MatMul", (0, 1)),
    "MatMulIntegerToFloat": Like("MatMul", (0, 1), (2,)),
    "DynamicQuantizeLSTM": Like("LSTM", (0, 1, 2)),
}

EXTRA_NORMALIZATIONS = ("LayerNormalization", "SimplifiedLayerNormalization")
"""What ONNX Runtime has in the domain of the standard, in every opset."""


def like(node: ir.Node) -> Like | None:
    """The operator of the standard that gives the same shape as ``node``, which is none itself, or not of its opset."""
    if node.domain == "com.microsoft":
        return _CONTRIB.get(node.op_type) if not attribute(node, "channels_last", 0) else None
    if node.domain == "ai.onnx.ml" and node.op_type in ("Binarizer", "Imputer", "Normalizer", "Scaler"):
        return Like("Identity", (0,), ())
    return Like("Identity") if node.domain == "" and node.op_type in EXTRA_NORMALIZATIONS else None


def written_out(node: ir.Node, facts: Known) -> Iterator[tuple[ir.Value, ir.DataType | None, Dims]]:
    """What the rules of this module say of the outputs of ``node``."""
    rule = _RULES.get(node.op_type) if node.domain == "com.microsoft" else None
    if rule is None:
        return
    try:
        typed_by, found = rule(node, facts)
        for at, shape in found:
            if at < len(node.outputs):
                yield node.outputs[at], facts.dtype(_given(node, typed_by)), shape
    except (_Unknown, IndexError, TypeError, ValueError):  # also of a node that ONNX Runtime will refuse
        return


class _Unknown(Exception):
    """A shape that the rule needs is not known."""


def _given(node: ir.Node, at: int) -> ir.Value:
    value = node.inputs[at] if at < len(node.inputs) else None
    if value is None:
        raise _Unknown
    return value


def _has(node: ir.Node, at: int) -> bool:
    return at < len(node.inputs) and node.inputs[at] is not None


def _dims(node: ir.Node, at: int, facts: Known) -> Dims:
    shape = facts.shape(_given(node, at))
    if shape is None:
        raise _Unknown
    return shape


def _skip_normalization(node: ir.Node, facts: Known) -> _Result:
    x = _dims(node, 0, facts)
    return 0, [(0, x), (3, x)]


def _embedding(node: ir.Node, facts: Known) -> _Result:
    ids, table = _dims(node, 0, facts), _dims(node, 2, facts)
    return 2, [(0, (*ids, table[1])), (2, (*ids, table[1]))]


def _fused_matmul(node: ir.Node, facts: Known) -> _Result:
    a, b = _dims(node, 0, facts), _dims(node, 1, facts)
    if len(a) < 2 or len(b) < 2 or attribute(node, "transBatchA", 0) or attribute(node, "transBatchB", 0):
        raise _Unknown
    rows, columns = a[-1 if attribute(node, "transA", 0) else -2], b[-2 if attribute(node, "transB", 0) else -1]
    return 0, [(0, (*broadcast(a[:-2], b[:-2]), rows, columns))]


def _matmul_nbits(node: ir.Node, facts: Known) -> _Result:
    return 0, [(0, (*_dims(node, 0, facts)[:-1], int(attribute(node, "N"))))]


def _gather_block_quantized(node: ir.Node, facts: Known) -> _Result:
    table, indices = list(_dims(node, 0, facts)), _dims(node, 1, facts)
    if facts.dtype(_given(node, 0)) == ir.DataType.UINT8:
        table[-1] = _times(table[-1], 8 // int(attribute(node, "bits", 4)))  # several in a byte
    axis = attribute(node, "gather_axis", 0) % len(table)
    return 2, [(0, (*table[:axis], *indices, *table[axis + 1 :]))]


def _packed_attention(node: ir.Node, facts: Known) -> _Result:
    """Queries, keys and values are projected from one input by one matrix, side by side."""
    x, weight = _dims(node, 0, facts), _dims(node, 1, facts)
    sizes = attribute(node, "qkv_hidden_sizes")
    size = sizes[2] if sizes else _divided(weight[1], 3)
    return 0 if node.op_type == "Attention" else 3, [(0, (*x[:2], size))]


def _multi_head_attention(node: ir.Node, facts: Known) -> _Result:
    q = _dims(node, 0, facts)
    if len(q) == 5:  # queries, keys and values in one: (batch, length, heads, 3, size)
        size = _times(q[2], q[4])
    elif not _has(node, 2):  # keys and values in one
        size = q[2]
    else:
        v = _dims(node, 2, facts)
        size = v[2] if len(v) == 3 else _times(v[1], v[3])
    return 0, [(0, (*q[:2], size))]


def _group_query_attention(node: ir.Node, facts: Known) -> _Result:
    q = _dims(node, 0, facts)
    size = q[2]
    if not _has(node, 1):  # queries, keys and values side by side
        heads, shared = int(attribute(node, "num_heads")), int(attribute(node, "kv_num_heads"))
        size = _times(_divided(size, heads + 2 * shared), heads)
    return 0, [(0, (*q[:2], size))]


def _times(*dims: Dim) -> Dim:
    numbers = [dim for dim in dims if isinstance(dim, int)]
    return math.prod(numbers) if len(numbers) == len(dims) else None


def _divided(dim: Dim, by: int) -> Dim:
    return dim // by if isinstance(dim, int) else None


_RULES: dict[str, Callable[[ir.Node, Known], _Result]] = {
    "Attention": _packed_attention,
    "EmbedLayerNormalization": _embedding,
    "FusedMatMul": _fused_matmul,
    "GatherBlockQuantized": _gather_block_quantized,
    "GroupQueryAttention": _group_query_attention,
    "MatMulNBits": _matmul_nbits,
    "MultiHeadAttention": _multi_head_attention,
    "QAttention": _packed_attention,
    "SkipLayerNormalization": _skip_normalization,
    "SkipSimplifiedLayerNormalization": _skip_normalization,
}
