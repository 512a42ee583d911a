"""convert-opset."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxopt
from onnxopt.errors import OptionError
from onnxopt.external import OFFLOAD_BYTES
from onnxopt.model import to_proto
from onnxopt.passes.cleanup.convert_opset import ConvertOpset
from tests.support import count_ops, graph, ops, run


@pytest.mark.parametrize("version", [13, 18, 21])
def test_upwards_attributes_become_inputs(version: int) -> None:
    before = graph("g (float[1, N] x) => (float[N] y) { y = Squeeze<axes = [0]>(x) }", opset=12)
    after, report = run(ConvertOpset(version=version), before)
    assert report.changed == 1
    assert after.opset_imports[""] == version
    assert len(after.graph.node(-1).inputs) == 2
    assert [value.name for value in after.graph.outputs] == ["y"]


def test_downwards_inputs_become_attributes() -> None:
    before = graph("g (float[1, N] x) => (float[N] y) <int64[1] axes = {0}> { y = Squeeze(x, axes) }", opset=13)
    after, report = run(ConvertOpset(version=11), before)
    assert report.changed == 1
    assert after.graph.node(-1).attributes.get_ints("axes") == (0,)


def test_the_version_that_is_there_is_no_change() -> None:
    assert run(ConvertOpset(version=18), graph("g (float[N] x) => (float[N] y) { y = Relu(x) }"))[1].changed == 0


def test_a_missing_rule_is_a_refusal_with_the_operator() -> None:
    before = graph("g (float[N] x) => (float[N] y) { y = Gelu(x) }", opset=20)
    _, report = run(ConvertOpset(version=18), before)
    assert report.changed == 0
    assert "Gelu" in report.refusals[0].text
    assert "opset 18" in report.refusals[0].text
    assert ".h:" not in report.refusals[0].text


@pytest.mark.parametrize("version", [6, 10_000])
def test_a_version_that_does_not_exist_is_an_error(version: int) -> None:
    with pytest.raises(OptionError, match="version is a number from 7"):
        ConvertOpset(version=version)


def test_refuses_functions_and_models_with_initializers_as_inputs() -> None:
    functions = graph(
        '''g (float[N] x) => (float[N] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 18]> f (a) => (b) { b = Relu(a) }''',
        extra=', "local" : 1',
    )
    assert "inline-functions" in run(ConvertOpset(version=20), functions)[1].refusals[0].text
    old = graph(
        "g (float[N] x, float[1] w) => (float[N] y) <float[1] w = {1.0}> { y = Add(x, w) }", opset=8, ir_version=3
    )
    assert "drop-initializer-inputs" in run(ConvertOpset(version=13), old)[1].refusals[0].text


def test_bodies_are_converted_and_custom_domains_pass() -> None:
    before = graph(
        """g (float[1, N] x, bool c) => (float[N] y) { k = com.microsoft.Gelu(x)
            y = If (c) <then_branch = t () => (float[N] p) { p = Squeeze<axes = [0]>(k) },
                        else_branch = e () => (float[N] q) { q = ReduceSum<axes = [0], keepdims = 0>(x) }> }""",
        opset=12, extra=', "com.microsoft" : 1',
    )  # fmt: skip
    after, report = run(ConvertOpset(version=13), before)
    assert report.changed == 1
    assert count_ops(after)["Gelu"] == 1
    branch = after.graph.node(-1).attributes["then_branch"].as_graph()
    assert len(branch.node(-1).inputs) == 2
    assert dict(after.opset_imports) == {"": 13, "com.microsoft": 1}


def test_keeps_names_metadata_doc_strings_and_declarations() -> None:
    before = graph(
        "g (float[1, N] x) => (float[K] y) <float[1] w = {2.0}, float[1, N] a>"
        "{ a = Mul(x, w) b = Squeeze<axes = [0]>(a) y = Neg(b) }",
        opset=12,
    )
    before.metadata_props["of"] = "model"
    before.graph.metadata_props["of"] = "graph"
    before.graph.doc_string = "a graph"
    before.graph.inputs[0].doc_string = "an input"
    before.graph.inputs[0].metadata_props["of"] = "input"
    for node in before.graph:
        node.name, node.doc_string = f"{node.op_type}_1", "a node"
        node.metadata_props["of"] = node.op_type
    before.graph.initializers["w"].const_value = ir.Tensor(
        np.array([2.0], np.float32), name="w", doc_string="a weight", metadata_props={"of": "weight"}
    )
    old = to_proto(before)
    after, report = run(ConvertOpset(version=13), before)
    assert report.changed == 1
    new = to_proto(after)
    assert new.metadata_props == old.metadata_props
    assert new.graph.metadata_props == old.graph.metadata_props
    assert new.graph.doc_string == "a graph"
    assert list(new.graph.input) == list(old.graph.input)
    assert list(new.graph.output) == list(old.graph.output)
    assert list(new.graph.value_info) == list(old.graph.value_info)
    assert list(new.graph.initializer) == list(old.graph.initializer)
    nodes = {node.name: node for node in new.graph.node}
    for node in old.graph.node:
        assert nodes[node.name].metadata_props == node.metadata_props
        assert nodes[node.name].doc_string == "a node"
        assert nodes[node.name].output == node.output


def test_nodes_that_replace_one_do_not_share_its_name() -> None:
    before = graph("g (float[N, 2, 3] x) => (float[N, 2, 3] y) { [soft] y = Softmax(x) }", opset=12)
    after, report = run(ConvertOpset(version=13), before)
    assert report.changed == 1
    assert len(after.graph) > 1
    assert [node.name for node in after.graph if node.name] == ["soft"]


def test_large_weights_stay_in_their_file_and_overridable_defaults_stay_inputs(tmp_path: Path) -> None:
    size = OFFLOAD_BYTES
    model = graph(
        f"g (float[1, {size}] x, float[1] d) => (float[{size}] y) <float[1] d = {{1.0}}>"
        "{ a = Mul(x, w) b = Add(a, d) y = Squeeze<axes = [0]>(b) }",
        opset=12, w=np.ones(size, np.float32),
    )  # fmt: skip
    path = tmp_path / "m.onnx"
    onnxopt.save(model, path, external_data=True)
    result = onnxopt.optimize(path, passes=[ConvertOpset(version=13)])
    assert result.report.verified
    assert not result.report.problems
    assert result.report.changed == 1
    assert ops(result.model)[-1] == "Squeeze"
    assert [value.name for value in result.model.graph.inputs] == ["x", "d"]
    result.save(tmp_path / "out.onnx")
    onnx.checker.check_model(tmp_path / "out.onnx", full_check=True)
    assert (tmp_path / "out.onnx.data").stat().st_size >= 4 * size
