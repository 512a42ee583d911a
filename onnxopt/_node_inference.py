"""What follows for the outputs of one node from what is known of its inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import onnx_ir as ir

from onnxopt._contrib_shapes import like, written_out
from onnxopt._symbols import Dim, Dims, Known
from onnxopt.nodes import constant_tensor

Found = tuple[ir.Value, ir.DataType | None, Dims | None]
"""An output with its type and dims, as far as they are known."""

Computed = Mapping[ir.Value, np.ndarray[Any, Any]]
"""What is held by values that are no constants."""

MADE_UP = "unk__"
"""How the symbols begin that onnx makes up for dims it cannot tell."""
WRONG_SLICE = 10
"""The version of Slice whose output, says onnx, keeps the symbols of all dims, also of those it cuts."""


def inferred(node: ir.Node, facts: Known, opset: int, computed: Computed) -> list[Found]:
    """The outputs of ``node``, which is of this opset, of which something is known."""
    if node.domain == "":
        try:
            schema = onnx.defs.get_schema(node.op_type, opset)
        except onnx.defs.SchemaError:
            pass
        else:
            return _by_onnx(node, schema, node.inputs, facts, computed)
    other = like(node)
    if other is None:
        return list(written_out(node, facts))
    found = _by_onnx(node, onnx.defs.get_schema(other.op), other.taken(node), facts, computed)
    return [(value, other.dtype(node, facts), shape) for value, _, shape in found]


def _by_onnx(
    node: ir.Node, schema: onnx.defs.OpSchema, inputs: Sequence[ir.Value | None], facts: Known, computed: Computed
) -> list[Found]:
    """What onnx infers for the outputs of ``node`` if it is an operator of this schema, with these inputs."""
    is_other = (node.domain, node.op_type) != ("", schema.name)
    try:
        types: dict[str, onnx.TypeProto] = {}
        data: dict[str, onnx.TensorProto] = {}
        for value in inputs:
            if value is None:
                continue
            dtype, shape = facts.dtype(value), facts.shape(value)
            if dtype is None:
                return []
            if is_other and dtype in (ir.DataType.INT8, ir.DataType.UINT8):
                dtype = ir.DataType.FLOAT  # the other operator takes no bytes
            types[value.name or ""] = onnx.helper.make_tensor_type_proto(dtype.value, shape)
            if is_other:
                continue
            if value in computed:
                data[value.name or ""] = onnx.numpy_helper.from_array(computed[value])
            elif (tensor := constant_tensor(value)) is not None and tensor.nbytes < 1024:
                data[value.name or ""] = ir.serde.serialize_tensor(tensor)
        proto = ir.serde.serialize_node(node)
        if is_other:
            _rewrite(proto, schema, inputs)
        outputs = onnx.shape_inference.infer_node_outputs(schema, proto, types, data)
    except Exception:  # inference that fails tells us nothing
        return []
    found: list[Found] = []
    for value in node.outputs:
        type_ = outputs.get(value.name or "")
        if type_ is not None and type_.HasField("tensor_type"):
            dtype, shape = read_type(type_.tensor_type)
            if shape is not None and node.op_type == "Slice" and schema.since_version == WRONG_SLICE:
                shape = tuple(dim if isinstance(dim, int) else None for dim in shape)
            found.append((value, dtype, shape))
    return found


def _rewrite(node: onnx.NodeProto, schema: onnx.defs.OpSchema, inputs: Iterable[ir.Value | None]) -> None:
    """Make the node one of this schema with these inputs, and what it has in common of outputs and attributes."""
    node.op_type, node.domain = schema.name, ""
    node.input[:] = ["" if value is None else value.name or "" for value in inputs]
    del node.output[schema.max_output :]
    kept = [each for each in node.attribute if each.name in schema.attributes]
    del node.attribute[:]
    node.attribute.extend(kept)


def read_type(type_: onnx.TypeProto.Tensor, run: int | None = None) -> tuple[ir.DataType | None, Dims | None]:
    """The element type and the dims that onnx tells; ``run`` counts the runs in which it makes up symbols."""
    dtype = ir.DataType(type_.elem_type) if type_.elem_type else None
    if not type_.HasField("shape"):
        return dtype, None
    return dtype, tuple(_read_dim(dim, run) for dim in type_.shape.dim)


def _read_dim(dim: onnx.TensorShapeProto.Dimension, run: int | None) -> Dim:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None  # some exporters write -1 for "dynamic"
    if run is not None and dim.dim_param.startswith(MADE_UP):  # it begins to count anew in each run
        return f"{dim.dim_param} of run {run}"
    return dim.dim_param or None
