"""What is known of shapes where onnx infers nothing; the oracle is ONNX Runtime."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt._output_shapes import left_over
from onnxopt.graph import Editor
from onnxopt.model import to_proto
from onnxopt.probes import find_probes
from onnxopt.runtime import Session, Snapshot
from onnxopt.shape_values import ShapeValues
from tests.support import graph, outputs

EXTRA = ', "com.microsoft" : 1, "ai.onnx.ml" : 3'


def arrays(**dims: tuple[Any, ...]) -> dict[str, np.ndarray[Any, Any]]:
    """Constants by name, small and positive; the last entry is the type."""
    draw = np.random.default_rng(0)
    return {name: draw.integers(1, 4, size=shape).astype(dtype) for name, (*shape, dtype) in dims.items()}


F, U, I = np.float32, np.uint8, np.int32  # noqa: E741
GRID = "float s = {0.5}, uint8 z = {3}, float t = {0.25}, uint8 o = {7}"

CASES: dict[str, tuple[str, dict[str, np.ndarray[Any, Any]]]] = {
    "BiasGelu": ("(float[2,5,8] x) => (float y) { y = com.microsoft.BiasGelu(x, b) }", arrays(b=(8, F))),
    "FastGelu": ("(float[2,5,8] x) => (float y) { y = com.microsoft.FastGelu(x) }", {}),
    "Gelu": ("(float[2,5] x) => (float y) { y = com.microsoft.Gelu(x) }", {}),
    "QuickGelu": ("(float[2,5] x) => (float y) { y = com.microsoft.QuickGelu(x) }", {}),
    "SimplifiedLayerNormalization": (
        "(float[2,5,8] x) => (float y) { y = SimplifiedLayerNormalization(x, b) }", arrays(b=(8, F))),
    "SkipLayerNormalization": (
        "(float[2,5,8] x, float[2,5,8] r) => (float y, float u) "
        "{ y, m, i, u = com.microsoft.SkipLayerNormalization(x, r, b) }", arrays(b=(8, F))),
    "SkipSimplifiedLayerNormalization": (
        "(float[2,5,8] x, float[2,5,8] r) => (float y, float u) "
        "{ y, m, i, u = com.microsoft.SkipSimplifiedLayerNormalization(x, r, b) }", arrays(b=(8, F))),
    "EmbedLayerNormalization": (
        "(int32[2,5] x) => (float y) { y, m = com.microsoft.EmbedLayerNormalization(x, , w, p, , b, b) }",
        arrays(w=(9, 8, F), p=(6, 8, F), b=(8, F))),
    "RotaryEmbedding": (
        "(float[2,5,16] x) => (float y) <int64[1] n = {0}> { y = com.microsoft.RotaryEmbedding(x, n, c, c) }",
        arrays(c=(9, 4, F))),
    "FusedConv": ("(float[2,3,8,9] x) => (float y) "
                  '{ y = com.microsoft.FusedConv <activation = "Relu", strides = [2, 1]> (x, w) }',
                  arrays(w=(4, 3, 3, 3, F))),
    "FusedGemm": (
        '(float[5,2] x) => (float y) { y = com.microsoft.FusedGemm <activation = "Relu", transA = 1> (x, w) }',
        arrays(w=(5, 7, F))),
    "FusedMatMul": ("(float[4,1,5,2] x) => (float y) { y = com.microsoft.FusedMatMul <transA = 1, transB = 1> (x, w) }",
                    arrays(w=(3, 7, 5, F))),
    "MatMulNBits": ("(float[2,5,32] x) => (float y) "
                    "{ y = com.microsoft.MatMulNBits <K = 32, N = 6, bits = 4, block_size = 16> (x, w, b) }",
                    arrays(w=(6, 2, 8, U), b=(12, F))),
    "GatherBlockQuantized": ("(int64[2,5] x) => (float y) "
                             "{ y = com.microsoft.GatherBlockQuantized <bits = 4, block_size = 16> (w, x, b) }",
                             arrays(w=(6, 16, U), b=(6, 2, F))),
    "GatherBlockQuantized of whole elements": (
        "(int64[2,5] x) => (float y) { y = com.microsoft.GatherBlockQuantized <block_size = 16> (w, x, b) }",
        arrays(w=(6, 32, ml_dtypes.uint4), b=(6, 2, F))),
    "QGemm to bytes": (
        f"(uint8[5,2] x) => (uint8 y) <{GRID}> {{ y = com.microsoft.QGemm <transA = 1> (x, s, z, w, s, z, , t, o) }}",
        arrays(w=(5, 7, U))),
    "QGemm": (f"(uint8[5,2] x) => (float y) <{GRID}> {{ y = com.microsoft.QGemm <transB = 1> (x, s, z, w, s, z) }}",
              arrays(w=(7, 2, U))),
    "QLinearAdd": (f"(uint8[2,1,4] x) => (uint8 y) <{GRID}> {{ y = com.microsoft.QLinearAdd(x, s, z, w, s, z, t, o) }}",
                   arrays(w=(3, 1, U))),
    "QLinearMul": (f"(uint8[2,3] x) => (uint8 y) <{GRID}> {{ y = com.microsoft.QLinearMul(x, s, z, w, s, z, t, o) }}",
                   arrays(w=(3, U))),
    "QLinearConcat": (
        f"(uint8[2,3] x) => (uint8 y) <{GRID}> "
        "{ y = com.microsoft.QLinearConcat <axis = 1> (t, o, x, s, z, w, s, z, x, t, o) }", arrays(w=(2, 4, U))),
    "QLinearAveragePool": (
        f"(uint8[2,3,8,9] x) => (uint8 y) <{GRID}> {{ y = com.microsoft.QLinearAveragePool "
        "<kernel_shape = [3, 2], strides = [2, 2], ceil_mode = 1> (x, s, z, t, o) }", {}),
    "QLinearGlobalAveragePool": (
        f"(uint8[2,3,8] x) => (uint8 y) <{GRID}> {{ y = com.microsoft.QLinearGlobalAveragePool(x, s, z, t, o) }}", {}),
    "QLinearGlobalAveragePool of channels that come last": (
        f"(uint8[2,8,9,3] x) => (uint8 y) <{GRID}> "
        "{ y = com.microsoft.QLinearGlobalAveragePool <channels_last = 1> (x, s, z, t, o) }", {}),
    "QLinearLeakyRelu": (
        f"(uint8[2,3] x) => (uint8 y) <{GRID}> {{ y = com.microsoft.QLinearLeakyRelu(x, s, z, t, o) }}", {}),
    "QLinearSigmoid": (
        f"(uint8[2,3] x) => (uint8 y) <{GRID}> {{ y = com.microsoft.QLinearSigmoid(x, s, z, t, o) }}", {}),
    "QLinearSoftmax": (f"(uint8[2,3] x) => (uint8 y) <{GRID}> "
                       "{ y = com.microsoft.QLinearSoftmax <opset = 13, axis = 1> (x, s, z, t, o) }", {}),
    "QLinearWhere": (f"(bool[2,1] c, uint8[2,3] x) => (uint8 y) <{GRID}> "
                     "{ y = com.microsoft.QLinearWhere(c, x, s, z, w, s, z, t, o) }", arrays(w=(4, 1, 1, U))),
    "DynamicQuantizeMatMul": ("(float[2,5,8] x) => (float y) <float s = {0.5}> "
                              "{ y = com.microsoft.DynamicQuantizeMatMul(x, w, s) }", arrays(w=(8, 3, U))),
    "MatMulIntegerToFloat": ("(uint8[2,5,8] x) => (float y) <float s = {0.5}> "
                             "{ y = com.microsoft.MatMulIntegerToFloat(x, w, s, s) }", arrays(w=(8, 3, U))),
    "DynamicQuantizeLSTM": (
        '(float[6,2,4] x) => (float y, float h) { y, h = com.microsoft.DynamicQuantizeLSTM '
        '<hidden_size = 3, direction = "bidirectional"> (x, w, r, , , , , , s, z, s, z) }',
        arrays(w=(2, 4, 12, U), r=(2, 3, 12, U), s=(2, F), z=(2, U))),
    "Attention": ("(float[2,5,8] x) => (float y) { y = com.microsoft.Attention <num_heads = 2> (x, w, b) }",
                  arrays(w=(8, 12, F), b=(12, F))),
    "Attention of other sizes": (
        "(float[2,5,8] x) => (float y) "
        "{ y = com.microsoft.Attention <num_heads = 2, qkv_hidden_sizes = [4, 4, 6]> (x, w, b) }",
        arrays(w=(8, 14, F), b=(14, F))),
    "QAttention": ("(uint8[2,5,8] x) => (float y) <float s = {0.5}> "
                   "{ y = com.microsoft.QAttention <num_heads = 2> (x, w, b, s, s) }", arrays(w=(8, 12, U), b=(12, F))),
    "MultiHeadAttention": ("(float[2,5,8] q, float[2,7,8] k, float[2,7,12] v) => (float y) "
                           "{ y = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v) }", {}),
    "MultiHeadAttention of heads": ("(float[2,5,8] q, float[2,2,7,4] k, float[2,2,7,4] v) => (float y) "
                                    "{ y = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v) }", {}),
    "GroupQueryAttention": (
        "(float[2,5,32] q, float[2,5,16] k, float[2,5,16] v) => (float y) <int32 n = {5}, int32[2] l = {4, 4}> "
        "{ y, pk, pv = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2> (q, k, v, , , l, n) }", {}),
    "GroupQueryAttention of all in one": (
        "(float[2,5,64] q) => (float y) <int32 n = {5}, int32[2] l = {4, 4}> "
        "{ y, pk, pv = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2> (q, , , , , l, n) }", {}),
    "Scaler": ("(int64[2,3] x) => (float y) { y = ai.onnx.ml.Scaler <offset = [1.0], scale = [2.0]> (x) }", {}),
    "Normalizer": ('(float[2,3] x) => (float y) { y = ai.onnx.ml.Normalizer <norm = "L2"> (x) }', {}),
    "Imputer": ("(float[2,3] x) => (float y) { y = ai.onnx.ml.Imputer <imputed_value_floats = [1.0]> (x) }", {}),
    "Binarizer": ("(float[2,3] x) => (float y) { y = ai.onnx.ml.Binarizer <threshold = 0.5> (x) }", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_outputs_of_operators_that_onnx_does_not_infer(name: str) -> None:
    body, constants = CASES[name]
    model = graph(f"g {body}", opset=21, ir_version=10, extra=EXTRA, **constants)
    for value in model.graph.outputs:
        value.shape = None
    (probe, *_) = find_probes(model, Session(Snapshot.of(model)))
    editor = Editor(model)
    ShapeValues(editor)
    for value, array in zip(model.graph.outputs, outputs(model, probe.feeds), strict=True):
        found = editor.shape(value)
        assert editor.dtype(value) == ir.DataType.from_numpy(array.dtype)
        if "channels_last" in body:
            assert found is None
        else:
            assert found == array.shape


@pytest.mark.parametrize("inputs", ["float[2,5,8] q, float[2,7,2,2,4] k", "float[2,5,2,3,4] q"])
def test_attention_with_inputs_in_one(inputs: str) -> None:
    """ONNX Runtime has no kernel for it on a CPU, but says what shape there is."""
    names = "q, k" if "k" in inputs else "q"
    body = f"({inputs}) => (float y) {{ y = com.microsoft.MultiHeadAttention <num_heads = 2> ({names}) }}"
    model = graph(f"g {body}", extra=EXTRA)
    model.graph.outputs[0].shape = None
    session = ort.InferenceSession(to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    editor = Editor(model)
    ShapeValues(editor)
    assert editor.shape(model.graph.outputs[0]) == tuple(session.get_outputs()[0].shape) == (2, 5, 8)


def test_normalization_of_onnx_runtime_in_an_early_opset() -> None:
    model = graph(
        "g (float[N, 8] x) => (float[N, 8] y) { a = LayerNormalization(x, s, s) y = Relu(a) }",
        opset=11, s=np.ones(8, np.float32),
    )  # fmt: skip
    assert Editor(model).shape(model.graph[0].outputs[0]) == ("N", 8)


# -- branches, sequences, floats -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "expected"),
    [("c", (None, 4)), ("yes", ("N", 4)), ("no", (2, 4))],
)
def test_outputs_of_an_if(condition: str, expected: tuple[Any, ...]) -> None:
    model = graph(
        f"""g (float[N, 4] x, bool c) => (float[A, B] y) <bool yes = {{1}}, bool no = {{0}}> {{
            r = Reshape(x, computed) y0 = If ({condition}) <
                then_branch = t () => (float[C, D] a) {{ a = Relu(x) }},
                else_branch = e () => (float[E, F] b) {{ p = Gather(x, two) b = Neg(p) }}>
            s = Shape(x) n = Gather(s, zero) h = Concat <axis = 0> (n, four) q = Reshape(y0, h) y = Relu(q) }}""",
        two=np.array([0, 1]), zero=np.array([0]), four=np.array([4]), computed=np.array([-1, 4]),
    )  # fmt: skip
    editor = Editor(model)
    ShapeValues(editor)
    found = editor.shape(model.graph[1].outputs[0])
    assert found is not None
    assert tuple(dim if dim in expected else None for dim in found) == expected


def test_every_output_of_an_if_in_a_branch() -> None:
    model = graph(
        """g (float[N, 4] x, bool c, bool d) => (float[A, B] y, float[C, D] z) {
            u = com.microsoft.Gelu(x)
            p, q = If (c) <
                then_branch = t () => (float a, float b) { a, b = If (d) <
                    then_branch = tt () => (float e, float f) { e = Relu(u) f = Neg(u) },
                    else_branch = te () => (float g, float h) { g = Neg(u) h = Relu(u) }> },
                else_branch = o () => (float i, float j) { i = Abs(u) j = Exp(u) }>
            y = Relu(p) z = Relu(q) }""",
        extra=EXTRA,
    )
    for node in list(model.graph.all_nodes()):
        for value in node.outputs:
            value.shape = value.type = None
    editor = Editor(model)
    ShapeValues(editor)
    assert [editor.shape(value) for value in model.graph.outputs] == [("N", 4), ("N", 4)]


@pytest.mark.parametrize("at", [0, 1, 2, -1, -3])
@pytest.mark.parametrize("pieces", ["(x, four)", "(x, sizes)", "(x)", "<keepdims = 0> (x)"])
def test_pieces_of_a_sequence(pieces: str, at: int) -> None:
    model = graph(
        f"""g (float[10, 3] x) => (float y) <int64 four = {{4}}, int64[3] sizes = {{2, 7, 1}}, int64 at = {{{at}}}>
        {{ q = SplitToSequence {pieces} y = SequenceAt(q, at) }}"""
    )
    model.graph.outputs[0].shape = None
    (array,) = outputs(model, {"x": np.ones((10, 3), np.float32)})
    editor = Editor(model)
    ShapeValues(editor)
    assert editor.shape(model.graph.outputs[0]) == array.shape


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["Add", "Sub", "Mul", "Div", "Max", "Min"]),
        st.floats(-100, 100, width=32).filter(lambda x: abs(x) > 1e-3),
        st.booleans(),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 10**6), steps=STEPS, rounding=st.sampled_from(["Floor", "Ceil", "Neg", "Identity"]))
def test_floats_round_as_those_of_onnx_runtime(n: int, steps: list[tuple[str, float, bool]], rounding: str) -> None:
    """Sizes are scaled as float32 and rounded; a bit of difference would make another size."""
    code, last = "f = Cast <to = 1> (n)", "f"
    for at, (op, _, swapped) in enumerate(steps):
        code += f" v{at} = {op}({f'c{at}, {last}' if swapped else f'{last}, c{at}'})"
        last = f"v{at}"
    constants: dict[str, Any] = {f"c{at}": np.array([number], np.float32) for at, (_, number, _) in enumerate(steps)}
    model = graph(
        f"g (int64[1] x) => (int64[1] y) {{ n = Identity(size) {code} r = {rounding}({last}) i = Cast <to = 7> (r) "
        "y = Add(i, x) }",
        size=np.array([n]), **constants,
    )  # fmt: skip
    found = ShapeValues(Editor(model)).of(model.graph[-1].inputs[0])
    (array,) = outputs(model, {"x": np.zeros(1, np.int64)})
    if found is None or found[0] is None:
        assert abs(int(array[0])) >= 2**62
    else:
        assert found.tolist() == array.tolist()


@pytest.mark.parametrize("number", [3e38, np.inf, -np.inf, np.nan])
def test_nothing_is_said_of_infinity(number: float) -> None:
    model = graph(
        "g (int64 x) => (bool y) { n = Identity(size) f = Cast <to = 1> (n) m = Mul(f, c) t = Max(m, f) "
        "y = Less(f, t) }",
        size=np.array(9), c=np.array(number, np.float32),
    )  # fmt: skip
    found = ShapeValues(Editor(model)).of(model.graph.outputs[0])
    assert found is not None
    assert found.item() is None


@pytest.mark.parametrize(
    ("dims", "others", "found"),
    [
        (("N", 2048), (2048, 1), "N"),
        (("N", "M", 6), ("N", 2, 3), "M"),
        (("N", "N"), ("N",), "N"),
        (("N", 6), ("N", 2), 3),
        (("N", 6), (2,), None),  # 3 N
        (("N", 6), ("N", 4), None),  # no whole number
        (("N", 0), ("N", 0), None),
        (("N", "M"), (1,), None),
        (("N", "M"), ("K",), None),
        ((None, 2), (2,), None),
    ],
)
def test_what_a_reshape_leaves_over(dims: Any, others: Any, found: Any) -> None:
    """What its -1 stands for."""
    assert left_over(dims, others) == found


# -- facts -----------------------------------------------------------------------------------------------


def test_a_dim_without_a_name_keeps_its_identity() -> None:
    model = graph("g (float[N] x) => (int64[A, B] y) { i = NonZero(x) y = Neg(i) }")
    editor = Editor(model)
    (found, last) = model.graph
    new = editor.insert(last, "Abs", [found.outputs[0]])
    shape = editor.shape(found.outputs[0])
    assert shape is not None
    assert isinstance(shape[1], str)
    assert editor.shape(new) == editor.shape(last.outputs[0]) == shape


def test_what_is_asked_of_one_output_does_not_make_another_unknown() -> None:
    model = graph(
        """g (float[N] x, int64[K] s, bool c) => (float y) { u = Reshape(x, s) y = If (c) <
            then_branch = t () => (float d) { a, b = Split <num_outputs = 2> (u) d = Add(a, b) },
            else_branch = e () => (float f) { f = Relu(u) }> }"""
    )
    editor = Editor(model)
    (split,) = editor.nodes({"Split"})
    editor.facts.refine(split.outputs[0], (7, 3))
    assert editor.shape(split.outputs[1]) is None
    assert editor.shape(split.outputs[0]) == (7, 3)


def test_what_nobody_has_asked_for_is_no_news() -> None:
    model = graph("g (float[N, 4] x) => (float[A, B] y) { a = Relu(x) y = Neg(a) }")
    editor = Editor(model)
    relu = model.graph[0]
    shape = editor.insert(relu, "Shape", relu.inputs)
    made = editor.insert(relu, "Reshape", [relu.inputs[0], shape])
    ShapeValues(editor)
    assert editor.shape(made) == ("N", 4)
    assert not editor.refresh()


def test_symbols_of_inputs_are_known_by_whatever_name() -> None:
    """tf2onnx calls them as onnx calls those that it makes up."""
    model = graph("g (float[unk__7, 4] x) => (float[A, B, C] y) { r = Reshape(x, s) e = Expand(r, t) y = Neg(e) }",
                  s=np.array([-1, 4, 1]), t=np.array([1, 4, 1]))  # fmt: skip
    editor = Editor(model)
    ShapeValues(editor)
    shapes = {editor.shape(value) for node in model.graph for value in node.outputs}
    assert len(shapes) == 1
    assert next(iter(shapes))[0] == editor.shape(model.graph.inputs[0])[0]  # type: ignore[index]
