"""The pattern engine: what it matches, and what it must not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.pass_base import Refuse
from onnxopt.rewrite import Match, RewritePass, Rule, rule
from tests.support import count_ops, graph, ops, run


@rule(lambda op, x: op.Mul(x, op.Sigmoid(op.Add(x, 1.0))))
def _shifted_swish(match: Match) -> ir.Value:
    """Any exact replacement will do: the same, written with Neg."""
    dtype = match.dtype()
    assert dtype is not None
    one = match.constant(np.array(1, dtype.numpy()), "one")
    return match.insert("Mul", [match["x"], match.insert("Sigmoid", [match.insert("Sum", [match["x"], one])])])


@dataclass(frozen=True, kw_only=True)
class Shifted(RewritePass):
    """A pass of one rule."""

    name: ClassVar[str] = "shifted"
    exact: ClassVar[bool] = True
    rules: ClassVar[tuple[Rule, ...]] = (_shifted_swish,)


def fits(model: ir.Model) -> bool:
    _, report = run(Shifted(), model)
    return report.changed > 0


@pytest.mark.parametrize(
    "body",
    [
        "a = Add(x, o) s = Sigmoid(a) y = Mul(x, s)",
        "a = Add(o, x) s = Sigmoid(a) y = Mul(x, s)",
        "a = Add(x, o) s = Sigmoid(a) y = Mul(s, x)",
        "a = Add(o, x) s = Sigmoid(a) y = Mul(s, x)",
    ],
)
def test_commutative_operands_match_either_way(body: str) -> None:
    before = graph(f"g (float[N] x) => (float[N] y) <float o = {{1.0}}> {{ {body} }}")
    after, report = run(Shifted(), before)
    assert report.changed == 1
    assert count_ops(after) == {"Sum": 1, "Sigmoid": 1, "Mul": 1}
    assert [v.name for v in after.graph.outputs] == ["y"]
    assert report.changes[0].text == "3 nodes became Mul"


def test_a_variable_is_one_value() -> None:
    assert not fits(graph("g (float[N] x, float[N] z) => (float[N] y) <float o = {1.0}> "
                          "{ a = Add(x, o) s = Sigmoid(a) y = Mul(z, s) }"))  # fmt: skip


@pytest.mark.parametrize(
    ("number", "matches"),
    [("float o = {1.0000002}", True), ("float o = {1.0001}", False), ("float[1] o = {1.0}", True),
     ("float[2] o = {1.0, 1.0}", False), ("float[1,1] o = {1.0}", False)],
)  # fmt: skip
def test_a_number_is_one_element_of_that_value_and_raises_no_rank(number: str, matches: bool) -> None:
    out = "float[M,N]" if "1,1" in number else "float[N]"
    x = "float[N]" if "[2]" not in number else "float[2]"
    before = graph(f"g ({x} x) => ({out} y) <{number}> {{ a = Add(x, o) s = Sigmoid(a) y = Mul(x, s) }}")
    _, report = run(Shifted(), before, verify=False)
    assert bool(report.changed) == matches


@pytest.mark.parametrize(("number", "matches"), [(0.9995, True), (1.001, True), (1.01, False)])
def test_a_number_in_half_may_be_rounded(number: float, matches: bool) -> None:
    one = np.array(number, np.float16)
    assert one != 1
    before = graph("g (float16[N] x) => (float16[N] y) { a = Add(x, one) s = Sigmoid(a) y = Mul(x, s) }", one=one)
    _, report = run(Shifted(), before, verify=False)
    assert bool(report.changed) == matches


def test_refuses_where_a_number_may_raise_an_unknown_rank() -> None:
    before = graph("""g (float[N] x, int64[K] s) => (float y) <float[1] o = {1.0}>
        { r = Reshape(x, s) a = Add(r, o) b = Sigmoid(a) y = Mul(r, b) }""")
    _, report = run(Shifted(), before, verify=False)
    assert report.changed == 0
    assert "the rank of r is unknown" in report.refusals[0].text


def test_leaves_an_inner_value_that_others_read() -> None:
    assert not fits(graph("g (float[N] x) => (float[N] y, float[N] z) <float o = {1.0}> "
                          "{ a = Add(x, o) s = Sigmoid(a) y = Mul(x, s) z = Relu(s) }"))  # fmt: skip


def test_leaves_an_inner_value_that_is_an_output() -> None:
    assert not fits(graph("g (float[N] x) => (float[N] y, float[N] a) <float o = {1.0}> "
                          "{ a = Add(x, o) s = Sigmoid(a) y = Mul(x, s) }"))  # fmt: skip


def test_leaves_an_inner_value_that_a_body_reads() -> None:
    assert not fits(graph("""g (float[N] x, bool c) => (float[N] y, float[N] z) <float o = {1.0}> {
        a = Add(x, o) s = Sigmoid(a) y = Mul(x, s)
        z = If(c) <then_branch = t () => (float[N] u) { u = Relu(s) },
                   else_branch = e () => (float[N] w) { w = Identity(x) }> }"""))


def test_matches_inside_a_body_but_not_across_its_border() -> None:
    inside = graph("""g (float[N] x, bool c) => (float[N] z) <float o = {1.0}> {
        z = If(c) <then_branch = t () => (float[N] u) { a = Add(x, o) s = Sigmoid(a) u = Mul(x, s) },
                   else_branch = e () => (float[N] w) { w = Identity(x) }> }""")
    after, report = run(Shifted(), inside)
    assert report.changed == 1
    assert count_ops(after)["Sum"] == 1
    assert not fits(graph("""g (float[N] x, bool c) => (float[N] z) <float o = {1.0}> {
        a = Add(x, o)
        z = If(c) <then_branch = t () => (float[N] u) { s = Sigmoid(a) u = Mul(x, s) },
                   else_branch = e () => (float[N] w) { w = Identity(x) }> }"""))


def test_leaves_nodes_of_other_domains() -> None:
    before = graph("""g (float[N] x) => (float[N] y) <float o = {1.0}>
        { a = Add(x, o) s = my.Sigmoid(a) y = Mul(x, s) }
        <domain: "my", opset_import: ["" : 18]> Sigmoid (v) => (w) { w = Relu(v) }""", extra=', "my" : 1')
    assert not fits(before)


@rule(lambda op, x, w, c: op.Add(op.MatMul(x, w), c))
def _gemm(match: Match) -> ir.Value:
    return match.insert("Gemm", [match["x"], match["w"], match["c"]])


@rule(lambda op, x: op.Relu(op.Relu(x)))
def _never(match: Match) -> ir.Value:
    raise Refuse("not today")


@rule(lambda op, x: op.Relu(x))
def _never_again(match: Match) -> ir.Value:
    raise Refuse("not today")


@dataclass(frozen=True, kw_only=True)
class Several(RewritePass):
    """A pass of several rules."""

    name: ClassVar[str] = "several"
    exact: ClassVar[bool] = True
    rules: ClassVar[tuple[Rule, ...]] = (_gemm, _never, _never_again)


def test_the_replacement_never_reads_what_is_taken_out() -> None:
    before = graph("g (float[N,4] x) => (float[N,4] y) <float[4,4] w> { m = MatMul(x, w) y = Add(m, m) }",
                   w=np.eye(4, dtype=np.float32))  # fmt: skip
    before.graph.inputs[1:] = []
    _, report = run(Several(), before)
    assert report.changed == 0


def test_a_reason_is_given_once_for_the_nodes_of_a_match() -> None:
    before = graph("g (float[N] x) => (float[N] y) { a = Relu(x) y = Relu(a) }")
    _, report = run(Several(), before)
    assert [str(note) for note in report.refusals] == ["y: not today"]


def test_ops_are_the_roots_of_the_patterns() -> None:
    assert Several.ops == {"Add", "Relu"}


def test_name_and_metadata_of_the_root_are_kept() -> None:
    before = graph("g (float[N,4] x, float[4,4] w, float[4] b) => (float[N,4] y) { m = MatMul(x, w) y = Add(m, b) }")
    root = before.graph[1]
    root.name, root.doc_string, root.metadata_props["from"] = "dense", "a layer", "layer.0"
    after, _ = run(Several(), before)
    assert ops(after) == ["Gemm"]
    (node,) = after.graph
    assert (node.name, node.doc_string, node.metadata_props["from"]) == ("dense", "a layer", "layer.0")


@rule(lambda op, x: op.product(x, op.Tanh(x), 0.25))
def _product(match: Match) -> ir.Value:
    return match.insert("Mul", [match.insert("Mul", [match["x"], match.insert("Tanh", [match["x"]])]),
                                match.constant(np.array(0.25, np.float32), "q")])  # fmt: skip


@pytest.mark.parametrize(
    "body",
    ["a = Mul(x, t) y = Mul(a, q)", "a = Mul(q, x) y = Mul(t, a)", "a = Mul(t, q) y = Mul(a, x)",
     "a = Mul(x, t) y = Div(a, f)", "a = Div(x, f) y = Mul(t, a)", "a = Div(t, f) y = Mul(x, a)"],
)  # fmt: skip
def test_products_match_in_every_association(body: str) -> None:
    before = graph(f"g (float[N] x) => (float[N] y) <float q = {{0.25}}, float f = {{4.0}}> {{ t = Tanh(x) {body} }}")
    (root,) = [node for node in before.graph if node.outputs[0].name == "y"]
    from onnxopt.graph import Editor

    assert _product.apply(root, Editor(before)) == "3 nodes became Mul"
