"""``self-distill``: better on what it was not trained on, and the same nodes and names."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.data import Dataset, load_data
from onnxopt.errors import OptionError
from onnxopt.graph import Editor
from onnxopt.model import copy, to_proto
from onnxopt.pass_base import Context, Report
from onnxopt.passes.distill.self_distill import SelfDistill
from tests.support import count_ops, graph, outputs
from tests.train.cases import dataset, initializers, perceptron, sectors, weights

_FAST: dict[str, Any] = {"epochs": 8, "batch": 20, "lr": 0.02}
_METHODS = ("heads", "ema", "born-again")


def _run(before: ir.Model, data: Dataset, **options: Any) -> tuple[ir.Model, Report]:
    after = copy(before)
    return after, SelfDistill(**{**_FAST, **options}).run(Context(Editor(after), data=data))


def _right(model: ir.Model) -> float:
    given = sectors(400, 1)
    return float(np.mean(outputs(model, {"x": given["x"]})[0].argmax(-1) == given["labels"]))


@pytest.mark.parametrize("method", _METHODS)
def test_learns_and_leaves_nodes_and_names(method: str) -> None:
    before = perceptron()
    after, report = _run(before, dataset(400), method=method)
    assert report.changed == 1
    assert _right(before) < 0.6
    assert _right(after) > 0.9
    first, second = to_proto(before), to_proto(after)
    for proto in (first, second):
        for tensor in proto.graph.initializer:
            tensor.raw_data = b""
    assert first == second


@pytest.mark.parametrize("method", _METHODS)
def test_the_same_bits_each_time(method: str) -> None:
    one, other = (_run(perceptron(), dataset(100), method=method, epochs=2)[0] for _ in range(2))
    assert to_proto(one) == to_proto(other)


def _convolutions() -> ir.Model:
    generator = np.random.default_rng(0)
    arrays: Any = {f"w{at}": weights(generator, 4, 1 if at == 0 else 4, 3, 3) for at in range(3)}
    arrays |= {f"{kind}{at}": np.full(4, kind in "sv", np.float32) for kind in "stmv" for at in range(3)}
    text, last = "", "x"
    for at in range(3):
        text += f"c{at} = Conv<pads = [1, 1, 1, 1]>({last}, w{at}) "
        text += f"n{at} = BatchNormalization(c{at}, s{at}, t{at}, m{at}, v{at}) r{at} = Relu(n{at}) "
        last = f"r{at}"
    text += f"p = GlobalAveragePool({last}) f = Flatten(p) q = MatMul(f, head) y = Softmax(q)"
    return graph(f"g (float[N,1,6,6] x) => (float[N,2] y) {{ {text} }}", head=weights(generator, 4, 2), **arrays)


def _stripes(model: ir.Model) -> Dataset:
    """Pictures of rows, or of columns."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 80)
    lines = np.repeat(generator.standard_normal((80, 1, 6, 1)), 6, axis=3).astype(np.float32)
    x = np.where(labels[:, None, None, None] == 1, lines, lines.swapaxes(2, 3))
    return load_data({"x": x, "labels": labels}, model)


def test_heads_on_maps_are_gone_in_the_end() -> None:
    before = _convolutions()
    after, report = _run(before, _stripes(before), heads=2, epochs=12, batch=16)
    assert report.changed == 1
    assert count_ops(after) == count_ops(before)
    assert initializers(after).keys() == initializers(before).keys()
    assert not np.array_equal(initializers(after)["w0"], initializers(before)["w0"])


def test_generations_start_anew_with_statistics_of_their_own() -> None:
    """A generation is kept whole: running means and variances are of the same as the weights."""
    before = _convolutions()
    data = _stripes(before)
    after, report = _run(before, data, method="born-again", epochs=12, batch=16, generations=2, ensemble=True)
    assert report.changed == 1
    assert {fact["generation"] for fact in report.facts} == {1, 2}
    assert not np.array_equal(initializers(after)["v1"], initializers(before)["v1"])
    judges = [(batch.labels, outputs(after, batch.feeds)[0]) for batch in data.split(0.9, 0)[1].batches()]
    right = np.mean(np.concatenate([scores.argmax(-1) == labels for labels, scores in judges]))
    assert right == max(float(fact["held_out"]) for fact in report.facts)  # type: ignore[arg-type]
    assert "generation" in report.changes[0].text


def test_zeros_that_pruning_left_are_born_again() -> None:
    before = perceptron()
    array = initializers(before)["w1"]
    array[:, ::2] = 0
    before.graph.initializers["w1"].const_value = ir.Tensor(array, name="w1")
    after, report = _run(before, dataset(400), method="born-again")
    assert report.changed == 1
    assert not initializers(after)["w1"][:, ::2].any()


def test_noise_is_for_floats() -> None:
    model = graph("g (int64[N] x) => (float[N,3] y) { e = Gather(t, x) y = MatMul(e, w) }",
                  t=weights(np.random.default_rng(0), 5, 4), w=weights(np.random.default_rng(1), 4, 3))  # fmt: skip
    data = load_data({"x": np.arange(40) % 5, "labels": np.arange(40) % 3}, model)
    _, report = _run(model, data, method="ema")
    assert "no input of floats" in report.refusals[0].text


def test_labels_are_needed() -> None:
    _, report = _run(perceptron(), load_data({"x": sectors(40)["x"]}, perceptron()))
    assert report.changed == 0
    assert "samples with their numbers" in report.refusals[0].text


@pytest.mark.parametrize(
    "options",
    [{"method": "x"}, {"temperature": 0}, {"soft": 0}, {"decay": 1}, {"noise": -1}, {"heads": 0}, {"generations": 0}],
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        SelfDistill(**options)
