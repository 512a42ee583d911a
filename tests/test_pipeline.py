"""The manager: order, fixed point, verification, bisection, rollback, strictness, audit."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt import optimize
from onnxopt.data import load_data, random_data
from onnxopt.errors import DataError, ModelError, OptionError, PassError
from onnxopt.graph import Editor
from onnxopt.model import to_proto
from onnxopt.pass_base import Context, Log, Needs, NodePass, Pass, Refuse, Report
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


# -- data ------------------------------------------------------------------------------------------------

X = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Look(Pass):
    """Changes nothing, and shows its context to a test."""

    name: ClassVar[str] = "look"
    exact: ClassVar[bool] = False
    needs: ClassVar[Needs] = "inputs"

    look: Callable[[Context], None] = field(default=lambda context: None)

    def run(self, context: Context) -> Report:
        self.look(context)
        return Log(self, context).report()


@dataclass(frozen=True, kw_only=True)
class ExactLook(Look):
    name: ClassVar[str] = "exact-look"
    exact: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class LabelledLook(Look):
    name: ClassVar[str] = "labelled-look"
    needs: ClassVar[Needs] = "labels"


@dataclass(frozen=True, kw_only=True)
class Damp(Pass):
    """Lossy: scales what ``Sum`` gives, and says by how much."""

    name: ClassVar[str] = "damp"
    exact: ClassVar[bool] = False

    by: float = 0.5

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        for node in context.editor.nodes(("Identity",)):
            factor = context.editor.add_constant(node, np.float32(self.by), "factor")
            context.editor.replace_node(node, "Mul", [node.inputs[0], factor])
            log.changed("y", "damped")
            log.measured(node="y", by=np.float32(self.by), why="asked for")
        return log.report()


def test_a_pass_that_needs_data_and_has_none_is_an_error_before_any_work(chain: ir.Model) -> None:
    with pytest.raises(DataError, match="exact-look, look needs calibration data: give data=, or --data"):
        PassManager([DropIdentity(), ExactLook(), Look()])
    with pytest.raises(DataError, match="labelled-look needs labels"):
        PassManager([LabelledLook()], data={"x": X}).run(chain)


@pytest.mark.parametrize("kind", [Look, ExactLook])
def test_passes_get_disjoint_samples_and_statistics(chain: ir.Model, kind: type[Look]) -> None:
    seen: list[np.ndarray[Any, Any]] = []

    def look(context: Context) -> None:
        assert context.data is not None
        assert context.evaluation is not None
        parts = [np.concatenate([b.feeds["x"] for b in d.batches()]) for d in (context.data, context.evaluation)]
        assert [len(part) for part in parts] == [20, 20]
        np.testing.assert_array_equal(np.sort(np.concatenate(parts), 0), np.sort(X, 0))
        range_ = context.statistics().ranges(["x", "r8"])
        assert range_["x"].low == parts[0].min()
        seen.append(parts[0])

    PassManager([kind(look=look)], data={"x": X}).run(chain)
    assert seen


def test_evaluation_data_of_their_own(chain: ir.Model) -> None:
    def look(context: Context) -> None:
        assert context.data is not None
        assert context.evaluation is not None
        assert (len(context.data), len(context.evaluation)) == (40, 8)

    PassManager([Look(look=look)], data={"x": X}, evaluation=[{"x": X[:8]}]).run(chain)


def test_statistics_follow_the_model_and_the_original_stays(chain: ir.Model) -> None:
    before = to_proto(chain)

    def look(context: Context) -> None:
        assert context.original is not None
        assert to_proto(context.original) == before
        assert context.original_statistics().ranges(["y"])["y"].high == pytest.approx(highs[0])
        statistics = context.statistics()
        assert statistics is context.statistics()
        assert statistics.ranges(["y"])["y"].high == pytest.approx(highs[0] / 2)
        context.gate.log.append(("look", "y"))
        assert statistics is not context.statistics()
        context.gate.log.pop()

    highs: list[float] = []
    first = Look(look=lambda context: highs.append(context.statistics().ranges(["y"])["y"].high))
    PassManager([first, Damp(), Look(look=look)], data={"x": X}).run(chain)


def test_quality_is_measured_on_held_out_samples(chain: ir.Model) -> None:
    labels = np.arange(40) % 4
    seen: list[Report] = []
    manager = PassManager([Damp(), Halve()], data={"x": X, "labels": labels}, on_report=seen.append)
    _, report = manager.run(chain)
    damp, halve = report.quality["damp"], report.quality["halve"]
    assert report.fidelity == {"damp": damp.sqnr_db, "halve": halve.sqnr_db}
    assert (damp.samples, damp.agreement) == (20, {"y": 1.0})
    assert damp.sqnr_db["y"] == pytest.approx(10 * np.log10(4))
    assert damp.accuracy["y"][0] == damp.accuracy["y"][1]
    assert report.overall is not None
    assert report.overall.sqnr_db["y"] < damp.sqnr_db["y"]
    assert report.overall.accuracy["y"] == (damp.accuracy["y"][0], halve.accuracy["y"][1])
    assert report.passes[0].facts == ({"node": "y", "by": 0.5, "why": "asked for"},)
    assert type(report.passes[0].facts[0]["by"]) is float
    assert report.verified


def test_what_was_not_judged_on_samples_is_said(chain: ir.Model) -> None:
    _, report = PassManager([Damp(), Halve()]).run(chain)
    assert [text for text in report.warnings if "made-up inputs" in text] == report.warnings != []
    assert not PassManager([Damp()], data={"x": X}).run(chain)[1].warnings


def test_what_is_doubtful_about_the_data_is_said(chain: ir.Model) -> None:
    _, report = PassManager([Look()], data=random_data(chain, 8)).run(chain)
    assert "random data" in report.warnings[0]
    _, report = PassManager([Look()], data=load_data({"x": X[:1]}, chain)).run(chain)
    assert "on the same data" in report.warnings[0]
    _, report = PassManager([Look()], data={"x": X}).run(chain)
    assert not report.warnings


def test_data_that_fit_the_inputs_but_do_not_run(chain: ir.Model) -> None:
    model = graph("g (float[N, 4] x, int64[N] i) => (float[N, 4] y) { y0 = Gather(x, i) y = Identity(y0) }")
    with pytest.raises(DataError, match="does not run on the data"):
        PassManager([Damp()], data={"x": X, "i": np.full(40, 99)}).run(model)


def test_data_errors_of_a_pass_end_the_run(chain: ir.Model) -> None:
    def look(context: Context) -> None:
        context.statistics().ranges(["nobody"])

    with pytest.raises(DataError, match="no tensor is called so"):
        PassManager([Look(look=look)], data={"x": X}).run(chain)


def test_optimize_takes_data(chain: ir.Model) -> None:
    result = optimize(chain, passes=[Damp()], data={"x": X}, evaluation={"x": X[:4]})
    assert result.report.quality["damp"].samples == 4
