"""fuse-global-pool."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.passes.cleanup.fuse_global_pool import FuseGlobalPool
from tests.support import count_ops, graph, ops, run

W = np.random.default_rng(0).normal(size=(4, 3, 1, 1)).astype(np.float32)


def model(body: str, opset: int = 13, out: str = "float[N,4,1,1] y") -> ir.Model:
    used: dict[str, Any] = {"w": W}
    if ", axes" in body:
        used["axes"] = np.array([2, 3])
    return graph(f"g (float[N,3,H,W] x) => ({out}) {{ c = Conv(x, w) {body} }}", opset=opset, **used)


@pytest.mark.parametrize("op", ["Mean", "Max"])
@pytest.mark.parametrize(
    ("text", "opset"),
    [("<axes = [2, 3]>(c)", 7), ("<axes = [2, 3], keepdims = 1>(c)", 11), ("<axes = [-1, -2]>(c)", 13),
     ("(c, axes)", 18), ("(c, axes)", 22)],
)  # fmt: skip
def test_fuses(op: str, text: str, opset: int) -> None:
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)}
    after, report = run(FuseGlobalPool(), model(f"y = Reduce{op}{text}", opset), feeds)
    assert report.changed == 1
    assert ops(after) == ["Conv", f"Global{'Average' if op == 'Mean' else 'Max'}Pool"]


def test_fuses_behind_an_activation() -> None:
    after, _ = run(FuseGlobalPool(), model("r = Relu(c) y = ReduceMean<axes = [2, 3]>(r)"))
    assert ops(after) == ["Conv", "Relu", "GlobalAveragePool"]


def test_leaves_other_axes_and_dropped_axes() -> None:
    for text, out in (("<axes = [3]>(c)", "float[N,4,H,1] y"), ("<axes = [1, 2, 3]>(c)", "float[N,1,1,1] y"),
                      ("<axes = [2, 3], keepdims = 0>(c)", "float[N,4] y"), ("(c)", "float[1,1,1,1] y")):  # fmt: skip
        _, report = run(FuseGlobalPool(), model(f"y = ReduceMean{text}", out=out))
        assert (report.changed, report.refusals) == (0, ())


def test_refuses_where_no_convolution_comes_before() -> None:
    before = graph("g (float[N,3,H,W] x) => (float[N,3,1,1] y) { y = ReduceMean<axes = [2, 3]>(x) }", opset=13)
    _, report = run(FuseGlobalPool(), before)
    assert "faster than GlobalAveragePool" in report.refusals[0].text


def test_refuses_integers_and_double_and_leaves_unknown_ranks() -> None:
    for type_, reason in (("int32", "it computes in int32"), ("double", "double")):
        body = "y = ReduceMax<axes = [2, 3]>(x)"
        before = graph(f"g ({type_}[N,3,H,W] x) => ({type_}[N,3,1,1] y) {{ {body} }}", opset=13)
        assert reason in run(FuseGlobalPool(), before)[1].refusals[0].text
    text = "g (float[N] x, int64[K] s) => (float y) { r = Reshape(x, s) y = ReduceMean<axes = [2, 3]>(r) }"
    before = graph(text, opset=13)
    assert run(FuseGlobalPool(), before, verify=False)[1].refusals == ()


def test_keeps_what_others_read_and_fuses_in_bodies() -> None:
    out = "float[N,4,1,1] y, float[N,4,H,W] z"
    after, _ = run(FuseGlobalPool(), model("y = ReduceMean<axes = [2, 3]>(c) z = Relu(c)", out=out))
    assert count_ops(after) == {"Conv": 1, "GlobalAveragePool": 1, "Relu": 1}
    before = graph("""g (float[N,3,H,W] x, float[4,3,1,1] w, bool k) => (float[N,4,1,1] z) {
        z = If(k) <then_branch = t () => (float[N,4,1,1] y) { c = Conv(x, w) y = ReduceMean<axes = [2, 3]>(c) },
                   else_branch = e () => (float[N,4,1,1] f) { d = Conv(x, w) f = ReduceMax<axes = [2, 3]>(d) }>
        }""", opset=13)
    assert count_ops(run(FuseGlobalPool(), before, verify=False)[0])["GlobalMaxPool"] == 1
