"""merge-concats."""

import pytest

from onnxopt.passes.cleanup.merge_concats import MergeConcats
from tests.support import graph, ops, run

INPUTS = "float[N,2] x, float[N,3] z"


@pytest.mark.parametrize("opset", [7, 22])
@pytest.mark.parametrize("inner", [1, -1])
def test_merges(opset: int, inner: int) -> None:
    if opset < 11 and inner < 0:
        inner = 1
    before = graph(
        f"g ({INPUTS}) => (float[N,10] y) {{ a = Concat<axis = {inner}>(x, z) b = Concat<axis = 1>(x, z)"
        " y = Concat<axis = 1>(a, b) }",
        opset=opset,
    )
    after, report = run(MergeConcats(), before)
    assert [note.text for note in report.changes] == ["took in 2 Concats"]
    assert ops(after) == ["Concat"]
    assert [v.name for v in after.graph[0].inputs if v is not None] == ["x", "z", "x", "z"]


@pytest.mark.parametrize(
    "nodes",
    ["a = Concat<axis = 0>(x, x) b = Concat<axis = 0>(z, z) y = Concat<axis = 1>(a, b)",
     "a = Concat<axis = 1>(x, z) y = Concat<axis = 1>(a, a)"],
)  # fmt: skip
def test_keeps(nodes: str) -> None:
    assert run(MergeConcats(), graph(f"g ({INPUTS}) => (float[K,L] y) {{ {nodes} }}"))[1].changed == 0


def test_the_inner_value_is_an_output_too() -> None:
    before = graph(
        f"g ({INPUTS}) => (float[N,5] a, float[N,7] y) {{ a = Concat<axis = 1>(x, z) y = Concat<axis = 1>(a, x) }}"
    )
    assert run(MergeConcats(), before)[1].changed == 0


def test_not_into_a_body() -> None:
    before = graph(
        f"""g ({INPUTS}, bool c) => (float[N,7] y) {{
            a = Concat<axis = 1>(x, z)
            y = If (c) <then_branch = t () => (float[N,7] p) {{ p = Concat<axis = 1>(a, x) }},
                        else_branch = e () => (float[N,7] r) {{
                            b = Concat<axis = 1>(x, z) r = Concat<axis = 1>(x, b) }}>
        }}"""
    )
    after, report = run(MergeConcats(), before)
    assert report.changed == 1
    assert ops(after) == ["Concat", "If"]
