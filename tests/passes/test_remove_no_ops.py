"""remove-no-ops."""

from onnxopt.passes.cleanup.remove_no_ops import RemoveNoOps
from tests.support import graph, ops, run


def test_removes_an_identity_and_keeps_the_output_name() -> None:
    before = graph("g (float[N] x) => (float[N] y) { a = Relu(x) y = Identity(a) }")
    after, report = run(RemoveNoOps(), before)
    assert report.changed == 1
    assert ops(after) == ["Relu"]
    assert [v.name for v in after.graph.outputs] == ["y"]
