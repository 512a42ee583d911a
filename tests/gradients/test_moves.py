"""Operators that move elements or repeat them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.gradients.checks import check_node

_RNG = np.random.default_rng(0)


def _random(*shape: int) -> np.ndarray[Any, Any]:
    return _RNG.standard_normal(shape)


def _ints(*numbers: int) -> np.ndarray[Any, Any]:
    return np.array(numbers, np.int64)


@pytest.mark.parametrize("opset", [18, 21, 24])
@pytest.mark.parametrize(
    ("shape", "to", "allowzero"),
    [((2, 6), (3, 4), 0), ((2, 6), (-1,), 0), ((2, 6), (0, 2, 3), 0), ((0, 3), (3, 0), 1), ((1,), (), 0)],
)
def test_reshape(shape: tuple[int, ...], to: tuple[int, ...], allowzero: int, opset: int) -> None:
    check_node("Reshape", _random(*shape), _ints(*to), allowzero=allowzero, opset=opset)


@pytest.mark.parametrize(("axis", "opset"), [(0, 18), (1, 21), (3, 23), (-1, 24), (None, 25)])
def test_flatten(axis: int | None, opset: int) -> None:
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    check_node("Flatten", _random(2, 3, 4), opset=opset, **attributes)


@pytest.mark.parametrize(("perm", "opset"), [(None, 18), ((0, 2, 1), 21), ((2, 0, 1), 23), ((0, 1, 2), 25)])
def test_transpose(perm: tuple[int, ...] | None, opset: int) -> None:
    attributes: dict[str, Any] = {} if perm is None else {"perm": perm}
    check_node("Transpose", _random(2, 3, 4), opset=opset, **attributes)


@pytest.mark.parametrize("opset", [18, 21, 25])
@pytest.mark.parametrize("axes", [(0,), (-2, 0), None])
def test_squeeze(axes: tuple[int, ...] | None, opset: int) -> None:
    check_node("Squeeze", _random(1, 3, 1, 4), *([] if axes is None else [_ints(*axes)]), opset=opset)


@pytest.mark.parametrize("opset", [18, 21, 25])
@pytest.mark.parametrize("axes", [(0,), (-1, 1)])
def test_unsqueeze(axes: tuple[int, ...], opset: int) -> None:
    check_node("Unsqueeze", _random(3, 4), _ints(*axes), opset=opset)


@pytest.mark.parametrize(
    ("shape", "to"),
    [((3, 1), (2, 3, 4)), ((3, 4), (3, 4)), ((3, 4), (1, 1)), ((1,), (5,)), ((), (2, 3)), ((2, 1, 3), (4, 1))],
)
def test_expand(shape: tuple[int, ...], to: tuple[int, ...]) -> None:
    check_node("Expand", _random(*shape), _ints(*to))


@pytest.mark.parametrize("repeats", [(2, 1, 3), (1, 1, 1), (1, 4, 1), (2, 0, 1)])
def test_tile(repeats: tuple[int, ...]) -> None:
    check_node("Tile", _random(2, 3, 1), _ints(*repeats))


@pytest.mark.parametrize("attributes", [{}, {"mode": "DCR"}, {"mode": "CRD"}])
def test_depth_to_space(attributes: dict[str, Any]) -> None:
    check_node("DepthToSpace", _random(2, 12, 3, 4), blocksize=2, **attributes)


def test_space_to_depth() -> None:
    check_node("SpaceToDepth", _random(2, 3, 4, 6), blocksize=2)
