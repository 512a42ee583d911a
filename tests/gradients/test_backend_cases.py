"""The cases by which ONNX tests that a backend knows an operator, as cases of its gradient."""

from __future__ import annotations

from collections import defaultdict
from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from onnx.backend.test.loader import load_model_tests

from onnxopt.errors import GradientError
from onnxopt.gradients import differentiable_ops
from onnxopt.gradients.engine import OLDEST_OPSET
from tests.gradients.checks import Array, check

Case = tuple[onnx.ModelProto, dict[str, Array]]
_OPERATORS = [op for domain, op in differentiable_ops() if domain == ""]

NOT_COMPARED = {
    "test_attention_24_qk_matmul_output_mode3_softmax_precision": "float32 where the oracle wants float64",
    "test_attention_3d_transpose_verification": "equal values, so that what is compared is rounding",
    "test_attention_4d_diff_heads_mask4d_padded_kv": "ONNX Runtime has no masks of the first keys only, in this opset",
    "test_attention_local_window_ext_cache_float16_mask": "a difference that is rounding",
    "test_acosh_example": "at 1, where the derivative is infinite",
    "test_dynamicquantizelinear": "the range that it finds counts as a constant",
    "test_dynamicquantizelinear_max_adjusted": "the range that it finds counts as a constant",
    "test_dynamicquantizelinear_min_adjusted": "the range that it finds counts as a constant",
    "test_elu_example": "at 0, where the derivative jumps",
    "test_leakyrelu_example": "at 0, where the derivative jumps",
    "test_selu_example": "at 0, where the derivative jumps",
    "test_thresholdedrelu_example": "at the threshold",
    "test_l2normalization_axis_0": "at a vector of zeros",
    "test_maxpool_3d_dilations": "several greatest elements in a window",
    "test_maxpool_3d_dilations_use_ref_impl": "several greatest elements in a window",
    "test_pow": "at 0, where a power has no second derivative",
    "test_reduce_min_default_axes_keepdims_example": "several least elements",
    "test_resize_downsample_scales_cubic_align_corners": "the reference takes a fraction for the size of the output",
    "test_resize_downsample_scales_linear_align_corners": "the reference takes a fraction for the size of the output",
    "test_rnn_seq_length": "gradients of saturated units, which the rounding of 1 - y² outweighs",
    "test_simple_rnn_bidirectional": "gradients of saturated units, which the rounding of 1 - y² outweighs",
    "test_training_dropout": "random",
    "test_training_dropout_default": "random",
    "test_training_dropout_default_mask": "random",
    "test_training_dropout_mask": "random",
}
"""Cases at which the oracle is none, and why."""

REFUSED = {
    "test_einsum_batch_diagonal": "a diagonal",
    "test_gru_batchwise": "layout",
    "test_lstm_batchwise": "layout",
    "test_scatter_elements_with_reduction_mul": "reduction 'mul'",
    "test_scatternd_max": "reduction 'max'",
    "test_scatternd_max_with_element_indices": "reduction 'max'",
    "test_scatternd_min": "reduction 'min'",
    "test_scatternd_min_with_element_indices": "reduction 'min'",
    "test_scatternd_multiply": "reduction 'mul'",
    "test_simple_rnn_batchwise": "layout",
}
"""Cases that have no gradient, and what the error says."""

PARAMETERS = {
    "Dropout": {1},
    "GridSample": {1},
    "NegativeLogLikelihoodLoss": {2},
    "OneHot": {0, 1},
    "RotaryEmbedding": {1, 2},
    "Resize": {1, 2},
    "SoftmaxCrossEntropyLoss": {2},
    "test_batchnorm_epsilon_training_mode": {3, 4},
    "test_batchnorm_example_training_mode": {3, 4},
}
"""Float inputs in which an operator, or a case of it, is not differentiated; the grids stand where it has jumps."""
TYPED = {"OneHot", "Resize"}
"""Operators whose parameters keep their types, as constants of nodes, when the other floats become float64."""
STATISTICS = {"Attention": {3}, "BatchNormalization": {1, 2}, "LayerNormalization": {1, 2}}
"""Float outputs that the loss may not read."""


@pytest.mark.parametrize("op", _OPERATORS)
def test_cases_of(op: str) -> None:
    """Those that ONNX has of the operator, if any."""
    for name, (model, arrays) in _cases()[op].items():
        if name in NOT_COMPARED:
            continue
        try:
            if name in REFUSED:
                with pytest.raises(GradientError, match=REFUSED[name]):
                    _check(name, model, arrays)
            else:
                _check(name, model, arrays)
        except BaseException as error:
            error.add_note(name)
            raise


def test_there_are_cases() -> None:
    cases = _cases()
    assert sum(len(cases[op]) for op in _OPERATORS) > 500
    assert {*NOT_COMPARED, *REFUSED} <= {name for each in cases.values() for name in each}


def _check(case: str, model: onnx.ModelProto, arrays: dict[str, Array]) -> None:
    (node,) = model.graph.node
    opset = next(i.version for i in model.opset_import if i.domain == "")
    parameters = {node.input[i] for i in PARAMETERS.get(case, PARAMETERS.get(node.op_type, ())) if i < len(node.input)}
    wrt = [name for name, x in arrays.items() if x.dtype.kind == "f" and name not in parameters]
    floats = {v.name for v in model.graph.output if v.type.tensor_type.elem_type in _FLOATS}
    left_out = STATISTICS.get(node.op_type, set())
    read = [name for i, name in enumerate(node.output) if name in floats and i not in left_out]
    typed = [name for name in arrays if name in parameters and node.op_type in TYPED]
    nodes = [helper.make_node("Constant", [], [name], value=numpy_helper.from_array(arrays[name])) for name in typed]
    given = {name: x for name, x in arrays.items() if name not in typed}
    constants = [name for name in given if name not in wrt]
    check([*nodes, node], given, wrt, read, constants=constants, opset=opset, runtime=_runs(model))


def _runs(model: onnx.ModelProto) -> bool:
    """Whether ONNX Runtime implements the case."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:
        return False
    return True


_FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16}


@cache
def _cases() -> dict[str, dict[str, Case]]:
    """By operator and name, the cases of one node with arrays of finite floats, written for an opset that has rules.
    Cases of older opsets are as good where the operator has not changed."""
    with np.errstate(all="ignore"):
        tests = load_model_tests(kind="node")
    found: dict[str, dict[str, Case]] = defaultdict(dict)
    for test in tests:
        assert test.model is not None
        assert test.data_sets is not None
        model = onnx.ModelProto()
        model.CopyFrom(test.model)
        if len(model.graph.node) != 1 or model.graph.node[0].domain:
            continue
        (node,) = model.graph.node
        opset = next(i for i in model.opset_import if i.domain == "")
        if opset.version < OLDEST_OPSET:
            if _since(node, opset.version) != _since(node, OLDEST_OPSET):
                continue
            opset.version = OLDEST_OPSET
        inputs, outputs = test.data_sets[0]
        if not all(isinstance(x, np.ndarray | np.generic) for x in (*inputs, *outputs)):
            continue
        arrays = dict(zip([v.name for v in model.graph.input], map(np.asarray, inputs), strict=True))
        is_float = [np.asarray(x).dtype.kind == "f" for x in (*inputs, *outputs)]
        if not (any(is_float[: len(inputs)]) and any(is_float[len(inputs) :])):
            continue
        if all(np.isfinite(x).all() for x, floats in zip((*inputs, *outputs), is_float, strict=True) if floats):
            _rename(model, "loss", "loss_of_case")
            found[node.op_type][test.name] = (model, arrays)
    return found


def _since(node: onnx.NodeProto, opset: int) -> int:
    """The version of the operator that an opset has."""
    version: int = onnx.defs.get_schema(node.op_type, opset, "").since_version
    return version


def _rename(model: onnx.ModelProto, output: str, name: str) -> None:
    """Give an output, if it is there, a name that is not taken by the checks."""
    for value in model.graph.output:
        if value.name == output:
            value.name = name
    (node,) = model.graph.node
    node.output[:] = [name if each == output else each for each in node.output]
