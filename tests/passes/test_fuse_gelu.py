"""fuse-gelu."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.passes.cleanup.fuse_gelu import FuseGelu
from tests.support import count_ops, graph, ops, run

CONSTANTS = {
    "two": 2.0, "three": 3.0, "one": 1.0, "half": 0.5, "root": 1.4142135, "over": 0.70710677, "k": 0.044715,
    "s": 0.79788456,
}  # fmt: skip

ERF = [
    "a = Div(x, root) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half)",
    "a = Mul(x, over) b = Erf(a) c = Add(one, b) d = Mul(c, half) y = Mul(d, x)",
    "h = Mul(x, half) a = Div(x, root) b = Erf(a) c = Add(b, one) y = Mul(h, c)",
    "h = Div(x, two) a = Div(x, root) b = Erf(a) c = Add(b, one) y = Mul(c, h)",
    "a = Div(x, root) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Div(d, two)",
    "a = Div(x, root) b = Erf(a) c = Mul(b, half) d = Add(c, half) y = Mul(x, d)",
]
TANH = [
    "p = Pow(x, three) a = Mul(p, k) b = Add(x, a) c = Mul(b, s) d = Tanh(c) e = Add(d, one) f = Mul(x, e) "
    "y = Mul(f, half)",
    "q = Mul(x, x) p = Mul(q, x) a = Mul(k, p) b = Add(x, a) c = Mul(s, b) d = Tanh(c) e = Add(one, d) "
    "h = Mul(x, half) y = Mul(h, e)",
    "l = Mul(k, x) m = Mul(l, x) n = Add(m, one) o = Mul(x, s) c = Mul(o, n) d = Tanh(c) e = Add(d, one) "
    "h = Mul(half, x) y = Mul(h, e)",
    "q = Pow(x, two) p = Mul(q, x) a = Mul(p, k) b = Add(a, x) c = Mul(b, s) d = Tanh(c) e = Mul(d, half) "
    "f = Add(e, half) y = Mul(f, x)",
    "l = Mul(x, k) m = Mul(l, x) n = Mul(m, x) b = Add(x, n) c = Mul(b, s) d = Tanh(c) e = Add(d, one) "
    "f = Mul(x, e) y = Mul(half, f)",
]


def gelu(body: str, opset: int = 20, type_: str = "float", shape: tuple[int, ...] = ()) -> ir.Model:
    dtype = {"float": np.float32, "float16": np.float16, "double": np.float64}[type_]
    used: dict[str, Any] = {
        name: np.full(shape, value, dtype)
        for name, value in CONSTANTS.items()
        if f" {name})" in body or f"({name}," in body
    }
    return graph(f"g ({type_}[N,4] x) => ({type_}[N,4] y) {{ {body} }}", opset=opset, **used)


@pytest.mark.parametrize("body", ERF)
def test_fuses_the_erf_forms(body: str) -> None:
    after, report = run(FuseGelu(), gelu(body))
    assert report.changed == 1
    assert ops(after) == ["Gelu"]
    assert not after.graph[0].attributes


@pytest.mark.parametrize("body", TANH)
def test_fuses_the_tanh_forms(body: str) -> None:
    after, _ = run(FuseGelu(), gelu(body))
    assert ops(after) == ["Gelu"]
    assert after.graph[0].attributes["approximate"].value == "tanh"


@pytest.mark.parametrize("body", [ERF[0], TANH[0]])
def test_fuses_in_half_and_with_constants_of_one_dim(body: str) -> None:
    after, _ = run(FuseGelu(), gelu(body, type_="float16", shape=(1,)), verify=False)
    assert ops(after) == ["Gelu"]


def test_refuses_old_opsets_and_double() -> None:
    for opset in (11, 13, 19):
        _, report = run(FuseGelu(), gelu(ERF[0], opset))
        assert [n.text for n in report.refusals] == [f"Gelu needs opset 20, the model has {opset}"]
    _, report = run(FuseGelu(), gelu(TANH[0], type_="double"))
    assert "double" in report.refusals[0].text


def test_fuses_up_to_the_newest_opset() -> None:
    after, _ = run(FuseGelu(), gelu(ERF[0], 23))
    assert ops(after) == ["Gelu"]


def test_leaves_other_numbers_and_other_values() -> None:
    for wrong in (ERF[0].replace("root", "two"), ERF[0].replace("one", "half"), TANH[0].replace("three", "two")):
        _, report = run(FuseGelu(), gelu(wrong))
        assert (report.changed, report.refusals) == (0, ())


def test_leaves_what_others_read() -> None:
    before = graph("g (float[N] x) => (float[N] y, float[N] b) <float root = {1.4142135}, float one = {1.0}, "
                   "float half = {0.5}> { a = Div(x, root) b = Erf(a) c = Add(b, one) d = Mul(x, c) "
                   "y = Mul(d, half) }", opset=20)  # fmt: skip
    assert run(FuseGelu(), before)[1].changed == 0


def test_fuses_in_bodies_and_functions() -> None:
    constants = "".join(f"{n} = Constant<value = float {{{CONSTANTS[n]}}}>() " for n in ("root", "one", "half"))
    body = graph(f"""g (float[N] x, bool k) => (float[N] z) {{
        z = If(k) <then_branch = t () => (float[N] y) {{ {constants} {ERF[0]} }},
                   else_branch = e () => (float[N] w) {{ w = Identity(x) }}> }}""", opset=20)
    assert count_ops(run(FuseGelu(), body)[0])["Gelu"] == 1
    function = graph(f"""g (float[N] x) => (float[N] z) {{ z = my.gelu(x) }}
        <domain: "my", opset_import: ["" : 20]> gelu (x) => (y) {{ {constants} {ERF[0]} }}""",
        opset=20, extra=', "my" : 1')  # fmt: skip
    assert count_ops(run(FuseGelu(), function)[0])["Gelu"] == 1
