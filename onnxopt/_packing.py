"""Results of one kind as a few arrays, to be kept on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np

Array = np.ndarray[Any, Any]
R = TypeVar("R")


def pack(result: type[Any], known: Mapping[str, Any]) -> dict[str, Array]:
    """Results as a few arrays: all values of a field one after the other, and how many each result has."""
    packed: dict[str, Array] = {"names": np.array(list(known), dtype=np.str_)}
    for field in fields(result):
        values = [np.empty(0) if r is None else np.atleast_1d(getattr(r, field.name)) for r in known.values()]
        filled = [value for value in values if value.size]
        packed[field.name] = _narrow(np.concatenate(filled)) if filled else np.empty(0)
        packed[f"{field.name} sizes"] = np.array([value.size for value in values], dtype=np.int64)
    return packed


def _narrow(values: Array) -> Array:
    """Counts in as few bytes as hold them."""
    return values.astype(np.min_scalar_type(values.max())) if values.dtype == np.int64 else values


def unpack(result: type[R], packed: Mapping[str, Array]) -> dict[str, R | None]:
    """What was packed; nothing if it is not whole."""
    columns = []
    for field in fields(result):  # type: ignore[arg-type]
        if field.name not in packed or f"{field.name} sizes" not in packed or "names" not in packed:
            return {}
        stored = packed[field.name]
        values = np.split(
            stored.astype(np.int64) if stored.dtype.kind == "u" else stored,
            np.cumsum(packed[f"{field.name} sizes"])[:-1],
        )
        columns.append([value if field.type == "Array" or not value.size else value[0].item() for value in values])
    sizes = packed[f"{fields(result)[0].name} sizes"]  # type: ignore[arg-type]
    rows = zip(packed["names"].tolist(), sizes, *columns, strict=True)
    return {name: result(*values) if size else None for name, size, *values in rows}
