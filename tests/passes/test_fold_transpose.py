"""fold-transpose."""

from typing import Any

import numpy as np
import pytest

from onnxopt.passes.cleanup.fold_transpose import FoldTranspose
from tests.support import graph, ops, run

W = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
FLAT = "b = Flatten(a)"
DENSE = "y = MatMul(b, w)"
TO_ROWS = "s = Constant<value = int64[2] {{{}}}>() b = Reshape(a, s)"


def _model(
    flatten: str = FLAT, dense: str = DENSE, perm: str = "0, 2, 3, 1", opset: int = 13, outputs: str = "float[N,5] y"
) -> Any:
    weights: dict[str, Any] = {"w": W} if "w" in dense else {"t": W.T.copy()}
    return graph(
        f"g (float[N,2,3,4] x) => ({outputs}) {{ a = Transpose<perm = [{perm}]>(x) {flatten} {dense} }}",
        opset=opset,
        **weights,
    )


@pytest.mark.parametrize("opset", [11, 22])
@pytest.mark.parametrize("perm", ["0, 2, 3, 1", "0, 3, 1, 2", "0, 2, 1, 3"])
@pytest.mark.parametrize("flatten", [FLAT, TO_ROWS.format("-1, 24"), TO_ROWS.format("0, -1")])
@pytest.mark.parametrize("dense", [DENSE, "y = Gemm<transB = 1>(b, t)"])
def test_reorders_the_weights(opset: int, perm: str, flatten: str, dense: str) -> None:
    after, report = run(FoldTranspose(), _model(flatten, dense, perm, opset))
    assert report.changed == 1
    assert "Transpose" not in ops(after)
    assert set(after.graph.initializers) == {dense.rsplit(", ", maxsplit=1)[-1][0]}


def test_several_layers() -> None:
    before = graph(
        "g (float[N,2,3,4] x) => (float[N,5] y, float[N,5] z) { a = Transpose<perm = [0, 2, 3, 1]>(x) b = Flatten(a)"
        " y = MatMul(b, w) z = Gemm(b, v) }",
        w=W, v=W + 1,
    )  # fmt: skip
    after, _ = run(FoldTranspose(), before)
    assert ops(after) == ["Flatten", "MatMul", "Gemm"]


@pytest.mark.parametrize(
    "nodes",
    ["a = Transpose<perm = [0, 2, 3, 1]>(x) b = Flatten<axis = 2>(a) y = MatMul(b, v)",
     "a = Transpose<perm = [1, 0, 2, 3]>(x) b = Flatten(a) y = MatMul(b, w)",
     "a = Transpose<perm = [0, 2, 3, 1]>(x) r = Relu(a) b = Flatten(r) y = MatMul(b, w)"],
)  # fmt: skip
def test_keeps(nodes: str) -> None:
    weights: dict[str, Any] = {"v": W[:8]} if "v)" in nodes else {"w": W}
    before = graph(f"g (float[2,2,3,4] x) => (float[A,B] y) {{ {nodes} }}", **weights)
    assert run(FoldTranspose(), before)[1].changed == 0


def test_the_flat_value_is_read_elsewhere_too() -> None:
    assert run(FoldTranspose(), _model(outputs="float[N,5] y, float[N,24] b"))[1].changed == 0
    assert (
        run(FoldTranspose(), _model(dense=f"{DENSE} z = Relu(b)", outputs="float[N,5] y, float[N,24] z"))[1].changed
        == 0
    )


def test_refuses_a_shared_weight() -> None:
    _, report = run(FoldTranspose(), _model(dense=f"{DENSE} z = Neg(w)", outputs="float[N,5] y, float[24,5] z"))
    assert [note.text for note in report.refusals] == ["the weight 'w' of MatMul is shared"]


def test_keeps_where_sizes_are_not_known() -> None:
    before = graph(
        "g (float[N,2,H,W] x) => (float[N,5] y) {"
        " a = Transpose<perm = [0, 2, 3, 1]>(x) b = Flatten(a) y = MatMul(b, w) }",
        w=W,
    )
    assert run(FoldTranspose(), before, {"x": np.ones((1, 2, 3, 4), np.float32)})[1].changed == 0
