"""Weights that stay in a file: found in it, checked against it, and put back into one."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir

from onnxopt import wire
from onnxopt.errors import ModelError
from onnxopt.traverse import is_external, tensors

OFFLOAD_BYTES = 16 * 1024
"""Inline weights of at least this many bytes stay in the file."""


INLINE = "\x01onnxopt.inline."
"""Marks, while a file is being written, a reference to data that goes into it in that place."""


class InlineTensor(ir.TensorProtoTensor):
    """A small tensor as it stands in the file. onnx-ir reads type, dims and data anew whenever it is asked."""

    @cached_property
    def dtype(self) -> ir.DataType:  # type: ignore[override]  # the protocol lets it be set
        return super().dtype

    @cached_property
    def shape(self) -> ir.Shape:  # type: ignore[override]
        return super().shape

    @cached_property
    def size(self) -> int:
        return super().size

    @cached_property
    def nbytes(self) -> int:
        return super().nbytes

    @cached_property
    def _array(self) -> np.ndarray[Any, Any]:
        array = super().numpy()
        array.flags.writeable = False
        return array

    def numpy(self) -> np.ndarray[Any, Any]:
        return self._array


def resolve_external(model: ir.Model, given: Path, real: Path) -> bool:
    """Check every external tensor against the files, and make its location absolute.

    Returns whether there is any besides the weights that ``load`` left in the file.
    """
    found = False
    itself = os.fspath(real)
    sizes: dict[str, int] = {}
    for tensor in tensors(model):
        if not is_external(tensor):
            continue
        location = os.fspath(tensor.location)
        if location != itself:
            found = True
            location = os.fspath(_contained(given.parent, location, tensor.name))
        if location not in sizes:
            sizes[location] = os.stat(location).st_size
        size = sizes[location]
        length = tensor.nbytes if tensor.length is None else tensor.length
        if length != tensor.nbytes:
            raise ModelError(
                f"{given}: the tensor {tensor.name!r} should hold {tensor.nbytes} bytes "
                f"({tensor.dtype.name} {list(tensor.shape)}), its external data say {length}"
            )
        if (tensor.offset or 0) < 0 or (tensor.offset or 0) + length > size:
            raise ModelError(
                f"{given}: {Path(location).name} is too short: the tensor {tensor.name!r} ends at byte "
                f"{(tensor.offset or 0) + length}, the file has {size}; fetch the data file again"
            )
        tensor._location = location  # onnx-ir offers no setter; absolute, so that cwd does not matter
    return found


def _contained(directory: Path, location: str, name: str) -> Path:
    """The file at ``location``, which must lie in ``directory``, also after following links."""
    root = directory.resolve()
    file = (root / location).resolve()
    if not location or os.path.isabs(location) or not file.is_relative_to(root):
        raise ModelError(
            f"the tensor {name!r} points to {location!r}, outside the model's directory {directory}; "
            "external data must lie beside the model"
        )
    if not file.is_file():
        raise ModelError(f"the tensor {name!r} has its data in {location!r}, which is not in {directory}")
    return file


def offloaded(body: memoryview, offset: int, file: Path) -> list[wire.Piece] | None:
    """The ``TensorProto`` with its one large field turned into a reference to the file it stands in."""
    rest: list[wire.Piece] = []
    data: tuple[int, int] | None = None
    for number, kind, start, payload, end in wire.fields(body):
        # raw_data, or packed float_data and double_data, whose bytes are laid out the same
        if number in (4, 9, 10) and kind == 2 and end - payload >= OFFLOAD_BYTES:
            if data is not None:
                return None
            data = offset + payload, end - payload
        elif number in (4, 13, 14):
            return None
        else:
            rest.append(body[start:end])
    if data is None:
        return None
    reference = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", os.fspath(file)), ("offset", data[0]), ("length", data[1])):
        reference.external_data.add(key=key, value=str(value))
    return [*rest, reference.SerializeToString()]


def inlined(body: memoryview, payloads: list[ir.TensorProtocol]) -> list[wire.Piece] | None:
    """The inverse: a ``TensorProto`` that refers to ``payloads`` by number gets its data back."""
    content = bytes(body)
    if INLINE.encode() not in content:
        return None
    tensor = onnx.TensorProto.FromString(content)
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    location = tensor.external_data[0].value
    if not location.startswith(INLINE):  # one that stays external
        return None
    payload = payloads[int(location.removeprefix(INLINE))]
    del tensor.external_data[:]
    tensor.ClearField("data_location")
    data: list[wire.Piece] = [wire.Deferred(cast(wire.Payload, payload), payload.nbytes)]
    return [tensor.SerializeToString(deterministic=True), *wire.field(9, data)]


def external_stub(
    tensor: ir.TensorProtocol, location: str, offset: int | None, length: int | None
) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        location, offset, length, tensor.dtype,
        shape=tensor.shape, name=tensor.name or "", doc_string=tensor.doc_string,  # type: ignore[arg-type]
        metadata_props=dict(tensor.metadata_props),
    )  # fmt: skip


def in_memory(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The same tensor with its data read."""
    return ir.Tensor(
        tensor.numpy(), tensor.dtype, name=tensor.name or None, doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )  # fmt: skip


def in_place(tensor: ir.TensorProtocol) -> bool:
    """Whether onnx-ir writes this tensor as it is, with its data inside."""
    return not is_external(tensor)
