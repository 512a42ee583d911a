"""merge-affine."""

from typing import Any

import numpy as np
import pytest

from onnxopt.passes.cleanup.merge_affine import MergeAffine
from tests.support import graph, ops, run

CONSTANTS = (
    " ".join(f"c{n} = Constant<value = float {{{n}}}>()" for n in (2, 3, 5, 12582912))
    + " q = Constant<value = float[1,1] {4}>()"
)


def _nodes(model: Any) -> list[str]:
    return [op for op in ops(model) if op != "Constant"]


def _model(nodes: str, opset: int = 18, **arrays: Any) -> Any:
    return graph(f"g (float[N,4] x) => (float[N,4] y) {{ {CONSTANTS} {nodes} }}", opset=opset, **arrays)


@pytest.mark.parametrize("opset", [7, 22])
@pytest.mark.parametrize(
    ("nodes", "left"),
    [("a = Mul(x, c2) y = Mul(c3, a)", ["Mul"]),
     ("a = Div(x, c2) y = Mul(a, q)", ["Mul"]),
     ("a = Add(x, c2) y = Sub(a, c5)", ["Add"]),
     ("a = Sub(c2, x) y = Sub(c5, a)", ["Add"]),
     ("a = Neg(x) y = Mul(a, c3)", ["Mul"]),
     ("a = Div(x, c5) b = Sub(a, c2) y = Div(b, c3)", ["Mul", "Add"]),
     ("a = Add(x, c5) b = Mul(a, c2) d = Add(b, c3) y = Neg(d)", ["Mul", "Add"])],
)  # fmt: skip
def test_merges(nodes: str, left: list[str], opset: int) -> None:
    after, report = run(MergeAffine(), _model(nodes, opset))
    assert report.changed == 1
    assert _nodes(after) == left
    assert run(MergeAffine(), after)[1].changed == 0


def test_merges_channels_and_numbers() -> None:
    c = np.arange(1, 5, dtype=np.float32)
    after, _ = run(MergeAffine(), _model("a = Mul(x, c) y = Mul(a, c2)", c=c))
    assert _nodes(after) == ["Mul"]
    assert sum(v.const_value.nbytes for v in after.graph.initializers.values() if v.const_value is not None) == c.nbytes


def test_half_precision() -> None:
    before = graph("g (float16[N] x) => (float16[N] y) { a = Mul(x, c) y = Mul(a, c) }", c=np.array(2, np.float16))
    assert _nodes(run(MergeAffine(), before)[0]) == ["Mul"]


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [("a = Add(x, c12582912) y = Sub(a, c12582912)", "its steps cancel, so that it may round on purpose"),
     ("a = Mul(x, u) y = Mul(a, v)", "its steps leave the range in which floats are precise"),
     ("a = Erf(x) b = Mul(x, a) d = Mul(b, c2) y = Mul(d, c3)",
      "they end a normalization or a GELU, which ONNX Runtime runs as one"),
     ("a = Add(x, r) y = Add(a, l)", "the merged constants would be larger than what they replace")],
)  # fmt: skip
def test_refuses(nodes: str, reason: str) -> None:
    arrays: dict[str, Any] = {
        "u": np.array(1e-30, np.float32),
        "v": np.array(1e30, np.float32),
        "r": np.ones((60, 1), np.float32),
        "l": np.ones(4, np.float32),
    }
    before = _model(nodes, **{name: array for name, array in arrays.items() if f" {name})" in nodes})
    _, report = run(MergeAffine(), before, {"x": np.ones((60, 4), np.float32)})
    assert [note.text for note in report.refusals] == [reason]


@pytest.mark.parametrize(
    "nodes",
    ["a = Mul(x, c2) y = Add(a, c3)", "a = Div(c2, x) y = Mul(a, c3)", "a = Mul(x, c2) b = Relu(a) y = Mul(b, c2)",
     "z = Constant<value = float {0}>() a = Div(x, z) y = Mul(a, c2)"],
)  # fmt: skip
def test_keeps(nodes: str) -> None:
    assert run(MergeAffine(), _model(nodes))[1].changed == 0


def test_the_shape_stays_where_ones_enlarge_it() -> None:
    half = np.full(4, 0.5, np.float32)
    before = graph("g (float[N,1] x) => (float[N,4] y) { a = Mul(x, c) y = Div(a, c) }", c=half)
    after, _ = run(MergeAffine(), before)
    assert ops(after) == ["Mul"]


def test_integers_stay() -> None:
    before = graph("g (int32[N] x) => (int32[N] y) { c = Constant<value = int32 {7}>() a = Div(x, c) y = Mul(a, c) }")
    assert run(MergeAffine(), before)[1].changed == 0


def test_the_middle_value_is_an_output_too() -> None:
    before = graph(f"g (float[N,4] x) => (float[N,4] y, float[N,4] a) {{ {CONSTANTS} a = Mul(x, c2) y = Mul(a, c3) }}")
    assert run(MergeAffine(), before)[1].changed == 0


def test_in_a_function() -> None:
    before = graph(
        f"""g (float[N,4] x) => (float[N,4] y) {{ y = my.f(x) }}
        <domain: "my", opset_import: ["" : 18]> f (v) => (w) {{ {CONSTANTS} a = Mul(v, c2) w = Mul(a, c3) }}""",
        extra=', "my" : 1',
    )
    after, report = run(MergeAffine(), before)
    assert report.changed == 1
    assert [n.op_type for f in after.functions.values() for n in f if n.op_type != "Constant"] == ["Mul"]
