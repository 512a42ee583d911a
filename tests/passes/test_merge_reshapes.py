"""merge-reshapes."""

from typing import Any

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
    ("dims", "nodes", "left"),
    [("N,3,4", "a = Reshape(x, flat) y = Reshape(a, back)", ["Relu", "Neg"]),
     ("N,3,4", "a = Reshape(x, all) y = Reshape(a, flat)", ["Relu", "Reshape", "Neg"]),
     ("N,3,4", "a = Unsqueeze(x, one) y = Reshape(a, flat)", ["Relu", "Reshape", "Neg"]),
     ("N,3,4", "a = Flatten(x) y = Reshape(a, back)", ["Relu", "Neg"]),
     ("N,3,4", "a = Flatten(x) y = Reshape(a, copy)", ["Relu", "Reshape", "Neg"]),
     ("N,3,4", "a = Reshape(x, flat) y = Unsqueeze(a, two)", ["Relu", "Reshape", "Neg"]),
     ("N,M,4", "a = Unsqueeze(x, one) y = Squeeze(a, one)", ["Relu", "Neg"]),
     ("N,M,4", "a = Unsqueeze(x, one) y = Unsqueeze(a, zero)", ["Relu", "Unsqueeze", "Neg"]),
     ("N,1,1,M", "a = Squeeze(x, one) y = Squeeze(a, one)", ["Relu", "Squeeze", "Neg"]),
     ("N,1,M", "a = Squeeze(x, one) y = Unsqueeze(a, one)", ["Relu", "Neg"]),
     ("N,1,5", "a = Transpose<perm = [0, 2, 1]>(x) y = Reshape(a, last)", ["Relu", "Reshape", "Neg"]),
     ("N,1,5", "a = Reshape(x, last) b = Unsqueeze(a, one) y = Transpose<perm = [0, 2, 1]>(b)", ["Relu", "Reshape", "Neg"])],
)  # fmt: skip
@pytest.mark.parametrize("opset", [13, 22])
def test_merges(dims: str, nodes: str, left: list[str], opset: int) -> None:
    nodes = nodes.replace("(x", "(r").replace("y =", "z =")
    before = graph(f"g (float[{dims}] x) => (float[] y) {{ {CONSTANTS} r = Relu(x) {nodes} y = Neg(z) }}", opset=opset)
    after, report = run(MergeReshapes(), before)
    assert report.changed >= 1
    assert _nodes(after) == left
    assert run(MergeReshapes(), after)[1].changed == 0


def test_attributes_of_old_opsets() -> None:
    before = graph(
        "g (float[N,M] x) => (float[1,N,1,1,M] y) { a = Unsqueeze<axes = [1]>(x) b = Unsqueeze<axes = [0, 3]>(a) y = Neg(b) }",
        opset=9,
    )
    after, _ = run(MergeReshapes(), before)
    assert ops(after) == ["Unsqueeze", "Neg"]
    assert after.graph[0].attributes["axes"].value == (0, 2, 3)


@pytest.mark.parametrize(
    ("dims", "nodes"),
    [("N,M,4", "a = Unsqueeze(x, one) y = Flatten(a)"),
     ("N,M,4", "a = Unsqueeze(x, zero) y = Reshape(a, copy)"),
     ("N,5", "a = Transpose<perm = [1, 0]>(x) y = Reshape(a, all)")],
)  # fmt: skip
def test_keeps(dims: str, nodes: str) -> None:
    _, report = run(MergeReshapes(), graph(f"g (float[{dims}] x) => (float[] y) {{ {CONSTANTS} {nodes} }}"), verify=False)
    assert report.changed == 0


def test_the_middle_value_is_an_output_too() -> None:
    before = graph(f"g (float[N,3,4] x) => (float[N,12] a, float[N,3,4] y) {{ {CONSTANTS} r = Neg(x) a = Reshape(r, flat) y = Reshape(a, back) }}")
    after, _ = run(MergeReshapes(), before)
    assert _nodes(after) == ["Neg", "Reshape"]


def test_a_shape_that_copies_what_the_first_changed_is_written_out() -> None:
    before = graph(f"g (float[4,N,3] x) => (float[A,B,C] y) {{ {CONSTANTS} a = Reshape(x, flat) y = Reshape(a, copy) }}")
    after, _ = run(MergeReshapes(), before)
    assert _nodes(after) == ["Reshape"]
    target = after.graph[-1].inputs[1]
    assert target is not None
    assert target.const_value is not None
    assert target.const_value.numpy().tolist() == [-1, 2, 6]


def test_in_a_function() -> None:
    before = graph(
        f"""g (float[N,3,4] x) => (float[N,12] y) {{ y = my.f(x) }}
        <domain: "my", opset_import: ["" : 18]> f (v) => (w) {{ {CONSTANTS} a = Unsqueeze(v, one) w = Reshape(a, flat) }}""",
        extra=', "my" : 1',
    )
    after, report = run(MergeReshapes(), before)
    assert report.changed == 1
    assert [n.op_type for f in after.functions.values() for n in f if n.op_type != "Constant"] == ["Reshape"]
