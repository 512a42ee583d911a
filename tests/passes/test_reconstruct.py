"""``reconstruct``: layers of a pruned model come back to what the dense one gives, or a reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx.checker
import onnx_ir as ir
import pytest

from models._common import MODELS, samples
from onnxopt.channels import ChannelGraph
from onnxopt.data import Dataset, load_data
from onnxopt.errors import OptionError
from onnxopt.evaluation import evaluate
from onnxopt.graph import Editor
from onnxopt.macs import count_macs
from onnxopt.model import copy, load, to_proto
from onnxopt.pass_base import Context, Gate, Report
from onnxopt.passes.prune._elimination import elimination_scores
from onnxopt.passes.prune.reconstruct import Reconstruct
from onnxopt.pipeline import PassManager
from onnxopt.recipes import parse_pipeline, recipe
from onnxopt.runtime import Snapshot
from tests.support import graph, outputs

Array = np.ndarray[Any, Any]


def normal(*shape: int, seed: int = 0, low_rank: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    if low_rank:
        mixed = rng.standard_normal((shape[0], low_rank)) @ rng.standard_normal((low_rank, int(np.prod(shape[1:]))))
        return mixed.reshape(shape).astype(np.float32)
    return rng.standard_normal(shape).astype(np.float32)


def removed(model: ir.Model, channels: Mapping[str, list[int]]) -> ir.Model:
    """A copy without these channels of the constants named, along their first axis."""
    pruned = copy(model)
    found = ChannelGraph(Editor(pruned))
    chosen = {g.number: channels[m.value.name or ""] for g in found.groups for m in g.members
              if m.value.name in channels and m.axis == 0}  # fmt: skip
    assert len(chosen) == len(channels)
    found.remove(chosen)
    return pruned


def array(model: ir.Model, name: str) -> Array:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def put(model: ir.Model, name: str, new: Array) -> None:
    model.graph.initializers[name].const_value = ir.tensor(new.astype(np.float32), name=name)


def rebuilt(
    pruned: ir.Model, dense: ir.Model | None, data: Any, pass_: Reconstruct | None = None, gate: Gate | None = None
) -> tuple[ir.Model, Report]:
    """The pass on a copy of ``pruned``."""
    after = copy(pruned)
    after.meta.update(pruned.meta)
    context = Context(Editor(after), gate or Gate(), None if data is None else load_data(data, pruned), original=dense)
    report = (pass_ or Reconstruct()).run(context)
    onnx.checker.check_model(to_proto(after), full_check=True)
    assert bool(report.changed) == (to_proto(after) != to_proto(pruned))
    return after, report


def distance(model: ir.Model, dense: ir.Model, feeds: Mapping[str, Array]) -> float:
    x, y = outputs(dense, feeds)[0], outputs(model, feeds)[0]
    return float(((x - y) ** 2).sum() / ((x - x.mean()) ** 2).sum())


def convolutions() -> ir.Model:
    """The inner channels depend on each other: of 6, any 3 tell the others."""
    return graph(
        "g (float[N,4,8,8] x) => (float[N,5,4,4] y) { a = Conv <pads = [1, 1, 1, 1]> (x, w, b) "
        "y = Conv <pads = [1, 0, 0, 1], strides = [2, 2], kernel_shape = [2, 2]> (a, v, c) }",
        w=normal(6, 4, 3, 3, low_rank=3), b=normal(6, seed=2), v=normal(5, 6, 2, 2, seed=3), c=normal(5, seed=4),
    )  # fmt: skip


IMAGES = {"x": normal(64, 4, 8, 8, seed=9) + 1}
UNSEEN = {"x": normal(32, 4, 8, 8, seed=10) + 1}


# -- where nothing is lost, nothing stays lost -------------------------------------------------------------------


def test_channels_that_others_tell_are_made_up_for() -> None:
    """Padding is where it is not exact: beyond the edge there are zeros and no bias."""
    dense = convolutions()
    pruned = removed(dense, {"w": [1, 4, 5]})
    after, report = rebuilt(pruned, dense, IMAGES)
    assert [note.node for note in report.changes] == ["y"]
    (fact,) = report.facts
    assert fact["error_after"] < 0.05 * fact["error_before"]  # type: ignore[operator]
    assert distance(after, dense, UNSEEN) < 0.05 * distance(pruned, dense, UNSEEN)


def gemms(op: str) -> ir.Model:
    layer = {
        "Gemm": "y = Gemm(r, v, c)",
        "Gemm, transposed": "y = Gemm <transB = 1> (r, v, c)",
        "Gemm, no bias": "y = Gemm(r, v)",
        "MatMul": "y = MatMul(r, v)",
        "MatMul and Add": "m = MatMul(r, v) y = Add(c, m)",
    }[op]
    weight = normal(6, 4, seed=3)
    bias: dict[str, Any] = {"c": normal(4, seed=4)} if ", c" in layer or "(c" in layer else {}
    return graph(
        f"g (float[N,7] x) => (float[N,4] y) {{ r = Gemm(x, w, b) {layer} }}",
        w=normal(7, 6, low_rank=3), b=normal(6, seed=2), v=weight.T.copy() if "trans" in op else weight, **bias,
    )  # fmt: skip


@pytest.mark.parametrize("op", ["Gemm", "Gemm, transposed", "Gemm, no bias", "MatMul", "MatMul and Add"])
def test_products_of_matrices(op: str) -> None:
    dense = gemms(op)
    pruned = copy(dense)
    found = ChannelGraph(Editor(pruned))
    found.remove({group.number: [0, 3, 4] for group in found.groups if not group.frozen})
    after, report = rebuilt(pruned, dense, {"x": normal(400, 7, seed=9)})
    assert report.changed == 1
    feeds = {"x": normal(50, 7, seed=10)}
    # without a bias three channels cannot give what the biases of the others gave
    bound = 0.2 if op == "MatMul" else 1e-4
    assert distance(after, dense, feeds) < bound * distance(pruned, dense, feeds)


def test_only_channels_that_are_kept_are_aimed_at() -> None:
    """The second layer loses inputs and outputs; what it gives is right in the outputs that are left."""
    dense = graph(
        "g (float[N,7] x) => (float[N,2] y) { a = Gemm(x, w, b) m = Gemm(a, v, c) r = Relu(m) y = MatMul(r, u) }",
        w=normal(7, 6, low_rank=3), b=normal(6, seed=2), v=normal(6, 8, seed=3), c=normal(8, seed=4),
        u=normal(8, 2, seed=5),
    )  # fmt: skip
    pruned = copy(dense)
    found = ChannelGraph(Editor(pruned))
    numbers = {member.value.name: group.number for group in found.groups for member in group.members}
    found.remove({numbers["b"]: [1, 2, 5], numbers["c"]: [0, 6]})
    after, _ = rebuilt(pruned, dense, {"x": normal(400, 7, seed=9)})
    feeds = {"x": normal(50, 7, seed=10)}
    exposed = []
    for model in (dense, after):
        shown = copy(model)
        shown.graph.outputs[:] = [value for node in shown.graph for value in node.outputs if value.name == "m"]
        exposed.append(outputs(shown, feeds)[0])
    scale = float(np.abs(exposed[0]).max())
    np.testing.assert_allclose(exposed[1], exposed[0][:, [1, 2, 3, 4, 5, 7]], rtol=0, atol=1e-3 * scale)


def test_depthwise_layers_are_fitted_channel_by_channel() -> None:
    dense = graph(
        "g (float[N,4,8,8] x) => (float[N,3,6,6] y) { a = Conv(x, w, b) d = Conv <group = 4> (a, k, e) "
        "r = Relu(d) y = Conv(r, v, c) }",
        w=normal(4, 4, 1, 1), b=normal(4, seed=2), k=normal(4, 1, 3, 3, seed=3), e=normal(4, seed=4),
        v=normal(3, 4, 1, 1, seed=5), c=normal(3, seed=6),
    )  # fmt: skip
    pruned = copy(dense)
    put(pruned, "w", array(dense, "w") / 2)
    put(pruned, "b", array(dense, "b") / 2)
    after, report = rebuilt(pruned, dense, IMAGES, Reconstruct(include=("d",)))
    assert [note.node for note in report.changes] == ["d"]
    np.testing.assert_allclose(array(after, "k"), 2 * array(dense, "k"), rtol=1e-2, atol=1e-2)
    assert distance(after, dense, UNSEEN) < 1e-5


def residual(*others: str) -> ir.Model:
    """A branch ``z`` and a shortcut ``t`` are added; ``others`` are outputs too."""
    results = ", ".join(f"float[N,5,8,8] {name}" for name in ("y", *others))
    return graph(
        f"g (float[N,4,8,8] x) => ({results}) {{ s = Conv(x, w, b) sr = Relu(s) t = Conv(sr, u, d) "
        "a = Conv <pads = [1, 1, 1, 1]> (x, k, e) r = Relu(a) z = Conv(r, v, c) y = Add(z, t) }",
        w=normal(6, 4, 1, 1), b=normal(6, seed=2), u=normal(5, 6, 1, 1, seed=3), d=normal(5, seed=4),
        k=normal(8, 4, 3, 3, seed=5), e=normal(8, seed=6), v=normal(5, 8, 1, 1, seed=7), c=normal(5, seed=8),
    )  # fmt: skip


def test_a_branch_makes_up_for_its_shortcut() -> None:
    """Fitted to the sum it does better than fitted to what the branch itself gave."""
    dense, gone = residual(), {"w": [0, 1], "k": [2]}
    pruned = removed(dense, gone)
    summed, report = rebuilt(pruned, dense, IMAGES)
    assert {note.node for note in report.changes} == {"z", "t"}
    watched = residual("z")  # what others read too is fitted to itself
    apart, _ = rebuilt(removed(watched, gone), watched, IMAGES)
    assert distance(summed, dense, UNSEEN) < distance(apart, dense, UNSEEN) < 0.5 * distance(pruned, dense, UNSEEN)


# -- what has to stay --------------------------------------------------------------------------------------------


def test_pruned_weights_stay_zero_and_the_bias_makes_up() -> None:
    dense = gemms("Gemm")
    pruned = copy(dense)
    sparse = array(dense, "v").copy()
    sparse[np.abs(sparse) < 0.7] = 0
    put(pruned, "v", sparse)
    data = {"x": normal(400, 7, seed=9) + 1}
    after, report = rebuilt(pruned, dense, data)
    assert [note.node for note in report.changes] == ["y"]
    assert "zeros that are to stay" in report.changes[0].text
    np.testing.assert_array_equal(array(after, "v"), sparse)
    means = [outputs(model, data)[0].mean(axis=0) for model in (dense, pruned, after)]
    assert np.abs(means[2] - means[0]).max() < 0.2 * np.abs(means[1] - means[0]).max()


def test_a_shared_weight_stays() -> None:
    dense = graph(
        "g (float[N,7] x) => (float[N,6] y, float[N,6] z) { r = Gemm(x, w, b) y = Gemm(r, v, c) s = Relu(r) "
        "z = MatMul(s, v) }",
        w=normal(7, 6, low_rank=3), b=normal(6, seed=2), v=normal(6, 6, seed=3), c=normal(6, seed=4),
    )  # fmt: skip
    pruned = removed(dense, {"b": [1, 4]})
    after, report = rebuilt(pruned, dense, {"x": normal(400, 7, seed=9)})
    np.testing.assert_array_equal(array(after, "v"), array(pruned, "v"))
    assert [note.node for note in report.changes] == ["y"]
    assert [note.node for note in report.refusals] == ["z"]
    assert "shared" in report.refusals[0].text


def test_a_layer_keeps_its_weights_where_the_error_does_not_fall() -> None:
    """The one channel that is removed is 0 on the sample that is judged by, and 5 on those that are fitted to."""
    dense = graph(
        "g (float[N,7] x) => (float[N,4] y) { r = Gemm(x, w, b) y = Gemm(r, v, c) }",
        w=np.eye(7, 6, dtype=np.float32), b=np.zeros(6, np.float32), v=normal(6, 4, seed=3), c=normal(4, seed=4),
    )  # fmt: skip
    x = np.zeros((4, 7), np.float32)
    x[_fitted(4), 1] = 5
    pruned = removed(dense, {"b": [1]})
    _, report = rebuilt(pruned, dense, {"x": x})
    assert not report.changed
    (note,) = report.refusals
    assert note.node == "y"


def _fitted(samples: int) -> list[int]:
    """Which samples are fitted to."""
    numbers = {"x": np.arange(samples, dtype=np.float32)[:, None].repeat(7, axis=1)}
    part, _ = load_data(numbers, gemms("Gemm")).split(0.75)
    return [int(v) for batch in part.batches() for v in batch.feeds["x"][:, 0]]


# -- rows that were removed, and sums behind other shapes --------------------------------------------------------

ACROSS = {  # along the other axis: a row for each channel
    "MatMul": "m = MatMul(t, v)",
    "Gemm": "f = Reshape(t, rows) g = Gemm(f, v, c) m = Reshape(g, split)",
}


@pytest.mark.parametrize("layer", ACROSS)
def test_rows_are_those_of_channels_that_are_left(layer: str) -> None:
    """What a layer makes of the channels one by one is for those that are left as it was."""
    dense = graph(
        f"g (float[N,6,4] x) => (float[N,5,3] y) {{ h = MatMul(x, w) t = Transpose <perm = [0, 2, 1]> (h) "
        f"{ACROSS[layer]} n = Transpose <perm = [0, 2, 1]> (m) y = MatMul(n, q) }}",
        w=normal(4, 8), v=normal(6, 5, seed=1), c=normal(5, seed=2), q=normal(8, 3, seed=3),
        rows=np.array([-1, 6]), split=np.array([-1, 8, 5]),
    )  # fmt: skip
    pruned = removed(dense, {"q": [1, 2, 6]})
    assert array(pruned, "w").shape == (4, 5)
    _, report = rebuilt(pruned, dense, {"x": normal(64, 6, 4, seed=5)}, Reconstruct(exclude=("y",)))
    assert not report.changed
    (note,) = report.refusals
    assert "gives what it gives in the dense model" in note.text


SUMS = {
    "Reshape": "f = Reshape(r, rows) g = Gemm(f, v, c) m = Reshape(g, split)",
    "Reshape and Transpose": (
        "u = Transpose <perm = [1, 0, 2]> (r) f = Reshape(u, rows) g = Gemm(f, v, c) k = Reshape(g, turned) "
        "m = Transpose <perm = [1, 0, 2]> (k)"
    ),
    "Transpose": (
        "u = Transpose <perm = [0, 2, 1]> (r) k = Conv(u, filters, c) m = Transpose <perm = [0, 2, 1]> (k)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("layer", SUMS)
def test_a_sum_behind_other_shapes_is_made_up_for(layer: str) -> None:
    """The shortcut is half of what it was, and what the layer reads tells the rest of it."""
    v = normal(4, 4, seed=1)
    dense = graph(
        f"g (float[N,6,4] x) => (float[N,6,4] y) {{ r = MatMul(x, w) s = MatMul(x, a) {SUMS[layer]} y = Add(s, m) }}",
        w=normal(4, 4), a=normal(4, 4, seed=3), v=v, c=normal(4, seed=2), filters=v.T[:, :, None],
        rows=np.array([-1, 4]), split=np.array([-1, 6, 4]), turned=np.array([6, -1, 4]),
    )  # fmt: skip
    pruned = copy(dense)
    put(pruned, "w", array(dense, "w") * 2)
    put(pruned, "a", array(dense, "a") / 2)
    layers = Reconstruct(include=("Gemm", "Conv"))
    after, report = rebuilt(pruned, dense, {"x": normal(64, 6, 4, seed=5)}, layers)
    assert report.changed == 1
    feeds = {"x": normal(16, 6, 4, seed=6)}
    assert distance(pruned, dense, feeds) > 0.01
    assert distance(after, dense, feeds) < 1e-6


# -- batch normalizations ----------------------------------------------------------------------------------------


def normalized(activation: str) -> ir.Model:
    """Behind the normalization each channel is a Gaussian of mean ``t`` and deviation ``s``."""
    weight = normal(6, 4, 1, 1)
    return graph(
        f"g (float[N,4,8,8] x) => (float[N,5,6,6] y) <float low = {{-0.5}}, float high = {{1}}> {{ a = Conv(x, w) "
        f"n = BatchNormalization(a, s, t, m, q) {activation} y = Conv(r, v, c) }}",
        w=weight, s=np.abs(normal(6, seed=1)), t=normal(6, seed=2) + 1, m=np.zeros(6, np.float32),
        q=(weight**2).sum(axis=(1, 2, 3)), v=normal(5, 6, 3, 3, seed=4), c=normal(5, seed=5),
    )  # fmt: skip


@pytest.mark.parametrize("activation", ["r = Identity(n)", "r = Relu(n)", "r = Clip(n, low, high)"])
def test_without_data_means_come_from_the_normalization(activation: str) -> None:
    dense = normalized(activation)
    pruned = removed(dense, {"w": [0, 2, 3]})
    after, report = rebuilt(pruned, dense, None)
    assert [note.node for note in report.changes] == ["y"]
    feeds = {"x": normal(512, 4, 8, 8, seed=9)}
    means = [outputs(model, feeds)[0].mean(axis=(0, 2, 3)) for model in (dense, pruned, after)]
    assert np.abs(means[1] - means[0]).max() > 0.5
    assert np.abs(means[2] - means[0]).max() < 0.05 * np.abs(means[1] - means[0]).max()
    assert distance(after, dense, feeds) < distance(pruned, dense, feeds)


def test_without_data_and_normalization_nothing_is_known() -> None:
    dense = convolutions()
    _, report = rebuilt(removed(dense, {"w": [1]}), dense, None)
    assert not report.changed
    assert "BatchNormalization" in report.refusals[0].text
    assert "data" in report.refusals[0].text


def test_a_normalization_that_no_layer_stands_before_is_fitted() -> None:
    dense = graph(
        "g (float[N,4,8,8] x) => (float[N,4,8,8] y) { a = Conv(x, w, b) t = Tanh(a) "
        "y = BatchNormalization(t, s, d, m, q) }",
        w=normal(4, 4, 1, 1), b=normal(4, seed=2), s=normal(4, seed=3), d=normal(4, seed=4), m=normal(4, seed=5),
        q=np.abs(normal(4, seed=6)) + 1,
    )  # fmt: skip
    pruned = copy(dense)
    put(pruned, "w", array(dense, "w") * 0.5)
    after, report = rebuilt(pruned, dense, IMAGES, Reconstruct(include=("BatchNormalization",)))
    assert [note.node for note in report.changes] == ["y"]
    y, z = (outputs(model, IMAGES)[0] for model in (dense, after))
    np.testing.assert_allclose(z.mean(axis=(0, 2, 3)), y.mean(axis=(0, 2, 3)), atol=0.02)
    assert distance(after, dense, UNSEEN) < distance(pruned, dense, UNSEEN)


# -- reasons -----------------------------------------------------------------------------------------------------


def test_without_a_dense_model_it_says_so() -> None:
    pruned = removed(convolutions(), {"w": [1]})
    _, report = rebuilt(pruned, None, IMAGES)
    assert not report.changed
    assert "dense model is not known" in report.refusals[0].text


def test_a_model_that_was_not_pruned_is_left_alone() -> None:
    _, report = rebuilt(convolutions(), convolutions(), IMAGES)
    assert not report.changed
    assert "prune it first" in report.refusals[0].text


def test_channels_that_nobody_kept_a_record_of() -> None:
    pruned = removed(convolutions(), {"w": [1]})
    pruned.meta.clear()
    _, report = rebuilt(pruned, convolutions(), IMAGES)
    assert not report.changed
    assert any("nothing says what was kept" in note.text for note in report.refusals)


def test_one_sample_cannot_be_judged() -> None:
    dense = convolutions()
    _, report = rebuilt(removed(dense, {"w": [1]}), dense, {"x": IMAGES["x"][:1]})
    assert "one sample is too few" in report.refusals[0].text


def test_options_are_checked() -> None:
    with pytest.raises(OptionError, match="seed"):
        Reconstruct(seed=-1)


# -- a trained network -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> tuple[ir.Model, ir.Model]:
    """A convolutional network on signals, and the same without half of its channels, chosen for what is to come."""
    dense, _ = PassManager(recipe("cleanup")).run(load(MODELS / "cnn1d_mnist1d" / "model.onnx"))
    pruned = copy(dense)
    editor = Editor(pruned)
    channels = ChannelGraph(editor)
    free = [group for group in channels.groups if not group.frozen]
    scores = elimination_scores(free, editor, calibration(dense))
    assert set(scores) == {group.number for group in free}
    channels.remove({number: np.argsort(each)[: len(each) // 2].tolist() for number, each in scores.items()})
    return dense, pruned


@pytest.fixture(scope="module")
def regained(network: tuple[ir.Model, ir.Model]) -> tuple[ir.Model, Report]:
    dense, pruned = network
    return rebuilt(pruned, dense, calibration(dense))


def calibration(model: ir.Model) -> Dataset:
    name = model.graph.inputs[0].name or ""
    return load_data({name: samples("mnist1d", "train")[0][:400, :, None]}, model)


def accuracy(before: ir.Model, after: ir.Model) -> tuple[float, float]:
    data = load_data(MODELS / "data" / "mnist1d_eval.npz", before)
    return evaluate(Snapshot.of(before), Snapshot.of(after), data).accuracy["probabilities"]


def test_accuracy_comes_back(network: tuple[ir.Model, ir.Model], regained: tuple[ir.Model, Report]) -> None:
    dense, pruned = network
    assert count_macs(pruned).total < 0.3 * count_macs(dense).total
    whole, lost = accuracy(dense, pruned)
    assert lost < whole - 0.2
    assert accuracy(dense, regained[0])[1] > whole - 0.1 * (whole - lost)


def test_the_same_bytes_again(network: tuple[ir.Model, ir.Model], regained: tuple[ir.Model, Report]) -> None:
    dense, pruned = network
    again, _ = rebuilt(pruned, dense, calibration(dense))
    assert to_proto(again).SerializeToString() == to_proto(regained[0]).SerializeToString()


def test_stops_where_the_gate_says(network: tuple[ir.Model, ir.Model], regained: tuple[ir.Model, Report]) -> None:
    dense, pruned = network
    _, bounded = rebuilt(pruned, dense, calibration(dense), gate=Gate(limit=2))
    assert bounded.changes == regained[1].changes[:2]


def test_runs_in_a_pipeline_behind_prune_channels() -> None:
    dense = load(MODELS / "cnn1d_mnist1d" / "model.onnx")
    name = dense.graph.inputs[0].name or ""
    data = {name: samples("mnist1d", "train")[0][:400, :, None]}
    text = "prune-channels{ratio=0.5,round_to=8,importance=l2}"
    found = []
    for pipeline in (text, f"{text},reconstruct"):
        passes = [*recipe("cleanup"), *parse_pipeline(pipeline)]
        after, report = PassManager(passes, data=data).run(dense)
        assert not report.problems
        found.append(accuracy(dense, after)[1])
    assert found[1] > found[0] + 0.1
