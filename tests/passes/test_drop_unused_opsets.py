"""drop-unused-opsets."""

from onnxopt.passes.cleanup.drop_unused_opsets import DropUnusedOpsets
from tests.support import graph, run


def test_drops_domains_without_nodes() -> None:
    before = graph("g (float[N] x) => (float[N] y) { y = Relu(x) }", extra=', "com.microsoft" : 1, "ai.onnx.ml" : 3')
    after, report = run(DropUnusedOpsets(), before)
    assert report.changed == 2
    assert dict(after.opset_imports) == {"": 18}


def test_keeps_a_domain_used_in_a_body_only_and_the_default_one() -> None:
    before = graph(
        """g (float[N] x, bool c) => (float[N] y) {
            y = If (c) <then_branch = t () => (float[N] a) { a = com.microsoft.Gelu(x) },
                        else_branch = e () => (float[N] b) { b = Neg(x) }> }""",
        extra=', "com.microsoft" : 1',
    )
    after, report = run(DropUnusedOpsets(), before)
    assert report.changed == 0
    assert dict(after.opset_imports) == {"": 18, "com.microsoft": 1}

    only = graph("g (float[N] x) => (float[N] y) { y = com.microsoft.Gelu(x) }", extra=', "com.microsoft" : 1')
    after, report = run(DropUnusedOpsets(), only)
    assert report.changed == 0
    assert after.opset_imports[""] == 18


def test_functions_have_imports_of_their_own_and_need_the_models() -> None:
    before = graph(
        """g (float[N] x) => (float[N] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 18, "com.microsoft" : 1, "ai.onnx.ml" : 3]>
        f (a) => (b) { b = com.microsoft.Gelu(a) }""",
        extra=', "local" : 1, "com.microsoft" : 1, "ai.onnx.ml" : 3',
    )
    after, report = run(DropUnusedOpsets(), before)
    assert report.changed == 2
    (function,) = after.functions.values()
    assert dict(function.opset_imports) == {"": 18, "com.microsoft": 1}
    assert dict(after.opset_imports) == {"": 18, "local": 1, "com.microsoft": 1}


def test_an_excluded_domain_stays() -> None:
    before = graph("g (float[N] x) => (float[N] y) { y = Relu(x) }", extra=', "com.microsoft" : 1')
    after, report = run(DropUnusedOpsets(exclude=("com.*",)), before)
    assert report.changed == 0
    assert "com.microsoft" in after.opset_imports
