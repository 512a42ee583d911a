"""Compare tensors by what they hold, without loading large ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.traverse import is_external

_CHUNK = 1 << 20
_SAMPLE = 4096


def digest(tensor: ir.TensorProtocol) -> bytes:
    """A fingerprint of type, dims and data: 256 bits of BLAKE2b, so equal ones mean equal tensors."""
    found = hashlib.blake2b(_kind(tensor), digest_size=32)
    for chunk in _chunks(tensor):
        found.update(chunk)
    return found.digest()


def sample(tensor: ir.TensorProtocol) -> bytes:
    """Type, dims, first and last bytes: tensors that differ in these are told apart almost for free."""
    if tensor.dtype == ir.DataType.STRING:
        return _kind(tensor)
    if is_external(tensor):
        start, size = tensor.offset or 0, tensor.nbytes
        with open(tensor.path, "rb") as file:
            file.seek(start)
            head = file.read(min(_SAMPLE, size))
            file.seek(start + max(size - _SAMPLE, 0))
            return _kind(tensor) + head + file.read(min(_SAMPLE, size))
    data = tensor.tobytes()
    return _kind(tensor) + data[:_SAMPLE] + data[-_SAMPLE:]


def is_sampled_whole(tensor: ir.TensorProtocol) -> bool:
    """Whether ``sample`` holds all of the data, so that equal samples mean equal tensors."""
    return tensor.dtype != ir.DataType.STRING and tensor.nbytes <= _SAMPLE


def kind(tensor: ir.TensorProtocol) -> tuple[int, tuple[int, ...]]:
    """Element type and dims."""
    return int(tensor.dtype), tuple(tensor.shape)  # type: ignore[arg-type]  # of a tensor, all are numbers


def _kind(tensor: ir.TensorProtocol) -> bytes:
    return repr(kind(tensor)).encode()


def _chunks(tensor: ir.TensorProtocol) -> Iterator[bytes]:
    if tensor.dtype == ir.DataType.STRING:
        for item in tensor.string_data():  # type: ignore[attr-defined]
            yield f"{len(item)}:".encode()
            yield bytes(item)
    elif is_external(tensor):
        left = tensor.nbytes
        with open(tensor.path, "rb") as file:  # not mapped: its pages would count as memory of ours
            file.seek(tensor.offset or 0)
            while left > 0 and (chunk := file.read(min(_CHUNK, left))):
                left -= len(chunk)
                yield chunk
    else:
        yield tensor.tobytes()
