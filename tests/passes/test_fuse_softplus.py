"""fuse-softplus, fuse-mish and fuse-swish."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.pass_base import Pass
from onnxopt.passes.cleanup.fuse_mish import FuseMish
from onnxopt.passes.cleanup.fuse_softplus import FuseSoftplus
from onnxopt.passes.cleanup.fuse_swish import FuseSwish
from tests.support import count_ops, graph, ops, run

SOFTPLUS = "a = Exp(x) b = Add(a, one) y = Log(b)"
STABLE = "r = Relu(x) a = Abs(x) n = Neg(a) e = Exp(n) b = Add(e, one) l = Log(b) y = Add(r, l)"
MISH = "s = Softplus(x) t = Tanh(s) y = Mul(x, t)"
SWISH = "s = Sigmoid(x) y = Mul(s, x)"
SCALED = "a = Mul(alpha, x) s = Sigmoid(a) y = Mul(x, s)"
ONE = "<float one = {1.0}>"


@pytest.mark.parametrize(
    ("pass_", "body", "opset", "op"),
    [(FuseSoftplus(), SOFTPLUS, 7, "Softplus"), (FuseSoftplus(), SOFTPLUS, 22, "Softplus"),
     (FuseSoftplus(), STABLE, 13, "Softplus"),
     (FuseSoftplus(), STABLE.replace("Relu(x)", "Max(x, zero)"), 13, "Softplus"),
     (FuseMish(), MISH, 18, "Mish"), (FuseMish(), MISH, 22, "Mish"), (FuseSwish(), SWISH, 24, "Swish"),
     (FuseSwish(), SCALED, 24, "Swish")],
)  # fmt: skip
def test_fuses(pass_: Pass, body: str, opset: int, op: str) -> None:
    numbers = "float one = {1.0}, float zero = {0.0}, float alpha = {1.5}"
    before = graph(f"g (float[N,3] x) => (float[N,3] y) <{numbers}> {{ {body} }}", opset=opset)
    after, report = run(pass_, before)
    assert report.changed == 1
    assert ops(after) == [op]
    if body == SCALED:
        assert after.graph[0].attributes["alpha"].value == pytest.approx(1.5)


def test_softplus_is_right_where_the_written_out_form_overflows() -> None:
    before = graph(f"g (float[N] x) => (float[N] y) {ONE} {{ {STABLE} }}")
    run(FuseSoftplus(), before, {"x": np.array([-200, -1, 0, 1, 200], np.float32)})


@pytest.mark.parametrize(
    ("pass_", "body", "opset", "reason"),
    [(FuseMish(), MISH, 17, "Mish needs opset 18, the model has 17"),
     (FuseSwish(), SWISH, 23, "Swish needs opset 24, the model has 23"),
     (FuseSwish(), SCALED, 11, "Swish needs opset 24, the model has 11")],
)  # fmt: skip
def test_refuses_old_opsets(pass_: Pass, body: str, opset: int, reason: str) -> None:
    before = graph(f"g (float[N] x) => (float[N] y) <float alpha = {{1.5}}> {{ {body} }}", opset=opset)
    _, report = run(pass_, before)
    assert [n.text for n in report.refusals] == [reason]


def test_refuses_double() -> None:
    before = graph(f"g (double[N] x) => (double[N] y) <double one = {{1.0}}> {{ {SOFTPLUS} }}")
    assert "double" in run(FuseSoftplus(), before)[1].refusals[0].text


@pytest.mark.parametrize(
    ("pass_", "body", "shared"),
    [(FuseSoftplus(), SOFTPLUS, "b"), (FuseMish(), MISH, "s"), (FuseSwish(), SWISH, "s")],
)
def test_leaves_what_is_an_output_too(pass_: Pass, body: str, shared: str) -> None:
    before = graph(f"g (float[N] x) => (float[N] y, float[N] {shared}) {ONE} {{ {body} }}", opset=24)
    assert run(pass_, before)[1].changed == 0


def test_leaves_another_base_and_another_value() -> None:
    for pass_, body in ((FuseSoftplus(), "a = Exp(x) b = Add(a, two) y = Log(b)"),
                        (FuseMish(), "s = Softplus(x) t = Tanh(s) y = Mul(two, t)")):  # fmt: skip
        before = graph(f"g (float[N] x) => (float[N] y) <float two = {{2.0}}> {{ {body} }}")
        assert run(pass_, before)[1].changed == 0


def test_fuses_in_bodies() -> None:
    before = graph(f"""g (float[N] x, bool c) => (float[N] z) {ONE} {{
        z = If(c) <then_branch = t () => (float[N] y) {{ {SOFTPLUS} }},
                   else_branch = e () => (float[N] w) {{ w = Identity(x) }}> }}""")
    assert count_ops(run(FuseSoftplus(), before)[0])["Softplus"] == 1
