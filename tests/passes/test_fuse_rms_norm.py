"""fuse-rms-norm."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.passes.cleanup.fuse_rms_norm import FuseRmsNorm
from tests.support import assert_same_outputs, count_ops, graph, ops, run

RNG = np.random.default_rng(0)
ROOT = "p = Pow(x, two) v = ReduceMean(p, last) w = Add(v, eps) q = Sqrt(w) "
FORMS = [
    ROOT + "n = Div(x, q) y = Mul(n, scale)",
    ROOT + "r = Reciprocal(q) n = Mul(x, r) y = Mul(scale, n)",
    ROOT.replace("Pow(x, two)", "Mul(x, x)") + "r = Div(one, q) n = Mul(r, x) y = Mul(n, scale)",
]


def model(body: str, opset: int = 23, dims: str = "N,5,8", out: str = "float[N,5,8] y", **given: Any) -> ir.Model:
    arrays = {"two": 2.0, "eps": 1e-6, "one": 1.0, "scale": RNG.normal(size=8), **given}
    used: dict[str, Any] = {
        n: np.asarray(a, np.float32) for n, a in arrays.items() if f" {n})" in body or f"({n}," in body
    }
    if opset < 18:
        body = body.replace("ReduceMean(p, last)", "ReduceMean<axes = [-1]>(p)")
    else:
        used["last"] = np.array([-1])
    return graph(f"g (float[{dims}] x) => ({out}) {{ {body} }}", opset=opset, ir_version=10, **used)


@pytest.mark.parametrize("body", FORMS)
@pytest.mark.parametrize("opset", [23, 24])
def test_fuses(body: str, opset: int) -> None:
    after, report = run(FuseRmsNorm(), model(body, opset))
    assert report.changed == 1
    assert ops(after) == ["RMSNormalization"]
    assert after.graph[0].attributes["epsilon"].value == pytest.approx(1e-6)


def test_fuses_half_computed_in_float() -> None:
    body = ("c = Cast<to = 1>(x) p = Pow(c, two) v = ReduceMean(p, last) w = Add(v, eps) q = Sqrt(w) r = Reciprocal(q) "
            "n = Mul(c, r) h = Cast<to = 10>(n) y = Mul(scale, h)")  # fmt: skip
    before = graph(f"g (float16[N,8] x) => (float16[N,8] y) {{ {body} }}", opset=23, ir_version=10,
                   two=np.array(2, np.float32), eps=np.array(1e-6, np.float32), last=np.array([-1]),
                   scale=RNG.normal(size=8).astype(np.float16))  # fmt: skip
    after, _ = run(FuseRmsNorm(), before, verify=False)
    assert ops(after) == ["RMSNormalization"]
    assert_same_outputs(before, after, {"x": RNG.normal(size=(3, 8)).astype(np.float16)}, tolerance=1e-3)


def test_fuses_without_scale_only_where_ones_are_small() -> None:
    plain = ROOT + "n = Div(x, q) y = Relu(n)"
    before = model(plain)
    for node in before.graph:
        node.name = f"/encoder/layer.0/norm/{node.outputs[0].name}"  # what is saved depends on how long names are
    assert ops(run(FuseRmsNorm(), before)[0]) == ["RMSNormalization", "Relu"]
    _, report = run(FuseRmsNorm(), model(plain, dims="N,512", out="float[N,512] y"))
    assert "512 ones would make the file larger" in report.refusals[0].text


@pytest.mark.parametrize("opset", [12, 17, 22])
def test_refuses_old_opsets(opset: int) -> None:
    _, report = run(FuseRmsNorm(), model(FORMS[0], opset))
    assert [n.text for n in report.refusals] == [f"RMSNormalization needs opset 23, the model has {opset}"]


def test_refuses_another_scale_and_unknown_dims() -> None:
    _, report = run(FuseRmsNorm(), model(FORMS[0], scale=np.ones(1)))
    assert "the scale scale has shape [1], RMSNormalization takes [8]" in report.refusals[0].text
    _, report = run(FuseRmsNorm(), model(FORMS[0], dims="N,K", out="float[N,M] y"), verify=False)
    assert "not all known" in report.refusals[0].text


def test_leaves_a_layer_normalization() -> None:
    body = "m = ReduceMean(z, last) x = Sub(z, m) " + FORMS[0]
    before = graph(f"""g (float[N,4] z, float[4] scale) => (float[N,4] y) <float two = {{2.0}},
        float eps = {{0.00001}}, int64[1] last = {{-1}}> {{ {body} }}""", opset=18)
    _, report = run(FuseRmsNorm(), before)
    assert (report.changed, report.refusals) == (0, ())


def test_leaves_what_is_read_elsewhere() -> None:
    assert run(FuseRmsNorm(), model(FORMS[0], out="float[N,5,8] y, float[N,5,1] q"))[1].changed == 0


def test_fuses_in_bodies() -> None:
    before = graph(f"""g (float[N,4] x, bool k, float[4] scale) => (float[N,4] z) <float two = {{2.0}},
        float eps = {{0.00001}}, int64[1] last = {{-1}}> {{
        z = If(k) <then_branch = u () => (float[N,4] y) {{ {FORMS[0]} }},
                   else_branch = o () => (float[N,4] f) {{ f = Identity(x) }}> }}""", opset=23, ir_version=10)
    assert count_ops(run(FuseRmsNorm(), before)[0])["RMSNormalization"] == 1
