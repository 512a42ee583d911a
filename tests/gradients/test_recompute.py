"""Values that are computed again: the same gradients, from fewer values that are kept, in ONNX Runtime too."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.gradients import gradient_graph
from onnxopt.model import to_proto
from onnxopt.runtime import Session, Snapshot
from onnxopt.train import CrossEntropy
from onnxopt.train.parameters import find_parameters
from onnxopt.train.trainable import Trainable, as_inputs
from tests import support
from tests.train.cases import initializers, weights

Array = np.ndarray[Any, Any]
_BLOCKS = 6
Net = Callable[[], tuple[ir.Model, Mapping[str, Array]]]


def _residual() -> tuple[ir.Model, Mapping[str, Array]]:
    """Blocks of convolutions and normalizations, with a shortcut each."""
    generator = np.random.default_rng(0)
    held: dict[str, Any] = {}
    steps, last = [], "x"
    for i in range(_BLOCKS):
        held |= {f"w{i}": generator.standard_normal((8, 8, 3, 3)).astype(np.float32) / 8}
        held |= {f"{name}{i}": np.full(8, name in "gv", np.float32) for name in "gbmv"}
        steps.append(
            f"c{i} = Conv<pads = [1, 1, 1, 1]>({last}, w{i}) n{i} = BatchNormalization(c{i}, g{i}, b{i}, m{i}, v{i})"
            f" r{i} = Relu(n{i}) s{i} = Add(r{i}, {last})"
        )
        last = f"s{i}"
    body = f"{' '.join(steps)} p = GlobalAveragePool({last}) y = Flatten(p)"
    x = generator.standard_normal((4, 8, 6, 6)).astype(np.float32)
    return support.graph(f"g (float[N,8,6,6] x) => (float[N,8] y) {{ {body} }}", **held), {"x": x}


def _transformer() -> tuple[ir.Model, Mapping[str, Array]]:
    """Blocks of attention over words."""
    generator = np.random.default_rng(0)
    held: dict[str, Any] = {"words": weights(generator, 9, 8), "one": np.ones(8, np.float32), "first": np.array([1])}
    steps, last = [], "e"
    for i in range(_BLOCKS):
        held |= {f"{name}{i}": weights(generator, 8, 8) for name in "qkvo"}
        steps.append(
            f"n{i} = LayerNormalization({last}, one) a{i} = MatMul(n{i}, q{i}) b{i} = MatMul(n{i}, k{i})"
            f" t{i} = Transpose<perm = [0, 2, 1]>(b{i}) m{i} = MatMul(a{i}, t{i}) p{i} = Softmax(m{i})"
            f" h{i} = MatMul(n{i}, v{i}) j{i} = MatMul(p{i}, h{i}) z{i} = MatMul(j{i}, o{i}) l{i} = Add(z{i}, {last})"
        )
        last = f"l{i}"
    body = f"e = Gather(words, x) {' '.join(steps)} y = ReduceMean<keepdims = 0>({last}, first)"
    model = support.graph(f"g (int64[N,5] x) => (float[N,8] y) {{ {body} }}", **held)
    return model, {"x": generator.integers(0, 9, (4, 5))}


def _recurrent() -> tuple[ir.Model, Mapping[str, Array]]:
    """Layers whose gradients have loops, with products between."""
    generator = np.random.default_rng(0)
    held: dict[str, Any] = {"first": np.array([1]), "zero": np.array([0])}
    steps, last = [], "x"
    for i in range(_BLOCKS):
        held |= {
            f"w{i}": weights(generator, 1, 16, 4),
            f"r{i}": weights(generator, 1, 16, 4),
            f"d{i}": weights(generator, 4, 4),
        }
        steps.append(
            f"h{i} = LSTM<hidden_size = 4>({last}, w{i}, r{i}) q{i} = Squeeze(h{i}, first) m{i} = MatMul(q{i}, d{i})"
            f" t{i} = Tanh(m{i})"
        )
        last = f"t{i}"
    body = f"{' '.join(steps)} y = ReduceMean<keepdims = 0>({last}, zero)"
    model = support.graph(f"g (float[3,N,4] x) => (float[N,4] y) {{ {body} }}", **held)
    return model, {"x": generator.standard_normal((3, 4, 4)).astype(np.float32)}


_NETS = pytest.mark.parametrize("net", [_residual, _transformer, _recurrent])


def _trainable(net: Net, recompute: bool) -> tuple[Trainable, dict[str, Array]]:
    model, feeds = net()
    arrays = {**feeds, "labels": np.arange(4)}
    return Trainable(model, CrossEntropy(), arrays, batch_norm="train", recompute=recompute, threads=1), arrays


@_NETS
def test_gradients_and_statistics_are_the_same(net: Net) -> None:
    found = []
    for recompute in (False, True):
        trainable, arrays = _trainable(net, recompute)
        losses = [trainable.gradient(arrays) for _ in range(2)]
        found.append((losses, {**trainable.gradients, **trainable.statistics}))
    (losses, first), (others, second) = found
    np.testing.assert_allclose(others, losses, rtol=1e-6)
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_allclose(second[name], array, rtol=0, atol=1e-6 * np.abs(array).max(), err_msg=name)


def _gradients(net: Net, recompute: bool) -> onnx.ModelProto:
    """Of the sum of squares of the output, in all parameters, which are inputs, as when they are trained."""
    model, feeds = net()
    (x,) = model.graph.inputs
    x.shape = ir.Shape(feeds["x"].shape)
    y = model.graph.outputs[0]
    square = ir.node("Mul", [y, y])
    loss = ir.node("ReduceSum", square.outputs, {"keepdims": 0})
    square.outputs[0].name, loss.outputs[0].name = "square", "loss"
    model.graph.extend([square, loss])
    wrt = find_parameters(model)
    as_inputs(model, wrt)
    proto = to_proto(gradient_graph(model, "loss", wrt, recompute=recompute).model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _kept(proto: onnx.ModelProto) -> int:
    """How many values that are made before the loss are read after it."""
    nodes = list(proto.graph.node)
    end = next(i for i, node in enumerate(nodes) if "loss" in node.output)
    made = {name for node in nodes[:end] for name in node.output}
    return len(made & {name for node in nodes[end:] for name in node.input})


@_NETS
def test_few_values_are_kept(net: Net) -> None:
    assert _kept(_gradients(net, True)) < 0.6 * _kept(_gradients(net, False))


@pytest.mark.parametrize("net", [_residual, _transformer])
def test_onnx_runtime_runs_the_layers_again_and_late(net: Net, tmp_path: Path) -> None:
    layer = "Conv" if net is _residual else "Softmax"
    proto = _gradients(net, True)
    for i, node in enumerate(proto.graph.node):
        node.name = f"{node.output[0].split('/')[0]}#{i}"
    content = Snapshot(proto.SerializeToString(), None)
    session = Session(content, optimize=True, threads=1, training=True, profile=tmp_path / "profile")
    model, feeds = net()
    arrays = {**initializers(model), **feeds}
    session.run({name: arrays[name] for name in session.inputs})
    events = json.loads(session.end_profiling().read_text())
    runs = [(e["args"]["op_name"], e["name"].split("#")[0]) for e in events if e["name"].endswith("_kernel_time")]
    first_gradient = [part for _, part in runs].index("grad")
    again = [i for i, run in enumerate(runs) if run == (layer, "again")]
    assert len(again) > _BLOCKS // 2
    assert min(again) > first_gradient


def test_what_is_drawn_is_not_drawn_again() -> None:
    step = "m{i} = Mul({last}, w{i}) d{i} = Dropout<seed = 1>(m{i}, half, yes) t{i} = Tanh(d{i})"
    steps = [step.format(i=i, last=f"t{i - 1}" if i else "x") for i in range(_BLOCKS)]
    held: dict[str, Any] = {f"w{i}": np.full(8, 1 + i / 8, np.float32) for i in range(_BLOCKS)}
    model = support.graph(
        f"g (float[4,8] x) => (float loss) {{ {' '.join(steps)} loss = ReduceSum<keepdims = 0>(t{_BLOCKS - 1}) }}",
        half=np.float32(0.5), yes=np.array(True), **held,
    )  # fmt: skip
    graph = gradient_graph(model, "loss", list(held), recompute=True).model.graph
    assert any(str(node.name).startswith("again/Tanh") for node in graph)
    assert sum(node.op_type == "Dropout" for node in graph) == _BLOCKS


def test_a_model_of_one_layer_stays_as_it_is() -> None:
    model = support.graph(
        "g (float[4,8] x) => (float loss) { y = Mul(x, w) loss = ReduceSum<keepdims = 0>(y) }",
        w=np.ones(8, np.float32),
    )  # fmt: skip
    plain, other = (gradient_graph(model, "loss", ["w"], recompute=recompute).model for recompute in (False, True))
    assert support.ops(plain) == support.ops(other)
