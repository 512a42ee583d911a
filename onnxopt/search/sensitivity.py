"""How much each node gains and harms when it alone is computed with integers."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.data import Dataset
from onnxopt.graph import Editor
from onnxopt.pass_base import Context
from onnxopt.passes.quantize.quantize_static import QuantizeStatic
from onnxopt.pipeline import PassManager
from onnxopt.recipes import recipe


@dataclass(frozen=True)
class Sensitivity:
    """One node."""

    node: str
    op: str
    float_us: float
    """Its time as float, in microseconds."""
    integer_us: float
    """The same with integers, without quantizers before it."""
    sqnr_db: float | None
    """The least SQNR of an output when this node alone is quantized; ``None`` where not a bit differs."""


def sensitivity(model: ir.Model, data: Dataset, *, threads: int = 1) -> list[Sensitivity]:
    """Measure each node of ``model``, as the recipe ``cleanup`` leaves it, that could be quantized; those that do
    most harm come first.

    Raises ``DataError`` for data that do not fit.
    """
    cleaned, _ = PassManager(recipe("cleanup"), verify="off").run(model)
    rows = QuantizeStatic(threads=threads).survey(Context(Editor(cleaned), data=data))
    return sorted((Sensitivity(*row) for row in rows), key=lambda row: (row.sqnr_db is None, row.sqnr_db, row.node))
