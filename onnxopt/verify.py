"""Do two models compute the same? Judged against how far the original itself moves.

Floating-point sums depend on their order, so no two schedules of one model agree to the last bit. The
yardstick for each output is the original's own noise: the distance between its outputs without and with ONNX
Runtime's optimizations, and under changes of the inputs by one unit in the last place, relative to the scale
of that output; of the weights, if no input is of floats. A candidate may move ten times as far. Shapes, types,
and places of NaN and infinity must agree exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from onnxopt.errors import EngineError
from onnxopt.probes import find_probes
from onnxopt.runtime import Feeds, Session, Snapshot
from onnxopt.standins import Weight, replaceable, with_stand_ins
from onnxopt.traverse import weight_bytes

STAND_IN_BYTES = 256 * 1024 * 1024
"""Models with more weights than this are verified with stand-ins for those that nothing touched."""

NOISE_FACTOR = 10.0
"""How many times the original's own noise a candidate may move."""

_FLOOR = {"float64": 1e-11, "float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}
"""Relative movement that rounding alone explains, by element type."""


@dataclass(frozen=True)
class Difference:
    """How one output of a candidate departs from the original's."""

    output: str
    text: str

    def __str__(self) -> str:
        return f"output {self.output!r} {self.text}"


@dataclass
class Reference:
    """What a model computes on its probes; candidates are compared with it."""

    original: Snapshot
    feeds: Sequence[Feeds]
    known: list[list[Any]] | None
    """Its outputs on them, if it was run already."""
    names: list[str]
    stood_in: frozenset[Weight] = frozenset()
    """Large weights that rank-one matrices stand in for, here and in candidates, until one touches them."""
    worst: float = field(default=0.0)
    """The largest relative movement seen so far in an accepted candidate."""
    worst_noise: float = field(default=0.0)
    """The original's own noise where that was, if it is more than what rounding explains."""

    @classmethod
    def of(cls, model: ir.Model, feeds: Sequence[Feeds] | None = None, *, stand_in: bool = False) -> Reference:
        """Run ``model`` on ``feeds``, or on probes made for it.

        ``stand_in``: if it is large, run it without the weights that candidates may leave alone. Raises
        ``EngineError`` if ONNX Runtime cannot load it, ``DataError`` if no probes are found.
        """
        original = Snapshot.of(model)
        large = stand_in and weight_bytes(model) > STAND_IN_BYTES
        weights = replaceable(original) if large else frozenset()
        session = Session(with_stand_ins(original, weights))
        if feeds is None:
            probes = find_probes(model, session)
            feeds, expected = [p.feeds for p in probes], [p.outputs for p in probes]
        else:
            expected = [session.run(f) for f in feeds]
        return cls(original, feeds, expected, session.outputs, weights)

    @cached_property
    def expected(self) -> list[list[Any]]:
        """The original's outputs. Raises ``EngineError`` if it does not run."""
        if self.known is not None:
            return self.known
        session = Session(self.snapshot)
        return [session.run(feeds) for feeds in self.feeds]

    @property
    def snapshot(self) -> Snapshot:
        """The original as it is run."""
        return with_stand_ins(self.original, self.stood_in)

    def session(self, candidate: Snapshot) -> Session:
        """``candidate`` loaded, with stand-ins for just those weights that both models share."""
        if self.stood_in:
            shared = self.stood_in & replaceable(candidate)
            if shared != self.stood_in:
                self.stood_in = shared
                session = Session(self.snapshot)
                self.expected = [session.run(feeds) for feeds in self.feeds]
                self.__dict__.pop("_noise", None)
        return Session(with_stand_ins(candidate, self.stood_in))

    @cached_property
    def _noise(self) -> list[dict[str, float]]:
        """The relative movement of each output under harmless changes, for each probe."""
        plain = Session(self.snapshot)
        nudged = [_nudged(f) for f in self.feeds]
        variants: list[tuple[Session, Sequence[Feeds]]] = [(plain, nudged)]
        if not any(_is_float(array) for feeds in self.feeds for array in feeds.values()):
            variants = [(Session(_with_nudged_weights(self.snapshot)), self.feeds)]
        try:
            variants.append((Session(self.snapshot, optimize=True), self.feeds))
        except EngineError:  # a model that loads only unoptimized still has its other noise
            pass
        noise: list[dict[str, float]] = []
        for at, expected in enumerate(self.expected):
            moved = dict.fromkeys(self.names, 0.0)
            for session, feeds in variants:
                try:
                    outputs = session.run(feeds[at])
                except EngineError:
                    continue
                for name, a, b in zip(self.names, expected, outputs, strict=True):
                    for x, y in zip(_arrays(a), _arrays(b), strict=False):
                        if x.shape == y.shape:
                            moved[name] = max(moved[name], movement(x, y))
            noise.append(moved)
        return noise

    def differences(self, candidate: Snapshot) -> list[Difference]:
        """Where ``candidate`` computes something else; empty if nowhere.

        A candidate that does not load or run is one difference that says so.
        """
        try:
            session = self.session(candidate)
            if session.outputs != self.names:
                return [Difference(", ".join(session.outputs), f"stand where {', '.join(self.names)} stood")]
            found: list[Difference] = []
            for at, feeds in enumerate(self.feeds):
                outputs = session.run(feeds)
                for name, expected, got in zip(self.names, self.expected[at], outputs, strict=True):
                    text = self.departure(at, name, expected, got)
                    if text is not None:
                        found.append(Difference(name, f"on probe {at}: {text}"))
                if found:
                    return found
        except EngineError as error:
            return [Difference("", f"cannot be computed: {error}")]
        return []

    def departure(self, at: int, name: str, expected: Any, got: Any) -> str | None:
        """How ``got``, an output on probe ``at``, differs from ``expected`` by more than noise, if it does."""
        wanted, given = list(_arrays(expected)), list(_arrays(got))
        if len(wanted) != len(given):
            return f"holds {len(given)} items instead of {len(wanted)}"
        for x, y in zip(wanted, given, strict=True):
            if x.dtype != y.dtype or x.shape != y.shape:
                return f"is {y.dtype} {list(y.shape)} instead of {x.dtype} {list(x.shape)}"
            moved = movement(x, y)
            floor = _FLOOR.get(x.dtype.name, 0.0)
            if moved > floor and moved > NOISE_FACTOR * self._noise[at][name]:
                return f"moved by {moved:.2g} of its scale, the original's own noise is {self._noise[at][name]:.2g}"
            if moved > self.worst:
                self.worst = moved
                self.worst_noise = self._noise[at][name] if moved > floor else 0.0
        return None


def _arrays(value: Any) -> Iterator[np.ndarray[Any, Any]]:
    """The arrays in an output of ONNX Runtime: a tensor, a sequence, or the dicts of a ZipMap."""
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield np.asarray(str(key))
            yield from _arrays(value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _arrays(item)
    elif value is not None:
        yield np.asarray(value)


def movement(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> float:
    """How far ``y`` is from ``x``: the largest distance over the scale of ``x``; the share that differs for
    types without distances; infinite where NaN or infinity are in other places."""
    if x.size == 0:
        return 0.0
    if x.dtype.name not in _FLOOR:
        return float(np.mean(x != y))
    a, b = x.astype(np.float64), y.astype(np.float64)
    odd = ~np.isfinite(a)
    if not np.array_equal(odd, ~np.isfinite(b)) or not np.array_equal(a[odd], b[odd], equal_nan=True):
        return float("inf")
    a, b = a[~odd], b[~odd]
    distance = float(np.max(np.abs(a - b), initial=0.0))
    if distance == 0.0:
        return 0.0
    scale = float(np.max(np.abs(a), initial=0.0))
    return distance / scale if scale > 0 else float("inf")


def _nudged(feeds: Feeds) -> Feeds:
    """Every float input moved by one unit in the last place."""
    return {name: _moved(array) if _is_float(array) else array for name, array in feeds.items()}


def _with_nudged_weights(snapshot: Snapshot) -> Snapshot:
    """The model with its float weights moved by one unit in the last place, but for those in files."""
    model = onnx.ModelProto.FromString(snapshot.content)
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL and _is_float(array := numpy_helper.to_array(tensor)):
            tensor.CopyFrom(numpy_helper.from_array(_moved(array), tensor.name))
    return Snapshot(model.SerializeToString(), snapshot.directory)


def _is_float(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.name in ("float32", "float64", "float16")


def _moved(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Up and down in turns."""
    way = np.where(np.arange(array.size) % 2 == 0, np.inf, -np.inf).reshape(array.shape)
    moved: np.ndarray[Any, Any] = np.nextafter(array, way.astype(array.dtype))
    return moved
