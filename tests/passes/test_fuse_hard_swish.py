"""fuse-hard-swish and fuse-hard-sigmoid."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.passes.cleanup.fuse_hard_sigmoid import FuseHardSigmoid
from onnxopt.passes.cleanup.fuse_hard_swish import FuseHardSwish
from tests.support import count_ops, graph, ops, run

CONSTANTS = {"three": 3.0, "zero": 0.0, "six": 6.0, "sixth": 1 / 6, "half": 0.5, "one": 1.0, "fifth": 0.2}

CLIPS = [
    "a = Add(x, three) c = Clip(a, zero, six)",
    "a = Add(three, x) l = Max(a, zero) c = Min(l, six)",
    "a = Add(x, three) l = Relu(a) c = Min(six, l)",
    "a = Add(x, three) l = Min(a, six) c = Max(l, zero)",
]
TAILS = [
    "m = Mul(x, c) y = Div(m, six)", "m = Mul(c, x) y = Mul(m, sixth)", "d = Div(c, six) y = Mul(x, d)",
    "d = Mul(c, sixth) y = Mul(d, x)", "d = Div(x, six) y = Mul(d, c)",
]  # fmt: skip
SIGMOID = "c = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x) y = Mul(x, c)"


def model(body: str, opset: int = 14, dtype: Any = np.float32) -> ir.Model:
    used: dict[str, Any] = {n: np.array(v, dtype) for n, v in CONSTANTS.items() if f" {n})" in body or f"{n}," in body}
    types: dict[Any, str] = {
        np.float32: "float", np.float16: "float16", np.float64: "double", np.int32: "int32"
    }  # fmt: skip
    type_ = types[dtype]
    return graph(f"g ({type_}[N,3] x) => ({type_}[N,3] y) {{ {body} }}", opset=opset, **used)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("tail", TAILS)
def test_fuses_hard_swish(clip: str, tail: str) -> None:
    after, report = run(FuseHardSwish(), model(f"{clip} {tail}"))
    assert report.changed == 1
    assert ops(after) == ["HardSwish"]


@pytest.mark.parametrize("body", [SIGMOID, SIGMOID.replace(", beta = 0.5", ""),
                                  "a = Mul(x, sixth) b = Add(a, half) c = Clip(b, zero, one) y = Mul(c, x)"])
def test_fuses_hard_swish_of_a_hard_sigmoid(body: str) -> None:
    assert ops(run(FuseHardSwish(), model(body))[0]) == ["HardSwish"]


def test_the_order_of_both_passes_does_not_matter() -> None:
    before = model(f"{CLIPS[0]} {TAILS[2]}")
    first, _ = run(FuseHardSigmoid(), before)
    assert ops(first) == ["HardSigmoid", "Mul"]
    assert ops(run(FuseHardSwish(), first)[0]) == ["HardSwish"]


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("tail", ["y = Div(c, six)", "y = Mul(sixth, c)"])
def test_fuses_hard_sigmoid(clip: str, tail: str) -> None:
    after, _ = run(FuseHardSigmoid(), model(f"{clip} {tail}"))
    assert ops(after) == ["HardSigmoid"]
    assert after.graph[0].attributes["alpha"].value == pytest.approx(1 / 6)


@pytest.mark.parametrize("body", ["a = Mul(x, fifth) b = Add(a, half) y = Clip(b, zero, one)",
                                  "a = Div(x, six) b = Add(half, a) y = Clip(b, zero, one)"])
def test_fuses_any_slope(body: str) -> None:
    assert ops(run(FuseHardSigmoid(), model(body))[0]) == ["HardSigmoid"]


@pytest.mark.parametrize("tail", TAILS)
def test_fuses_the_hard_sigmoid_within_a_hard_swish(tail: str) -> None:
    assert ops(run(FuseHardSigmoid(), model(f"{CLIPS[0]} {tail}", 12))[0]) == ["HardSigmoid", "Mul"]


@pytest.mark.parametrize("opset", [7, 10])
def test_fuses_clip_with_attributes(opset: int) -> None:
    body = "a = Add(x, three) c = Clip<min = 0.0, max = 6.0>(a) m = Mul(c, x) y = Div(m, six)"
    assert ops(run(FuseHardSigmoid(), model(body, opset))[0]) == ["HardSigmoid", "Mul"]
    _, report = run(FuseHardSwish(), model(body, opset))
    assert [n.text for n in report.refusals] == [f"HardSwish needs opset 14, the model has {opset}"]


def test_fuses_in_half_up_to_the_newest_opset() -> None:
    before = model(f"{CLIPS[0]} {TAILS[0]}", 23, np.float16)
    assert ops(run(FuseHardSwish(), before, verify=False)[0]) == ["HardSwish"]
    assert ops(run(FuseHardSigmoid(), model(f"{CLIPS[0]} y = Div(c, six)", 23, np.float16), verify=False)[0]) == [
        "HardSigmoid"
    ]


def test_refuses_double_and_integers() -> None:
    body = f"{CLIPS[0]} y = Div(c, six)"
    assert "double" in run(FuseHardSigmoid(), model(body, 14, np.float64))[1].refusals[0].text
    _, report = run(FuseHardSigmoid(), model(body, 14, np.int32))
    assert report.refusals[0].text == "it computes in int32, HardSigmoid in floats"
    assert "double" in run(FuseHardSwish(), model(f"{CLIPS[0]} {TAILS[0]}", 14, np.float64))[1].refusals[0].text


def test_leaves_other_bounds_and_other_values() -> None:
    for body in ("a = Add(x, three) c = Clip(a, zero, three) m = Mul(x, c) y = Div(m, six)",
                 "a = Add(x, three) c = Clip(a, zero) m = Mul(x, c) y = Div(m, six)",
                 "a = Add(x, three) c = Clip(a, zero, six) m = Mul(a, c) y = Div(m, six)"):  # fmt: skip
        assert run(FuseHardSwish(), model(body))[1].changed == 0


def test_leaves_what_others_read() -> None:
    before = graph("g (float[N] x) => (float[N] y, float[N] c) "
                   "{ c = HardSigmoid<alpha = 0.16666667>(x) y = Mul(x, c) }")  # fmt: skip
    assert run(FuseHardSwish(), before)[1].changed == 0


def test_fuses_in_bodies_and_functions() -> None:
    constants = "".join(f"{n} = Constant<value = float {{{CONSTANTS[n]}}}>() " for n in ("three", "zero", "six"))
    inner = f"{constants} {CLIPS[0]} {TAILS[0]}"
    body = graph(f"""g (float[N] x, bool k) => (float[N] z) {{
        z = If(k) <then_branch = t () => (float[N] y) {{ {inner} }},
                   else_branch = e () => (float[N] w) {{ w = Identity(x) }}> }}""")
    assert count_ops(run(FuseHardSwish(), body)[0])["HardSwish"] == 1
    function = graph(f"""g (float[N] x) => (float[N] z) {{ z = my.f(x) }}
        <domain: "my", opset_import: ["" : 18]> f (x) => (y) {{ {inner} }}""", extra=', "my" : 1')
    assert count_ops(run(FuseHardSwish(), function)[0])["HardSwish"] == 1
