"""merge-clips."""

import onnx_ir as ir
import pytest

from onnxopt.passes.cleanup.merge_clips import MergeClips
from tests.support import graph, ops, run

BOUNDS = "m = Constant<value = float {-1}>() z = Constant<value = float {0}>() s = Constant<value = float {6}>()"


def _nodes(model: ir.Model) -> list[str]:
    return [op for op in ops(model) if op != "Constant"]


@pytest.mark.parametrize("opset", [12, 21])
@pytest.mark.parametrize(
    ("nodes", "left"),
    [("a = Relu(x) y = Relu(a)", ["Relu"]),
     ("a = Relu(x) y = Clip(a, z, s)", ["Clip"]),
     ("a = Clip(x, z, s) y = Relu(a)", ["Clip"]),
     ("a = Clip(x, m, s) y = Relu(a)", ["Clip"]),
     ("a = Relu(x) y = Clip(a, m, s)", ["Clip"]),
     ("a = Relu(x) y = Clip(a, m)", ["Relu"]),
     ("a = Clip(x, m) y = Relu(a)", ["Relu"]),
     ("a = Clip(x, m) y = Clip(a, , s)", ["Clip"]),
     ("a = Clip(x, , s) y = Clip(a, z)", ["Clip"]),
     ("a = Sigmoid(x) y = Relu(a)", ["Sigmoid"]),
     ("a = Softmax(x) y = Relu(a)", ["Softmax"]),
     ("a = Sigmoid(x) y = Clip(a, z, s)", ["Sigmoid"])],
)  # fmt: skip
def test_merges(nodes: str, left: list[str], opset: int) -> None:
    after, report = run(MergeClips(), graph(f"g (float[N,K] x) => (float[N,K] y) {{ {BOUNDS} {nodes} }}", opset=opset))
    assert report.changed == 1
    assert _nodes(after) == left
    assert run(MergeClips(), after)[1].changed == 0


@pytest.mark.parametrize(
    ("nodes", "low", "high"),
    [
        ("a = Relu(x) y = Clip<min = -1.0, max = 6.0>(a)", 0, 6),
        ("a = Clip<min = -2.0>(x) y = Clip<max = 3.0>(a)", -2, 3),
    ],
)
def test_merges_attributes(nodes: str, low: float, high: float) -> None:
    after, _ = run(MergeClips(), graph(f"g (float[N] x) => (float[N] y) {{ {nodes} }}", opset=7))
    assert ops(after) == ["Clip"]
    assert (after.graph[0].attributes["min"].value, after.graph[0].attributes["max"].value) == (low, high)


def test_integers() -> None:
    before = graph("g (int32[N] x) => (int32[N] y) { b = Constant<value = int32 {-3}>() a = Clip(x, b) y = Relu(a) }")
    assert _nodes(run(MergeClips(), before)[0]) == ["Relu"]


@pytest.mark.parametrize(
    "nodes",
    ["a = Clip(x, m, z) b = Clip(a, s) y = Neg(b)", "a = Relu(x) b = Neg(a) y = Relu(b)",
     "a = Sigmoid(x) y = Clip(a, z, h)", "a = Clip(x, v, s) y = Relu(a)"],
)  # fmt: skip
def test_keeps(nodes: str) -> None:
    before = graph(
        f"g (float[N] x, float v) => (float[N] y) {{ {BOUNDS} h = Constant<value = float {{0.5}}>() {nodes} }}"
    )
    assert run(MergeClips(), before)[1].changed == 0


def test_the_first_is_read_elsewhere_too() -> None:
    before = graph(f"g (float[N] x) => (float[N] y, float[N] a) {{ {BOUNDS} a = Relu(x) y = Clip(a, z, s) }}")
    assert run(MergeClips(), before)[1].changed == 0
    before = graph("g (float[N] x) => (float[N] y, float[N] a) { a = Relu(x) b = Relu(a) y = Neg(b) }")
    assert ops(run(MergeClips(), before)[0]) == ["Relu", "Neg"]


def test_in_a_function() -> None:
    before = graph(
        """g (float[N] x) => (float[N] y) { y = my.f(x) }
        <domain: "my", opset_import: ["" : 18]> f (v) => (w) { a = Relu(v) b = Relu(a) w = Neg(b) }""",
        extra=', "my" : 1',
    )
    after, report = run(MergeClips(), before)
    assert report.changed == 1
    assert [n.op_type for f in after.functions.values() for n in f] == ["Relu", "Neg"]
