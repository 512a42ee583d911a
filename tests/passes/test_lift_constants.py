"""lift-constants."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.model import from_proto, to_proto
from onnxopt.passes.cleanup.lift_constants import LiftConstants
from tests.support import count_ops, graph, ops, outputs, run


def test_lifts_a_tensor_under_its_name_for_all_readers() -> None:
    before = graph(
        "g (float[N, 2] x) => (float[N, 2] y, float[N, 2] z)"
        "{ w = Constant<value = float[2] {1.0, 2.0}>() y = Mul(x, w) z = Add(x, w) }"
    )
    after, report = run(LiftConstants(), before)
    assert report.changed == 1
    assert ops(after) == ["Mul", "Add"]
    assert list(after.graph.initializers) == ["w"]


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ("value_int = 3", np.array(3, np.int64)),
        ("value_ints = [3, 4]", np.array([3, 4], np.int64)),
        ("value_float = 0.5", np.array(0.5, np.float32)),
        ("value_floats = [0.5, 1.5]", np.array([0.5, 1.5], np.float32)),
        ('value_string = "a"', np.array("a", object)),
        ('value_strings = ["a", "bc"]', np.array(["a", "bc"], object)),
    ],
)
def test_lifts_each_kind_of_value_with_the_type_that_the_operator_defines(
    attribute: str, expected: np.ndarray
) -> None:
    kind = {"i": "int64", "f": "float", "O": "string"}[expected.dtype.kind]
    dims = ", ".join(map(str, expected.shape))
    shape = f"[{dims}]" if dims else ""
    before = graph(f"g () => ({kind}{shape} y) {{ c = Constant<{attribute}>() y = Identity(c) }}", opset=13)
    after, report = run(LiftConstants(), before, verify=False)  # there are no inputs to probe
    assert report.changed == 1
    assert list(after.graph.initializers) == ["c"]
    (found,) = outputs(after, {})
    assert found.shape == expected.shape
    assert found.tolist() == expected.tolist()
    assert found.dtype == expected.dtype


def test_leaves_a_constant_that_is_an_output() -> None:
    before = graph(
        "g (float[1] x) => (float[1] y, float[1] c) { c = Constant<value = float[1] {2.0}>() y = Add(x, c) }"
    )
    after, report = run(LiftConstants(), before)
    assert report.changed == 0
    assert ops(after) == ["Constant", "Add"]


def test_lifts_into_the_body_that_it_stands_in_and_leaves_functions_alone() -> None:
    before = graph(
        """g (float[N] x, bool c) => (float[N] y) {
            a = If (c) <then_branch = t () => (float[N] p) { k = Constant<value_float = 2.0>() p = Mul(x, k) },
                        else_branch = e () => (float[N] q) { q = Neg(x) }>
            y = local.f(a)
        } <domain: "local", opset_import: ["" : 18]>
        f (a) => (b) { k = Constant<value_float = 3.0>() b = Mul(a, k) }""",
        extra=', "local" : 1',
    )
    after, report = run(LiftConstants(), before)
    assert report.changed == 1
    assert not after.graph.initializers
    branch = after.graph.node(0).attributes["then_branch"].as_graph()
    assert list(branch.initializers) == ["k"]
    assert count_ops(after)["Constant"] == 1


def test_refuses_where_initializers_must_be_inputs() -> None:
    before = graph(
        "g (float[2] x) => (float[2] y) { w = Constant<value = float[2] {1.0, 2.0}>() y = Mul(x, w) }",
        opset=8, ir_version=3,
    )  # fmt: skip
    _, report = run(LiftConstants(), before)
    assert report.changed == 0
    assert "drop-initializer-inputs" in report.refusals[0].text


def test_refuses_sparse_values() -> None:
    proto = to_proto(graph("g (float[3] x) => (float[3] y) { y = Add(x, x) }"))
    values = onnx.helper.make_tensor("v", onnx.TensorProto.FLOAT, [1], [5.0])
    indices = onnx.helper.make_tensor("i", onnx.TensorProto.INT64, [1], [1])
    sparse = onnx.helper.make_sparse_tensor(values, indices, [3])
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["c"], sparse_value=sparse))
    proto.graph.node[1].input[1] = "c"
    _, report = run(LiftConstants(), from_proto(proto), verify=False)
    assert report.changed == 0
    assert "sparse" in report.refusals[0].text


def test_two_constants_that_share_a_tensor_keep_their_own_names_and_metadata() -> None:
    before = graph(
        "g (float[1] x) => (float[1] y) { a = Constant<value = float[1] {2.0}>()"
        "b = Constant<value = float[1] {2.0}>() c = Add(x, a) y = Add(c, b) }"
    )
    first, second = list(before.graph)[:2]
    second.attributes["value"] = first.attributes["value"]
    first.metadata_props["from"] = "there"
    after, _ = run(LiftConstants(), before)
    tensors = {tensor.name: tensor for tensor in to_proto(after).graph.initializer}
    assert set(tensors) == {"a", "b"}
    assert [(entry.key, entry.value) for entry in tensors["a"].metadata_props] == [("from", "there")]
    shared = first.attributes["value"].as_tensor()
    assert isinstance(shared, ir.TensorProtocol)
    assert shared.name not in ("a", "b")
