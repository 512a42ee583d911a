"""Data that the user gives: arrays in an ``.npz`` file, named after the inputs of the model."""

from __future__ import annotations

import difflib
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.errors import DataError
from onnxopt.probes import interface_inputs
from onnxopt.runtime import Feeds

Arrays = dict[str, np.ndarray[Any, Any]]

MAX_PROBES = 4
"""How many probes are made of a file where each of them is a run of its own."""
MAX_SAMPLES = 16
"""How many samples a probe takes where the model has a dynamic batch."""

_LABELS = ("label", "labels")


def load_probes(path: str | os.PathLike[str], model: ir.Model) -> list[Feeds]:
    """The first samples of an ``.npz`` file as inputs of ``model``.

    The first axis of each array counts samples. They go in as one batch where the model's first axis is
    dynamic, in batches of ``n`` where it is fixed at ``n``; if every array has an axis more than its input,
    one by one. Arrays called ``label`` or ``labels`` are left out.

    Raises ``DataError`` if the file cannot be read, or does not fit the model.
    """
    arrays = _read(Path(path))
    inputs = [value for value in model.graph.inputs if not value.is_initializer() or value.name in arrays]
    _check_names(path, arrays, inputs, interface_inputs(model))
    for value in inputs:
        _check_values(path, value, arrays[value.name or ""])
    ranks = [(value, _rank(value), arrays[value.name or ""].ndim) for value in inputs]
    if inputs and all(rank is not None and given == rank + 1 for _, rank, given in ranks):
        return _one_by_one(path, inputs, arrays)
    for value, rank, given in ranks:
        if rank is not None and given != rank:
            raise DataError(
                f"{path}: the array {value.name!r} has {given} axes, the input has {rank} ({_describe(value)}); "
                "the first axis counts samples"
            )
    return _in_batches(path, inputs, arrays)


def _read(path: Path) -> Arrays:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise DataError(f"{path} holds one array without a name; save it with numpy.savez(path, input=array)")
        with loaded as file:
            return {name: file[name] for name in file.files if name not in _LABELS}
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"cannot read the data {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not an .npz file of plain arrays: {error}") from error


def _check_names(
    path: str | os.PathLike[str], arrays: Arrays, inputs: list[ir.Value], needed: list[ir.Value]
) -> None:
    known = [value.name or "" for value in inputs]
    wanted = ", ".join(f"{v.name} ({_describe(v)})" for v in needed)
    for value in needed:
        if value.name not in arrays:
            raise DataError(f"{path} has no array for the input {value.name!r}; inputs: {wanted}")
    for name in arrays:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(f"{path}: the array {name!r} is no input of the model{hint}; inputs: {wanted}")


def _check_values(path: str | os.PathLike[str], value: ir.Value, array: np.ndarray[Any, Any]) -> None:
    dtype = value.dtype
    if dtype is None or not isinstance(value.type, ir.TensorType):
        raise DataError(f"{path}: the input {value.name!r} is not a tensor, so an array cannot be given for it")
    fits = array.dtype.kind in "OUST" if dtype == ir.DataType.STRING else array.dtype == dtype.numpy()
    if not fits:
        raise DataError(
            f"{path}: the array {value.name!r} is {array.dtype}, the input {dtype.numpy()}; convert it with astype"
        )
    if array.dtype.kind == "f" and np.isnan(array).any():
        at = np.argwhere(np.isnan(array))[0].tolist()
        raise DataError(f"{path}: the array {value.name!r} holds NaN, first at {at}")
    shape = value.shape
    if shape is None or not array.ndim:
        return
    if array.shape[0] == 0:
        raise DataError(f"{path}: the array {value.name!r} holds no samples")
    inner = array.ndim == len(shape) + 1
    for axis in range(0 if inner else 1, len(shape)):
        at_axis = axis + 1 if inner else axis
        dim = shape[axis]
        if at_axis < array.ndim and isinstance(dim, int) and array.shape[at_axis] != dim:
            raise DataError(
                f"{path}: the array {value.name!r} is {list(array.shape)}, the input {_describe(value)}: "
                f"axis {at_axis} must be {dim}"
            )


def _one_by_one(path: str | os.PathLike[str], inputs: list[ir.Value], arrays: Arrays) -> list[Feeds]:
    count = _samples(path, {v.name or "": arrays[v.name or ""] for v in inputs})
    return [{v.name or "": _ready(arrays[v.name or ""][at]) for v in inputs} for at in range(min(count, MAX_PROBES))]


def _in_batches(path: str | os.PathLike[str], inputs: list[ir.Value], arrays: Arrays) -> list[Feeds]:
    batched = {v.name or "": arrays[v.name or ""] for v in inputs if arrays[v.name or ""].ndim}
    single = {v.name or "": _ready(arrays[v.name or ""]) for v in inputs if not arrays[v.name or ""].ndim}
    if not batched:
        return [single]
    count = _samples(path, batched)
    fixed = {
        shape[0]: v.name for v in inputs if (shape := v.shape) is not None and len(shape) and isinstance(shape[0], int)
    }
    if len(fixed) > 1:
        raise DataError(
            f"{path}: the inputs have first axes of different sizes ({', '.join(map(str, sorted(fixed)))}), so none "
            "counts samples; give each array an axis more in front"
        )
    size = next(iter(fixed)) if fixed else min(count, MAX_SAMPLES)
    if count < size:
        raise DataError(f"{path} holds {count} samples, the model takes {size} at once ({fixed[size]!r})")
    starts = range(0, count - size + 1, size)[: MAX_PROBES if fixed else 1]
    return [
        {name: _ready(array[start : start + size]) for name, array in batched.items()} | single for start in starts
    ]


def _samples(path: str | os.PathLike[str], arrays: Arrays) -> int:
    counts = {len(array) for array in arrays.values()}
    if len(counts) > 1:
        each = ", ".join(f"{name} {len(array)}" for name, array in arrays.items())
        raise DataError(f"{path}: the arrays hold different numbers of samples: {each}")
    return counts.pop()


def _ready(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """``array`` as ONNX Runtime takes it."""
    return np.asarray(array, dtype=object if array.dtype.kind in "UST" else array.dtype, order="C")


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _describe(value: ir.Value) -> str:
    dtype = value.dtype
    name = str(dtype.numpy()) if dtype is not None and dtype != ir.DataType.STRING else "string"
    if value.shape is None:
        return f"{name} of any rank"
    return f"{name}[{','.join(str(d if isinstance(d, int) else d.value or '?') for d in value.shape)}]"
