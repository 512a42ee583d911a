"""remove-dead."""

import time

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.graph import Editor
from onnxopt.model import from_proto, to_proto
from onnxopt.pass_base import Context, Gate
from onnxopt.passes.cleanup.remove_dead import RemoveDead
from tests.support import count_ops, graph, ops, run


def test_removes_chains_initializers_and_random_nodes_that_nothing_needs() -> None:
    before = graph(
        "g (float[N, 2] x) => (float[N, 2] y)"
        "<float[2] used = {1.0, 2.0}, float[2] unused = {3.0, 4.0}, float[2] chain = {5.0, 6.0}>"
        "{ a = Add(x, chain) b = Relu(a) r = RandomNormalLike(b) y = Mul(x, used) }"
    )
    after, report = run(RemoveDead(), before)
    assert report.changed == 5
    assert ops(after) == ["Mul"]
    assert list(after.graph.initializers) == ["used"]


def test_a_reader_in_a_body_keeps_a_node_alive() -> None:
    before = graph(
        """g (float[N] x, bool c) => (float[N] y) { k = Abs(x) dead = Neg(x)
            y = If (c) <then_branch = t () => (float[N] a) { d = Exp(x) a = Sqrt(k) },
                        else_branch = e () => (float[N] b) { b = Neg(x) }> }"""
    )
    after, report = run(RemoveDead(), before)
    assert report.changed == 2
    assert count_ops(after) == {"Abs": 1, "If": 1, "Sqrt": 1, "Neg": 1}


def test_a_dead_node_with_bodies_gives_free_what_they_read() -> None:
    before = graph(
        """g (float[N] x, bool c) => (float[N] y) <float[1] w = {1.0}> { k = Add(x, w) y = Relu(x)
            z = If (c) <then_branch = t () => (float[N] a) { a = Abs(k) },
                        else_branch = e () => (float[N] b) { b = Neg(k) }> }"""
    )
    after, report = run(RemoveDead(), before)
    assert ops(after) == ["Relu"]
    assert not after.graph.initializers
    assert report.changed == 3


def test_nothing_dead_is_no_change_and_overridable_defaults_stay() -> None:
    before = graph("g (float[N] x, float[1] w) => (float[N] y) <float[1] w = {1.0}> { y = Relu(x) }")
    assert run(RemoveDead(), before)[1].changed == 0


@pytest.mark.parametrize(
    ("text", "opset", "kept"),
    [
        ("y, m = Dropout(x)", 10, ["y"]),
        ("y, m = Dropout(x)", 18, ["y"]),
        ("y, m, v = LayerNormalization(x, s)", 17, ["y"]),
        ("y, m = MaxPool<kernel_shape = [1]>(x)", 12, ["y"]),
    ],
)
def test_trailing_optional_outputs_go(text: str, opset: int, kept: list[str]) -> None:
    body = f"g (float[1, 2, 4] x) => (float[1, 2, 4] y) {{ {text} }}"
    before = graph(body, opset=opset, s=np.ones(4, np.float32)) if "(x, s)" in text else graph(body, opset=opset)
    after, report = run(RemoveDead(), before)
    assert report.changed == 1
    assert [value.name for value in after.graph.node(0).outputs] == kept


def test_only_trailing_outputs_go_and_those_of_other_operators_stay() -> None:
    before = graph(
        "g (float[5, 1, 3] x) => (float[1, 1, 2] h) { y, h, c = LSTM<hidden_size = 2>(x, w, r) }",
        w=np.ones((1, 8, 3), np.float32), r=np.ones((1, 8, 2), np.float32),
    )  # fmt: skip
    after, report = run(RemoveDead(), before)
    assert report.changed == 1
    assert [value.name for value in after.graph.node(0).outputs] == ["y", "h"]
    top = graph("g (float[4] x) => (int64[2] i) <int64[1] k = {2}> { v, i = TopK(x, k) }")
    assert run(RemoveDead(), top)[1].changed == 0
    split = graph("g (float[4] x) => (float[2] a) { a, b = Split<axis = 0>(x) }", opset=11)
    assert run(RemoveDead(), split)[1].changed == 0


def test_training_outputs_of_a_batch_normalization_stay() -> None:
    ones = np.ones(2, np.float32)
    before = graph(
        "g (float[3, 2] x) => (float[3, 2] y) { y, rm, rv = BatchNormalization<training_mode = 1>(x, s, b, m, v) }",
        opset=15, s=ones, b=ones, m=ones, v=ones,
    )  # fmt: skip
    assert run(RemoveDead(), before)[1].changed == 0


def test_unread_outputs_of_an_if_go_from_its_branches_too() -> None:
    before = graph(
        """g (float[N] x, bool c) => (float[N] y) { k = Exp(x)
            z, y, u = If (c) <then_branch = t () => (float[N] a, float[N] b, float[N] d)
                                { a = Abs(k) b = Neg(x) d = Sin(b) },
                              else_branch = e () => (float[N] p, float[N] q, float[N] s)
                                { p = Sqrt(k) q = Relu(x) s = Cos(p) }>
            dead = Neg(z) }"""
    )
    before.graph.node(1).name = "choice"
    before.graph.node(1).metadata_props["from"] = "there"
    after, report = run(RemoveDead(), before)
    assert report.changed == 7
    assert count_ops(after) == {"If": 1, "Neg": 1, "Relu": 1}
    (node,) = after.graph
    assert (node.name, node.metadata_props) == ("choice", {"from": "there"})
    assert [value.name for value in node.outputs] == ["y"]


LOOP = """g (int64 n, float[2] x) => (float[2] y%s) { t = Constant<value = bool {1}>()
    y, w, s, u = Loop (n, t, x, x) <body = b (int64 i, bool c, float[2] y_in, float[2] w_in)
        => (bool c_out, float[2] y_out, float[2] w_out, float[2] s_out, float[2] u_out) {
        c_out = Identity(c) y_out = %s w_out = Sin(w_in) s_out = Exp(y_in) u_out = Abs(w_in) }> }"""


def test_a_loop_loses_values_that_only_feed_themselves_and_unread_scans() -> None:
    before = graph(LOOP % ("", "Neg(y_in)"))
    after, report = run(RemoveDead(), before, {"n": np.array(3), "x": np.array([1, 2], np.float32)})
    assert report.changed == 1
    loop = after.graph.node(1)
    body = loop.attributes["body"].as_graph()
    assert [value.name for value in loop.outputs] == ["y"]
    assert [value.name for value in body.inputs] == ["i", "c", "y_in"]
    assert [value.name for value in body.outputs] == ["c_out", "y_out"]
    assert [node.op_type for node in body] == ["Identity", "Neg"]


@pytest.mark.parametrize(
    ("extra", "update", "kept"),
    [
        ("", "Add(y_in, w_in)", ["y", "w"]),  # the next turn reads what no reader outside does
        (", float[K, 2] u", "Neg(y_in)", ["y", "w", "u"]),
        (", float[K, 2] s", "Neg(y_in)", ["y", "s"]),
    ],
)
def test_a_loop_keeps_what_the_next_turn_or_a_reader_needs(extra: str, update: str, kept: list[str]) -> None:
    before = graph(LOOP % (extra, update))
    for count in (0, 3):
        after, report = run(RemoveDead(), before, {"n": np.array(count), "x": np.array([1, 2], np.float32)})
        assert report.changed >= 1
        assert [value.name for value in after.graph.node(1).outputs] == kept


def test_an_old_loop_keeps_carrying_something() -> None:
    before = graph(
        """g (int64 n, float[2] x) => (float[K, 2] s) { t = Constant<value = bool {1}>()
        y, s = Loop (n, t, x) <body = b (int64 i, bool c, float[2] y_in) => (bool c_out, float[2] y_out, float[2] s_out)
        { c_out = Identity(c) y_out = Neg(y_in) s_out = Exp(x) }> }""",
        opset=10,
    )
    after, report = run(RemoveDead(), before, {"n": np.array(2), "x": np.array([1, 2], np.float32)})
    assert report.changed == 0
    assert len(after.graph.node(1).outputs) == 2


def test_functions_lose_dead_nodes_and_go_if_nothing_calls_them() -> None:
    before = graph(
        """g (float[N] x) => (float[N] y) { y = local.outer(x) }
        <domain: "local", opset_import: ["" : 18, "local" : 1]> outer (a) => (b) { d = Neg(a) b = local.inner(a) }
        <domain: "local", opset_import: ["" : 18]> inner (a) => (b) { b = Relu(a) }
        <domain: "local", opset_import: ["" : 18, "local" : 1]> unused (a) => (b) { b = local.only(a) }
        <domain: "local", opset_import: ["" : 18]> only (a) => (b) { b = Relu(a) }""",
        extra=', "local" : 1',
    )
    after, report = run(RemoveDead(), before)
    assert report.changed == 3
    assert [function.name for function in after.functions.values()] == ["outer", "inner"]
    assert count_ops(after)["Neg"] == 0


def test_excluded_nodes_keep_what_they_need() -> None:
    before = graph("g (float[N] x) => (float[N] y) { a = Abs(x) b = Sin(a) d = Cos(a) y = Relu(x) }")
    after, report = run(RemoveDead(exclude=("Sin",)), before)
    assert report.changed == 1
    assert ops(after) == ["Abs", "Sin", "Relu"]


def test_a_node_without_outputs_stays() -> None:
    model = graph("g (float[N] x) => (float[N] y) { a = Abs(x) y = Relu(x) }", extra=', "my" : 1')
    model.graph.append(ir.Node("my", "Print", [model.graph.node(0).outputs[0]], num_outputs=0))
    report = RemoveDead().run(Context(Editor(model), Gate()))
    assert report.changed == 0


def test_a_sparse_initializer_that_is_read_stays_and_an_unread_one_goes() -> None:
    proto = to_proto(graph("g (float[3] x) => (float[3] y) { y = Add(x, s) }", s=np.zeros(3, np.float32)))
    del proto.graph.initializer[:]
    for name in ("s", "t"):
        values = onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, [1], [5.0])
        indices = onnx.helper.make_tensor("i", onnx.TensorProto.INT64, [1], [1])
        proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [3]))
    model = from_proto(proto)
    report = RemoveDead().run(Context(Editor(model), Gate()))
    assert report.changed == 1
    assert [sparse.values.name for sparse in to_proto(model).graph.sparse_initializer] == ["s"]


def test_stopping_after_any_change_leaves_a_valid_model() -> None:
    before = graph(
        """g (int64 n, bool c, float[2] x) => (float[2] y) { t = Constant<value = bool {1}>() e = Exp(x)
        y, w, s = Loop (n, t, x, e) <body = b (int64 i, bool k, float[2] y_in, float[2] w_in)
            => (bool c_out, float[2] y_out, float[2] w_out, float[2] s_out) {
            c_out = Identity(k)
            y_out, w_out, r = If (c) <then_branch = t1 () => (float[2] a, float[2] b1, float[2] d)
                                { a = Neg(y_in) b1 = Sin(w_in) d = Abs(b1) },
                                    else_branch = e1 () => (float[2] p, float[2] q, float[2] o)
                                { p = Relu(y_in) q = Cos(w_in) o = Abs(p) }>
            s_out = Sqrt(r) }>
        z = Add(w, e) }"""
    )
    feeds = {"n": np.array(3), "c": np.array(True), "x": np.array([1, 2], np.float32)}
    after, report = run(RemoveDead(), before, feeds)
    assert count_ops(after) == {"Constant": 1, "Loop": 1, "Identity": 1, "If": 1, "Neg": 1, "Relu": 1}
    for limit in range(report.changed):
        model = from_proto(to_proto(before))
        RemoveDead().run(Context(Editor(model), Gate(limit)))
        onnx.checker.check_model(to_proto(model), full_check=True)


def test_takes_linear_time() -> None:
    def seconds(count: int) -> float:
        x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
        y = ir.node("Relu", [x])
        nodes, value = [y], x
        for _ in range(count):
            nodes.append(ir.node("Neg", [value]))
            value = nodes[-1].outputs[0]
        model = ir.Model(ir.Graph([x], y.outputs, nodes=nodes, opset_imports={"": 18}), ir_version=8)
        context = Context(Editor(model), Gate())
        start = time.process_time()
        assert RemoveDead().run(context).changed == count
        return time.process_time() - start

    seconds(500)
    assert seconds(8_000) < 40 * seconds(1_000)  # 8 times if linear, 64 if quadratic
