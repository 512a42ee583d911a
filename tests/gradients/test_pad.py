"""Pad and CenterCropPad."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from tests.gradients.checks import check, check_node

_RNG = np.random.default_rng(0)
_Array = np.ndarray[Any, Any]
_CASES = [
    pytest.param((3, 5), (0, 1, 0, 2), None, id="one-axis"),
    pytest.param((3, 5), (2, 1, 1, 3), None, id="two-axes"),
    pytest.param((2, 3, 5, 4), (0, 0, 1, 2, 0, 0, 1, 1), None, id="image"),
    pytest.param((2, 3, 5, 4), (1, 2, 2, 1), (-1, -2), id="axes"),
    pytest.param((2, 3, 5, 4), (2, 1), (2,), id="one-of-axes"),
    pytest.param((3, 5), (0, 0, 0, 0), None, id="nothing"),
    pytest.param((3, 5), (0, 2, 0, -1), None, id="one-negative"),
    pytest.param((3, 5), (-1, -2, 0, -1), None, id="all-negative"),
    pytest.param((3, 70), (1, 2, 0, 3), None, id="long-axis"),
    pytest.param((5, 9), (3, 0, 2, 0), None, id="long-rows"),
]


def _random(*shape: int) -> _Array:
    return _RNG.standard_normal(shape)


def _ints(*numbers: int) -> _Array:
    return np.array(numbers, np.int64)


@pytest.mark.parametrize(
    ("mode", "opset"),
    [
        (None, 18),
        ("constant", 25),
        ("reflect", 18),
        ("reflect", 24),
        ("edge", 19),
        ("edge", 23),
        ("wrap", 19),
        ("wrap", 25),
    ],
)
@pytest.mark.parametrize(("shape", "pads", "axes"), _CASES)
def test_pad(
    shape: tuple[int, ...], pads: tuple[int, ...], axes: tuple[int, ...] | None, mode: str | None, opset: int
) -> None:
    attributes: dict[str, Any] = {} if mode is None else {"mode": mode}
    given = [_random(*shape), _ints(*pads), None, _ints(*axes)] if axes else [_random(*shape), _ints(*pads)]
    check_node("Pad", *given, opset=opset, **attributes)


@pytest.mark.parametrize("wrt", [["x"], ["c"], ["x", "c"]])
@pytest.mark.parametrize("pads", [(2, 1, 1, 3), (0, 2, 0, -1), (0, 0, 0, 0)])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_constant(shape: tuple[int, ...], pads: tuple[int, ...], wrt: list[str]) -> None:
    arrays = {"x": _random(3, 5), "pads": _ints(*pads), "c": np.array(_random(*shape))}
    check([helper.make_node("Pad", list(arrays), ["y"])], arrays, wrt, ["y"], constants=["pads"])


@pytest.mark.parametrize(
    ("shape", "to", "axes"),
    [
        ((5, 4), (3, 3), None),
        ((5, 4), (8, 7), None),
        ((5, 4), (8, 1), None),
        ((5, 4), (5, 4), None),
        ((2, 5, 4), (7, 2), (-1, 1)),
        ((2, 5, 4), (8,), (2,)),
    ],
)
def test_center_crop_pad(shape: tuple[int, ...], to: tuple[int, ...], axes: tuple[int, ...] | None) -> None:
    attributes: dict[str, Any] = {} if axes is None else {"axes": axes}
    check_node("CenterCropPad", _random(*shape), _ints(*to), **attributes)
