"""Do arrays fit the inputs of a model? Names, types, shapes, values; what does not is one ``DataError``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from onnxopt.errors import DataError
from onnxopt.probes import interface_inputs

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]

LABELS = ("label", "labels")
"""What the array of right answers may be called."""


@dataclass(frozen=True)
class Batch:
    """What goes into one run of a model."""

    feeds: Arrays
    """Input name → array, as ONNX Runtime takes it."""
    labels: Array | None
    """The right answers, if there are any; the first axis counts samples."""
    samples: int

    def cut(self, rows: int) -> Iterator[Batch]:
        """The same along the first axis of each array, at most ``rows`` samples at a time."""
        if rows >= self.samples:
            yield self
            return
        for start in range(0, self.samples, rows):
            part = slice(start, start + rows)
            feeds = {name: array[part] if array.ndim else array for name, array in self.feeds.items()}
            labels = None if self.labels is None else self.labels[part]
            yield Batch(feeds, labels, min(rows, self.samples - start))


class Inputs:
    """The inputs of a model, by name."""

    def __init__(self, model: ir.Model) -> None:
        self.known = {value.name or "": value for value in model.graph.inputs}
        self.needed = [value.name or "" for value in interface_inputs(model)]
        if not self.needed:
            raise DataError("the model has no inputs, so there is nothing to give data for")

    def take_labels(self, arrays: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
        """The arrays without the labels among them, and these."""
        labels = [name for name in LABELS if name in arrays and name not in self.known]
        rest = {name: array for name, array in arrays.items() if name not in labels}
        return rest, arrays[labels[0]] if labels else None

    def check_names(self, where: str, names: Iterable[str]) -> None:
        """Every needed input is there, and nothing that is no input."""
        given = list(names)
        wanted = ", ".join(f"{name} ({describe(self.known[name])})" for name in self.needed)
        for name in self.needed:
            if name not in given:
                raise DataError(f"{where} has no array for the input {name!r}; inputs: {wanted}")
        for name in given:
            if name not in self.known:
                near = difflib.get_close_matches(name, list(self.known), n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise DataError(f"{where}: the array {name!r} is no input of the model{hint}; inputs: {wanted}")

    def rank(self, name: str) -> int | None:
        """The number of axes of an input, ``None`` if the model leaves it open."""
        shape = self.known[name].shape
        return None if shape is None else len(shape)

    def first_dim(self, name: str) -> int | None:
        """The size of the first axis of an input where it is fixed."""
        shape = self.known[name].shape
        dim = shape[0] if shape is not None and len(shape) else None
        return dim if isinstance(dim, int) and dim >= 0 else None

    def check_type(self, where: str, name: str, given: np.dtype[Any]) -> None:
        """The element type is that of the input."""
        value = self.known[name]
        dtype = value.dtype
        if dtype is None or not isinstance(value.type, ir.TensorType):
            raise DataError(f"{where}: the input {name!r} is not a tensor, so an array cannot be given for it")
        if dtype == ir.DataType.STRING:
            if given.kind not in "OUST":
                raise DataError(f"{where}: the array {name!r} is {given}, the input takes strings")
        elif given.newbyteorder("=") != dtype.numpy():
            raise DataError(
                f"{where}: the array {name!r} is {given}, the input {dtype.numpy()}; "
                f"convert it with astype({str(dtype.numpy())!r})"
            )

    def check_dims(self, where: str, name: str, dims: tuple[int, ...], *, free: int, offset: int) -> None:
        """The dims agree from axis ``free`` on, where axis ``offset`` of the array is the first of the input."""
        shape = self.known[name].shape
        for at in range(free, len(dims)) if shape is not None else ():
            dim = shape[at - offset]  # type: ignore[index]
            if isinstance(dim, int) and dim >= 0 and dims[at] != dim:
                raise DataError(
                    f"{where}: the array {name!r} is {list(dims)}, the input {describe(self.known[name])}: "
                    f"axis {at} must be {dim}"
                )

    def check_rank(self, where: str, name: str, given: int, hint: str) -> None:
        """The array has as many axes as the input."""
        rank = self.rank(name)
        if rank is not None and given != rank:
            raise DataError(
                f"{where}: the array {name!r} has {given} axes, the input has {rank} "
                f"({describe(self.known[name])}); {hint}"
            )


def check_values(where: str, name: str, array: Array, start: int = 0) -> None:
    """No NaN and no infinity; ``start`` is the place of the first row in the whole."""
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    odd = np.argwhere(~np.isfinite(array))[0]
    kind = "NaN" if np.isnan(array[tuple(odd)]) else "infinity"
    at = [int(place) + (start if axis == 0 else 0) for axis, place in enumerate(odd)]
    raise DataError(f"{where}: the array {name!r} holds {kind}, first at {at}")


class Hash(Protocol):
    """A hasher of ``hashlib``."""

    def update(self, data: Any, /) -> None: ...
    def digest(self) -> bytes: ...


def add_to_hash(hasher: Hash, array: Array) -> None:
    """Let the content of ``array`` count."""
    if array.dtype.kind in "OUST":
        hasher.update("\0".join(map(str, array.reshape(-1))).encode(errors="surrogatepass"))
    elif array.size:
        hasher.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def ready(array: Array) -> Array:
    """``array`` as ONNX Runtime takes it."""
    return np.asarray(array, dtype=object if array.dtype.kind in "UST" else array.dtype, order="C")


def describe(value: ir.Value) -> str:
    """Type and dims of an input in a word."""
    dtype = value.dtype
    name = str(dtype.numpy()) if dtype is not None and dtype != ir.DataType.STRING else "string"
    if value.shape is None:
        return f"{name} of any rank"
    return f"{name}[{','.join(str(d if isinstance(d, int) else d.value or '?') for d in value.shape)}]"
