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

import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from onnxopt import guard, wire
from onnxopt._garbage import without_gc
from onnxopt.checks import check_sizes, check_structure
from onnxopt.errors import ModelError, OutputError
from onnxopt.external import (
    INLINE,
    OFFLOAD_BYTES,
    InlineTensor,
    external_stub,
    in_memory,
    in_place,
    inlined,
    offloaded,
    resolve_external,
)
from onnxopt.traverse import graphs, is_external, tensors, weight_bytes
from onnxopt.writing import DATA_SUFFIX, replace_file, writable

_OUTLINE_BYTES = 1024
"""Shapes, axes and the like are smaller than this."""

PROTOBUF_LIMIT = 2**31 - 1
"""The largest message that protobuf can write, in bytes."""

_ASIDE, _SOURCE, _DECLARED = "onnxopt.set_aside", "onnxopt.source", "onnxopt.declared"
_OUTLINE = "onnxopt.outline"


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
            memoryview(content), lambda body, at: offloaded(body, at, real), wire.EVERYWHERE, OFFLOAD_BYTES
        )
        slim = content[:] if pieces is None else b"".join(p for p in pieces if not isinstance(p, wire.Deferred))
        proto = onnx.ModelProto.FromString(slim)
    except (wire.WireError, ValueError, DecodeError) as error:
        raise ModelError(f"{given} is damaged or not an ONNX model: {error}") from error
    if not proto.HasField("graph") or not proto.ir_version:
        raise ModelError(f"{given} is not an ONNX model: it holds no graph")
    if not proto.opset_import and not proto.functions:
        raise ModelError(f"{given} names no opset; it is cut off, or not an ONNX model")
    model = _from_owned_proto(proto, str(given), slim=True)
    external = resolve_external(model, given, real)
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
    resolve_external(model, here, here.resolve())
    return model


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """A complete ``ModelProto``, all weights inside.

    Raises ``ModelError`` if that is more than protobuf can hold.
    """
    size = weight_bytes(model)
    if size >= PROTOBUF_LIMIT:
        raise ModelError(f"the model holds {size / 1e9:.1f} GB of weights, a ModelProto at most 2.1: save it instead")
    return _to_proto(model, lambda tensor, _: None if in_place(tensor) else in_memory(tensor))


def slim_proto(model: ir.Model) -> tuple[onnx.ModelProto, Path | None]:
    """The model with its mapped weights as external data of the returned directory.

    Nothing is copied but weights that live in memory, so this is cheap to make and to hand to
    ONNX Runtime. The directory is ``None`` if no weight is mapped.
    """
    directory: Path | None = None

    def place(tensor: ir.TensorProtocol, main: bool) -> ir.TensorProtocol | None:
        nonlocal directory
        if not is_external(tensor):
            return None
        file = Path(tensor.path)
        if directory is None:
            directory = file.parent
        if not main or file.parent != directory:
            return in_memory(tensor)
        return external_stub(tensor, file.name, tensor.offset, tensor.length)

    return _to_proto(model, place), directory


def outline(model: ir.Model, *, untouched: bool = False) -> onnx.ModelProto:
    """The model without the content of its larger tensors: enough to look at types and shapes.

    ``untouched``: nothing was changed since the model was loaded, so that what was read can be used again.
    """
    read = model.graph.meta.pop(_OUTLINE, None)
    if untouched and isinstance(read, onnx.ModelProto):
        return read
    return _to_proto(
        model, lambda tensor, _: None if tensor.nbytes <= _OUTLINE_BYTES else external_stub(tensor, "-", None, None)
    )


def copy(model: ir.Model) -> ir.Model:
    """An independent copy; weights are shared, for passes replace tensors and never write into them."""
    copied = model.clone()
    copied.graph.meta.pop(_OUTLINE, None)
    return copied


@without_gc()
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
    stored = list(tensors(model))
    inputs = {Path(tensor.path) for tensor in stored if is_external(tensor)}
    _keep_off(target, inputs if source is None else {source.path, *inputs})
    if external_data is None:
        external_data = source is not None and source.has_external_data
    if sum(tensor.nbytes for tensor in stored) >= PROTOBUF_LIMIT - 64 * 1024 * 1024:
        external_data = True
    payloads: list[ir.TensorProtocol] = []
    inline: list[ir.TensorProtocol] = []
    where = wire.MAIN_INITIALIZERS
    data_name = target.name + DATA_SUFFIX
    end = 0

    def place(tensor: ir.TensorProtocol, main: bool) -> ir.TensorProtocol | None:
        nonlocal end, where
        if tensor.dtype == ir.DataType.STRING or (tensor.nbytes < OFFLOAD_BYTES and in_place(tensor)):
            return None
        if not (external_data and main):
            inline.append(tensor)
            where = where if main else wire.EVERYWHERE
            return external_stub(tensor, f"{INLINE}{len(inline) - 1}", None, None)
        payloads.append(tensor)
        start = _aligned(end, tensor)
        end = start + tensor.nbytes
        return external_stub(tensor, data_name, start, tensor.nbytes)

    proto = _to_proto(model, place)
    slim = proto.SerializeToString(deterministic=True)
    del proto
    pieces = wire.rewrite(memoryview(slim), lambda body, _: inlined(body, inline), where) if inline else None
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
        if payloads:
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


def _from_owned_proto(proto: onnx.ModelProto, origin: str, *, slim: bool = False) -> ir.Model:
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
            tensor = value.const_value
            if name in aside.sparse:
                value.const_value = None
            elif type(tensor) is ir.TensorProtoTensor:
                value.const_value = InlineTensor(tensor.raw)
            if name in declared:
                value.meta[_DECLARED] = True
    model.graph.meta[_ASIDE] = aside
    check_sizes(model, origin)
    if check_structure(model, origin) and slim:
        model.graph.meta[_OUTLINE] = proto
    return model


def _root(error: BaseException) -> BaseException:
    """What went wrong first: onnx-ir wraps errors at every level, and fails itself while it words some."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return error


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
            for key, attribute in node.attributes.data.items():
                if attribute.type is ir.AttributeType.TENSOR and not attribute.is_ref():
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
