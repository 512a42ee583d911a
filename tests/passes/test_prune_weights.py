"""``prune-weights``: zeros where they should be and nowhere else, the rest as good as can be, and no silent no-op."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx_ir as ir
import onnxruntime as ort
import pytest

from models._common import MODELS, samples
from onnxopt.data import load_data
from onnxopt.errors import OptionError
from onnxopt.evaluation import evaluate
from onnxopt.graph import Editor
from onnxopt.model import copy, load, to_proto
from onnxopt.pass_base import Context, Report
from onnxopt.passes.prune.prune_weights import PruneWeights
from onnxopt.pipeline import PassManager
from onnxopt.recipes import parse_pipeline
from onnxopt.runtime import Snapshot
from onnxopt.sparsity import masks, pruned
from tests.support import graph, outputs

Array = np.ndarray[Any, Any]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def prune(model: ir.Model, data: Any = None, **options: Any) -> tuple[ir.Model, Report]:
    """The pass on a copy, which stays valid."""
    after = copy(model)
    dataset = None if data is None else load_data(data, model)
    report = PruneWeights(**options).run(Context(Editor(after), data=dataset, original=model))
    onnx.checker.check_model(to_proto(after), full_check=True)
    assert (to_proto(after) == to_proto(model)) == (report.changed == 0)
    return after, report


def constants(model: ir.Model) -> dict[str, Array]:
    return {name: v.const_value.numpy() for name, v in model.graph.initializers.items() if v.const_value is not None}


def reasons(report: Report) -> str:
    return "\n".join(map(str, report.refusals))


def linear(k: int = 12, n: int = 8, **options: Any) -> ir.Model:
    return graph(f"g (float[N,{k}] x) => (float[N,{n}] y) {{ y = MatMul(x, w) }}", w=normal(k, n), **options)


def network() -> ir.Model:
    """One of each operator that has a weight."""
    return graph(
        """g (float[N,8,6,6] x) => (float[N,5] y, float[T,D,N,4] s) {
            a = Conv <pads = [1,1,1,1]> (x, full, bias)
            b = Conv <group = 8> (a, deep)
            c = Conv <group = 2> (b, grouped)
            d = ConvTranspose <strides = [2,2]> (c, up)
            e = ConvTranspose (d, over)
            f = Flatten(e)
            g1 = Gemm <transB = 1> (f, rows)
            g2 = Gemm (g1, columns)
            y = MatMul(g2, w)
            seq = Unsqueeze(y, first)
            s, h = GRU <hidden_size = 4, direction = "bidirectional"> (seq, gw, gr)
        }""",
        full=normal(8, 8, 3, 3), bias=normal(8), deep=normal(8, 1, 3, 3), grouped=normal(8, 4, 1, 1),
        up=normal(8, 4, 2, 2), over=normal(4, 2, 3, 3), rows=normal(16, 200), columns=normal(16, 8), w=normal(8, 5),
        gw=normal(2, 12, 5), gr=normal(2, 12, 4), first=np.array([0]),
    )  # fmt: skip


WEIGHTS = {"full", "deep", "grouped", "up", "over", "rows", "columns", "w", "gw", "gr"}
AXES = {"full": 1, "grouped": 1, "up": 0, "over": 0, "rows": 1, "columns": 0, "w": 0, "gr": 2}
"""Along which axis the layer sums (of gw and deep the size is no multiple of 4)."""


# -- which weights ---------------------------------------------------------------------------------------------


def test_the_least_of_each_layer_go_and_all_else_stays() -> None:
    before = network()
    after, report = prune(before, sparsity=0.3, method="magnitude", allocation="uniform")
    for name, w in constants(before).items():
        expected = w
        if name in WEIGHTS:
            order = np.argsort(np.abs(w).reshape(-1))
            expected = w.copy()
            expected.reshape(-1)[order[: round(0.3 * w.size)]] = 0
        np.testing.assert_array_equal(constants(after)[name], expected, err_msg=name)
    assert [n.op_type for n in after.graph] == [n.op_type for n in before.graph]
    assert report.changed == len(WEIGHTS) + 1
    assert not report.refusals
    assert {fact["weight"] for fact in report.facts} == WEIGHTS


@pytest.mark.parametrize("method", ["magnitude", "random", "auto"])
def test_n_of_m_lies_along_what_the_layer_sums(method: str) -> None:
    before = network()
    x = normal(6, 8, 6, 6)
    after, report = prune(before, {"x": x}, pattern="2:4", method=method)
    for name, axis in AXES.items():
        w = np.moveaxis(constants(after)[name], axis, -1)
        if name == "grouped":  # each group has four input channels of its own
            assert w.shape[-1] == 4
        fours = w.reshape(-1, 4)
        assert ((fours != 0).sum(axis=1) <= 2).all(), name
        assert (fours == 0).mean() == 0.5
    np.testing.assert_array_equal(constants(after)["deep"], constants(before)["deep"])
    assert "its 9 inputs an output are not divisible by 4" in reasons(report)
    assert "its 5 inputs an output are not divisible by 4" in reasons(report)
    outputs(after, {"x": x})


def test_blocks() -> None:
    after, report = prune(network(), pattern="4x2", method="magnitude", allocation="uniform", include=("Gemm", "GRU"))
    rows, columns = constants(after)["rows"], constants(after)["columns"].T
    for w in (rows, columns, *constants(after)["gr"]):
        blocks = w.reshape(len(w) // 4, 4, -1, 2).swapaxes(1, 2).reshape(-1, 8)
        assert set((blocks == 0).sum(axis=1)) == {0, 8}
    assert "its 5 inputs an output are not divisible by 2, as the pattern 4x2 needs" in reasons(report)


@pytest.mark.parametrize("allocation", ["global", "erk", "lamp"])
def test_allocations_differ_by_layer_and_meet_the_target(allocation: str) -> None:
    before = network()
    after, _ = prune(before, sparsity=0.6, method="magnitude", allocation=allocation)
    sizes = {name: constants(after)[name].size for name in WEIGHTS}
    zeros = {name: int((constants(after)[name] == 0).sum()) for name in WEIGHTS}
    assert sum(zeros.values()) == pytest.approx(0.6 * sum(sizes.values()), abs=len(WEIGHTS))
    assert len({round(zeros[name] / sizes[name], 2) for name in WEIGHTS}) > 3
    if allocation == "global":
        bound = max(np.abs(constants(before)[n][constants(after)[n] == 0]).max() for n in WEIGHTS if zeros[n])
        kept = np.concatenate([np.abs(constants(after)[n][constants(after)[n] != 0]) for n in WEIGHTS])
        assert bound <= kept.min() * (1 + 1e-6)


def test_ratios_by_layer() -> None:
    ratios = (("ro*", 0.9), ("Gemm", 0.0), ("Conv", 0.25))
    pass_ = PruneWeights(ratios=ratios, sparsity=0.5, allocation="uniform")
    after, report = prune(network(), ratios=(*ratios, ("nothing", 0.1)), sparsity=0.5, allocation="uniform")
    zeros = {name: float((constants(after)[name] == 0).mean()) for name in WEIGHTS}
    assert zeros["rows"] == 0.9
    assert zeros["columns"] == 0
    assert zeros["full"] == 0.25
    assert zeros["w"] == 0.5
    assert "no layer that may be pruned is called 'nothing'" in reasons(report)
    assert "its share of zeros is 0" in reasons(report)
    assert parse_pipeline(str(pass_)) == [pass_]


def test_random_does_not_depend_on_what_else_is_pruned() -> None:
    one, _ = prune(network(), method="random", allocation="uniform", include=("MatMul",))
    all_, _ = prune(network(), method="random", allocation="uniform")
    other, _ = prune(network(), method="random", allocation="uniform", seed=1)
    np.testing.assert_array_equal(constants(one)["w"], constants(all_)["w"])
    assert (constants(all_)["w"] != constants(other)["w"]).any()


def test_wanda_is_its_formula_on_a_conv() -> None:
    before = graph("g (float[N,4,5,5] x) => (float[N,3,3,3] y) { y = Conv(x, w) }", w=normal(3, 4, 3, 3))
    x = normal(20, 4, 5, 5) * np.array([0.1, 1, 3, 1], np.float32).reshape(1, 4, 1, 1)
    after, _ = prune(before, {"x": x}, method="wanda", sparsity=0.5)
    w = constants(before)["w"]
    seen = np.array([[[np.linalg.norm(x[:, c, i : i + 3, j : j + 3]) for j in range(3)] for i in range(3)]
                     for c in range(4)])  # fmt: skip
    scores = (np.abs(w) * seen).reshape(3, -1)
    expected = w.reshape(3, -1).copy()
    np.put_along_axis(expected, np.argsort(scores, axis=1)[:, :18], 0, axis=1)
    np.testing.assert_array_equal(constants(after)["w"].reshape(3, -1), expected)


# -- how good the rest is --------------------------------------------------------------------------------------


def test_errors_and_sizes_are_what_is_there() -> None:
    """The output error is that of ONNX Runtime's outputs; bytes are those of zlib."""
    before = network()
    x = normal(40, 8, 6, 6)
    for method in ("magnitude", "wanda", "sparsegpt"):
        after, report = prune(before, {"x": x}, method=method, include=("full", "Conv"), exclude=("b", "c"))
        (fact,) = report.facts
        old, new = constants(before)["full"], constants(after)["full"]
        model = graph("g (float[N,8,6,6] x) => (float[N,8,6,6] y) { y = Conv <pads = [1,1,1,1]> (x, w) }", w=old)
        exact = outputs(model, {"x": x})[0]
        model.graph.initializers["w"].const_value = ir.Tensor(new, name="w")
        error = np.linalg.norm(outputs(model, {"x": x})[0] - exact) / np.linalg.norm(exact)
        assert fact["output_error"] == pytest.approx(error, rel=1e-4)
        assert fact["weight_error"] == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old), rel=1e-5)
        assert fact["sparsity"] == np.mean(new == 0)
        assert fact["deflated_before"] == len(zlib.compress(old.tobytes()))
        assert fact["deflated_after"] == len(zlib.compress(new.tobytes()))
        assert "gain no speed" in report.changes[-1].text


@pytest.fixture(scope="module")
def resnet() -> dict[str, ir.Model]:
    """A trained net, and what three methods make of it on 128 pictures without labels."""
    model = load(MODELS / "resnet8_mnist_hard" / "model.onnx")
    x, _ = samples("mnist_hard", "train")
    data = {model.graph.inputs[0].name: x[:128]}
    found = {
        method: prune(model, data, method=method, sparsity=0.5)[0] for method in ("random", "magnitude", "sparsegpt")
    }
    return {"dense": model, **found}


def test_layers_of_a_trained_net_on_other_data(resnet: dict[str, ir.Model]) -> None:
    """What is fitted to some pictures holds on others: layers are nearer to what they were than by magnitude."""
    model = resnet["dense"]
    x, _ = samples("mnist_hard", "train")
    convs = [node for node in model.graph if node.op_type == "Conv"][1:6]
    inputs = [node.inputs[0].name for node in convs if node.inputs[0] is not None]
    proto = to_proto(model)
    proto.graph.output.extend([onnx.ValueInfoProto(name=name) for name in dict.fromkeys(inputs)])
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for node, inner in zip(convs, session.run(inputs, {session.get_inputs()[0].name: x[1000:1032]}), strict=True):
        weights = {name: constants(each)[node.inputs[1].name or ""] for name, each in resnet.items()}  # type: ignore[union-attr]
        errors = {name: np.linalg.norm(_conv(node, inner, w - weights["dense"])) for name, w in weights.items()}
        assert errors["sparsegpt"] < 0.8 * errors["magnitude"] < errors["random"], node.name


def _conv(node: ir.Node, x: Array, w: Array) -> Array:
    attributes = {a.name: a.value for a in node.attributes.values()}
    made = onnx.helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    types = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in ("x", "w", "y")]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([made], "g", types[:2], types[2:]),
        opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8,
    )  # fmt: skip
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: Array = session.run(None, {"x": x, "w": w})[0]
    return result


def test_accuracy_of_a_trained_net(resnet: dict[str, ir.Model]) -> None:
    """At 50 % SparseGPT keeps what magnitude loses, without training."""
    model = resnet["dense"]
    x, labels = samples("mnist_hard", "test")
    judged = load_data({model.graph.inputs[0].name: x[:400], "labels": labels[:400]}, model)
    found = {}
    for method in ("random", "magnitude", "sparsegpt"):
        ((_, found[method]),) = evaluate(Snapshot.of(model), Snapshot.of(resnet[method]), judged).accuracy.values()
    assert found["sparsegpt"] > 0.93
    assert found["random"] < found["magnitude"] < found["sparsegpt"]


@pytest.mark.parametrize("method", ["random", "sparsegpt", "wanda"])
def test_the_same_bytes_again(method: str) -> None:
    x = normal(30, 8, 6, 6)
    first, second = (prune(network(), {"x": x}, method=method, pattern=p)[0] for p in ("4x1", "4x1"))
    assert to_proto(first).SerializeToString(deterministic=True) == to_proto(second).SerializeToString(
        deterministic=True
    )


# -- forms of weights ------------------------------------------------------------------------------------------


def test_a_shared_weight_is_pruned_once_for_all_that_read_it() -> None:
    before = graph(
        "g (float[N,8] x) => (float[N,8] y) { a = MatMul(x, w) b = Mul(a, big) y = MatMul(b, w) }",
        w=normal(8, 8), big=np.float32(100),
    )  # fmt: skip
    x = normal(50, 8)
    after, report = prune(before, {"x": x}, method="wanda", sparsity=0.5)
    assert report.changed == 2
    w = constants(before)["w"].astype(np.float64)
    norms = np.sqrt(np.sum(x.astype(np.float64) ** 2, axis=0) + np.sum((100 * x @ w) ** 2, axis=0))
    kept = np.argsort(np.abs(w) * norms[:, None], axis=0)[4:]
    expected = np.zeros((8, 8), bool)
    np.put_along_axis(expected, kept, True, axis=0)
    np.testing.assert_array_equal(constants(after)["w"] != 0, expected)


def test_a_weight_that_others_read_stays() -> None:
    before = graph(
        """g (int64[N] i, float[N,6] x) => (float[N,4] e, float[N,4] y, float[N,8] u, float[N,8] v) {
            e = Gather(table, i) y = MatMul(x, table) u = Gemm(x, both) v = Gemm <transB = 1> (u, both2)
        }""",
        table=normal(6, 4), both=normal(6, 8), both2=normal(8, 8),
    )  # fmt: skip
    after, report = prune(before, method="magnitude")
    assert "y: its weight is also read by e" in reasons(report)
    np.testing.assert_array_equal(constants(after)["table"], constants(before)["table"])
    both = graph("g (float[N,8] x) => (float[N,8] y) { a = Gemm(x, w) y = Gemm <transB = 1> (a, w) }", w=normal(8, 8))
    _, report = prune(both)
    assert "layers that sum along different axes" in reasons(report)


@pytest.mark.parametrize("dtype", ["float16", "double", "bfloat16"])
def test_other_float_types(dtype: str) -> None:
    kind = {"float16": ir.DataType.FLOAT16, "double": ir.DataType.DOUBLE, "bfloat16": ir.DataType.BFLOAT16}[dtype]
    before = graph(f"g ({dtype}[N,8] x, {dtype}[8,4] w) => ({dtype}[N,4] y) {{ y = MatMul(x, w) }}")
    w = normal(8, 4).astype(kind.numpy())
    value = before.graph.inputs.pop()
    value.const_value = ir.Tensor(w, name="w")
    before.graph.register_initializer(value)
    after, _ = prune(before, method="magnitude", sparsity=0.5)
    got = constants(after)["w"]
    assert got.dtype == w.dtype
    assert (got == 0).sum() == 16
    np.testing.assert_array_equal(got[got != 0], w[got != 0])


@pytest.mark.parametrize("method", ["magnitude", "sparsegpt"])
def test_quantized_weights_get_their_zero_point(method: str) -> None:
    rng = np.random.default_rng(0)
    weights: dict[str, Any] = {
        "k": rng.integers(0, 256, (6, 8, 3, 3), np.uint8),
        "p": rng.integers(-127, 128, (5, 6, 1, 1), np.int8),
    }
    zeros = {"k": rng.integers(100, 156, 6, np.uint8), "p": np.array(0, np.int8)}
    before = graph(
        """g (float[N,8,6,6] x) => (float[N,5,4,4] y) {
            kf = DequantizeLinear <axis = 0> (k, ks, kz) pf = DequantizeLinear (p, ps)
            a = Conv(x, kf) r = Relu(a) y = Conv(r, pf)
        }""",
        **weights, ks=np.full(6, 0.01, np.float32), kz=zeros["k"], ps=np.float32(0.02),
    )  # fmt: skip
    x = {"x": normal(32, 8, 6, 6)}
    after, report = prune(before, x, method=method, sparsity=0.5, allocation="uniform")
    assert {fact["method"] for fact in report.facts} == {method}
    for name, zero in zeros.items():
        old, new = weights[name], constants(after)[name]
        gone = new == zero.reshape(-1, 1, 1, 1)
        assert new.dtype == old.dtype
        assert gone.mean() == pytest.approx(0.5, abs=0.02)
        assert (new[~gone] == old[~gone]).all() == (method == "magnitude")
    assert not masks(after)
    assert pruned(after) == {"k": "", "p": ""}
    assert np.isfinite(outputs(after, x)[0]).all()
    blocked = graph(
        """g (float[N,4] x) => (float[N,4] y) {
            wf = DequantizeLinear <axis = 0, block_size = 2> (w, s) y = MatMul(x, wf) }""",
        opset=21, ir_version=10, w=np.ones((4, 4), np.int8), s=np.ones((2, 4), np.float32),
    )  # fmt: skip
    assert "its integer weight has blocks" in reasons(prune(blocked)[1])


def test_constants_in_nodes_and_functions() -> None:
    before = graph(
        """g (float[N,4] x) => (float[N,1] y) { w = Constant <value = float[4,4]
            {1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0,9.0,10.0,11.0,12.0,13.0,14.0,15.0,16.0}> () a = MatMul(x, w)
            y = local.F(a) }
        <domain: "local", opset_import: ["" : 18]> F (a) => (y) { v = Constant <value = float[4,1] {1.0,2.0,3.0,4.0}> ()
            y = MatMul(a, v) }""",
        extra=', "local" : 1',
    )
    after, report = prune(before, method="magnitude", allocation="uniform")
    w = after.graph[0].attributes["value"].as_tensor().numpy()
    np.testing.assert_array_equal(w.reshape(-1), [0] * 8 + list(range(9, 17)))
    (function,) = after.functions.values()
    np.testing.assert_array_equal(function[0].attributes["value"].as_tensor().numpy(), [[0], [0], [3], [4]])
    assert report.changed == 3
    assert set(masks(after)) == {"w", "v"}


def test_layers_whose_input_cannot_be_read() -> None:
    before = network()
    x = {"x": normal(10, 8, 6, 6)}
    _, report = prune(before, x, method="sparsegpt")
    assert {note.node for note in report.refusals} == {"e", "s"}
    assert "its kernel overlaps itself" in reasons(report)
    assert "changes from step to step" in reasons(report)
    assert "method=magnitude can prune it" in reasons(report)
    _, report = prune(before, x)
    assert {fact["weight"] for fact in report.facts if fact["method"] == "magnitude"} == {"over", "gw", "gr"}
    left = graph("g (float[N,6,3] x) => (float[N,4,3] y) { y = MatMul(w, x) }", w=normal(4, 6))
    after, report = prune(left, {"x": normal(9, 6, 3)}, pattern="1:3")
    assert report.facts[0]["method"] == "magnitude"
    assert ((constants(after)["w"].reshape(4, 2, 3) != 0).sum(axis=2) == 1).all()


# -- what cannot be --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sparsity": 0.0}, "share in"),
        ({"sparsity": 1.0}, "share in"),
        ({"sparsity": -0.1}, "share in"),
        ({"sparsity": float("nan")}, "share in"),
        ({"pattern": "4:2"}, "no pattern"),
        ({"pattern": "2:4", "sparsity": 0.7}, "leave out sparsity"),
        ({"pattern": "2:4", "allocation": "erk"}, "leave out allocation"),
        ({"pattern": "2:4", "ratios": (("a", 0.5),)}, "leave out allocation"),
        ({"method": "magic"}, "is one of auto, magnitude"),
        ({"allocation": "fair"}, "is one of"),
        ({"ratios": (("a", 1.0),)}, "shares in"),
        ({"ratios": (("a", -1.0),)}, "shares in"),
        ({"seed": -1}, "seed"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        PruneWeights(**options)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_methods_that_need_data(method: Any) -> None:
    model = linear()
    before = to_proto(model)
    with pytest.raises(OptionError, match="needs calibration data: give data="):
        PassManager([PruneWeights(method=method)]).run(model)
    assert to_proto(model) == before


def test_a_pipeline_as_text() -> None:
    text = 'prune-weights{pattern="2:4",method=wanda}'
    assert parse_pipeline(text) == [PruneWeights(pattern="2:4", method="wanda")]
    with pytest.raises(OptionError, match="sparsity"):
        parse_pipeline("prune-weights{sparsity=1.5}")


def test_nothing_to_do_is_said() -> None:
    _, report = prune(linear(), include=("Conv*",))
    assert reasons(report) == "model: include and exclude leave no layer to prune"
    _, report = prune(graph("g (float[N] x) => (float[N] y) { y = Relu(x) }"))
    assert "it has no Conv" in reasons(report)
    _, report = prune(graph("g (float[N,2] x, float[2,2] w) => (float[N,2] y) { y = MatMul(x, w) }"))
    assert "two computed tensors" in reasons(report)
    _, report = prune(graph("g (float[N,2,4] x, float[2,2,1] w) => (float[N,2,4] y) { y = Conv(x, w) }"))
    assert "its weight is an input of the model" in reasons(report)
    after, _ = prune(linear(), method="magnitude")
    again, report = prune(after, method="magnitude")
    assert "that sparse already: 50.0% zeros" in reasons(report)
    assert to_proto(again) == to_proto(after)


def test_weights_that_cannot_be_pruned() -> None:
    weight = normal(12, 8)
    weight[3, 3] = np.nan
    _, report = prune(graph("g (float[N,12] x) => (float[N,8] y) { y = MatMul(x, w) }", w=weight))
    assert "NaN" in reasons(report)
    _, report = prune(graph("g (float[N,3] x) => (float[N] y) { y = MatMul(x, w) }", w=normal(3)))
    assert "a vector" in reasons(report)
    integers = np.arange(12, dtype=np.int32).reshape(3, 4)
    _, report = prune(graph("g (int32[N,3] x) => (int32[N,4] y) { y = MatMul(x, w) }", w=integers))
    assert "INT32, not a float type" in reasons(report)


def test_inputs_that_are_not_finite() -> None:
    model = graph("g (float[N,8] x) => (float[N,4] y) { a = Log(x) y = MatMul(a, w) }", w=normal(8, 4))
    data = {"x": np.zeros((4, 8), np.float32)}
    _, report = prune(model, data, method="wanda")
    assert "not finite" in reasons(report)
    _, report = prune(model, data)
    assert report.facts[0]["method"] == "magnitude"
    assert report.facts[0]["output_error"] is None
