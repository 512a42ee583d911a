"""fuse-layer-norm."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.passes.cleanup.fuse_layer_norm import FuseLayerNorm
from tests.support import assert_same_outputs, count_ops, graph, ops, run

RNG = np.random.default_rng(0)
D = 8
PARAMETERS: dict[str, Any] = {
    "two": np.array(2.0), "root": np.array(0.5), "eps": np.array([1e-5]), "unit": np.array(1.0),
    "scale": RNG.normal(size=D), "bias": RNG.normal(size=D),
}  # fmt: skip

MEAN = "m = ReduceMean<axes = [-1]>(x) d = Sub(x, m) "
AFFINE = "t = Mul(n, scale) y = Add(t, bias)"
PYTORCH = MEAN + "p = Pow(d, two) v = ReduceMean<axes = [-1]>(p) w = Add(v, eps) q = Sqrt(w) n = Div(d, q) "
FORMS = [
    PYTORCH,
    PYTORCH.replace("[-1]", "[2]"),
    MEAN + "p = Mul(d, d) v = ReduceMean<axes = [2]>(p) w = Add(eps, v) q = Sqrt(w) r = Reciprocal(q) n = Mul(r, d) ",
    MEAN + "p = Mul(d, d) v = ReduceMean<axes = [2]>(p) w = Add(eps, v) q = Pow(w, root) r = Div(unit, q) "
    "n = Mul(d, r) ",
    MEAN + "e = Sub(x, m) p = Pow(e, two) v = ReduceMean<axes = [-1]>(p) w = Add(v, eps) q = Sqrt(w) n = Div(d, q) ",
]
TENSORFLOW = (
    MEAN + "p = Mul(d, d) v = ReduceMean<axes = [2]>(p) w = Add(v, eps) q = Sqrt(w) r = Reciprocal(q) "
    "i = Mul(r, scale) a = Mul(x, i) b = Mul(m, i) s = Sub(bias, b) y = Add(a, s)"
)


def model(
    body: str, opset: int = 17, dims: str = "N,5,8", out: str | None = None, dtype: Any = np.float32, **given: Any
) -> ir.Model:
    type_ = {"f4": "float", "f8": "double"}[np.dtype(dtype).str[1:]]
    if opset >= 18:
        body = body.replace("<axes = [-1]>(x)", "(x, last)").replace("<axes = [-1]>(p)", "(p, last)")
    arrays = {**PARAMETERS, **given}
    used: dict[str, Any] = {n: np.asarray(a, dtype) for n, a in arrays.items() if f" {n})" in body or f"({n}," in body}
    if "last" in body:
        used["last"] = np.array([-1])
    outputs = out or f"{type_}[{dims}] y"
    return graph(f"g ({type_}[{dims}] x) => ({outputs}) {{ {body} }}", opset=opset, **used)


@pytest.mark.parametrize("body", [*(form + AFFINE for form in FORMS), TENSORFLOW])
def test_fuses(body: str) -> None:
    after, report = run(FuseLayerNorm(), model(body))
    assert report.changed == 1
    assert ops(after) == ["LayerNormalization"]
    (node,) = after.graph
    assert node.attributes["axis"].value == -1
    assert node.attributes["epsilon"].value == pytest.approx(1e-5)
    assert [v.name for v in node.inputs if v is not None] == ["x", "scale", "bias"]


def test_fuses_with_axes_as_input_and_dynamic_dims() -> None:
    assert ops(run(FuseLayerNorm(), model(PYTORCH + AFFINE, 20, "B,S,8"))[0]) == ["LayerNormalization"]
    assert ops(run(FuseLayerNorm(), model(PYTORCH + AFFINE, 23, "B,8"))[0]) == ["LayerNormalization"]


def test_fuses_without_bias_and_leaves_a_residual_alone() -> None:
    after, _ = run(FuseLayerNorm(), model(PYTORCH + "y = Mul(scale, n)"))
    assert ops(after) == ["LayerNormalization"]
    after, report = run(FuseLayerNorm(), model(PYTORCH + "t = Mul(n, scale) y = Add(t, x)"))
    assert ops(after) == ["LayerNormalization", "Add"]
    assert "LayerNormalization takes [8]" in report.refusals[0].text


def test_fuses_without_scale_only_where_ones_are_small() -> None:
    before = model(PYTORCH + "y = Relu(n)")
    for node in before.graph:
        node.name = f"/encoder/layer.0/{node.outputs[0].name}"  # what is saved depends on how long names are
    after, _ = run(FuseLayerNorm(), before)
    assert ops(after) == ["LayerNormalization", "Relu"]
    _, report = run(FuseLayerNorm(), model(PYTORCH + "y = Relu(n)", dims="N,2,512"))
    assert report.refusals[0].text == "LayerNormalization needs a scale, and 512 ones would make the file larger"


def test_fuses_over_several_axes() -> None:
    body = (PYTORCH + AFFINE).replace("[-1]", "[-1, 1]")
    scale = RNG.normal(size=(5, D))
    after, _ = run(FuseLayerNorm(), model(body, scale=scale, bias=scale + 1))
    assert ops(after) == ["LayerNormalization"]
    assert after.graph[0].attributes["axis"].value == -2


def test_squeezes_constants_of_its_own_only() -> None:
    scale = RNG.normal(size=(1, 1, D))
    after, _ = run(FuseLayerNorm(), model(PYTORCH + AFFINE, scale=scale))
    assert ops(after) == ["LayerNormalization"]
    both = model(PYTORCH + AFFINE + " z = Mul(x, scale)", out="float[N,5,8] y, float[N,5,8] z", scale=scale)
    _, report = run(FuseLayerNorm(), both)
    assert "no constant of its own" in report.refusals[0].text


@pytest.mark.parametrize(
    ("body", "reason", "more"),
    [
        ((PYTORCH + AFFINE).replace("[-1]", "[1]"), "axes [-2], LayerNormalization takes the last ones", {}),
        (PYTORCH.replace("[-1]>(p)", "[1]>(p)") + AFFINE, "axes that differ", {}),
        (PYTORCH + AFFINE, "scale has shape [1], LayerNormalization takes [8]", {"scale": np.ones(1)}),
        (PYTORCH + AFFINE, "scale has shape [5, 8], LayerNormalization takes [8]", {"scale": np.ones((5, D))}),
        (PYTORCH + AFFINE, "dims ['K'] that it normalises are not all known", {"dims": "N,5,K", "scale": np.ones(1)}),
    ],
)  # fmt: skip
def test_refuses(body: str, reason: str, more: dict[str, Any]) -> None:
    _, report = run(FuseLayerNorm(), model(body, **more), verify=False)
    assert reason in report.refusals[0].text


@pytest.mark.parametrize("opset", [7, 12, 16])
def test_refuses_old_opsets_once(opset: int) -> None:
    _, report = run(FuseLayerNorm(), model(PYTORCH + AFFINE, opset))
    assert [n.text for n in report.refusals] == [f"LayerNormalization needs opset 17, the model has {opset}"]


def test_refuses_double() -> None:
    assert "double" in run(FuseLayerNorm(), model(PYTORCH + AFFINE, dtype=np.float64))[1].refusals[0].text


def test_leaves_what_is_read_elsewhere_and_what_drops_axes() -> None:
    shared = model(PYTORCH + AFFINE, out="float[N,5,8] y, float[N,5,1] m")
    assert run(FuseLayerNorm(), shared)[1].changed == 0
    flat = "m = ReduceMean<axes = [-1], keepdims = 0>(x) d = Sub(x, m) p = Mul(d, d) " + PYTORCH[PYTORCH.index("v =") :]
    _, report = run(FuseLayerNorm(), model(flat + AFFINE, dims="8,8"), verify=False)
    assert "drop the axes" in report.refusals[0].text


HALF = "c = Cast<to = 1>(x) " + PYTORCH.replace("(x", "(c") + "h = Cast<to = 10>(n) " + AFFINE.replace("(n", "(h")
HALF_INSIDE = (
    "m = ReduceMean<axes = [-1]>(x) d = Sub(x, m) c = Cast<to = 1>(d) p = Pow(c, two) v = ReduceMean<axes = [-1]>(p) "
    "w = Add(v, eps) q = Sqrt(w) n = Div(c, q) t = Mul(n, scale) y = Add(t, bias)"
)
HALF_ROOT = HALF_INSIDE.replace("n = Div(c, q)", "r = Cast<to = 10>(q) n = Div(d, r)")


@pytest.mark.parametrize(
    ("body", "expected", "wide"),
    [(HALF, ["LayerNormalization"], ("two", "eps")), (HALF_ROOT, ["LayerNormalization"], ("two", "eps")),
     (HALF_INSIDE, ["Cast", "LayerNormalization"], ("two", "eps", "scale", "bias"))],
)  # fmt: skip
def test_fuses_half_with_casts(body: str, expected: list[str], wide: tuple[str, ...]) -> None:
    arrays = {n: PARAMETERS[n].astype(np.float32 if n in wide else np.float16) for n in ("two", "eps", "scale", "bias")}
    out = "float" if "scale" in wide else "float16"
    before = graph(f"g (float16[N,5,8] x) => ({out}[N,5,8] y) {{ {body} }}", opset=17, **arrays)
    feeds = {"x": RNG.normal(size=(2, 5, 8)).astype(np.float16)}
    after, report = run(FuseLayerNorm(), before, verify=False)
    assert report.changed == 1
    assert ops(after) == expected
    assert_same_outputs(before, after, feeds, tolerance=2e-3)


def test_fuses_in_bodies() -> None:
    numbers = "two = Constant<value = float {2.0}>() eps = Constant<value = float {0.00001}>() "
    before = graph(f"""g (float[N,4] x, bool k, float[4] scale, float[4] bias) => (float[N,4] z) {{
        z = If(k) <then_branch = u () => (float[N,4] y) {{ {numbers} {PYTORCH + AFFINE} }},
                   else_branch = o () => (float[N,4] f) {{ f = Identity(x) }}> }}""", opset=17)
    assert count_ops(run(FuseLayerNorm(), before)[0])["LayerNormalization"] == 1
