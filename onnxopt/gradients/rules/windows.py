"""The windows that a convolution or a pooling lays over its input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxopt.gradients.node import Backward

Dims = tuple[int, ...]


@dataclass(frozen=True)
class Windows:
    """Sizes along the spatial axes: output ``o`` of an axis reads input ``o · stride + k · dilation − begin`` for each
    ``k < kernel``, and nothing where that is outside of ``0 … size − 1``."""

    size: Dims
    """Of the input."""
    out: Dims
    """Of the output."""
    kernel: Dims
    strides: Dims
    dilations: Dims
    begin: Dims
    """How much is padded before the input."""
    end: Dims
    """How much is padded after it."""

    @property
    def rank(self) -> int:
        """The number of spatial axes."""
        return len(self.size)

    @property
    def pads(self) -> Dims:
        """As ONNX writes them."""
        return (*self.begin, *self.end)

    @property
    def extent(self) -> Dims:
        """The length of a window, from its first to its last element."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def reach(self) -> Dims:
        """How much of the padded input the windows read; more than there is where ``ceil_mode`` added a window."""
        return tuple((o - 1) * s + e for o, s, e in zip(self.out, self.strides, self.extent, strict=True))

    @property
    def missed(self) -> Dims:
        """How much of the padded input behind the last window none reads; negative where the last one hangs over."""
        sizes = zip(self.size, self.begin, self.end, self.reach, strict=True)
        return tuple(n + b + e - r for n, b, e, r in sizes)

    @property
    def is_dense(self) -> bool:
        """Whether windows start at each element."""
        return all(s == 1 for s in self.strides)

    @property
    def is_pointwise(self) -> bool:
        """Whether the input is read element by element: windows of one element, no padding, no stride."""
        return self.is_dense and all(k == 1 for k in self.kernel) and not any(self.pads)

    def reads(self, axis: int) -> np.ndarray:
        """The place in the unpadded input of each element of each window along ``axis``, of shape (out, kernel);
        outside of the input for padding."""
        starts = np.arange(self.out[axis])[:, None] * self.strides[axis] - self.begin[axis]
        return starts + np.arange(self.kernel[axis]) * self.dilations[axis]


def windows_of(at: Backward, kernel: Sequence[int] | None = None) -> Windows:
    """The windows of a Conv or a pooling, by its attributes and shapes; ``kernel`` where the weights have it."""
    size, out = at.shape(at.inputs[0])[2:], at.shape(at.outputs[0])[2:]
    ones = (1,) * len(size)
    kernel = tuple(kernel or at.attribute("kernel_shape"))
    strides = tuple(at.attribute("strides", ones))
    dilations = tuple(at.attribute("dilations", ones))
    auto = at.attribute("auto_pad", "NOTSET")
    pads = tuple(at.attribute("pads", (0, 0) * len(size))) if auto == "NOTSET" else (0, 0) * len(size)
    begin, end = pads[: len(size)], pads[len(size) :]
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        reach = Windows(size, out, kernel, strides, dilations, begin, end).reach
        begin, end = split_padding([max(0, r - n) for n, r in zip(size, reach, strict=True)], auto == "SAME_UPPER")
    return Windows(size, out, kernel, strides, dilations, begin, end)


def split_padding(totals: Sequence[int], more_at_the_end: bool) -> tuple[Dims, Dims]:
    """What of each total stands before and what after; an odd one gives one side one more."""
    half, rest = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
    return (half, rest) if more_at_the_end else (rest, half)
