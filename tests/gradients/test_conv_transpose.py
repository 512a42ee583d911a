"""Transposed convolution: strides, groups, and everything that decides the size of its output."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.gradients.checks import check_node

_RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        pytest.param((2, 3, 5), (3, 4, 3), {}, id="1d"),
        pytest.param((1, 2, 3, 4, 3), (2, 3, 2, 3, 2), {"strides": [2, 1, 2]}, id="3d"),
        pytest.param((2, 3, 5, 4), (3, 2, 3, 3), {"pads": [1, 1, 1, 1]}, id="padded"),
        pytest.param((2, 3, 5, 4), (3, 2, 3, 2), {"pads": [1, 0, 2, 1], "strides": [2, 3]}, id="asymmetric"),
        pytest.param((2, 3, 4, 4), (3, 6, 2, 2), {"strides": [2, 2]}, id="doubling"),
        pytest.param(
            (2, 3, 4, 4),
            (3, 6, 3, 3),
            {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
            id="output-padding",
        ),
        pytest.param((2, 3, 4, 4), (3, 2, 2, 2), {"strides": [3, 3], "output_padding": [2, 1]}, id="beyond-windows"),
        pytest.param((2, 4, 5, 4), (4, 3, 3, 3), {"group": 2, "dilations": [2, 1]}, id="grouped"),
        pytest.param((2, 4, 5, 4), (4, 1, 3, 3), {"group": 4, "strides": [2, 2]}, id="depthwise"),
        pytest.param((2, 4, 5, 4), (4, 3, 3, 3), {"auto_pad": "VALID", "strides": [2, 2]}, id="valid"),
        pytest.param((2, 3, 5, 4), (3, 2, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, id="same-upper"),
        pytest.param((2, 3, 5, 4), (3, 2, 3, 3), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, id="same-lower"),
        pytest.param((2, 3, 5, 4), (3, 2, 4, 3), {"output_shape": [9, 8], "strides": [2, 2]}, id="output-shape"),
        pytest.param(
            (2, 3, 5, 4),
            (3, 2, 4, 3),
            {"output_shape": [9, 8], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
            id="output-shape-upper",
        ),
    ],
)
@pytest.mark.parametrize(("bias", "opset"), [(True, 18), (False, 22)])
def test_conv_transpose(
    x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any], bias: bool, opset: int
) -> None:
    arrays = [_RNG.standard_normal(x), _RNG.standard_normal(w)]
    if bias:
        arrays.append(_RNG.standard_normal(w[1] * attributes.get("group", 1)))
    check_node("ConvTranspose", *arrays, opset=opset, **attributes)


def test_output_padding_of_more_than_the_stride() -> None:
    x, w = _RNG.standard_normal((2, 3, 4, 4)), _RNG.standard_normal((3, 2, 2, 2))
    # ONNX allows it, ONNX Runtime refuses the node itself
    check_node("ConvTranspose", x, w, dilations=[3, 3], output_padding=[2, 1], runtime=False)
