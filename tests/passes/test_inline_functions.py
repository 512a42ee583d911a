"""inline-functions."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.errors import OptionError
from onnxopt.passes.cleanup.inline_functions import InlineFunctions
from tests.support import assert_same_outputs, count_ops, graph, ops, run

HEAD = '<domain: "local", opset_import: ["" : 18, "local" : 1]>'


def model(body: str, *functions: str, opset: int = 18) -> ir.Model:
    return graph(body + "".join(f"{HEAD} {function}" for function in functions), opset=opset, extra=', "local" : 1')


def test_a_call_becomes_the_body_and_the_function_goes() -> None:
    before = model(
        "g (float[N] x) => (float[N] y) { t = Neg(x) y = local.f(t) }", "f (a) => (b) { t = Relu(a) b = Abs(t) }"
    )
    call = before.graph.node(1)
    call.name, call.metadata_props["from"] = "call", "there"
    next(iter(before.functions.values()))[0].name = "first"
    after, report = run(InlineFunctions(), before)
    assert report.changed == 2
    assert not after.functions
    assert ops(after) == ["Neg", "Relu", "Abs"]
    assert after.graph.node(1).name == "call/first"
    assert after.graph.node(1).metadata_props == {"from": "there"}
    names = [value.name for node in after.graph for value in node.outputs]
    assert names[0] == "t"
    assert names[-1] == "y"
    assert len(set(names)) == 3


def test_nested_calls_and_two_calls_of_one_function() -> None:
    before = model(
        "g (float[N] x) => (float[N] y) { u = local.outer(x) v = local.outer(u) y = Add(u, v) }",
        "outer (a) => (b) { c = local.inner(a) d = local.inner(c) b = Add(c, d) }",
        "inner (a) => (b) { c = Relu(a) b = Exp(c) }",
    )
    after, report = run(InlineFunctions(), before, {"x": np.array([-1, -2], np.float32)})
    assert not after.functions
    assert count_ops(after) == {"Relu": 4, "Exp": 4, "Add": 3}
    assert report.changed == 2 + 4 + 2


def test_nodes_get_names_that_no_other_node_has() -> None:
    before = model(
        "g (float[N] x) => (float[N] y) { [same] u = local.f(x) v = local.f(u) w = local.f(v) [first] y = Abs(w) }",
        "f (a) => (b) { [first] t = Relu(a) s = Sin(t) b = Cos(s) }",
    )
    after, _ = run(InlineFunctions(), before)
    names = [node.name for node in after.graph if node.name]
    assert len(set(names)) == len(names) == 4


def test_attributes_come_from_the_call_else_the_default_else_are_absent() -> None:
    before = model(
        "g (float[2] x) => (float[2] y) { a = local.f<alpha = 0.5>(x) b = local.f(a) y = local.h(b) }",
        "f <alpha: float = 0.25> (a) => (b) { b = LeakyRelu<alpha: float = @alpha>(a) }",
        "h <alpha> (a) => (b) { c = LeakyRelu<alpha: float = @alpha>(a) b = local.f<alpha: float = @alpha>(c) }",
    )
    after, _ = run(InlineFunctions(), before)
    found = [node.attributes.get_float("alpha") for node in after.graph]
    assert found == [0.5, 0.25, None, 0.25]


def test_calls_in_bodies_and_bodies_in_functions_get_names_of_their_own() -> None:
    before = model(
        """g (float[N] x, bool c) => (float[N] y) { a = local.f(x, c)
            y = If (c) <then_branch = t () => (float[N] p) { s = Abs(x) p = local.f(s, c) },
                        else_branch = e () => (float[N] q) { q = Neg(a) }> }""",
        """f (x, c) => (b) { s = Sin(x) k = Abs(s)
            b = If (c) <then_branch = t () => (p) <float[1] w = {2.0}> { s2 = Mul(x, w) p = Add(s2, k) },
                        else_branch = e () => (q) { q = Neg(x) }> }""",
    )
    after, report = run(InlineFunctions(), before)
    assert report.changed == 3
    assert count_ops(after)["If"] == 3
    assert count_ops(after)["Sin"] == 2


def test_inputs_that_are_left_out_or_handed_on() -> None:
    before = model(
        "g (float[N] x) => (float[N] y, float[N] z) { y, u = local.f(x) z = Abs(u) }",
        "f (a, low, high) => (a, b) { b = Clip(a, low, high) }",
    )
    after, report = run(InlineFunctions(), before, verify=False)  # ONNX Runtime refuses such a function
    assert report.changed == 2
    assert ops(after) == ["Clip", "Identity", "Abs"]
    assert len(after.graph.node(0).inputs) == 1
    assert_same_outputs(graph("g (float[N] x) => (float[N] y, float[N] z) { y = Identity(x) z = Abs(x) }"), after)
    absent = model("g (float[N] x) => (float[N] y) { y, z = local.f(x) }", "f (a, b) => (b, c) { c = Neg(a) }")
    _, report = run(InlineFunctions(), absent, verify=False)
    assert report.changed == 0
    assert "hands on the input 'b'" in report.refusals[0].text


def test_one_value_as_two_outputs() -> None:
    before = model(
        "g (float[N] x) => (float[N] y, float[N] z) { y, z = local.f(x) }", "f (a) => (b, b) { b = Relu(a) }"
    )
    after, _ = run(InlineFunctions(), before, verify=False)  # ONNX Runtime refuses such a function
    assert ops(after) == ["Relu", "Identity"]
    assert_same_outputs(graph("g (float[N] x) => (float[N] y, float[N] z) { y = Relu(x) z = Relu(x) }"), after)


def test_refuses_another_opset_and_keeps_the_function() -> None:
    before = model("g (float[N] x) => (float[N] y) { y = local.f(x) }", "f (a) => (b) { b = Relu(a) }", opset=17)
    after, report = run(InlineFunctions(), before, verify=False)
    assert report.changed == 0
    assert "version 18" in report.refusals[0].text
    assert "17" in report.refusals[0].text
    assert len(after.functions) == 1


def test_takes_over_the_import_of_a_domain_that_the_model_does_not_know() -> None:
    before = graph(
        """g (float[N] x) => (float[N] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 18, "com.microsoft" : 1]> f (a) => (b) { b = com.microsoft.Gelu(a) }""",
        extra=', "local" : 1',
    )
    after, report = run(InlineFunctions(), before)
    assert report.changed == 2
    assert after.opset_imports["com.microsoft"] == 1


def test_an_excluded_call_keeps_its_function_and_others_are_put_in() -> None:
    before = model(
        "g (float[N] x) => (float[N] y) { u = local.f(x) y = local.f(u) }", "f (a) => (b) { b = Relu(a) }"
    )
    after, report = run(InlineFunctions(exclude=("u",)), before)
    assert report.changed == 1
    assert ops(after) == ["f", "Relu"]
    assert len(after.functions) == 1


def test_a_growing_chain_of_functions_is_bounded() -> None:
    functions = [f"f{i} (a) => (b) {{ c = local.f{i + 1}(a) b = local.f{i + 1}(c) }}" for i in range(12)]
    before = model("g (float[N] x) => (float[N] y) { y = local.f0(x) }", *functions, "f12 (a) => (b) { b = Neg(a) }")
    _, report = run(InlineFunctions(max_nodes=1000), before, verify=False)
    assert report.changed == 0
    assert "4096 nodes" in report.refusals[0].text


def test_options_are_checked() -> None:
    with pytest.raises(OptionError, match="max_nodes"):
        InlineFunctions(max_nodes=-1)


def test_a_model_without_functions_is_untouched() -> None:
    assert run(InlineFunctions(), graph("g (float[N] x) => (float[N] y) { y = Relu(x) }"))[1].changed == 0
