"""Channels: what each operator ties together, what freezes, and that removing equals zeros in the same place."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.channels import ChannelGraph, kept
from onnxopt.errors import OptionError
from onnxopt.graph import Editor
from onnxopt.model import copy, from_proto
from tests.channels_cases import LAYERS, MOVES, RECURRENT, RESHAPES, Case, arrays, image, rows
from tests.channels_oracle import assert_removal_is_zeroing, draw, free, groups, members, reasons, remove, some_feeds
from tests.support import assert_same_outputs, graph, ops, outputs

CASES = {**LAYERS, **MOVES, **RESHAPES, **RECURRENT}


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
def test_operator(case: Case) -> None:
    model = case.model()
    assert free(model, case.unit) == case.free
    found = [group for group in groups(model, case.unit) if not group.frozen]
    assert all(group.exact == case.exact for group in found)
    if case.exact:
        assert assert_removal_is_zeroing(model, unit=case.unit, by_members=case.by_members) > 0
    else:
        small = remove(model, draw(found, 0), case.unit)
        assert [y.shape for y in outputs(small, some_feeds(model))] == [
            y.shape for y in outputs(model, some_feeds(model))
        ]


# -- groups ------------------------------------------------------------------------------------------------------


def test_members_of_a_group() -> None:
    model = image("c = Conv(a, w2, b2)\n b = Add(a, c)", w2=(8, 8, 1, 1), b2=(8,)).model()
    (group,) = [group for group in groups(model) if not group.frozen]
    found = {(m.value.name, m.axis): (m.role, m.index.tolist()) for m in group.members}
    whole = [[i] for i in range(8)]
    assert found == {
        ("w", 0): ("out", whole),
        ("w2", 0): ("out", whole),
        ("w2", 1): ("in", whole),
        ("b2", 0): ("out", whole),
        ("v", 1): ("in", whole),
    }
    assert [(value.name, axis) for value, axis, _ in group.outputs] == [("a", 1), ("c", 1), ("b", 1)]
    assert [node.op_type for m in group.members for node in m.nodes] == ["Conv"] * 5


def test_index_of_what_is_put_together() -> None:
    model = image("c = Conv(x, w2)\n b = Concat<axis = 1>(c, a, c)", 12, w2=(2, 3, 1, 1)).model()
    first, second = [group for group in groups(model) if not group.frozen]
    assert {m.value.name: m.index.tolist() for m in first.members}["v"] == [[i] for i in range(2, 10)]
    assert {m.value.name: m.index.tolist() for m in second.members}["v"] == [[0, 10], [1, 11]]
    assert {value.name: index.tolist() for value, _, index in second.outputs} == {
        "c": [[0], [1]],
        "b": [[0, 10], [1, 11]],
    }


def test_index_of_heads() -> None:
    text = (
        "s = Reshape(a, split)\n t = Transpose<perm = [0, 2, 1, 3]>(s)\n r = Relu(t)\n"
        "u = Transpose<perm = [0, 2, 1, 3]>(r)\n b = Reshape(u, merge)"
    )
    model = rows(text, 6, w=(5, 6), split=[0, 0, 2, 3], merge=[0, 0, 6]).model()
    for unit, index, axis in (("channel", [[0, 3], [1, 4], [2, 5]], 3), ("head", [[0, 1, 2], [3, 4, 5]], 1)):
        (group,) = [group for group in groups(model, unit) if not group.frozen]  # type: ignore[arg-type]
        assert [m.index.tolist() for m in group.members] == [index, index]
        where = {value.name: (at, found.tolist()) for value, at, found in group.outputs}
        assert where["a"] == (2, index)
        assert where["t"] == (axis, [[i] for i in range(len(index))])


# -- what is computed of sizes ----------------------------------------------------------------------------------------

WITH_SIZES = {
    "reshape by sizes read off": image(
        "s = Shape(a)\n n = Gather(s, zero)\n c = Gather(s, first)\n d = Mul(c, area)\n e = Concat<axis = 0>(n, d)\n"
        "f = Reshape(a, e)\n g = Shape<end = 1>(a)\n h = Concat<axis = 0>(g, rest)\n b = Reshape(f, h)",
        zero=[0], first=[1], area=[16], rest=[8, 4, 4],
    ),
    "a constant that depends on the number of channels": rows(
        # what is computed of sizes stays what it was: the mean over 12 features stays a twelfth of the sum
        "s = Shape<start = 2, end = 3>(a)\n f = Cast<to = 1>(s)\n b = Div(a, f)"
    ),
    "sizes shared by several": image(
        "s = Shape(a)\n e = Expand(one, s)\n c = ConstantOfShape<value = float[1] {3.0}>(s)\n m = Mul(a, e)\n"
        "b = Add(m, c)",
        one=(1, 1, 1),
    ),
    "resize to sizes of another": image(
        "s = Shape<end = 2>(a)\n t = Concat<axis = 0>(s, size)\n b = Resize(a, , , t)", size=[7, 9]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in WITH_SIZES.items()])
def test_sizes_computed_at_run_time(case: Case) -> None:
    model = case.model()
    assert free(model) == case.free
    assert assert_removal_is_zeroing(model, by_members=False) > 0


def test_old_opsets_cannot_change_sizes() -> None:
    case = image("s = Shape(a)\n e = Expand(one, s)\n b = Mul(a, e)", one=(1, 1, 1), opset=9)
    assert "raise the opset to 11" in reasons(case.model())["w[0]"]


# -- weights -----------------------------------------------------------------------------------------------------


def test_tied_embeddings() -> None:
    weights = arrays({"table": (9, 8), "w": (8, 8), "s": (8,)})
    model = graph(
        "g (int64[N,T] i) => (float[N,T,9] y) { e = Gather(table, i)\n h = MatMul(e, w)\n r = Mul(h, s)\n"
        "a = Add(e, r)\n t = Transpose(table)\n y = MatMul(a, t) }",
        **weights,
    )
    assert members(model) == [{"table[1]", "w[0]", "w[1]", "s[0]"}]
    assert "output" in reasons(model)["table[0]"]
    assert assert_removal_is_zeroing(model) == 4


def test_constant_nodes() -> None:
    model = graph(
        "g (float[N,2] x) => (float[N,1] y) { w = Constant<value = float[2,4] {1,2,3,4,5,6,7,8}>()\n"
        "v = Constant<value = float[4,1] {1,2,3,4}>()\n b = Constant<value_floats = [0.5, 1.0, -1.0, 2.0]>()\n"
        "m = MatMul(x, w)\n a = Add(m, b)\n y = MatMul(a, v) }"
    )
    assert members(model) == [{"w[1]", "b[0]", "v[0]"}]
    assert assert_removal_is_zeroing(model) == 2


def test_quantized_weights_and_activations() -> None:
    rng = np.random.default_rng(0)
    whole = {"wq": rng.integers(-9, 9, (8, 3, 1, 1)), "vq": rng.integers(-9, 9, (2, 8, 1, 1)), "wz": np.zeros(8)}
    quantized: dict[str, Any] = {name: array.astype(np.int8) for name, array in whole.items()}
    model = graph(
        "g (float[N,3,4,4] x) => (float[N,2,4,4] y) { w = DequantizeLinear<axis = 0>(wq, ws, wz)\n"
        "b = DequantizeLinear<axis = 0>(bq, bs)\n a = Conv(x, w, b)\n q = QuantizeLinear(a, s, z)\n"
        "d = DequantizeLinear(q, s, z)\n v = DequantizeLinear<axis = 0>(vq, vs)\n y = Conv(d, v) }",
        **quantized,
        bq=rng.integers(-9, 9, 8).astype(np.int32),
        z=np.array(3, np.int8),
        **arrays({"ws": (8,), "bs": (8,), "s": (), "vs": (2,)}),
    )
    assert members(model) == [{"wq[0]", "ws[0]", "wz[0]", "bq[0]", "bs[0]", "vq[1]"}]
    assert assert_removal_is_zeroing(model) == 4


@pytest.mark.parametrize("name", ["float16", "bfloat16", "double", "int4"])
def test_types_of_weights(name: str) -> None:
    dtype = {"float16": 10, "bfloat16": 16, "double": 11, "int4": TensorProto.INT4}[name]
    rng = np.random.default_rng(0)
    w, v = (rng.integers(-4, 4, dims).astype(helper.tensor_dtype_to_np_dtype(dtype)) for dims in ((5, 8), (8, 3)))
    one = numpy_helper.from_array(np.array(1, np.float32), "one")
    to: dict[str, Any]
    op, scale, to = ("DequantizeLinear", ["one"], {}) if name == "int4" else ("Cast", [], {"to": TensorProto.FLOAT})
    nodes = [
        helper.make_node(op, ["w", *scale], ["wf"], **to),
        helper.make_node("MatMul", ["x", "wf"], ["a"]),
        helper.make_node(op, ["v", *scale], ["vf"], **to),
        helper.make_node("MatMul", ["a", "vf"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 5])]
    result = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])]
    tensors = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(v, "v"), one]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", inputs, result, tensors), opset_imports=[helper.make_opsetid("", 21)]
    )
    proto.ir_version = 10
    model = from_proto(proto)
    assert members(model) == [{"w[1]", "v[0]"}]
    assert assert_removal_is_zeroing(model) == 4


# -- bodies ------------------------------------------------------------------------------------------------------


def test_branches() -> None:
    model = graph(
        "g (bool p, float[N,5] x) => (float[N,3] y) { a = MatMul(x, w)\n"
        "b = If (p) <then_branch = t () => (c) { c = Mul(a, s) }, else_branch = e () => (d) { d = Add(a, o) }>\n"
        "y = MatMul(b, v) }",
        **arrays({"w": (5, 8), "s": (8,), "o": (8,), "v": (8, 3)}),
    )
    assert members(model) == [{"w[1]", "s[0]", "o[0]", "v[0]"}]
    for p in (True, False):
        x = np.random.default_rng(0).standard_normal((2, 5)).astype(np.float32)
        assert assert_removal_is_zeroing(model, feeds={"p": np.array(p), "x": x}) == 4


def test_branches_of_different_sizes_are_frozen() -> None:
    model = graph(
        "g (bool p, float[N,5] x) => (float[N,3] y) { a = MatMul(x, w)\n"
        "b = If (p) <then_branch = t () => (c) { c = Identity(a) }, else_branch = e () => (d) { d = MatMul(x, u) }>\n"
        "y = MatMul(b, v) }",
        **arrays({"w": (5, 8), "u": (5, 1), "v": (8, 3)}),
    )
    assert free(model) == ""
    assert reasons(model)["w[1]"] == "it has a single slice"


def test_turns_of_a_loop() -> None:
    model = graph(
        "g (float[N,8] x) => (float[N,3] y, float[R,N,3] z) { s = MatMul(x, w)\n"
        "l, h = Loop (count, , s) <body = b (int64 i, bool go, float[N,M] c) => (bool on, d, e)"
        "{ on = Identity(go)\n f = MatMul(c, r)\n d = Tanh(f)\n e = MatMul(d, u) }>\n y = MatMul(l, v)\n"
        "z = Identity(h) }",
        **arrays({"w": (8, 6), "r": (6, 6), "u": (6, 3), "v": (6, 3), "count": np.array(3)}),
    )
    assert members(model) == [{"w[1]", "r[0]", "r[1]", "u[0]", "v[0]"}]
    assert assert_removal_is_zeroing(model) == 3


def test_scan() -> None:
    model = graph(
        "g (float[T,N,5] x) => (float[N,3] y, float[T,N,6] z) { e = MatMul(x, w)\n"
        "l, z = Scan <num_scan_inputs = 1, body = b (float[N,4] c, float[N,7] row) => (d, o)"
        "{ f = MatMul(c, r)\n k = MatMul(row, u)\n d = Add(f, k)\n o = MatMul(d, q) }> (start, e)\n y = MatMul(l, v) }",
        **arrays({"w": (5, 7), "u": (7, 4), "r": (4, 4), "q": (4, 6), "v": (4, 3), "start": (2, 4)}),
    )
    assert members(model) == [{"w[1]", "u[0]"}, {"start[1]", "r[0]", "r[1]", "u[1]", "q[0]", "v[0]"}]
    x = np.random.default_rng(0).standard_normal((4, 2, 5)).astype(np.float32)
    assert assert_removal_is_zeroing(model, feeds={"x": x}) > 0


def test_what_grows_in_a_loop_is_frozen() -> None:
    model = graph(
        "g (float[1,5] x) => (float[N,3] y) { s = MatMul(x, w)\n"
        "l = Loop (count, , s) <body = b (int64 i, bool go, float[A,B] c) => (bool on, d)"
        "{ on = Identity(go)\n d = Concat<axis = 1>(c, s) }>\n y = MatMul(l, v) }",
        **arrays({"w": (5, 2), "v": (8, 3), "count": np.array(3)}),
    )
    assert free(model) == ""


# -- what freezes ------------------------------------------------------------------------------------------------

FROZEN = {
    "an operator of nobody": (image("b = com.microsoft.Nobody(a)"), "w[0]", "no rule says which slices"),
    "an operator without a rule": (rows("b = CumProd(a, two)", two=np.array(2), opset=26), "w[1]", "no rule says"),
    "Softmax": (rows("b = Softmax(a)"), "w[1]", "Softmax 'b': it compares all slices"),
    "Softmax, flattened before opset 13": (
        rows("b = Softmax<axis = 1>(a)", opset=11), "w[1]", "it compares all slices",
    ),
    "TopK": (rows("b, i = TopK(a, k)", 4, k=[4], opset=11), "w[1]", "it compares all slices"),
    "an output of the model": (
        Case("(float[N,5] x) => (float[N,8] y) { y = MatMul(x, w) }", {"w": (5, 8)}, ""), "w[1]",
        "it is an axis of the output 'y'",
    ),
    "a single slice": (
        image("c = Conv(a, u)\n d = Conv(c, t)\n b = Add(a, d)", u=(1, 8, 1, 1), t=(8, 1, 1, 1)), "u[1]", "",
    ),
    "Size": (image("n = Size(a)\n f = Cast<to = 1>(n)\n b = Mul(a, f)"), "w[0]", "it counts the elements"),
    "places of the maximum": (
        image("b, i = MaxPool<kernel_shape = [2, 2]>(a)\n"), "w[0]", "it counts places over all channels",
    ),
    "padding by reflection": (
        image('b = Pad<mode = "reflect">(a, pads)', 10, pads=[0, 1, 0, 0, 0, 1, 0, 0]), "w[0]",
        "it pads with slices of its own",
    ),
    "every second channel": (
        image("b = Slice(a, begin, end, axis, step)", 4, begin=[0], end=[8], axis=[1], step=[2]), "w[0]",
        "it takes every 2th slice",
    ),
    "a sequence of features": (
        Case("(float[N,T,5] x) => (float[N,T,3] y) { a = MatMul(x, w)\n t = Transpose<perm = [2, 0, 1]>(a)\n"
             "u = MatMul(t, u0)\n l = RNN<hidden_size = 4>(u, w2, r2)\n s = ReduceSum<keepdims = 0>(l, one)\n"
             "b = MatMul(x, c)\n y = MatMul(b, v) }",
             {"w": (5, 6), "u0": (3, 2), "w2": (1, 4, 2), "r2": (1, 4, 4), "one": [0, 1, 2, 3], "c": (5, 2),
              "v": (2, 3)}, "c[1]:2"),
        "w[1]", "it goes along this axis",
    ),
    "channels dropped at random": (image("b = Dropout(a, , yes)", yes=np.array(True)), "w[0]", "it drops at random"),
    "groups with scales of run time": (
        Case("(float[N,3,4,4] x, float[8] s) => (float[N,2,4,4] y) { a = Conv(x, w)\n"
             "b = GroupNormalization<num_groups = 2>(a, s, s)\n y = Conv(b, v) }",
             {"w": (8, 3, 1, 1), "v": (2, 8, 1, 1)}, "", opset=21), "w[0]", "the input 's' has this axis",
    ),
    "numbers that are a shape": (
        image("s = Shape<end = 1>(a)\n t = Concat<axis = 0>(s, rest)\n b = Reshape(a, t)", rest=[8, 4, 4]), "rest[0]",
        "it takes numbers from 't'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("case", "member", "why"), [pytest.param(*each, id=name) for name, each in FROZEN.items()])
def test_frozen_with_a_reason(case: Case, member: str, why: str) -> None:
    found = reasons(case.model())
    assert why in found.get(member, "it is not frozen") if why else member not in found


def test_symbolic_number_of_channels() -> None:
    model = graph(
        "g (float[N,C,4,4] x) => (float[N,2,4,4] y) { a = Conv(x, w)\n y = Conv(a, v) }",
        **arrays({"w": (8, 3, 1, 1), "v": (2, 8, 1, 1)}),
    )
    assert free(model) == "w[0]:8"
    assert assert_removal_is_zeroing(model, feeds={"x": np.ones((1, 3, 4, 4), np.float32)}) == 4
    model = graph("g (float[N,C] x) => (float[N,C] y) { y = Add(x, b) }", **arrays({"b": (4,)}))
    assert "the input 'x' has this axis" in reasons(model)["b[0]"]


def test_weights_that_callers_may_override() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[N,2] x, float[2,4] w) => (float[N,1] y)'
        "<float[2,4] w = {1,2,3,4,5,6,7,8}, float[4,1] v = {1,2,3,4}> { a = MatMul(x, w)\n y = MatMul(a, v) }"
    )
    assert "the input 'w' has this axis" in reasons(from_proto(proto))["v[0]"]


# -- removing ----------------------------------------------------------------------------------------------------

TWO = image("c = Conv(a, w2)\n d = Relu(c)\n b = Conv(d, w3)", 7, w2=(6, 8, 1, 1), w3=(7, 6, 1, 1))


def test_what_is_left() -> None:
    model = TWO.model()
    result = copy(model)
    ChannelGraph(Editor(result)).remove({0: [0, 3], 2: [5]})
    assert [v.shape for v in result.graph.initializers.values()] == [
        ir.Shape(dims) for dims in ((6, 3, 1, 1), (2, 7, 1, 1), (5, 6, 1, 1), (7, 5, 1, 1))
    ]
    w = model.graph.initializers["w"].const_value
    left = result.graph.initializers["w"].const_value
    assert w is not None
    assert left is not None
    np.testing.assert_array_equal(left.numpy(), w.numpy()[[1, 2, 4, 5, 6, 7]])
    again = copy(model)
    ChannelGraph(Editor(again)).remove({2: [5], 0: [3, 0, 3]})
    assert_same_outputs(result, again, tolerance=0.0)


def test_declared_shapes_follow() -> None:
    model = TWO.model()
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = ir.Shape(["N", 6 if value.name in ("c", "d") else 8 if value.name == "a" else 7, 4, 4])
    result = remove(model, {0: [0, 3], 2: [5]})
    shapes = {v.name: v.shape for node in result.graph for v in node.outputs}
    assert [shapes[name] for name in "acdb"] == [ir.Shape(["N", count, 4, 4]) for count in (6, 5, 5, 7)]


def test_what_was_kept_over_two_removals() -> None:
    model = TWO.model()
    result = copy(model)
    assert kept(result) == {}
    ChannelGraph(Editor(result)).remove({0: [0, 3]})
    ChannelGraph(Editor(result)).remove({0: [2], 2: [1]})
    found = {(name, axis): at.tolist() for name, axes in kept(result).items() for axis, at in axes.items()}
    first, second = [1, 2, 5, 6, 7], [0, 2, 3, 4, 5]
    assert found == {("w", 0): first, ("w2", 1): first, ("w2", 0): second, ("w3", 1): second}
    for name, axes in kept(result).items():
        before, after = (m.graph.initializers[name].const_value for m in (model, result))
        assert before is not None
        assert after is not None
        array = before.numpy()
        for axis, at in axes.items():
            array = array.take(at, axis)
        np.testing.assert_array_equal(after.numpy(), array)


def test_nothing_to_remove() -> None:
    model = TWO.model()
    result = remove(model, {0: [], 1: []})
    assert ops(result) == ops(model)
    assert kept(result) == {}


@pytest.mark.parametrize(
    ("choice", "why"),
    [
        ({0: range(8)}, "nothing would be left of an axis of 'w': keep one of its channels"),
        ({1: [1]}, "no channel of group 1 can be removed: the input 'x' has this axis"),
        ({0: [8]}, "group 0 has channels 0 to 7, not 8 to 8"),
        ({0: [-1]}, "group 0 has channels 0 to 7, not -1 to -1"),
        ({9: [0]}, "there is no group 9"),
    ],
)
def test_what_cannot_be_removed(choice: dict[int, Any], why: str) -> None:
    model = TWO.model()
    result = copy(model)
    with pytest.raises(OptionError, match=why):
        ChannelGraph(Editor(result)).remove(choice)
    assert_same_outputs(model, result, tolerance=0.0)


def test_one_channel_of_each_group_may_be_left() -> None:
    # the parts of the Split are groups of their own, though no weight tells them apart
    case = image("s, t = Split<axis = 1>(a, sizes)\n m = ReduceMax(s, one)\n b = Mul(t, m)", 5, sizes=[3, 5], one=[1])
    model = case.model()
    choice = draw(groups(model), 0, share=1.0)
    assert sum(map(len, choice.values())) == 2 + 4
    small = remove(model, choice)
    assert [y.shape for y in outputs(small, some_feeds(model))] == [y.shape for y in outputs(model, some_feeds(model))]
