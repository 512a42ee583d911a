"""merge-factors: two layers in a row become one that computes the same, where that takes no more."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.graph import Editor
from onnxopt.macs import count_macs
from onnxopt.model import copy
from onnxopt.passes.cleanup._linear import Layer, layer_of
from onnxopt.passes.cleanup._operands import numbers
from onnxopt.passes.lowrank._build import put_stages
from onnxopt.passes.lowrank._products import refit_of
from onnxopt.passes.lowrank._stages import Stage
from onnxopt.passes.lowrank._svd import truncated
from onnxopt.passes.lowrank.merge_factors import MergeFactors
from onnxopt.pipeline import PassManager
from tests.support import assert_same_outputs, graph, ops, run

RNG = np.random.default_rng(0)


def normal(*shape: int, dtype: Any = np.float32) -> Any:
    return RNG.normal(size=shape).astype(dtype)


def dense(body: str, rank: int = 2, **weights: Any) -> ir.Model:
    """x (6 channels) → a (8 or 9 channels) → y (5 channels)."""
    arrays = {
        "w": normal(6, 8), "wt": normal(8, 6), "b": normal(8), "one": normal(1), "row": normal(1, 8),
        "v": normal(8, 5), "vt": normal(5, 8), "c": normal(5), **weights,
    }  # fmt: skip
    used = {name: array for name, array in arrays.items() if re.search(rf"[( ]{name}[,)]", body)}
    dims = ",".join("NTU"[: rank - 1])
    return graph(f"g (float[{dims},6] x) => (float[{dims},5] y) {{ {body} }}", **used)


def size(model: ir.Model) -> int:
    return sum(value.const_value.size for value in model.graph.initializers.values() if value.const_value is not None)


def only(model: ir.Model) -> Layer:
    (node,) = model.graph
    layer = layer_of(node, Editor(model))
    assert layer is not None
    return layer


# -- products of matrices --------------------------------------------------------------------------------------------

FIRST = {
    "a = MatMul(x, w)": False, "a = Gemm(x, w)": False, "a = Gemm<transB = 1, alpha = 0.5>(x, wt)": False,
    "p = MatMul(x, w) a = Add(p, b)": True, "p = MatMul(x, w) a = Add(row, p)": True, "a = Gemm(x, w, one)": True,
    "a = Gemm<alpha = -2.0, beta = 3.0>(x, w, row)": True,
}  # fmt: skip
SECOND = {
    "y = MatMul(a, v)": ["MatMul"], "q = MatMul(a, v) y = Add(q, c)": ["MatMul", "Add"], "y = Gemm(a, v)": ["Gemm"],
    "y = Gemm<transB = 1, alpha = 0.25, beta = 0.5>(a, vt, c)": ["Gemm"],
}  # fmt: skip


@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize("first", FIRST)
def test_products_of_matrices(first: str, second: str) -> None:
    after, report = run(MergeFactors(), dense(f"{first} {second}"))
    assert report.changed == 1
    biased_at_first_only = FIRST[first] and second == "y = MatMul(a, v)"
    assert ops(after) == (
        (["Gemm"] if "Gemm" in first else ["MatMul", "Add"]) if biased_at_first_only else SECOND[second]
    )
    assert size(after) <= 30 + 5


@pytest.mark.parametrize("second", ["y = MatMul(a, v)", "q = MatMul(a, v) y = Add(c, q)"])
def test_products_of_more_axes(second: str) -> None:
    after, _ = run(MergeFactors(), dense(f"p = MatMul(x, w) a = Add(p, b) {second}", rank=3))
    assert ops(after) == ["MatMul", "Add"]


def test_the_weight_is_rounded_once() -> None:
    before = dense("a = Gemm<alpha = 0.5>(x, w, b) y = Gemm<alpha = 3.0, transB = 1>(a, vt, c)")
    w, b, vt, c = (
        np.asarray(before.graph.initializers[n].const_value).astype(np.float64) for n in ("w", "b", "vt", "c")
    )
    weight, bias = only(run(MergeFactors(), before)[0]).weights()
    np.testing.assert_array_equal(weight, (3 * vt @ (0.5 * w.T)).astype(np.float32))
    np.testing.assert_array_equal(bias, (3 * vt @ b + c).astype(np.float32))


def test_a_transposed_input_stays_with_the_first() -> None:
    before = graph(
        "g (float[6,N] x) => (float[N,5] y) { a = Gemm<transA = 1>(x, w, b) y = MatMul(a, v) }",
        w=normal(6, 8), b=normal(8), v=normal(8, 5),
    )  # fmt: skip
    assert ops(run(MergeFactors(), before)[0]) == ["Gemm"]


def test_in_half_precision() -> None:
    before = graph(
        "g (float16[N,6] x) => (float16[N,5] y) { a = MatMul(x, w) y = MatMul(a, v) }",
        w=normal(6, 8, dtype=np.float16), v=normal(8, 5, dtype=np.float16),
    )  # fmt: skip
    after, report = run(MergeFactors(), before, verify=False)
    assert report.changed == 1
    assert_same_outputs(before, after, tolerance=4e-3)


# -- convolutions --------------------------------------------------------------------------------------------------

CONVS: list[tuple[str, dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]] = [
    ("a = Conv(x, u) y = Conv<pads = [1,1,1,1], strides = [2,1]>(a, v)",
     {"u": (4, 4, 1, 1), "v": (5, 4, 3, 3)}, {"strides": (2, 1), "pads": (1, 1, 1, 1)}),
    ("a = Conv(x, u, b) y = Conv<dilations = [1,2]>(a, v, c)",
     {"u": (4, 4, 1, 1), "b": (4,), "v": (5, 4, 3, 3), "c": (5,)}, {"dilations": (1, 2)}),
    ('a = Conv(x, u) y = Conv<auto_pad = "SAME_LOWER", strides = [2,2]>(a, v)',
     {"u": (4, 4, 1, 1), "v": (5, 4, 2, 3)}, {"strides": (2, 2)}),
    ("a = Conv<pads = [1,0,2,1], strides = [2,3]>(x, u, b) y = Conv(a, v, c)",
     {"u": (9, 4, 3, 3), "b": (9,), "v": (5, 9, 1, 1), "c": (5,)}, {"pads": (1, 0, 2, 1), "strides": (2, 3)}),
    ("a = Conv<strides = [1,2], dilations = [2,1]>(x, u, b) y = Conv<strides = [2,3]>(a, v)",
     {"u": (9, 4, 3, 2), "b": (9,), "v": (5, 9, 1, 1)}, {"dilations": (2, 1), "strides": (2, 6)}),
    ('a = Conv<auto_pad = "SAME_UPPER", strides = [2,2]>(x, u, b) y = Conv<auto_pad = "VALID">(a, v)',
     {"u": (9, 4, 3, 2), "b": (9,), "v": (5, 9, 1, 1)}, {"strides": (2, 2)}),
    ("a = Conv<pads = [1,0,1,0], strides = [2,1]>(x, u) y = Conv<pads = [0,1,0,1], strides = [1,2]>(a, v)",
     {"u": (12, 4, 3, 1), "v": (5, 12, 1, 3)}, {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1), "strides": (2, 2)}),
    ('a = Conv<auto_pad = "SAME_UPPER">(x, u) y = Conv<auto_pad = "SAME_UPPER">(a, v)',
     {"u": (12, 4, 3, 1), "v": (5, 12, 1, 2)}, {"kernel_shape": (3, 2)}),
    ("a = Conv<strides = [3,2]>(x, u) y = Conv<strides = [2,1]>(a, v, c)",
     {"u": (4, 4, 1, 1), "v": (5, 4, 1, 1), "c": (5,)}, {"strides": (6, 2)}),
    ("a = Conv<group = 2>(x, u) y = Conv<group = 2>(a, v, c)",
     {"u": (8, 2, 3, 3), "v": (6, 4, 1, 1), "c": (6,)}, {"group": (2,)}),
    ("a = Conv<group = 4>(x, u, b) y = Conv<group = 2>(a, v)",
     {"u": (16, 1, 3, 3), "b": (16,), "v": (4, 8, 1, 1)}, {"group": (2,)}),
    ("a = Conv<group = 2>(x, u) y = Conv<group = 4, pads = [1,1,1,1]>(a, v)",
     {"u": (16, 2, 1, 1), "v": (8, 4, 3, 3)}, {"group": (2,)}),
    ("a = Conv(x, u, b) y = Conv<group = 3>(a, v)",
     {"u": (9, 4, 3, 3), "b": (9,), "v": (6, 3, 1, 1)}, {"group": (1,)}),
]  # fmt: skip


def convolutions(body: str, shapes: dict[str, tuple[int, ...]]) -> ir.Model:
    arrays: dict[str, Any] = {name: normal(*shape) for name, shape in shapes.items()}
    return graph(f"g (float[N,4,13,15] x) => (float[N,M,H,W] y) {{ {body} }}", **arrays)


@pytest.mark.parametrize(("body", "shapes", "wanted"), CONVS)
def test_convolutions(body: str, shapes: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> None:
    before = convolutions(body, shapes)
    after, report = run(MergeFactors(), before)
    assert report.changed == 1
    assert ops(after) == ["Conv"]
    found = only(after)
    assert {name: (found.groups,) if name == "group" else numbers(found.node, name) for name in wanted} == wanted
    check_is_no_more(before, after)


def check_is_no_more(before: ir.Model, after: ir.Model) -> None:
    """Neither weights, but for a bias, nor arithmetic."""
    assert size(after) <= size(before) + only(after).channels_out
    assert count_macs(after).total <= count_macs(before).total


@pytest.mark.parametrize("groups", [(1, 1), (2, 2), (2, 4), (4, 2)])
@pytest.mark.parametrize("first", [True, False])
def test_a_transposed_convolution(first: bool, groups: tuple[int, int]) -> None:
    """Four channels, sixteen, eight."""
    settings_ = "strides = [2,1], pads = [1,0,0,1], output_padding = [1,0]"
    g, h = groups
    if first:
        text = f"a = ConvTranspose<group = {g}, {settings_}>(x, u, b) y = Conv<group = {h}>(a, v, c)"
        arrays = {"u": normal(4, 16 // g, 3, 2), "v": normal(8, 16 // h, 1, 1), "b": normal(16)}
    else:
        text = f"a = Conv<group = {g}>(x, u) y = ConvTranspose<group = {h}, {settings_}>(a, v, c)"
        arrays = {"u": normal(16, 4 // g, 1, 1), "v": normal(16, 8 // h, 3, 2)}
    before = graph(f"g (float[N,4,H,W] x) => (float[N,8,P,Q] y) {{ {text} }}", **arrays, c=normal(8))
    after, report = run(MergeFactors(), before)
    assert report.changed == 1
    assert ops(after) == ["ConvTranspose"]
    assert only(after).groups == math.gcd(*groups)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[ir.Model, int, int]:
    """Two convolutions in a row, all settings drawn, and the groups of either."""
    axes = draw(st.integers(1, 2))
    c, r, n = (4 * draw(st.integers(1, 3)) for _ in range(3))
    channels, nodes, arrays, groups = c, [], {}, []
    for at, out in enumerate((r, n)):
        kernel = [draw(st.sampled_from([1, 1, 2, 3])) for _ in range(axes)]
        group = draw(st.sampled_from([1, 1, 2, 4]))
        groups.append(group)
        auto = draw(st.sampled_from(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
        strides, dilations = ([draw(st.sampled_from([1, 1, 2])) for _ in range(axes)] for _ in range(2))
        if auto.startswith("SAME"):
            dilations = [1] * axes  # ONNX Runtime knows no other
        pads = [draw(st.sampled_from([0, 0, 1, 2])) for _ in range(2 * axes)]
        given_ = f"pads = {pads}, " if auto == "NOTSET" else f'auto_pad = "{auto}", '
        bias = draw(st.booleans())
        arrays[f"w{at}"] = normal(out, channels // group, *kernel)
        if bias:
            arrays[f"b{at}"] = normal(out) if draw(st.booleans()) else np.zeros(out, np.float32)
        nodes.append(
            f"{'ay'[at]} = Conv<{given_}group = {group}, strides = {strides}, dilations = {dilations}>"
            f"({'xa'[at]}, w{at}{f', b{at}' if bias else ''})"
        )
        channels = out
    dims, out_dims = (",".join(names[:axes]) for names in (("13", "14"), "PQ"))
    text = f"g (float[2,{c},{dims}] x) => (float[2,{n},{out_dims}] y) {{ {' '.join(nodes)} }}"
    return graph(text, **arrays), groups[0], groups[1]


@settings(max_examples=150, derandomize=True, deadline=None)
@given(pairs())
def test_any_two_convolutions(drawn: tuple[ir.Model, int, int]) -> None:
    """What is merged computes the same, is no larger, and does no more; what is not says why."""
    before, *groups = drawn
    feeds = {"x": normal(*(int(d) for d in before.graph.inputs[0].shape))}  # type: ignore[union-attr, arg-type]
    after, report = run(MergeFactors(), before, feeds)
    assert report.changed + len(report.refusals) == 1
    if report.changed:
        assert only(after).groups == math.gcd(*groups)
        check_is_no_more(before, after)


# -- the inverse of splitting --------------------------------------------------------------------------------------


def split_in_two(model: ir.Model, rank: int) -> ir.Model:
    """The first layer of ``model`` as two with so many channels between them."""
    result = copy(model)
    editor = Editor(result)
    layer = layer_of(next(iter(result.graph)), editor)
    assert layer is not None
    weight = layer.weights()[0]
    kernel = weight if layer.node.op_type == "Conv" or "transB" in layer.node.attributes else weight.T
    a, b = truncated(kernel.reshape(len(kernel), -1).T, rank)
    stages = [
        Stage(a.T.reshape(-1, *kernel.shape[1:])),
        Stage(b.T.reshape(len(kernel), rank, *[1] * (kernel.ndim - 2))),
    ]
    put_stages([refit_of(layer.node, editor)], stages, [None], editor)
    return result


@pytest.mark.parametrize(
    ("body", "weight"),
    [("m = MatMul(x, w) y = Add(m, b)", (12, 7)), ("y = Gemm(x, w, b)", (12, 7)),
     ("y = Gemm<transB = 1>(x, w, b)", (7, 12)),
     ("y = Conv<strides = [2,2], pads = [1,1,0,0]>(x, w, b)", (7, 12, 3, 3)),
     ('y = Conv<auto_pad = "SAME_LOWER">(x, w, b)', (7, 12, 3, 3))],
)  # fmt: skip
def test_is_the_inverse_of_splitting_at_full_rank(body: str, weight: tuple[int, ...]) -> None:
    dims = ("float[N,12,9,9]", "float[N,7,H,W]") if "Conv" in body else ("float[N,12]", "float[N,7]")
    whole = graph(f"g ({dims[0]} x) => ({dims[1]} y) {{ {body} }}", w=normal(*weight), b=normal(7))
    for node in whole.graph:
        node.name = f"the {node.op_type}"
    split = split_in_two(whole, 7)
    assert len(ops(split)) == len(ops(whole)) + 1
    again, _ = run(MergeFactors(), split)
    assert [node.name for node in again.graph] == [node.name for node in whole.graph]
    assert_same_outputs(whole, again)
    before, after = (next(iter(model.graph)) for model in (whole, again))
    written = {name: after.attributes[name].value for name in before.attributes}
    assert written == {name: found.value for name, found in before.attributes.items()}


@pytest.mark.parametrize(("body", "weight"), [("MatMul(x, w)", (64, 64)), ("Conv(x, w)", (64, 64, 3))])
def test_leaves_what_is_cheaper_as_two(body: str, weight: tuple[int, ...]) -> None:
    dims = ("N,64,9", "N,64,7") if "Conv" in body else ("N,64", "N,64")
    whole = graph(f"g (float[{dims[0]}] x) => (float[{dims[1]}] y) {{ y = {body} }}", w=normal(*weight))
    _, report = run(MergeFactors(), split_in_two(whole, 8))
    assert [note.text for note in report.refusals] == ["8 channels between 64 and 64: the two are cheaper"]


# -- more than two ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("widths", [(5, 9, 7, 6), (16, 4, 16, 4)])
def test_chains(widths: tuple[int, ...]) -> None:
    """In the second chain the first two are cheaper alone, until the third has joined the second."""
    a, b, c, d = widths
    before = graph(
        f"g (float[N,{a}] x) => (float[N,{d}] y) {{ p = MatMul(x, u) q = Gemm(p, v, b) y = MatMul(q, w) }}",
        u=normal(a, b), v=normal(b, c), b=normal(c), w=normal(c, d),
    )  # fmt: skip
    after, report = PassManager([MergeFactors()]).run(before)
    assert report.problems == []
    assert ops(after) == ["Gemm"]
    assert_same_outputs(before, after)


def test_the_manager_verifies_it() -> None:
    before = dense("a = Gemm(x, w, b) y = MatMul(a, v)")
    _, report = PassManager([MergeFactors()], verify="each").run(before)
    assert report.verified
    assert report.problems == []


def test_names_and_metadata() -> None:
    before = dense("p = MatMul(x, w) a = Add(p, b) q = MatMul(a, v) y = Relu(q)")
    for node in before.graph:
        node.name, node.metadata_props["of"] = f"node {node.op_type} {node.outputs[0].name}", node.outputs[0].name or ""
    after, _ = run(MergeFactors(), before)
    assert [value.name for node in after.graph for value in node.outputs] == ["p", "q", "y"]
    assert [node.name for node in after.graph] == ["node MatMul p", "node Add a", "node Relu y"]


# -- what stays ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "shapes", "reason"),
    [
        ("a = Conv(x, u, b) y = Conv<pads = [1,1,1,1]>(a, v)", {"u": (4, 4, 1, 1), "b": (4,), "v": (5, 4, 3, 3)},
         "the second pads with zeros, not with the bias of the first"),
        ('a = Conv(x, u, b) y = Conv<auto_pad = "SAME_UPPER">(a, v)', {"u": (4, 4, 1, 1), "b": (4,), "v": (5, 4, 3, 3)},
         "the second pads with zeros, not with the bias of the first"),
        ("a = Conv(x, u) y = Conv(a, v)", {"u": (9, 4, 3, 3), "v": (9, 9, 3, 1)},
         "both have a kernel along the same axis, or the first strides or pads in front of that of the second"),
        ("a = Conv<strides = [2,2]>(x, u) y = Conv(a, v)", {"u": (4, 4, 1, 1), "v": (5, 4, 3, 3)},
         "both have a kernel along the same axis, or the first strides or pads in front of that of the second"),
        ("a = Conv<pads = [1,0,0,0]>(x, u) y = Conv(a, v)", {"u": (4, 4, 1, 1), "v": (5, 4, 3, 3)},
         "both have a kernel along the same axis, or the first strides or pads in front of that of the second"),
        ("a = Conv(x, u) y = Conv<pads = [2,2,2,2]>(a, v)", {"u": (4, 4, 1, 1), "v": (5, 4, 3, 3)},
         "the second has more places than the first, since it pads by more than its kernel spans"),
        ('a = Conv<auto_pad = "SAME_UPPER">(x, u) y = Conv<strides = [2,1]>(a, v)',
         {"u": (9, 4, 3, 3), "v": (5, 9, 1, 1)}, "how much the first pads would depend on the stride of the second"),
        ('a = Conv<auto_pad = "SAME_UPPER">(x, u) y = Conv<auto_pad = "SAME_LOWER">(a, v)',
         {"u": (12, 4, 3, 1), "v": (5, 12, 1, 2)}, "they pad in two ways"),
        ("a = Conv<group = 4, pads = [1,1,1,1]>(x, u) y = Conv(a, v)", {"u": (4, 1, 3, 3), "v": (5, 4, 1, 1)},
         "4 channels between 4 and 5: the two are cheaper"),
        ("a = ConvTranspose(x, u) y = Conv(a, v)", {"u": (4, 9, 3, 3), "v": (5, 9, 3, 1)},
         "a ConvTranspose is merged only with a Conv that is pointwise"),
        ("a = ConvTranspose(x, u) y = ConvTranspose(a, v)", {"u": (4, 9, 3, 3), "v": (9, 5, 1, 1)},
         "a ConvTranspose is merged only with a Conv that is pointwise"),
        ("a = Conv(x, u, b) y = ConvTranspose(a, v)", {"u": (4, 4, 1, 1), "b": (4,), "v": (4, 5, 3, 3)},
         "not every place behind the ConvTranspose sees the whole bias of the first"),
        ("a = Conv(x, u) p = Conv(a, v) q = Relu(a) r = ReduceMax(q) y = Add(p, r)",
         {"u": (9, 4, 1, 1), "v": (5, 9, 1, 1)}, "what 'a' gives is read by others than this too"),
        ("a = Conv(x, u) y = Conv(a, u)", {"u": (4, 4, 1, 1)}, "the weight 'u' of Conv is shared"),
        ("p = Conv(x, u) q = ReduceMax(p) b = Exp(x) r = Conv(b, u) s = Conv(r, v) y = Add(q, s)",
         {"u": (3, 4, 1, 1), "v": (12, 3, 1, 1)}, "the weight 'u' of 'r' is shared, so the file would grow"),
    ],
)  # fmt: skip
def test_refuses(body: str, shapes: dict[str, tuple[int, ...]], reason: str) -> None:
    _, report = run(MergeFactors(), convolutions(body, shapes))
    assert report.changed == 0
    assert [note.text for note in report.refusals] == [reason]


def test_refuses_a_transposed_input_in_front_of_a_gemm() -> None:
    before = graph(
        "g (float[6,N] x) => (float[N,5] y) { a = Gemm<transA = 1>(x, w) y = Gemm(a, v) }",
        w=normal(6, 8),
        v=normal(8, 5),
    )
    assert [note.text for note in run(MergeFactors(), before)[1].refusals] == ["'a' reads its input transposed"]


def test_refuses_numbers_out_of_range() -> None:
    before = graph(
        "g (float16[N,6] x) => (float16[N,5] y) { a = MatMul(x, w) y = MatMul(a, v) }",
        w=np.full((6, 8), 300, np.float16), v=np.full((8, 5), 300, np.float16),
    )  # fmt: skip
    _, report = run(MergeFactors(), before, verify=False)
    assert [note.text for note in report.refusals] == ["the weights of MatMul would leave the range of FLOAT16"]


@pytest.mark.parametrize("quantized", ["w", "v"])
def test_refuses_quantized_weights(quantized: str) -> None:
    weights: dict[str, Any] = {"w": normal(6, 8), "v": normal(8, 5)}
    weights["q"] = (30 * weights.pop(quantized)).astype(np.int8)
    body = f"{quantized} = DequantizeLinear(q, s) a = MatMul(x, w) y = MatMul(a, v)"
    before = graph(f"g (float[N,6] x) => (float[N,5] y) {{ {body} }}", **weights, s=np.float32(0.1))
    _, report = run(MergeFactors(), before)
    assert [str(note) for note in report.refusals] == [
        "y: it or the layer before it has a quantized weight: merge them before they are quantized"
    ]


@pytest.mark.parametrize(
    ("body", "arrays"),
    [
        ("a = MatMul(x, w) y = Conv(a, k)", {"w": (9, 9), "k": (4, 4, 1)}),  # along other axes
        ("a = Conv(x, k) y = MatMul(a, w)", {"w": (9, 9), "k": (4, 4, 1)}),
        ("a = Conv(x, k) r = Relu(a) y = Conv(r, k2)", {"k": (4, 4, 1), "k2": (4, 4, 1)}),
        ("a = MatMul(x, w) p = Add(a, t) y = MatMul(p, v)", {"w": (9, 9), "v": (9, 9), "t": (4, 9)}),
        ("a = MatMul(x, w) y = MatMul(w2, a)", {"w": (9, 9), "w2": (4, 4)}),  # one from the right, one from the left
        ("a = MatMul(x, w) y = MatMul(x, v)", {"w": (9, 9), "v": (9, 9)}),
        ("a = MatMul(x, w) t = Transpose<perm = [0,2,1]>(x) y = MatMul(t, a)", {"w": (9, 9)}),
    ],
)  # fmt: skip
def test_is_no_match(body: str, arrays: dict[str, tuple[int, ...]]) -> None:
    weights: dict[str, Any] = {name: normal(*shape) for name, shape in arrays.items()}
    _, report = run(MergeFactors(), graph(f"g (float[N,4,9] x) => (float[N,P,Q] y) {{ {body} }}", **weights))
    assert (report.changed, report.refusals) == (0, ())


@pytest.mark.parametrize("options", [{"exclude": ("a",)}, {"exclude": ("y",)}, {"include": ("y",)}])
def test_neither_of_two_may_be_excluded(options: dict[str, Any]) -> None:
    _, report = run(MergeFactors(**options), dense("a = Gemm(x, w, b) y = Gemm(a, v)"))
    assert (report.changed, report.refusals) == (0, ())


def test_an_output_between_them_stays() -> None:
    before = graph(
        "g (float[N,6] x) => (float[N,8] a, float[N,5] y) { a = MatMul(x, w) y = MatMul(a, v) }",
        w=normal(6, 8), v=normal(8, 5),
    )  # fmt: skip
    _, report = run(MergeFactors(), before)
    assert [note.text for note in report.refusals] == ["what 'a' gives is read by others than this too"]


def test_inside_a_body() -> None:
    before = graph(
        """g (float[N,6] x, bool c) => (float[N,5] y) {
            y = If (c) <then_branch = t () => (float[N,5] p) { a = MatMul(x, w) p = MatMul(a, v) },
                        else_branch = e () => (float[N,5] r) { r = MatMul(x, u) }>
        }""",
        w=normal(6, 8), v=normal(8, 5), u=normal(6, 5),
    )  # fmt: skip
    assert run(MergeFactors(), before)[1].changed == 1
