"""Arithmetic on the elements of shapes: numbers, and symbols of dims, which are never negative.

An element is an int, a bool, a float of NumPy's, which is rounded as its type is, a symbol (``str``), or ``None``
where nothing is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Dim = int | str | None
Dims = tuple[Dim, ...]


class Known(Protocol):
    """What is known of the values of a model."""

    def shape(self, value: ir.Value, /) -> Dims | None:
        """The dims of ``value``; ``None`` if not even the rank is known."""

    def dtype(self, value: ir.Value, /) -> ir.DataType | None:
        """The element type of ``value``; ``None`` if unknown or not a tensor."""


Elements = npt.NDArray[np.object_]

_Operation = Callable[[Any, Any], Any]


def broadcast(a: Dims, b: Dims) -> Dims:
    """The dims of two shapes broadcast against each other, ``None`` each that depends on sizes not known."""

    def common(x: Dim, y: Dim) -> Dim:
        if x in (1, y):
            return y
        if y == 1 or (isinstance(x, int) and x > 1):
            return x
        return y if isinstance(y, int) and y > 1 else None

    rank = max(len(a), len(b))
    return tuple(map(common, (1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b))


def objects(items: Any) -> Elements:
    """A vector of these elements."""
    array = np.empty(len(items), dtype=object)
    array[:] = list(items)
    return array


def wrapped(item: Any) -> Elements:
    """Indexing an object array down to one element gives the element itself; wrap it again."""
    if isinstance(item, np.ndarray):
        return item
    array = np.empty((), dtype=object)
    array[()] = item
    return array


def each(function: Callable[[Any], Any], elements: Elements) -> Elements:
    """What the function makes of the elements that are known."""
    results = [None if x is None else function(x) for x in elements.reshape(-1)]
    return objects(results).reshape(elements.shape)


def both(operation: _Operation, a: Elements, b: Elements) -> Elements:
    """What the operation makes of the elements of both, broadcast, where both are known."""
    left, right = np.broadcast_arrays(a, b)
    pairs = zip(left.reshape(-1), right.reshape(-1), strict=True)
    with np.errstate(over="ignore"):
        results = [None if x is None or y is None else finite(operation(x, y)) for x, y in pairs]
    return objects(results).reshape(left.shape)


def product(elements: Elements) -> int | str | None:
    """The product if all are numbers, or if all but one symbol are 1."""
    numbers = [x for x in elements if isinstance(x, int)]
    others = [x for x in elements if not isinstance(x, int)]
    known = math.prod(numbers)
    if not others:
        return known
    return others[0] if len(others) == 1 and known == 1 else None


def finite(x: Any) -> Any:
    """The element, but for infinity and NaN, of which nothing is said here."""
    return None if isinstance(x, np.floating) and not np.isfinite(x) else x


def whole(x: Any, bits: int) -> int | None:
    """The number without what is behind the point, as Cast has it, if so many bits and a sign hold that."""
    return int(x) if -(2**bits) <= x < 2**bits else None


def _is_number(x: Any) -> bool:
    return isinstance(x, int | np.floating)


def _add(x: Any, y: Any) -> Any:
    if _is_number(x) and _is_number(y):
        return x + y
    return y if x == 0 else x if y == 0 else None


def _sub(x: Any, y: Any) -> Any:
    if _is_number(x) and _is_number(y):
        return x - y
    return 0 if x == y else x if y == 0 else None


def _mul(x: Any, y: Any) -> Any:
    if _is_number(x) and _is_number(y):
        return x * y
    return 0 if 0 in (x, y) else y if x == 1 else x if y == 1 else None


def _div(x: Any, y: Any) -> Any:
    if isinstance(x, np.floating) and isinstance(y, np.floating):
        return x / y if y else None
    if _is_number(x) and _is_number(y):
        return (abs(x) // abs(y)) * (1 if (x < 0) == (y < 0) else -1) if y else None
    return x if y == 1 else None


def _mod(x: Any, y: Any) -> Any:
    return x % y if isinstance(x, int) and isinstance(y, int) and y != 0 else None


def _max(x: Any, y: Any) -> Any:
    if _is_number(x) and _is_number(y):
        return max(x, y)
    return x if x == y else None


def _min(x: Any, y: Any) -> Any:
    if _is_number(x) and _is_number(y):
        return min(x, y)
    return x if x == y else None


def _equal(x: Any, y: Any) -> Any:
    if x == y:
        return True
    if _is_number(x) and _is_number(y):
        return False
    return False if any(_is_number(z) and z < 0 for z in (x, y)) else None  # a dim is never negative


def _less(x: Any, y: Any) -> Any:
    if _is_number(x) and _is_number(y):
        return bool(x < y)
    return False if x == y or (_is_number(y) and y <= 0) else True if _is_number(x) and x < 0 else None


ARITHMETIC: dict[str, _Operation] = {
    "Add": _add, "Sub": _sub, "Mul": _mul, "Div": _div, "Mod": _mod, "Max": _max, "Min": _min, "Equal": _equal,
    "Less": _less, "Greater": lambda x, y: _less(y, x),
    "LessOrEqual": lambda x, y: None if (less := _less(y, x)) is None else not less,
    "GreaterOrEqual": lambda x, y: None if (less := _less(x, y)) is None else not less,
    "And": lambda x, y: x and y, "Or": lambda x, y: x or y,
}  # fmt: skip
"""What operators of two inputs make of two elements that are known."""

UNARY: dict[str, Callable[[Any], Any]] = {
    "Not": lambda x: not x, "Neg": lambda x: None if isinstance(x, str) else -x, "Floor": np.floor, "Ceil": np.ceil,
}  # fmt: skip
"""What operators of one input make of an element that is known."""
