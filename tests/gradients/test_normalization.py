"""Normalization: by the batch, by rows, by groups of channels, by norms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from onnxopt.errors import GradientError
from onnxopt.gradients import gradient_graph
from onnxopt.model import from_proto, to_proto
from onnxopt.runtime import Session, Snapshot
from tests import support
from tests.gradients.checks import Array, check, check_node

_RNG = np.random.default_rng(0)


def _normal(*shape: int) -> Array:
    return _RNG.standard_normal(shape)


@pytest.mark.parametrize("shape", [(4, 3), (3, 2, 5), (2, 3, 4, 5), (2, 2, 3, 2, 2)])
@pytest.mark.parametrize("opset", [18, 26])
def test_batch_normalization_at_inference(shape: tuple[int, ...], opset: int) -> None:
    c = shape[1]
    arrays = [_normal(*shape), _normal(c), _normal(c), _normal(c), _RNG.uniform(0.5, 2, c)]
    check_node("BatchNormalization", *arrays, opset=opset, epsilon=1e-2)
    check_node("BatchNormalization", *arrays, wrt=[0], constants=[1, 2, 3, 4], opset=opset)


@pytest.mark.parametrize("shape", [(6, 3), (3, 2, 5), (2, 3, 4, 5), (2, 2, 3, 2, 2)])
@pytest.mark.parametrize("momentum", [0.9, 0.0, 1.0])
def test_batch_normalization_in_training(shape: tuple[int, ...], momentum: float) -> None:
    c = shape[1]
    arrays = [_normal(*shape) * 3 + 2, _normal(c), _normal(c), _normal(c), _RNG.uniform(0.5, 2, c)]
    named = dict(zip("xsbmv", arrays, strict=True))
    running: dict[str, Any] = {"training_mode": 1, "momentum": momentum, "epsilon": 1e-3}
    node = helper.make_node("BatchNormalization", list("xsbmv"), ["y", "mean", "var"], **running)
    for wrt in (["x", "s", "b"], ["s"]):
        check([node], named, wrt, ["y"], constants=["m", "v"])


def test_layers_of_batch_normalization_in_training() -> None:
    arrays: dict[str, Array] = {"x": _normal(4, 3, 5)}
    nodes, last = [], "x"
    for i in range(3):
        scale = {f"s{i}": _normal(3), f"b{i}": _normal(3), f"m{i}": np.zeros(3), f"v{i}": np.ones(3)}
        arrays.update(scale)
        outputs = [f"y{i}", f"m{i}_next", f"v{i}_next"]
        nodes.append(helper.make_node("BatchNormalization", [last, *scale], outputs, training_mode=1))
        nodes.append(helper.make_node("Mul", [f"y{i}", f"y{i}"], [f"z{i}"]))
        last = f"z{i}"
    wrt = ["x", *[f"{name}{i}" for name in "sb" for i in range(3)]]
    check(nodes, arrays, wrt, [last], constants=[f"{name}{i}" for name in "mv" for i in range(3)])


def test_refuses_a_loss_of_the_running_statistics() -> None:
    model = support.graph(
        "g (float[4, 3] x, float[3] s, float[3] b, float[3] m, float[3] v) => (float[1] loss) "
        "{ y, next, var = BatchNormalization<training_mode = 1>(x, s, b, m, v) loss = ReduceSum(next) }"
    )
    with pytest.raises(GradientError, match="running mean or variance"):
        gradient_graph(model, "loss", ["x"])


@pytest.mark.parametrize(
    ("shape", "axis", "scale", "bias"),
    [
        ((5, 6), -1, (6,), (6,)),
        ((2, 3, 4), 2, (4,), None),
        ((2, 3, 4), 1, (3, 4), (3, 4)),
        ((2, 3, 4, 2), -3, (4, 2), (1,)),
        ((2, 3, 4), 0, (2, 3, 4), (4,)),
    ],
)
@pytest.mark.parametrize("opset", [18, 26])
def test_layer_normalization(
    shape: tuple[int, ...], axis: int, scale: tuple[int, ...], bias: tuple[int, ...] | None, opset: int
) -> None:
    arrays = [_normal(*shape) * 2 + 1, _normal(*scale), *([] if bias is None else [_normal(*bias)])]
    check_node("LayerNormalization", *arrays, axis=axis, epsilon=1e-2, opset=opset)


def test_layer_normalization_that_gives_its_statistics() -> None:
    arrays = {"x": _normal(3, 5), "s": _normal(5), "b": _normal(5)}
    node = helper.make_node("LayerNormalization", list(arrays), ["y", "mean", "inverse"])
    check([node], arrays, list(arrays), ["y"])
    node = helper.make_node("LayerNormalization", list(arrays), ["y", "", "inverse"])
    check([node], arrays, list(arrays), ["y"])
    model = support.graph(
        "g (float[4, 3] x, float[3] s) => (float[1, 1] loss) "
        "{ y, mean, inverse = LayerNormalization(x, s) loss = ReduceSum(inverse) }"
    )
    with pytest.raises(GradientError, match="Mean or InvStdDev"):
        gradient_graph(model, "loss", ["x"])


@pytest.mark.parametrize(
    ("shape", "axis", "scale"), [((5, 6), -1, (6,)), ((2, 3, 4), 1, (3, 4)), ((2, 3, 4), -1, (4,))]
)
@pytest.mark.parametrize("opset", [23, 26])
def test_rms_normalization(shape: tuple[int, ...], axis: int, scale: tuple[int, ...], opset: int) -> None:
    check_node("RMSNormalization", _normal(*shape), _normal(*scale), axis=axis, epsilon=1e-2, opset=opset)


@pytest.mark.parametrize("shape", [(2, 4, 3), (2, 6, 3, 2), (3, 4, 2, 2, 2)])
@pytest.mark.parametrize("opset", [18, 20, 21, 26])
def test_group_normalization(shape: tuple[int, ...], opset: int) -> None:
    parts = 2 if opset < 21 else shape[1]
    arrays = [_normal(*shape), _normal(parts), _normal(parts)]
    check_node("GroupNormalization", *arrays, num_groups=2, epsilon=1e-2, opset=opset)


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 2), (2, 2, 3, 2, 2)])
@pytest.mark.parametrize("opset", [18, 26])
def test_instance_normalization(shape: tuple[int, ...], opset: int) -> None:
    check_node("InstanceNormalization", _normal(*shape), *_normal(2, shape[1]), epsilon=1e-2, opset=opset)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("axis", [-1, 1, 0])
def test_lp_normalization(p: int, axis: int) -> None:
    check_node("LpNormalization", _normal(3, 4, 5), p=p, axis=axis)


def test_lp_normalization_of_zeros() -> None:
    model = support.graph(
        "g (float[2, 3] x) => (float[1, 1] loss) { y = LpNormalization<axis = 1>(x) loss = ReduceSum(y) }"
    )
    found = gradient_graph(model, "loss", ["x"])
    gradient = support.outputs(found.model, {"x": np.array([[0, 0, 0], [1, 0, 0]], np.float32)})[1]
    np.testing.assert_allclose(gradient, [[0, 0, 0], [0, 1, 1]])


@pytest.mark.parametrize("axes", [None, [2], [0, 2], [-1, -2]])
def test_mean_variance_normalization(axes: list[int] | None) -> None:
    given: dict[str, Any] = {} if axes is None else {"axes": axes}
    check_node("MeanVarianceNormalization", _normal(3, 2, 4, 3), **given)


@pytest.mark.parametrize(("size", "runtime"), [(1, True), (3, True), (5, True), (4, False)])
def test_lrn(size: int, runtime: bool) -> None:
    # ONNX Runtime has odd sizes only
    check_node("LRN", _normal(2, 6, 3, 2), size=size, alpha=0.5, beta=0.7, bias=1.5, runtime=runtime)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("skip", [(2, 3, 4), (1, 3, 4), (3, 4)])
@pytest.mark.parametrize("total", [True, False])
def test_skip_layer_normalization(centred: bool, bias: bool, skip: tuple[int, ...], total: bool) -> None:
    """Against the gradient of the same from standard operators."""
    arrays: dict[str, Array] = {"x": _normal(2, 3, 4), "skip": _normal(*skip), "s": _normal(4)}
    arrays |= {"b": _normal(4)} if centred else {}
    arrays |= {"bias": _normal(4)} if bias else {}
    fused = "SkipLayerNormalization" if centred else "SkipSimplifiedLayerNormalization"
    names = ["x", "skip", "s", *(["b"] if centred else []), *(["bias"] if bias else [])]
    given = ["y", "", "", "sum"] if total else ["y"]
    one = [helper.make_node(fused, names, given, domain="com.microsoft", epsilon=1e-2)]
    parts = [helper.make_node("Add", ["x", "skip"], ["added" if bias else "sum"])]
    parts += [helper.make_node("Add", ["added", "bias"], ["sum"])] if bias else []
    op = "LayerNormalization" if centred else "RMSNormalization"
    parts.append(helper.make_node(op, ["sum", "s", *(["b"] if centred else [])], ["y"], epsilon=1e-2))
    found = [_gradients(nodes, arrays, total) for nodes in (one, parts)]
    for name in arrays:
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-4, atol=1e-5, err_msg=name)


def _gradients(nodes: list[Any], arrays: dict[str, Array], total: bool) -> dict[str, Array]:
    weights = np.random.default_rng(5).standard_normal((2, 2, 3, 4)).astype(np.float32)
    extra = [helper.make_node("Mul", ["y", "w0"], ["y_w"]), helper.make_node("Mul", ["sum", "w1"], ["sum_w"])]
    extra = extra if total else extra[:1]
    extra.append(helper.make_node("Sum", [node.output[0] for node in extra], ["all"]))
    extra.append(helper.make_node("ReduceSum", ["all"], ["loss"], keepdims=0))
    inputs = [helper.make_tensor_value_info(name, 1, x.shape) for name, x in arrays.items()]
    kept = [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)]
    graph = helper.make_graph([*nodes, *extra], "g", inputs, [helper.make_tensor_value_info("loss", 1, [])], kept)
    imports = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = from_proto(helper.make_model(graph, opset_imports=imports, ir_version=10))
    found = gradient_graph(model, "loss", list(arrays))
    feeds = {name: x.astype(np.float32) for name, x in arrays.items()}
    names = [output.name for output in to_proto(found.model).graph.output]
    results = dict(zip(names, support.outputs(found.model, feeds), strict=True))
    return {name: results[found.gradients[name]] for name in arrays}


def test_simplified_layer_normalization() -> None:
    """An operator of ONNX Runtime alone, against RMSNormalization."""
    arrays = {"x": _normal(2, 3, 4), "s": _normal(4)}
    ops = ("SimplifiedLayerNormalization", "RMSNormalization")
    found = [_gradients([helper.make_node(op, ["x", "s"], ["y"], epsilon=1e-2)], arrays, total=False) for op in ops]
    for name in arrays:
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_normalizations_in_training_do_not_write_over_each_other() -> None:
    """ONNX Runtime merges equal constants when it optimizes, and writes running statistics over those it is given."""
    model = support.graph(
        "g (float[8,4] x, float[4] s, float[4] t) => (float loss) {"
        " a, am, av = BatchNormalization<training_mode = 1>(x, s, zeros, mean1, var1) b = Mul(a, a)"
        " c, cm, cv = BatchNormalization<training_mode = 1>(b, t, zeros, mean2, var2) d = Mul(c, w)"
        " loss = ReduceSum<keepdims = 0>(d) }",
        zeros=np.zeros(4, np.float32), mean1=np.full(4, 3, np.float32), var1=np.full(4, 5, np.float32),
        mean2=np.full(4, 7, np.float32), var2=np.full(4, 9, np.float32),
        w=np.random.default_rng(1).standard_normal((8, 4)).astype(np.float32),
    )  # fmt: skip
    feeds = {"x": np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)}
    feeds |= {"s": np.full(4, 0.5, np.float32), "t": np.full(4, 2, np.float32)}
    found = gradient_graph(model, "loss", ["x", "s", "t"])
    plain = support.outputs(found.model, feeds)
    optimized = Session(Snapshot.of(found.model), optimize=True).run(feeds)
    for one, other in zip(plain, optimized, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)
