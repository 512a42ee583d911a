"""onnx-graphsurgeon at the edge: convert to and from it, and run a user's gs function as a pass.

graphsurgeon 0.6 keeps names, operators, attributes and weights, but neither metadata nor doc strings, local
functions, opsets of other domains or the model's own description. These are carried over by name when a model
comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import onnx
import onnx_ir as ir

from onnxopt.errors import ModelError
from onnxopt.graph import Editor, label
from onnxopt.model import from_proto, slim_proto
from onnxopt.pass_base import Context, Log, Pass, Report

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

_ORIGIN = "onnxopt_origin"
_DIRECTORY = "basepath"
"""The entry of onnx's external data that says which folder the location is relative to."""


def is_graphsurgeon(model: object) -> bool:
    """Whether ``model`` is a ``gs.Graph``; does not import graphsurgeon to find out."""
    return type(model).__module__.partition(".")[0] == "onnx_graphsurgeon"


def to_graphsurgeon(model: ir.Model) -> gs.Graph:
    """The model as a ``gs.Graph``. Weights left in a file stay there until their ``values`` are read."""
    import onnx_graphsurgeon as gs

    proto, directory = slim_proto(model)
    if directory is not None:
        for tensor in proto.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                tensor.external_data.add(key=_DIRECTORY, value=str(directory))
    graph = gs.import_onnx(proto)
    for constant in graph.tensors().values():
        if isinstance(constant, gs.Constant) and hasattr(constant._values, "tensor"):
            _anchor(constant)
    setattr(graph, _ORIGIN, model)
    return graph


def _anchor(constant: gs.Constant) -> None:
    """Let a lazy weight find its file, whatever the working directory is when it is read."""
    lazy: Any = constant._values
    if (directory := _directory(lazy.tensor)) is not None:
        lazy.load = ir.serde.deserialize_tensor(lazy.tensor, directory).numpy
        constant.data_location = None  # once read, it is exported inline


def _directory(tensor: onnx.TensorProto) -> str | None:
    return next((entry.value for entry in tensor.external_data if entry.key == _DIRECTORY), None)


def from_graphsurgeon(graph: gs.Graph, origin: ir.Model | None = None) -> ir.Model:
    """A ``gs.Graph`` as a model, with what graphsurgeon lost restored by name.

    ``origin`` is the model that the graph came from; by default the one that ``to_graphsurgeon`` noted.
    Raises ``ModelError`` if graphsurgeon cannot export the graph.
    """
    import onnx_graphsurgeon as gs

    origin = origin or getattr(graph, _ORIGIN, None)
    try:
        proto = gs.export_onnx(graph)
    except Exception as error:
        raise ModelError(f"graphsurgeon cannot export the graph: {error}") from error
    directory = next((d for t in proto.graph.initializer if (d := _directory(t)) is not None), ".")
    model = from_proto(proto, directory)
    if origin is not None:
        _restore(model, origin)
    return model


def _restore(model: ir.Model, origin: ir.Model) -> None:
    """Give back what graphsurgeon has no place for, to everything that still has its name."""
    for key in ("domain", "model_version", "doc_string", "producer_name", "producer_version"):
        setattr(model, key, getattr(origin, key))
    model.metadata_props.update(origin.metadata_props)
    for domain, version in origin.opset_imports.items():
        model.opset_imports.setdefault(domain, version)
    model.graph.metadata_props.update(origin.graph.metadata_props)
    model.graph.doc_string = origin.graph.doc_string
    model.graph.meta.update({k: v for k, v in origin.graph.meta.items() if k not in model.graph.meta})
    nodes = {label(node): node for node in origin.graph}
    values = {value.name: value for value in _values(origin)}
    for node in model.graph:
        if (old := nodes.get(label(node))) is not None and old.op_type == node.op_type:
            node.doc_string = old.doc_string
            node.metadata_props.update(old.metadata_props)
    for value in _values(model):
        if (before := values.get(value.name)) is not None:
            value.doc_string = before.doc_string
            value.metadata_props.update(before.metadata_props)
            value.type = value.type or before.type
            if value.shape is None:
                value.shape = before.shape


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in model.graph:
        yield from node.outputs


@dataclass(frozen=True, kw_only=True)
class GraphSurgeonPass(Pass):
    """A function on ``gs.Graph`` as a pass.

    The function edits the graph it is given, or returns another. The manager verifies the result as it does
    for every pass; declare ``exact=False`` for one that is meant to change outputs.
    """

    name: ClassVar[str] = "graphsurgeon"
    exact: ClassVar[bool] = False

    function: Callable[[gs.Graph], gs.Graph | None]

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        title = getattr(self.function, "__name__", "function")
        if context.gate.allows(self.name, title):
            editor: Editor = context.editor
            graph = to_graphsurgeon(editor.model)
            before = slim_proto(editor.model)[0]
            model = from_graphsurgeon(self.function(graph) or graph, editor.model)
            if slim_proto(model)[0].graph.node != before.graph.node:
                editor.adopt(model)
                log.changed(title, "edited the graph")
        return log.report()
