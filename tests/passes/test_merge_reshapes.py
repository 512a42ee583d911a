"""merge-reshapes."""

from typing import Any

import numpy as np
import pytest

from onnxopt.passes.cleanup.merge_reshapes import MergeReshapes
from tests.support import graph, ops, run


def _shape(name: str, *dims: int) -> str:
    return f"{name} = Constant<value = int64[{len(dims)}] {{{', '.join(map(str, dims))}}}>()"


def _nodes(model: Any) -> list[str]:
    return [op for op in ops(model) if op != "Constant"]


CONSTANTS = " ".join(
    [_shape("flat", -1, 12), _shape("back", -1, 3, 4), _shape("copy", 0, 2, 6), _shape("all", -1), _shape("one", 1),
     _shape("two", 2), _shape("last", -1, 1), _shape("zero", 0)]
)  # fmt: skip


@pytest.mark.parametrize(
    ("dims", "nodes", "rank", "left"),
    [("N,3,4", "a = Reshape(r, flat) z = Reshape(a, back)", 3, []),
     ("N,3,4", "a = Reshape(r, all) z = Reshape(a, flat)", 2, ["Reshape"]),
     ("N,3,4", "a = Unsqueeze(r, one) z = Reshape(a, flat)", 2, ["Reshape"]),
     ("N,3,4", "a = Flatten(r) z = Reshape(a, back)", 3, []),
     ("N,3,4", "a = Flatten(r) z = Reshape(a, copy)", 3, ["Reshape"]),
     ("N,3,4", "a = Reshape(r, flat) z = Unsqueeze(a, two)", 3, ["Reshape"]),
     ("N,M,4", "a = Unsqueeze(r, one) z = Squeeze(a, one)", 3, []),
     ("N,M,4", "a = Unsqueeze(r, one) z = Unsqueeze(a, zero)", 5, ["Unsqueeze"]),
     ("N,1,1,M", "a = Squeeze(r, one) z = Squeeze(a, one)", 2, ["Squeeze"]),
     ("N,1,M", "a = Squeeze(r, one) z = Unsqueeze(a, one)", 3, []),
     ("N,1,5", "a = Transpose<perm = [0, 2, 1]>(r) z = Reshape(a, last)", 2, ["Reshape"]),
     ("N,1,5", "a = Reshape(r, last) b = Unsqueeze(a, one) z = Transpose<perm = [0, 2, 1]>(b)", 3, ["Reshape"])],
)  # fmt: skip
@pytest.mark.parametrize("opset", [13, 22])
def test_merges(dims: str, nodes: str, rank: int, left: list[str], opset: int) -> None:
    out = ",".join("ABCDE"[:rank])
    before = graph(
        f"g (float[{dims}] x) => (float[{out}] y) {{ {CONSTANTS} r = Relu(x) {nodes} y = Neg(z) }}", opset=opset
    )
    after, report = run(MergeReshapes(), before)
    assert report.changed == 1
    while report.changed:
        after, report = run(MergeReshapes(), after)
    assert _nodes(after) == ["Relu", *left, "Neg"]


def test_attributes_of_old_opsets() -> None:
    before = graph(
        "g (float[N,M] x) => (float[1,N,1,1,M] y) {"
        " a = Unsqueeze<axes = [1]>(x) b = Unsqueeze<axes = [0, 3]>(a) y = Neg(b) }",
        opset=9,
    )
    after, _ = run(MergeReshapes(), before)
    assert ops(after) == ["Unsqueeze", "Neg"]
    assert after.graph[0].attributes["axes"].value == (0, 2, 3)


@pytest.mark.parametrize(
    ("dims", "nodes", "out"),
    [("N,M,4", "a = Unsqueeze(x, one) y = Flatten(a)", "A,B"),
     ("N,M,K", "a = Unsqueeze(x, zero) b = Reshape(a, keep) y = Squeeze(b, zero)", "A,B,C"),
     ("N,5", "a = Transpose<perm = [1, 0]>(x) y = Reshape(a, all)", "A")],
)  # fmt: skip
def test_keeps(dims: str, nodes: str, out: str) -> None:
    keep = _shape("keep", 0, -1, 0, 0)
    _, report = run(MergeReshapes(), graph(f"g (float[{dims}] x) => (float[{out}] y) {{ {CONSTANTS} {keep} {nodes} }}"))
    assert report.changed == 0


def test_the_middle_value_is_an_output_too() -> None:
    before = graph(
        f"g (float[N,3,4] x) => (float[N,12] a, float[N,3,4] y) {{"
        f" {CONSTANTS} r = Neg(x) a = Reshape(r, flat) y = Reshape(a, back) }}"
    )
    after, _ = run(MergeReshapes(), before)
    assert _nodes(after) == ["Neg", "Reshape"]


def test_a_shape_that_copies_what_the_first_changed_is_written_out() -> None:
    before = graph(
        f"g (float[4,N,3] x) => (float[A,B,C] y) {{ {CONSTANTS} a = Reshape(x, flat) y = Reshape(a, copy) }}"
    )
    after, _ = run(MergeReshapes(), before)
    assert _nodes(after) == ["Reshape"]
    target = after.graph[-1].inputs[1]
    assert target is not None
    assert target.const_value is not None
    assert target.const_value.numpy().tolist() == [-1, 2, 6]


def test_in_a_function() -> None:
    before = graph(
        f"""g (float[N,3,4] x) => (float[N,12] y) {{ y = my.f(x) }}
        <domain: "my", opset_import: ["" : 18]> f (v) => (w) {{
            {CONSTANTS} a = Unsqueeze(v, one) w = Reshape(a, flat) }}""",
        extra=', "my" : 1',
    )
    after, report = run(MergeReshapes(), before)
    assert report.changed == 1
    assert [n.op_type for f in after.functions.values() for n in f if n.op_type != "Constant"] == ["Reshape"]


def test_an_unsqueeze_that_only_unsqueezes_read_is_taken_over_by_all() -> None:
    body = """g (float[N] x) => (float[1, 1, N, 1] y, float[1, 1, 1, N] z) {
        a = Unsqueeze(x, first) y = Unsqueeze(a, three) z = Unsqueeze(a, two)
    }"""
    numbers: dict[str, Any] = {"first": np.array([0, 1]), "two": np.array([2]), "three": np.array([3])}
    after, report = run(MergeReshapes(), graph(body, **numbers))
    assert report.changed == 2
    assert ops(after) == ["Unsqueeze", "Unsqueeze"]
