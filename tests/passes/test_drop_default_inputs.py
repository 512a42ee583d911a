"""drop-default-inputs."""

from typing import Any

import numpy as np
import pytest

from onnxopt.passes.cleanup.drop_default_inputs import DropDefaultInputs
from onnxopt.passes.cleanup.remove_dead import RemoveDead
from tests.support import graph, ops, run

W, R, B = np.ones((1, 8, 3), np.float32), np.ones((1, 8, 2), np.float32), np.full((1, 16), 0.1, np.float32)
STATE = "s = Shape(x) n = Gather(s, one) t = Concat<axis = 0>(one, n, two) h = ConstantOfShape(t)"
LSTM = """g (float[T, N, 3] x) => (float[T, 1, N, 2] y) {{
    {state}
    y, a, b = LSTM<hidden_size = 2>(x, W, R, B, , h, h)
}}"""
NUMBERS: dict[str, Any] = {"one": np.array([1]), "two": np.array([2]), "W": W, "R": R, "B": B}


def test_zero_states_and_what_computed_them_vanish() -> None:
    after, report = run(DropDefaultInputs(), graph(LSTM.format(state=STATE), **NUMBERS))
    assert "lost 2 inputs" in str(report.changes[0])
    assert ops(run(RemoveDead(), after)[0]) == ["LSTM"]
    assert len(after.graph[-1].inputs) == 4


def test_a_slice_of_zeros_is_zeros() -> None:
    state = STATE.replace("Concat<axis = 0>(one, n, two)", "Concat<axis = 0>(two, n, two)").replace("h =", "z =")
    state += " h = Slice(z, one, two, zero)"
    numbers = NUMBERS | {"zero": np.array([0])}
    after, _ = run(DropDefaultInputs(), graph(LSTM.format(state=state), **numbers))
    assert ops(run(RemoveDead(), after)[0]) == ["LSTM"]


def test_states_that_are_not_zero_stay() -> None:
    state = STATE.replace("ConstantOfShape(t)", "ConstantOfShape<value = float[1] {0.5}>(t)")
    assert run(DropDefaultInputs(), graph(LSTM.format(state=state), **NUMBERS))[1].changed == 0


@pytest.mark.parametrize(
    ("node", "numbers"),
    [
        ("Conv(x, k, z)", {"k": np.ones((3, 3, 1), np.float32), "z": np.zeros(3, np.float32)}),
        ("Pad(x, p, v)", {"p": np.array([0, 0, 1, 0, 0, 1]), "v": np.array(0, np.float32)}),
        ("Slice(x, i, e, a, s)", {"i": np.array([1]), "e": np.array([3]), "a": np.array([2]), "s": np.array([1])}),
    ],
)
def test_defaults_of_other_operators(node: str, numbers: dict[str, Any]) -> None:
    before = graph(f"g (float[N, 3, 5] x) => (float[N, 3, L] y) {{ y = {node} }}", **numbers)
    after, report = run(DropDefaultInputs(), before)
    assert report.changed == 1
    assert len(after.graph[0].inputs) == node.count(",")


@pytest.mark.parametrize(("opset", "changed"), [(11, 1), (9, 0)])
def test_gemm_needs_its_c_before_opset_11(opset: int, changed: int) -> None:
    body = "g (float[N, 3] x) => (float[N, 3] y) { y = Gemm(x, k, z) }"
    before = graph(body, opset=opset, k=np.eye(3, dtype=np.float32), z=np.zeros(3, np.float32))
    assert run(DropDefaultInputs(), before)[1].changed == changed


def test_an_overridable_bias_stays() -> None:
    body = "g (float[N, 3] x, float[3] z) => (float[N, 3] y) { y = Gemm(x, k, z) }"
    before = graph(body, k=np.eye(3, dtype=np.float32), z=np.zeros(3, np.float32))
    assert run(DropDefaultInputs(), before, {"x": np.ones((2, 3), np.float32)})[1].changed == 0
