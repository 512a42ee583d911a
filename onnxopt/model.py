"""Load and save models without loss, and without holding their weights in memory.

A loaded model is an ``onnx_ir.Model`` whose weights stay in the file until somebody reads them: inline
weights of at least ``OFFLOAD_BYTES`` are mapped from the model file itself. Saving streams them.
What onnx-ir cannot hold travels beside it (``guard.py``) and is put back by every writer here.

Normalisations of load → save, all without meaning: metadata entries are sorted by key, ``value_info``
follows the order of the nodes, numbers in typed fields of offloaded tensors become ``raw_data``, empty
trailing inputs and outputs of nodes are dropped, the domain ``ai.onnx`` is written as ``""``, fields that
are written out but hold only their default are left out, and ``value_info`` of values that no longer exist
is dropped.
"""

from __future__ import annotations

import gc
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from onnxopt import guard, wire
from onnxopt.errors import ModelError, OutputError
from onnxopt.writing import DATA_SUFFIX, replace_file, writable

OFFLOAD_BYTES = 16 * 1024
"""Inline weights of at least this many bytes stay in the file."""

_OUTLINE_BYTES = 1024
"""Shapes, axes and the like are smaller than this."""

PROTOBUF_LIMIT = 2**31 - 1
"""The largest message that protobuf can write, in bytes."""

_INLINE = "\x01onnxopt.inline."
"""Marks, while a file is being written, a reference to data that goes into it in that place."""

_ASIDE, _SOURCE, _DECLARED = "onnxopt.set_aside", "onnxopt.source", "onnxopt.declared"


_Place = Callable[[ir.TensorProtocol, bool], ir.TensorProtocol | None]
"""What to write instead of a tensor, told whether it is an initializer of the main graph."""


@dataclass(frozen=True)
class Source:
    """Where a model was loaded from."""

    path: Path
    has_external_data: bool


def source_of(model: ir.Model) -> Source | None:
    """The file that ``model`` was loaded from, or ``None`` for a model from memory."""
    found = model.graph.meta.get(_SOURCE)
    return found if isinstance(found, Source) else None


def load(path: str | os.PathLike[str]) -> ir.Model:
    """Read an ONNX file; large weights stay in it and are mapped when read.

    Raises ``ModelError`` if the file is missing, empty, damaged or not ONNX, if its external data are
    missing, too short or outside the model's directory, or if its graph is broken.
    """
    given = Path(path)
    try:
        if given.is_dir():
            raise ModelError(f"{given} is a directory; give the .onnx file in it")
        if given.exists() and not given.is_file():  # opening a named pipe would wait for ever
            raise ModelError(f"{given} is not a regular file; copy the model into one first")
        with given.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ModelError(f"{given} is empty; export or download the model again")
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelError(f"cannot read {given}: {error.strerror or error}") from error
    real = given.resolve()
    try:
        pieces = wire.rewrite(
            memoryview(content), lambda body, at: _offloaded(body, at, real), wire.EVERYWHERE, OFFLOAD_BYTES
        )
        slim = content[:] if pieces is None else b"".join(p for p in pieces if not isinstance(p, wire.Deferred))
        proto = onnx.ModelProto.FromString(slim)
    except (wire.WireError, ValueError, DecodeError) as error:
        raise ModelError(f"{given} is damaged or not an ONNX model: {error}") from error
    if not proto.HasField("graph") or not proto.ir_version:
        raise ModelError(f"{given} is not an ONNX model: it holds no graph")
    if not proto.opset_import and not proto.functions:
        raise ModelError(f"{given} names no opset; it is cut off, or not an ONNX model")
    model = _from_owned_proto(proto, str(given))
    external = _resolve_external(model, given, real)
    model.graph.meta[_SOURCE] = Source(given, external)
    return model


def from_proto(proto: onnx.ModelProto, directory: str | os.PathLike[str] = ".") -> ir.Model:
    """Take over a ``ModelProto``, which stays untouched.

    ``directory`` is where its external data are. Raises ``ModelError`` like ``load``.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    model = _from_owned_proto(copied, "the ModelProto")
    here = Path(directory) / "model.onnx"
    _resolve_external(model, here, here.resolve())
    return model


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """A complete ``ModelProto``, all weights inside.

    Raises ``ModelError`` if that is more than protobuf can hold.
    """
    size = weight_bytes(model)
    if size >= PROTOBUF_LIMIT:
        raise ModelError(f"the model holds {size / 1e9:.1f} GB of weights, a ModelProto at most 2.1: save it instead")
    return _to_proto(model, lambda tensor, _: None if _in_place(tensor) else _in_memory(tensor))


def slim_proto(model: ir.Model) -> tuple[onnx.ModelProto, Path | None]:
    """The model with its mapped weights as external data of the returned directory.

    Nothing is copied but weights that live in memory, so this is cheap to make and to hand to
    ONNX Runtime. The directory is ``None`` if no weight is mapped.
    """
    directory: Path | None = None

    def place(tensor: ir.TensorProtocol, main: bool) -> ir.TensorProtocol | None:
        nonlocal directory
        if not isinstance(tensor, ir.ExternalTensor):
            return None
        file = Path(tensor.path)
        if directory is None:
            directory = file.parent
        if not main or file.parent != directory:
            return _in_memory(tensor)
        return _external(tensor, file.name, tensor.offset, tensor.length)

    return _to_proto(model, place), directory


def outline(model: ir.Model) -> onnx.ModelProto:
    """The model without the content of its larger tensors: enough to look at types and shapes."""
    return _to_proto(
        model, lambda tensor, _: None if tensor.nbytes <= _OUTLINE_BYTES else _external(tensor, "-", None, None)
    )


def copy(model: ir.Model) -> ir.Model:
    """An independent copy; weights are shared, for passes replace tensors and never write into them."""
    return model.clone()


@contextmanager
def without_gc() -> Iterator[None]:
    """Do not search for garbage meanwhile: a model is one tangle of cycles, and searching it again and again
    while it grows takes time quadratic in its size."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Every graph of the model: the main one, local functions, and the bodies inside all of these."""
    for holder in (model.graph, *(f.graph for f in model.functions.values())):
        yield holder
        yield from _inner(holder)


def _inner(graph: ir.Graph) -> Iterator[ir.Graph]:
    for node in graph:
        for attribute in node.attributes.data.values():  # the plain dict: this runs over every node all the time
            if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
                bodies: tuple[ir.Graph, ...] = (attribute.value,)
            elif attribute.type == ir.AttributeType.GRAPHS and not attribute.is_ref():
                bodies = tuple(attribute.value)
            else:
                continue
            for body in bodies:
                yield body
                yield from _inner(body)


def weight_bytes(model: ir.Model) -> int:
    """Size of all initializers and constant attributes in bytes."""
    return sum(tensor.nbytes for tensor in tensors(model))


def tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every tensor stored in the model: initializers and node attributes, at any depth."""
    for graph in graphs(model):
        yield from (v.const_value for v in graph.initializers.values() if v.const_value is not None)
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    yield attribute.value
                elif attribute.type == ir.AttributeType.TENSORS and not attribute.is_ref():
                    yield from attribute.value


def save(
    model: ir.Model, path: str | os.PathLike[str], *, force: bool = False, external_data: bool | None = None
) -> list[Path]:
    """Write ``model`` atomically, and return the files: a failure at any point leaves what was there before.

    ``external_data`` puts the weights into ``<name>.data`` beside the file; by default where the model
    had them, and always when it is too large for one file. Raises ``OutputError`` if ``path`` exists
    (unless ``force``), cannot be written, or is the very file that the model was loaded from.
    """
    target = writable(path, force)
    source = source_of(model)
    inputs = {Path(t.path) for t in tensors(model) if isinstance(t, ir.ExternalTensor)}
    _keep_off(target, inputs if source is None else {source.path, *inputs})
    if external_data is None:
        external_data = source is not None and source.has_external_data
    total = weight_bytes(model)
    if total >= PROTOBUF_LIMIT - 64 * 1024 * 1024:
        external_data = True
    payloads: list[ir.TensorProtocol] = []
    inline: list[ir.TensorProtocol] = []
    where = wire.MAIN_INITIALIZERS
    data_name = target.name + DATA_SUFFIX
    end = 0

    def place(tensor: ir.TensorProtocol, main: bool) -> ir.TensorProtocol | None:
        nonlocal end, where
        if tensor.dtype == ir.DataType.STRING or (tensor.nbytes < OFFLOAD_BYTES and _in_place(tensor)):
            return None
        if not (external_data and main):
            inline.append(tensor)
            where = where if main else wire.EVERYWHERE
            return _external(tensor, f"{_INLINE}{len(inline) - 1}", None, None)
        payloads.append(tensor)
        start = _aligned(end, tensor)
        end = start + tensor.nbytes
        return _external(tensor, data_name, start, tensor.nbytes)

    proto = _to_proto(model, place)
    slim = proto.SerializeToString(deterministic=True)
    del proto
    pieces = wire.rewrite(memoryview(slim), lambda body, _: _inlined(body, inline), where) if inline else None
    written = [target]
    with ExitStack() as stack:
        file = stack.enter_context(replace_file(target))
        if payloads:
            data_path = writable(target.with_name(data_name), force)
            _keep_off(data_path, inputs)
            written.append(data_path)
            data = stack.enter_context(replace_file(data_path))
            for tensor in payloads:
                data.write(b"\0" * (_aligned(data.tell(), tensor) - data.tell()))
                tensor.tofile(data)  # type: ignore[attr-defined]
        wire.write([slim] if pieces is None else pieces, file)
        file.flush()
        os.fsync(file.fileno())  # now, for once the data file has taken its place this one must not fail
    return written


def _keep_off(target: Path, inputs: Iterable[Path]) -> None:
    """Raise ``OutputError`` if ``target`` is one of the files that the model is read from."""
    for file in inputs:
        if target.exists() and file.exists() and target.samefile(file):
            raise OutputError(f"{target} belongs to the input, which is never changed; give another output")


def _aligned(position: int, tensor: ir.TensorProtocol) -> int:
    """Where a tensor may start in a data file: large ones at a page, so that they can be mapped."""
    return -(-position // 4096) * 4096 if tensor.nbytes >= OFFLOAD_BYTES else position


def _from_owned_proto(proto: onnx.ModelProto, origin: str) -> ir.Model:
    for imports in (proto.opset_import, *(f.opset_import for f in proto.functions)):
        domains = {entry.domain for entry in imports}
        for entry in imports:
            if entry.domain == "ai.onnx" and "" not in domains:
                entry.domain = ""
    aside = guard.set_aside(proto)
    declared = {info.name for graph in guard.graphs(proto) for info in graph.value_info}
    try:
        with without_gc():
            model = ir.from_proto(proto)
    except Exception as error:
        raise ModelError(f"{origin} is not a valid model: {_root(error)}") from error
    for graph in graphs(model):
        for name, value in graph.initializers.items():
            if name in aside.sparse:
                value.const_value = None
            if name in declared:
                value.meta[_DECLARED] = True
    model.graph.meta[_ASIDE] = aside
    _check_sizes(model, origin)
    _check_structure(model, origin)
    return model


def _root(error: BaseException) -> BaseException:
    """What went wrong first: onnx-ir wraps errors at every level, and fails itself while it words some."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return error


def _check_sizes(model: ir.Model, origin: str) -> None:
    """Refuse tensors that do not hold as much as their dims say."""
    for tensor in tensors(model):
        if not isinstance(tensor, ir.TensorProtoTensor):
            continue
        proto = tensor.raw
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


_ELEMENT_TYPES = frozenset(ir.DataType) - {ir.DataType.UNDEFINED}

_TYPED_DATA = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


def _check_structure(model: ir.Model, origin: str) -> None:
    """Refuse graphs that read what nothing defines, or that have no order."""
    for graph in graphs(model):
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
        if not all(_is_sorted(graph) for graph in graphs(model)):
            model.graph.sort()
            for function in model.functions.values():
                function.sort()
    except ValueError as error:
        raise ModelError(f"{origin}: the graph has a cycle, so no order to run it in: {error}") from error


def _is_sorted(graph: ir.Graph) -> bool:
    seen: set[ir.Node] = set()
    for node in graph:
        for value in node.inputs:
            if value is not None and (producer := value.producer()) is not None:
                if producer.graph is graph and producer not in seen:
                    return False
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
                for inner in attribute.as_graph().all_nodes():
                    for value in inner.inputs:
                        producer = value.producer() if value is not None else None
                        if producer is not None and producer.graph is graph and producer not in seen:
                            return False
        seen.add(node)
    return True


def _resolve_external(model: ir.Model, given: Path, real: Path) -> bool:
    """Check every external tensor against the files, and make its location absolute.

    Returns whether there is any besides the weights that ``load`` left in the file.
    """
    found = False
    for tensor in tensors(model):
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        file = Path(tensor.location)
        if file != real:
            found = True
            file = _contained(given.parent, os.fspath(tensor.location), tensor.name)
        size = file.stat().st_size
        length = tensor.nbytes if tensor.length is None else tensor.length
        if length != tensor.nbytes:
            raise ModelError(
                f"{given}: the tensor {tensor.name!r} should hold {tensor.nbytes} bytes "
                f"({tensor.dtype.name} {list(tensor.shape)}), its external data say {length}"
            )
        if (tensor.offset or 0) < 0 or (tensor.offset or 0) + length > size:
            raise ModelError(
                f"{given}: {file.name} is too short: the tensor {tensor.name!r} ends at byte "
                f"{(tensor.offset or 0) + length}, the file has {size}; fetch the data file again"
            )
        tensor._location = os.fspath(file)  # onnx-ir offers no setter; absolute, so that cwd does not matter
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


def _offloaded(body: memoryview, offset: int, file: Path) -> list[wire.Piece] | None:
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


def _inlined(body: memoryview, payloads: list[ir.TensorProtocol]) -> list[wire.Piece] | None:
    """The inverse: a ``TensorProto`` that refers to ``payloads`` by number gets its data back."""
    tensor = onnx.TensorProto.FromString(bytes(body))
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    location = tensor.external_data[0].value
    if not location.startswith(_INLINE):  # one that stays external
        return None
    payload = payloads[int(location.removeprefix(_INLINE))]
    del tensor.external_data[:]
    tensor.ClearField("data_location")
    data: list[wire.Piece] = [wire.Deferred(cast(wire.Payload, payload), payload.nbytes)]
    return [tensor.SerializeToString(deterministic=True), *wire.field(9, data)]


def _external(tensor: ir.TensorProtocol, location: str, offset: int | None, length: int | None) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        location, offset, length, tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()), name=tensor.name or "", doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )  # fmt: skip


def _in_memory(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The same tensor with its data read."""
    return ir.Tensor(
        tensor.numpy(), tensor.dtype, name=tensor.name or None, doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )  # fmt: skip


def _in_place(tensor: ir.TensorProtocol) -> bool:
    """Whether onnx-ir writes this tensor as it is, with its data inside."""
    return not isinstance(tensor, ir.ExternalTensor)


def _to_proto(
    model: ir.Model, place: _Place
) -> onnx.ModelProto:
    """Write the model with the tensors that ``place`` returns in place of its own."""
    with _as_written(model, place):
        try:
            proto = ir.serde.serialize_model(model)
        except Exception as error:  # such as names that are not UTF-8, which protobuf reads but does not write
            raise ModelError(f"the model cannot be written: {_root(error)}") from error
    for imports in (proto.opset_import, *(f.opset_import for f in proto.functions)):
        for entry in imports:
            if not entry.domain:  # onnx-ir writes it out, at two bytes more than many exporters need
                entry.ClearField("domain")
    for graph in guard.graphs(proto):
        for tensor in graph.initializer:
            if tensor.metadata_props:  # onnx-ir writes these twice
                unique = {entry.key: entry.value for entry in tensor.metadata_props}
                del tensor.metadata_props[:]
                for key, value in sorted(unique.items()):
                    tensor.metadata_props.add(key=key, value=value)
    aside = model.graph.meta.get(_ASIDE)
    if isinstance(aside, guard.SetAside):
        guard.restore(proto, aside)
    return proto


@contextmanager
def _as_written(
    model: ir.Model, place: _Place
) -> Iterator[None]:
    """For the time of writing: placed tensors, no added value_info, no stand-ins for sparse data."""
    undo: list[Callable[[], None]] = []
    for graph in graphs(model):
        for name, value in list(graph.initializers.items()):
            if value.const_value is None:
                del graph.initializers[name]
                undo.append(lambda graph=graph, value=value: graph.initializers.add(value))  # type: ignore[misc]
                continue
            if (placed := place(value.const_value, graph is model.graph)) is not None:
                undo.append(lambda value=value, old=value.const_value: setattr(value, "const_value", old))  # type: ignore[misc]
                value.const_value = placed
            if not value.is_graph_input() and not value.is_graph_output() and _DECLARED not in value.meta:
                undo.append(lambda v=value, t=value.type, s=value.shape: _set_type(v, t, s))  # type: ignore[misc]
                _set_type(value, None, None)
        for node in graph:
            for key, attribute in node.attributes.items():
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    if (placed := place(attribute.value, False)) is not None:
                        node.attributes[key] = ir.AttrTensor(key, placed, attribute.doc_string)
                        undo.append(lambda n=node, a=attribute: n.attributes.add(a))  # type: ignore[misc]
    try:
        yield
    finally:
        for step in undo:
            step()


def _set_type(value: ir.Value, type_: ir.TypeProtocol | None, shape: ir.Shape | None) -> None:
    value.type, value.shape = type_, shape
