"""``prune-channels``: what goes and what stays, how much, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import onnxopt.passes.prune._structured as module
from onnxopt.errors import DataError, OptionError
from onnxopt.graph import Editor
from onnxopt.macs import count_macs
from onnxopt.model import copy, load, to_proto
from onnxopt.pass_base import Context, Gate
from onnxopt.passes.prune.prune_channels import PruneChannels
from onnxopt.pipeline import PassManager
from onnxopt.recipes import recipe
from onnxopt.runtime import Feeds, Ratio
from tests.pruning import prune, refusals
from tests.support import graph, outputs

MODELS = Path(__file__).parents[2] / "models"
EVALUATION = {name: e["eval"] for name, e in json.loads((MODELS / "models.json").read_text()).items()}
RNG = np.random.default_rng(5)
THREE_LAYERS = """g (float[N,8] x) => (float[N,4] y)
    { h = MatMul(x, a) r = Relu(h) k = MatMul(r, b) s = Relu(k) y = MatMul(s, c) }"""
X = RNG.normal(size=(64, 8)).astype(np.float32)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.normal(size=shape).astype(np.float32)


def layers(**initializers: Any) -> ir.Model:
    """Two layers with 32 channels between them."""
    weights = {"a": normal(8, 32), "b": normal(32), "c": normal(32, 4), **initializers}
    return graph(
        "g (float[N,8] x) => (float[N,4] y) { h = MatMul(x, a) s = Add(h, b) r = Relu(s) y = MatMul(r, c) }", **weights
    )


def convolutions() -> ir.Model:
    return graph(
        "g (float[N,16,8,8] x) => (float[N,4,8,8] y) "
        "{ h = Conv<pads=[1,1,1,1]>(x, a, b) r = Relu(h) d = Conv<pads=[1,1,1,1], group=48>(r, e) y = Conv(d, c) }",
        a=normal(48, 16, 3, 3), b=normal(48), c=normal(4, 48, 1, 1), e=normal(48, 1, 3, 3),
    )  # fmt: skip


def shapes(model: ir.Model) -> dict[str, tuple[int, ...]]:
    return {n: tuple(v.const_value.shape.numpy()) for n, v in model.graph.initializers.items() if v.const_value}


def test_removes_the_channels_of_the_least_weights() -> None:
    """The oracle: the same sums of squares, written out."""
    model = layers()
    pruned, report = prune(PruneChannels(ratio=0.25, importance="l2"), model)
    assert shapes(pruned) == {"a": (8, 24), "b": (24,), "c": (24, 4)}
    a, b, c = (model.graph.initializers[n].const_value.numpy() for n in "abc")  # type: ignore[union-attr]
    stays = np.sort(np.argsort((a**2).sum(axis=0) + (c**2).sum(axis=1))[8:])
    (y,) = outputs(pruned, {"x": X})
    np.testing.assert_allclose(y, np.maximum(X @ a[:, stays] + b[stays], 0) @ c[stays], rtol=1e-4, atol=1e-4)
    assert report.changed == 1
    assert report.changes[0].node == "h"
    assert "keeps 24 of 32" in report.changes[0].text


@pytest.mark.parametrize(
    ("ratio", "round_to", "kept"), [(0.3, 1, 22), (0.3, 8, 24), (0.9, 0, 8), (0.99, 5, 5), (0.3, 0, 24)]
)
def test_rounds(ratio: float, round_to: int, kept: int) -> None:
    pruned, _ = prune(PruneChannels(ratio=ratio, round_to=round_to), layers())
    assert shapes(pruned)["a"] == (8, kept)


def test_convolutions_keep_blocks_of_16() -> None:
    pruned, _ = prune(PruneChannels(ratio=0.4), convolutions())
    assert shapes(pruned) == {"a": (32, 16, 3, 3), "b": (32,), "c": (4, 32, 1, 1), "e": (32, 1, 3, 3)}
    assert outputs(pruned, {"x": normal(2, 16, 8, 8)})[0].shape == (2, 4, 8, 8)
    assert next(node for node in pruned.graph if len(node.attributes) > 1).attributes["group"].as_int() == 32


def test_least() -> None:
    pruned, _ = prune(PruneChannels(ratio=0.9, least=12, round_to=1), layers())
    assert shapes(pruned)["a"] == (8, 12)


def test_what_varies_stays() -> None:
    """Channels that the data never move contribute nothing but a constant, however large their weights."""
    a, b = normal(8, 32), np.zeros(32, np.float32)
    a[:, ::2] *= 0.01
    b[::2] = -100.0  # behind Relu, these are always 0
    model = layers(a=a, b=b, c=np.where(np.arange(32)[:, None] % 2 == 0, 100.0, 1.0).astype(np.float32) * normal(32, 4))
    pruned, _ = prune(PruneChannels(ratio=0.5), model, {"x": X})
    np.testing.assert_allclose(outputs(pruned, {"x": X})[0], outputs(model, {"x": X})[0], rtol=1e-4, atol=1e-4)
    blind, _ = prune(PruneChannels(ratio=0.5), model)
    assert np.abs(outputs(blind, {"x": X})[0] - outputs(model, {"x": X})[0]).max() > 0.1


@pytest.mark.parametrize("importance", ["l1", "l2", "activation", "fpgm", "bn-scale", "random"])
def test_every_importance_gives_the_same_bytes_twice(importance: Any) -> None:
    first, second = (
        prune(PruneChannels(ratio=0.5, importance=importance), layers_of_seed(), {"x": X})[0] for _ in "ab"
    )
    assert to_proto(first) == to_proto(second)
    assert shapes(first)["a"] == (8, 16)


def layers_of_seed() -> ir.Model:
    rng = np.random.default_rng(11)
    sizes = {"a": (8, 32), "b": (32,), "c": (32, 4)}
    return layers(**{name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()})


def test_scales_of_normalizations() -> None:
    scale = np.linspace(1, 2, 8, dtype=np.float32)
    scale[3] = 0.001
    model = graph(
        "g (float[N,4,4,4] x) => (float[N,2,4,4] y) "
        "{ h = Conv(x, a) n = BatchNormalization(h, s, o, m, v) y = Conv(n, c) }",
        a=normal(8, 4, 1, 1), s=scale, o=normal(8), m=normal(8), v=np.ones(8, np.float32), c=normal(2, 8, 1, 1),
    )  # fmt: skip
    pruned, _ = prune(PruneChannels(ratio=0.1, importance="bn-scale", round_to=1), model)
    left = pruned.graph.initializers["s"].const_value
    assert left is not None
    np.testing.assert_array_equal(left.numpy(), np.delete(scale, 3))


@pytest.mark.parametrize("scope", ["local", "global"])
def test_a_ratio_that_can_be_reached_exactly_is(scope: Any) -> None:
    """Of 49 channels each brings the same arithmetic, and ``1 − k / 49`` is no binary number."""
    model = layers(a=normal(8, 49), b=normal(49), c=normal(49, 4))
    for kept in range(1, 49):
        pass_ = PruneChannels(ratio=1 - kept / 49, of="macs", scope=scope, importance="l2", round_to=1)
        assert shapes(prune(pass_, model)[0])["a"] == (8, kept)


def test_ratio_of_parameters_and_macs() -> None:
    model, _ = PassManager(recipe("cleanup"), verify="off").run(load(MODELS / "resnet8_mnist_hard" / "model.onnx"))
    for of in ("parameters", "macs"):
        pruned, _ = prune(PruneChannels(ratio=0.4, of=of, round_to=1), model)
        if of == "macs":
            left = count_macs(pruned).total / count_macs(model).total
        else:
            left = sum(np.prod(s) for s in shapes(pruned).values()) / sum(np.prod(s) for s in shapes(model).values())
        assert 0.5 < left <= 0.6


def test_ratio_of_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which time is the number of parameters: the least cut is found that is fast enough."""

    def clock(before: ir.Model, after: ir.Model, feeds: Feeds) -> Ratio:
        share = shapes(after)["a"][1] / shapes(before)["a"][1]
        return Ratio(share, share, share, share)

    monkeypatch.setattr(module, "measured", clock)
    pruned, _ = prune(PruneChannels(ratio=0.5, of="latency", round_to=1), layers())
    assert 14 <= shapes(pruned)["a"][1] <= 16
    with pytest.raises(OptionError, match=r"cannot be reached.*0\.25 times"):
        prune(PruneChannels(ratio=0.9, of="latency"), layers())


def test_global_scope_takes_from_the_layer_that_is_worth_least() -> None:
    model = graph(
        THREE_LAYERS,
        a=np.concatenate([normal(8, 4), 0.01 * normal(8, 12)], axis=1),
        b=np.ones((16, 16), np.float32) + 0.01 * normal(16, 16),
        c=normal(16, 4),
    )  # fmt: skip
    pruned, _ = prune(PruneChannels(ratio=0.3, scope="global", round_to=1, importance="l1"), model)
    assert shapes(pruned)["a"][1] < shapes(pruned)["b"][1]


def test_parts_of_a_layer_are_ranked_together() -> None:
    """Both halves of what one layer makes: 16 of its 32 channels go, from whichever half."""
    a = normal(8, 32)
    a[:, :16] *= 0.1
    model = graph(
        "g (float[N,8] x) => (float[N,4] y) "
        "{ h = MatMul(x, a) p, q = Split<axis=1, num_outputs=2>(h) "
        "y1 = MatMul(p, b) y2 = MatMul(q, c) y = Add(y1, y2) }",
        a=a, b=normal(16, 4), c=normal(16, 4),
    )  # fmt: skip
    pruned, _ = prune(PruneChannels(ratio=0.5, round_to=1, importance="l1"), model)
    found = shapes(pruned)
    assert found["a"] == (8, 16)
    assert found["b"][0] + found["c"][0] == 16
    assert found["b"][0] < found["c"][0]
    assert outputs(pruned, {"x": X})[0].shape == (64, 4)


def test_ratios_of_single_groups() -> None:
    model = graph(
        THREE_LAYERS,
        a=normal(8, 16), b=normal(16, 16), c=normal(16, 4),
    )  # fmt: skip
    pruned, report = prune(PruneChannels(ratio=0.5, ratios=(("h", 0.0), ("none", 0.2)), round_to=1), model)
    assert (shapes(pruned)["a"][1], shapes(pruned)["b"][1]) == (16, 8)
    assert "no group that may be pruned is called 'none'" in refusals(report)


def test_slower_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "measured", lambda before, after, feeds: Ratio(1.3, 1.2, 1.4, 1.3))
    pruned, report = prune(PruneChannels(ratio=0.5), layers())
    assert report.changed == 0
    assert "takes 1.30 times as long" in refusals(report)
    assert shapes(pruned) == shapes(layers())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ratio": 0.0}, "share in"),
        ({"ratio": 1.0}, "share in"),
        ({"ratio": -1.0}, "share in"),
        ({"of": "weight"}, "one of channels"),
        ({"importance": "best"}, "one of auto, l1"),
        ({"scope": "layer"}, "one of local"),
        ({"round_to": -1}, "from 0 on"),
        ({"least": 0}, "from 1 on"),
        ({"seed": -1}, "from 0 on"),
        ({"ratios": (("a", 1.0),)}, "shares in"),
    ],
)
def test_bad_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        PruneChannels(**options)


def test_importance_without_data() -> None:
    with pytest.raises(OptionError, match="needs calibration data"):
        prune(PruneChannels(importance="activation"), layers())


def test_target_out_of_reach_says_what_can_be_reached() -> None:
    with pytest.raises(OptionError, match=r"cannot be reached: at most 75\.0%"):
        prune(PruneChannels(ratio=0.9, of="parameters", round_to=8), layers())
    with pytest.raises(OptionError, match=r"cannot be reached"):
        prune(PruneChannels(ratio=0.9999, of="parameters", least=4), layers())


def test_a_target_out_of_the_reach_of_what_kernels_want_is_reached_in_finer_steps() -> None:
    after, report = prune(PruneChannels(ratio=0.9, of="parameters"), layers())
    assert report.changed

    def parameters(model: ir.Model) -> int:
        return sum(v.const_value.size for v in model.graph.initializers.values() if v.const_value is not None)

    assert parameters(after) <= 0.1 * parameters(layers())


def test_include_and_exclude_that_leave_nothing() -> None:
    for filters in ({"include": ("nothing*",)}, {"exclude": ("*",)}):
        _, report = prune(PruneChannels(**filters), layers())  # type: ignore[arg-type]
        assert report.changed == 0
        assert "no layer that may be changed" in refusals(report)


def test_frozen_groups_say_why() -> None:
    model = graph("g (float[N,8] x) => (float[N,32] y) { y = MatMul(x, a) }", a=normal(8, 32))
    _, report = prune(PruneChannels(), model)
    assert report.changed == 0
    assert "its 32 channels stay: it is an axis of the output 'y'" in refusals(report)


def test_small_groups_say_why() -> None:
    _, report = prune(PruneChannels(round_to=64), layers())
    assert "its 32 channels stay, in multiples of 64" in refusals(report)


def test_unknown_operators_freeze() -> None:
    model = graph(
        "g (float[N,8] x) => (float[N,4] y) { h = MatMul(x, a) r = custom.Thing(h) y = MatMul(r, c) }",
        extra=', "custom": 1', a=normal(8, 32), c=normal(32, 4),
    )  # fmt: skip
    result = copy(model)
    report = PruneChannels().run(Context(Editor(result)))
    assert report.changed == 0
    assert "no rule says which slices" in refusals(report)


def test_quantized_models_are_pruned_through_their_quantizers() -> None:
    weight = RNG.integers(-127, 127, (8, 32)).astype(np.int8)
    model = graph(
        """g (float[N,8] x) => (float[N,4] y) {
            qx = QuantizeLinear(x, sx, zx) dx = DequantizeLinear(qx, sx, zx)
            da = DequantizeLinear<axis=1>(a, sa, za) h = MatMul(dx, da)
            qh = QuantizeLinear(h, sx, zx) dh = DequantizeLinear(qh, sx, zx) y = MatMul(dh, c) }""",
        sx=np.float32(0.05), zx=np.uint8(128), a=weight, sa=np.full(32, 0.01, np.float32), za=np.zeros(32, np.int8),
        c=normal(32, 4),
    )  # fmt: skip
    pruned, report = prune(PruneChannels(ratio=0.5), model)
    assert report.changed == 1
    found = shapes(pruned)
    assert (found["a"], found["sa"], found["za"], found["c"]) == ((8, 16), (16,), (16,), (16, 4))
    assert outputs(pruned, {"x": X})[0].shape == (64, 4)


def test_a_weight_used_at_two_axes() -> None:
    """Rows and columns of one matrix are the same channels: both go."""
    model = graph(
        "g (float[N,32] x, float[32] z) => (float[N,4] y) "
        "{ h = MatMul(x, i) a = MatMul(h, w) b = Relu(a) d = Add(h, b) y = MatMul(d, c) }".replace(", float[32] z", ""),
        i=normal(32, 32), w=normal(32, 32), c=normal(32, 4),
    )  # fmt: skip
    pruned, _ = prune(PruneChannels(ratio=0.5), model)
    assert shapes(pruned) == {"i": (32, 16), "w": (16, 16), "c": (16, 4)}
    assert outputs(pruned, {"x": normal(3, 32)})[0].shape == (3, 4)


def test_gate_stops_between_groups() -> None:
    model = graph(
        THREE_LAYERS,
        a=normal(8, 16), b=normal(16, 16), c=normal(16, 4),
    )  # fmt: skip
    result = copy(model)
    report = PruneChannels(ratio=0.5).run(Context(Editor(result), Gate(limit=1)))
    assert report.changed == 1
    assert shapes(result) == {"a": (8, 8), "b": (8, 16), "c": (16, 4)}


@pytest.mark.parametrize(
    "name", ["resnet8_mnist_hard", "transformer_sentiment", "bilstm_japanese_vowels", "cnn1d_mnist1d"]
)
def test_trained_models_get_smaller_and_run(name: str) -> None:
    """Through the manager, with data: parameters fall, the interface stays, and what was lost is measured."""
    model = load(MODELS / name / "model.onnx")
    with np.load(MODELS / EVALUATION[name], allow_pickle=False) as arrays:
        inputs = {v.name: arrays[v.name][:64] for v in model.graph.inputs}
    manager = PassManager([*recipe("cleanup"), PruneChannels(ratio=0.5)], data=inputs)
    result, report = manager.run(model)
    assert sum(np.prod(s) for s in shapes(result).values()) < 0.8 * sum(np.prod(s) for s in shapes(model).values())
    assert not report.problems
    assert report.quality


def test_in_steps_as_many_channels_go() -> None:
    """Each step takes the same share of what the one before has left."""
    model = layers()
    pruned, report = prune(PruneChannels(ratio=0.75, round_to=1, steps=2), model, {"x": X})
    assert [fact["kept"] for fact in report.facts if "kept" in fact] == [16, 8]
    assert any(fact.get("fitted") == "all" for fact in report.facts), "layers are fitted anew in between"
    once, _ = prune(PruneChannels(ratio=0.75, round_to=1), model, {"x": X})
    assert shapes(pruned) == shapes(once)


def test_only_the_last_step_rounds() -> None:
    pruned, report = prune(PruneChannels(ratio=0.5, round_to=16, steps=4, importance="l2"), layers())
    assert shapes(pruned)["a"] == (8, 16)
    assert report.changed


def _taught() -> tuple[ir.Model, dict[str, np.ndarray[Any, Any]]]:
    return layers(), {"x": np.random.default_rng(9).normal(size=(400, 8)).astype(np.float32)}


def test_training_stands_between_steps() -> None:
    """Each step ends with epochs of training, and with the channels of its share."""
    model, data = _taught()
    options: dict[str, Any] = {"ratio": 0.75, "round_to": 1, "batch": 32, "lr": 0.01, "timed": False}
    pruned, report = prune(PruneChannels(steps=2, epochs=3, **options), model, data)
    assert shapes(pruned) == {"a": (8, 8), "b": (8,), "c": (8, 4)}
    assert [(fact["step"], fact["kept"]) for fact in report.facts if "kept" in fact] == [(1, 16), (2, 8)]
    epochs = [(fact["step"], fact["epoch"]) for fact in report.facts if "epoch" in fact]
    assert epochs == [(step, epoch) for step in (1, 2) for epoch in (1, 2, 3)]
    at_once, _ = prune(PruneChannels(epochs=6, **options), model, data)
    assert shapes(at_once) == shapes(pruned)
    untrained, _ = prune(PruneChannels(steps=2, **options), model, data)
    (y,) = outputs(model, data)
    errors = [np.square(outputs(each, data)[0] - y).mean() / y.var() for each in (pruned, at_once, untrained)]
    print("error of the outputs: in steps with training {:.3f}, at once {:.3f}, without {:.3f}".format(*errors))
    assert errors[0] < errors[2]
    again, _ = prune(PruneChannels(steps=2, epochs=3, **options), model, data)
    assert to_proto(again) == to_proto(pruned)


def test_nothing_is_trained_where_nothing_was_removed() -> None:
    model, data = _taught()
    pass_ = PruneChannels(ratio=0.5, ratios=(("*", 0.0),), steps=2, epochs=1, batch=32)
    pruned, report = prune(pass_, model, data)
    assert shapes(pruned) == shapes(model)
    assert not any("epoch" in fact for fact in report.facts)


def test_training_between_steps_wants_data_and_options_in_range() -> None:
    with pytest.raises(DataError, match=r"prune-channels\.epochs needs samples"):
        prune(PruneChannels(epochs=1), layers())
    with pytest.raises(OptionError, match=r"prune-channels\.epochs: distill: a batch is one sample or more"):
        PruneChannels(epochs=1, batch=0)
