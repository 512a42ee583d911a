"""Loading and saving changes nothing but what ``onnxopt/model.py`` says it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.parser
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from onnxopt.errors import OutputError
from onnxopt.external import OFFLOAD_BYTES
from onnxopt.graph import Editor
from onnxopt.model import copy, from_proto, load, save, source_of, to_proto
from onnxopt.traverse import tensors
from tests.conformance import oracle
from tests.conformance.cases import cases

GROUPS = 8
LARGE = OFFLOAD_BYTES // 4 + 3
"""So many floats are not held in memory."""


# -- what is allowed to change ---------------------------------------------------------------------------------


def normalised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model after the normalisations that the docstring of ``onnxopt/model.py`` lists, and no others."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    for opset in _opsets(copied):
        if opset.domain == "ai.onnx":
            opset.domain = ""
    for holder in _holders(copied):
        _normalise_nodes(holder)
        _order_value_info(holder)
    for tensor in _tensors(copied):
        array_bytes = len(tensor.float_data) * 4 + len(tensor.double_data) * 8
        if array_bytes >= OFFLOAD_BYTES and tensor.data_type in (TensorProto.FLOAT, TensorProto.DOUBLE):
            raw = numpy_helper.to_array(tensor).tobytes()
            tensor.ClearField("float_data")
            tensor.ClearField("double_data")
            tensor.raw_data = raw
    _tidy(copied)
    return copied


def _opsets(model: onnx.ModelProto) -> Iterator[onnx.OperatorSetIdProto]:
    yield from model.opset_import
    for function in model.functions:
        yield from function.opset_import


def _holders(model: onnx.ModelProto) -> Iterator[Any]:
    """The main graph, the functions, and every graph inside these."""
    todo: list[Any] = [model.graph, *model.functions]
    while todo:
        holder = todo.pop()
        yield holder
        for node in holder.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    todo.append(attribute.g)
                todo.extend(attribute.graphs)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for holder in _holders(model):
        if isinstance(holder, onnx.GraphProto):
            yield from holder.initializer
        for node in holder.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def _normalise_nodes(holder: Any) -> None:
    for node in holder.node:
        for names in (node.input, node.output):
            while names and not names[-1]:
                del names[-1]
        if node.domain == "ai.onnx":
            node.domain = ""


def _order_value_info(holder: Any) -> None:
    """In the order of the nodes; an entry for a value that does not exist is gone."""
    infos = {info.name: info for info in holder.value_info}
    names = [tensor.name for tensor in getattr(holder, "initializer", ())]
    names += [name for node in holder.node for name in node.output]
    if isinstance(holder, onnx.FunctionProto):
        names = [*holder.input, *names]
    kept = [onnx.ValueInfoProto.FromString(infos[n].SerializeToString()) for n in dict.fromkeys(names) if n in infos]
    del holder.value_info[:]
    holder.value_info.extend(kept)


def _tidy(message: Any) -> None:
    """Metadata sorted by key; fields that hold but their default left out, where they have no meaning."""
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for each in value if _is_repeated(descriptor) else (value,):
                _tidy(each)
    for name in ("metadata_props", "quant_parameter_tensor_names", "external_data"):
        if name != "external_data" and message.DESCRIPTOR.fields_by_name.get(name) is not None:
            entries = sorted((e.key, e.value) for e in getattr(message, name))
            message.ClearField(name)
            for key, value in entries:
                getattr(message, name).add(key=key, value=value)
    for name in ("doc_string", "producer_name", "producer_version", "domain", "name", "model_version", "overload"):
        descriptor = message.DESCRIPTOR.fields_by_name.get(name)
        if descriptor is not None and not _is_repeated(descriptor) and message.HasField(name):
            if not getattr(message, name):
                message.ClearField(name)
    if isinstance(message, onnx.TensorProto) and message.data_location == TensorProto.DEFAULT:
        message.ClearField("data_location")
    if isinstance(message, onnx.TensorShapeProto.Dimension) and message.HasField("dim_param") and not message.dim_param:
        message.ClearField("dim_param")


def _is_repeated(descriptor: Any) -> bool:
    return bool(descriptor.is_repeated)


def assert_unchanged(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """``after`` is ``before`` but for the normalisations."""
    wanted, found = normalised(before), normalised(after)
    if wanted != found:
        lines = zip(str(wanted).splitlines(), str(found).splitlines(), strict=False)
        first = next((f"{b!r} instead of {a!r}" for a, b in lines if a != b), "one is cut off")
        raise AssertionError(f"the first difference: {first[:500]}")


def through_file(model: onnx.ModelProto, folder: Path, external_data: bool | None = None) -> onnx.ModelProto:
    """``model`` written by protobuf, loaded, saved, and read by onnx with all its data."""
    folder.mkdir(exist_ok=True)
    first, second = folder / "first.onnx", folder / "second.onnx"
    first.write_bytes(model.SerializeToString())
    save(load(first), second, force=True, external_data=external_data)
    return onnx.load(second)


# -- every model of the backend tests --------------------------------------------------------------------------


@pytest.mark.parametrize("group", range(GROUPS))
def test_backend_models_stay(group: int) -> None:
    faults = []
    chosen = cases()[group::GROUPS]
    for case in chosen:
        before = case.proto()
        try:
            after = to_proto(from_proto(before))
            assert_unchanged(before, after)
            again = to_proto(from_proto(after))
            assert again.SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True)
            assert after.ByteSize() <= before.ByteSize()
        except Exception as error:
            faults.append(f"{case.name}: {type(error).__name__}: {error}")
    assert not faults, "\n".join([f"{len(faults)} of {len(chosen)}", *faults[:20]])
    assert len(chosen) > 200


def test_backend_models_stay_through_files(tmp_path: Path) -> None:
    chosen = [case for case in cases() if isinstance(case.model, Path)] + list(cases()[::20])
    assert len(chosen) > 200
    for case in chosen:
        before = case.proto()
        try:
            assert_unchanged(before, through_file(before, tmp_path))
        except AssertionError as error:
            raise AssertionError(f"{case.name}: {error}") from error


# -- one model for each thing that a file can hold -------------------------------------------------------------


def _add(**graph_options: Any) -> onnx.ModelProto:
    """``y = (x + w) + w``."""
    w = numpy_helper.from_array(np.arange(3, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["s"], name="n1"), helper.make_node("Add", ["s", "w"], ["y"], name="n2")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [w],
        **graph_options,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def with_map_output() -> onnx.ModelProto:
    """A classifier as scikit-learn converters write it: labels and a list of dicts."""
    graph = helper.make_graph(
        [
            helper.make_node(
                "LinearClassifier", ["x"], ["label", "scores"], domain="ai.onnx.ml", classlabels_ints=[0, 1],
                coefficients=[1.0, -1.0, -1.0, 1.0], intercepts=[0.0, 0.5], post_transform="SOFTMAX",
            ),
            helper.make_node("ZipMap", ["scores"], ["probabilities"], domain="ai.onnx.ml", classlabels_int64s=[0, 1]),
        ],
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])],
        [helper.make_tensor_value_info("label", TensorProto.INT64, [None])],
    )  # fmt: skip
    output = graph.output.add(name="probabilities")
    output.type.sequence_type.elem_type.map_type.key_type = TensorProto.INT64
    output.type.sequence_type.elem_type.map_type.value_type.tensor_type.elem_type = TensorProto.FLOAT
    imports = [helper.make_opsetid("", 15), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def _sparse(name: str) -> onnx.SparseTensorProto:
    values = helper.make_tensor(name, TensorProto.FLOAT, [2], [1.5, 2.5])
    return helper.make_sparse_tensor(values, helper.make_tensor("", TensorProto.INT64, [2], [0, 2]), [3])


def with_sparse_initializer() -> onnx.ModelProto:
    model = _add()
    del model.graph.initializer[:]
    model.graph.sparse_initializer.append(_sparse("w"))
    return model


def with_sparse_attribute() -> onnx.ModelProto:
    model = _add()
    del model.graph.initializer[:]
    node = helper.make_node("Constant", [], ["w"], sparse_value=_sparse(""))
    model.graph.node.insert(0, node)
    return model


def with_training_info() -> onnx.ModelProto:
    model = _add()
    info = model.training_info.add()
    info.algorithm.CopyFrom(helper.make_graph([helper.make_node("Sub", ["w", "w"], ["v"])], "step", [], []))
    info.update_binding.add(key="w", value="v")
    return model


def with_strings_that_are_not_utf8() -> onnx.ModelProto:
    """Vocabularies hold bytes."""
    attribute = AttributeProto(name="value_strings", type=AttributeProto.STRINGS, strings=[b"\xff\xfe", b"plain"])
    node = onnx.NodeProto(op_type="Constant", output=["words"], attribute=[attribute])
    single = AttributeProto(name="mode", type=AttributeProto.STRING, s=b"\xf0\x28")
    model = _add()
    model.graph.node.extend([node, onnx.NodeProto(op_type="Odd", output=["o"], domain="odd", attribute=[single])])
    model.opset_import.add(domain="odd", version=1)
    return model


def with_quantization_annotations() -> onnx.ModelProto:
    model = _add()
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.1, np.float32), "w_scale"))
    annotation = model.graph.quantization_annotation.add(tensor_name="w")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w_scale")
    return model


def with_metadata_everywhere() -> onnx.ModelProto:
    """On the model, the graph, nodes, values of every kind, tensors and functions, not in order."""
    body = [helper.make_node("Add", ["a", "a"], ["b"], name="inside")]
    info = helper.make_tensor_value_info("s", TensorProto.FLOAT, ["N", 3])
    model = _add(value_info=[info, helper.make_tensor_value_info("w", TensorProto.FLOAT, [3])])
    function = helper.make_function("local", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 18)])
    function.value_info.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, None))
    model.functions.append(function)
    model.opset_import.add(domain="local", version=1)
    model.producer_name, model.producer_version, model.domain = "someone", "1.2", "org.example"
    model.model_version, model.doc_string = 7, "about the model"
    graph = model.graph
    holders = (
        model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer, function,
        *function.node, *function.value_info,
    )  # fmt: skip
    for at, each in enumerate(holders):
        each.doc_string = f"doc {at}"
        for key in ("z", "a", "ключ"):
            each.metadata_props.add(key=key, value=f"{key} {at}")
    return model


def with_the_long_name_of_the_standard_domain() -> onnx.ModelProto:
    model = _add()
    model.opset_import[0].domain = "ai.onnx"
    model.graph.node[0].domain = "ai.onnx"
    return model


def with_every_kind_of_attribute() -> onnx.ModelProto:
    model = _add()
    tensor = numpy_helper.from_array(np.arange(4, dtype=np.int8), "named")
    type_ = helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", None, 3])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["inner"])], "attached", [], [])
    attributes = [
        helper.make_attribute("int", 1), helper.make_attribute("ints", [1, 2]), helper.make_attribute("float", 1.5),
        helper.make_attribute("floats", [0.5, -1.0]), helper.make_attribute("string", "text"),
        helper.make_attribute("strings", ["a", "ü"]), helper.make_attribute("tensor", tensor),
        helper.make_attribute("tensors", [tensor, tensor]), helper.make_attribute("type", type_),
        helper.make_attribute("types", [type_]), helper.make_attribute("graph", graph),
        AttributeProto(name="no ints", type=AttributeProto.INTS),
        AttributeProto(name="no text", type=AttributeProto.STRING, s=b""),
    ]  # fmt: skip
    attributes[0].doc_string = "about an attribute"
    node = onnx.NodeProto(op_type="Odd", domain="odd", input=["x"], output=["o"], attribute=attributes)
    model.graph.node.append(node)
    model.opset_import.add(domain="odd", version=1)
    return model


def with_every_element_type() -> onnx.ModelProto:
    """Initializers of each type, in raw bytes and in typed fields, of rank 0, empty, and of rank 2."""
    model = _add()
    for kind in sorted(set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}):
        name = TensorProto.DataType.Name(kind)
        if kind == TensorProto.STRING:
            model.graph.initializer.append(helper.make_tensor(name, kind, [2], [b"\xff", b"b"]))  # type: ignore[list-item]
            continue
        numbers = [1, 0, 1, 1]
        model.graph.initializer.append(helper.make_tensor(name, kind, [2, 2], numbers))
        model.graph.initializer.append(helper.make_tensor(f"{name} empty", kind, [0, 2], []))
        raw = helper.make_tensor(f"{name} raw", kind, [2, 2], numbers)
        array = numpy_helper.to_array(raw)
        model.graph.initializer.append(numpy_helper.from_array(array, f"{name} from array"))
    return model


def with_gaps_in_inputs_and_outputs() -> onnx.ModelProto:
    return onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        g (float[1,4,4] x, float[1,16,4] w, float[1,16,4] r, float[1,1,4] h) => (float[1,1,1,4] y, float c)
        <float zero = {0}> {
            y, , c2 = LSTM <hidden_size = 4> (x, w, r, , , h, )
            c = Identity(zero)
        }"""
    )


def with_large_weights() -> onnx.ModelProto:
    """In initializers (raw, typed, half), in a Constant node, and in both branches of an If."""
    numbers = np.random.default_rng(0).standard_normal(LARGE).astype(np.float32)
    branches = {}
    for name, factor in (("then_branch", 2.0), ("else_branch", 3.0)):
        inner = numpy_helper.from_array(numbers * np.float32(factor), "own name")
        nodes = [helper.make_node("Constant", [], [f"{name}_k"], value=inner)]
        nodes.append(helper.make_node("Add", [f"{name}_k", f"{name}_w"], [f"{name}_out"]))
        weight = numpy_helper.from_array(numbers + np.float32(factor), f"{name}_w")
        weight.doc_string = "inside"
        output = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, [LARGE])
        branches[name] = helper.make_graph(nodes, name, [], [output], [weight])
    constant = numpy_helper.from_array(numbers, "named constant")
    constant.doc_string = "of a Constant"
    raw = numpy_helper.from_array(numbers[::-1].copy(), "raw")
    raw.doc_string = "of an initializer"
    raw.metadata_props.add(key="k", value="v")
    half = numpy_helper.from_array(np.ones(2 * LARGE, dtype=np.float16), "half")
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [LARGE], numbers.tolist())
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["k"], value=constant),
            helper.make_node("If", ["flag"], ["i"], **branches),
            helper.make_node("Sum", ["k", "raw", "typed", "i"], ["y"]),
            helper.make_node("ReduceSum", ["half"], ["z"], keepdims=0),
        ],
        "large",
        [helper.make_tensor_value_info("flag", TensorProto.BOOL, [])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [LARGE]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT16, []),
        ],
        [raw, typed, half],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


SPECIAL: tuple[Callable[[], onnx.ModelProto], ...] = (
    with_map_output, with_sparse_initializer, with_sparse_attribute, with_training_info,
    with_strings_that_are_not_utf8, with_quantization_annotations, with_metadata_everywhere,
    with_the_long_name_of_the_standard_domain, with_every_kind_of_attribute, with_every_element_type,
    with_gaps_in_inputs_and_outputs, with_large_weights,
)  # fmt: skip
each_special = pytest.mark.parametrize("make", [pytest.param(m, id=m.__name__) for m in SPECIAL])


@each_special
def test_special_models_stay(make: Callable[[], onnx.ModelProto]) -> None:
    before = make()
    after = to_proto(from_proto(before))
    assert before == make(), "the model given was edited"
    assert_unchanged(before, after)
    assert_unchanged(before, to_proto(from_proto(after)))
    assert_unchanged(before, to_proto(copy(from_proto(before))))


@each_special
@pytest.mark.parametrize("external_data", [None, False, True])
def test_special_models_stay_through_files(
    make: Callable[[], onnx.ModelProto], external_data: bool | None, tmp_path: Path
) -> None:
    before = make()
    assert_unchanged(before, through_file(before, tmp_path, external_data))
    (tmp_path / "first.onnx").write_bytes(before.SerializeToString())
    assert_unchanged(before, to_proto(load(tmp_path / "first.onnx")))


@each_special
def test_looking_at_a_model_leaves_it_as_it_is(make: Callable[[], onnx.ModelProto]) -> None:
    model = from_proto(make())
    before = to_proto(model)
    editor = Editor(model)
    for graph in editor.graphs():
        for node in graph:
            for value in (*node.inputs, *node.outputs):
                editor.shape(value), editor.dtype(value), editor.constant(value)
    assert to_proto(model) == before


def test_a_map_output_still_runs(tmp_path: Path) -> None:
    before = with_map_output()
    feeds = [{"x": np.array([[1.0, 2.0], [3.0, -1.0]], dtype=np.float32)}]
    for after in (to_proto(from_proto(before)), through_file(before, tmp_path)):
        assert oracle.difference(oracle.by_runtime(before, feeds), oracle.by_runtime(after, feeds)) is None


# -- files -----------------------------------------------------------------------------------------------------

FLAG = [{"flag": np.array(True)}, {"flag": np.array(False)}]


def _results(path: Path) -> list[list[Any]]:
    return oracle.by_runtime(onnx.load(path), FLAG)


@pytest.mark.parametrize("was_external", [False, True])
@pytest.mark.parametrize("external_data", [None, False, True])
def test_weights_move_in_and_out_of_the_file(was_external: bool, external_data: bool | None, tmp_path: Path) -> None:
    before = with_large_weights()
    first = tmp_path / "first.onnx"
    onnx.save(before, first, save_as_external_data=was_external, location="weights.bin", size_threshold=1024)
    before = with_large_weights()  # onnx.save edits what it is given
    model = load(first)
    source = source_of(model)
    assert source is not None
    assert source.has_external_data == was_external
    second = tmp_path / "second.onnx"
    save(model, second, external_data=external_data)
    wanted = was_external if external_data is None else external_data
    assert (tmp_path / "second.onnx.data").exists() == wanted
    assert_unchanged(before, onnx.load(second))
    assert_unchanged(before, to_proto(load(second)))
    assert oracle.difference(oracle.by_runtime(before, FLAG), _results(second)) is None
    onnx.checker.check_model(second, full_check=True)


def test_large_weights_stay_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(with_large_weights().SerializeToString())
    for tensor in tensors(load(path)):
        assert type(tensor).__name__ == "ExternalTensor" or tensor.nbytes < OFFLOAD_BYTES


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("external_data", [None, False, True])
def test_refuses_to_save_over_the_file_it_came_from(force: bool, external_data: bool | None, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(with_large_weights().SerializeToString())
    model = load(path)
    with pytest.raises(OutputError):
        save(model, path, force=force, external_data=external_data)
    assert path.read_bytes() == with_large_weights().SerializeToString()
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_refuses_to_save_over_the_data_file_it_came_from(tmp_path: Path) -> None:
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    onnx.save(with_large_weights(), first, save_as_external_data=True, location="second.onnx.data", size_threshold=1024)
    data = (tmp_path / "second.onnx.data").read_bytes()
    model = load(first)
    with pytest.raises(OutputError):
        save(model, second, force=True)
    assert (tmp_path / "second.onnx.data").read_bytes() == data
    assert not second.exists()
    save(model, second, external_data=False)
    assert_unchanged(with_large_weights(), onnx.load(second))


def test_a_link_to_the_input_is_the_input(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(with_large_weights().SerializeToString())
    (tmp_path / "link.onnx").symlink_to("model.onnx")
    with pytest.raises(OutputError):
        save(load(tmp_path / "model.onnx"), tmp_path / "link.onnx", force=True)
    with pytest.raises(OutputError):
        save(load(tmp_path / "link.onnx"), tmp_path / "model.onnx", force=True)


def test_saves_over_what_an_earlier_save_left(tmp_path: Path) -> None:
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    first.write_bytes(with_large_weights().SerializeToString())
    for external_data in (True, False, True):
        save(load(first), second, force=True, external_data=external_data)
        assert_unchanged(with_large_weights(), onnx.load(second))
        assert oracle.difference(_results(first), _results(second)) is None


def test_two_saves_give_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(with_large_weights().SerializeToString())
    for at, external_data in enumerate((True, False)):
        paths = [tmp_path / f"{at}-{name}" / "same.onnx" for name in ("a", "b")]
        for path in paths:
            path.parent.mkdir()
            save(load(tmp_path / "model.onnx"), path, external_data=external_data)
        assert paths[0].read_bytes() == paths[1].read_bytes()
