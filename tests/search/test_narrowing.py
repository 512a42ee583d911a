"""How much noise a budget allows, found on a model of a model."""

from __future__ import annotations

import pytest

from onnxopt.search.allocation import Correction, Plan, predict
from onnxopt.search.budget import Budget
from onnxopt.search.metric import Loss
from onnxopt.search.narrowing import Narrowing, corrected
from onnxopt.search.space import METHODS, Effect, GroupLevels, LayerLevels, Space
from onnxopt.search.trials import Measured

PLAIN = Correction(dict.fromkeys(METHODS, 1.0), dict.fromkeys(METHODS, 1.0))
LEVELS = {0.25: 1.0, 0.5: 3.0, 0.75: 9.0}


def space() -> Space:
    """Twelve groups, each noisier than the one before."""
    groups = tuple(
        GroupLevels(
            f"g{at}", (f"g{at}",), (), {s: Effect(1e-4 * 1.7**at * k, 0.08 * s, s, s) for s, k in LEVELS.items()}
        )
        for at in range(12)
    )  # fmt: skip
    integers = Effect(1e-4, 0.04, 0, 0.75)
    layers = tuple(LayerLevels(f"g{at}", "Conv", 1 / 12, 1, 1, {}, {"int8": integers}) for at in range(12))
    return Space(groups, layers, 1.0, 12.0, 12.0)


def measured(plan: Plan, noise: float, limit: float, latency: float = 0.5) -> Measured:
    drop = 0.0 if noise <= limit else 1.0
    return Measured(plan, Loss(1, 1 - drop, drop, drop, 100), noise, latency, 1, 1)


@pytest.mark.parametrize("limit", [2e-3, 1e-2, 0.3])
def test_plans_end_just_below_what_the_budget_allows(limit: float) -> None:
    found = Narrowing(space(), Budget(0.01, "macs"), ("prune",), 8)
    held = []
    while (plan := found.propose(PLAIN)) is not None:
        noise = predict(space(), plan, PLAIN).noise
        held += [noise] if noise <= limit else []
        found.learn(measured(plan, noise, limit))
    assert limit / 2 < max(held) <= limit


@pytest.mark.parametrize("excess", [0.3, 8.0])
def test_plans_end_there_too_where_expectations_are_far_off(excess: float) -> None:
    limit = 1e-2
    found = Narrowing(space(), Budget(0.01, "macs"), ("prune",), 8)
    held = []
    while (plan := found.propose(PLAIN)) is not None:
        noise = excess * predict(space(), plan, PLAIN).noise ** 1.3
        held += [noise] if noise <= limit else []
        found.learn(measured(plan, noise, limit))
    assert limit / 2 < max(held) <= limit


def test_calmer_plans_follow() -> None:
    found = Narrowing(space(), Budget(0.01, "macs"), ("prune",), 8, calmer=3)
    noises = []
    while (plan := found.propose(PLAIN)) is not None:
        noises.append(predict(space(), plan, PLAIN).noise)
        found.learn(measured(plan, noises[-1], 1e-2))
    most = max(noise for noise in noises if noise <= 1e-2)
    last = noises[-3:]
    assert last == sorted(last, reverse=True)
    assert all(most / 3**at / 2 < noise <= most / 3**at * 1.001 for at, noise in enumerate(last, 1))


def test_search_ends_where_nothing_more_can_be_done() -> None:
    found = Narrowing(space(), Budget(0.5, "size"), ("quantize",), 8)
    plans = []
    while (plan := found.propose(PLAIN)) is not None:
        plans.append(plan)
        found.learn(measured(plan, predict(space(), plan, PLAIN).noise, 1e9))
    assert len(plans[-1].of("int8")) == 12
    assert len(plans) <= 3


def test_what_methods_do_more_than_alone_is_learnt_of_measured_plans() -> None:
    pruned = Plan(tuple((f"g{at}", 0.5) for at in range(6)))
    integers = Plan(precisions=tuple((f"g{at}", "int8") for at in range(12)))
    both = Plan(pruned.prune, (), integers.precisions)
    cleaned = measured(Plan(), 0.0, 1, 1.0)
    given = []
    for plan, noise, saved in ((pruned, 3.0, 0.5), (integers, 1.0, 0.8)):
        alone = predict(space(), plan, PLAIN)
        given.append(measured(plan, noise * alone.noise, 1, 1 - saved * alone.saved["latency"]))
    found = corrected(space(), given, cleaned)
    assert found.noise["prune"] == pytest.approx(3.0, rel=0.2)
    assert found.noise["quantize"] == pytest.approx(1.0, rel=0.2)
    assert found.saving["prune"] == pytest.approx(0.5, rel=0.2)
    assert found.saving["quantize"] == pytest.approx(0.8, rel=0.2)
    expected = predict(space(), both, found)
    assert expected.noise == pytest.approx(sum(each.noise for each in given), rel=0.2)
