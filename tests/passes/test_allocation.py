"""The exact choice of one option a layer, against trying all."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.passes.lowrank._allocation import Choices, allocate

numbers = st.floats(0, 100, allow_nan=False).map(lambda x: round(x, 2))
option = st.tuples(numbers, numbers)
layers = st.lists(st.lists(option, min_size=1, max_size=5), min_size=0, max_size=4)


@settings(max_examples=60, deadline=None)
@given(layers, st.floats(0.1, 300))
def test_no_other_choice_does_less_damage(found: list[list[tuple[float, float]]], allowed: float) -> None:
    choices = [Choices(*(tuple(column) for column in zip(*layer, strict=True))) for layer in found]
    taken = allocate(choices, allowed)
    affordable = [each for each in product(*found) if sum(cost for cost, _ in each) <= allowed]
    if taken is None:
        assert not affordable
        return
    cost = sum(each.costs[at] for each, at in zip(choices, taken, strict=True))
    damage = sum(each.damages[at] for each, at in zip(choices, taken, strict=True))
    assert cost <= allowed * (1 + 1e-6)
    assert damage <= min(sum(d for _, d in each) for each in affordable) + 1e-3


def test_nothing_fits() -> None:
    assert allocate([Choices((2.0, 1.0), (0.0, 1.0))], 0.5) is None
    assert allocate([], 0.5) == []


@pytest.mark.parametrize(("allowed", "taken"), [(2.0, [0, 0]), (1.5, [1, 0]), (1.0, [1, 1])])
def test_takes_what_costs_least(allowed: float, taken: list[int]) -> None:
    assert allocate([Choices((1.0, 0.5), (0.0, 0.1)), Choices((1.0, 0.5), (0.0, 0.2))], allowed) == taken
