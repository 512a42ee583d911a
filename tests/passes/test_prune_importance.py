"""What channels are worth: the same numbers however a model is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.channels import ChannelGraph
from onnxopt.graph import Editor
from onnxopt.passes.prune._importance import Criterion, importance
from tests.support import graph

Array = np.ndarray[Any, Any]


def normal(*shape: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


WEIGHTS = {
    "a": normal(8, 4, 3, 3, seed=0), "c": normal(5, 8, 1, 1, seed=1), "s": normal(8, seed=2), "o": normal(8, seed=3),
}  # fmt: skip
FORMS = {
    "BatchNormalization": ("n = BatchNormalization(h, s, o, zero, one)", {}),
    "written out": (
        "k = Mul(h, s) n = Add(k, o)",
        {"s": WEIGHTS["s"][:, None, None], "o": WEIGHTS["o"][:, None, None]},
    ),
    "written out, with a batch": (
        "k = Mul(h, s) n = Add(k, o)",
        {"s": WEIGHTS["s"][None, :, None, None], "o": WEIGHTS["o"][None, :, None, None]},
    ),
    "with another way to subtract": (
        "k = Mul(h, s) n = Sub(k, o)",
        {"s": WEIGHTS["s"][:, None, None], "o": -WEIGHTS["o"][:, None, None]},
    ),
}


def scores(model: ir.Model, criterion: Criterion) -> Array:
    (group,) = (group for group in ChannelGraph(Editor(model)).groups if not group.frozen)
    return importance(group, criterion, None, np.random.default_rng(0))


@pytest.mark.parametrize("form", FORMS)
def test_scales_count_and_shifts_do_not(form: str) -> None:
    """The oracle: Torch-Pruning's means over filters, scales and readers, written out."""
    between, own = FORMS[form]
    model = graph(
        f"g (float[N,4,8,8] x) => (float[N,5,6,6] y) {{ h = Conv(x, a) {between} y = Conv(n, c) }}",
        zero=np.zeros(8, np.float32), one=np.ones(8, np.float32), **WEIGHTS | own,
    )  # fmt: skip
    a, c, s = (WEIGHTS[name].astype(np.float64) for name in "acs")
    for criterion, power in (("l1", 1), ("l2", 2)):
        parts = [(abs(each) ** power).sum(axis=axes) for each, axes in ((a, (1, 2, 3)), (c, (0, 2, 3)), (s, ()))]
        np.testing.assert_allclose(scores(model, criterion), np.mean(parts, axis=0), rtol=1e-6)  # type: ignore[arg-type]
    np.testing.assert_allclose(scores(model, "bn-scale"), abs(s), rtol=1e-6)


def test_depthwise_filters_do_not_count() -> None:
    model = graph(
        "g (float[N,4,8,8] x) => (float[N,5,4,4] y) { h = Conv(x, a) d = Conv<group = 8>(h, e) y = Conv(d, c) }",
        a=WEIGHTS["a"], c=WEIGHTS["c"], e=normal(8, 1, 3, 3, seed=4) * 100,
    )  # fmt: skip
    a, c = (WEIGHTS[name].astype(np.float64) for name in "ac")
    wanted = ((a**2).sum(axis=(1, 2, 3)) + (c**2).sum(axis=(0, 2, 3))) / 2
    np.testing.assert_allclose(scores(model, "l2"), wanted, rtol=1e-6)
