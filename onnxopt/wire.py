"""Replace tensors inside a serialized ``ModelProto`` without parsing or copying the weights.

A protobuf message is a sequence of ``tag, payload`` fields, and a nested message is a payload
with its length in front. So a tensor deep inside a model can be swapped for a shorter or longer
one by re-emitting the lengths of the messages around it. Loading uses this to leave weights in
the file, saving uses it to stream them back; neither ever holds them in memory.

Source: https://protobuf.dev/programming-guides/encoding and ``onnx.proto``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import BinaryIO, Protocol

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

MODEL, GRAPH, NODE, ATTRIBUTE, FUNCTION, TENSOR = "model", "graph", "node", "attribute", "function", "tensor"

EVERYWHERE = {
    MODEL: {7: GRAPH, 25: FUNCTION},
    GRAPH: {1: NODE, 5: TENSOR},
    NODE: {5: ATTRIBUTE},
    ATTRIBUTE: {5: TENSOR, 6: GRAPH, 10: TENSOR, 11: GRAPH},
    FUNCTION: {7: NODE},
}
"""Where tensors can stand: message → field number → nested message."""

MAIN_INITIALIZERS = {MODEL: {7: GRAPH}, GRAPH: {5: TENSOR}}
"""Only the initializers of the main graph."""


DEEPEST = 100
"""How deep messages may nest; protobuf has the same limit."""


class WireError(ValueError):
    """The bytes are not a protobuf message of this shape."""


class Payload(Protocol):
    """Bytes that are written later, such as a tensor that stays in its file until then."""

    def tofile(self, file: BinaryIO) -> None: ...


@dataclass(frozen=True)
class Deferred:
    """A payload of known size in bytes."""

    payload: Payload
    size: int


Piece = bytes | memoryview | Deferred


def size_of(pieces: Iterable[Piece]) -> int:
    """The length in bytes of the pieces once written."""
    return sum(p.size if isinstance(p, Deferred) else len(p) for p in pieces)


def write(pieces: Iterable[Piece], file: BinaryIO) -> None:
    """Write the pieces one after another."""
    for piece in pieces:
        if isinstance(piece, Deferred):
            piece.payload.tofile(file)
        else:
            file.write(piece)


def varint(value: int) -> bytes:
    """``value`` ≥ 0 in base 128, low digits first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, pieces: list[Piece]) -> list[Piece]:
    """A length-delimited field with the pieces as its payload."""
    return [varint(number << 3 | _BYTES) + varint(size_of(pieces)), *pieces]


def _read_varint(buffer: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(buffer) or shift > 63:
            raise WireError(f"a number is cut off at byte {at}")
        byte = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def fields(buffer: memoryview) -> Iterable[tuple[int, int, int, int, int]]:
    """Each field as (number, wire type, start of the field, start of its payload, end).

    Raises ``WireError`` where the bytes end inside a field or use a wire type that ONNX does not.
    """
    at, end = 0, len(buffer)
    while at < end:
        start = at
        tag, at = _read_varint(buffer, at)
        kind = tag & 7
        if kind == _BYTES:
            size, at = _read_varint(buffer, at)
            payload, at = at, at + size
        elif kind == _VARINT:
            payload = at
            _, at = _read_varint(buffer, at)
        elif kind in (_FIXED32, _FIXED64):
            payload, at = at, at + (4 if kind == _FIXED32 else 8)
        else:
            raise WireError(f"byte {start} starts a field of the unknown kind {kind}")
        if at > end or tag >> 3 == 0:
            raise WireError(f"the field at byte {start} is damaged or cut off")
        yield tag >> 3, kind, start, payload, at


def rewrite(
    buffer: memoryview,
    replace: Callable[[memoryview, int], list[Piece] | None],
    where: dict[str, dict[int, str]],
    at_least: int = 0,
    message: str = MODEL,
    offset: int = 0,
    depth: int = 0,
) -> list[Piece] | None:
    """Replace tensors of at least ``at_least`` bytes, found along ``where``.

    ``replace`` gets a serialized ``TensorProto`` with its position in the outermost buffer, and returns its
    new pieces, or ``None`` to keep it. Returns the pieces of the whole message, or ``None`` when nothing was
    replaced. A nested message shorter than ``at_least`` is not looked into.
    """
    if depth > DEEPEST:
        raise WireError(f"messages nest more than {DEEPEST} deep, which protobuf does not read")
    nested = where.get(message, {})
    pieces: list[Piece] = []
    kept_from = 0
    for number, kind, start, payload, end in fields(buffer):
        child = nested.get(number)
        if child is None or kind != _BYTES or end - payload < at_least:
            continue
        body = buffer[payload:end]
        position = offset + payload
        if child == TENSOR:
            new = replace(body, position)
        else:
            new = rewrite(body, replace, where, at_least, child, position, depth + 1)
        if new is not None:
            pieces += [buffer[kept_from:start], *field(number, new)]
            kept_from = end
    if not pieces:
        return None
    return [*pieces, buffer[kept_from:]]
