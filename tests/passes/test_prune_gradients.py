"""What gradients say of channels, against channels that are scaled by a little."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from scipy.special import log_softmax

from onnxopt.channels import ChannelGraph
from onnxopt.data import Dataset, load_data
from onnxopt.errors import OptionError
from onnxopt.graph import Editor
from onnxopt.passes.prune._gradients import gradient_scores
from onnxopt.passes.prune.prune_channels import PruneChannels
from tests.pruning import prune
from tests.support import graph, outputs

Array = np.ndarray[Any, Any]

_FORMS = {
    "convolution": "h = Conv<pads = [1,1,1,1]>(x, a, b)",
    "normalized": "k = Conv<pads = [1,1,1,1]>(x, a) h = BatchNormalization(k, s, b, m, v)",
}
_CONSTANTS = {
    "a": (6, 2, 3, 3), "b": (6,), "c": (3, 6), "s": (6,), "m": (6,), "v": (6,)
}  # fmt: skip


def _model(form: str, scale: Array | None = None) -> ir.Model:
    """Six channels, each times ``scale`` where it is made."""
    rng = np.random.default_rng(3)
    given = {name: rng.uniform(0.2, 1, shape).astype(np.float32) for name, shape in _CONSTANTS.items()}
    if scale is not None:
        given["b"] = given["b"] * scale
        made = "s" if form == "normalized" else "a"
        given[made] = (given[made].T * scale).T
    used: dict[str, Any] = {name: array for name, array in given.items() if form == "normalized" or name in "abc"}
    text = f"g (float[N,2,5,5] x) => (float[N,3] y) {{ {_FORMS[form]} r = Tanh(h)"
    text += " p = GlobalAveragePool(r) f = Flatten(p) y = Gemm<transB = 1>(f, c) }"
    return graph(text, **used)


def _data(labelled: bool, count: int = 16) -> Dataset:
    rng = np.random.default_rng(0)
    arrays = {"x": rng.standard_normal((count, 2, 5, 5)).astype(np.float32)}
    return load_data(arrays | ({"labels": rng.integers(0, 3, count)} if labelled else {}), _model("convolution"))


def _scores(form: str, criterion: str, data: Dataset) -> Array:
    model = _model(form)
    groups = [group for group in ChannelGraph(Editor(model)).groups if not group.frozen]
    (found,) = gradient_scores(groups, criterion, model, data, seed=0).values()
    return found


def _given(form: str, batch: Any, channel: int) -> Array:
    """The derivative of the outputs in a factor of one channel."""
    ends = []
    for step in (1e-2, -1e-2):
        scale = np.ones(6, np.float32)
        scale[channel] += step
        ends.append(outputs(_model(form, scale), batch.feeds)[0].astype(np.float64))
    found: Array = (ends[0] - ends[1]) / 2e-2
    return found


@pytest.mark.parametrize("form", _FORMS)
def test_taylor_is_the_square_of_what_the_loss_moves_by(form: str) -> None:
    data = _data(labelled=True)
    expected = np.zeros(6)
    for whole in data.batches():
        for batch in whole.cut(8):
            scores = outputs(_model(form), batch.feeds)[0].astype(np.float64)
            slope = np.exp(log_softmax(scores, axis=-1))
            slope[np.arange(len(slope)), batch.labels] -= 1
            expected += [float(np.sum(slope * _given(form, batch, at)) / len(slope)) ** 2 for at in range(6)]
    np.testing.assert_allclose(_scores(form, "taylor", data), expected, rtol=2e-2, atol=1e-6)


@pytest.mark.parametrize("form", _FORMS)
def test_hessian_is_the_mean_square_of_what_outputs_move_by(form: str) -> None:
    """Random signs give it in the mean: with 4,000 samples within a few percent."""
    data = _data(labelled=False, count=256)
    batches = list(data.batches())
    expected = np.array([sum(np.sum(_given(form, batch, at) ** 2) for batch in batches) for at in range(6)])
    model = _model(form)
    groups = [group for group in ChannelGraph(Editor(model)).groups if not group.frozen]
    draws = [next(iter(gradient_scores(groups, "hessian", model, data, seed).values())) for seed in range(16)]
    found = np.mean(draws, axis=0)
    np.testing.assert_allclose(found / found.sum(), expected / expected.sum(), rtol=0.1)


def test_channels_that_do_nothing_go_first() -> None:
    scale = np.array([1, 1e-3, 1, 1e-3, 1, 1], np.float32)
    before = _model("convolution", scale)
    for criterion, labelled in (("taylor", True), ("hessian", False)):
        arrays = next(iter(_data(labelled).batches()))
        data = arrays.feeds | ({"labels": arrays.labels} if labelled else {})
        pass_ = PruneChannels(ratio=1 / 3, importance=criterion, round_to=1)  # type: ignore[arg-type]
        after, report = prune(pass_, before, data)
        assert report.changed
        left = after.graph.initializers["b"].const_value
        assert left is not None
        np.testing.assert_array_equal(left.numpy(), np.delete(_bias(before), [1, 3]))


def _bias(model: ir.Model) -> Array:
    tensor = model.graph.initializers["b"].const_value
    assert tensor is not None
    return tensor.numpy()


def test_what_is_missing_is_said() -> None:
    before = _model("convolution")
    samples = next(iter(_data(labelled=False).batches())).feeds
    with pytest.raises(OptionError, match="it needs labels; give them, or take hessian"):
        prune(PruneChannels(ratio=0.5, importance="taylor"), before, samples)
    with pytest.raises(OptionError, match="needs calibration data"):
        prune(PruneChannels(ratio=0.5, importance="hessian"), before)
