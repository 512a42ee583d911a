"""Plans as pipelines."""

from __future__ import annotations

import numpy as np

from onnxopt.data import load_data
from onnxopt.pipeline import PassManager
from onnxopt.search.allocation import Plan
from onnxopt.search.plans import few_bits, known_plans
from tests.support import count_ops, graph


def test_each_layer_gets_its_precision_and_no_other_does() -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((64, 64)).astype(np.float32) / 8 for name in ("u", "v", "w")}
    model = graph(
        "g (float[N,64] x) => (float[N,64] y) { a = MatMul(x, u) r = Relu(a) b = MatMul(r, v) s = Relu(b) "
        "y = MatMul(s, w) }",
        u=weights["u"], v=weights["v"], w=weights["w"],
    )  # fmt: skip
    names = {node.outputs[0].name: node.name or node.outputs[0].name for node in model.graph}
    chosen = ((str(names["a"]), "dynamic-int8"), (str(names["b"]), "weight-int4"))
    data = load_data({"x": rng.standard_normal((64, 64)).astype(np.float32)}, model)
    made, _ = PassManager(few_bits(Plan(precisions=chosen)), verify="off", data=data).run(model)  # type: ignore[arg-type]
    counted = count_ops(made)
    assert (counted["MatMulInteger"], counted["MatMulNBits"], counted["MatMul"]) == (1, 1, 1)


def test_what_is_tried_first_follows_from_the_target() -> None:
    model = graph("g (float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }", w=np.ones((64, 64), np.float32))
    latency, size = (known_plans(model, ("quantize",), target) for target in ("latency", "size"))
    assert [plan.precisions[0][1] for plan in latency] == ["int8"]
    assert [plan.precisions[0][1] for plan in size] == ["int8", "weight-int8", "weight-int4"]
    assert known_plans(model, ("prune",), "size") == []
