"""``optimize``: the whole of onnxopt in one call."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import onnx
import onnx_ir as ir

from onnxopt import recipes
from onnxopt._garbage import without_gc
from onnxopt.errors import OptionError
from onnxopt.model import from_proto, load, save, to_proto
from onnxopt.pass_base import Pass
from onnxopt.pipeline import PassManager, Verify
from onnxopt.run_report import RunReport
from onnxopt.runtime import Feeds

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

M = TypeVar("M")


@dataclass(frozen=True)
class Result(Generic[M]):
    """An optimized model and the account of how it came about."""

    model: M
    """Of the type that was given; for a path, an ``onnx_ir.Model`` whose weights are still in the file."""
    report: RunReport
    _ir: ir.Model
    _original: Callable[[], ir.Model]

    def sides(self) -> tuple[ir.Model, ir.Model]:
        """The model that was given, loaded anew if it is a file, and the one that came of it."""
        return self._original(), self._ir

    def save(self, path: str | os.PathLike[str], *, force: bool = False, external_data: bool | None = None) -> None:
        """Write the model atomically (see ``onnxopt.save``)."""
        save(self._ir, path, force=force, external_data=external_data)


@without_gc()
def optimize(
    model: str | os.PathLike[str] | onnx.ModelProto | ir.Model | gs.Graph,
    *,
    recipe: str | os.PathLike[str] | None = None,
    passes: str | Sequence[Pass] | None = None,
    verify: Verify = "end",
    strict: bool = False,
    probes: Sequence[Feeds] | None = None,
    data: Any = None,
    evaluation: Any = None,
    on_report: Any = None,
) -> Result[Any]:
    """Run a recipe (default ``cleanup``) or passes on a model, which stays as it is.

    ``passes`` is a pipeline as text or a sequence of pass objects; give it or ``recipe``, not both. ``data`` are
    samples to calibrate on (see ``onnxopt.data.load_data`` for the forms they may have), ``evaluation`` others to
    judge lossy passes by; without them half of ``data`` is kept for that. The other options are those of
    ``PassManager``.

    Raises ``ModelError`` for a model that cannot be read, ``OptionError`` for a wrong option, ``DataError`` for
    data or probes that do not fit, and ``PassError`` under ``strict``.
    """
    if recipe is not None and passes is not None:
        raise OptionError("give a recipe or passes, not both; a pipeline may name recipes: 'cleanup,…'")
    if passes is None:
        chosen: Sequence[Pass] = recipes.recipe(recipe or "cleanup")
    else:
        chosen = recipes.parse_pipeline(passes) if isinstance(passes, str) else passes
    manager = PassManager(
        chosen, verify=verify, strict=strict, probes=probes, data=data, evaluation=evaluation, on_report=on_report,
        data_share=recipes.data_share(recipe) if recipe is not None else 1.0,
    )  # fmt: skip
    if isinstance(model, str | os.PathLike):
        original: Callable[[], ir.Model] = partial(load, Path(model))
        result, report = manager.run(original(), reload=original)
        return Result(result, report, result, original)
    if isinstance(model, onnx.ModelProto):
        original = partial(from_proto, model)
        result, report = manager.run(original(), reload=original)
        return Result(to_proto(result), report, result, original)
    if isinstance(model, ir.Model):
        result, report = manager.run(model)
        return Result(result, report, result, lambda: model)
    from onnxopt.interop import from_graphsurgeon, is_graphsurgeon, to_graphsurgeon

    if is_graphsurgeon(model):
        original = partial(from_graphsurgeon, model)
        result, report = manager.run(original(), reload=original)
        return Result(to_graphsurgeon(result), report, result, original)
    raise OptionError(
        f"a model is a path, an onnx.ModelProto, an onnx_ir.Model or a gs.Graph, got {type(model).__name__}"
    )
