"""merge-casts."""

import pytest

from onnxopt.passes.cleanup.merge_casts import MergeCasts
from tests.support import graph, ops, run

FLOAT, UINT8, INT32, INT64, BOOL, FLOAT16, DOUBLE, BFLOAT16 = 1, 2, 6, 7, 9, 10, 11, 16


@pytest.mark.parametrize("opset", [9, 21])
@pytest.mark.parametrize(
    ("first", "wide", "last", "to"),
    [("float16", FLOAT, "float16", FLOAT16), ("int32", INT64, "int32", INT32), ("bool", FLOAT, "bool", BOOL),
     ("uint8", INT32, "uint8", UINT8), ("float", DOUBLE, "float", FLOAT), ("int32", DOUBLE, "int32", INT32)],
)  # fmt: skip
def test_removes_a_cast_there_and_back(first: str, wide: int, last: str, to: int, opset: int) -> None:
    make = (
        "a = Not(x)"
        if first == "bool"
        else "a = Mod(x, x)"
        if first == "uint8" and opset > 9
        else "a = Concat<axis=0>(x, x)"
    )
    before = graph(
        f"g ({first}[N] x) => ({last}[M] y) {{ {make} b = Cast<to = {wide}>(a) y = Cast<to = {to}>(b) }}", opset=opset
    )
    after, report = run(MergeCasts(), before)
    assert [note.text for note in report.changes] == ["cast back to what it was"]
    assert len(ops(after)) == 1
    assert after.graph.outputs[0].name == "y"


@pytest.mark.parametrize(
    ("first", "wide", "last", "to"),
    [("float16", FLOAT, "double", DOUBLE), ("int32", INT64, "float", FLOAT), ("bool", INT32, "float", FLOAT)],
)
def test_casts_at_once(first: str, wide: int, last: str, to: int) -> None:
    before = graph(f"g ({first}[N] x) => ({last}[N] y) {{ b = Cast<to = {wide}>(x) y = Cast<to = {to}>(b) }}")
    after, report = run(MergeCasts(), before)
    assert report.changed == 1
    assert ops(after) == ["Cast"]
    assert after.graph[0].attributes["to"].value == to


@pytest.mark.parametrize(
    ("first", "middle", "last", "to"),
    [("float", FLOAT16, "float", FLOAT), ("int64", INT32, "int64", INT64), ("int64", DOUBLE, "int64", INT64),
     ("int32", FLOAT, "int32", INT32), ("float", INT32, "float", FLOAT), ("float16", BFLOAT16, "float16", FLOAT16),
     ("float", BOOL, "float", FLOAT)],
)  # fmt: skip
def test_keeps_a_cast_that_loses(first: str, middle: int, last: str, to: int) -> None:
    before = graph(f"g ({first}[N] x) => ({last}[N] y) {{ b = Cast<to = {middle}>(x) y = Cast<to = {to}>(b) }}")
    _, report = run(MergeCasts(), before)
    assert report.changed == 0


def test_the_wide_value_is_read_elsewhere_too() -> None:
    before = graph(
        "g (int32[N] x) => (int32[N] y, int64[N] b) { a = Neg(x) b = Cast<to = 7>(a) c = Cast<to = 6>(b) y = Abs(c) }"
    )
    after, _ = run(MergeCasts(), before)
    assert ops(after) == ["Neg", "Cast", "Abs"]


def test_an_input_cannot_become_the_output() -> None:
    before = graph("g (int32[N] x) => (int32[N] y) { b = Cast<to = 7>(x) y = Cast<to = 6>(b) }")
    after, report = run(MergeCasts(), before)
    assert report.changed == 1
    assert ops(after) == ["Cast"]
    assert run(MergeCasts(), after)[1].changed == 0


def test_inside_a_body() -> None:
    before = graph(
        """g (float16[N] x, bool c) => (float16[N] y) {
            b = Cast<to = 1>(x)
            y = If (c) <then_branch = t () => (float16[N] p) { q = Cast<to = 10>(b) p = Abs(q) },
                        else_branch = e () => (float16[N] r) { r = Neg(x) }>
        }"""
    )
    after, report = run(MergeCasts(), before)
    assert report.changed == 1
    assert ops(after) == ["If"]
