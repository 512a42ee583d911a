"""onnx-graphsurgeon in and out, and onnx-ir passes in a pipeline."""

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import IdentityEliminationPass

import onnxopt
from onnxopt.errors import OptionError
from onnxopt.model import to_proto
from tests.support import assert_same_outputs, graph, ops

BODY = """g (float[N, 100] x) => (float[N, 100] y) {
    a = MatMul(x, w)  b = Identity(a)  y = Relu(b)
}"""


@pytest.fixture
def model() -> ir.Model:
    made = graph(BODY, w=np.eye(100, dtype=np.float32))
    made.metadata_props["alphabet"] = "abc"
    made.doc_string = "a model"
    first = made.graph[0]
    first.name, first.doc_string = "first", "multiplies"
    first.metadata_props["from"] = "linear"
    first.outputs[0].metadata_props["unit"] = "metre"
    return made


def test_round_trip_keeps_outputs_and_metadata(model: ir.Model) -> None:
    back = onnxopt.from_graphsurgeon(onnxopt.to_graphsurgeon(model))
    assert_same_outputs(model, back)
    assert back.metadata_props == {"alphabet": "abc"}
    assert back.doc_string == "a model"
    assert back.graph[0].doc_string == "multiplies"
    assert back.graph[0].metadata_props == {"from": "linear"}
    assert back.graph[0].outputs[0].metadata_props == {"unit": "metre"}


def test_weights_left_in_the_file_are_read_only_when_asked(
    model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxopt.save(model, tmp_path / "m.onnx")
    loaded = onnxopt.load(tmp_path / "m.onnx")
    monkeypatch.chdir(Path(__file__).parent)
    surgeon = onnxopt.to_graphsurgeon(loaded)
    weight = surgeon.tensors()["w"]
    assert not isinstance(weight._values, np.ndarray), "the weight was read at once"
    assert_same_outputs(model, onnxopt.from_graphsurgeon(surgeon.copy(), loaded))
    np.testing.assert_array_equal(weight.values, np.eye(100, dtype=np.float32))
    assert_same_outputs(model, onnxopt.from_graphsurgeon(surgeon))


@pytest.mark.parametrize("passes", ["remove-no-ops"])
def test_type_in_is_type_out(model: ir.Model, passes: str) -> None:
    proto = to_proto(model)
    untouched = proto.SerializeToString()
    surgeon = gs.import_onnx(proto)
    results = [onnxopt.optimize(m, passes=passes).model for m in (proto, model, surgeon)]
    assert [type(m) for m in results] == [onnx.ModelProto, ir.Model, gs.Graph]
    assert [n.op_type for n in results[0].graph.node] == ["MatMul", "Relu"]
    assert ops(results[1]) == ["MatMul", "Relu"]
    assert [n.op for n in results[2].nodes] == ["MatMul", "Relu"]
    assert proto.SerializeToString() == untouched
    assert ops(model) == ["MatMul", "Identity", "Relu"], "the user's model was edited"
    assert [n.op for n in surgeon.nodes] == ["MatMul", "Identity", "Relu"]


def test_another_type_is_refused() -> None:
    with pytest.raises(OptionError, match="got int"):
        onnxopt.optimize(3)


def test_a_gs_function_runs_as_a_pass(model: ir.Model) -> None:
    def drop_relu(surgeon: gs.Graph) -> None:
        surgeon.outputs[0].inputs[0].op = "Abs"

    result = onnxopt.optimize(model, passes=[onnxopt.GraphSurgeonPass(function=drop_relu)])
    assert ops(result.model) == ["MatMul", "Identity", "Abs"]
    assert result.model.graph[0].metadata_props == {"from": "linear"}
    assert result.report.passes[0].changed == 1
    assert "graphsurgeon" in next(iter(result.report.fidelity))


def test_a_gs_function_that_does_nothing_changes_nothing(model: ir.Model) -> None:
    result = onnxopt.optimize(model, passes=[onnxopt.GraphSurgeonPass(function=lambda surgeon: None)])
    assert result.report.changed == 0


def test_an_onnx_ir_pass_runs_in_a_pipeline(model: ir.Model) -> None:
    result = onnxopt.optimize(model, passes=[onnxopt.IrPass(transform=IdentityEliminationPass())])
    assert ops(result.model) == ["MatMul", "Relu"]
    assert result.report.verified
