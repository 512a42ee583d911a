"""``smooth-activations``: same outputs, a smaller error of the quantized product, or a reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.errors import OptionError
from onnxopt.graph import Editor
from onnxopt.model import copy, to_proto
from onnxopt.pass_base import Context, Report
from onnxopt.passes.quantize._smoothing import error, smoothing_scales
from onnxopt.passes.quantize.smooth_activations import SmoothActivations
from onnxopt.recipes import parse_pipeline
from onnxopt.runtime import Session, Snapshot
from onnxopt.stats import Channels
from tests.support import assert_same_outputs, graph

Feeds = dict[str, np.ndarray[Any, Any]]


def normal(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Observed(Context):
    """A context whose statistics are those of a few feeds, all in memory."""

    def __init__(self, editor: Editor, feeds: list[Feeds]) -> None:
        super().__init__(editor, data=feeds)  # type: ignore[arg-type]

    def statistics(self) -> Any:
        model, feeds = to_proto(self.editor.model), self.data

        class Statistics:
            def rows(self, names: Iterable[str], limit: int) -> dict[str, np.ndarray[Any, Any]]:
                shown = onnx.ModelProto.FromString(model.SerializeToString())
                shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
                session = Session(Snapshot(shown.SerializeToString(), None), threads=1)
                found = {}
                for name in names:
                    arrays = [session.run(each, [name])[0] for each in feeds]  # type: ignore[union-attr]
                    found[name] = np.concatenate([a.reshape(-1, a.shape[-1]) for a in arrays])[:limit]
                return found

            def channels(self, axes: Mapping[str, int]) -> dict[str, Channels]:
                every = self.rows(axes, 1 << 20)
                return {name: Channels(x.min(0), x.max(0), x.mean(0), x.var(0)) for name, x in every.items()}

        return Statistics()


def smooth(model: ir.Model, pass_: SmoothActivations | None = None) -> tuple[ir.Model, Report]:
    after = copy(model)
    feeds = [{"x": normal(2, 5, 8, seed=seed)} for seed in range(3)]
    report = (pass_ or SmoothActivations()).run(Observed(Editor(after), feeds))
    onnx.checker.check_model(to_proto(after), full_check=True)
    assert_same_outputs(model, after, {"x": normal(2, 5, 8, seed=9)})
    if not report.changed:
        assert to_proto(after) == to_proto(model)
    return after, report


OUTLIERS = np.array([1, 1, 80, 1, 1, 0.5, 1, 1], np.float32)

PRODUCERS = {
    "layer norm": "a = LayerNormalization(x, outliers, shift)",
    "written out": "n = LayerNormalization(x, ones) m = Mul(n, outliers) a = Add(m, shift)",
    "linear": "l = MatMul(x, wide) a = Add(l, shift)",
    "linear, relu": "l = MatMul(x, wide) m = Add(l, shift) a = Relu(m)",
}


@pytest.mark.parametrize("text", PRODUCERS.values(), ids=PRODUCERS)
def test_moves_outliers_into_all_readers(text: str) -> None:
    before = graph(
        f"g (float[2,5,8] x) => (float[2,5,6] q, float[2,5,6] k) {{ {text} q = MatMul(a, w1) k = MatMul(a, w2) }}",
        outliers=OUTLIERS, shift=normal(8), ones=np.ones(8, np.float32), wide=normal(8, 8) * OUTLIERS,
        w1=normal(8, 6), w2=normal(8, 6, seed=1),
    )  # fmt: skip
    _, report = smooth(before)
    assert report.changed == 1
    (fact,) = report.facts
    assert fact["error_after"] < 0.5 * fact["error_before"]  # type: ignore[operator]


REFUSED = {
    "Sigmoid 's' reads it": "a = LayerNormalization(x, outliers, shift) s = Sigmoid(a) k = MatMul(a, w1) q = Add(s, x)",
    "'x' is not made by a layer": "q = MatMul(x, w1)",
    "is shared": "a = LayerNormalization(x, outliers, shift) b = Add(x, shift) k = MatMul(a, w1) q = Identity(b)",
    "Gelu 'a' makes its channels": "l = MatMul(x, wide) a = Gelu(l) q = MatMul(a, w1)",
}


@pytest.mark.parametrize(("reason", "text"), REFUSED.items())
def test_says_why_not(reason: str, text: str) -> None:
    before = graph(
        f"g (float[2,5,8] x) => (float[2,5,K] q) {{ {text} }}",
        opset=20,
        ir_version=10,
        outliers=OUTLIERS, shift=normal(8), ones=np.ones(8, np.float32), wide=normal(8, 8), w1=normal(8, 6),
    )  # fmt: skip
    _, report = smooth(before)
    assert report.changed == 0
    assert reason in "\n".join(map(str, report.refusals))


def test_leaves_alone_what_would_get_worse() -> None:
    before = graph(
        "g (float[2,5,8] x) => (float[2,5,6] q) { a = LayerNormalization(x, ones) q = MatMul(a, w) }",
        ones=np.ones(8, np.float32), w=normal(8, 6) * OUTLIERS[:, None],
    )  # fmt: skip
    _, report = smooth(before, SmoothActivations(alpha=0))
    assert report.changed == 0
    assert "scaling would not help" in str(report.refusals[0])


def test_alpha_is_given_or_chosen() -> None:
    (pass_,) = parse_pipeline("smooth-activations{alpha=0.5}")
    assert pass_ == SmoothActivations(alpha=0.5)
    for wrong in (1.5, -0.1, "half"):
        with pytest.raises(OptionError, match="from 0 to 1"):
            SmoothActivations(alpha=wrong)  # type: ignore[arg-type]
    before = graph(
        "g (float[2,5,8] x) => (float[2,5,6] q) { a = LayerNormalization(x, outliers, shift) q = MatMul(a, w1) }",
        outliers=OUTLIERS, shift=normal(8), w1=normal(8, 6),
    )  # fmt: skip
    (given,) = smooth(before, SmoothActivations(alpha=0.5))[1].facts
    (chosen,) = smooth(before)[1].facts
    assert given["alpha"] == 0.5
    assert chosen["error_after"] <= given["error_after"]  # type: ignore[operator]


def test_scales_are_those_of_the_paper_up_to_a_common_factor() -> None:
    largest, w = np.array([8.0, 1.0, 0.0]), np.array([[2.0, -4.0], [1.0, 0.5], [1.0, 1.0]])
    scales = smoothing_scales(largest, [w], 0.5)
    paper = np.sqrt(largest[:2]) / np.sqrt([4.0, 1.0])
    np.testing.assert_allclose(scales[:2] / scales[0], paper / paper[0])
    assert scales[2] == 1
    assert np.isclose(np.prod(scales), 1)


def test_the_error_is_that_of_the_quantized_product() -> None:
    x, w = normal(64, 8).astype(np.float64), normal(8, 5)
    low, high = x.min(0), x.max(0)
    step = (high.max() - low.min()) / 255
    xq = np.rint(x / step) * step
    ws = np.abs(w).max(0) / 127
    wq = np.rint(w / ws) * ws
    expected = np.sum((x @ w - xq @ wq) ** 2) / np.sum((x @ w) ** 2)
    assert np.isclose(error(x.astype(np.float32), low, high, [w], np.ones(8)), expected, rtol=0.05)
