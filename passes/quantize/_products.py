"""A layer as a product of matrices: rows of its input times its weight.

A Gemm or MatMul takes the rows as they are. A Conv takes a row for each place of its output: what its kernel sees
there (im2col), in each group by itself. A ConvTranspose whose kernel steps over itself (stride equal to its size)
takes the channels at each place of its input, and makes a tile of outputs of them. In all, ``y[g] = rows[g] @
matrix[g]`` with rows (g × r × k) and matrix (g × k × n).
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.lib.stride_tricks import sliding_window_view

from onnxopt.graph import attribute
from onnxopt.pass_base import Refuse
from onnxopt.passes.cleanup._operands import numbers
from onnxopt.passes.quantize._grid import Array


@dataclass(frozen=True)
class Window:
    """Where the kernel of a Conv lies on its input."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    """Before each axis, then after each."""
    auto: str

    def views(self, x: Array) -> Array:
        """``x`` (N × C × spatial) as N × C × places × kernel, without a copy but for the padding."""
        axes = tuple(range(2, x.ndim))
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        before, after = self._padding(x.shape[2:], spans)
        padded = np.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)]) if any((*before, *after)) else x
        windows = sliding_window_view(padded, spans, axis=axes)
        steps = [slice(None, None, s) for s in self.strides]
        return windows[(slice(None), slice(None), *steps, *[slice(None, None, d) for d in self.dilations])]

    def _padding(self, sizes: tuple[int, ...], spans: list[int]) -> tuple[list[int], list[int]]:
        half = len(spans)
        if self.auto in ("NOTSET", ""):
            return list(self.pads[:half]), list(self.pads[half:])
        if self.auto == "VALID":
            return [0] * half, [0] * half
        total = [
            max((math.ceil(size / s) - 1) * s + span - size, 0)
            for size, s, span in zip(sizes, self.strides, spans, strict=True)
        ]
        less = [t // 2 for t in total]
        more = [t - t // 2 for t in total]
        return (less, more) if self.auto == "SAME_UPPER" else (more, less)


class Product:
    """How a layer of this form is written as a product."""

    def __init__(self, node: ir.Node, shape: tuple[int, ...]) -> None:
        """For ``node`` with a weight of ``shape``. Raises ``Refuse`` if it is no such product."""
        self._op, self._shape = node.op_type, shape
        self._groups = int(attribute(node, "group", 1)) if self._op in ("Conv", "ConvTranspose") else 1
        self._trans_b = bool(attribute(node, "transB", 0)) if self._op == "Gemm" else False
        if self._op == "Gemm" and attribute(node, "transA", 0):
            raise Refuse("it reads its input transposed")
        if self._op in ("Gemm", "MatMul") and len(shape) != 2:
            raise Refuse(f"its weight has {len(shape)} axes, not 2")
        if self._op == "Gemm" and attribute(node, "alpha", 1.0) != 1.0:
            raise Refuse("it scales its product")
        if self._op in ("Conv", "ConvTranspose"):
            ones = (1,) * (len(shape) - 2)
            self._window = Window(
                shape[2:],
                numbers(node, "strides") or ones,
                numbers(node, "dilations") or ones,
                numbers(node, "pads") or (0,) * 2 * len(ones),
                str(attribute(node, "auto_pad", "NOTSET")),
            )
            tiles = self._window.strides == shape[2:] and self._window.dilations == ones
            if self._op == "ConvTranspose" and not (tiles and not any(self._window.pads)):
                raise Refuse("its kernel overlaps itself, so that it is no product of rows")

    @property
    def size(self) -> tuple[int, int, int]:
        """g, k and n."""
        g, k, n = self.matrix(np.broadcast_to(np.float32(0), self._shape)).shape
        return g, k, n

    @property
    def unfolding(self) -> Hashable:
        """What rows follow from besides the input: layers of equal ones read the same rows of it."""
        match self._op:
            case "Conv":
                return self._groups, self._window
            case "ConvTranspose":
                return "channels"
            case _:
                return "last axis"

    def matrix(self, weight: Array) -> Array:
        """The weight, or anything of its shape, as g × k × n."""
        match self._op:
            case "Conv":
                matrix = weight.reshape(self._groups, self._shape[0] // self._groups, -1).swapaxes(1, 2)
            case "ConvTranspose":
                matrix = weight.reshape(self._groups, self._shape[0] // self._groups, -1)
            case _:
                matrix = weight.T[None] if self._trans_b else weight[None]
        return matrix

    def weight(self, matrix: Array) -> Array:
        """The other way round."""
        match self._op:
            case "Conv":
                weight = matrix.swapaxes(1, 2).reshape(self._shape)
            case "ConvTranspose":
                weight = matrix.reshape(self._shape)
            case _:
                weight = matrix[0].T if self._trans_b else matrix[0]
        return weight

    def count(self, x: Array) -> int:
        """How many rows there are."""
        if self._op == "Conv":
            places = self._window.views(x[:1, :1]).shape[2 : x.ndim]
            return len(x) * int(math.prod(places))
        return x.size // int(x.shape[1 if self._op == "ConvTranspose" else -1])

    def rows(self, x: Array, places: Array) -> Array:
        """The rows at ``places`` (r indices into all rows), as g × r × k."""
        if self._op == "Conv":
            views = self._window.views(x)
            n, *at = np.unravel_index(places, (len(x), *views.shape[2 : x.ndim]))
            taken = np.moveaxis(views, 1, x.ndim - 1)[(n, *at)]
        elif self._op == "ConvTranspose":
            n, *at = np.unravel_index(places, (len(x), *x.shape[2:]))
            taken = np.moveaxis(x, 1, -1)[(n, *at)]
        else:
            taken = x.reshape(-1, x.shape[-1])[places]
        return np.ascontiguousarray(taken.reshape(len(places), self._groups, -1).swapaxes(0, 1))

    def mean_row(self, x: Array) -> Array:
        """The mean of all rows, g × k, in float64."""
        if self._op == "Conv":
            views = self._window.views(x.mean(axis=0, keepdims=True, dtype=np.float64))
            mean: Array = views.mean(axis=tuple(range(2, x.ndim)))
        elif self._op == "ConvTranspose":
            mean = x.mean(axis=(0, *range(2, x.ndim)), dtype=np.float64)
        else:
            mean = x.reshape(-1, x.shape[-1]).mean(axis=0, dtype=np.float64)
        return mean.reshape(self._groups, -1)
