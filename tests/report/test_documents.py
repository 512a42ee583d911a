"""What reports say is what results hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from onnxopt.errors import OptionError
from onnxopt.report import Origin
from onnxopt.report.write import document_of
from tests.report.cases import (
    ENTITY,
    IMAGE,
    PLAN,
    RESULTS,
    SCRIPT,
    SENSITIVITIES,
    auto_result,
    compared,
    optimized,
)

GUIDE = Path(__file__).parents[2] / "docs" / "report.md"
ORIGIN = Origin("m.onnx", "onnxopt auto m.onnx", {"data": "abc"}, {"bootstrap": 0}, 3.5)


def json_of(result: Any) -> dict[str, Any]:
    return document_of(result, ORIGIN).json


def by(rows: list[dict[str, Any]], key: str) -> dict[Any, dict[str, Any]]:
    return {row[key]: row for row in rows}


def test_a_search_tells_what_was_gained_and_lost() -> None:
    result = auto_result()
    found = json_of(result)
    rows = by(found["before_after"], "what")
    assert (rows["size"]["before"], rows["size"]["after"]) == (result.before.file_bytes, 800)
    assert rows["macs"]["after"] == 700
    assert rows["parameters"] == {"what": "parameters", "before": 80, "after": 40, "change": -0.5, "interval": None}
    assert (rows["latency"]["after"], rows["latency"]["change"]) == (0.6, pytest.approx(-0.4))
    assert rows["latency"]["interval"] == [pytest.approx(-0.42), pytest.approx(-0.37)]
    assert (rows["score"]["before"], rows["score"]["after"]) == (0.95, 0.942)
    assert rows["score"]["interval"] == [-0.013, -0.003]
    assert found["holds"] is True
    budget = found["budget"]
    assert (budget["max_drop"], budget["high"], budget["samples"]) == (0.02, 0.013, 200)
    assert (budget["max_size"], budget["size"], budget["holds"], budget["problem"]) == (0.9, 0.5, True, "")


def test_a_budget_that_does_not_hold_is_said_first() -> None:
    result = auto_result(holds=False)
    document = document_of(result, ORIGIN)
    assert document.holds is False
    assert document.verdict.startswith(f"The budget does not hold: {result.problem}")
    assert document.json["budget"]["problem"] == result.problem


def test_a_search_tells_why_each_change_was_refused() -> None:
    rows = json_of(auto_result())["alternatives"]
    why = {(row["place"], row["method"], row["level"]): (row["decision"], row["why"]) for row in rows}
    assert why["wide", "prune", 0.25][0] == "chosen"
    assert why[SCRIPT, "quantize", "int8"][0] == "chosen"
    refused = {key: text for key, (decision, text) in why.items() if decision == "refused"}
    assert refused["wide", "prune", 0.5] == (
        "alone makes more noise (0.5) than the noisiest model that kept the budget (0.05)"
    )
    assert refused["deep", "prune", 0.125].startswith("saves too little for its noise")
    assert refused["last", "prune", None] == "is not pruned: its channels are an output of the model"
    assert refused[SCRIPT, "split", 0.5] == "slower here, by 50.0 µs"
    assert refused[SCRIPT, "split", 0.25].startswith("saves too little for its noise")
    assert refused[IMAGE, "quantize", "int8"].startswith("was planned, but is slower here among its neighbours")
    assert refused[ENTITY, "quantize", "int8"] == "saves nothing"
    assert len(why) == 9


def test_another_level_that_was_chosen_is_the_reason() -> None:
    result = auto_result()
    levels = result.space.groups[0].levels
    levels |= {0.125: levels[0.25]}
    try:
        rows = json_of(result)["alternatives"]
    finally:
        del levels[0.125]
    (row,) = (row for row in rows if (row["place"], row["level"]) == ("wide", 0.125))
    assert row["why"] == "without 25% of its channels was chosen, which saves as much or more"


def test_a_search_tells_of_each_layer() -> None:
    layers = by(json_of(auto_result())["layers"], "layer")
    assert layers[SCRIPT]["chosen"] == [{"method": "quantize", "level": "int8"}]
    assert (layers[SCRIPT]["seconds"], layers[SCRIPT]["saved"], layers[SCRIPT]["noise"]) == (1e-3, 4e-4, 0.001)
    assert layers["wide"]["chosen"] == [{"method": "prune", "level": 0.25}]
    assert layers[IMAGE]["chosen"] == []
    assert set(layers) == {SCRIPT, IMAGE, ENTITY, "wide", "deep", "last"}


def test_a_search_draws_all_models_and_all_changes() -> None:
    result = auto_result()
    found = json_of(result)
    series = found["pareto"]["series"]
    assert [point["x"] for point in series["measured"]] == [each.latency for each in result.found]
    assert (series["chosen"][0]["x"], series["chosen"][0]["y"]) == (0.6, pytest.approx(0.01))
    assert (series["chosen"][0]["low"], series["chosen"][0]["high"]) == (pytest.approx(0.005), pytest.approx(0.015))
    assert found["pareto"]["limits"] == {"largest loss allowed": 0.02}
    drawn = found["sensitivity"]["series"]
    assert {key: len(points) for key, points in drawn.items()} == {"prune": 3, "split": 2, "quantize": 3, "chosen": 2}
    quantized = {point["about"][0]: point for point in drawn["quantize"]}
    assert quantized[SCRIPT]["x"] == pytest.approx(4e-4 / 2e-3)
    assert quantized[SCRIPT]["y"] == 0.001
    verdicts = [row["verdict"] for row in found["models"]]
    assert verdicts == [
        "no other beats it, may lose too much",
        "no other beats it, but may lose too much on the samples kept for the end",
        "chosen",
        "no other beats it",
    ]
    assert found["models"][2]["plan"] == {
        "prune": {"wide": 0.25},
        "split": {},
        "precisions": dict(PLAN.precisions),
        "epochs": 0,
    }
    assert found["models"][2]["final"] == 0.013


def test_a_run_tells_what_passes_did() -> None:
    found = json_of(optimized())
    assert found["passes"] == [
        {"pass": "fuse-gemm", "changed": 1, "refused": 1},
        {"pass": "quantize-static", "changed": 1, "refused": 0},
    ]
    assert found["changes"] == [
        {"node": SCRIPT, "pass": "fuse-gemm", "text": "fused"},
        {"node": ENTITY, "pass": "quantize-static", "text": "computed with integers"},
    ]
    assert found["refusals"] == [{"node": IMAGE, "pass": "fuse-gemm", "text": "others read it"}]
    (quality,) = found["quality"]
    assert quality == {
        "pass": "quantize-static", "output": "y", "sqnr_db": 31.5, "agreement": 0.98, "accuracy": [0.95, 0.94],
        "samples": 64,
    }  # fmt: skip
    assert found["quantize_static_by_node"][0]["float_us"] == 5.0
    assert found["quantize_static_by_tensor"][0]["tensor"] == IMAGE
    (point,) = found["quantize_static_plot"]["series"]["nodes"]
    assert (point["x"], point["y"]) == (3.0, 40.0)
    assert [p["y"] for p in found["distill_plot"]["series"]["loss"]] == [1.0, 0.5, 1 / 3]
    rows = by(found["before_after"], "what")
    assert rows["latency"]["interval"] == [pytest.approx(-0.52), pytest.approx(-0.47)]
    assert rows["score"]["interval"] == [-0.03, -0.01]


@pytest.mark.parametrize(
    ("budget", "holds", "said"),
    [
        ({"max_drop": 0.03, "min_sqnr": 30.0}, True, "The budget holds."),
        ({"max_drop": 0.01}, False, "The budget does not hold: y loses 2.00%, of at most 1.00%."),
        ({"min_sqnr": 40.0}, False, "The budget does not hold: y has 31.5 dB, of at least 40."),
    ],
)
def test_a_run_is_held_to_its_budget(budget: dict[str, float], holds: bool, said: str) -> None:
    document = document_of(optimized(budget=budget), ORIGIN)
    assert document.holds is holds
    assert document.verdict.startswith(said)
    assert document.json["budget"] | budget == document.json["budget"]


def test_a_comparison_tells_which_output_differs() -> None:
    document = document_of(compared(), ORIGIN)
    assert document.holds is False
    outputs = by(document.json["outputs"], "output")
    assert (outputs[SCRIPT]["same"], outputs[SCRIPT]["sqnr_db"]) == (True, None)
    assert (outputs[IMAGE]["same"], outputs[IMAGE]["sqnr_db"], outputs[IMAGE]["movement"]) == (False, 20.0, 0.1)


@pytest.mark.parametrize("rows", SENSITIVITIES.values(), ids=SENSITIVITIES)
def test_sensitivities_are_all_in_the_table_and_drawn(rows: list[Any]) -> None:
    found = json_of(rows)
    for row, told in zip(rows, found["layers"], strict=True):
        assert told == {key: getattr(row, key) for key in told}
    points = [point for series in found["sensitivity"]["series"].values() for point in series]
    assert sorted(p["y"] for p in points) == sorted(row.sqnr_db for row in rows if row.sqnr_db is not None)


def test_sensitivities_of_nothing() -> None:
    document = document_of([], ORIGIN)
    assert document.verdict == "No layer could be changed by this method."


def test_where_it_comes_from() -> None:
    run = json_of(compared())["run"]
    assert (run["command"], run["data"], run["seeds"]) == ("onnxopt auto m.onnx", {"data": "abc"}, {"bootstrap": 0})
    assert run["seconds"] == 3.5
    assert {"processor", "cores", "system", "python", "onnxopt", "onnxruntime", "onnx", "numpy"} <= run.keys()


@pytest.mark.parametrize("result", ["text", 3, [3], [SENSITIVITIES["int8"][0], SENSITIVITIES["prune"][0]]])
def test_there_is_no_report_of_anything_else(result: object) -> None:
    with pytest.raises(OptionError, match="report of"):
        document_of(result, ORIGIN)


def test_every_key_is_documented() -> None:
    named = set(re.findall(r"`(\w+)`", GUIDE.read_text(encoding="utf-8")))
    for name, result in RESULTS.items():
        found = json_of(result)
        rows = [row for body in found.values() if isinstance(body, list) for row in body if isinstance(row, dict)]
        keys = set(found) | set(found["run"]) | set(found.get("budget", {})) | {key for row in rows for key in row}
        measured = {key for key in keys if re.search(r"_(plot|by_\w+)$", key)}
        of_passes = {key for body in measured if isinstance(found[body], list) for row in found[body] for key in row}
        assert keys - measured - of_passes <= named, name
