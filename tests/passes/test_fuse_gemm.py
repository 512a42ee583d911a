"""fuse-gemm."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.passes.cleanup.fuse_gemm import FuseGemm
from tests.support import count_ops, graph, ops, run

W = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def model(body: str, opset: int = 13, x: str = "float[M,4] x", out: str = "float[M,3] y", **given: Any) -> ir.Model:
    arrays = {"w": W, "v": W.T.copy(), "b": np.arange(3, dtype=np.float32), **given}
    used = {n: a for n, a in arrays.items() if re.search(rf"[(\s]{n}[,)]", body)}
    return graph(f"g ({x}) => ({out}) {{ {body} }}", opset=opset, **used)


def attributes(node: ir.Node) -> dict[str, Any]:
    return {name: found.value for name, found in node.attributes.items()}


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 22])
@pytest.mark.parametrize("body", ["a = MatMul(x, w) y = Add(a, b)", "a = MatMul(x, w) y = Add(b, a)"])
def test_fuses_matmul_and_add(body: str, opset: int) -> None:
    after, report = run(FuseGemm(), model(body, opset))
    assert report.changed == 1
    assert ops(after) == ["Gemm"]
    assert [v.name for v in after.graph[0].inputs if v is not None] == ["x", "w", "b"]


@pytest.mark.parametrize("bias", [np.float32(2).reshape(()), np.ones(1), np.ones((1, 3)), np.ones((1, 1))])
def test_fuses_any_bias_that_spreads(bias: np.ndarray[Any, Any]) -> None:
    after, _ = run(FuseGemm(), model("a = MatMul(x, w) y = Add(a, b)", b=bias.astype(np.float32)))
    assert ops(after) == ["Gemm"]


def test_fuses_values_that_are_no_constants() -> None:
    before = graph("g (float[M,4] x, float[4,K] w, float[M,K] c) => (float[M,K] y) { a = MatMul(x, w) y = Add(a, c) }")
    assert ops(run(FuseGemm(), before)[0]) == ["Gemm"]


@pytest.mark.parametrize(
    ("inputs", "out", "reason"),
    [("float[M,4] x, float[4,3] w, float[5,3] b", "float[5,3] y", "may enlarge the product"),
     ("float[M,4] x, float[4,K] w, float[3] b", "float[M,3] y", "may enlarge the product"),
     ("float[M,4] x, float[4,3] w, float[2,1,3] b", "float[2,M,3] y", "may enlarge the product"),
     ("float[M,4] x, float[4,3] w, float[L,3] b", "float[K,3] y", "may enlarge the product"),
     ("int32[M,4] x, int32[4,3] w, int32[3] b", "int32[M,3] y", "it computes in int32, Gemm in floats")],
)  # fmt: skip
def test_refuses(inputs: str, out: str, reason: str) -> None:
    before = graph(f"g ({inputs}) => ({out}) {{ a = MatMul(x, w) y = Add(a, b) }}")
    _, report = run(FuseGemm(), before, verify=False)
    assert reason in report.refusals[0].text


@pytest.mark.parametrize("x", ["float[B,M,4] x", "float[4] x"])
def test_leaves_other_ranks(x: str) -> None:
    out = "float[B,M,3] y" if "B" in x else "float[3] y"
    _, report = run(FuseGemm(), model("a = MatMul(x, w) y = Add(a, b)", x=x, out=out))
    assert (report.changed, report.refusals) == (0, ())


def test_fuses_gemm_and_add_and_keeps_attributes() -> None:
    after, _ = run(FuseGemm(), model("a = Gemm<alpha = 0.5, transB = 1, beta = 3.0>(x, v) y = Add(a, b)"))
    assert ops(after) == ["Gemm"]
    assert attributes(after.graph[0]) == {"alpha": 0.5, "transB": 1, "beta": 1.0}


def test_leaves_gemm_that_adds_already() -> None:
    assert run(FuseGemm(), model("a = Gemm(x, w, b) y = Add(a, b)"))[1].changed == 0


def test_fuses_transpositions() -> None:
    after, _ = run(FuseGemm(), model("t = Transpose(v) a = MatMul(x, t) y = Add(a, b)"))
    assert ops(after) == ["Gemm"]
    assert attributes(after.graph[0]) == {"transB": 1}
    after, _ = run(FuseGemm(), model("t = Transpose<perm = [1, 0]>(x) y = Gemm<transA = 1, alpha = 2.0>(t, w, b)"))
    assert ops(after) == ["Gemm"]
    assert attributes(after.graph[0]) == {"transA": 0, "alpha": 2.0}
    after, _ = run(FuseGemm(), model("t = Transpose(x) y = MatMul(t, w)", x="float[4,M] x"))
    assert ops(after) == ["Gemm"]
    assert attributes(after.graph[0]) == {"transA": 1}


def test_a_lone_transposed_product_needs_opset_11() -> None:
    _, report = run(FuseGemm(), model("t = Transpose(v) y = MatMul(x, t)", 9))
    assert report.refusals[0].text == "Gemm without a term to add needs opset 11, the model has 9"


def test_leaves_what_others_read() -> None:
    for body, out in (("a = MatMul(x, w) y = Add(a, b)", "a"), ("a = MatMul(x, w) y = Add(a, a)", "")):
        outputs = "float[M,3] y" + (f", float[M,3] {out}" if out else "")
        assert run(FuseGemm(), model(body, out=outputs))[1].changed == 0
    both = model("t = Transpose(v) y = MatMul(x, t) z = Neg(t)", out="float[M,3] y, float[4,3] z")
    assert run(FuseGemm(), both)[1].changed == 0


def test_a_transposition_that_is_added_too_stays() -> None:
    before = graph("g (float[3,3] x, float[3,3] w) => (float[3,3] y) { t = Transpose(x) y = Gemm(t, w, t) }")
    assert run(FuseGemm(), before)[1].changed == 0


def test_fuses_double_and_in_bodies() -> None:
    before = graph("""g (double[M,4] x, double[4,3] w, double[3] b, bool k) => (double[M,3] z) {
        z = If(k) <then_branch = t () => (double[M,3] y) { a = MatMul(x, w) y = Add(a, b) },
                   else_branch = e () => (double[M,3] f) { f = MatMul(x, w) }> }""")
    assert count_ops(run(FuseGemm(), before)[0]) == {"If": 1, "Gemm": 1, "MatMul": 1}
