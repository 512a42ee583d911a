"""Numbers of channels that kernels want: whole blocks, counted where convolutions read and make them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.passes.prune.prune_channels import PruneChannels
from tests.pruning import prune
from tests.support import graph, outputs

RNG = np.random.default_rng(3)


def grouped(groups: int, width: int) -> ir.Model:
    """A convolution in groups of ``width`` channels, between two that are not."""
    size = groups * width
    return graph(
        "g (float[N,16,8,8] x) => (float[N,4,8,8] y) "
        f"{{ h = Conv(x, a) r = Relu(h) d = Conv<pads=[1,1,1,1], group={groups}>(r, e) y = Conv(d, c) }}",
        a=normal(size, 16, 1, 1), e=normal(size, width, 3, 3), c=normal(4, size, 1, 1),
    )  # fmt: skip


def normal(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("groups", "width", "kept"),
    [
        (13, 8, 4),  # not blocked: 52 of 104 channels, a number that 4 divides
        (4, 8, 4),  # 16 of 32 channels
        (2, 8, 8),  # and so would 8 of 16
        (3, 8, 8),  # 12 of 24 channels would be less than a block of the layers around
        (2, 32, 16),  # blocked before and after
        (4, 16, 16),  # blocked, and not with fewer
    ],
)
def test_groups_of_a_convolution(groups: int, width: int, kept: int) -> None:
    pruned, _ = prune(PruneChannels(ratio=0.5, importance="l2"), grouped(groups, width))
    assert pruned.graph.initializers["e"].shape == ir.Shape([groups * kept, kept, 3, 3])
    assert outputs(pruned, {"x": normal(2, 16, 8, 8)})[0].shape == (2, 4, 8, 8)


@pytest.mark.parametrize(("side", "kept"), [(1, 16), (2, 16), (4, 16)])
def test_channels_of_many_features(side: int, kept: int) -> None:
    """What counts is the convolution that makes them, not how many features each has behind a Flatten."""
    model = graph(
        f"g (float[N,3,{side},{side}] x) => (float[N,4] y) {{ h = Conv(x, a) f = Flatten(h) y = MatMul(f, c) }}",
        a=normal(32, 3, 1, 1), c=normal(32 * side * side, 4),
    )  # fmt: skip
    pruned, _ = prune(PruneChannels(ratio=0.4, importance="l2"), model)
    assert pruned.graph.initializers["a"].shape == ir.Shape([kept, 3, 1, 1])


def test_channels_that_are_interleaved() -> None:
    """Behind a DepthToSpace each channel stands for 4 of the convolution before: 16 of these are 4 channels."""
    model = graph(
        "g (float[N,3,4,4] x) => (float[N,5,8,8] y) { h = Conv(x, a) d = DepthToSpace<blocksize=2>(h) y = Conv(d, c) }",
        a=normal(128, 3, 1, 1), c=normal(5, 32, 1, 1),
    )  # fmt: skip
    pruned, _ = prune(PruneChannels(ratio=0.4, importance="l2"), model)
    assert pruned.graph.initializers["a"].shape == ir.Shape([64, 3, 1, 1])
    assert pruned.graph.initializers["c"].shape == ir.Shape([5, 16, 1, 1])
