"""Reports as files: of what commands and functions return, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import onnxopt
from onnxopt.errors import OptionError, OutputError
from onnxopt.model import load, save
from onnxopt.report import write
from onnxopt.report.write import write_report
from tests.command_line import CommandLine, untouched
from tests.report.cases import compared
from tests.train.cases import perceptron, sectors

PRUNED = "cleanup,prune-channels{ratio=0.5,timed=false}"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capsys)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model, another, and labelled samples."""
    save(perceptron(seed=1), tmp_path / "a.onnx")
    save(perceptron(seed=2), tmp_path / "b.onnx")
    samples = sectors(200)
    np.savez(tmp_path / "data.npz", x=samples["x"], labels=samples["labels"])
    return tmp_path


def read(folder: Path) -> dict[str, object]:
    page = (folder / "r.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert page.endswith("</html>\n")
    found: dict[str, object] = json.loads((folder / "r.json").read_text(encoding="utf-8"))
    return found


def test_optimize(run: CommandLine, folder: Path) -> None:
    answer = run(
        "optimize", folder / "a.onnx", "-o", folder / "o.onnx", "--passes", PRUNED,
        "--data", folder / "data.npz", "--report", folder / "r.html", "--json",
    )  # fmt: skip
    assert answer.code == 0
    found = read(folder)
    assert found["kind"] == "optimize"
    rows = {row["what"]: row for row in found["before_after"]}  # type: ignore[attr-defined]
    assert rows["size"]["before"] == (folder / "a.onnx").stat().st_size
    assert rows["size"]["after"] == (folder / "o.onnx").stat().st_size
    assert rows["nodes"]["after"] == answer.json["after"]["nodes"]
    assert rows["score"]["before"] == pytest.approx(answer.json["overall"]["accuracy"]["y"][0])
    assert rows["latency"]["after"] > 0
    run_ = found["run"]
    assert run_["command"].startswith("onnxopt optimize ")  # type: ignore[index]
    assert set(run_["data"]) == {"data"}  # type: ignore[index]


def test_optimize_without_samples(run: CommandLine, folder: Path) -> None:
    answer = run("optimize", folder / "a.onnx", "-o", folder / "o.onnx", "--report", folder / "r.html")
    assert answer.code == 0
    found = read(folder)
    assert "score" not in {row["what"] for row in found["before_after"]}  # type: ignore[attr-defined]
    assert found["warnings"] == ["No score was measured, for no samples were given."]


def test_auto(run: CommandLine, folder: Path) -> None:
    answer = run(
        "auto", folder / "a.onnx", "-o", folder / "o.onnx", "--data", folder / "data.npz", "--max-drop", "10%",
        "--target", "size", "--method", "prune", "--no-train", "--time-budget", "60s",
        "--report", folder / "r.html", "--json",
    )  # fmt: skip
    assert answer.code in (0, 1), answer.err
    found, told = read(folder), answer.json
    assert (found["kind"], found["holds"]) == ("auto", told["holds"])
    rows = {row["what"]: row for row in found["before_after"]}  # type: ignore[attr-defined]
    assert rows["size"]["after"] / rows["size"]["before"] == pytest.approx(told["size"])
    assert (rows["score"]["before"], rows["score"]["after"]) == (told["before"], told["after"])
    assert found["budget"]["high"] == told["drop_at_most"]  # type: ignore[index]
    frontier = [row for row in found["models"] if not row["verdict"].startswith("beaten")]  # type: ignore[attr-defined]
    assert sorted(row["size"] for row in frontier) == pytest.approx(sorted(each["size"] for each in told["models"]))
    assert set(found["run"]["data"]) == {"data"}  # type: ignore[index]


def test_distill(run: CommandLine, folder: Path) -> None:
    np.savez(folder / "data.npz", x=sectors(200)["x"])  # without labels, the teacher is right by definition
    answer = run(
        "distill", folder / "a.onnx", folder / "b.onnx", "-o", folder / "o.onnx", "--data", folder / "data.npz",
        "--epochs", "2", "--batch", "20", "--seed", "7", "--report", folder / "r.html",
    )  # fmt: skip
    assert answer.code == 0
    found = read(folder)
    assert found["kind"] == "distill"
    rows = {row["what"]: row for row in found["before_after"]}  # type: ignore[attr-defined]
    assert rows["score"]["after"] == rows["teacher"]["after"]
    assert rows["score"]["before"] < rows["teacher"]["before"] == 1.0
    assert [point["x"] for point in found["distill_plot"]["series"]["loss"]] == [1, 2]  # type: ignore[index]
    assert found["run"]["seeds"]["distill"] == 7  # type: ignore[index]


def test_compare(run: CommandLine, folder: Path) -> None:
    arguments = ("compare", folder / "a.onnx", folder / "b.onnx", "--seconds", "0", "--report", folder / "r.html")
    assert run(*arguments).code == 1
    assert read(folder)["title"] == "a.onnx and b.onnx"
    with untouched(folder):
        assert "exists; give --force" in run(*arguments).error
    assert run(*arguments, "--force").code == 1


def test_sensitivity(run: CommandLine, folder: Path) -> None:
    answer = run(
        "sensitivity", folder / "a.onnx", "--data", folder / "data.npz", "--method", "prune",
        "-o", folder / "s.json", "--report", folder / "r.html", "--json",
    )  # fmt: skip
    assert answer.code == 0
    layers = read(folder)["layers"]
    assert [{**row} for row in layers] == answer.json  # type: ignore[attr-defined]


def test_results_in_python(folder: Path) -> None:
    for model in (folder / "a.onnx", perceptron(seed=1)):
        result = onnxopt.optimize(model, data=sectors(60), passes=PRUNED)
        page, data = onnxopt.write_report(result, folder / "r.html", force=True)
        assert (page, data) == (folder / "r.html", folder / "r.json")
        rows = {row["what"]: row for row in read(folder)["before_after"]}  # type: ignore[attr-defined]
        assert rows["nodes"]["before"] == len(perceptron().graph)
        assert rows["nodes"]["after"] == len(result.model.graph)
        assert rows["score"]["before"] is not None


@pytest.mark.parametrize(
    ("name", "message"),
    [("r.htm", r"ends in \.html"), ("missing/r.html", "is not a directory; create it first"), ("d.html", "directory")],
)
def test_a_place_where_none_can_be_written(run: CommandLine, folder: Path, name: str, message: str) -> None:
    (folder / "d.html").mkdir()
    with untouched(folder):
        with pytest.raises((OptionError, OutputError), match=message):
            write_report(compared(), folder / name)
        commands = [
            ("optimize", folder / "a.onnx", "-o", folder / "o.onnx"),
            ("distill", folder / "a.onnx", folder / "b.onnx", "-o", folder / "o.onnx", "--data", folder / "data.npz"),
            ("compare", folder / "a.onnx", folder / "b.onnx"),
            ("sensitivity", folder / "a.onnx", "--data", folder / "data.npz"),
        ]
        for command in commands:
            answer = run(*command, "--report", folder / name)
            assert answer.code == 2
            assert message.replace("\\", "") in answer.error


def test_two_files_of_the_same_name(run: CommandLine, folder: Path) -> None:
    with untouched(folder):
        answer = run(
            "sensitivity", folder / "a.onnx", "--data", folder / "data.npz", "-o", folder / "r.json",
            "--report", folder / "r.html",
        )  # fmt: skip
        assert answer.code == 2
        assert answer.error.endswith("r.json would be both the output and a file of the report; give another name")
        answer = run("optimize", folder / "a.onnx", "-o", folder / "r.html", "--report", folder / "r.html")
        assert answer.code == 2
        assert answer.error.endswith("r.html would be both the output and a file of the report; give another name")


@pytest.mark.parametrize("kept", ["r.html", "r.json"])
def test_what_is_there_stays(folder: Path, kept: str) -> None:
    (folder / kept).write_text("mine")
    with untouched(folder), pytest.raises(OutputError, match=r"exists; give --force \(or force=True\)"):
        write_report(compared(), folder / "r.html")
    write_report(compared(), folder / "r.html", force=True)
    assert read(folder)["kind"] == "compare"


def test_a_page_that_fails_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(document: object) -> str:
        raise MemoryError

    monkeypatch.setattr(write, "page", fails)
    with untouched(folder), pytest.raises(MemoryError):
        write_report(compared(), folder / "r.html")


def test_without_plotly_the_error_says_what_to_install(
    run: CommandLine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with untouched(folder):
        answer = run("optimize", folder / "a.onnx", "-o", folder / "o.onnx", "--report", folder / "r.html")
    assert answer.code == 2
    assert answer.error == "a report needs the package plotly: pip install 'onnxopt[report]'"


def test_loading_is_not_disturbed(folder: Path) -> None:
    """The original is loaded anew for the report: the model that was given stays as it is."""
    given = load(folder / "a.onnx")
    nodes = [node.op_type for node in given.graph]
    write_report(onnxopt.optimize(given), folder / "r.html")
    assert [node.op_type for node in given.graph] == nodes
