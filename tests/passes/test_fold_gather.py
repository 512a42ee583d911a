"""fold-gather."""

from typing import Any

import numpy as np
import pytest

from onnxopt.passes.cleanup.fold_constants import FoldConstants
from onnxopt.passes.cleanup.fold_gather import FoldGather
from onnxopt.passes.cleanup.remove_dead import RemoveDead
from tests.support import graph, ops, run

RNG = np.random.default_rng(0)
IDS = {"x": np.array([[0, 1, 8], [-9, -1, 3]])}
GELU = """a = Pow(r, three) b = Mul(a, k) c = Add(r, b) d = Mul(c, k) t = Tanh(d) p = Add(t, one) q = Mul(r, p)
    y = Mul(q, k)"""


def look_up(nodes: str, outputs: str = "float[N, T, 4] y", **more: Any) -> Any:
    constants = {
        "table": RNG.normal(size=(9, 4)).astype(np.float32), "bias": RNG.normal(size=(1, 1, 4)).astype(np.float32),
        "one": np.array(1, np.float32), "three": np.array(3, np.float32), "k": np.array([0.3], np.float32),
    }  # fmt: skip
    used = {name: array for name, array in (constants | more).items() if name == "table" or name in nodes}
    return graph(f"g (int64[N, T] x) => ({outputs}) {{ r = Gather(table, x) {nodes} }}", opset=20, **used)


@pytest.mark.parametrize("nodes", ["b = Add(bias, r) y = Gelu(b)", "y = Relu(r)", GELU, "b = Mul(r, k) y = Sub(b, b)"])
def test_works_on_the_table(nodes: str) -> None:
    """Whatever reads rows, as long as it ends in one value."""
    after, report = run(FoldGather(), look_up(nodes), IDS)
    assert report.changed == 1
    after, _ = run(RemoveDead(), run(FoldConstants(), after, IDS)[0], IDS)
    assert ops(after) == ["Gather"]
    assert len(after.graph.initializers) == 1


def test_as_far_as_it_goes() -> None:
    """What comes after a node that is none of these, or has other values, stays."""
    after, report = run(FoldGather(), look_up("b = Add(r, bias) c = Cast<to = 1>(x) s = Unsqueeze(c, at) y = Mul(b, s)",
                                              at=np.array([2])), IDS)  # fmt: skip
    assert report.changed == 1
    assert ops(after) == ["Add", "Gather", "Cast", "Unsqueeze", "Mul"]


@pytest.mark.parametrize(
    "model",
    [
        look_up("y = Softmax(r)"),
        look_up("y = Add(r, z)", z=np.ones((3, 4), np.float32)),  # others for each place
        look_up("w = Exp(table) y = Relu(r)", "float[N, T, 4] y, float[9, 4] w"),
        look_up("y = Neg(r) w = Abs(r)", "float[N, T, 4] y, float[N, T, 4] w"),  # would take two tables
        look_up("y = Neg(r) w = Abs(table)", "float[N, T, 4] y, float[9, 4] w"),
        graph("g (int64[T] x) => (float[9, T] y) { r = Gather<axis = 1>(table, x) y = Neg(r) }",
              table=np.ones((9, 4), np.float32)),
        graph("g (int64[T] x, float[9, 4] table) => (float[T, 4] y) { r = Gather(table, x) y = Neg(r) }"),
    ],
)  # fmt: skip
def test_no_match(model: Any) -> None:
    _, report = run(FoldGather(), model, verify=False)
    assert report.changed == 0
    assert not report.refusals


def test_constants_that_make_rows_longer_stay() -> None:
    before = graph(
        "g (int64[T] x) => (float[T, 4] y) { r = Gather(table, x) y = Add(r, z) }",
        table=np.ones((9, 1), np.float32), z=np.arange(4, dtype=np.float32),
    )  # fmt: skip
    assert run(FoldGather(), before, {"x": IDS["x"][0]})[1].changed == 0
