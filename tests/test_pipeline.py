"""The manager: order, fixed point, verification, bisection, rollback, strictness, audit."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.errors import ModelError, OptionError, PassError
from onnxopt.graph import Editor
from onnxopt.model import to_proto
from onnxopt.pass_base import Context, Log, NodePass, Pass, Refuse, Report
from onnxopt.pipeline import AUDIT_KEY, PassManager, Verify
from tests.support import graph, ops


@dataclass(frozen=True, kw_only=True)
class ReluToAbs(NodePass):
    """Wrong on purpose for the nodes named in ``wrong``, a disguised no-op for the others."""

    name: ClassVar[str] = "relu-to-abs"
    exact: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = frozenset({"Relu"})

    wrong: tuple[str, ...] = ()

    def rewrite(self, node: ir.Node, editor: Editor) -> str | None:
        op = "Abs" if node.name in self.wrong else "LeakyRelu"
        editor.replace_node(node, op, node.inputs, None if op == "Abs" else {"alpha": 0.0})
        return f"became {op}"


@dataclass(frozen=True, kw_only=True)
class Halve(NodePass):
    """Lossy: every Relu becomes a LeakyRelu of a tenth."""

    name: ClassVar[str] = "halve"
    exact: ClassVar[bool] = False
    ops: ClassVar[frozenset[str]] = frozenset({"Relu"})

    def rewrite(self, node: ir.Node, editor: Editor) -> str | None:
        editor.replace_node(node, "LeakyRelu", node.inputs, {"alpha": 0.1})
        return "leaks"


@dataclass(frozen=True, kw_only=True)
class DropIdentity(NodePass):
    name: ClassVar[str] = "drop-identity"
    exact: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = frozenset({"Identity"})

    crash_on: str = "nobody"

    def rewrite(self, node: ir.Node, editor: Editor) -> str | None:
        source = node.inputs[0]
        assert source is not None
        if not editor.redirect(node.outputs[0], source):
            raise Refuse("an input is an output")
        if node.name == self.crash_on:
            raise RuntimeError("half done")
        editor.remove(node)
        return "dropped"


@dataclass(frozen=True, kw_only=True)
class RenameOutput(Pass):
    name: ClassVar[str] = "rename-output"
    exact: ClassVar[bool] = True

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        output = context.editor.model.graph.outputs[0]
        if output.name == "y" and context.gate.allows(self.name, "y"):
            output.name = "z"
            log.changed("y", "renamed")
        return log.report()


@dataclass(frozen=True, kw_only=True)
class Grow(NodePass):
    """Never reaches a fixed point."""

    name: ClassVar[str] = "grow"
    exact: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = frozenset({"Relu"})

    def rewrite(self, node: ir.Node, editor: Editor) -> str | None:
        node.replace_input_with(0, editor.insert(node, "Identity", [node.inputs[0]], name=""))
        return "grew"


NAMES = [f"r{i}" for i in range(9)]


@pytest.fixture
def chain() -> ir.Model:
    """Nine Relus, each on another shifted input, summed up; and an Identity."""
    lines = [f"s{i} = Add(x, c{i}) [{n}] r{i} = Relu(s{i})" for i, n in enumerate(NAMES)]
    body = f"g (float[N, 4] x) => (float[N, 4] y) {{ {' '.join(lines)} t = Sum({', '.join(NAMES)}) y = Identity(t) }}"
    constants: dict[str, Any] = {f"c{i}": np.full(4, (i - 4) / 4, np.float32) for i in range(9)}
    model = graph(body, **constants)
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


def relu_names(model: ir.Model) -> list[str | None]:
    return [node.name for node in model.graph if node.op_type == "Relu"]


@pytest.mark.parametrize("verify", ["end", "each"])
@pytest.mark.parametrize("wrong", [(), ("r0",), ("r8",), ("r2", "r5", "r6")])
def test_bisection_leaves_out_exactly_what_breaks_the_model(
    chain: ir.Model, verify: Verify, wrong: tuple[str, ...]
) -> None:
    untouched = to_proto(chain)
    model, report = PassManager([ReluToAbs(wrong=wrong), DropIdentity()], verify=verify).run(chain)
    assert relu_names(model) == list(wrong), "only the culprits stay as they were"
    assert "Identity" not in ops(model), "what the other pass did is kept"
    assert len(report.problems) == len(wrong)
    for name, problem in zip(wrong, sorted(report.problems), strict=True):
        assert f"relu-to-abs on node {name!r} was left out: output 'y'" in problem
    assert report.verified
    assert to_proto(chain) == untouched, "the user's model was edited"


def test_too_many_culprits_roll_the_row_back(chain: ir.Model) -> None:
    model, report = PassManager([ReluToAbs(wrong=tuple(NAMES)), DropIdentity()]).run(chain)
    assert relu_names(model) == NAMES
    assert "rolled back" in report.problems[-1]
    assert report.changed == 0
    assert AUDIT_KEY not in model.metadata_props


def test_a_pass_that_raises_is_kept_off_the_node_it_raised_on(chain: ir.Model) -> None:
    passes = [ReluToAbs(), DropIdentity(crash_on="y")]
    model, report = PassManager(passes).run(chain)
    assert "Relu" not in ops(model)
    assert ops(model)[-1] == "Identity", "the half-done edit is undone"
    assert report.problems == ["drop-identity on node 'y' was left out: it failed: RuntimeError('half done')"]


def test_a_changed_interface_is_undone(chain: ir.Model) -> None:
    model, report = PassManager([RenameOutput()], verify="off").run(chain)
    assert [v.name for v in model.graph.outputs] == ["y"]
    assert "the interface changed" in report.problems[0]


def test_passes_without_a_fixed_point_are_left_out(chain: ir.Model) -> None:
    model, report = PassManager([Grow()], verify="off").run(chain)
    assert len(model.graph) == len(chain.graph)
    assert "no fixed point" in report.problems[0]


def test_lossy_passes_run_once_and_are_measured(chain: ir.Model) -> None:
    model, report = PassManager([Halve(), DropIdentity()]).run(chain)
    assert ops(model).count("LeakyRelu") == 9
    assert "Identity" not in ops(model)
    sqnr = report.fidelity["halve"]["y"]
    assert 0 < sqnr < 60
    assert report.verified
    assert not report.problems


def test_verification_off_says_so(chain: ir.Model) -> None:
    _, report = PassManager([ReluToAbs(wrong=("r1",))], verify="off").run(chain)
    assert report.verification == "off"
    assert not report.verified


def test_strict_makes_an_error_of_nothing_and_of_a_broken_pass(chain: ir.Model) -> None:
    with pytest.raises(PassError, match="nothing matched"):
        PassManager([DropIdentity(exclude=("Identity",))], strict=True).run(chain)
    with pytest.raises(PassError, match="relu-to-abs on node 'r3' was left out"):
        PassManager([ReluToAbs(wrong=("r3",))], strict=True).run(chain)


@pytest.mark.parametrize(
    ("include", "exclude", "kept"),
    [
        (("r1", "r2"), (), ["r0", "r3", "r4", "r5", "r6", "r7", "r8"]),
        ((), ("r[0-6]",), ["r0", "r1", "r2", "r3", "r4", "r5", "r6"]),
        (("Relu",), ("r8",), ["r8"]),
        (("Conv",), (), NAMES),
    ],
)
def test_include_and_exclude_select_by_name_and_operator(
    chain: ir.Model, include: tuple[str, ...], exclude: tuple[str, ...], kept: list[str]
) -> None:
    model, _ = PassManager([ReluToAbs(include=include, exclude=exclude)]).run(chain)
    assert relu_names(model) == kept


def test_refusals_and_changes_reach_the_report_and_the_callback(chain: ir.Model) -> None:
    seen: list[Report] = []
    model = graph("g (float[N] x) => (float[N] y) { y = Identity(x) }")
    _, report = PassManager([DropIdentity()], on_report=seen.append).run(model)
    assert [str(note) for note in report.passes[0].refusals] == ["y: an input is an output"]
    assert [r.name for r in seen] == ["drop-identity"]


def test_the_audit_trail_names_passes_and_options(chain: ir.Model) -> None:
    model, _ = PassManager([ReluToAbs(exclude=("r1",)), DropIdentity()]).run(chain)
    assert model.metadata_props[AUDIT_KEY].endswith("relu-to-abs{exclude=[r1]},drop-identity")
    again, report = PassManager([DropIdentity()]).run(model)
    assert report.changed == 0
    assert again.metadata_props == model.metadata_props


def test_a_model_that_is_wrong_is_the_users_error() -> None:
    wrong = graph("g (float[N] x, int64[N] i) => (float[N] y) { y = Add(x, i) }")
    with pytest.raises(ModelError, match="not valid"):
        PassManager([DropIdentity()]).run(wrong)


def test_custom_operators_pass_through_unverified() -> None:
    body = "g (float[N] x) => (float[N] y) { a = my.Thing(x) y = Identity(a) }"
    model, report = PassManager([DropIdentity()]).run(graph(body, extra=', "my" : 1'))
    assert ops(model) == ["Thing"]
    assert not report.verified
    assert "not verified" in report.verification


def test_an_unknown_verify_level_is_refused() -> None:
    with pytest.raises(OptionError, match="each, end, off"):
        PassManager([], verify="always")  # type: ignore[arg-type]
