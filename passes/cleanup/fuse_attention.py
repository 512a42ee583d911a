"""Replace written-out scaled dot-product attention by one ``Attention``.

``softmax(Q·Kᵀ·s + M)·V`` for queries, keys and values (batch, heads, length, size) and an additive mask ``M``, which
is what ``Attention`` computes by definition. The scale may stand before or after the first product. Exact, up to
rounding, where all have the same batch and heads. The mask must name every key, for a shorter one means another
thing to ``Attention``, and every query, for ONNX Runtime 1.32 does not spread it. It needs opset 23.

    Transpose(k) → MatMul(q) → Mul(s) → Add(M) → Softmax → MatMul(v)   becomes   Attention(q, k, v, M)

On ONNX Runtime 1.32 (CPU): 0.9 to 1.0 of the time.

Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxopt.graph import attribute
from onnxopt.pass_base import Refuse
from onnxopt.patterns import Op, Pattern
from onnxopt.rewrite import Match, RewritePass, Rule, rule
from onnxopt.shapes import Dims

_SWAPPED = (0, 1, 3, 2)


def _times(op: Op, x: Pattern, name: str) -> Pattern:
    return op.any(op.Mul(x, op.number(name)), op.Div(x, op.number(f"{name} divisor")))


def _scores(op: Op, q: Pattern, k: Pattern) -> Pattern:
    keys = op.Transpose(k, perm=_takes_matrices)
    return op.any(
        _times(op, op.MatMul(q, keys), "scale"),
        op.MatMul(_times(op, q, "scale"), _times(op, keys, "other scale")),
        op.MatMul(_times(op, q, "scale"), op.Transpose(_times(op, k, "other scale"), perm=_takes_matrices)),
        op.MatMul(_times(op, q, "scale"), keys),
        op.MatMul(q, _times(op, keys, "scale")),
        op.MatMul(q, keys),
    )


def _takes_matrices(perm: object) -> bool:
    return isinstance(perm, list | tuple) and sorted(perm) == [0, 1, 2, 3]


def _is_last(axis: object) -> bool:
    return axis is None or axis in (-1, 3)


@rule(
    lambda op, q, k, v, mask: op.MatMul(op.Softmax(op.Add(_scores(op, q, k), mask), axis=_is_last), v),
    lambda op, q, k, v: op.MatMul(op.Softmax(_scores(op, q, k), axis=_is_last), v),
)
def _attention(match: Match) -> ir.Value | None:
    editor = match.editor
    if editor.rank(match["v"]) != 4:
        return None
    match.requires("Attention", opset=23)
    (transpose,) = match.of("Transpose")
    perm = attribute(transpose, "perm")
    order = [perm[axis] for axis in _SWAPPED]
    q, k, v = editor.shape(match["q"]), editor.shape(match["k"]), editor.shape(match["v"])
    if q is None or k is None or v is None or len(q) != 4 or len(k) != 4:
        raise Refuse("the rank of its query or key is unknown")
    k = tuple(k[axis] for axis in order)
    if None in (*q[:2], *k[:2], *v[:2]) or q[:2] != k[:2] or q[:2] != v[:2]:
        raise Refuse(f"batch and heads of {list(q)}, {list(k)} and {list(v)} are not known to be equal")
    inputs = [match["v"]]
    if "mask" in match.values:
        _check_mask(editor.shape(match["mask"]), (*q[:3], k[2]))
        inputs.append(match["mask"])
    scale = _scale(match)
    if scale <= 0:
        raise Refuse(f"its scale of {scale} is not positive")  # Attention spreads its root over both operands
    keys = match["k"]
    if order != [0, 1, 2, 3]:
        keys = editor.insert(match.root, "Transpose", [keys], {"perm": order}, like=transpose)
    return match.insert("Attention", [match["q"], keys, *inputs], {"scale": scale})


def _scale(match: Match) -> float:
    scale = 1.0
    for name in ("scale", "other scale"):
        if name in match.values:
            scale *= match.number(name)
        elif f"{name} divisor" in match.values:
            scale /= match.number(f"{name} divisor")
    return scale


def _check_mask(mask: Dims | None, scores: Dims) -> None:
    if mask is None or not 2 <= len(mask) <= 4:
        raise Refuse("its mask is not known to have rank 2 to 4")
    wanted = scores[-len(mask) :]
    if None in mask[-2:] or mask[-2:] != wanted[-2:]:
        raise Refuse(f"its mask of shape {list(mask)} is not known to name every query and key of {list(scores)}")
    for dim, over in zip(mask[:-2], wanted[:-2], strict=True):
        if dim != 1 and (dim is None or dim != over):
            raise Refuse(f"its mask of shape {list(mask)} may enlarge scores of shape {list(scores)}")


@dataclass(frozen=True, kw_only=True)
class FuseAttention(RewritePass):
    """Replace written-out scaled dot-product attention by one ``Attention``."""

    name: ClassVar[str] = "fuse-attention"
    exact: ClassVar[bool] = True
    rules: ClassVar[tuple[Rule, ...]] = (_attention,)
