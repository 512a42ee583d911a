"""The arithmetic of sparse weights, against formulas written out in float64 and against ONNX Runtime."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.data import Dataset, load_data
from onnxopt.passes.prune._allocation import shares
from onnxopt.passes.prune._layer_grams import layer_grams
from onnxopt.passes.prune._masks import Pattern, mask
from onnxopt.passes.prune._sparsegpt import _choose, refit, sparsegpt
from onnxopt.passes.prune._wanda import wanda
from onnxopt.passes.quantize._products import Product
from onnxopt.stats import Statistics
from tests.support import graph, outputs

Array = np.ndarray[Any, Any]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def correlated(rows: int, k: int, seed: int) -> Array:
    """Inputs that say much about each other, as those of real layers do; the mixture is the same for all seeds."""
    sizes = 1 / np.sqrt(1 + np.arange(k))
    mixed: Array = np.random.default_rng(seed).standard_normal((rows, k)) * sizes @ normal(k, k, seed=99)
    return mixed


# -- masks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1:1", "4:2", "2:2", "0:4", "2:0", "2/4", "2:4:8", "4x", "0x4", "x", "-2:4", "2:4 "])
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no pattern"):
        Pattern.parse(text)


def test_patterns_are_read() -> None:
    assert Pattern.parse("2:4") == Pattern(kept=2, of=4)
    assert Pattern.parse("4x1") == Pattern(rows=4, columns=1)
    assert Pattern.parse("") == Pattern()
    assert Pattern.parse("1:4").share == 0.75
    assert Pattern.parse("4x1").share is None


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.77, 0.999])
def test_the_least_go(share: float) -> None:
    scores = normal(2, 6, 10)
    kept = mask(scores, share, Pattern())
    assert (~kept).sum() == round(share * 120)
    assert scores[~kept].max(initial=-np.inf) <= scores[kept].min(initial=np.inf)


def test_of_equal_scores_the_later_go() -> None:
    kept = mask(np.array([[[1.0, 0, 0, 0, 2, 0]]]), 0.5, Pattern())
    np.testing.assert_array_equal(kept[0, 0], [1, 1, 0, 0, 1, 0])
    np.testing.assert_array_equal(mask(np.zeros((1, 1, 4)), 0.5, Pattern(kept=2, of=4))[0, 0], [1, 1, 0, 0])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.65, 0.9])
def test_rows_lose_alike(share: float) -> None:
    scores = normal(2, 8, 9)
    kept = mask(scores, share, Pattern(), by_row=True)
    gone = (~kept).sum(axis=2)
    assert gone.sum() == round(share * scores.size)
    assert gone.max() - gone.min() <= 1
    for row, its in zip(scores.reshape(-1, 9), kept.reshape(-1, 9), strict=True):
        assert row[~its].max(initial=-np.inf) <= row[its].min(initial=np.inf)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (1, 2), (3, 5)])
def test_n_of_m(n: int, m: int) -> None:
    scores = normal(2, 3, 5 * m)
    kept = mask(scores, 0.0, Pattern(kept=n, of=m))
    for g, i, start in itertools.product(range(2), range(3), range(0, 5 * m, m)):
        best = sorted(range(m), key=lambda j: -scores[g, i, start + j])[:n]
        assert sorted(np.flatnonzero(kept[g, i, start : start + m])) == sorted(best)


def test_blocks_go_as_a_whole() -> None:
    scores = np.abs(normal(1, 8, 6))
    kept = mask(scores, 0.5, Pattern(rows=4, columns=2))[0]
    sums = {(r, c): scores[0, 4 * r : 4 * r + 4, 2 * c : 2 * c + 2].sum() for r in range(2) for c in range(3)}
    staying = sorted(sums, key=lambda at: -sums[at])[:3]
    for r, c in sums:
        assert (kept[4 * r : 4 * r + 4, 2 * c : 2 * c + 2] == ((r, c) in staying)).all()


def test_sizes_that_do_not_fit() -> None:
    assert Pattern.parse("2:4").misfit(8, 8) is None
    assert "6 inputs" in (Pattern.parse("2:4").misfit(8, 6) or "")
    assert "6 outputs" in (Pattern.parse("4x1").misfit(6, 8) or "")
    assert "7 inputs" in (Pattern.parse("1x2").misfit(6, 7) or "")


# -- allocation ------------------------------------------------------------------------------------------------


def test_uniform() -> None:
    assert shares([normal(3, 4), normal(5)], 0.3, "uniform") == [0.3, 0.3]


def test_global_is_one_threshold() -> None:
    weights = [normal(30, 40, seed=1), 3 * normal(20, 10, seed=2)]
    together = np.sort(np.abs(np.concatenate([w.reshape(-1) for w in weights])))
    bound = together[round(0.6 * 1400)]
    expected = [float(np.mean(np.abs(w) < bound)) for w in weights]
    assert shares(weights, 0.6, "global") == pytest.approx(expected, abs=1e-9)
    assert expected[0] > 0.6 > expected[1]


def test_erk_by_hand() -> None:
    """Densities are ε (8+4)/32 and ε (16+8+3+3)/1152: at half of 1,184 elements, ε = 592 / (12 + 30)."""
    weights = [np.ones((8, 4)), np.ones((16, 8, 3, 3))]
    epsilon = 592 / 42
    assert epsilon * 12 / 32 > 1  # so the first stays dense, and the second has all the zeros
    assert shares(weights, 0.5, "erk") == pytest.approx([0, 592 / 1152])
    epsilon = 0.05 * 1184 / 42
    expected = [1 - epsilon * 12 / 32, 1 - epsilon * 30 / 1152]
    assert shares(weights, 0.95, "erk") == pytest.approx(expected)


def test_lamp_by_its_definition() -> None:
    weights = [normal(5, 7, seed=1), 10 * normal(4, 3, seed=2), 0.1 * normal(6, 6, seed=3)]
    scores = []
    for at, w in enumerate(weights):
        squares = w.reshape(-1).astype(np.float64) ** 2
        scores += [(each / squares[squares >= each].sum(), at) for each in squares]
    scores.sort()
    gone = [at for _, at in scores[: round(0.7 * len(scores))]]
    expected = [gone.count(at) / w.size for at, w in enumerate(weights)]
    assert shares(weights, 0.7, "lamp") == pytest.approx(expected)
    scaled = [w * f for w, f in zip(weights, (1e-3, 7, 100), strict=True)]
    assert shares(scaled, 0.7, "lamp") == pytest.approx(expected), "the score does not depend on the layer's scale"
    assert max(shares(weights, 0.95, "lamp")) < 1, "no layer vanishes"


@pytest.mark.parametrize("allocation", ["global", "erk", "lamp"])
def test_together_they_reach_the_target(allocation: Any) -> None:
    weights = [normal(4, 3, 3, 3, seed=1), normal(64, 32, seed=2), normal(8, 1, 3, 3, seed=3)]
    for target in (0.2, 0.5, 0.9):
        found = shares(weights, target, allocation)
        total = sum(share * w.size for share, w in zip(found, weights, strict=True))
        assert total == pytest.approx(target * sum(w.size for w in weights), abs=1)
        assert all(0 <= share <= 1 for share in found)


# -- scores and updates ----------------------------------------------------------------------------------------


def test_wanda_is_its_formula() -> None:
    w, x = normal(2, 3, 5), normal(2, 40, 5, seed=1).astype(np.float64)
    scores = wanda(w, x.swapaxes(1, 2) @ x)
    for g, i, j in itertools.product(range(2), range(3), range(5)):
        assert scores[g, i, j] == pytest.approx(abs(w[g, i, j]) * np.sqrt(np.sum(x[g, :, j] ** 2)), rel=1e-5)


def by_surgeon(w: Array, h: Array, share: float, pattern: Pattern) -> tuple[Array, Array]:
    """The optimal brain surgeon, column by column in float64, with an inverse of ``h`` at each step: mask and result.

    Scores are those at the beginning of each lot: all columns, or M of them.
    """
    n, k = w.shape
    left, kept = w.astype(np.float64), np.ones((n, k), bool)
    lot = pattern.of if pattern.of > 1 else k
    for start in range(0, k, lot):
        errors = np.empty((n, lot))
        for i in range(start, start + lot):
            errors[:, i - start] = left[:, i] ** 2 / np.linalg.inv(h[i:, i:])[0, 0]
        ranks = np.argsort(errors if pattern.of > 1 else errors.reshape(-1), axis=-1)
        count = pattern.of - pattern.kept if pattern.of > 1 else round(share * errors.size)
        for row in range(n if pattern.of > 1 else 1):
            for at in ranks[row, :count] if pattern.of > 1 else ranks[:count]:
                kept[(row, start + at) if pattern.of > 1 else np.unravel_index(at, (n, k))] = False
        for i in range(start, start + lot):
            inverse = np.linalg.inv(h[i:, i:])
            step = np.where(kept[:, i], 0, left[:, i] / inverse[0, 0])
            left[:, i:] -= step[:, None] * inverse[0]
            left[~kept[:, i], i] = 0
    return kept, left


@pytest.mark.parametrize("pattern", [Pattern(), Pattern(kept=2, of=4), Pattern(kept=1, of=3)])
def test_weights_are_chosen_as_by_the_surgeon(pattern: Pattern) -> None:
    for seed in range(4):
        x, w = correlated(300, 24, seed), normal(6, 24, seed=seed)
        h = x.T @ x
        expected, _ = by_surgeon(w, h, 0.6, pattern)
        np.testing.assert_array_equal(_choose(w[None], h[None], 0.6, pattern)[0], expected)


def test_what_is_kept_is_the_best_for_these_zeros() -> None:
    """Row by row, the normal equations on the kept weights, solved in float64, leave as much error."""
    x, w = correlated(500, 40, 1), normal(10, 40)
    h, kept = x.T @ x, np.random.default_rng(0).random((10, 40)) < 0.4
    kept[3], kept[4] = True, False
    found = refit(w[None], kept[None], h[None], steps=100)[0]
    for row, its, got in zip(w.astype(np.float64), kept, found, strict=True):
        expected = np.zeros(40)
        expected[its] = np.linalg.solve(h[np.ix_(its, its)], h[its] @ row)
        np.testing.assert_allclose(got, expected, atol=2e-3)
        assert (got[~its] == 0).all()
        losses = [(row - new) @ h @ (row - new) for new in (got, expected)]
        assert losses[0] <= losses[1] * (1 + 1e-5)
    np.testing.assert_array_equal(found[3], w[3])


@pytest.mark.parametrize("pattern", [Pattern(), Pattern(kept=2, of=4), Pattern(rows=4), Pattern(rows=2, columns=2)])
def test_output_error_on_data_not_seen(pattern: Pattern) -> None:
    """SparseGPT is better than magnitude by far, and than the one-sided update of its paper."""
    k = 96
    x, y, w = correlated(2000, k, 1), correlated(2000, k, 2), normal(16, k)
    h = x.T @ x
    found = sparsegpt(w[None], h[None], 0.5, pattern)[0]
    kept = mask(np.abs(w)[None], 0.5, pattern)[0]

    def error(new: Array) -> float:
        return float(np.linalg.norm(y @ (w - new).T))

    assert (found == 0).mean() == pytest.approx(0.5, abs=0.01)
    assert error(found) < 0.75 * error(np.where(kept, w, 0))
    assert error(refit(w[None], kept[None], h[None])[0]) < error(np.where(kept, w, 0))
    if pattern.rows == 1:
        assert error(found) < error(by_surgeon(w, h + 0.01 * np.trace(h) / k * np.eye(k), 0.5, pattern)[1])


def test_groups_are_independent() -> None:
    x = [correlated(100, 12, seed) for seed in range(3)]
    w, h = normal(3, 4, 12), np.stack([each.T @ each for each in x])
    together = sparsegpt(w, h, 0.5, Pattern(kept=2, of=4))
    for g in range(3):
        alone = sparsegpt(w[g : g + 1], h[g : g + 1], 0.5, Pattern(kept=2, of=4))
        np.testing.assert_allclose(together[g], alone[0], atol=1e-4)


def test_inputs_that_are_always_zero_cost_nothing() -> None:
    x, w = correlated(200, 20, 1), normal(5, 20)
    x[:, [3, 8]] = 0
    found = sparsegpt(w[None], (x.T @ x)[None], 0.3, Pattern())[0]
    assert np.isfinite(found).all()
    assert (found[:, [3, 8]] == 0).all()
    assert (sparsegpt(w[None], np.zeros((1, 20, 20)), 0.5, Pattern()) == 0).sum() == 50


# -- Gram matrices ---------------------------------------------------------------------------------------------

LAYERS = {
    "conv": ("Conv <strides = [2,1], pads = [1,0,2,1], dilations = [1,2]>", (6, 4, 3, 2), (5, 4, 9, 8)),
    "grouped": ("Conv <group = 2, auto_pad = \"SAME_UPPER\", strides = [2,2]>", (6, 2, 3, 3), (5, 4, 9, 8)),
    "depthwise": ("Conv <group = 4, pads = [1,1,1,1]>", (4, 1, 3, 3), (5, 4, 6, 6)),
    "1d": ("Conv", (3, 4, 5), (5, 4, 20)),
    "transposed": ("ConvTranspose <strides = [2,2]>", (4, 3, 2, 2), (5, 4, 3, 3)),
    "gemm": ("Gemm <transB = 1>", (7, 4), (5, 4)),
    "matmul": ("MatMul", (4, 7), (5, 3, 4)),
}  # fmt: skip


def layer(operator: str, weight: tuple[int, ...], x: tuple[int, ...]) -> tuple[ir.Model, ir.Node]:
    dims = ",".join(map(str, ("N", *x[1:])))
    op, _, attributes = operator.partition(" ")
    body = f"g (float[{dims}] x) => (float[{','.join('ABCDE'[: len(x)])}] y) {{ y = {op} {attributes} (x, w) }}"
    model = graph(body, w=normal(*weight))
    return model, model.graph[0]


def read(model: ir.Model, node: ir.Node, data: Dataset, rows: int = 1 << 20, memory: int = 1 << 30) -> Array:
    product = Product(node, tuple(node.inputs[1].const_value.shape.numpy()))  # type: ignore[union-attr]
    statistics = Statistics(model, data, cache=None, memory=memory)
    ((at, xtx),) = layer_grams([("x", product)], statistics, len(data), lambda k: rows, seed=0)
    assert at == 0
    return xtx


@pytest.mark.parametrize("name", LAYERS)
def test_the_gram_matrix_gives_the_size_of_the_output(name: str) -> None:
    """``Σ ‖y‖²`` as ONNX Runtime computes it is ``tr(w G wᵀ)``, for every weight."""
    operator, weight, shape = LAYERS[name]
    model, node = layer(operator, weight, shape)
    x = normal(*shape, seed=3)
    xtx = read(model, node, load_data({"x": x}, model))
    product = Product(node, weight)
    for seed in range(3):
        w = normal(*weight, seed=seed)
        node.inputs[1].const_value = ir.Tensor(w)  # type: ignore[union-attr]
        size = np.sum(outputs(model, {"x": x})[0].astype(np.float64) ** 2)
        matrix = product.matrix(w).astype(np.float64)
        assert np.einsum("gkn,gkl,gln->", matrix, xtx, matrix) == pytest.approx(size, rel=1e-5)


def test_memory_changes_nothing() -> None:
    model, node = layer(*LAYERS["conv"])
    data = load_data({"x": normal(40, 4, 9, 8)}, model)
    np.testing.assert_allclose(read(model, node, data, memory=1 << 14), read(model, node, data), rtol=1e-5, atol=1e-3)


def test_rows_are_drawn_where_there_are_too_many() -> None:
    model, node = layer(*LAYERS["depthwise"])
    data = load_data({"x": np.ones((50, 4, 6, 6), np.float32)}, model)
    few = read(model, node, data, rows=500)
    assert few[0, 4, 4] == 500  # what the middle of the kernel sees is always 1
    np.testing.assert_array_equal(few, read(model, node, data, rows=500))
    assert read(model, node, data)[0, 4, 4] == 50 * 36
