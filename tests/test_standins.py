"""Large weights are stood in for where nothing touched them, and only there."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import onnxopt
from onnxopt import verify
from onnxopt.runtime import Session, Snapshot
from onnxopt.standins import replaceable, with_stand_ins
from onnxopt.verify import Reference
from tests.support import graph

SIZE = 600
RNG = np.random.default_rng(0)


def weight() -> Any:
    return (RNG.standard_normal((SIZE, SIZE)) / SIZE**0.5).astype(np.float32)


WEIGHTS: dict[str, Any] = {name: weight() for name in ("w", "g", "t", "e", "left")}
BODY = """g (float[N, 600] x, int64[N] i) => (float[600, 600] y) {
    a = MatMul(x, w) b = Gemm<transB = 1, alpha = 0.5>(a, g, c) h = Identity(b) d = Gemm<transA = 1>(h, h)
    k = Gather(e, i) l = Gemm<transA = 1>(k, a) m = MatMul(left, l) n = MatMul(m, t) y = Add(n, d)
}"""


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ir.Model:
    monkeypatch.setattr(verify, "STAND_IN_BYTES", 1024)
    onnxopt.save(graph(BODY, c=np.ones(SIZE, np.float32), **WEIGHTS), tmp_path / "m.onnx")
    return onnxopt.load(tmp_path / "m.onnx")


def test_stand_ins_are_rank_one_matrices_with_the_same_dims(large: ir.Model) -> None:
    """The oracle is the model with the products written out as its weights."""
    snapshot = Snapshot.of(large)
    weights = replaceable(snapshot)
    assert len(weights) == len(WEIGHTS)
    light = with_stand_ins(snapshot, weights)
    import onnx

    factors = {
        t.name: onnx.numpy_helper.to_array(t)
        for t in onnx.ModelProto.FromString(light.content).graph.initializer
    }
    products = {name: factors[f"{name}/u"] @ factors[f"{name}/v"] for name in WEIGHTS}
    written_out = graph(BODY, c=np.ones(SIZE, np.float32), **products)
    feeds = {"x": RNG.standard_normal((3, SIZE)).astype(np.float32), "i": np.array([5, 0, 599])}
    expected, got = (Session(s).run(feeds)[0] for s in (Snapshot.of(written_out), light))
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert len(light.content) < SIZE * SIZE


def test_an_exact_run_says_that_weights_were_stood_in_for(large: ir.Model) -> None:
    result = onnxopt.optimize(large, passes="remove-no-ops")
    assert result.report.changed == 1
    assert result.report.verified
    assert "stood in for" in result.report.verification


def test_a_wrong_edit_beside_untouched_weights_is_seen(large: ir.Model) -> None:
    reference = Reference.of(large, stand_in=True)
    assert reference.stood_in
    wrong = large.clone()
    gemm = next(n for n in wrong.graph if n.op_type == "Gemm")
    gemm.attributes.add(ir.AttrFloat32("alpha", 0.51))
    assert "moved by" in str(reference.differences(Snapshot.of(wrong))[0])


@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_a_touched_weight_is_real(large: ir.Model, factor: float) -> None:
    reference = Reference.of(large, stand_in=True)
    touched = large.clone()
    value = touched.graph.initializers["w"]
    value.const_value = ir.tensor(WEIGHTS["w"] * np.float32(factor), name="w")
    assert bool(reference.differences(Snapshot.of(touched))) == (factor != 1.0)
    assert len(reference.stood_in) == len(WEIGHTS) - 1


@pytest.mark.parametrize("reader", ["Relu(w)", "Transpose(w)", "MatMul(w, w)"])
def test_a_weight_with_another_reader_is_real(reader: str, tmp_path: Path) -> None:
    body = f"g (float[N, 600] x) => (float[600, 600] z, float[N, 600] y) {{ y = MatMul(x, w) z = {reader} }}"
    onnxopt.save(graph(body, w=WEIGHTS["w"]), tmp_path / "m.onnx")
    assert not replaceable(Snapshot.of(onnxopt.load(tmp_path / "m.onnx")))
