"""Concat, Split, Slice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from onnxopt.errors import GradientError
from tests.gradients.checks import check, check_node

_RNG = np.random.default_rng(0)


def _random(*shape: int) -> np.ndarray[Any, Any]:
    return _RNG.standard_normal(shape)


def _ints(*numbers: int) -> np.ndarray[Any, Any]:
    return np.array(numbers, np.int64)


@pytest.mark.parametrize("wrt", [(0, 1, 2), (1,), (0, 2)])
@pytest.mark.parametrize("axis", [1, -2])
def test_concat(axis: int, wrt: tuple[int, ...]) -> None:
    check_node("Concat", _random(2, 3, 4), _random(2, 1, 4), _random(2, 2, 4), axis=axis, wrt=wrt)


def test_concat_of_one() -> None:
    check_node("Concat", _random(2, 3), axis=0)


def test_concat_of_a_value_with_itself() -> None:
    check([helper.make_node("Concat", ["x", "x"], ["y"], axis=-1)], {"x": _random(2, 3)}, ["x"], ["y"])


@pytest.mark.parametrize("outputs", [(0, 1, 2), (1,), (0, 2), (2,)])
@pytest.mark.parametrize("axis", [0, -2])
def test_split_into_sizes(axis: int, outputs: tuple[int, ...]) -> None:
    nodes = [helper.make_node("Split", ["x", "sizes"], ["a", "b", "c"], axis=axis)]
    arrays = {"x": _random(6, 3), "sizes": _ints(1, 3, 2)}
    check(nodes, arrays, ["x"], ["abc"[i] for i in outputs], constants=["sizes"])


@pytest.mark.parametrize(("size", "count"), [(6, 3), (5, 3), (7, 2), (4, 1)])
@pytest.mark.parametrize("read", [0, -1])
def test_split_into_a_number(size: int, count: int, read: int) -> None:
    names = [f"y{i}" for i in range(count)]
    nodes = [helper.make_node("Split", ["x"], names, axis=1, num_outputs=count)]
    check(nodes, {"x": _random(2, size, 2)}, ["x"], [names[read]])


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        ((1, 0), (4, 3), None, None),
        ((1,), (-1,), (-1,), None),
        ((0, 1), (99, -1), (2, 0), (1, 1)),
        ((-99,), (99,), (1,), (2,)),
        ((1,), (5,), (1,), (3,)),
        ((0, 1), (6, 5), (1, 2), (2, 2)),
        ((-1,), (-99,), (1,), (-1,)),
        ((4,), (0,), (1,), (-2,)),
        ((99, 3, 2), (0, 0, -99), (1, 2, 0), (-3, -1, -2)),
        ((1, 2), (3, 3), (0, 1), (1, 5)),
        ((3,), (2**63 - 1,), (2,), (1,)),
        ((-1,), (-(2**63),), (2,), (-2,)),
        ((2,), (2,), (0,), (1,)),
        ((2,), (2,), (1,), (-1,)),
    ],
)
def test_slice(
    starts: tuple[int, ...], ends: tuple[int, ...], axes: tuple[int, ...] | None, steps: tuple[int, ...] | None
) -> None:
    given = [
        _ints(*starts),
        _ints(*ends),
        None if axes is None else _ints(*axes),
        None if steps is None else _ints(*steps),
    ]
    while given[-1] is None:
        given.pop()
    check_node("Slice", _random(4, 6, 5), *given)


def test_slice_of_int32_places() -> None:
    check_node("Slice", _random(4, 6), np.array([1], np.int32), np.array([3], np.int32), np.array([1], np.int32))


def test_a_slice_that_a_run_decides_is_refused() -> None:
    nodes = [
        helper.make_node("ArgMax", ["x"], ["start"], axis=1, keepdims=0),
        helper.make_node("Slice", ["x", "start", "end", "axis"], ["y"]),
    ]
    with pytest.raises(GradientError, match="is not known; fix the sizes"):
        check(nodes, {"x": _random(1, 4), "end": _ints(4), "axis": _ints(1)}, ["x"], ["y"], constants=["end", "axis"])
