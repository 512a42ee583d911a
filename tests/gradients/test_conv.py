"""Convolution: every form of padding, stride and group, and each way that its gradients are computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.gradients.checks import check_node

_RNG = np.random.default_rng(0)


def _conv(x: tuple[int, ...], w: tuple[int, ...], *, bias: bool = True, **attributes: Any) -> None:
    arrays = [_RNG.standard_normal(x), _RNG.standard_normal(w) / w[1] ** 0.5]
    if bias:
        arrays.append(_RNG.standard_normal(w[0]))
    check_node("Conv", *arrays, **attributes)


@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        pytest.param((2, 3, 9), (4, 3, 3), {}, id="1d"),
        pytest.param((2, 5, 9), (4, 5, 3), {"strides": [2], "pads": [2, 1], "dilations": [2]}, id="1d-strided"),
        pytest.param((1, 2, 5, 4, 5), (3, 2, 2, 3, 2), {"pads": [1, 0, 1, 0, 1, 0]}, id="3d"),
        pytest.param((2, 5, 4, 4, 5), (3, 5, 3, 1, 2), {"strides": [2, 1, 2]}, id="3d-strided"),
        pytest.param((2, 3, 7, 6), (4, 3, 3, 3), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, id="same-size"),
        pytest.param((2, 3, 7, 6), (4, 3, 3, 2), {"pads": [0, 1, 2, 0]}, id="asymmetric"),
        pytest.param((2, 5, 8, 9), (4, 5, 3, 3), {"strides": [2, 3], "pads": [1, 1, 0, 1]}, id="strided"),
        pytest.param((2, 5, 12, 11), (4, 5, 3, 3), {"strides": [2, 2], "pads": [0, 0, 1, 1]}, id="missed-rows"),
        pytest.param((2, 5, 9, 9), (4, 5, 3, 2), {"dilations": [2, 3], "pads": [2, 1, 2, 1]}, id="dilated"),
        pytest.param((2, 4, 9, 8), (6, 2, 3, 3), {"group": 2, "strides": [2, 1]}, id="grouped"),
        pytest.param((2, 3, 6, 5), (4, 3, 1, 1), {}, id="pointwise"),
        pytest.param((2, 5, 6, 7), (4, 5, 1, 1), {"strides": [2, 2]}, id="pointwise-strided"),
        pytest.param((2, 5, 3, 3), (4, 5, 1, 1), {"pads": [1, 1, 1, 1]}, id="pointwise-padded"),
        pytest.param((2, 8, 6, 7), (2, 8, 3, 3), {"pads": [1, 1, 1, 1]}, id="fewer-channels-out"),
        pytest.param((2, 8, 5, 6), (2, 8, 2, 2), {"pads": [2, 2, 3, 2]}, id="padded-by-more-than-the-window"),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_conv(x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any], bias: bool) -> None:
    _conv(x, w, bias=bias, **attributes)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("strides", [[1, 1], [2, 3]])
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4), (1, 1)])
def test_automatic_padding(auto_pad: str, strides: list[int], kernel: tuple[int, int]) -> None:
    _conv((2, 5, 7, 8), (3, 5, *kernel), auto_pad=auto_pad, strides=strides)


@pytest.mark.parametrize(
    ("size", "attributes"),
    [
        ((5, 4), {"pads": [1, 1, 1, 1]}),
        ((6, 5), {"pads": [1, 0, 1, 1], "strides": [2, 2]}),
        ((9, 9), {"dilations": [2, 2]}),
        ((10, 9), {"pads": [1, 1, 1, 1]}),
        ((13, 12), {"pads": [0, 1, 1, 0], "strides": [2, 1], "dilations": [1, 2]}),
    ],
)
def test_depthwise(size: tuple[int, int], attributes: dict[str, Any]) -> None:
    _conv((2, 3, *size), (3, 1, 3, 3), group=3, **attributes)


def test_depthwise_with_several_filters_a_channel() -> None:
    _conv((2, 3, 6, 5), (6, 1, 3, 3), group=3, pads=[1, 1, 1, 1], strides=[1, 2])


def test_depthwise_in_one_and_three_dimensions() -> None:
    _conv((2, 3, 9), (3, 1, 4), group=3, pads=[1, 2])
    _conv((2, 2, 4, 3, 3), (2, 1, 2, 2, 2), group=2, strides=[2, 1, 1])


@pytest.mark.parametrize("opset", [18, 22, 26])
@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        pytest.param((1, 5, 23, 24), (2, 5, 3, 3), {"pads": [1, 1, 1, 1]}, id="many-positions"),
        pytest.param((1, 5, 13, 12), (2, 5, 3, 2), {"pads": [1, 1, 1, 0]}, id="some-positions"),
        pytest.param((1, 5, 16, 11), (2, 5, 3, 2), {"dilations": [2, 3], "pads": [1, 0, 2, 3]}, id="some-dilated"),
        pytest.param((1, 5, 140), (6, 5, 3), {"pads": [1, 1]}, id="some-positions-1d"),
        pytest.param((1, 5, 5, 6, 6), (2, 5, 2, 3, 3), {"pads": [0, 1, 1, 1, 1, 1]}, id="some-positions-3d"),
        pytest.param((2, 5, 8, 7), (6, 5, 3, 3), {"pads": [1, 1, 1, 1]}, id="few-positions"),
        pytest.param((1, 5, 3, 2), (7, 5, 3, 2), {"pads": [1, 1, 1, 0]}, id="fewer-than-channels"),
    ],
)
def test_each_form_of_the_weight_gradient(
    x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any], opset: int
) -> None:
    _conv(x, w, opset=opset, **attributes)


def test_weights_alone_and_input_alone() -> None:
    x, w = _RNG.standard_normal((2, 5, 6, 6)), _RNG.standard_normal((3, 5, 3, 3))
    check_node("Conv", x, w, wrt=[1])
    check_node("Conv", x, w, wrt=[0], constants=[1])
