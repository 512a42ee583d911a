"""What a loss is measured by, and how sure it is."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from onnxopt.data import load_data
from onnxopt.errors import DataError, MetricError, OptionError
from onnxopt.model import load
from onnxopt.runtime import Snapshot
from onnxopt.search.metric import Metric, Yardstick, metric_for, paired, samples_needed, source
from tests.support import graph

MODELS = Path(__file__).resolve().parents[2] / "models"
RNG = np.random.default_rng(0)


def mean(means: np.ndarray) -> np.ndarray:
    found: np.ndarray = means[..., 0]
    return found


def test_interval_is_that_of_scipys_paired_bootstrap() -> None:
    before = (RNG.random(400) < 0.9).astype(float)
    after = np.where(RNG.random(400) < 0.05, 0.0, before)
    metric = Metric("accuracy", lambda *_: before, mean)
    found = paired(metric, before[:, None], after[:, None])
    oracle = stats.bootstrap(
        (before, after), lambda a, b, axis=-1: a.mean(axis) - b.mean(axis), paired=True, confidence_level=0.9,
        method="percentile", n_resamples=4000, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert found.drop == pytest.approx((before - after).mean())
    assert found.low == pytest.approx(oracle.low, abs=0.003)
    assert found.high == pytest.approx(oracle.high, abs=0.003)


@pytest.mark.parametrize("share", [0.005, 0.01, 0.1])
def test_as_many_samples_are_needed_as_rule_out_a_larger_share_by_chance(share: float) -> None:
    metric = Metric("accuracy", lambda *_: np.zeros(1), mean, counts=True)
    needed = samples_needed(metric, share)
    assert (1 - share) ** needed <= 0.05
    assert (1 - share) ** (needed // 2) > 0.05


def classifier() -> Snapshot:
    return Snapshot.of(graph("g (float[N,3] x) => (float[N,3] y) { y = Identity(x) }"))


def test_f1_is_the_mean_over_classes() -> None:
    x = RNG.normal(size=(60, 3)).astype(np.float32)
    labels = RNG.integers(0, 3, 60)
    data = load_data({"x": x, "labels": labels}, graph("g (float[N,3] x) => (float[N,3] y) { y = Identity(x) }"))
    found = Yardstick(metric_for("f1", classifier(), data), classifier(), data).loss(classifier())
    said, each = x.argmax(1), []
    for c in range(3):
        right = int(((said == c) & (labels == c)).sum())
        precision, recall = right / int((said == c).sum()), right / int((labels == c).sum())
        each.append(2 * precision * recall / (precision + recall))
    assert found.before == pytest.approx(np.mean(each))
    assert found.drop == 0
    assert -found.low == found.high == pytest.approx(1.645 * 2**0.5 / 62)


def test_metric_follows_from_labels_and_outputs() -> None:
    model = graph("g (float[N,3] x) => (float[N,3] y) { y = Identity(x) }")
    x = RNG.normal(size=(8, 3)).astype(np.float32)
    for labels, name in ((RNG.integers(0, 3, 8), "accuracy"), (x + 1, "rmse"), (None, "agreement")):
        data = load_data({"x": x} | ({} if labels is None else {"labels": labels}), model)
        assert metric_for("auto", classifier(), data).name == name
    column = graph("g (float[N,3] x) => (float[N,1] y) { y = ReduceSum<keepdims=1>(x, axes) }", axes=np.array([1]))
    assert metric_for("auto", Snapshot.of(column), load_data({"x": x}, column)).name == "noise"


def test_rmse_is_minus_the_root_of_the_mean_square() -> None:
    model = graph("g (float[N,3] x) => (float[N,3] y) { y = Identity(x) }")
    x = RNG.normal(size=(8, 3)).astype(np.float32)
    data = load_data({"x": x, "labels": x + 2}, model)
    found = Yardstick(metric_for("rmse", classifier(), data), classifier(), data).loss(classifier())
    assert found.before == pytest.approx(-2, rel=1e-6)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise ValueError('no such thing')", "failed: ValueError: no such thing"),
        ("return float('nan')", "not finite"),
    ],
)
def test_metric_of_the_user_that_fails_is_named(
    body: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_metric.py").write_text(f"def score(outputs, labels):\n    {body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("own_metric", None)
    model = load(MODELS / "cnn1d_mnist1d" / "model.onnx")
    data = load_data(MODELS / "data" / "mnist1d_eval.npz", model).take(8)
    metric = metric_for("own_metric:score", Snapshot.of(model), data)
    with pytest.raises(MetricError, match=f"own_metric:score.*{said}"):
        Yardstick(metric, Snapshot.of(model), data)


def test_metrics_that_do_not_fit_are_refused() -> None:
    model = graph("g (float[N,3] x) => (float[N,3] y) { y = Identity(x) }")
    data = load_data({"x": np.zeros((4, 3), np.float32)}, model)
    with pytest.raises(OptionError, match="one of auto, accuracy"):
        metric_for("precision", classifier(), data)
    with pytest.raises(OptionError, match="no metric 'nowhere:f'"):
        metric_for("nowhere:f", classifier(), data)
    with pytest.raises(DataError, match="needs labels"):
        metric_for("accuracy", classifier(), data)


def test_results_hang_on_what_the_metric_says_not_on_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "changing.py"
    file.write_text("def score(outputs, labels):\n    return 1.0\n")
    first = source("changing:score")
    assert source("changing:score") == first != source("accuracy")
    file.write_text("def score(outputs, labels):\n    return 2.0\n")
    assert source("changing:score") != first
    sys.modules.pop("changing")
    with pytest.raises(OptionError, match="there is no metric 'nowhere:score'"):
        source("nowhere:score")
