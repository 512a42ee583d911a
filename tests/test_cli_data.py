"""The command line with data: where they may come from, and what the report shows of a lossy pass."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from onnxopt.pass_base import Context, Log, Needs, Pass, Report
from onnxopt.passes.quantize.quantize_static import QuantizeStatic
from tests.command_line import CommandLine, write

MODEL = "g (float[N, 3] x) => (float[N, 3] y) { r = Relu(x) y = Identity(r) }"
X = np.random.default_rng(0).standard_normal((60, 3)).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Round(Pass):
    """Round what the model gives."""

    name: ClassVar[str] = "round"
    exact: ClassVar[bool] = False
    needs: ClassVar[Needs] = "inputs"

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        for node in context.editor.nodes(("Identity",)):
            high = context.statistics().ranges(["r"])["r"].high
            ten = context.editor.add_constant(node, np.float32(10), "ten")
            scaled = context.editor.insert(node, "Mul", [node.inputs[0], ten], name="")
            rounded = context.editor.insert(node, "Round", [scaled], name="")
            context.editor.replace_node(node, "Div", [rounded, ten])
            log.changed("y", "rounded")
            log.measured(node="y", high=high, method="tenths")
        return log.report()


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> CommandLine:
    monkeypatch.setattr("onnxopt.recipes.find", {"round": Round}.get)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    write(tmp_path / "model.onnx", MODEL)
    np.savez("data.npz", x=X, labels=X.argmax(1))
    return CommandLine(monkeypatch, capsys)


OPTIMIZE = ("optimize", "model.onnx", "-o", "out.onnx", "--passes", "round")


def test_json_holds_what_was_measured(cli: CommandLine) -> None:
    answer = cli(*OPTIMIZE, "--data", "data.npz", "--json")
    assert answer.err == ""
    quality = answer.json["quality"]["round"]
    assert quality["samples"] == 30
    assert answer.json["overall"] == quality
    assert 20 < quality["sqnr_db"]["y"] < 60
    assert quality["accuracy"]["y"][0] > 0.8
    assert answer.json["fidelity"] == {"round": quality["sqnr_db"]}
    (fact,) = answer.json["passes"][0]["facts"]
    assert (fact["node"], fact["method"]) == ("y", "tenths")


def test_tables_show_loss_and_with_v_the_facts(cli: CommandLine) -> None:
    answer = cli(*OPTIMIZE, "--data", "data.npz", "-v")
    lines = answer.out.splitlines()
    (line,) = (line for line in lines if line.startswith("round: SQNR y "))
    assert "agreement of y " in line
    assert "accuracy of y " in line
    assert line.endswith("(on 30 samples)")
    (row,) = (line.split() for line in lines if "tenths" in line and "rounded" not in line)
    assert row[:2] == ["y", "tenths"]
    assert float(row[2]) > 1


def test_evaluation_data(cli: CommandLine) -> None:
    np.savez("other.npz", x=X[:7])
    answer = cli(*OPTIMIZE, "--data", "data.npz", "--eval-data", "other.npz", "--json")
    assert answer.json["quality"]["round"]["samples"] == 7


def test_random_data_only_when_asked_for_and_said(cli: CommandLine) -> None:
    answer = cli(*OPTIMIZE, "--data", "random")
    assert answer.code == 0
    assert "warning: " in answer.err
    assert "random data" in answer.err
    assert "random data" in answer.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "round needs calibration data: give data=, or --data FILE.npz"),
        (("--data", "nothing.npz"), "cannot read the data nothing.npz"),
        (("--data", "wrong.npz"), "has no array for the input 'x'"),
        (("--data", "data.npz", "--eval-data", "wrong.npz"), "has no array for the input 'x'"),
        (("--data", "no_such:thing"), "cannot import 'no_such'"),
    ],
)
def test_wrong_data_are_one_error(cli: CommandLine, arguments: tuple[str, ...], message: str) -> None:
    np.savez("wrong.npz", z=X)
    answer = cli(*OPTIMIZE, *arguments)
    assert answer.code == 2
    assert message in answer.error
    assert not Path("out.onnx").exists()


def test_a_module_beside_the_user_is_found_by_the_real_program(tmp_path: Path) -> None:
    write(tmp_path / "model.onnx", MODEL)
    (tmp_path / "samples.py").write_text(
        "import numpy as np\ndef make():\n    return [{'x': np.ones((2, 3), 'f') * at} for at in range(6)]\n"
    )
    root = str(Path(__file__).parents[1])
    program = f"import sys; sys.path[:] = [{root!r}, *sys.path[1:]]; import onnxopt.cli as c; c.main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "optimize", "model.onnx", "-o", "out.onnx", "--data", "samples:make"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), ("0.5 %", 0.005), ("0.02", 0.02), ("2", None), ("x", None)])
def test_budget(
    text: str, share: float | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """``--max-drop`` reaches the pass; what is no share is refused."""
    found = []

    def run(self: QuantizeStatic, context: Context) -> Report:
        found.append((self.max_drop, self.min_sqnr))
        return Report(self.name)

    monkeypatch.setattr(QuantizeStatic, "run", run)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "model.onnx", MODEL)
    np.savez("data.npz", x=X)
    call = ("optimize", "model.onnx", "-o", "out.onnx", "--passes", "quantize-static", "--data", "data.npz")
    answer = CommandLine(monkeypatch, capsys)(*call, "--max-drop", text, "--min-sqnr", "30")
    if share is None:
        assert (answer.code, found) == (2, [])
        assert "write a share" in answer.error
    else:
        ((max_drop, min_sqnr),) = found
        assert max_drop == pytest.approx(share)
        assert min_sqnr == 30.0


def test_a_budget_that_nobody_keeps(cli: CommandLine) -> None:
    answer = cli(*OPTIMIZE, "--data", "data.npz", "--max-drop", "1%")
    assert answer.code == 2
    assert "no pass here keeps a budget" in answer.error
