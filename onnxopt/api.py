"""``optimize``, ``auto`` and ``advise``: the whole of onnxopt in three calls."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

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

    from onnxopt.search.advise import Advice
    from onnxopt.search.allocation import Target
    from onnxopt.search.auto import AutoResult

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
    original = _reader(model)
    if isinstance(model, ir.Model):
        result, report = manager.run(model)
        return Result(result, report, result, original)
    result, report = manager.run(original(), reload=original)
    if isinstance(model, str | os.PathLike):
        return Result(result, report, result, original)
    if isinstance(model, onnx.ModelProto):
        return Result(to_proto(result), report, result, original)
    from onnxopt.interop import to_graphsurgeon

    return Result(to_graphsurgeon(result), report, result, original)


def auto(
    model: str | os.PathLike[str] | onnx.ModelProto | ir.Model | gs.Graph,
    *,
    data: Any,
    evaluation: Any = None,
    max_drop: float = 0.01,
    target: Target = "latency",
    max_latency: float | None = None,
    max_size: float | None = None,
    max_macs: float | None = None,
    **options: Any,
) -> AutoResult:
    """Search for the model that has least of ``target`` and keeps within a budget; the one that is given stays.

    ``data``: samples to fit to and to compare models on, with labels if there are any; ``evaluation``: others, on which
    the budget must hold, by default two fifths of ``data``. ``max_drop``: the largest loss of the score, as a share.
    ``max_latency``, ``max_size`` and ``max_macs`` are in units of the original's. ``options`` are those of
    ``onnxopt.search.auto.auto``: ``metric``, ``methods``, ``train``, ``time_budget``, ``workers``, ``executor``, …

    Raises ``ModelError`` for a model that cannot be read, ``OptionError`` for a wrong option, ``DataError`` for data
    that do not fit or are too few, ``MetricError`` for a metric that fails, ``EngineError`` for a model that does not
    run.
    """
    from onnxopt.search.auto import auto as search
    from onnxopt.search.budget import Budget

    budget = Budget(max_drop, target, max_latency, max_size, max_macs)
    return search(_reader(model)(), data=data, evaluation=evaluation, budget=budget, **options)


def advise(
    model: str | os.PathLike[str] | onnx.ModelProto | ir.Model | gs.Graph,
    *,
    data: Any = None,
    device: str = "auto",
    target: Literal["latency", "size"] | None = None,
    max_drop: float | None = None,
    metric: str = "auto",
    time_budget: float = 180.0,
    on_progress: Callable[[str], None] = lambda text: None,
) -> Advice:
    """Say what each method would bring to a model on a device, and cost; the model stays as it is.

    ``data``: samples to fit to and to judge by; without them losses are not known. ``device``: the name of a target
    profile; ``auto``: ONNX Runtime on this machine. ``target``: what there is to be least of; ``None``: what the device
    wants. ``max_drop``: what may be lost of the score by ``metric``; ``None``: 1 %, and passes keep budgets of their
    own. ``time_budget``: seconds, after which nothing else is tried.

    Raises ``ModelError`` for a model that cannot be read, ``OptionError`` for a wrong option, ``DataError`` for data
    that do not fit, ``MetricError`` for a metric that fails, ``EngineError`` for a model that does not run.
    """
    from onnxopt.search.advise import advise as search

    path = os.fspath(model) if isinstance(model, str | os.PathLike) else "MODEL"
    source = os.fspath(data) if isinstance(data, str | os.PathLike) else "SOURCE"
    return search(
        _reader(model)(), data=data, device=device, goal=target, max_drop=max_drop, metric=metric,
        time_budget=time_budget, path=path, source=source, on_progress=on_progress,
    )  # fmt: skip


def _reader(model: Any) -> Callable[[], ir.Model]:
    """What gives the model that was given. Raises ``OptionError`` for what is none."""
    if isinstance(model, str | os.PathLike):
        return partial(load, Path(model))
    if isinstance(model, onnx.ModelProto):
        return partial(from_proto, model)
    if isinstance(model, ir.Model):
        return lambda: model
    from onnxopt.interop import from_graphsurgeon, is_graphsurgeon

    if is_graphsurgeon(model):
        return partial(from_graphsurgeon, model)
    raise OptionError(
        f"a model is a path, an onnx.ModelProto, an onnx_ir.Model or a gs.Graph, got {type(model).__name__}"
    )
