"""merge-transposes."""

import pytest

from onnxopt.passes.cleanup.merge_transposes import MergeTransposes
from tests.support import graph, ops, run


@pytest.mark.parametrize("opset", [7, 22])
def test_two_that_cancel(opset: int) -> None:
    before = graph(
        "g (float[N,3,H,W] x) => (float[N,3,H,W] y) { a = Transpose<perm = [0, 2, 3, 1]>(x)"
        " b = Transpose<perm = [0, 3, 1, 2]>(a) y = Relu(b) }",
        opset=opset,
    )
    after, report = run(MergeTransposes(), before)
    assert [note.text for note in report.changes] == ["undid the transposition before it"]
    assert ops(after) == ["Relu"]


def test_two_that_become_one() -> None:
    before = graph(
        "g (float[2,3,4] x) => (float[4,2,3] y) {"
        " a = Transpose<perm = [1, 0, 2]>(x) y = Transpose<perm = [2, 1, 0]>(a) }"
    )
    after, _ = run(MergeTransposes(), before)
    assert ops(after) == ["Transpose"]
    assert after.graph[0].attributes["perm"].value == (2, 0, 1)


def test_the_first_is_read_elsewhere_too() -> None:
    nodes = "a = Transpose<perm = [1, 0]>(x) b = Transpose<perm = [1, 0]>(a) y = Relu(b)"
    after, _ = run(MergeTransposes(), graph(f"g (float[N,M] x) => (float[N,M] y, float[M,N] a) {{ {nodes} }}"))
    assert ops(after) == ["Transpose", "Relu"]
    nodes = "a = Transpose<perm = [1, 0, 2]>(x) y = Transpose<perm = [2, 1, 0]>(a)"
    before = graph(f"g (float[N,M,K] x) => (float[A,B,C] y, float[M,N,K] a) {{ {nodes} }}")
    assert run(MergeTransposes(), before)[1].changed == 0


def test_without_perm_where_the_rank_is_unknown() -> None:
    before = graph(
        """g (float[N,M] x) => (float[N,M] y) { y = my.f(x) }
        <domain: "my", opset_import: ["" : 18]> f (v) => (w) { a = Transpose(v) b = Transpose(a) w = Relu(b) }""",
        extra=', "my" : 1',
    )
    after, _ = run(MergeTransposes(), before)
    assert [n.op_type for f in after.functions.values() for n in f] == ["Relu"]


def test_an_input_cannot_become_the_output() -> None:
    before = graph("g (float[N,M] x) => (float[N,M] y) { a = Transpose(x) y = Transpose(a) }")
    assert run(MergeTransposes(), before)[1].changed == 0


def test_inside_a_body() -> None:
    before = graph(
        """g (float[N,M] x, bool c) => (float[N,M] y) {
            a = Transpose(x)
            y = If (c) <then_branch = t () => (float[N,M] p) { q = Transpose(a) p = Relu(q) },
                        else_branch = e () => (float[N,M] r) { r = Neg(x) }>
        }"""
    )
    after, _ = run(MergeTransposes(), before)
    assert ops(after) == ["If"]
