"""Columns that are added up where windows overlap."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.gradients.checks import check_node

_RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("size", "kernel", "attributes"),
    [
        ((5, 6), (2, 3), {}),
        ((5, 6), (1, 1), {}),
        ((6, 6), (2, 2), {"strides": [2, 2]}),
        ((7, 6), (2, 3), {"strides": [2, 3], "dilations": [2, 1], "pads": [1, 0, 0, 1]}),
        ((5, 4), (3, 3), {"pads": [1, 2, 2, 1]}),
        ((9,), (3,), {"strides": [2], "pads": [1, 1]}),
        ((4, 3, 5), (2, 2, 3), {"strides": [2, 1, 1], "pads": [0, 1, 1, 0, 0, 1]}),
    ],
)
@pytest.mark.parametrize("opset", [18, 26])
def test_col2im(size: tuple[int, ...], kernel: tuple[int, ...], attributes: dict[str, Any], opset: int) -> None:
    rank = len(size)
    ones = [1] * rank
    pads = np.array(attributes.get("pads", [0, 0] * rank)).reshape(2, rank).sum(axis=0)
    reach = (np.array(kernel) - 1) * attributes.get("dilations", ones) + 1
    out = (np.array(size) + pads - reach) // attributes.get("strides", ones) + 1
    columns = _RNG.standard_normal((2, 3 * np.prod(kernel), np.prod(out)))
    check_node("Col2Im", columns, np.array(size), np.array(kernel), opset=opset, **attributes)
