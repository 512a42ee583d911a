"""What the schema of an operator says about half precision, and what float numbers lose in it.

ONNX ties the types of inputs and outputs by type variables: if ``T`` is float32 in a node and its schema allows
float16 for ``T``, everything that ``T`` stands for may become float16 at once. What has a fixed type, such as the
scales of ``Resize``, stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir

from onnxopt.graph import bodies
from onnxopt.passes.quantize._grid import Array

CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})

LARGEST = {ir.DataType.FLOAT16: 65504.0, ir.DataType.BFLOAT16: 3.3895313892515355e38}
"""The largest finite number of each half-precision type."""

SMALLEST = {ir.DataType.FLOAT16: 2.0**-14, ir.DataType.BFLOAT16: 2.0**-126}
"""The smallest number of each type that has all its digits."""

ONES = {ir.DataType.FLOAT16: 2048, ir.DataType.BFLOAT16: 256}
"""Up to this number each type holds every integer."""

_KEPT = frozenset({("Resize", "T2"), ("Dropout", "T1")})
"""Type variables of settings, which cost nothing in float32 and which ONNX Runtime expects there."""


@dataclass(frozen=True)
class Slots:
    """The inputs and outputs of a node, by position, that may become half precision together."""

    inputs: frozenset[int]
    outputs: frozenset[int]


def slots(node: ir.Node, opset: int, half: ir.DataType, dtype: Callable[[ir.Value], ir.DataType | None]) -> Slots | str:
    """What of ``node`` may become ``half``, or the reason why that cannot be said."""
    border = {"Cast"} | ({node.op_type} if node.op_type in CONTROL_FLOW else set())
    if any(_lacks(op, opset, half) for op in border):
        return f"opset {opset} has no {half.name.lower()}; run convert-opset"
    if node.op_type in CONTROL_FLOW:
        return _boundary(node, dtype)
    found = _schema(node.op_type, opset, half)
    if found is None:
        return f"{node.op_type} is not known at opset {opset}"
    inputs, outputs, allowed, floats = found
    members: list[tuple[bool, int, str, ir.DataType | None]] = []
    for is_input, formals, values in ((True, inputs, node.inputs), (False, outputs, node.outputs)):
        for at, value in enumerate(values):
            variable = formals[min(at, len(formals) - 1)] if formals else ""
            if value is None or (not is_input and not value.name):
                continue
            known = dtype(value)
            if known is None and variable in floats:
                return f"the type of {value.name!r} is unknown, or no tensor"
            members.append((is_input, at, variable, known))
    chosen = {v for _, _, v, known in members if known == ir.DataType.FLOAT and v in allowed}
    chosen -= {v for v in chosen if (node.op_type, v) in _KEPT}
    return Slots(
        frozenset(at for is_input, at, v, _ in members if is_input and v in chosen),
        frozenset(at for is_input, at, v, _ in members if not is_input and v in chosen),
    )


def boundary_values(node: ir.Node) -> Iterator[ir.Value]:
    """The formal inputs and the outputs of the bodies of ``node``."""
    for body in bodies(node):
        yield from body.inputs
        yield from body.outputs


def _boundary(node: ir.Node, dtype: Callable[[ir.Value], ir.DataType | None]) -> Slots | str:
    """Carried values keep one type through all turns, so all floats at the border of a body change together."""
    for value in (*node.inputs, *node.outputs, *boundary_values(node)):
        if value is not None and value.name and dtype(value) is None:
            return f"the type of {value.name!r} is unknown, or no tensor"

    def floats(values: Sequence[ir.Value | None]) -> frozenset[int]:
        return frozenset(at for at, v in enumerate(values) if v is not None and dtype(v) == ir.DataType.FLOAT)

    return Slots(floats(node.inputs), floats(node.outputs))


@cache
def _schema(
    op: str, opset: int, half: ir.DataType
) -> tuple[list[str], list[str], frozenset[str], frozenset[str]] | None:
    """Type variables of inputs and outputs, those that allow ``half``, and those that allow float32."""
    try:
        schema = onnx.defs.get_schema(op, opset)
    except onnx.defs.SchemaError:
        return None
    text = f"tensor({half.name.lower()})"
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    return (
        [formal.type_str for formal in schema.inputs],
        [formal.type_str for formal in schema.outputs],
        frozenset(name for name, types in allowed.items() if text in types and "tensor(float)" in types),
        frozenset(name for name, types in allowed.items() if "tensor(float)" in types),
    )


@cache
def _lacks(op: str, opset: int, half: ir.DataType) -> bool:
    """Whether no type variable of ``op`` allows ``half``."""
    text = f"tensor({half.name.lower()})"
    return not any(text in c.allowed_type_strs for c in onnx.defs.get_schema(op, opset).type_constraints)


def narrowed(array: Array, half: ir.DataType, *, limit: float | None = None) -> Array:
    """``array`` in the type ``half``, where finite numbers beyond ±``limit`` are moved to it."""
    wide = array
    if limit is not None:
        wide = np.where(np.isfinite(array), np.clip(array, -limit, limit), array)
    with np.errstate(over="ignore"):
        result: Array = wide.astype(half.numpy())
    return result


def what_is_lost(array: Array, half: ir.DataType) -> str | None:
    """Why ``array`` should not be written in ``half``, if it should not.

    Rounding to 11 (8) digits costs less than one part in 2¹¹ (2⁸). Numbers near zero lose more; that does not
    matter beside larger ones (a weight of a layer), and is fatal where there are none (the ε of a quotient).
    """
    finite = array[np.isfinite(array)].astype(np.float64)
    largest = float(np.max(np.abs(finite), initial=0.0))
    if largest == 0.0:
        return None
    if largest > LARGEST[half]:
        return f"reaches {largest:.3g}, and {half.name.lower()} ends at {LARGEST[half]:.5g}"
    rounded = finite.astype(half.numpy()).astype(np.float64)
    tiny = 2.0**-9 if half == ir.DataType.FLOAT16 else 2.0**-7
    if float(np.linalg.norm(rounded - finite)) > tiny * float(np.linalg.norm(finite)):
        return f"is at most {largest:.3g}, where {half.name.lower()} has few digits or none"
    return None
