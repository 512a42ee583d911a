"""merge-duplicates."""

import pytest

from onnxopt.passes.cleanup.merge_duplicates import MergeDuplicates
from tests.support import count_ops, graph, ops, run


@pytest.mark.parametrize("opset", [7, 12, 18, 21])
def test_twins_and_what_follows_from_them_become_one(opset: int) -> None:
    before = graph(
        "g (float[N, M] x) => (float[N, M] y) { a = Relu(x) b = Relu(x) c = Neg(a) d = Neg(b) y = Add(c, d) }",
        opset=opset,
    )
    after, report = run(MergeDuplicates(), before)
    assert report.changed == 2
    assert ops(after) == ["Relu", "Neg", "Add"]


@pytest.mark.parametrize(
    "pair",
    [
        "a = LeakyRelu<alpha = 0.1>(x) b = LeakyRelu<alpha = 0.2>(x)",
        "a = LeakyRelu<alpha = 0.0>(x) b = LeakyRelu<alpha = -0.0>(x)",
        "a = Sub(x, z) b = Sub(z, x)",
        "a = Constant<value = float[1] {1.0}>() b = Constant<value = float[1] {2.0}>()",
        "a = Constant<value = float[1] {1.0}>() b = Constant<value = float[1, 1] {1.0}>()",
    ],
)
def test_nearly_twins_stay(pair: str) -> None:
    before = graph(
        "g (float[N] x, float[N] z) => (float y)"
        f"{{ {pair} p = Add(a, x) q = Add(b, x) r = Sub(p, q) y = ReduceSum<keepdims = 0>(r) }}"
    )
    assert run(MergeDuplicates(), before)[1].changed == 0


def test_the_number_of_outputs_counts() -> None:
    before = graph(
        "g (float[6] x) => (float[3] y, float[2] z) { a, b = Split<axis = 0, num_outputs = 2>(x)"
        "c, d, e = Split<axis = 0, num_outputs = 3>(x) f, h = Split<axis = 0, num_outputs = 2>(x)"
        "y = Add(a, h) z = Add(c, d) }"
    )
    after, report = run(MergeDuplicates(), before)
    assert report.changed == 1
    assert ops(after) == ["Split", "Split", "Add", "Add"]


@pytest.mark.parametrize(
    ("pair", "opset"),
    [
        ("a = RandomUniformLike<seed = 1.0>(x) b = RandomUniformLike<seed = 1.0>(x)", 18),
        ("a = Bernoulli(x) b = Bernoulli(x)", 15),
        (
            "r = Constant<value_float = 0.5>() t = Constant<value = bool {1}>()"
            "a = Dropout(x, r, t) b = Dropout(x, r, t)",
            13,
        ),
    ],
)
def test_random_operators_stay(pair: str, opset: int) -> None:
    before = graph(f"g (float[4] x) => (float[4] y) {{ {pair} y = Add(a, b) }}", opset=opset)
    after, report = run(MergeDuplicates(), before, verify=False)
    assert report.changed == 0
    assert len(ops(after)) == len(ops(before))


@pytest.mark.parametrize("opset", [7, 10, 12, 18])
def test_dropout_at_inference_is_not_random(opset: int) -> None:
    before = graph("g (float[4] x) => (float[4] y) { a = Dropout(x) b = Dropout(x) y = Add(a, b) }", opset=opset)
    assert run(MergeDuplicates(), before)[1].changed == 1


def test_custom_domains_merge_only_if_declared() -> None:
    before = graph(
        "g (float[N] x) => (float[N] y) { a = com.microsoft.Gelu(x) b = com.microsoft.Gelu(x) y = Add(a, b) }",
        extra=', "com.microsoft" : 1',
    )
    assert run(MergeDuplicates(), before)[1].changed == 0
    assert run(MergeDuplicates(domains=("com.microsoft",)), before)[1].changed == 1


def test_an_output_of_the_graph_keeps_its_name_and_two_outputs_stay_two() -> None:
    one = graph("g (float[N] x) => (float[N] y, float[N] z) { a = Relu(x) y = Relu(x) z = Neg(a) }")
    after, report = run(MergeDuplicates(), one)
    assert report.changed == 1
    assert [value.name for value in after.graph.outputs] == ["y", "z"]

    two = graph("g (float[N] x) => (float[N] y, float[N] z) { y = Relu(x) z = Relu(x) }")
    after, report = run(MergeDuplicates(), two)
    assert report.changed == 0
    assert ops(after) == ["Relu", "Relu"]


def test_a_node_before_a_body_serves_the_body_but_siblings_and_later_nodes_do_not() -> None:
    before = graph(
        """g (float[N] x, bool c) => (float[N] y) {
            a = Relu(x)
            b = If (c) <then_branch = t () => (float[N] p) { r = Relu(x) s = Abs(x) p = Add(r, s) },
                        else_branch = e () => (float[N] q)
                            { r2 = Relu(x) s2 = Abs(x) n = Neg(x) q0 = Sub(r2, s2) q = Mul(q0, n) }>
            n2 = Neg(x)
            d = Add(a, n2)
            y = Add(b, d) }"""
    )
    after, report = run(MergeDuplicates(), before)
    assert report.changed == 2
    count = count_ops(after)
    assert (count["Relu"], count["Abs"], count["Neg"]) == (1, 2, 2)


def test_the_output_of_a_body_stays_in_the_body_and_nodes_with_bodies_stay() -> None:
    branches = (
        "then_branch = t{0} () => (float[N] p{0}) {{ p{0} = Relu(x) }},"
        " else_branch = e{0} () => (float[N] q{0}) {{ q{0} = Neg(x) }}"
    )
    before = graph(
        f"g (float[N] x, bool c) => (float[N] y) {{ r = Relu(x) a = If (c) <{branches.format(1)}>"
        f" b = If (c) <{branches.format(2)}> d = Add(a, b) y = Add(d, r) }}"
    )
    assert run(MergeDuplicates(), before)[1].changed == 0


def test_merges_in_functions_but_never_across_calls() -> None:
    before = graph(
        """g (float[N] x) => (float[N] y) { r = Relu(x) f = local.f(x) h = local.f(x) i = Add(f, h) y = Add(i, r) }
        <domain: "local", opset_import: ["" : 18]>
        f (a) => (d) { b = Relu(a) c = Relu(a) d = Add(b, c) }""",
        extra=', "local" : 1',
    )
    after, report = run(MergeDuplicates(), before)
    assert report.changed == 1
    assert count_ops(after)["Relu"] == 2
    assert count_ops(after)["f"] == 2
