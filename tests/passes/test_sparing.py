"""Budgets of ``quantize-dynamic`` and ``quantize-weights``; the oracle of quality is numpy, the clock our own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.data import load_data
from onnxopt.errors import DataError, OptionError
from onnxopt.graph import Editor
from onnxopt.kernels import KernelTime
from onnxopt.model import copy
from onnxopt.pass_base import Context, Pass, Report
from onnxopt.passes.quantize import _placement, _sparing
from onnxopt.passes.quantize.quantize_dynamic import QuantizeDynamic
from onnxopt.passes.quantize.quantize_weights import QuantizeWeights
from onnxopt.runtime import Feeds, Ratio, Snapshot
from tests.support import count_ops, graph, outputs, run

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
HELD_OUT = {"x": RNG.normal(size=(48, 64)).astype(np.float32)}


def weight(*shape: int) -> Array:
    return RNG.normal(scale=shape[0] ** -0.5, size=shape).astype(np.float32)


def layers(factor: float = 1.0) -> ir.Model:
    """Three products; what the second reads has a channel ``factor`` times as large as others, with small weights."""
    large, gain = weight(64, 64), np.ones(64, np.float32)
    gain[7], large[7] = factor, large[7] / factor
    return graph(
        "g (float[N,64] x) => (float[N,64] y) { a = MatMul(x, w) b = Mul(a, gain) c = MatMul(b, large) "
        "r = Relu(c) y = MatMul(r, last) }",
        w=weight(64, 64), gain=gain, large=large, last=weight(64, 64),
    )  # fmt: skip


def judged(pass_: Pass, model: ir.Model, data: Any = None) -> tuple[ir.Model, Report]:
    result = copy(model)
    held_out = load_data(HELD_OUT if data is None else data, model)
    return result, pass_.run(Context(Editor(result), evaluation=held_out, original=model))


def sqnr(model: ir.Model, after: ir.Model) -> float:
    (x,), (y,) = outputs(model, HELD_OUT), outputs(after, HELD_OUT)
    return float(10 * np.log10((x.astype(np.float64) ** 2).sum() / ((x.astype(np.float64) - y) ** 2).sum()))


def reasons(report: Report) -> dict[str, str]:
    return {note.node: note.text for note in report.refusals}


def test_the_product_that_harms_stays_float() -> None:
    model = layers(400)
    everything, _ = run(QuantizeDynamic(where="everywhere"), model)
    assert sqnr(model, everything) < 20
    after, report = judged(QuantizeDynamic(where="everywhere"), model)
    assert [note.node for note in report.changes] == ["a", "y"]
    assert "for the budget: alone in INT8 it leaves" in reasons(report)["c"]
    assert count_ops(after)["MatMul"] == 1
    assert sqnr(model, after) >= 20


@pytest.mark.parametrize(("least", "count"), [(10.0, 3), (25.0, 2), (90.0, 0)])
def test_as_few_as_the_budget_takes(least: float, count: int) -> None:
    model = layers(50)
    after, report = judged(QuantizeDynamic(where="everywhere", min_sqnr=least), model)
    assert report.changed == count
    if count:
        assert sqnr(model, after) >= least


def test_weights_get_8_bits_before_they_stay_float() -> None:
    model = layers()
    plain = QuantizeWeights(min_elements=0, block_size=16, accuracy_level=0)
    (in_four, _), (in_eight, _) = (run(replace(plain, bits=bits), model) for bits in (4, 8))
    least, most = sqnr(model, in_four), sqnr(model, in_eight)
    assert most > least + 20

    def bits(least: float) -> dict[str, int]:
        after, report = judged(QuantizeWeights(**plain.options(), min_sqnr=least), model)
        assert sqnr(model, after) >= least
        written = [node for node in after.graph if node.op_type == "MatMulNBits"]
        found = {fact["node"]: fact["bits"] for fact in report.facts if "bits" in fact}
        assert sorted(node.attributes["bits"].as_int() for node in written) == sorted(found.values())  # type: ignore[type-var]
        for note in report.changes:
            assert ("8 bits for the budget" in note.text) == (found[note.node] == 8)
        return found  # type: ignore[return-value]

    assert list(bits(least - 1).values()) == [4, 4, 4]
    mixed = list(bits(least + 2).values())
    assert sorted(mixed) in ([4, 4, 8], [4, 8, 8])
    assert list(bits(most - 1).values()) == [8, 8, 8]
    wider = list(bits(most + 2).values())
    assert 0 < len(wider) < 3
    assert set(wider) == {8}


def test_without_samples_nothing_is_judged_and_that_is_said() -> None:
    model = layers()
    for pass_ in (QuantizeDynamic(where="everywhere"), QuantizeWeights(min_elements=0)):
        _, report = run(pass_, model)
        assert report.changed == 3
        assert "nothing was judged" in reasons(report)["model"]
        assert "--eval-data" in reasons(report)["model"]


@pytest.mark.parametrize("pass_", [QuantizeDynamic, QuantizeWeights])
def test_a_budget_without_samples_is_an_error(pass_: Any) -> None:
    with pytest.raises(DataError, match="only on samples"):
        run(pass_(min_sqnr=20.0), layers())
    with pytest.raises(OptionError, match="share in"):
        pass_(max_drop=1.5)


def test_labels_are_what_counts_if_there_are_some() -> None:
    model = graph("g (float[N,64] x) => (float[N,4] y) { y = MatMul(x, w) }", w=weight(64, 4))
    (scores,) = outputs(model, HELD_OUT)
    labelled = {**HELD_OUT, "labels": scores.argmax(-1)}
    _, report = judged(QuantizeWeights(min_elements=0, block_size=16, max_drop=0.0), model, labelled)
    rounded, _ = judged(QuantizeWeights(min_elements=0, block_size=16, max_drop=1.0), model, labelled)
    wrong = (outputs(rounded, HELD_OUT)[0].argmax(-1) != labelled["labels"]).any()
    assert wrong
    assert not any("in 4 bits" in note.text and "budget" not in note.text for note in report.changes)


def test_a_shared_weight_is_rounded_alike_for_all() -> None:
    model = graph(
        "g (float[N,64] x) => (float[N,64] y) { a = MatMul(x, w) b = Mul(a, k) c = MatMul(b, w) y = Add(c, x) }",
        w=weight(64, 64), k=np.array([0.01], np.float32),
    )  # fmt: skip
    for least in (15.0, 30.0, 50.0):
        after, report = judged(QuantizeWeights(min_elements=0, accuracy_level=0, min_sqnr=least), model)
        found = [fact["bits"] for fact in report.facts if "bits" in fact]
        assert len(set(found)) <= 1
        assert len(found) in (0, 2)
        assert len(found) == count_ops(after)["MatMulNBits"]


# -- time ------------------------------------------------------------------------------------------------------


def clock(monkeypatch: pytest.MonkeyPatch, cost: dict[str, float], ratio: float) -> None:
    """Kernels of these operators, or for these outputs, take so many µs; the quantized model ``ratio`` of the time."""

    def kernels(snapshot: Snapshot, feeds: Feeds, **_: object) -> list[KernelTime]:
        nodes = onnx.load_from_string(snapshot.content).graph.node
        return [KernelTime(n.name, n.op_type, cost.get(n.output[0], cost.get(n.op_type, 0)) * 1e-6, 1) for n in nodes]

    def ratios(a: object, others: Sequence[object], *_: object, **__: object) -> list[Ratio]:
        return [Ratio(ratio, ratio, ratio, ratio)] * len(others)

    monkeypatch.setattr(_sparing, "kernel_times", kernels)
    monkeypatch.setattr(_placement, "latency_ratios", ratios)


def pair() -> ir.Model:
    """Two products of one input, and one of another."""
    return graph(
        "g (float[N,64] x) => (float[N,64] y) { a = MatMul(x, u) b = MatMul(x, v) c = Add(a, b) y = MatMul(c, w) }",
        u=weight(64, 64), v=weight(64, 64), w=weight(64, 64),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rounding", "changed"), [(3.0, ["a", "b", "y"]), (9.0, ["a", "b"]), (15.0, [])]
)  # fmt: skip
def test_a_rounding_is_paid_once_by_all_who_share_it(
    monkeypatch: pytest.MonkeyPatch, rounding: float, changed: list[str]
) -> None:
    clock(monkeypatch, {"MatMul": 10, "MatMulInteger": 4, "DynamicQuantizeLinear": rounding}, 0.7)
    after, report = judged(QuantizeDynamic(), pair())
    assert [note.node for note in report.changes] == changed
    assert count_ops(after)["MatMulInteger"] == len(changed)
    for node in {"a", "b", "y"} - set(changed):
        assert "kept float: 10 µs, against 4 µs" in reasons(report)[node]


def test_a_product_that_is_slower_alone_stays_float(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, {"MatMul": 10, "MatMulInteger": 4, "b_MatMulInteger": 30}, 0.7)
    _, report = judged(QuantizeDynamic(), pair())
    assert [note.node for note in report.changes] == ["a", "y"]
    assert "against 30 µs" in reasons(report)["b"]


def test_a_model_that_is_slower_stays_float(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, {"MatMul": 10, "MatMulInteger": 4}, 1.1)
    model = pair()
    after, report = judged(QuantizeDynamic(), model)
    assert not report.changed
    assert count_ops(after) == count_ops(model)
    assert "1.10 of the time" in reasons(report)["a"]


def test_lstms_without_a_sequence_are_timed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, {"LSTM": 10, "DynamicQuantizeLSTM": 4}, 0.7)
    node = "LSTM <hidden_size = 16> (x, w, r)"
    model = graph(
        f"g (float[S,B,20] x) => (float[1,B,16] y) {{ , h = {node} , k = {node} y = Add(h, k) }}",
        w=weight(1, 64, 20), r=weight(1, 64, 16),
    )  # fmt: skip
    data = [{"x": RNG.normal(size=(5, 1, 20)).astype(np.float32)} for _ in range(8)]
    after, report = judged(QuantizeDynamic(), model, data)
    assert report.changed == 2
    assert count_ops(after)["DynamicQuantizeLSTM"] == 2


def test_what_is_measured_here_is_not_slower_here() -> None:
    """With the machine's own clock, whatever it says: each change was faster when timed."""
    model = graph(
        "g (float[N,64,256] x) => (float[N,64,4] y) { a = MatMul(x, u) b = Relu(a) c = MatMul(b, v) y = MatMul(c, w) }",
        u=weight(256, 256), v=weight(256, 256), w=weight(256, 4),
    )  # fmt: skip
    data = {"x": RNG.normal(size=(4, 64, 256)).astype(np.float32)}
    _, report = judged(QuantizeDynamic(min_sqnr=5.0), model, data)
    timed = {fact["node"]: fact for fact in report.facts if "integer_us" in fact}
    assert set(timed) == {"a", "c", "y"}
    for note in report.changes:
        assert timed[note.node]["integer_us"] < timed[note.node]["float_us"]  # type: ignore[operator]
