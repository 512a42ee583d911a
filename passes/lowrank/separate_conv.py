"""Write convolutions as depthwise ones followed by 1×1 ones.

Each input channel is seen by a few filters of its own, and a 1×1 convolution mixes what they give: a kernel of
n × c × k×k becomes t filters of k×k for each of c channels, and n × c·t weights behind them: t / k² of the arithmetic
where n is much larger than k². Where t filters a channel would do for every output, nothing is lost.

Sources: Guo, Li, Lin, Chen and Li, "Network Decoupling: From Regular to Depthwise Separable Convolutions", BMVC 2018;
Chollet, "Xception", CVPR 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxopt.passes.lowrank._forms import Method
from onnxopt.passes.lowrank._split_pass import SplitPass


@dataclass(frozen=True, kw_only=True)
class SeparateConv(SplitPass):
    """Write convolutions as depthwise ones followed by 1×1 ones."""

    name: ClassVar[str] = "separate-conv"
    exact: ClassVar[bool] = False
    ops: ClassVar[frozenset[str]] = frozenset({"Conv"})
    block: ClassVar[int] = 1

    def methods(self) -> tuple[Method, ...]:
        return ("separable",)
