"""Convert a model to another version of the standard operators.

::

    opset 12:  y = Squeeze<axes = [0]>(x)      →      opset 13:  y = Squeeze(x, axes), axes = {0}

The rules are those of onnx's own version converter, which knows for each operator how it changed. It forgets
what it has no place for, so only the graph goes through it, without the weights, and what it drops is put back
by name: metadata and doc strings at every level, dims and types of inputs and outputs, the model's own
``value_info``, weights as they were. Operators of other domains pass as they are. Where a rule is missing, or
the model holds what the converter cannot (local functions, sparse weights, training information), the model
stays as it is, and the report says why.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx
import onnx.checker
import onnx.version_converter
import onnx_ir as ir

from onnxopt import guard
from onnxopt.errors import ModelError, OptionError
from onnxopt.model import from_proto, slim_proto
from onnxopt.pass_base import Context, Log, Pass, Refuse, Report

_OLDEST = 7
"""The oldest opset that ONNX Runtime implements."""
_SMALL = 1024
"""Constants up to this many bytes go through the converter, which reads axes and scales from them."""


@dataclass(frozen=True, kw_only=True)
class ConvertOpset(Pass):
    """Convert the model to another version of the standard operators."""

    name: ClassVar[str] = "convert-opset"
    exact: ClassVar[bool] = True

    version: int
    """The version to convert to."""

    def __post_init__(self) -> None:
        newest = onnx.defs.onnx_opset_version()
        if not _OLDEST <= self.version <= newest:
            raise OptionError(f"{self.name}.version is a number from {_OLDEST} to {newest}, got {self.version}")

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        model = context.editor.model
        current = model.opset_imports.get("")
        if current in (None, self.version) or not self.may_change_name("model", context):
            return log.report()
        try:
            converted = self._converted(model)
        except Refuse as refusal:
            log.refused("model", str(refusal))
            return log.report()
        for key, value in model.graph.meta.items():
            converted.graph.meta.setdefault(key, value)
        model.ir_version = converted.ir_version
        context.editor.replace_graph(converted.graph)
        log.changed("model", f"converted from opset {current} to {self.version}")
        return log.report()

    def _converted(self, model: ir.Model) -> ir.Model:
        if model.functions:
            raise Refuse("it has local functions, which cannot be converted; run inline-functions first")
        if model.ir_version < 4:
            raise Refuse(f"it is of IR version {model.ir_version}; run drop-initializer-inputs first")
        proto, directory = slim_proto(model)
        if proto.training_info or any(graph.sparse_initializer for graph in guard.graphs(proto)):
            raise Refuse("it holds sparse initializers or training information, which would be lost")
        light = _without_weights(proto)
        try:
            light = onnx.version_converter.convert_version(light, self.version)
            onnx.checker.check_model(light)
        except Exception as error:  # the converter raises many unrelated types
            raise Refuse(f"onnx cannot convert it to opset {self.version}: {_reason(error)}") from error
        _restore(proto.graph, light.graph)
        proto.graph.CopyFrom(light.graph)
        for entry in proto.opset_import:
            if entry.domain in ("", "ai.onnx"):
                entry.version = self.version
        standard = [entry for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
        proto.ir_version = max(proto.ir_version, onnx.helper.find_min_ir_version_for(standard))
        try:
            return from_proto(proto, directory or ".")
        except ModelError as error:
            raise Refuse(f"onnx's conversion to opset {self.version} is broken: {error}") from error


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its larger initializers as inputs."""
    light = onnx.ModelProto(ir_version=proto.ir_version)
    light.opset_import.extend(proto.opset_import)
    for field in ("node", "input", "output"):
        getattr(light.graph, field).extend(getattr(proto.graph, field))
    light.graph.name = proto.graph.name or "graph"
    inputs = {value.name for value in proto.graph.input}
    for tensor in proto.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL and tensor.ByteSize() <= _SMALL:
            light.graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    return light


def _restore(old: onnx.GraphProto, new: onnx.GraphProto) -> None:
    """Put back into ``new``, which came of ``old``, what the converter dropped or made up."""
    nodes = {name: node for node in old.node for name in node.output if name}
    for node in new.node:
        before = next((nodes[name] for name in node.output if name in nodes), None)
        if before is None:
            node.name = ""  # the converter gives all nodes that replace one its name, which runtimes refuse
        else:
            node.name, node.doc_string, node.overload = before.name, before.doc_string, before.overload
            _refill(node.metadata_props, before.metadata_props)
            for mine, theirs in zip(_bodies(before), _bodies(node), strict=False):
                _restore(mine, theirs)
    weights = {tensor.name: tensor for tensor in old.initializer}
    through = {tensor.name for tensor in new.initializer} | {value.name for value in new.input}
    _refill(
        new.initializer,
        [tensor for tensor in old.initializer if tensor.name in through]
        + [tensor for tensor in new.initializer if tensor.name not in weights],
    )
    defined = {name for node in new.node for name in node.output} | through
    _refill(new.input, old.input)
    _refill(new.output, old.output)
    _refill(new.metadata_props, old.metadata_props)
    _refill(new.quantization_annotation, old.quantization_annotation)
    _refill(new.value_info, [info for info in old.value_info if info.name in defined])
    new.name, new.doc_string = old.name, old.doc_string


def _refill(field: Any, messages: Sequence[Any]) -> None:
    """Let a repeated field hold copies of ``messages``, which may stand in that field now."""
    copies = [type(message).FromString(message.SerializeToString()) for message in messages]
    del field[:]
    field.extend(copies)


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs in the attributes of ``node``, by the name of the attribute."""
    return [
        body
        for found in sorted(node.attribute, key=lambda a: a.name)
        for body in ([found.g] if found.type == onnx.AttributeProto.GRAPH else found.graphs)
    ]


def _reason(error: Exception) -> str:
    """What a message of the converter says, without the place in its source."""
    text = " ".join(str(error).split())
    return re.sub(r"^\S+\.(h|cc|cpp):\d+: \w+: (Assertion `.*?` failed: )?", "", text)[:300]
