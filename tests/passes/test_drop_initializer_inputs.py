"""drop-initializer-inputs."""

from onnxopt.passes.cleanup.drop_initializer_inputs import DropInitializerInputs
from tests.support import graph, run

MODEL = "g (float[N, 2] x, float[2] w) => (float[N, 2] y) <float[2] w = {1.0, 2.0}> { y = Mul(x, w) }"


def test_drops_weights_of_an_old_model_from_its_inputs() -> None:
    before = graph(MODEL, opset=8, ir_version=3)
    after, report = run(DropInitializerInputs(), before)
    assert report.changed == 1
    assert after.ir_version == 4
    assert [value.name for value in after.graph.inputs] == ["x"]
    assert list(after.graph.initializers) == ["w"]


def test_leaves_an_overridable_default_alone() -> None:
    after, report = run(DropInitializerInputs(), graph(MODEL, opset=18, ir_version=8))
    assert report.changed == 0
    assert [value.name for value in after.graph.inputs] == ["x", "w"]


def test_raises_the_version_of_an_old_model_without_weights() -> None:
    before = graph("g (float[N] x) => (float[N] y) { y = Neg(x) }", opset=7, ir_version=3)
    after, report = run(DropInitializerInputs(), before)
    assert (report.changed, after.ir_version) == (1, 4)


def test_drops_them_in_bodies_too() -> None:
    before = graph(
        """g (float[N] x, bool c) => (float[N] y) {
            y = If (c) <then_branch = t (float[1] w) => (float[N] a) <float[1] w = {2.0}> { a = Mul(x, w) },
                        else_branch = e () => (float[N] b) { b = Neg(x) }> }""",
        opset=8, ir_version=3,
    )  # fmt: skip
    after, report = run(DropInitializerInputs(), before)
    assert report.changed == 1
    assert not after.graph.node(0).attributes["then_branch"].as_graph().inputs


def test_an_excluded_model_stays() -> None:
    after, report = run(DropInitializerInputs(exclude=("model",)), graph(MODEL, opset=8, ir_version=3))
    assert (report.changed, after.ir_version) == (0, 3)
