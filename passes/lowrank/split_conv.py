"""Split convolutions into thinner ones, one behind the other.

How much each is split follows from what is lost by two factors, the whole kernel to r channels and a 1×1 to the
outputs, whose best weights and whose error at every rank are known in closed form. At the same cost other forms may
lose less: 1×1 before the kernel, a k×1 and a 1×k, Tucker-2, CP. Each is fitted, and the one taken that loses least on
samples that were not used for it.

A transposed convolution gets a 1×1 in front, to r channels, and reads these; it is fitted to the products that it adds
up, not to their sums. A kernel that several nodes read in the same way is split once, for all of them.

Sources: Jaderberg, Vedaldi and Zisserman, "Speeding up Convolutional Neural Networks with Low Rank Expansions", BMVC
2014; Zhang, Zou, He and Sun, "Accelerating Very Deep Convolutional Networks for Classification and Detection", TPAMI
2016; Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications", ICLR
2016; Lebedev et al., "Speeding-up Convolutional Neural Networks Using Fine-tuned CP-Decomposition", ICLR 2015.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxopt.passes.lowrank._forms import Method
from onnxopt.passes.lowrank._split_pass import SplitPass


@dataclass(frozen=True, kw_only=True)
class SplitConv(SplitPass):
    """Split convolutions into thinner ones, one behind the other."""

    name: ClassVar[str] = "split-conv"
    exact: ClassVar[bool] = False
    ops: ClassVar[frozenset[str]] = frozenset({"Conv", "ConvTranspose"})
    block: ClassVar[int] = 16

    def methods(self) -> tuple[Method, ...]:
        return ("svd", "input-svd", "spatial-svd", "tucker", "cp")
