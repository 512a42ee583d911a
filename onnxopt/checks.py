"""What must hold of a graph before anything can be done with it."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from onnxopt.errors import ModelError
from onnxopt.traverse import graphs, tensors


def check_sizes(model: ir.Model, origin: str) -> None:
    """Refuse tensors that do not hold as much as their dims say."""
    for tensor in tensors(model):
        if not issubclass(type(tensor), ir.TensorProtoTensor):
            continue
        proto = tensor.raw
        if _is_plain(proto):
            continue  # as almost all are
        if any(dim < 0 for dim in proto.dims):
            raise ModelError(f"{origin}: the tensor {tensor.name!r} has a negative dim: {list(proto.dims)}")
        if proto.data_type not in _ELEMENT_TYPES or (tensor.dtype == ir.DataType.STRING and proto.HasField("raw_data")):
            raise ModelError(f"{origin}: the tensor {tensor.name!r} has no element type that fits its data")
        if proto.HasField("raw_data"):
            wanted, found, unit = tensor.nbytes, len(proto.raw_data), "bytes"
        else:
            wanted, unit = tensor.size, "elements"
            found = max(len(getattr(proto, field)) for field in _TYPED_DATA)
            if tensor.dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
                found //= 2
            elif tensor.dtype.bitwidth in (2, 4):  # several to an element of int32_data, one to a byte of it
                wanted = tensor.nbytes
        if found != wanted:
            raise ModelError(
                f"{origin}: the tensor {tensor.name!r} should hold {wanted} {unit} ({tensor.dtype.name} "
                f"{list(proto.dims)}), it holds {found}"
            )


def _is_plain(proto: onnx.TensorProto) -> bool:
    """A first look, with few steps: raw data, or typed data one to an element, of the right length."""
    count = 1
    for dim in proto.dims:
        if dim <= 0:
            return False
        count *= dim
    if (length := len(proto.raw_data)) > 0:
        return count * _ITEM_BYTES.get(proto.data_type, 0) == length
    field = _FIELDS.get(proto.data_type)
    return field is not None and len(getattr(proto, field)) == count and not proto.HasField("raw_data")


_FIELDS = {1: "float_data", 6: "int32_data", 7: "int64_data", 8: "string_data", 9: "int32_data", 11: "double_data"}
_ITEM_BYTES = {int(t): t.bitwidth // 8 for t in ir.DataType if t not in (ir.DataType.UNDEFINED, ir.DataType.STRING)}
_ELEMENT_TYPES = frozenset(ir.DataType) - {ir.DataType.UNDEFINED}


_TYPED_DATA = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


def check_structure(model: ir.Model, origin: str) -> bool:
    """Refuse graphs that read what nothing defines, or that have no order; whether they were in order."""
    every = list(graphs(model))
    for graph in every:
        for node in graph:
            for value in node.inputs:
                if value is None or value.producer() is not None or value.graph is not None:
                    continue
                raise ModelError(
                    f"{origin}: node {node.name or node.op_type!r} reads {value.name!r}, which no input, "
                    "initializer or node defines"
                )
        for output in graph.outputs:
            if output.producer() is None and not output.is_graph_input() and not output.is_initializer():
                raise ModelError(f"{origin}: the output {output.name!r} is produced by nothing")
    try:
        if all(_is_sorted(graph) for graph in every):
            return True
        model.graph.sort()
        for function in model.functions.values():
            function.sort()
    except ValueError as error:
        raise ModelError(f"{origin}: the graph has a cycle, so no order to run it in: {error}") from error
    return False


def _is_sorted(graph: ir.Graph) -> bool:
    seen: set[ir.Node] = set()
    for node in graph:
        for value in node.inputs:
            if value is not None and (producer := value.producer()) is not None:
                if producer.graph is graph and producer not in seen:
                    return False
        for attribute in node.attributes.data.values():
            if attribute.type is ir.AttributeType.GRAPH and not attribute.is_ref():
                for inner in attribute.as_graph().all_nodes():
                    for value in inner.inputs:
                        producer = value.producer() if value is not None else None
                        if producer is not None and producer.graph is graph and producer not in seen:
                            return False
        seen.add(node)
    return True
