"""The program that chooses, against all plans that there are."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.search.allocation import Correction, Plan, Target, allocate, predict
from onnxopt.search.space import METHODS, Effect, GroupLevels, LayerLevels, Space

PLAIN = Correction(dict.fromkeys(METHODS, 1.0), dict.fromkeys(METHODS, 1.0))
cents = st.integers(1, 100).map(lambda n: n / 100)
effects = st.builds(Effect, cents, cents, cents, cents)


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    layers = tuple(
        LayerLevels(
            name, "Conv", 1.0, 1.0, 1.0,
            draw(st.dictionaries(st.sampled_from([0.25, 0.5]), effects, max_size=2)),
            draw(st.dictionaries(st.sampled_from(["int8", "weight-int4"]), effects)),
        )
        for name in "ab"
    )  # fmt: skip
    levels = st.dictionaries(st.sampled_from([0.25, 0.5, 0.75]), effects, min_size=1, max_size=2)
    groups = (GroupLevels("a", ("a",), ("b",), draw(levels)), GroupLevels("b", ("b",), (), draw(levels)))
    return Space(groups, layers, 2.0, 2.0, 2.0)


def every_plan(space: Space) -> list[Plan]:
    shares = [[None, *group.levels] for group in space.groups]
    forms = [[(rank, i) for rank in (None, *e.split) for i in (None, *e.precisions)] for e in space.layers]
    found = []
    for taken, made in product(product(*shares), product(*forms)):
        prune = tuple((g.name, s) for g, s in zip(space.groups, taken, strict=True) if s is not None)
        layers = [(e.name, *form) for e, form in zip(space.layers, made, strict=True)]
        split = tuple((name, rank) for name, rank, _ in layers if rank is not None)
        found.append(Plan(prune, split, tuple((name, own) for name, _, own in layers if own)))
    return found


@settings(max_examples=40, deadline=None)
@given(spaces(), cents, st.sampled_from(["latency", "size", "macs"]))
def test_no_plan_with_as_little_noise_saves_more(space: Space, noise: float, target: Target) -> None:
    chosen = allocate(space, target, noise, PLAIN)
    assert chosen is not None
    found = predict(space, chosen, PLAIN)
    assert found.noise <= noise + 1e-6
    able = (each for plan in every_plan(space) if (each := predict(space, plan, PLAIN)).noise <= noise)
    assert found.saved[target] == pytest.approx(max(each.saved[target] for each in able), abs=1e-3)


def test_what_two_changes_save_of_one_layer_is_counted_once() -> None:
    half = Effect(0.1, 0.4, 50, 60)
    space = Space(
        (GroupLevels("a", ("a",), ("b",), {0.5: half}), GroupLevels("b", ("b",), (), {0.5: half})),
        (
            LayerLevels("a", "Conv", 1, 100, 120, {}, {"int8": Effect(0.1, 0.5, 0, 90)}),
            LayerLevels("b", "Conv", 1, 100, 120, {}, {}),
        ),
        2, 200, 240,
    )  # fmt: skip
    integers = predict(space, Plan((("a", 0.5),), (), (("a", "int8"),)), PLAIN)
    assert integers.saved == pytest.approx({"latency": 0.4 + 0.5 * 0.5, "macs": 50, "size": 60 + 90 * 0.5})
    both = predict(space, Plan((("a", 0.5), ("b", 0.5))), PLAIN)
    assert both.saved["macs"] == pytest.approx(50 + 50 - 0.25 * 100)
    assert both.saved["size"] == pytest.approx(60 + 60 - 0.25 * 120)
    assert both.noise == pytest.approx(0.2)


def test_other_budgets_are_held_or_there_is_no_plan() -> None:
    fast, small = Effect(0.1, 0.9, 0, 10), Effect(0.1, 0.1, 0, 90)
    space = Space((GroupLevels("a", ("a",), (), {0.25: fast, 0.5: small}),), (), 1, 1, 100)
    assert allocate(space, "latency", 1, PLAIN) == Plan((("a", 0.25),))
    assert allocate(space, "latency", 1, PLAIN, {"size": 0.2}) == Plan((("a", 0.5),))
    assert allocate(space, "latency", 1, PLAIN, {"size": 0.05}) is None


def test_solver_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    half = Effect(0.1, 0.4, 50, 60)
    allocate(Space((GroupLevels("a", ("a",), (), {0.5: half}),), (), 1, 1, 1), "size", 1, PLAIN)
    assert capfd.readouterr().out == ""


def test_what_c_has_buffered_is_not_written_later() -> None:
    """Where standard output is a pipe, C writes when its buffer is full or the process ends."""
    code = (
        "import ctypes\n"
        "from onnxopt.search.allocation import _no_output\n"
        "print('before')\n"
        "with _no_output():\n"
        "    ctypes.CDLL(None).printf(b'noise')\n"
        "print('after')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["before", "after"]
