"""Split products with constant matrices into two thinner ones.

``x W`` with ``W`` (k × n) becomes ``(x A) B`` with ``A`` (k × r) and ``B`` (r × n). With data they are those with which
the outputs move least (reduced-rank regression), else those nearest to ``W``. How much each is split is decided for all
together, see ``_splitting``.

A constant may also stand on the left, or be a stack of matrices, each of which is split by itself to the same rank, or
be the weight of an ``Attention`` of ONNX Runtime, which then reads r features. One that several nodes read in the same
way is split once, for all of them.

Sources: Xue, Li and Gong, "Restructuring of Deep Neural Network Acoustic Models with Singular Value Decomposition",
Interspeech 2013; Izenman, "Reduced-rank regression for the multivariate linear model", Journal of Multivariate Analysis
1975; Wang et al., "SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model Compression", ICLR
2025 (whitening by the inputs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxopt.passes.lowrank._forms import Method
from onnxopt.passes.lowrank._split_pass import SplitPass


@dataclass(frozen=True, kw_only=True)
class SplitMatmul(SplitPass):
    """Split products with constant matrices into two thinner ones."""

    name: ClassVar[str] = "split-matmul"
    exact: ClassVar[bool] = False
    ops: ClassVar[frozenset[str]] = frozenset({"Attention", "Gemm", "MatMul"})
    block: ClassVar[int] = 8

    def methods(self) -> tuple[Method, ...]:
        return ("svd",)
