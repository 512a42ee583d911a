"""Operators that the reference implementation of onnx lacks forms of, by their definitions."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_grid_sample, op_scan

Array = np.ndarray[Any, Any]


class ConvTranspose(OpRun):
    """With groups, and with every way to give the size of the output."""

    def _run(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        auto_pad: str | None = None,
        dilations: Any = None,
        group: int | None = None,
        kernel_shape: Any = None,
        output_padding: Any = None,
        output_shape: Any = None,
        pads: Any = None,
        strides: Any = None,
    ) -> tuple[Array]:
        rank, group, kernel = x.ndim - 2, group or 1, w.shape[2:]
        strides, dilations = strides or [1] * rank, dilations or [1] * rank
        added, pads = output_padding or [0] * rank, pads or [0] * 2 * rank
        starts = [range(0, n * s, s) for n, s in zip(x.shape[2:], strides, strict=True)]
        extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        reach = [(n - 1) * s + e for n, s, e in zip(x.shape[2:], strides, extent, strict=True)]
        if output_shape or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            size = output_shape or [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
            total = [max(0, r + a - n) for r, a, n in zip(reach, added, size, strict=True)]
            begin = [t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in total]
        else:
            begin = list(pads[:rank])
            size = [r + a - b - e for r, a, b, e in zip(reach, added, begin, pads[rank:], strict=True)]
        channels = w.shape[1]
        whole = [max(r, n + c) for r, n, c in zip(reach, size, begin, strict=True)]
        full = np.zeros((x.shape[0], channels * group, *whole))
        for g, place in product(range(group), product(*map(range, kernel))):
            rows = slice(g * x.shape[1] // group, (g + 1) * x.shape[1] // group)
            share = np.einsum("nc...,cm->nm...", x[:, rows], w[rows][_last(*place)])
            at = [slice(k * d, k * d + s[-1] + 1, s.step) for k, d, s in zip(place, dilations, starts, strict=True)]
            full[:, g * channels : (g + 1) * channels][_last(*at)] += share
        y = full[_last(*[slice(c, c + n) for c, n in zip(begin, size, strict=True)])]
        return ((y if b is None else y + b.reshape(-1, *[1] * rank)).astype(x.dtype),)


class _Pool(OpRun):
    """Windows over axes of any number, as ONNX Runtime reads ``ceil_mode`` and ``auto_pad``."""

    def _windows(
        self, x: Array, auto_pad: str, ceil_mode: int, dilations: Any, kernel: Any, pads: Any, strides: Any
    ) -> Any:
        """For each place of the output: its index, the elements of its window, and how many places this has within the
        input and its padding."""
        rank = x.ndim - 2
        strides, dilations, pads = strides or [1] * rank, dilations or [1] * rank, pads or [0] * 2 * rank
        axes = []
        for i, (n, k, s, d) in enumerate(zip(x.shape[2:], kernel, strides, dilations, strict=True)):
            b, e, extent = pads[i], pads[rank + i], (k - 1) * d + 1
            if auto_pad.startswith("SAME"):
                total = max(0, (-(-n // s) - 1) * s + extent - n)
                b = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
                e = total - b
            free = n + b + e - extent
            out = (-(-free // s) if ceil_mode else free // s) + 1
            if ceil_mode and (out - 1) * s >= n + b:
                out -= 1
            places = [[o * s - b + j * d for j in range(k)] for o in range(out)]
            axes.append([([p for p in each if 0 <= p < n], sum(p < n + e for p in each)) for each in places])
        shape = tuple(map(len, axes))
        found = []
        for index in np.ndindex(*shape):
            each = [axis[i] for axis, i in zip(axes, index, strict=True)]
            window = x
            for axis, (places, _) in enumerate(each):
                window = window.take(places, axis=2 + axis)
            found.append((index, window, int(np.prod([count for _, count in each]))))
        return shape, found

    def _pooled(self, x: Array, windows: Any, function: Any) -> tuple[Array]:
        shape, found = windows
        y = np.empty((*x.shape[:2], *shape), x.dtype)
        for index, window, count in found:
            y[_last(*index)] = function(window.reshape(*x.shape[:2], -1), count)
        return (y,)


class MaxPool(_Pool):
    """With the right indices for windows of stride 1, and column-major ones."""

    def _run(
        self,
        x: Array,
        auto_pad: Any = None,
        ceil_mode: Any = None,
        dilations: Any = None,
        kernel_shape: Any = None,
        pads: Any = None,
        storage_order: Any = None,
        strides: Any = None,
    ) -> tuple[Array, ...]:
        given = (auto_pad or "NOTSET", ceil_mode, dilations, kernel_shape, pads, strides)
        shape, found = self._windows(x, *given)
        y = self._pooled(x, (shape, found), lambda window, _: window.max(axis=2))[0]
        if len(self.output) == 1:
            return (y,)
        index = np.arange(x.size).reshape(x.shape)
        if storage_order:
            index = np.arange(x.size).reshape(*x.shape[:2], *x.shape[:1:-1]).transpose(0, 1, *range(x.ndim - 1, 1, -1))
        places = np.empty(y.shape, np.int64)
        for (at, values, _), (_, indices, _) in zip(found, self._windows(index, *given)[1], strict=True):
            flat = [each.reshape(*x.shape[:2], -1) for each in (values, indices)]
            places[_last(*at)] = np.take_along_axis(flat[1], flat[0].argmax(axis=2)[..., None], axis=2)[..., 0]
        return y, places


class AveragePool(_Pool):
    """With asymmetric padding and ``ceil_mode`` together."""

    def _run(
        self,
        x: Array,
        auto_pad: Any = None,
        ceil_mode: Any = None,
        count_include_pad: Any = None,
        dilations: Any = None,
        kernel_shape: Any = None,
        pads: Any = None,
        strides: Any = None,
    ) -> tuple[Array]:
        windows = self._windows(x, auto_pad or "NOTSET", ceil_mode, dilations, kernel_shape, pads, strides)
        if count_include_pad:
            return self._pooled(x, windows, lambda window, count: window.sum(axis=2) / count)
        return self._pooled(x, windows, lambda window, _: window.mean(axis=2))


class LpPool(_Pool):
    """With ``ceil_mode``."""

    def _run(
        self,
        x: Array,
        auto_pad: Any = None,
        ceil_mode: Any = None,
        dilations: Any = None,
        kernel_shape: Any = None,
        p: Any = None,
        pads: Any = None,
        strides: Any = None,
    ) -> tuple[Array]:
        windows = self._windows(x, auto_pad or "NOTSET", ceil_mode, dilations, kernel_shape, pads, strides)
        return self._pooled(x, windows, lambda window, _: (np.abs(window) ** p).sum(axis=2) ** (1 / p))


class GlobalMaxPool(OpRun):
    """Of other than two dimensions."""

    def _run(self, x: Array) -> tuple[Array]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class GlobalLpPool(OpRun):
    """The reference has none."""

    def _run(self, x: Array, p: Any = None) -> tuple[Array]:
        return ((np.abs(x) ** p).sum(axis=tuple(range(2, x.ndim)), keepdims=True) ** (1 / p),)


class LpNormalization(OpRun):
    """The reference forgets the absolute value."""

    def _run(self, x: Array, axis: Any = None, p: Any = None) -> tuple[Array]:
        return (x / (np.abs(x) ** p).sum(axis=axis, keepdims=True) ** (1 / p),)


class MeanVarianceNormalization(OpRun):
    """In float64 too."""

    def _run(self, x: Array, axes: Any = None) -> tuple[Array]:
        axes = tuple(axes or (0, 2, 3))
        return ((x - x.mean(axis=axes, keepdims=True)) / (x.std(axis=axes, keepdims=True) + 1e-9),)


class GroupNormalization(OpRun):
    """In float64 too; ``scale`` and ``b`` are per group or per channel."""

    def _run(
        self, x: Array, scale: Array, b: Array, epsilon: Any = None, num_groups: Any = None, stash_type: Any = None
    ) -> tuple[Array]:
        rows = x.reshape(x.shape[0], num_groups, -1)
        centred = rows - rows.mean(axis=2, keepdims=True)
        y = centred / np.sqrt((centred**2).mean(axis=2, keepdims=True) + epsilon)
        y = y.reshape(x.shape[0], len(scale), -1) * scale[:, None] + b[:, None]
        return (y.reshape(x.shape).astype(x.dtype),)


class Erf(OpRun):
    """In float64 too."""

    def _run(self, x: Array) -> tuple[Array]:
        return (np.vectorize(math.erf, otypes=[x.dtype])(x),)


class Gelu(OpRun):
    """In float64 too."""

    def _run(self, x: Array, approximate: Any = None) -> tuple[Array]:
        if approximate == "tanh":
            gate = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
        else:
            gate = np.vectorize(math.erf, otypes=[x.dtype])(x / np.sqrt(2))
        return ((x * (1 + gate) / 2).astype(x.dtype),)


class Mean(OpRun):
    """With a first operand that is broadcast."""

    def _run(self, *operands: Array) -> tuple[Array]:
        return (np.asarray(sum(operands) / len(operands)),)


class LRN(OpRun):
    """The reference takes the batch for the channels."""

    def _run(self, x: Array, alpha: Any = None, beta: Any = None, bias: Any = None, size: Any = None) -> tuple[Array]:
        before, behind = (size - 1) // 2, size // 2
        sums = [(x[:, max(0, c - before) : c + behind + 1] ** 2).sum(axis=1) for c in range(x.shape[1])]
        return (x / (bias + alpha / size * np.stack(sums, axis=1)) ** beta,)


class GatherElements(OpRun):
    """Along negative axes too."""

    def _run(self, x: Array, indices: Array, axis: Any = None) -> tuple[Array]:
        return (np.take_along_axis(x, indices, axis),)


class GridSample(op_grid_sample.GridSample):
    """In float64 too, with the modes by the names that they had before opset 20, and as ONNX Runtime (and PyTorch) pad
    by the border: the elements that are read, not the point between them."""

    def _gs_denormalize_coordinates(self, n: Array, dims: Any, align_corners: bool) -> Array:
        pairs = zip(n, dims, strict=True)
        return np.array([self._gs_denormalize(v, size, align_corners) for v, size in pairs])

    def _prepare_border(self, dims: Any, align_corners: bool) -> Array:
        if self.by_border:
            return np.repeat([-np.inf, np.inf], len(dims))
        return np.asarray(super()._prepare_border(dims, align_corners))

    def _run(self, x: Array, grid: Array, mode: Any = None, padding_mode: Any = None, align_corners: Any = None) -> Any:
        mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
        self.by_border = padding_mode == "border"
        return super()._run(x, grid, mode, padding_mode, align_corners)  # type: ignore[no-untyped-call]


class Pad(OpRun):
    """With negative pads, which crop before the others are filled in."""

    def _run(
        self, data: Array, pads: Any, value: Any = None, axes: Any = None, mode: str | None = None
    ) -> tuple[Array]:
        axes = range(data.ndim) if axes is None else [int(axis) for axis in axes]
        widths = [(0, 0)] * data.ndim
        for axis, begin, end in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
            widths[axis] = max(int(begin), 0), max(int(end), 0)
            data = data.take(range(max(0, -int(begin)), data.shape[axis] - max(0, -int(end))), axis=axis)
        if mode in (None, "constant"):
            return (np.pad(data, widths, constant_values=0 if value is None else np.asarray(value).item()),)
        return (np.pad(data, widths, mode=mode),)  # type: ignore[call-overload]


class NegativeLogLikelihoodLoss(OpRun):
    """The reference counts labels that are ignored in the mean if they are -1."""

    def _run(
        self, x: Array, target: Array, weight: Array | None = None, ignore_index: Any = None, reduction: Any = None
    ) -> tuple[Array]:
        is_read = target != ignore_index
        labels = np.where(is_read, target, 0)
        chosen = is_read * (1.0 if weight is None else weight[labels])
        loss = -chosen * np.take_along_axis(x, labels[:, None], axis=1)[:, 0]
        if reduction == "none":
            return (loss.astype(x.dtype),)
        return (np.asarray(loss.sum() / (chosen.sum() if reduction == "mean" else 1), x.dtype),)


def _last(*index: Any) -> Any:
    """An index of the last axes."""
    return (..., *index)


class Scan(op_scan.Scan):
    """From the last element to the first too."""

    body: Any
    num_scan_inputs: int
    scan_input_directions: Any
    scan_output_directions: Any

    def __init__(self, node: Any, run_params: Any) -> None:
        OpRun.__init__(self, node, run_params)  # its own refuses directions
        inputs, outputs = self.scan_input_directions or [0], self.scan_output_directions or [0]
        assert len({*inputs, *outputs}) == 1, "all in one direction"
        self.step = -1 if inputs[0] else 1
        self.scan_input_directions = self.scan_output_directions = None
        self.input_axes_ = [0] * self.num_scan_inputs
        self.input_names, self.output_names = self.body.input_names, self.body.output_names

    def _run(self, *args: Array, **rest: Any) -> tuple[Array, ...]:
        states = len(args) - self.num_scan_inputs
        flipped = [x[:: self.step] for x in args[states:]]
        found = super()._run(*args[:states], *flipped, **rest)  # type: ignore[no-untyped-call]
        return (*found[:states], *(x[:: self.step] for x in found[states:]))


REPAIRED: list[type[OpRun]] = [
    ConvTranspose,
    Scan,
    MaxPool,
    AveragePool,
    LpPool,
    GlobalMaxPool,
    GlobalLpPool,
    LpNormalization,
    MeanVarianceNormalization,
    GroupNormalization,
    Erf,
    Gelu,
    Mean,
    LRN,
    NegativeLogLikelihoodLoss,
    GatherElements,
    GridSample,
    Pad,
]
