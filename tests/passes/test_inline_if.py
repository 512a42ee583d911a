"""inline-if."""

import onnx_ir as ir
import pytest

from onnxopt.passes.cleanup.inline_if import InlineIf
from tests.support import assert_same_outputs, count_ops, graph, ops, run


def model(then: str, other: str = "=> (float[N] q) { q = Neg(x) }", *, condition: int = 1, opset: int = 18) -> ir.Model:
    return graph(
        f"""g (float[N] x) => (float[N] y) <bool c = {{{condition}}}> {{ k = Abs(x)
            y = If (c) <then_branch = t () {then}, else_branch = e () {other}> }}""", opset=opset
    )  # fmt: skip


@pytest.mark.parametrize(("condition", "op"), [(1, "Sqrt"), (0, "Neg")])
@pytest.mark.parametrize("opset", [7, 12, 18])
def test_the_chosen_branch_takes_the_place_of_the_if(condition: int, op: str, opset: int) -> None:
    before = model("=> (float[N] p) { a = Relu(k) p = Sqrt(a) }", condition=condition, opset=opset)
    after, report = run(InlineIf(), before)
    assert report.changed == 1
    assert ops(after)[-1] == op
    assert "If" not in ops(after)
    assert [value.name for value in after.graph.outputs] == ["y"]


def test_a_condition_that_varies_or_can_be_overridden_is_no_match() -> None:
    branches = "then_branch = t () => (float[N] p) { p = Abs(x) }, else_branch = e () => (float[N] q) { q = Neg(x) }"
    varies = graph(f"g (float[N] x, bool c) => (float[N] y) {{ y = If (c) <{branches}> }}")
    assert run(InlineIf(), varies)[1].changed == 0
    overridable = graph(f"g (float[N] x, bool c) => (float[N] y) <bool c = {{1}}> {{ y = If (c) <{branches}> }}")
    assert run(InlineIf(), overridable)[1].changed == 0


def test_initializers_of_the_branch_move_out_and_names_that_others_use_change() -> None:
    before = graph(
        """g (float[N] x, bool d) => (float[N] y) <bool c = {1}> {
            u = If (c) <then_branch = t () => (float[N] p) <float[1] w = {2.0}>
                            { own = Relu(x) a = Mul(own, w) p = Neg(a) },
                        else_branch = e () => (float[N] q) { q = Neg(x) }>
            y = If (d) <then_branch = t2 () => (float[N] p) <float[1] w = {3.0}> { a = Mul(u, w) p = Neg(a) },
                        else_branch = e2 () => (float[N] q) { q = Neg(u) }> }"""
    )
    after, report = run(InlineIf(), before)
    assert report.changed == 1
    assert after.graph.node(0).outputs[0].name == "own"
    outer = {value.name for node in after.graph for value in node.outputs} | set(after.graph.initializers)
    inner = {value.name for key in ("then_branch", "else_branch")
             for node in after.graph.node(-1).attributes[key].as_graph() for value in node.outputs}  # fmt: skip
    assert not outer & (inner | {"w"})


def test_nodes_get_names_that_no_other_node_has() -> None:
    before = graph(
        """g (float[N] x) => (float[N] y) <bool c = {1}> { [same] k = Abs(x)
            y = If (c) <then_branch = t () => (float[N] p) { [same] a = Relu(k) [own] p = Neg(a) },
                        else_branch = e () => (float[N] q) { [own] q = Neg(x) }> }"""
    )
    after, _ = run(InlineIf(), before)
    assert [node.name for node in after.graph] == ["same", "same_1", "own"]


def test_a_constant_as_output_gets_an_identity_where_a_name_must_stay() -> None:
    before = graph(
        """g (float[1] x) => (float[1] y, float[1] z) <bool c = {1}> {
            y, v = If (c) <then_branch = t () => (float[1] w, float[1] u) <float[1] w = {2.0}, float[1] u = {3.0}> { },
                           else_branch = e () => (float[1] q, float[1] r) { q = Neg(x) r = Abs(x) }>
            z = Add(v, x) }"""
    )
    after, report = run(InlineIf(), before)
    assert report.changed == 1
    assert ops(after) == ["Identity", "Add"]


def test_two_outputs_that_are_one_value_stay_two() -> None:
    before = graph(
        """g (float[1] x) => (float[1] y, float[1] z) <bool c = {0}> {
            y, z = If (c) <then_branch = t () => (float[1] w, float[1] w) <float[1] w = {2.0}> { },
                           else_branch = e () => (float[1] q, float[1] q) { q = Neg(x) }> }"""
    )
    after, report = run(InlineIf(), before, verify=False)  # ONNX Runtime computes garbage for such a branch
    assert report.changed == 1
    assert_same_outputs(graph("g (float[1] x) => (float[1] y, float[1] z) { y = Neg(x) z = Neg(x) }"), after)
    assert ops(after) == ["Neg", "Identity"]
    assert [value.name for value in after.graph.outputs] == ["y", "z"]


def test_nested_ifs_vanish_in_one_run() -> None:
    inner = (
        "If (c) <then_branch = t2 () => (float[N] p2) { p2 = Sqrt(k) },"
        " else_branch = e2 () => (float[N] q2) { q2 = Exp(k) }>"
    )
    before = model(f"=> (float[N] p) {{ r = {inner} p = Neg(r) }}", f"=> (float[N] q) {{ q = {inner} }}")
    after, report = run(InlineIf(), before)
    assert report.changed == 2
    assert ops(after) == ["Abs", "Sqrt", "Neg"]


def test_inside_a_body_and_a_function() -> None:
    choice = (
        "If (t) <then_branch = t1 () => (float[N] p1) <float[1] w = {2.0}> { p1 = Mul(s, w) },"
        " else_branch = e1 () => (float[N] q1) { q1 = Neg(s) }>"
    )
    before = graph(
        f"""g (float[N] x, bool c) => (float[N] y) {{
            h = If (c) <then_branch = t () => (float[N] p)
                            {{ t = Constant<value = bool {{1}}>() s = Abs(x) p = {choice} }},
                        else_branch = e () => (float[N] q) {{ q = Neg(x) }}>
            y = local.f(h) }}
        <domain: "local", opset_import: ["" : 18]>
        f (s) => (b) {{ t = Constant<value = bool {{1}}>() b = {choice} }}""",
        extra=', "local" : 1',
    )
    after, report = run(InlineIf(), before)
    assert report.changed == 2
    count = count_ops(after)
    assert count["If"] == 1
    assert count["Mul"] == 2
    (function,) = after.functions.values()
    assert [node.op_type for node in function] == ["Constant", "Constant", "Mul"]


def test_refuses_where_initializers_must_be_inputs() -> None:
    before = graph(
        """g (float[N] x) => (float[N] y) { c = Constant<value = bool {1}>()
            y = If (c) <then_branch = t (float[1] w) => (float[N] p) <float[1] w = {2.0}> { p = Mul(x, w) },
                        else_branch = e () => (float[N] q) { q = Neg(x) }> }""",
        opset=9, ir_version=3,
    )  # fmt: skip
    _, report = run(InlineIf(), before)
    assert report.changed == 0
    assert "drop-initializer-inputs" in report.refusals[0].text
