"""Pooling: every way to lay windows, of one to three dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.gradients.checks import Array, check_node

_RNG = np.random.default_rng(0)
_FORMS = [
    pytest.param((2, 3, 9), {"kernel_shape": [3]}, id="1d"),
    pytest.param((2, 3, 9), {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}, id="1d-padded"),
    pytest.param((2, 2, 8), {"kernel_shape": [2], "strides": [2]}, id="1d-tiled"),
    pytest.param((2, 2, 9, 8), {"kernel_shape": [2, 2], "strides": [2, 1], "pads": [1, 0, 0, 1]}, id="2x2"),
    pytest.param((2, 2, 8, 6), {"kernel_shape": [2, 2], "strides": [2, 2]}, id="tiled"),
    pytest.param((1, 2, 16, 18), {"kernel_shape": [2, 3], "strides": [2, 3]}, id="tiled-large"),
    pytest.param((1, 2, 12, 14), {"kernel_shape": [3, 2], "strides": [1, 2], "pads": [1, 1, 1, 0]}, id="large"),
    pytest.param((2, 2, 7, 8), {"kernel_shape": [2, 2], "strides": [3, 3]}, id="gaps"),
    pytest.param((2, 2, 9, 8), {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}, id="overlapping"),
    pytest.param(
        (2, 2, 9, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}, id="ceil"
    ),
    pytest.param((2, 2, 9, 7), {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, id="ceil-2x2"),
    pytest.param(
        (2, 2, 10, 9),
        {"kernel_shape": [3, 3], "strides": [3, 3], "pads": [0, 1, 1, 0], "ceil_mode": 1},
        id="ceil-uneven",
    ),
    pytest.param((2, 2, 9, 8), {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER", "strides": [2, 2]}, id="upper"),
    pytest.param((2, 2, 9, 8), {"kernel_shape": [3, 3], "auto_pad": "SAME_LOWER"}, id="lower"),
    pytest.param((2, 2, 9, 8), {"kernel_shape": [3, 2], "auto_pad": "VALID", "strides": [2, 2]}, id="valid"),
    pytest.param(
        (1, 2, 5, 4, 5), {"kernel_shape": [2, 2, 3], "pads": [1, 0, 1, 0, 1, 1], "strides": [2, 1, 2]}, id="3d"
    ),
]
_DILATED = [
    pytest.param((2, 2, 9, 8), {"kernel_shape": [2, 2], "dilations": [2, 3], "pads": [1, 1, 0, 1]}, id="dilated"),
    pytest.param((2, 2, 12), {"kernel_shape": [3], "dilations": [2], "strides": [2]}, id="1d-dilated"),
    pytest.param((1, 2, 5, 5, 5), {"kernel_shape": [2, 2, 2], "dilations": [2, 1, 3]}, id="3d-dilated"),
    pytest.param(
        (2, 2, 9, 8),
        {"kernel_shape": [3, 2], "dilations": [2, 2], "strides": [2, 2], "ceil_mode": 1},
        id="dilated-ceil",
    ),
]


def _distinct(shape: tuple[int, ...]) -> Array:
    """Numbers far enough apart that no step of finite differences changes their order, none of them near 0."""
    count = int(np.prod(shape))
    return _RNG.permutation(np.linspace(-1, 1, count + count % 2)[:count]).reshape(shape)


@pytest.mark.parametrize("opset", [18, 26])
@pytest.mark.parametrize(("shape", "attributes"), [*_FORMS, *_DILATED])
def test_max_pool(shape: tuple[int, ...], attributes: dict[str, Any], opset: int) -> None:
    check_node("MaxPool", _distinct(shape), opset=opset, **attributes)


@pytest.mark.parametrize("kernel", [[2, 2], [3, 2]])
def test_max_pool_whose_indices_are_column_major(kernel: list[int]) -> None:
    check_node("MaxPool", _distinct((2, 2, 7, 6)), kernel_shape=kernel, storage_order=1, pads=[1, 0, 1, 1])


@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize(("shape", "attributes"), _FORMS)
def test_average_pool(shape: tuple[int, ...], attributes: dict[str, Any], include: int) -> None:
    check_node("AveragePool", _RNG.standard_normal(shape), count_include_pad=include, **attributes)


@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize(("shape", "attributes"), _DILATED)
def test_average_pool_with_dilations(shape: tuple[int, ...], attributes: dict[str, Any], include: int) -> None:
    x = _RNG.standard_normal(shape)
    for opset in (19, 22):
        check_node("AveragePool", x, opset=opset, count_include_pad=include, **attributes)


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize(("shape", "attributes"), [*_FORMS, *_DILATED])
def test_lp_pool(shape: tuple[int, ...], attributes: dict[str, Any], p: int) -> None:
    check_node("LpPool", _distinct(shape), p=p, **attributes)


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5), (2, 2, 3, 2, 3)])
def test_global_pools(shape: tuple[int, ...]) -> None:
    check_node("GlobalAveragePool", _RNG.standard_normal(shape))
    check_node("GlobalMaxPool", _distinct(shape))
    for p in (1, 2, 3):
        check_node("GlobalLpPool", _distinct(shape), p=p)
