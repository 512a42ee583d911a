"""gather-one-hot."""

from typing import Any

import numpy as np
import pytest

from onnxopt.passes.cleanup.gather_one_hot import GatherOneHot
from tests.support import graph, ops, run

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(40, 3)).astype(np.float32)
IDS = {"x": np.array([[0, 1, 39, 40, -1, -2, 7], [-40, -41, 5, 2**31 - 1, -(2**31), 20, 3]])}
COMPARED = """u = Unsqueeze(x, last) e = Equal(u, numbers) c = Cast<to = 1>(e) y = MatMul(c, table)"""


def compared(nodes: str = COMPARED, first: int = 0, dtype: Any = np.int64, **given: Any) -> Any:
    constants = {"last": np.array([-1]), "numbers": (first + np.arange(40)).astype(dtype).reshape(1, 1, 40)}
    kind = "int32" if dtype == np.int32 else "int64"
    text = f"g ({kind}[N, T] x) => (float[N, T, 3] y) {{ {nodes} }}"
    return graph(text, **constants | {"table": TABLE} | given)


@pytest.mark.parametrize("first", [0, 1, -3])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_ids_compared_with_numbers(first: int, dtype: Any) -> None:
    """Those outside give zeros."""
    after, report = run(GatherOneHot(), compared(first=first, dtype=dtype), {"x": IDS["x"].astype(dtype)})
    assert report.changed == 1
    assert ops(after) == ["Unsqueeze", "Squeeze", "Clip", *(["Sub"] if first else []), "Gather"]


def test_either_side_and_a_row_of_numbers() -> None:
    nodes = COMPARED.replace("Equal(u, numbers)", "Equal(numbers, u)")
    after, _ = run(GatherOneHot(), compared(nodes, numbers=np.arange(40)), IDS)
    assert "MatMul" not in ops(after)


def test_of_opset_12() -> None:
    text = """g (int64[N, T] x) => (float[N, T, 3] y) { u = Unsqueeze<axes = [2]>(x) e = Equal(u, numbers)
        c = Cast<to = 1>(e) y = MatMul(c, table) }"""
    before = graph(text, opset=12, numbers=np.arange(40), table=TABLE)
    after, report = run(GatherOneHot(), before, IDS)
    assert report.changed == 1
    assert "MatMul" not in ops(after)


@pytest.mark.parametrize("axis", ["", "<axis = 2>"])
def test_one_hot(axis: str) -> None:
    """Its ids below 0 count from the end."""
    before = graph(
        f"g (int64[N, T] x) => (float[N, T, 3] y) {{ o = OneHot{axis}(x, depth, off_on) y = MatMul(o, table) }}",
        depth=np.array(40), table=TABLE, off_on=np.array([0, 1], np.float32),
    )  # fmt: skip
    after, report = run(GatherOneHot(), before, IDS)
    assert report.changed == 1
    assert ops(after) == ["Less", "Add", "Where", "Clip", "Gather"]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (compared(table=np.where(TABLE > 2, np.inf, TABLE)), "not finite"),
        (graph("g (int64[N, 1] x) => (float[N, 300] y) { e = Equal(x, numbers) c = Cast<to = 1>(e) "
               "y = MatMul(c, table) }", numbers=np.arange(40), table=np.ones((40, 300), np.float32)), "bytes larger"),
        (graph("g (int64[N] x) => (float[N, 3] y, float[40, 3] z) { u = Unsqueeze(x, last) e = Equal(u, numbers)"
               "c = Cast<to = 1>(e) y = MatMul(c, table) z = Neg(table) }",
               last=np.array([-1]), numbers=np.arange(40), table=TABLE), "others read the table"),
        (graph("g (int64[N] x) => (float[N, 3] y) { u = Unsqueeze<axes = [1]>(x) e = Equal(u, numbers)"
               "c = Cast<to = 1>(e) y = MatMul(c, table) }", opset=11, numbers=np.arange(40), table=TABLE), "opset 12"),
    ],
)  # fmt: skip
def test_refuses(model: Any, why: str) -> None:
    _, report = run(GatherOneHot(), model, verify=False)
    assert report.changed == 0
    assert why in str(report.refusals[0])


@pytest.mark.parametrize(
    "model",
    [
        compared(numbers=np.arange(40)[::-1].copy()),
        compared(numbers=2 * np.arange(40)),
        compared(COMPARED.replace("Equal(u", "Less(u")),
        graph("g (int64[40] x) => (float[40, 3] y) { e = Equal(x, numbers) c = Cast<to = 1>(e) y = MatMul(c, table) }",
              numbers=np.arange(40).reshape(1, 40).repeat(40, 0), table=TABLE),  # places of a row have ids of their own
    ],
)  # fmt: skip
def test_no_match(model: Any) -> None:
    _, report = run(GatherOneHot(), model, verify=False)
    assert report.changed == 0
    assert not report.refusals
