"""What is measured of single changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxopt.data import load_data
from onnxopt.graph import label
from onnxopt.model import load
from onnxopt.runtime import Snapshot
from onnxopt.search.bench import Bench
from onnxopt.search.node_costs import node_seconds

MODELS = Path(__file__).resolve().parents[2] / "models"


@pytest.fixture(scope="module")
def bench() -> Bench:
    model = load(MODELS / "resnet8_mnist_hard" / "model.onnx")
    fitted, compared = load_data(MODELS / "data" / "mnist_hard_eval.npz", model).take(60).split(0.5)
    return Bench(Snapshot.of(model), fitted, compared, "auto")


def test_times_are_of_one_sample(bench: Bench) -> None:
    assert [len(x) for x in bench.feeds.values()] == [1]


def test_a_layer_has_the_time_of_what_is_fused_into_it(bench: Bench) -> None:
    """ONNX Runtime names a convolution with its activation after the activation."""
    seconds = node_seconds(bench.cleaned, bench.feeds)
    for node in bench.cleaned.graph:
        if node.op_type in ("Conv", "Gemm"):
            assert seconds[label(node)] > 0
        if node.op_type in ("Relu", "Add"):
            assert seconds[label(node)] == 0
