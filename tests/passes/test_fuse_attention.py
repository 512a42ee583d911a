"""fuse-attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.passes.cleanup.fuse_attention import FuseAttention
from tests.support import graph, ops, run

INPUTS = "float[B,4,S,8] q, float[B,4,L,8] k, float[B,4,L,6] v"
END = " p = Softmax<axis = -1>(m) y = MatMul(p, v)"
KEYS = "t = Transpose<perm = [0, 1, 3, 2]>(k) "
FORMS = [
    KEYS + "a = MatMul(q, t) m = Mul(a, s)" + END,
    KEYS + "a = MatMul(q, t) m = Div(a, r)" + END,
    KEYS + "z = Mul(q, s) m = MatMul(z, t)" + END,
    KEYS + "z = Mul(s, t) m = MatMul(q, z)" + END,
    KEYS + "z = Mul(q, s) u = Mul(t, s) m = MatMul(z, u)" + END,
    "u = Mul(k, s) t = Transpose<perm = [0, 1, 3, 2]>(u) z = Mul(q, s) m = MatMul(z, t)" + END,
    KEYS + "m = MatMul(q, t) p = Softmax(m) y = MatMul(p, v)",
]


def model(body: str, opset: int = 23, inputs: str = INPUTS, out: str = "float[B,4,S,6] y", **given: Any) -> ir.Model:
    arrays = {"s": np.float32(0.3).reshape(()), "r": np.float32(2.5).reshape(()), **given}
    used = {n: a for n, a in arrays.items() if f" {n})" in body or f"({n}," in body}
    return graph(f"g ({inputs}) => ({out}) {{ {body} }}", opset=opset, ir_version=10, **used)


@pytest.mark.parametrize("body", FORMS)
@pytest.mark.parametrize("opset", [23, 24])
def test_fuses(body: str, opset: int) -> None:
    after, report = run(FuseAttention(), model(body, opset))
    assert report.changed == 1
    assert ops(after) == ["Attention"]


@pytest.mark.parametrize("mask", ["float[S,L]", "float[B,4,S,L]", "float[B,1,S,L]", "float[1,1,S,L]", "float[1,S,L]"])
def test_fuses_masks(mask: str) -> None:
    body = KEYS + "a = MatMul(q, t) c = Mul(a, s) m = Add(c, mask)" + END
    after, report = run(FuseAttention(), model(body, inputs=f"{INPUTS}, {mask} mask"))
    assert report.changed == 1, report
    assert ops(after) == ["Attention"]


def test_masks_of_infinities_mask() -> None:
    body = KEYS + "a = MatMul(q, t) c = Mul(a, s) m = Add(mask, c)" + END
    rng = np.random.default_rng(0)
    feeds = {n: rng.normal(size=(2, 4, 5, size)).astype(np.float32) for n, size in (("q", 8), ("k", 8), ("v", 6))}
    feeds["mask"] = np.triu(np.full((5, 5), -np.inf, np.float32), 1)
    run(FuseAttention(), model(body, inputs=f"{INPUTS}, float[S,L] mask"), feeds)


def test_undoes_the_transposition_of_keys_within_another() -> None:
    inputs = INPUTS.replace("float[B,4,L,8] k", "float[B,L,4,8] k")
    after, _ = run(FuseAttention(), model(FORMS[0].replace("[0, 1, 3, 2]", "[0, 2, 3, 1]"), inputs=inputs))
    assert ops(after) == ["Transpose", "Attention"]
    assert list(after.graph[0].attributes["perm"].value) == [0, 2, 1, 3]


@pytest.mark.parametrize("opset", [12, 13, 22])
def test_refuses_old_opsets(opset: int) -> None:
    _, report = run(FuseAttention(), model(FORMS[0].replace("-1", "3"), opset))
    assert [n.text for n in report.refusals] == [f"Attention needs opset 23, the model has {opset}"]


@pytest.mark.parametrize(
    ("body", "inputs", "reason"),
    [(FORMS[0], INPUTS.replace("float[B,4,L,8] k", "float[1,4,L,8] k"), "not known to be equal"),
     (FORMS[0], INPUTS.replace("float[B,4,L,8] k", "float[B,H,L,8] k"), "not known to be equal"),
     (KEYS + "a = MatMul(q, t) m = Add(a, mask)" + END, INPUTS + ", float[S,1] mask", "every query and key"),
     (KEYS + "a = MatMul(q, t) m = Add(a, mask)" + END, INPUTS + ", float[B,1,1,L] mask", "every query and key"),
     (KEYS + "a = MatMul(q, t) m = Add(a, mask)" + END, INPUTS + ", float[7,1,S,L] mask", "may enlarge scores"),
     (KEYS + "a = MatMul(q, t) m = Add(a, mask)" + END, INPUTS + ", float[L] mask", "rank 2 to 4")],
)  # fmt: skip
def test_refuses(body: str, inputs: str, reason: str) -> None:
    _, report = run(FuseAttention(), model(body, inputs=inputs), verify=False)
    assert report.changed == 0
    assert reason in report.refusals[0].text


def test_refuses_a_scale_that_is_not_positive() -> None:
    _, report = run(FuseAttention(), model(FORMS[0], s=np.array(-0.3, np.float32)))
    assert "is not positive" in report.refusals[0].text


def test_leaves_scores_that_others_read_another_axis_and_other_ranks() -> None:
    assert run(FuseAttention(), model(FORMS[0], out="float[B,4,S,6] y, float[B,4,S,L] p"))[1].changed == 0
    assert run(FuseAttention(), model(FORMS[0].replace("axis = -1", "axis = 2")))[1].changed == 0
    flat = "float[B,S,8] q, float[B,L,8] k, float[B,L,6] v"
    body = FORMS[0].replace("[0, 1, 3, 2]", "[0, 2, 1]")
    assert run(FuseAttention(), model(body, inputs=flat, out="float[B,S,6] y"))[1].changed == 0
