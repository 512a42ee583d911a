"""fuse-group-norm."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.passes.cleanup.fuse_group_norm import FuseGroupNorm
from tests.support import graph, ops, run

RNG = np.random.default_rng(0)
FORM = (
    "r = Reshape(x, split) n = InstanceNormalization<epsilon = 0.001>(r, one, zero) s = Shape(x) "
    "q = Reshape(n, s) t = Mul(q, scale) y = Add(t, bias)"
)


def model(body: str = FORM, opset: int = 21, dims: str = "N,6,4,H", out: str = "", **given: Any) -> ir.Model:
    arrays = {"one": np.ones(3), "zero": np.zeros(3), "scale": RNG.normal(size=(6, 1, 1)),
              "bias": RNG.normal(size=(6, 1, 1)), **given}  # fmt: skip
    inits: dict[str, Any] = {
        n: np.asarray(a, np.float32 if np.asarray(a).dtype.kind == "f" else np.int64) for n, a in arrays.items()
    }
    inits.setdefault("split", np.array([0, 3, -1]))
    return graph(f"g (float[{dims}] x) => (float[{dims}] y{out}) {{ {body} }}", opset=opset, ir_version=10, **inits)


@pytest.mark.parametrize("opset", [21, 23])
@pytest.mark.parametrize("dims", ["N,6,4,H", "2,6,4,4"])
def test_fuses(opset: int, dims: str) -> None:
    after, report = run(FuseGroupNorm(), model(opset=opset, dims=dims))
    assert report.changed == 1
    assert "GroupNormalization" in ops(after)
    assert "Mul" not in ops(after)
    (node,) = [node for node in after.graph if node.op_type == "GroupNormalization"]
    assert node.attributes["num_groups"].value == 3
    assert node.attributes["epsilon"].value == pytest.approx(1e-3)


def test_fuses_with_a_static_shape_to_return_to() -> None:
    body = FORM.replace("q = Reshape(n, s)", "q = Reshape(n, whole)")
    before = model(body, dims="2,6,4,4", whole=np.array([2, 6, 4, 4]))
    assert "GroupNormalization" in ops(run(FuseGroupNorm(), before)[0])


def test_refuses() -> None:
    for opset in (12, 18, 20):
        _, report = run(FuseGroupNorm(), model(opset=opset))
        assert [n.text for n in report.refusals] == [f"GroupNormalization needs opset 21, the model has {opset}"]
    _, report = run(FuseGroupNorm(), model(dims="2,6,4,4", split=np.array([1, 3, -1])))
    assert "no split into groups of channels" in report.refusals[0].text
    _, report = run(FuseGroupNorm(), model(scale=np.ones((1, 1, 1))))
    assert "GroupNormalization takes [6, 1, 1]" in report.refusals[0].text


def test_leaves_an_inner_scale_and_what_is_read_elsewhere() -> None:
    assert run(FuseGroupNorm(), model(one=np.full(3, 2.0)))[1].changed == 0
    assert run(FuseGroupNorm(), model(out=", float[N,3,K] n"))[1].changed == 0
