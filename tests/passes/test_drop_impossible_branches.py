"""drop-impossible-branches."""

from typing import Any

import numpy as np
import pytest

from onnxopt.passes.cleanup.drop_impossible_branches import DropImpossibleBranches
from tests.support import graph, run

W = np.ones((1, 8, 3), np.float32)
R = np.ones((1, 8, 2), np.float32)
X = {"x": np.ones((4, 3, 1), np.float32)}

SQUEEZE = """g (float[N, 3, T] x) => ({out} y) {{
    s = Shape(x) t = Gather(s, two) c = Equal(t, one)
    r = If (c) <then_branch = a () => (float[N, 3] p) {{ p = Squeeze(x, two) }},
                else_branch = b () => (float[N, 3, T] q) {{ q = Identity(x) }}>
    {rest}
}}"""
NUMBERS: dict[str, Any] = {"one": np.array([1]), "two": np.array([2]), "zero": np.array([0]), "W": W, "R": R}
LSTM = "h, z, k = LSTM<hidden_size = 2>(u, W, R) y = Identity(h)"


def squeezed(rest: str, out: str = "float[A, B, C, D]") -> str:
    return SQUEEZE.format(out=out, rest=rest)


@pytest.mark.parametrize("rest", [f"u = Unsqueeze(r, zero) {LSTM}", f"v = Relu(r) u = Unsqueeze(v, zero) {LSTM}"])
def test_takes_the_only_branch_that_fits_an_lstm(rest: str) -> None:
    after, report = run(DropImpossibleBranches(), graph(squeezed(rest), **NUMBERS), X)
    assert report.changed == 1
    assert "takes its then_branch: rank 3 of the other" in str(report.changes[0])
    condition = next(n for n in after.graph if n.op_type == "If").inputs[0]
    assert condition is not None
    assert condition.const_value is not None
    assert condition.const_value.numpy()


def test_sees_through_a_second_if() -> None:
    rest = f"""rank = Size(s) d = Cast<to = 9>(rank)
        v = If (d) <then_branch = e () => (float[N, 3] f) {{ f = Squeeze(r, zero) }},
                    else_branch = h () => (float[N, 3] i) {{ i = Identity(r) }}>
        u = Unsqueeze(v, zero) {LSTM}"""
    body = squeezed(rest.replace("Squeeze(r, zero)", "Unsqueeze(r, zero)"))
    _, report = run(DropImpossibleBranches(), graph(body, **NUMBERS), verify=False)
    assert [note.node for note in report.changes] == ["r"]


@pytest.mark.parametrize(
    ("rest", "out"),
    [("y = Shape(r)", "int64[K]"), ("m = ReduceMean<keepdims = 0>(r) y = Identity(m)", "float")],
    ids=["shape takes any rank", "reductions take any rank"],
)
def test_both_branches_stay_where_both_can_run(rest: str, out: str) -> None:
    _, report = run(DropImpossibleBranches(), graph(squeezed(rest, out), **NUMBERS), X)
    assert report.changed == 0


def test_equal_ranks_are_a_matter_of_data() -> None:
    body = """g (bool c, float[N, 3] x) => (float[N, 3, 1] y) {
        r = If (c) <then_branch = a () => (float[N, 3] p) { p = Relu(x) },
                    else_branch = b () => (float[N, 3] q) { q = Neg(x) }>
        u = Unsqueeze(r, two) y = Conv(u, K)
    }"""
    _, report = run(DropImpossibleBranches(), graph(body, two=np.array([2]), K=np.ones((3, 3, 1), np.float32)))
    assert report.changed == 0
