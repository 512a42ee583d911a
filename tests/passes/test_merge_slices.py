"""merge-slices."""

import itertools
from typing import Any

import numpy as np
import pytest

from onnxopt.passes.cleanup._operands import END
from onnxopt.passes.cleanup.merge_slices import MergeSlices
from tests.support import assert_same_outputs, graph, ops, run


def _slice(
    out: str, x: str, starts: list[int], ends: list[int], axes: list[int], steps: list[int] | None = None
) -> str:
    names = {"s": starts, "e": ends, "a": axes, **({"t": steps} if steps else {})}
    constants = " ".join(
        f"{out}{k} = Constant<value = int64[{len(v)}] {{{', '.join(map(str, v))}}}>()" for k, v in names.items()
    )
    return f"{constants} {out} = Slice({x}, {', '.join(out + k for k in names)})"


def _model(first: str, second: str, dims: str = "N,12", opset: int = 18) -> Any:
    return graph(f"g (float[{dims}] x) => (float[A,B] y) {{ {first} {second} }}", opset=opset)


def _nodes(model: Any) -> list[str]:
    return [op for op in ops(model) if op != "Constant"]


def test_different_axes() -> None:
    before = _model(_slice("b", "x", [0], [1], [0]), _slice("y", "b", [9], [-10], [-1], [-2]))
    after, report = run(MergeSlices(), before)
    assert report.changed == 1
    assert _nodes(after) == ["Slice"]


@pytest.mark.parametrize("dims", ["N,12", "N,M"])
def test_one_axis_from_the_front(dims: str) -> None:
    cuts = list(itertools.product((0, 2, 7, 40), (0, 1, 3, 8, END)))
    x = np.random.default_rng(0).normal(size=(2, 12)).astype(np.float32)
    for (a, b), (c, d) in itertools.product(cuts[::3], cuts):
        before = _model(_slice("b", "x", [a], [b], [1]), _slice("y", "b", [c], [d], [1]), dims)
        after, report = run(MergeSlices(), before, verify=False)
        assert report.changed == 1
        node = next(n for n in after.graph if n.op_type == "Slice")
        start, end = (
            int(v.const_value.numpy()[0]) for v in node.inputs[1:3] if v is not None and v.const_value is not None
        )
        np.testing.assert_array_equal(x[:, start:end], x[:, a:b][:, c:d])


@pytest.mark.parametrize(("a", "b", "c", "d"), [(-9, -1, -3, -1), (2, -2, 1, -1), (-40, 5, -2, 90)])
def test_one_axis_from_the_end(a: int, b: int, c: int, d: int) -> None:
    before = _model(_slice("b", "x", [a], [b], [1]), _slice("y", "b", [c], [d], [1]))
    after, report = run(MergeSlices(), before)
    assert report.changed == 1
    assert _nodes(after) == ["Slice"]
    _, report = run(
        MergeSlices(), _model(_slice("b", "x", [a], [b], [1]), _slice("y", "b", [c], [d], [1]), "N,M"), verify=False
    )
    assert report.changed == 0


def test_steps_on_the_same_axis_stay() -> None:
    before = _model(_slice("b", "x", [0], [9], [1], [2]), _slice("y", "b", [1], [3], [1]))
    assert run(MergeSlices(), before)[1].changed == 0


def test_attributes() -> None:
    before = graph(
        "g (float[N,12] x) => (float[A,B] y) { b = Slice<starts = [2], ends = [9], axes = [1]>(x)"
        " y = Slice<starts = [0, 1], ends = [1, 3]>(b) }",
        opset=7,
    )
    after, _ = run(MergeSlices(), before)
    assert ops(after) == ["Slice"]
    assert [after.graph[0].attributes[k].value for k in ("starts", "ends", "axes")] == [(0, 3), (1, 5), (0, 1)]


def test_the_first_is_an_output_too() -> None:
    before = graph(
        f"g (float[N,12] x) => (float[A,B] y, float[N,C] b) {{"
        f" {_slice('b', 'x', [1], [9], [1])} {_slice('y', 'b', [1], [3], [1])} }}"
    )
    assert run(MergeSlices(), before)[1].changed == 0


def test_in_a_function() -> None:
    before = graph(
        f"""g (float[N,12] x) => (float[N,M] y) {{ y = my.f(x) }}
        <domain: "my", opset_import: ["" : 18]> f (v) => (w) {{
            {_slice("b", "v", [1], [9], [1])} {_slice("w", "b", [1], [3], [1])} }}""",
        extra=', "my" : 1',
    )
    after, report = run(MergeSlices(), before)
    assert report.changed == 1
    assert_same_outputs(before, after)


def test_into_all_that_cut_it_further_or_none() -> None:
    """The patches of Swin: rows of one parity, cut into columns of either parity."""
    rows = _slice("r", "x", [1], [END], [1], [2])
    even, odd = _slice("e", "r", [0], [END], [2], [2]), _slice("o", "r", [1], [END], [2], [2])
    signature = "g (float[N,12,8] x) => (float[A,B,C] e, float[D,E,F] o"
    after, report = run(MergeSlices(), graph(f"{signature}) {{ {rows} {even} {odd} }}"))
    assert report.changed == 2
    assert _nodes(after) == ["Slice", "Slice"]
    before = graph(f"{signature}, float[G,H,I] y) {{ {rows} {even} {odd} y = Relu(r) }}")
    assert run(MergeSlices(), before)[1].changed == 0
