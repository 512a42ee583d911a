"""The command line: what it prints, how it ends, and that nothing that goes wrong is more than one line."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.graph import Editor
from onnxopt.pass_base import NodePass
from onnxopt.passes.cleanup.remove_no_ops import RemoveNoOps
from tests.command_line import CommandLine, untouched, write

ROOT = Path(__file__).resolve().parent.parent

IDENTITY = "g (float[N, 3] x) => (float[N, 3] y) { a = Identity(x) y = Relu(a) }"
PLAIN = "g (float[N, 3] x) => (float[N, 3] y) { y = Relu(x) }"


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capsys)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "model.onnx", IDENTITY)


def real(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command line as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "onnxopt", *map(str, arguments)],
        cwd=ROOT, text=True, check=False, timeout=120, **{"capture_output": True, **options},
    )  # fmt: skip


# -- optimize --------------------------------------------------------------------------------------------


def test_optimize_writes_the_model_and_a_table(cli: CommandLine, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    answer = cli("optimize", model, "-o", out)
    assert (answer.code, answer.err) == (0, "")
    assert [node.op_type for node in onnx.load(out).graph.node] == ["Relu"]
    lines = {" ".join(line.split()) for line in answer.out.splitlines()}
    assert {"nodes 2 1 -50.0%", "remove-no-ops: 1 change", "parameters 0 0"} <= lines
    assert any(line.startswith("Verification: outputs equal on") for line in lines)
    assert any(line.startswith(f"Wrote {out}") for line in lines)


def test_json_is_one_document_and_nothing_else(cli: CommandLine, model: Path, tmp_path: Path) -> None:
    answer = cli("optimize", model, "-o", tmp_path / "out.onnx", "--json", "--passes", "remove-no-ops")
    document = answer.json
    assert answer.err == ""
    assert (document["before"]["nodes"], document["after"]["nodes"]) == (2, 1)
    assert document["verified"] is True
    changes = [{"node": "a", "text": "handed its input on"}]
    assert document["passes"] == [{"name": "remove-no-ops", "changes": changes, "refusals": [], "facts": []}]
    assert document["after"]["file_bytes"] == (tmp_path / "out.onnx").stat().st_size


def test_says_that_nothing_was_changed(cli: CommandLine, tmp_path: Path) -> None:
    answer = cli("optimize", write(tmp_path / "plain.onnx", PLAIN), "-o", tmp_path / "out.onnx")
    assert answer.code == 0
    assert "Nothing was changed" in answer.out
    assert (tmp_path / "out.onnx").exists()


def test_verbose_names_every_node(cli: CommandLine, model: Path, tmp_path: Path) -> None:
    assert "    a: handed its input on" in cli("optimize", model, "-o", tmp_path / "out.onnx", "-v").out


def test_quiet_prints_problems_only(cli: CommandLine, tmp_path: Path) -> None:
    custom = write(
        tmp_path / "custom.onnx", "g (float[N] x) => (float[N] y) { y = my.Thing(x) }", extra=', "my" : 1'
    )
    answer = cli("optimize", custom, "-o", tmp_path / "out.onnx", "--quiet")
    assert (answer.code, answer.out) == (0, "")
    assert "not verified" in answer.err
    assert "Thing" in answer.err


def test_strict_fails_when_nothing_matches(cli: CommandLine, tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.onnx", PLAIN)
    with untouched(tmp_path):
        answer = cli("optimize", plain, "-o", tmp_path / "out.onnx", "--strict", "--passes", "remove-no-ops")
    assert answer.code == 1
    assert "nothing matched (remove-no-ops)" in answer.error


def test_pinned_weights_go_where_the_option_says(cli: CommandLine, tmp_path: Path) -> None:
    weight = np.ones((100, 100), np.float32)
    big = write(
        tmp_path / "big.onnx", "g (float[N, 100] x) => (float[N, 100] y) { y = MatMul(x, w) }", w=weight
    )
    out = tmp_path / "out.onnx"
    assert cli("optimize", big, "-o", out, "--external-data").code == 0
    assert (tmp_path / "out.onnx.data").stat().st_size >= weight.nbytes
    with untouched(tmp_path):
        answer = cli("optimize", big, "-o", tmp_path / "out.onnx", "--external-data")
    assert (answer.code, "out.onnx exists" in answer.error) == (2, True)
    inlined = tmp_path / "inline.onnx"
    answer = cli("optimize", out, "-o", inlined, "--inline", "--json")
    assert answer.json["before"]["file_bytes"] == sum(f.stat().st_size for f in tmp_path.glob("out.onnx*"))
    assert answer.json["output"] == [str(inlined)]


@dataclass(frozen=True, kw_only=True)
class Wrong(NodePass):
    """Not exact, whatever it says."""

    name: ClassVar[str] = "wrong"
    exact: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = frozenset({"Relu"})

    def rewrite(self, node: ir.Node, editor: Editor) -> str:
        editor.replace_node(node, "Neg", node.inputs)
        return "broke it"


def test_a_problem_is_told_loudly(
    cli: CommandLine, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxopt.recipes.find", {"remove-no-ops": RemoveNoOps, "wrong": Wrong}.get)
    arguments: list[str | Path] = ["optimize", model, "-o", tmp_path / "out.onnx", "--passes", "remove-no-ops,wrong"]
    with untouched(tmp_path):
        answer = cli(*arguments, "--strict")
    assert answer.code == 1
    assert answer.error.startswith("wrong on node 'y' was left out")
    answer = cli(*arguments, "--quiet")
    assert (answer.code, answer.out) == (0, "")
    assert answer.err.startswith("onnxopt: problem: wrong on node 'y' was left out: ")
    assert [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node] == ["Relu"]


def test_probes_are_used_and_checked(cli: CommandLine, model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "good.npz", x=np.ones((5, 3), np.float32))
    np.savez(tmp_path / "bad.npz", z=np.ones((5, 3), np.float32))
    out = tmp_path / "out.onnx"
    answer = cli("optimize", model, "-o", out, "--json", "--probes", tmp_path / "good.npz")
    assert answer.json["verification"].startswith("outputs equal on 1 probe,")
    assert cli("compare", model, out, "--json", "--seconds", "0", "--probes", tmp_path / "good.npz").json["probes"] == 1
    with untouched(tmp_path):
        answer = cli("optimize", model, "-o", out, "--force", "--probes", tmp_path / "bad.npz")
    assert answer.code == 2
    assert "has no array for the input 'x'" in answer.error


# -- mistakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimise"], "did you mean 'optimize'?"),
        (["frobnicate"], "commands: advise, auto, compare, distill, inspect"),
        (["optimize", "{model}", "-o", "{out}", "--recpie", "x"], "--recipe"),
        (["optimize", "{model}"], "'--output'"),
        (["optimize", "{model}", "-o", "{out}", "--verify", "maybe"], "'each', 'end', 'off'"),
        (["optimize", "{model}", "-o", "{out}", "--timeout", "0"], "--timeout"),
        (["optimize", "{model}", "-o", "{out}", "--recipe", "clean"], "did you mean 'cleanup'?"),
        (["optimize", "{model}", "-o", "{out}", "--passes", "remove-noops"], "did you mean 'remove-no-ops'?"),
        (["optimize", "{model}", "-o", "{out}", "--passes", "remove-no-ops{x=1}"], "has no option 'x'"),
        (["optimize", "{model}", "-o", "{out}", "--passes", "remove-no-ops{"], "not closed"),
        (["optimize", "{model}", "-o", "{out}", "--passes", ""], "the pipeline is empty"),
        (["optimize", "{model}", "-o", "{out}", "--passes", "cleanup", "--recipe", "cleanup"], "not both"),
        (["inspect", "{model}", "--dims", "N"], "write name=value"),
        (["inspect", "{model}", "--dims", "M=2"], "no input has a dynamic dim 'M'; dynamic dims: N"),
        (["compare", "{model}", "{model}", "--threads", "0"], "--threads"),
        (["passes", "remove-no-op"], "did you mean 'remove-no-ops'?"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_a_hint(
    cli: CommandLine, model: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    with untouched(tmp_path):
        places = {"{model}": model, "{out}": tmp_path / "out.onnx"}
        answer = cli(*(places.get(argument, argument) for argument in arguments))
    assert answer.code == 2
    assert message in answer.error


def test_a_fault_of_ours_is_one_line_too(
    cli: CommandLine, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxopt.inspection.costs", lambda *_: 1 / 0)
    with untouched(tmp_path):
        answer = cli("optimize", model, "-o", tmp_path / "out.onnx")
    assert answer.code == 3
    assert answer.error.startswith("internal error in inspect: ZeroDivisionError: division by zero; please report")


def test_names_in_a_model_cannot_command_the_terminal(cli: CommandLine, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {PLAIN}')
    model.graph.input[0].name = model.graph.node[0].input[0] = "x\x1b[2J\r[bold]"
    onnx.save(model, tmp_path / "evil.onnx")
    answer = cli("inspect", tmp_path / "evil.onnx")
    assert answer.code == 0
    assert "\x1b" not in answer.out
    assert "x\\x1b[2J [bold] float[N, 3]" in answer.out


# -- inspect, compare, passes ----------------------------------------------------------------------------


def test_inspect_describes_a_model(cli: CommandLine, tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.onnx",
        """g (float[N, 4] x, bool c) => (float[N, 8] y) {
            z = MatMul(x, w)
            a = Identity(z)
            y = If (c) <then_branch = t () => (float[N, 8] u) { u = Relu(a) },
                        else_branch = e () => (float[N, 8] v) { v = Neg(a) }>
        }""",
        w=np.ones((4, 8), np.float32),
    )
    found = cli("inspect", path, "--json", "--dims", "N=10").json
    assert found["inputs"][0] == {"name": "x", "type": "float", "shape": ["N", 4]}
    assert found["costs"]["operators"] == {"Identity": 1, "If": 1, "MatMul": 1, "Neg": 1, "Relu": 1}
    assert (found["costs"]["macs"], found["costs"]["macs_at"]) == (10 * 4 * 8, {"N": 10})
    assert (found["costs"]["parameters"], found["costs"]["weight_bytes"]) == (32, {"FLOAT": 128})
    assert (found["opsets"], found["ir_version"]) == ({"ai.onnx": 18}, 8)
    assert (found["subgraphs"], found["subgraph_depth"], found["quantization"]) == (2, 1, [])
    assert found["cleanup"] == {"nodes": 5, "after": 4}
    assert cli("inspect", path, "--json", "--no-cleanup").json["cleanup"] is None
    text = cli("inspect", path).out
    assert "5 → 4 nodes" in text
    assert "Multiply-accumulates are at N=1." in text


def test_compare_of_equals_exits_0(cli: CommandLine, model: Path, tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.onnx", PLAIN)
    answer = cli("compare", model, plain, "--json", "--seconds", "0.01")
    assert answer.code == 0
    found = answer.json
    assert found["same"] is True
    (output,) = found["outputs"]
    assert (output["same"], output["movement"], output["agreement"]) == (True, 0.0, 1.0)
    assert found["latency_ratio"]["low"] <= found["latency_ratio"]["median"] <= found["latency_ratio"]["high"]
    assert "The outputs agree" in cli("compare", model, plain, "--seconds", "0").out


def test_compare_of_different_models_exits_1(cli: CommandLine, model: Path, tmp_path: Path) -> None:
    other = write(
        tmp_path / "other.onnx",
        "g (float[N, 3] x) => (float[N, 3] y) <float[1] c = {1.01}> { a = Relu(x) y = Mul(a, c) }",
    )
    answer = cli("compare", model, other, "--json", "--seconds", "0")
    assert answer.code == 1
    (output,) = answer.json["outputs"]
    assert output["sqnr_db"] == pytest.approx(40, abs=0.01)
    assert output["movement"] == pytest.approx(0.01, rel=1e-3)
    assert "differs: moved by 0.01 of its scale" in cli("compare", model, other, "--seconds", "0").out


def test_compare_needs_a_model_that_runs(cli: CommandLine, model: Path, tmp_path: Path) -> None:
    custom = write(
        tmp_path / "custom.onnx", "g (float[N, 3] x) => (float[N, 3] y) { y = my.Thing(x) }", extra=', "my" : 1'
    )
    answer = cli("compare", custom, model)
    assert answer.code == 2
    assert "ONNX Runtime cannot load the model" in answer.error
    answer = cli("compare", model, custom)
    assert answer.code == 1
    assert "not compared: ONNX Runtime cannot load the model" in answer.out


def test_compare_tells_interfaces_apart(cli: CommandLine, model: Path, tmp_path: Path) -> None:
    renamed = write(tmp_path / "renamed.onnx", "g (float[M, 3] z) => (float[M, 3] y) { y = Relu(z) }")
    answer = cli("compare", model, renamed, "--json")
    assert answer.code == 1
    assert answer.json["interface"] == [
        "the input x float[N, 3] is missing in the second model",
        "the input z float[M, 3] is only in the second model",
        "the output y float[N, 3] is y float[M, 3] in the second model",
    ]
    assert "not compared" in answer.json["notes"][0]


def test_passes_lists_and_explains(cli: CommandLine) -> None:
    found = cli("passes", "--json").json
    assert "remove-no-ops" in [entry["name"] for entry in found["passes"]]
    assert "cleanup" in [entry["name"] for entry in found["recipes"]]
    one = cli("passes", "remove-no-ops", "--json").json
    assert one["exact"] is True
    assert one["options"][0] == {
        "name": "include", "type": "tuple[str, ...]", "default": "()",
        "doc": "Globs over node names and operator types; if given, only these nodes are changed.",
    }  # fmt: skip
    assert "remove-no-ops" in cli("passes", "cleanup").out
    assert "hand their input on" in cli("passes").out


# -- the process around it -------------------------------------------------------------------------------


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = "import sys, onnxopt.cli; print(*{'numpy', 'onnx', 'onnxruntime', 'rich', 'msgspec'} & set(sys.modules))"
    assert subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout == "\n"  # fmt: skip


def test_help_documents_the_exit_codes() -> None:
    answer = real("optimize", "--help")
    assert answer.returncode == 0
    assert "  3  ONNX Runtime or onnxopt itself crashed, hung or ran out of memory" in answer.stdout


TROUBLE = """
import os, signal, sys, time
from dataclasses import dataclass
from typing import ClassVar
from onnxopt import cli, recipes
from onnxopt.pass_base import Pass, Report

@dataclass(frozen=True, kw_only=True)
class Trouble(Pass):
    name: ClassVar[str] = "trouble"
    exact: ClassVar[bool] = True
    how: str = "crash"

    def run(self, context):
        if self.how == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.how == "oom":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "write":
            os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "grow":
            hoard = bytearray(b"x") * 400_000_000
        if self.how in ("grow", "hang"):
            print("here", file=sys.stderr, flush=True)
            time.sleep(60)
        return Report(self.name)

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
find = recipes.find
recipes.find = lambda name: Trouble if name == "trouble" else find(name)
cli.main()
"""


def trouble(how: str, folder: Path, *options: str) -> subprocess.Popen[str]:
    """``optimize`` with a pass that gets its process into trouble."""
    (folder / "out.onnx").write_text("an earlier output")
    return subprocess.Popen(
        [sys.executable, "-c", TROUBLE, "optimize", folder / "model.onnx", "-o", folder / "out.onnx", "--force",
         "--verify", "off", "--passes", f"trouble{{how={how}}}", *options],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("how", "options", "message"),
    [
        ("crash", [], "crashed (SIGSEGV) while it was at 'trouble'"),
        ("oom", [], "was killed by the system, most likely for want of memory, while it was at 'trouble'"),
        ("write", [], "was killed by the system, most likely for want of memory, while it was at 'save'"),
        ("hang", ["--timeout", "1.5"], "did not end within 1.5 s (--timeout) and was stopped while it was at"),
        ("grow", ["--memory", "0.3"], "took more than 0.3 GB of memory (--memory) and was stopped while"),
    ],
)
def test_whatever_happens_is_one_line(
    model: Path, tmp_path: Path, how: str, options: list[str], message: str
) -> None:
    process = trouble(how, tmp_path, *options)
    with untouched(tmp_path):
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (3, "")
    (line,) = [line for line in err.splitlines() if line != "here"]
    assert line.startswith(f"onnxopt: {model}: {message}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_it_all(model: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = trouble("hang", tmp_path)
    assert process.stderr is not None
    with untouched(tmp_path):
        assert process.stderr.readline() == "here\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    assert err == ("onnxopt: interrupted\n" if number == signal.SIGINT else "")


def test_a_killed_writer_leaves_nothing_behind(tmp_path: Path) -> None:
    from onnxopt.writing import remove_leftovers

    for name in (".out.onnx.77-abc.tmp", ".out.onnx.data.77-abc.tmp", ".out.onnx.778-abc.tmp", "out.onnx"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "out.onnx", 77)
    assert sorted(f.name for f in tmp_path.iterdir()) == [".out.onnx.778-abc.tmp", "out.onnx"]


def test_a_reader_that_goes_away_is_no_error(model: Path) -> None:
    read, write_end = os.pipe()
    os.close(read)
    answer = real("inspect", model, capture_output=False, stdout=write_end, stderr=subprocess.PIPE)
    os.close(write_end)
    assert (answer.returncode, answer.stderr) == (141, "")


def test_a_full_disk_under_the_report_is_one_line(
    cli: CommandLine, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.StringIO):
        def write(self, text: str, /) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys, "stdout", Full())
    answer = cli("inspect", model)
    assert (answer.code, answer.error) == (2, "cannot write to standard output: No space left on device")


def test_supervision_costs_little() -> None:
    code = """
import sys, time, onnxopt.cli
from onnxopt.supervise import supervise, Limits
start = time.process_time()
assert supervise(lambda stage: 1, {}, what="m", limits=Limits(60), output=None) == 1
print(time.process_time() - start)
"""
    times = [
        float(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(times) < 0.03


def test_works_where_processes_cannot_be_forked(model: Path, tmp_path: Path) -> None:
    code = "import sys, onnxruntime; from onnxopt.cli import main\nif __name__ == '__main__': main()"
    script = tmp_path / "run.py"
    script.write_text(code)
    answer = subprocess.run(
        [sys.executable, script, "optimize", model, "-o", tmp_path / "out.onnx", "--json"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (answer.returncode, answer.stderr) == (0, "")
    assert '"changed": 1' in answer.stdout
