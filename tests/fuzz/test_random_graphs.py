"""Exact passes on random graphs: same outputs, same interface, valid, a fixed point, the same bytes again.

By default the graphs are the same at every run. ``pytest tests/fuzz --hypothesis-profile=deep`` draws new ones,
for as long as you have patience.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

import onnxopt
from onnxopt.model import from_proto, to_proto
from onnxopt.pass_base import Pass
from onnxopt.passes import ALL
from onnxopt.pipeline import PassManager
from tests.fuzz.models import FLAVOURS, Sample, samples, tried

OPTIONS: dict[str, dict[str, Any]] = {
    "convert-opset": {"version": 22},
    "distill": {"batch": 1, "epochs": 1},
    "distill-blocks": {"batch": 1, "epochs": 1},
    "finetune": {"batch": 1, "epochs": 1},
    "prune-vocabulary": {"unknown": 0},
    "qat": {"batch": 1, "epochs": 1},
    "self-distill": {"batch": 1, "epochs": 1},
    "quantize-static": {"placement": "all"},  # what is measured depends on the machine
}
"""Options for passes that cannot do without, or should not be left to themselves, by name."""


def settings_for(examples: int) -> settings:
    """So many fixed examples, unless a profile asks for more."""
    if settings.get_current_profile_name() == "deep":
        return settings()
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def exact_passes() -> list[Pass]:
    """One of each exact pass of the catalogue, with default options."""
    return [pass_(**OPTIONS.get(pass_.name, {})) for pass_ in ALL if pass_.exact]


def test_options_are_for_passes_that_need_them() -> None:
    required = {
        pass_.name
        for pass_ in ALL
        for option in dataclasses.fields(pass_)
        if option.default is dataclasses.MISSING and option.default_factory is dataclasses.MISSING
    }
    assert required <= set(OPTIONS)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_each_exact_pass_alone(flavour: str) -> None:
    @settings_for(50)
    @given(samples(flavour))
    def check(sample: Sample) -> None:
        model = from_proto(sample.model)
        plain = to_proto(model)
        for pass_ in exact_passes():
            result, report = PassManager([pass_], verify="off").run(model)
            assert not report.problems, (str(pass_), report.problems)
            after = to_proto(result)
            if report.changed == 0:
                assert after == plain, f"{pass_} changed the model and says that it did not"
                continue
            try:
                sample.check(after)
            except Exception as error:
                changes = [str(note) for each in report.passes for note in each.changes]
                raise AssertionError(f"{pass_}: {error}\nchanges: {changes}") from error
        assert to_proto(model) == plain, "a pass edited the model that it was given a copy of"

    check()


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_cleanup_recipe(flavour: str) -> None:
    @settings_for(50)
    @given(samples(flavour))
    def check(sample: Sample) -> None:
        first = onnxopt.optimize(sample.model, recipe="cleanup", verify="off")
        assert not first.report.problems, first.report.problems
        sample.check(first.model)

        verified = onnxopt.optimize(sample.model, recipe="cleanup", verify="end")
        assert not verified.report.problems, f"verification fails a good model: {verified.report.problems}"
        assert _bytes(verified.model) == _bytes(first.model), "two runs gave different bytes"

        again = onnxopt.optimize(first.model, recipe="cleanup", verify="off")
        changes = [str(note) for each in again.report.passes for note in each.changes]
        assert not changes, f"a second run changed {changes}"
        assert again.model == first.model

    check()


def test_few_graphs_are_refused() -> None:
    """The generator is worth its time only while nearly all that it makes can be used."""
    tried.clear()

    @settings_for(60)
    @given(samples("everything"))
    def make(sample: Sample) -> None:
        assert len(sample.expected) == 2

    make()
    assert tried["made"] >= 50
    assert tried["refused"] <= 0.1 * tried["made"], tried


def _bytes(model: Any) -> bytes:
    content: bytes = model.SerializeToString(deterministic=True)
    return content
