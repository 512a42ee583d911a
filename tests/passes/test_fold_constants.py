"""fold-constants."""


from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.errors import OptionError
from onnxopt.model import to_proto
from onnxopt.passes.cleanup.fold_constants import FoldConstants
from onnxopt.passes.cleanup.remove_dead import RemoveDead
from tests.support import count_ops, graph, ops, run

SQUARE = np.arange(16, dtype=np.float32).reshape(4, 4)


def used_ops(model: ir.Model) -> list[str]:
    """Operators once dead nodes are gone."""
    return ops(run(RemoveDead(), model, verify=False)[0])


def test_folds_a_chain_into_one_constant() -> None:
    body = "g (float[N, 4] x) => (float[N, 4] y) { a = Transpose(w) b = Neg(a) c = Mul(b, b) y = MatMul(x, c) }"
    after, report = run(FoldConstants(), graph(body, w=SQUARE))
    assert report.changed == 1
    assert used_ops(after) == ["MatMul"]
    np.testing.assert_array_equal(after.graph.initializers["c_1"].const_value.numpy(), SQUARE.T**2)  # type: ignore[union-attr]


def test_constant_nodes_count_as_constants() -> None:
    body = "g (float[N] x) => (float[N] y) { a = Constant<value = float {2.0}>() b = Sqrt(a) y = Mul(x, b) }"
    after, _ = run(FoldConstants(), graph(body))
    assert used_ops(after) == ["Mul"]


@pytest.mark.parametrize(
    "nodes",
    [
        "r = RandomNormalLike(c) y = Add(x, r)",
        "r = Bernoulli(c) y = Add(x, r)",
        "q = QuantizeLinear(c, s) d = DequantizeLinear(q, s) y = Add(x, d)",
    ],
)
def test_random_and_quantized_values_stay(nodes: str) -> None:
    before = graph(
        f"g (float[4, 4] x) => (float[4, 4] y) {{ {nodes} }}",
        c=np.full((4, 4), 0.5, np.float32),
        s=np.array(0.1, np.float32),
    )
    _, report = run(FoldConstants(), before, verify="Random" not in nodes and "Bernoulli" not in nodes)
    assert report.changed == 0


def test_an_overridable_initializer_is_no_constant() -> None:
    before = graph("g (float[4, 4] x, float[4, 4] w) => (float[4, 4] y) { a = Neg(w) y = Add(x, a) }", w=SQUARE)
    _, report = run(FoldConstants(), before, {"x": SQUARE})
    assert report.changed == 0


def test_a_result_that_would_make_the_file_grow_is_refused() -> None:
    body = "g (float[N, 1000] x) => (float[N, 1000] y) { a = ConstantOfShape(s) y = MatMul(x, a) }"
    before = graph(body, s=np.array([1000, 1000]))
    after, report = run(FoldConstants(), before)
    assert report.changed == 0
    assert "would make the file 39999" in str(report.refusals[0])
    assert len(to_proto(after).SerializeToString()) <= len(to_proto(before).SerializeToString())


def test_widened_weights_are_refused_and_growth_is_an_option() -> None:
    body = "g (float[N, 64] x) => (float[N, 64] y) { a = Cast<to = 1>(w) y = MatMul(x, a) }"
    before = graph(body, w=np.ones((64, 64), np.int8))
    assert run(FoldConstants(), before)[1].changed == 0
    assert run(FoldConstants(max_growth=3 * 64 * 64), before)[1].changed == 1


def test_a_shared_weight_is_not_freed() -> None:
    body = """g (float[N, 64] x) => (float[N, 64] y, float[N, 64] z) {
        a = Transpose(w) y = MatMul(x, a) z = MatMul(x, w)
    }"""
    _, report = run(FoldConstants(), graph(body, w=np.ones((64, 64), np.float32)))
    assert report.changed == 0, "folding would store the weight twice"


def test_below_a_refused_node_the_small_parts_are_folded() -> None:
    body = "g (float[N, 1000] x) => (float[N, 1000] y) { b = Add(s, s) a = ConstantOfShape(b) y = MatMul(x, a) }"
    after, report = run(FoldConstants(), graph(body, s=np.array([500, 500])))
    assert [note.node for note in report.changes] == ["b"]
    assert used_ops(after) == ["ConstantOfShape", "MatMul"]


def test_an_output_that_depends_on_no_input() -> None:
    before = graph("g (float[4, 4] x) => (float[4, 4] y) { y = Neg(w) }", w=SQUARE)
    after, report = run(FoldConstants(), before)
    assert report.changed == 1
    assert ops(after) == ["Constant"]


def test_a_node_that_cannot_run_costs_only_itself() -> None:
    body = """g (float[N, 4] x) => (float[N, 4] y) {
        bad = Gather(w, odd)  b = Neg(w)  c = Add(b, bad)  d = Exp(w) e = Add(c, d) y = Add(x, e)
    }"""
    model = graph(body, w=np.zeros(4, np.float32), odd=np.array(9, np.int64))
    after, report = run(FoldConstants(), model, verify=False)
    assert any("could not be computed" in str(note) for note in report.refusals)
    assert count_ops(run(RemoveDead(), after, verify=False)[0]) == {"Gather": 1, "Add": 3}


def test_inside_bodies_and_functions() -> None:
    body = """g (bool c, float[4, 4] x) => (float[4, 4] y) {
        y = If (c) <
            then_branch = t () => (float[4, 4] a) { n = Neg(w) a = Add(x, n) },
            else_branch = e () => (float[4, 4] b) { k = Constant<value = float {2.0}>() s = Sqrt(k) b = Mul(x, s) }
        >
    }"""
    after, report = run(FoldConstants(), graph(body, w=SQUARE))
    assert report.changed == 2
    assert count_ops(run(RemoveDead(), after)[0]) == {"If": 1, "Add": 1, "Mul": 1}


@pytest.mark.parametrize("kind", ["float16", "double", "int32", "uint8"])
def test_types(kind: str) -> None:
    body = f"g ({kind}[N, 4] x) => ({kind}[M, 4] y) {{ a = Transpose<perm = [1, 0]>(w) y = Concat<axis = 0>(a, x) }}"
    before = graph(body, w=np.ones((4, 1), kind))
    assert run(FoldConstants(), before)[1].changed == 1


def test_negative_growth_is_refused() -> None:
    with pytest.raises(OptionError, match="max_growth"):
        FoldConstants(max_growth=-1)




def test_a_weight_cut_up_and_put_together_again_is_freed_as_a_whole() -> None:
    """Exporters reorder the gates of an LSTM so: three slices of one weight, concatenated."""
    body = """g (float[N, 64] x) => (float[N, 96] y) {
        a = Slice(w, i0, i32, i0) b = Slice(w, i32, i64, i0) c = Slice(w, i64, i96, i0)
        d = Concat<axis = 0>(b, a, c) t = Transpose(d) y = MatMul(x, t)
    }"""
    numbers: dict[str, Any] = {f"i{n}": np.array([n]) for n in (0, 32, 64, 96)}
    after, report = run(FoldConstants(), graph(body, w=np.ones((96, 64), np.float32), **numbers))
    assert report.changed == 1
    assert used_ops(after) == ["MatMul"]


def test_an_output_becomes_a_constant_node() -> None:
    """The condition that a Loop goes on with: no Identity of a constant from outside, but the constant."""
    before = graph(
        """g (int64 n, float[4] x) => (float[4] y) {
            y = Loop(n, yes, x) <body = b (int64 i, bool c, float[4] v) => (bool again, float[4] w) {
                again = Identity(yes) w = Mul(v, half)
            }>
        }""",
        yes=np.array(True), half=np.float32(0.5),
    )  # fmt: skip
    after, report = run(FoldConstants(), before)
    assert report.changed == 1
    assert count_ops(after) == {"Loop": 1, "Constant": 1, "Mul": 1}
    assert run(FoldConstants(), after)[1].changed == 0


def test_an_output_that_others_read_and_that_is_computed() -> None:
    body = "g (float[N, 4] x) => (float[4, 4] a, float[N, 4] y) { b = Neg(w) a = Mul(b, b) y = MatMul(x, a) }"
    after, report = run(FoldConstants(), graph(body, w=SQUARE))
    assert report.changed == 1
    assert used_ops(after) == ["Constant", "MatMul"]
    # before opset 9, Constant holds nothing but floats
    assert used_ops(run(FoldConstants(), graph(body, w=SQUARE, opset=8))[0]) == ["Mul", "MatMul"]
