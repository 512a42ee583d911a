"""sink-constants."""

import numpy as np
import pytest

from onnxopt.errors import OptionError
from onnxopt.passes.cleanup.lift_constants import LiftConstants
from onnxopt.passes.cleanup.sink_constants import SinkConstants
from tests.support import graph, ops, run

BODY = "g (float[N, 4] x) => (float[N, 4] y) { a = Add(x, small) y = MatMul(a, large) }"
WEIGHTS = {"small": np.ones(4, np.float32), "large": np.eye(4, dtype=np.float32)}


def test_small_ones_become_nodes_and_come_back() -> None:
    before = graph(BODY, **WEIGHTS)  # type: ignore[arg-type]
    after, report = run(SinkConstants(max_bytes=32), before)
    assert report.changed == 1
    assert ops(after) == ["Constant", "Add", "MatMul"]
    assert list(after.graph.initializers) == ["large"]
    assert after.graph[0].outputs[0].name == "small"
    back, _ = run(LiftConstants(), after)
    assert sorted(back.graph.initializers) == ["large", "small"]


def test_overridable_and_read_outside_are_kept_right() -> None:
    body = """g (bool c, float[4] x, float[4] given) => (float[4] y) { a = Add(x, given) y = If (c) <
        then_branch = t () => (float[4] p) { p = Add(a, small) },
        else_branch = e () => (float[4] q) { q = Sub(a, small) }> }"""
    before = graph(body, small=np.ones(4, np.float32), given=np.ones(4, np.float32))
    after, report = run(SinkConstants(), before)
    assert [note.node for note in report.changes] == ["small"]
    assert "given" in after.graph.initializers


def test_an_output_stays() -> None:
    before = graph("g (float[4] x) => (float[4] y, float[4] w) { y = Add(x, w) }", w=np.ones(4, np.float32))
    after, _ = run(SinkConstants(), before)
    assert [v.name for v in after.graph.outputs] == ["y", "w"]


def test_negative_sizes_are_refused() -> None:
    with pytest.raises(OptionError, match="max_bytes"):
        SinkConstants(max_bytes=-1)


@pytest.mark.parametrize(("opset", "changed"), [(8, 1), (9, 2)])
def test_before_opset_9_a_constant_node_holds_floats_only(opset: int, changed: int) -> None:
    body = "g (float[N, 4] x) => (float[M, 4] y) { a = Add(x, small) y = Reshape(a, shape) }"
    before = graph(body, opset=opset, small=np.ones(4, np.float32), shape=np.array([-1, 4]))
    _, report = run(SinkConstants(), before)
    assert report.changed == changed
    assert len(report.refusals) == 2 - changed
