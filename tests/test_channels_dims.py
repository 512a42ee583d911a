"""Dims that inference leaves open: what is learnt of them is true for every size, and what is not sure stays open."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onnxopt.channels._dims import learn_dims
from onnxopt.graph import Editor
from onnxopt.shapes import Dim
from tests.channels_cases import arrays, image, rows
from tests.channels_oracle import assert_removal_is_zeroing, free, members
from tests.support import graph, outputs

TABLE = {"table": (9, 4)}
SIZE = "s = Shape(x)\n n = Gather(s, first)\n t = Gather(s, second)\n"
NUMBERS: dict[str, Any] = {"first": np.array(0), "second": np.array(1), "one": np.array(1), "zero": [0]}
CUT = f"{SIZE} t1 = Unsqueeze(t, zero)\n p = Slice(table, zero, t1, zero)\n"
"""As many rows of ``table`` as ``x`` has places."""

KNOWN: dict[str, tuple[str, dict[str, Any], list[Dim]]] = {
    "Range up to a size": (f"{SIZE} r = Range(first, t, one)\n y = Cast<to = 1>(r)", {}, ["T"]),
    "Range from elsewhere": (f"{SIZE} r = Range(one, t, one)\n y = Cast<to = 1>(r)", {}, [None]),
    "Range in steps": (f"{SIZE} r = Range(first, t, two)\n y = Cast<to = 1>(r)", {"two": np.array(2)}, [None]),
    "Reshape, the rest is a dim": ("y = Reshape(x, to)", {"to": [0, -1, 2, 2]}, ["N", "T", 2, 2]),
    "Reshape, the rest is a number": (
        f"{SIZE} n1 = Unsqueeze(n, zero)\n t1 = Unsqueeze(t, zero)\n s1 = Concat<axis = 0>(n1, t1, rest, two)\n"
        "y = Reshape(x, s1)", {"rest": [-1], "two": [2]}, ["N", "T", 2, 2]),
    "Reshape, the rest is several dims": ("y = Reshape(x, to)", {"to": [-1, 4]}, [None, 4]),
    "Reshape, the rest is a multiple of a dim": ("y = Reshape(x, to)", {"to": [0, -1, 2]}, ["N", None, 2]),
    "Slice of another axis": (f"{SIZE} t1 = Unsqueeze(t, zero)\n y = Slice(x, zero, t1, two)", {"two": [2]},
                              ["N", "T", "T, at most 4"]),
    "Slice to the end": ("y = Slice(x, zero, end, axes)", {"zero": [0, 1], "end": [2**40, 2**40], "axes": [0, 2]},
                         ["N", "T", 3]),
    "Slice from the second on": ("y = Slice(x, begin, end, axes)", {"begin": [1], "end": [2**40], "axes": [1]},
                                 ["N", None, 4]),
    "Slice in steps": ("y = Slice(x, zero, end, axes, step)", {"end": [2**40], "axes": [1], "step": [2]},
                       ["N", None, 4]),
    "Slice up to a size may give less": (f"{CUT} y = Identity(p)", TABLE, ["T, at most 9", 4]),
    "Slice up to a size, then added": (f"{CUT} y = Add(x, p)", TABLE, ["N", "T", 4]),
    "Slice up to a size of an axis of 1": (f"{CUT} y = Add(x, p)", {"table": (1, 4)}, ["N", None, 4]),
    "Slice up to a size, then repeated for samples": (
        f"{CUT} z = Concat<axis = 0>(s, four)\n z1 = Slice(z, zero, three, zero)\n y = Expand(p, z1)",
        {**TABLE, "three": [3], "four": [4]}, ["N", "T", 4]),
    "Slice up to a size, added to another dim": (
        f"{CUT} x1 = Transpose<perm = [1, 0, 2]>(x)\n y = Add(x1, p)", TABLE, ["T", None, 4]),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("places", [1, 3])
def test_dims(name: str, places: int) -> None:
    body, weights, expected = KNOWN[name]
    used = {name: array for name, array in {**NUMBERS, **weights}.items() if f"{name})" in body or f"{name}," in body}
    model = graph(f"g (float[N,T,4] x) => (float y) {{ {body} }}", **arrays(used))
    for value in model.graph.outputs:
        value.shape = None
    editor = Editor(model)
    learn_dims(editor)
    found = editor.shape(model.graph.outputs[0])
    assert found is not None
    assert [None if str(dim).startswith("unk__") else dim for dim in found] == expected
    sizes: dict[Any, int] = {"N": 3, "T": places, "T, at most 9": places, "T, at most 4": places}
    (y,) = outputs(model, {"x": np.zeros((3, places, 4), np.float32)})
    assert len(y.shape) == len(found)
    for dim, size in zip(found, y.shape, strict=True):
        assert size == sizes.get(dim, dim if isinstance(dim, int) else size)


def test_dims_of_a_resize_to_computed_sizes() -> None:
    # before opset 13, inference does not follow sizes that are computed
    text = (
        "s = Shape(a)\n n = Slice(s, zero, two, zero)\n z = Shape(x)\n hw = Slice(z, two, four, zero)\n"
        "t = Concat<axis = 0>(n, hw)\n p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(a)\n"
        "b = Resize(p, none, none, t)"
    )
    case = image(text, zero=[0], two=[2], four=[4], none=np.zeros(0, np.float32), opset=11)
    model = replace(case, body=case.body.replace("3,4,4", "3,H,W")).model()
    assert free(model) == "w[0]:8"
    for h, w in ((4, 6), (2, 8)):
        x = np.random.default_rng(0).standard_normal((2, 3, h, w)).astype(np.float32)
        assert assert_removal_is_zeroing(model, feeds={"x": x}, by_members=False) == 4


def test_heads_behind_positions() -> None:
    # as exporters write BERT: embeddings of so many positions as there are are added, and their sum is split into heads
    model = graph(
        f"""g (float[N,T,6] x) => (float[N,T,3] y) <int64[1] rest = {{-1}}, int64[1] each = {{3}}> {{ {SIZE}
            n1 = Unsqueeze(n, zero) t1 = Unsqueeze(t, zero) p = Slice(table, zero, t1, zero) e = Add(x, p)
            split = Concat<axis = 0>(n1, t1, rest, each) merge = Concat<axis = 0>(n1, t1, rest)
            q0 = MatMul(e, wq) q1 = Reshape(q0, split) q = Transpose<perm = [0, 2, 1, 3]>(q1)
            k = Transpose<perm = [0, 2, 3, 1]>(q1) s0 = MatMul(q, k) p0 = Softmax(s0) c = MatMul(p0, q)
            c1 = Transpose<perm = [0, 2, 1, 3]>(c) f = Reshape(c1, merge) y = MatMul(f, wo) }}""",
        **arrays(
            {"table": (9, 6), "wq": (6, 12), "wo": (12, 3), "first": np.array(0), "second": np.array(1), "zero": [0]}
        ),
    )
    assert members(model, "head") == [{"wq[1]", "wo[0]"}]
    for places in (1, 4, 9):
        x = np.random.default_rng(0).standard_normal((2, places, 6)).astype(np.float32)
        assert assert_removal_is_zeroing(model, unit="head", feeds={"x": x}) == 2


def test_types_are_only_read() -> None:
    # what is cast like the channels does not have them
    model = rows("c = CastLike(half, a)\n b = Mul(a, c)", half=np.array(0.5)).model()
    assert free(model) == "w[1]:12"
    assert assert_removal_is_zeroing(model) == 6
