"""fuse-instance-norm."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.passes.cleanup.fuse_instance_norm import FuseInstanceNorm
from tests.support import count_ops, graph, ops, run

RNG = np.random.default_rng(0)
FORM = (
    "m = ReduceMean<axes = [2, 3]>(x) d = Sub(x, m) p = Pow(d, two) v = ReduceMean<axes = [-1, -2]>(p) "
    "w = Add(v, eps) q = Sqrt(w) n = Div(d, q) t = Mul(n, scale) y = Add(t, bias)"
)
FOLDED = (
    "m = ReduceMean<axes = [2, 3]>(x) d = Sub(x, m) p = Mul(d, d) v = ReduceMean<axes = [2, 3]>(p) "
    "w = Add(v, eps) q = Sqrt(w) r = Reciprocal(q) i = Mul(r, scale) a = Mul(x, i) b = Mul(m, i) "
    "s = Sub(bias, b) y = Add(a, s)"
)


def model(body: str, opset: int = 17, dims: str = "N,6,H,5", out: str = "", **given: Any) -> ir.Model:
    arrays = {"two": 2.0, "eps": 1e-3, "scale": RNG.normal(size=(6, 1, 1)), "bias": RNG.normal(size=(1, 6, 1, 1)),
              **given}  # fmt: skip
    used: dict[str, Any] = {
        n: np.asarray(a, np.float32) for n, a in arrays.items() if f" {n})" in body or f"({n}," in body
    }
    if opset >= 18:
        for axes in ("[2, 3]", "[-1, -2]"):
            body = body.replace(f"<axes = {axes}>(x)", "(x, ax)").replace(f"<axes = {axes}>(p)", "(p, ax)")
        used["ax"] = np.array([2, 3])
    return graph(f"g (float[{dims}] x) => (float[{dims}] y{out}) {{ {body} }}", opset=opset, **used)


@pytest.mark.parametrize("body", [FORM, FOLDED])
@pytest.mark.parametrize("opset", [7, 11, 17, 18, 22])
def test_fuses(body: str, opset: int) -> None:
    before = model(body, opset)
    after, report = run(FuseInstanceNorm(), before, {"x": RNG.normal(size=(2, 6, 7, 5)).astype(np.float32)})
    assert report.changed == 1
    assert ops(after) == ["InstanceNormalization"]
    assert [after.graph[0].inputs[i].shape for i in (1, 2)] == [[6], [6]]  # type: ignore[union-attr]


def test_leaves_other_axes() -> None:
    _, report = run(FuseInstanceNorm(), model(FORM.replace("[2, 3]", "[3]").replace("[-1, -2]", "[3]")))
    assert (report.changed, report.refusals) == (0, ())


@pytest.mark.parametrize(
    ("more", "reason"),
    [({"scale": np.ones((6, 1, 5))}, "has shape [6, 1, 5], InstanceNormalization takes [6, 1, 1]"),
     ({"bias": np.ones(5)}, "has shape [5], InstanceNormalization takes [6, 1, 1]"),
     ({"dims": "N,C,H,5", "scale": 2.0}, "the number of its channels is unknown")],
)  # fmt: skip
def test_refuses(more: dict[str, Any], reason: str) -> None:
    _, report = run(FuseInstanceNorm(), model(FORM, **more), verify=False)
    assert reason in report.refusals[0].text


def test_refuses_parameters_that_others_read() -> None:
    _, report = run(FuseInstanceNorm(), model(FORM + " z = Neg(scale)", out=", float[6,1,1] z"))
    assert "no constant of its own" in report.refusals[0].text


def test_leaves_what_is_read_elsewhere() -> None:
    assert run(FuseInstanceNorm(), model(FORM, out=", float[N,6,H,5] d"))[1].changed == 0


def test_leaves_parameters_of_an_outer_graph() -> None:
    before = graph(f"""g (float[N,2,4,4] x, bool k, float[2,1,1] scale, float[2,1,1] bias) => (float[N,2,4,4] z)
        <float two = {{2.0}}, float eps = {{0.00001}}> {{
        z = If(k) <then_branch = u () => (float[N,2,4,4] y) {{ {FORM} }},
                   else_branch = o () => (float[N,2,4,4] f) {{ f = Identity(x) }}> }}""", opset=17)
    after, report = run(FuseInstanceNorm(), before)
    assert "no constant of its own" in report.refusals[0].text
    assert count_ops(after)["InstanceNormalization"] == 0
