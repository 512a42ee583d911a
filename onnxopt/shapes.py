"""Shape and type facts about the values of a model.

Facts are kept beside the model, not in it: exporters leave stale ``value_info`` behind, and writing what we
infer would only make the file grow. They come from ``onnx.shape_inference`` run on the inputs alone, and from what
follows node by node where that stops; the model's own ``value_info`` is believed only for outputs of operators that
onnx does not know.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Set
from types import MappingProxyType

import onnx
import onnx.shape_inference
import onnx_ir as ir

from onnxopt._node_inference import MADE_UP, WRONG_SLICE, Computed, Found, inferred, read_type
from onnxopt._symbols import Dim, Dims
from onnxopt.errors import ModelError
from onnxopt.model import outline, slim_proto
from onnxopt.traverse import graphs

__all__ = ["STANDARD_DOMAINS", "Dim", "Dims", "Facts", "check_types"]

STANDARD_DOMAINS = ("", "ai.onnx.ml", "ai.onnx.preview.training")


class Facts:
    """What is known of each value: element type and dims."""

    def __init__(self, model: ir.Model, *, untouched: bool = False) -> None:
        """Infer what can be known of ``model``; ``untouched`` says that it is as it was loaded."""
        self._model = model
        self._dtypes: dict[ir.Value, ir.DataType | None] = {}
        self._shapes: dict[ir.Value, Dims | None] = {}
        self._retried: set[ir.Value] = set()
        self.improved = False
        """Whether ``refine`` had news; for the reader to reset."""
        self._runs = 0
        self._infer(outline(model, untouched=untouched))

    def of_copy(self, model: ir.Model) -> Facts:
        """The same about ``model``, a copy of the one that these are about."""
        twin = dict(zip(_values(self._model), _values(model), strict=True))
        found = copy.copy(self)
        found._model = model
        found._dtypes = {twin[value]: dtype for value, dtype in self._dtypes.items() if value in twin}
        found._shapes = {twin[value]: shape for value, shape in self._shapes.items() if value in twin}
        found._retried = {twin[value] for value in self._retried if value in twin}
        return found

    def shape(self, value: ir.Value) -> Dims | None:
        """The dims of ``value``; ``None`` if not even the rank is known."""
        if value not in self._shapes:
            self._look_up(value)
        elif self._shapes[value] is None and value not in self._retried:
            self._retry(value)
        return self._shapes[value]

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """The element type of ``value``; ``None`` if unknown or not a tensor."""
        if value not in self._dtypes:
            self._look_up(value)
        return self._dtypes[value]

    def learn(self, value: ir.Value, dtype: ir.DataType | None, shape: Dims | None) -> None:
        """Note what a pass knows of a value that it made."""
        self._dtypes[value], self._shapes[value] = dtype, shape

    def join(self, value: ir.Value, other: ir.Value) -> list[ir.Value]:
        """Note that both hold the same data; returns those of the two of which more is known now."""
        known = {each: self.shape(each) for each in (value, other)}
        if known[value] is None:
            self.learn(value, self.dtype(other), known[other])
        elif (shape := known[other]) is not None:
            self._shapes[value] = _union(known[value], shape)
        return [each for each, shape in known.items() if shape != self._shapes[value]]

    def refine(self, value: ir.Value, shape: Dims, dtype: ir.DataType | None = None) -> bool:
        """Note what is known of a value from elsewhere; returns whether its shape is news."""
        self._dtypes[value] = self._dtypes.get(value) or dtype
        known = self._shapes.get(value)
        found = _union(known, shape)
        if found == known:
            return False
        self.improved |= value in self._shapes  # else nobody has asked, and so decided on less
        self._shapes[value] = found
        return True

    def infer_again(self, node: ir.Node, computed: Computed = MappingProxyType({})) -> list[ir.Value]:
        """Infer the outputs of one node of whose inputs more is known: their shapes, or what the ``computed`` ones
        hold. Returns the outputs of which that told more."""
        return [
            value
            for value, dtype, shape in self._inferred(node, computed)
            if shape is not None and self.refine(value, _named(value, shape), dtype)
        ]

    def infer(self) -> None:
        """Infer types and shapes; what was known of a value stays known where this says nothing."""
        self._infer(outline(self._model))

    def propagate(self, graphs: Iterable[ir.Graph], nodes: Set[ir.Node]) -> None:
        """Infer the outputs of ``nodes``, of whose inputs more is known, and whatever follows from that."""
        improved: set[ir.Value | None] = set()
        for graph in graphs:
            for node in graph:
                if (node in nodes or not improved.isdisjoint(node.inputs)) and self.may_improve(node.outputs):
                    improved.update(self.infer_again(node))

    def may_improve(self, values: Iterable[ir.Value]) -> bool:
        """Whether the shape of any of ``values`` is not known in full."""
        for value in values:
            shape = self._shapes.get(value)
            if shape is None or not all(map(_is_known, shape)):
                return True
        return False

    def _infer(self, proto: onnx.ModelProto) -> None:
        _forget_value_info(proto.graph, self._opaque())
        _add_types_of_ml(proto)
        try:
            inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
            if self._model.opset_imports.get("") == WRONG_SLICE and _pin_slices(proto.graph, inferred.graph, {}):
                inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        except Exception:  # onnx raises several unrelated types; without inference we only know less
            inferred = proto
        self._retried.clear()
        self._runs += 1
        self._read(self._model.graph, inferred.graph)

    def _opaque(self) -> set[str]:
        """The outputs of operators that onnx does not know."""
        if self._model.opset_imports.keys() <= set(STANDARD_DOMAINS):
            return set()
        return {
            output.name or ""
            for graph in graphs(self._model)
            for node in graph
            if node.domain not in STANDARD_DOMAINS
            for output in node.outputs
        }

    def _read(self, graph: ir.Graph, proto: onnx.GraphProto) -> None:
        found: dict[str, onnx.TypeProto] = {}
        for info in (*proto.value_info, *proto.output, *proto.input):
            found[info.name] = info.type
        for value in graph.inputs:
            self._note(value, found)
        for node, node_proto in zip(graph, proto.node, strict=True):
            for value in node.outputs:
                self._note(value, found)
            if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node_proto.attribute):
                for attribute in node_proto.attribute:
                    own = node.attributes[attribute.name]
                    if attribute.type == onnx.AttributeProto.GRAPH and not own.is_ref():
                        self._read(own.as_graph(), attribute.g)
                    elif attribute.type == onnx.AttributeProto.GRAPHS and not own.is_ref():
                        for body, body_proto in zip(own.as_graphs(), attribute.graphs, strict=True):
                            self._read(body, body_proto)

    def _note(self, value: ir.Value, found: dict[str, onnx.TypeProto]) -> None:
        type_ = found.get(value.name or "")
        if type_ is not None and type_.HasField("tensor_type"):
            dtype, shape = read_type(type_.tensor_type, self._runs)
            self._dtypes[value] = dtype or self._dtypes.get(value)
            known = self._shapes.get(value)
            self._shapes[value] = shape if known is None else known if shape is None else _union(shape, known)

    def _look_up(self, value: ir.Value) -> None:
        """What can be said of a value that inference did not name: a constant, or the output of a new node."""
        self.learn(value, self._dtypes.get(value), self._shapes.get(value))
        tensor = value.const_value if value.is_initializer() else None
        if tensor is not None:
            self.learn(value, tensor.dtype, tuple(tensor.shape.numpy()))
        elif (node := value.producer()) is not None:
            self._learn_from(node)

    def _retry(self, value: ir.Value) -> None:
        """Inside a body, onnx does not see the constants of the graphs around it, such as axes; we do."""
        self._retried.add(value)
        node = value.producer()
        if node is not None and node.graph is not self._model.graph:
            self._learn_from(node)

    def _learn_from(self, node: ir.Node) -> None:
        for value, dtype, shape in self._inferred(node):  # other outputs may be known better already
            known = self._shapes.get(value)
            self.learn(value, dtype or self._dtypes.get(value), known if shape is None else _union(known, shape))

    def _inferred(self, node: ir.Node, computed: Computed = MappingProxyType({})) -> list[Found]:
        """What follows for the outputs of ``node`` from what is known of its inputs."""
        return inferred(node, self, self._model.opset_imports.get("", 1), computed)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in graphs(model):
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs


def _is_known(dim: Dim) -> bool:
    return dim is not None and not (isinstance(dim, str) and dim.startswith(MADE_UP))


def _named(value: ir.Value, shape: Dims) -> Dims:
    """``shape`` with a symbol for each dim that has none, as onnx makes them up."""
    return tuple(f"{MADE_UP}{value.name}, axis {axis}" if dim is None else dim for axis, dim in enumerate(shape))


def _union(first: Dims | None, second: Dims) -> Dims:
    """What both say together; where both know a dim, or neither, the first counts."""
    if first is None or len(first) != len(second):
        return first or second
    return tuple(y if _is_known(y) and not _is_known(x) else x for x, y in zip(first, second, strict=True))


def _pin_slices(graph: onnx.GraphProto, inferred: onnx.GraphProto, constants: dict[str, onnx.TensorProto]) -> bool:
    """Give each dim that a Slice cuts, and that has no number, a symbol of its own; whether there is any."""
    constants = constants | {tensor.name: tensor for tensor in graph.initializer}
    known = {info.name: info.type for info in (*inferred.value_info, *inferred.output)}
    outputs = {info.name: info for info in graph.output}
    pinned = False
    for node, other in zip(graph.node, inferred.node, strict=True):
        for attribute, of_other in zip(node.attribute, other.attribute, strict=True):
            if attribute.type == onnx.AttributeProto.GRAPH:
                pinned |= _pin_slices(attribute.g, of_other.g, constants)
            elif attribute.name == "value" and node.op_type == "Constant":
                constants[node.output[0]] = attribute.t
        type_ = known.get(node.output[0]) if node.op_type == "Slice" and node.domain == "" and node.output else None
        if type_ is None or not type_.tensor_type.HasField("shape"):
            continue
        rank = len(type_.tensor_type.shape.dim)
        given = constants.get(node.input[3]) if len(node.input) > 3 else None
        axes = {int(a) % rank for a in onnx.numpy_helper.to_array(given)} if given is not None and rank else range(rank)
        info = outputs.get(node.output[0]) or graph.value_info.add(name=node.output[0])
        info.type.CopyFrom(type_)
        for axis in axes:
            dim = info.type.tensor_type.shape.dim[axis]
            if not dim.HasField("dim_value"):
                dim.dim_param = f"{MADE_UP}{node.output[0]}, cut along {axis}"
        pinned = True
    return pinned


def _forget_value_info(graph: onnx.GraphProto, but: Iterable[str], is_body: bool = False) -> None:
    """Drop every claim about shapes but those of the names in ``but`` and of the model's own inputs.

    Symbols of these that look made up, as tf2onnx writes them, get names that do not.
    """
    copied = [onnx.ValueInfoProto.FromString(i.SerializeToString()) for i in graph.value_info if i.name in but]
    del graph.value_info[:]
    graph.value_info.extend(copied)
    for info in (*graph.output, *(graph.input if is_body else ())):
        if info.name not in but and info.type.HasField("tensor_type"):
            info.type.tensor_type.ClearField("shape")
    for info in () if is_body else graph.input:
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param.startswith(MADE_UP):
                dim.dim_param = f"input {dim.dim_param}"
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Squeeze" and attribute.name == "axes":
                attribute.ints[:] = sorted(attribute.ints)  # before opset 11, onnx is wrong on any other order
            if attribute.type == onnx.AttributeProto.GRAPH:
                _forget_value_info(attribute.g, but, True)
            for body in attribute.graphs:
                _forget_value_info(body, but, True)


def _add_types_of_ml(model: onnx.ModelProto) -> None:
    """Note the output types of classical operators that allow only one; onnx does not infer them."""
    versions = {entry.domain: entry.version for entry in model.opset_import}
    known = {info.name for info in (*model.graph.value_info, *model.graph.output)}
    for node in model.graph.node:
        if node.domain != "ai.onnx.ml":
            continue
        try:
            formal = onnx.defs.get_schema(node.op_type, versions.get(node.domain, 1), node.domain).outputs
        except onnx.defs.SchemaError:
            continue
        for name, output in zip(node.output, formal, strict=False):
            if output.types == {"tensor(float)"} and name and name not in known:
                model.graph.value_info.add(name=name).type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def check_types(model: ir.Model) -> None:
    """Raise ``ModelError`` where an operator gets a type, rank or shape that it cannot take."""
    proto, _ = slim_proto(model)
    try:
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    except Exception as error:
        raise ModelError(f"the model is not valid: {error}") from error
