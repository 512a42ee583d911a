"""Softmax and its logarithm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.gradients.checks import check_node

_RNG = np.random.default_rng(0)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4), (2, 3, 1, 2)])
@pytest.mark.parametrize("options", [{}, {"axis": 0}, {"axis": -1}])
def test_along_an_axis(op: str, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    check_node(op, 2 * _RNG.standard_normal(shape), **options)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [1, 2, -2, -3])
@pytest.mark.parametrize("opset", [18, 22, 26])
def test_along_an_inner_axis(op: str, axis: int, opset: int) -> None:
    check_node(op, 2 * _RNG.standard_normal((2, 3, 4)), axis=axis, opset=opset)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_of_large_numbers(op: str) -> None:
    x = _RNG.standard_normal((3, 4)) + np.array([[500.0], [0.0], [-500.0]])
    check_node(op, x)
