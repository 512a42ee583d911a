"""What the tensors of a model hold over a dataset: ranges, histograms, channel means, Gram matrices.

The model is run on the data batch by batch, with the wanted tensors as additional outputs; what comes out is
summed up and let go, so memory does not grow with the number of samples. A first run on one sample tells how
large the tensors are. Then as many samples as fit under the cap go in at once, and if not even one fits, the
tensors are taken in several rounds.

Runs are made with ONNX Runtime's optimizations on, on all cores that the process may use. A tensor of a fused
operator then comes from the operator's unfused form, so results are those of the model as written, up to the
rounding of floats.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import onnx
import onnx.shape_inference
import onnx_ir as ir

from onnxopt import _cache
from onnxopt._accumulate import (
    BINS,
    Accumulator,
    Array,
    Channels,
    ChannelsOf,
    Gram,
    GramOf,
    Histogram,
    HistogramOf,
    Range,
    RangeOf,
    RowsOf,
)
from onnxopt._expose import Readout, Tensors
from onnxopt._packing import pack, unpack
from onnxopt._version import VERSION
from onnxopt.data import Dataset
from onnxopt.errors import DataError, EngineError
from onnxopt.evaluation import cores
from onnxopt.model import outline, slim_proto
from onnxopt.runtime import Session, Snapshot

__all__ = ["BINS", "Channels", "Gram", "Histogram", "Part", "Range", "Statistics"]

R = TypeVar("R")

_FLOATS = (
    onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16
)  # fmt: skip
_FORMAT = 3
"""To be raised when results get another meaning, so that none of before is taken for them."""
_PARALLEL_BYTES = 4 * 1024 * 1024
"""Less than this is summed up on one thread."""
_ENOUGH_BYTES = 1 << 27
"""To read more at one time takes more memory and no less time."""
_VALUES, _LEAST_VALUES = 1 << 18, 1 << 12
"""About so many values of a tensor are counted for its histogram, and at least so many of each sample."""
_SAY_EVERY = 0.5
"""Seconds between two messages of progress."""


@dataclass(frozen=True)
class Part:
    """Tensors that can be read together in bounded memory."""

    names: tuple[str, ...]
    rows: int | None
    """How many samples at most at one time; ``None``: as they come in batches."""


class Statistics:
    """Statistics of the named tensors of a model over a dataset; lazy, streamed, memory-capped, cached on disk.

    Tensors are named as in the model, which may be edited afterwards: these are of the model as it was.
    Integer tensors, and what is never computed on these data, are left out of every result. Raises ``DataError``
    for a name that cannot be read (see ``reachable``), and where the model does not run on the data.
    """

    def __init__(
        self,
        model: ir.Model,
        data: Dataset,
        *,
        memory: int = 3 << 28,
        cache: Path | Literal["user"] | None = "user",
        on_progress: Callable[[str], None] | None = None,
    ) -> None:
        """Prepare; nothing is run yet.

        ``memory``: bytes that may be taken beyond the model's own. ``cache``: the directory where results are
        kept; ``user`` is the one of the platform, ``None`` keeps none.
        """
        self._proto, self._directory = slim_proto(model)
        self._outline = outline(model)
        self._tensors = Tensors(self._proto)
        self._data, self._whole, self._memory = data, data, memory
        self._cache = _cache.user_directory() / "statistics" if cache == "user" else cache
        self._on_progress = on_progress or (lambda text: None)
        self._threads = cores()
        self._known: dict[str, dict[str, Any]] = {}
        self._hash = ""
        self._dtypes: dict[str, int | None] | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}

    def over(self, part: Dataset) -> Statistics:
        """The same of ``part`` of the data; what is known of the model is not found out anew."""
        self._dtype("")
        if self._cache is not None:
            self._digest()
        found = copy.copy(self)
        found._data, found._known = part, {}
        return found

    def reachable(self, name: str) -> str | None:
        """``None`` if there can be statistics of the tensor ``name``, else the reason why not."""
        found = self._tensors.obstacle(name)
        if found is None and name not in self._tensors.inputs:
            dtype = self._dtype(name)
            if dtype is None:
                found = "it is no tensor"
            elif not dtype and self._tensors.in_branch(name):
                found = "its type is not known"
        return found

    def ranges(self, names: Iterable[str]) -> dict[str, Range]:
        """The range of each of these tensors."""
        wanted = self._readable(names)
        known = self._stored("histograms", Histogram)
        rest = self._all("ranges", Range, [name for name in wanted if name not in known], lambda name: RangeOf())
        found = {name: _range(each) for name, each in known.items() if each is not None} | rest
        return {name: found[name] for name in wanted if name in found}

    def histograms(self, names: Iterable[str]) -> dict[str, Histogram]:
        """The histogram of each of these tensors, and with it its range; those with NaN or infinity are left out."""
        limit = max(_VALUES // len(self._data), _LEAST_VALUES)
        found = self._all("histograms", Histogram, names, lambda name: HistogramOf(limit), BINS * 32)
        return {name: histogram for name, histogram in found.items() if histogram.finite}

    def channels(self, axes: Mapping[str, int]) -> dict[str, Channels]:
        """By tensor, least and greatest value, mean and variance of each slice along the axis given with its name.

        Tensors without that axis, or with more slices at one time than at another, are left out.
        """
        found: dict[str, Channels] = {}
        for axis in sorted(set(axes.values())):
            names = [name for name in axes if axes[name] == axis]
            found |= self._all(f"channels {axis}", Channels, names, partial(_channels_of, axis))
        return {name: found[name] for name in axes if name in found}

    def gram(self, names: Iterable[str]) -> Iterator[tuple[str, Gram]]:
        """The Gram matrix of each of these tensors over its last axis, one after the other; not kept on disk."""
        wanted = self._readable(names)
        sizes = {name: self._shape(name, wanted)[-1:] for name in wanted}
        extra = {name: 12 * size[0] ** 2 for name, size in sizes.items() if size}
        for name, accumulator in self._run(wanted, lambda name: GramOf(), extra):
            result = accumulator.result()
            if result is not None:
                yield name, result

    def rows(self, names: Iterable[str], limit: int = 1024, seed: int = 0) -> dict[str, Array]:
        """At most ``limit`` rows of each of these tensors as a matrix over its last axis, drawn at random.

        Tensors whose last axis varies in size are left out. Not kept on disk.
        """
        wanted = self._readable(names)
        widths = {name: self._shape(name, wanted)[-1:] for name in wanted}
        extra = {name: 8 * limit * width[0] for name, width in widths.items() if width}
        drawn = self._run(wanted, lambda name: RowsOf(limit, seed), extra)
        return {name: rows for name, each in drawn if (rows := each.result()) is not None}

    def parts(self, names: Iterable[str], extra: Mapping[str, int] | None = None) -> list[Part]:
        """These tensors in parts that fit into memory together; ``extra`` is what the reader wants besides for each.

        A third of the memory is for these, the rest for what ONNX Runtime needs in between.
        """
        wanted, extra = self._readable(names), extra or {}
        budget = self._memory // 3
        held = {name: 4 * int(np.prod(self._shape(name, wanted), dtype=np.int64)) for name in wanted}
        parts: list[list[str]] = []
        room = 0
        for name in wanted:
            size = held[name] + extra.get(name, 0)
            if not parts or size > room:
                parts.append([])
                room = budget
            parts[-1].append(name)
            room -= size
        if not self._data.stackable:
            return [Part(tuple(part), None) for part in parts]
        found = []
        for part in parts:
            left = min(budget - sum(extra.get(name, 0) for name in part), _ENOUGH_BYTES)
            found.append(Part(tuple(part), max(1, left // max(1, sum(held[name] for name in part)))))
        return found

    def arrays(self, names: Iterable[str], rows: int | None = None) -> Iterator[dict[str, Array]]:
        """The tensors themselves, batch by batch, as they come; at most ``rows`` samples at one time.

        Statistics of two models over the same data can be read side by side: with the same ``rows`` their batches
        are cut alike. Tensors that are not computed on a batch are left out of it.
        """
        for _, arrays in self._arrays(self._readable(names), rows):
            yield arrays

    # -- what is known already ---------------------------------------------------------------------------

    def _all(
        self, kind: str, result: type[R], names: Iterable[str], make: Callable[[str], Accumulator[R]], extra: int = 0
    ) -> dict[str, R]:
        """The results for these tensors, of which those are computed that are not known yet."""
        wanted, known = self._readable(names), self._stored(kind, result)
        missing = [name for name in wanted if name not in known]
        if missing:
            known |= {n: a.result() for n, a in self._run(missing, make, dict.fromkeys(missing, extra))}
            known |= {name: None for name in missing if name not in known}
            if self._cache is not None:
                _cache.write(self._cache, self._file(kind), pack(result, known))
        return {name: found for name in wanted if (found := known[name]) is not None}

    def _stored(self, kind: str, result: type[R]) -> dict[str, R | None]:
        """The results that are known already."""
        if kind not in self._known:
            packed = {} if self._cache is None else _cache.read(self._cache, self._file(kind))
            self._known[kind] = unpack(result, packed)
        return self._known[kind]

    def _file(self, kind: str) -> str:
        """What results of this kind are filed under: a hash of everything that they depend on."""
        return _cache.key(VERSION, str(_FORMAT), self._digest(), self._data.fingerprint, kind)

    def _digest(self) -> str:
        """A hash of the model."""
        if not self._hash:
            self._hash = _cache.digest(self._proto, self._directory)
        return self._hash

    # -- running -----------------------------------------------------------------------------------------

    def _run(
        self, names: Sequence[str], make: Callable[[str], Accumulator[R]], extra: Mapping[str, int]
    ) -> Iterator[tuple[str, Accumulator[R]]]:
        """An accumulator for each tensor, fed with all its values; ``extra`` is the memory that each takes."""
        parts = self.parts(names, extra)

        def add(work: Sequence[tuple[Accumulator[R], Array]], batch: int) -> None:
            for accumulator, array in work:
                accumulator.add(array, batch)

        with ThreadPoolExecutor(self._threads) as pool:
            for at, part in enumerate(parts, 1):
                sums = {name: make(name) for name in part.names}
                note = f", part {at} of {len(parts)}" if parts[1:] else ""
                for batch, arrays in self._arrays(part.names, part.rows, note):
                    work = [(sums[name], array) for name, array in arrays.items()]
                    if self._threads > 1 and sum(array.nbytes for _, array in work) > _PARALLEL_BYTES:
                        shares = [work[at :: self._threads] for at in range(self._threads)]
                        list(pool.map(add, shares, repeat(batch)))
                        del shares
                    else:
                        add(work, batch)
                    del arrays, work  # they must be gone before the next run
                while sums:
                    name = next(iter(sums))
                    yield name, sums.pop(name)

    def _arrays(self, names: Sequence[str], rows: int | None, note: str = "") -> Iterator[tuple[int, dict[str, Array]]]:
        """These tensors on each batch, or on parts of it of at most ``rows`` samples, with the batch's number."""
        inner = [name for name in names if name not in self._tensors.inputs]
        session, where = self._session(inner, shapes=False)
        done, said = 0, time.monotonic()
        for at, batch in enumerate(self._data.batches()):
            for part in batch.cut(batch.samples if rows is None else rows):
                feeds = part.feeds
                found = {name: feeds[name] for name in names if name not in where and name in feeds}
                if session is not None:
                    found |= self._fetch(session, where, feeds, at)
                yield at, {name: array for name, array in found.items() if array.size and array.dtype.kind == "f"}
                del found
            done += batch.samples
            if time.monotonic() - said > _SAY_EVERY:
                said = time.monotonic()
                self._on_progress(f"statistics, {done} of {len(self._data)} samples{note}")

    def _fetch(
        self, session: Session, where: Mapping[str, Readout], feeds: Mapping[str, Any], at: int
    ) -> dict[str, Array]:
        outputs = list({n: None for readout in where.values() for n in (readout.value, readout.shape) if n is not None})
        try:
            values = dict(zip(outputs, session.run(feeds, outputs), strict=True))
        except EngineError as error:
            raise DataError(f"the model does not run on batch {at} of the data: {error}") from error
        found = {}
        for name, readout in where.items():
            value = values[readout.value]
            found[name] = value.reshape(values[readout.shape]) if readout.shape is not None and value.size else value
        return found

    def _session(self, names: Sequence[str], *, shapes: bool) -> tuple[Session | None, dict[str, Readout]]:
        if not names:
            return None, {}
        model, where = self._tensors.exposed({name: self._dtype(name) or 0 for name in names}, shapes=shapes)
        snapshot = Snapshot(model.SerializeToString(), self._directory)
        return Session(snapshot, optimize=not shapes, threads=self._threads), where

    # -- looking ahead -----------------------------------------------------------------------------------

    def _shape(self, name: str, names: Sequence[str]) -> tuple[int, ...]:
        """The shape that a tensor has on the largest sample; those of ``names`` that cannot be inferred are looked at
        together."""
        if name not in self._shapes:
            batch = next(self._whole.largest().batches())
            inner = [n for n in names if n not in self._tensors.inputs and n not in self._shapes]
            session, where = self._session(inner, shapes=True)
            found = {} if session is None else self._fetch(session, where, batch.feeds, 0)
            self._shapes |= {n: tuple(int(size) for size in shape.reshape(-1)) for n, shape in found.items()}
            self._shapes |= {n: (0,) for n in names if n not in self._shapes}
        return self._shapes[name]

    def _readable(self, names: Iterable[str]) -> list[str]:
        """The tensors of these that may be floats, each once."""
        wanted = list(dict.fromkeys(names))
        for name in wanted:
            if (obstacle := self.reachable(name)) is not None:
                raise DataError(f"the tensor {name!r} cannot be read: {obstacle}")
        return [name for name in wanted if not self._dtype(name) or self._dtype(name) in _FLOATS]

    def _dtype(self, name: str) -> int | None:
        """The element type of a tensor, 0 if it is not known, ``None`` if it is no tensor."""
        if self._dtypes is None:
            feeds = next(self._whole.largest().batches()).feeds
            sized = _sized(self._outline, feeds)
            for model in (sized, self._outline):
                try:
                    inferred = onnx.shape_inference.infer_shapes(model, data_prop=model is sized)
                    break
                except Exception:  # onnx raises several unrelated types; without inference we only know less
                    inferred = self._outline
            self._dtypes = dict(_element_types(inferred.graph))
            self._shapes |= {name: array.shape for name, array in feeds.items()} | dict(_shapes(inferred.graph))
        return self._dtypes.get(name, 0)


def _sized(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> onnx.ModelProto:
    """The model with inputs of the shapes of ``feeds``, and none declared inside, which may be of others."""
    sized = onnx.ModelProto()
    sized.CopyFrom(model)
    for value in sized.graph.value_info:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    for value in sized.graph.input:
        if value.name in feeds and value.type.HasField("tensor_type"):
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            for size in np.shape(feeds[value.name]):
                shape.dim.add(dim_value=size)
    return sized


def _shapes(graph: onnx.GraphProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors whose shapes are known."""
    for value in (*graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            yield value.name, tuple(dim.dim_value for dim in kind.shape.dim)


def _element_types(graph: onnx.GraphProto) -> Iterator[tuple[str, int | None]]:
    for value in (*graph.value_info, *graph.output, *graph.input):
        kind = value.type.WhichOneof("value")
        yield value.name, value.type.tensor_type.elem_type if kind == "tensor_type" else None if kind else 0
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from _element_types(body)


def _range(histogram: Histogram) -> Range:
    return Range(histogram.low, histogram.high, histogram.mean_low, histogram.mean_high, histogram.finite)


def _channels_of(axis: int, name: str) -> ChannelsOf:
    return ChannelsOf(axis)
