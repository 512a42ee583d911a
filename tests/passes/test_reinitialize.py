"""``reinitialize``: weights as their readers want them, the same from the same seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxopt.errors import OptionError
from onnxopt.passes.distill.reinitialize import Reinitialize
from tests.support import graph, run
from tests.train.cases import initializers, perceptron

Array = np.ndarray[Any, Any]


def _drawn(text: str, **arrays: Array) -> dict[str, Array]:
    model = graph(text, **{name: np.asarray(array, np.float32) for name, array in arrays.items()})  # type: ignore[arg-type]
    after, _ = run(Reinitialize(seed=1), model)
    return initializers(after)


def test_kernels_by_what_follows() -> None:
    """Kaiming before ReLU, also behind a normalization; Xavier else."""
    found = _drawn(
        """g (float[N,16,9,9] x) => (float[N,32,9,9] y) {
            a = Conv<pads = [1, 1, 1, 1]>(x, k, b) n = BatchNormalization(a, s, t, m, v) r = Relu(n)
            y = Conv(r, l)
        }""",
        k=np.full((64, 16, 3, 3), 7), b=np.ones(64), s=np.zeros(64), t=np.ones(64), m=np.ones(64), v=np.full(64, 5),
        l=np.full((32, 64, 1, 1), 7),
    )  # fmt: skip
    assert np.std(found["k"]) == pytest.approx(np.sqrt(2 / (16 * 9)), rel=0.05)
    assert np.std(found["l"]) == pytest.approx(np.sqrt(2 / (64 + 32)), rel=0.05)
    for name, number in {"b": 0, "s": 1, "t": 0, "m": 0, "v": 1}.items():
        assert (found[name] == number).all()


def test_fans_of_products_whichever_way_they_are_stored() -> None:
    found = _drawn(
        """g (float[N,50] x) => (float[N,40] y) {
            a = Gemm<transB = 1>(x, g, b) r = Relu(a) t = Transpose<perm = [1, 0]>(w) p = MatMul(r, t) q = Relu(p)
            y = MatMul(q, v)
        }""",
        g=np.ones((200, 50)), b=np.ones(200), w=np.ones((80, 200)), v=np.ones((80, 40)),
    )  # fmt: skip
    assert np.std(found["g"]) == pytest.approx(np.sqrt(2 / 50), rel=0.05)
    assert np.std(found["w"]) == pytest.approx(np.sqrt(2 / 200), rel=0.05)
    assert np.std(found["v"]) == pytest.approx(np.sqrt(2 / 120), rel=0.05)


def test_recurrent_kernels_are_orthogonal_and_gates_start_open() -> None:
    found = _drawn(
        "g (float[5,N,3] x) => (float[5,1,N,4] y) { y = LSTM<hidden_size = 4>(x, w, r, b) }",
        w=np.ones((1, 16, 3)), r=np.ones((1, 16, 4)), b=np.ones((1, 32)),
    )  # fmt: skip
    for gate in found["r"].reshape(4, 4, 4):
        np.testing.assert_allclose(gate @ gate.T, np.eye(4), atol=1e-6)
    assert found["b"][0].tolist() == [0] * 8 + [1] * 4 + [0] * 20


def test_tables_of_look_ups() -> None:
    text = "g (int64[N,5] x) => (float[N,5,8] y) { e = Gather(t, x) y = MatMul(e, w) }"
    found = _drawn(text, t=np.ones((500, 8)), w=np.ones((8, 8)))
    assert np.mean(np.sum(found["t"] ** 2, axis=1)) == pytest.approx(1, rel=0.05)


def test_a_residual_stream_does_not_grow_with_depth() -> None:
    blocks = "".join(
        f"h{k} = MatMul(s{k}, u{k}) r{k} = Relu(h{k}) b{k} = MatMul(r{k}, v{k}) s{k + 1} = Add(s{k}, b{k}) "
        for k in range(16)
    )
    arrays: Any = {f"{kind}{k}": np.ones((64, 64), np.float32) for kind in "uv" for k in range(16)}
    found = _drawn(f"g (float[N,64] x) => (float[N,64] s16) {{ s0 = Identity(x) {blocks} }}", **arrays)
    assert np.std(found["v0"]) == pytest.approx(np.sqrt(2 / 128 / 16), rel=0.05)
    assert np.std(found["u0"]) == pytest.approx(np.sqrt(2 / 64), rel=0.05)


def test_seeds_and_filters() -> None:
    before = perceptron()
    first, again, other = (initializers(run(Reinitialize(seed=seed), before)[0]) for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["w1"], other["w1"])
    some, report = run(Reinitialize(seed=1, exclude=("MatMul",)), before)
    assert np.array_equal(initializers(some)["w2"], initializers(before)["w2"])
    assert np.array_equal(initializers(some)["w1"], first["w1"])
    assert [note.node for note in report.changes] == ["w1"]  # the biases are zero as they are


def test_nothing_to_draw() -> None:
    _, report = run(Reinitialize(), graph("g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }"))
    assert "nothing to train" in report.refusals[0].text


def test_seed_out_of_range() -> None:
    with pytest.raises(OptionError):
        Reinitialize(seed=-1)
