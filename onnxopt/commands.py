"""What each command does, once it is in a process where it may fail.

Everything heavy is imported inside the functions, as late as it is used. Results go to standard output,
problems and errors to standard error.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxopt._garbage import without_gc
from onnxopt.errors import OnnxoptError, OptionError, OutputError, PassError
from onnxopt.supervise import CHECK_FAILED, DONE, ENGINE_FAILED, READER_GONE, USER_ERROR, Stage, one_line

if TYPE_CHECKING:
    from onnxopt.inspection import Costs
    from onnxopt.pass_base import Pass
    from onnxopt.report.files import ReportFile
    from onnxopt.run_report import RunReport

PREVIEW_NODES = 2_000
"""Up to this size ``inspect`` tries the recipe ``cleanup`` unasked: it then takes less than a second."""


def carry_out(stage: Stage, *, command: str, verbose: int, options: dict[str, Any]) -> int:
    """Do what ``command`` asks for; every error becomes one line and an exit code."""
    logging.basicConfig(
        level=(logging.ERROR, logging.INFO, logging.DEBUG)[min(verbose, 2)],
        format="onnxopt: %(levelname)s: %(message)s",
        stream=sys.stderr,
    )
    tracked = _Tracked(stage)
    try:
        code = _COMMANDS[command](tracked, verbose=verbose, **options)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing that is still buffered can fail again
        return READER_GONE
    except OnnxoptError as error:
        if verbose > 1:
            logging.exception("traceback")
        say(str(error))
        return CHECK_FAILED if isinstance(error, PassError) else USER_ERROR
    except MemoryError:
        say(f"{options.get('model', command)}: ran out of memory while it was at {tracked.now!r}")
        return ENGINE_FAILED
    except Exception as error:  # a fault of ours, which the user can only report
        if verbose > 1:
            logging.exception("traceback")
        say(f"internal error in {tracked.now}: {type(error).__name__}: {error}; please report it, with -vv")
        return ENGINE_FAILED
    return code


def say(text: str) -> None:
    """Tell the user what is wrong."""
    print(f"onnxopt: {one_line(text)}", file=sys.stderr, flush=True)


class _Tracked(Stage):
    """A stage that remembers what it was told last."""

    def __init__(self, stage: Stage) -> None:
        self._stage, self.now = stage, "start"

    def __call__(self, name: str) -> None:
        self.now = name
        self._stage(name)

    def reporting(self) -> None:
        self.now = "report"
        self._stage.reporting()


@without_gc()
def _optimize(
    stage: Stage, *, model: str, output: str, recipe: str | None, passes: str | list[Pass] | None, verify: Any,
    strict: bool, force: bool, probes: str | None, data: str | None, eval_data: str | None, min_sqnr: float | None,
    max_drop: float | None, external_data: bool | None, report: ReportFile | None,
    as_json: bool, quiet: bool, verbose: int, command: str = "optimize",
) -> int:  # fmt: skip
    from onnxopt.writing import writable

    target, data_file = _places(output, model, force)
    if external_data:
        writable(data_file, force)
    if report is not None:
        report.check(force, target)
    if recipe is not None and passes is not None:
        raise OptionError("give --recipe or --passes, not both; --passes may name recipes: 'cleanup,…'")

    stage("import")
    began = time.perf_counter()
    from functools import partial

    from onnxopt import inspection, recipes
    from onnxopt.model import load, save, source_of
    from onnxopt.pipeline import PassManager

    if passes is None:
        passes = recipes.recipe(recipe or "cleanup")
    chosen = recipes.parse_pipeline(passes) if isinstance(passes, str) else passes
    budget = {k: v for k, v in (("min_sqnr", min_sqnr), ("max_drop", max_drop)) if v is not None}
    chosen = _within_budget(chosen, budget)
    stage("load")
    loaded = load(model)
    source = source_of(loaded)
    if external_data is None and source is not None and source.has_external_data:
        writable(data_file, force)
    feeds = None
    if probes is not None:
        from onnxopt.data import load_probes

        feeds = load_probes(probes, loaded)
    stage("inspect")
    before = inspection.costs(loaded)
    samples, others = load_source(stage, data, loaded), load_source(stage, eval_data, loaded)
    manager = PassManager(
        chosen, verify=verify, strict=strict, probes=feeds, data=samples, evaluation=others, on_stage=stage,
        data_share=recipes.data_share(recipe) if recipe is not None else 1.0,
    )  # fmt: skip
    optimized, done = manager.run(loaded, reload=partial(load, Path(model)))
    stage("inspect")
    after = inspection.costs(optimized)
    stage("save")
    files = save(optimized, target, force=force, external_data=external_data)
    after.file_bytes = sum(file.stat().st_size for file in files)
    seconds = time.perf_counter() - began
    if report is not None:
        stage("report")
        from onnxopt.report.command import report_run

        report_run(
            report, command, model, optimized, done, before, after, passes=chosen, budget=budget, probes=feeds,
            data={"data": samples, "eval_data": others}, seconds=seconds, force=force,
        )  # fmt: skip

    stage.reporting()
    if as_json:
        print_json(_run_document(model, before, after, done, files, seconds))
    elif not quiet:
        from onnxopt.terminal import show_optimized

        print_shown(show_optimized, before, after, done, files, seconds, verbose > 0)
    _say_doubts(done, f"{model}: {done.verification}" if verify != "off" and not done.verified else "")
    return DONE


def _places(output: str, model: str, force: bool) -> tuple[Path, Path]:
    """Where the model goes, and its weights if they stand beside it."""
    from onnxopt.writing import DATA_SUFFIX, writable

    target = writable(output, force)
    if target.exists() and os.path.exists(model) and target.samefile(model):
        raise OutputError(f"{target} is the input, which is never changed; give another output")
    return target, target.with_name(target.name + DATA_SUFFIX)


def _say_doubts(done: RunReport, unverified: str) -> None:
    for problem in done.problems:
        say(f"problem: {problem}")
    for warning in (*done.warnings, unverified):
        if warning:
            say(f"warning: {warning}")


def _run_document(
    model: str, before: Costs, after: Costs, done: RunReport, files: Sequence[Path], seconds: float
) -> dict[str, Any]:
    import onnxopt

    return {
        "onnxopt": onnxopt.__version__, "input": model, "output": [str(file) for file in files],
        "seconds": round(seconds, 3), "changed": done.changed, "verified": done.verified,
        "verification": done.verification, "problems": done.problems, "before": before, "after": after,
        "passes": done.passes, "fidelity": done.fidelity, "quality": done.quality,
        "overall": done.overall, "warnings": done.warnings,
    }  # fmt: skip


def _distill(
    stage: Stage, *, teacher: str, more_teachers: tuple[str, ...], epochs: int, batch: int, lr: float,
    temperature: float, hard: float, features: float, feature_loss: Any, pairs: tuple[str, ...],
    checkpoint: str | None, seed: int, **options: Any,
) -> int:  # fmt: skip
    from onnxopt.passes.distill.distill import Distill

    pass_ = Distill(
        teacher=teacher, teachers=more_teachers, epochs=epochs, batch=batch, lr=lr, temperature=temperature, hard=hard,
        features=features, feature_loss=feature_loss, pairs=pairs, checkpoint=checkpoint or "", seed=seed,
    )  # fmt: skip
    unused: dict[str, Any] = dict.fromkeys(("recipe", "probes", "min_sqnr", "max_drop"))
    return _optimize(stage, passes=[pass_], verify="end", command="distill", **unused, **options)


def _within_budget(passes: list[Pass], budget: dict[str, float]) -> list[Pass]:
    """The passes, those that keep a budget with this one."""
    if not budget:
        return passes
    keepers = [p for p in passes if budget.keys() <= {option.name for option in dataclasses.fields(p)}]
    if not keepers:
        raise OptionError("no pass here keeps a budget, so --min-sqnr and --max-drop say nothing; try --recipe int8")
    options: dict[str, Any] = budget
    return [dataclasses.replace(p, **options) if p in keepers else p for p in passes]


def load_source(stage: Stage, source: str | None, model: Any) -> Any:
    """The data that the user named, looked at from beginning to end."""
    if source is None:
        return None
    from onnxopt.data import load_data, random_data

    stage("data")
    if source == "random":
        return random_data(model)
    if os.getcwd() not in sys.path:  # where the user's modules are, however this program was started
        sys.path.insert(0, os.getcwd())
    return load_data(source, model)


def _inspect(
    stage: Stage, *, model: str, dims: dict[str, int], cleanup: bool | None, groups: bool, as_json: bool, verbose: int
) -> int:
    stage("import")
    from onnxopt import inspection, recipes
    from onnxopt.model import load

    stage("load")
    loaded = load(model)
    stage("inspect")
    found = inspection.inspect(loaded, dims)
    if cleanup or (cleanup is None and found.costs.nodes <= PREVIEW_NODES):
        stage("cleanup")
        found.cleanup = inspection.preview(loaded, recipes.recipe("cleanup"))
    if groups:
        stage("channels")
        found.groups = inspection.channel_groups(loaded)
    stage.reporting()
    if as_json:
        print_json(found)
    else:
        from onnxopt.terminal import show_inspection

        print_shown(show_inspection, found, verbose > 0)
    return DONE


def _compare(
    stage: Stage, *, model: str, other: str, probes: str | None, as_json: bool, threads: int, seconds: float,
    report: ReportFile | None, force: bool, verbose: int,
) -> int:  # fmt: skip
    if report is not None:
        report.check(force)
    stage("import")
    began = time.perf_counter()
    from onnxopt import inspection
    from onnxopt.model import load

    stage("load")
    first, second = load(model), load(other)
    feeds = None
    if probes is not None:
        from onnxopt.data import load_probes

        feeds = load_probes(probes, first)
    stage("comparison")
    found = inspection.compare(first, second, feeds, threads=threads, seconds=seconds)
    if report is not None:
        from onnxopt.report.command import report_result

        report_result(report, found, (model, other), seconds=time.perf_counter() - began, force=force)
    stage.reporting()
    if as_json:
        print_json({"same": found.same, **{name: getattr(found, name) for name in found.__dataclass_fields__}})
    else:
        from onnxopt.terminal import show_comparison

        print_shown(show_comparison, found)
    return DONE if found.same else CHECK_FAILED


def _sensitivity(
    stage: Stage, *, model: str, data: str, method: str, output: str | None, threads: int, report: ReportFile | None,
    force: bool, as_json: bool, verbose: int,
) -> int:  # fmt: skip
    from onnxopt.writing import replace_file, writable

    target = writable(output, force) if output is not None else None
    if report is not None:
        report.check(force, target)
    stage("import")
    began = time.perf_counter()
    import msgspec

    from onnxopt.model import load
    from onnxopt.search import sensitivity

    stage("load")
    loaded = load(model)
    samples = load_source(stage, data, loaded)
    stage("sensitivity")
    found: Any
    match method:
        case "prune":
            found = sensitivity.pruning_sensitivity(loaded, samples)
        case "low-rank":
            found = sensitivity.low_rank_sensitivity(loaded, samples)
        case _:
            found = sensitivity.sensitivity(loaded, samples, threads=threads)
    if target is not None:
        with replace_file(target) as file:
            file.write(msgspec.json.format(msgspec.json.encode(found), indent=2))
    if report is not None:
        from onnxopt.report.command import report_result

        seconds = time.perf_counter() - began
        report_result(report, found, (model,), data={"data": samples}, seconds=seconds, force=force)
    stage.reporting()
    if as_json:
        print_json(found)
    else:
        from onnxopt import terminal

        shown = {"prune": terminal.show_pruning_sensitivity, "low-rank": terminal.show_low_rank_sensitivity}
        print_shown(shown.get(method, terminal.show_sensitivity), found)
    return DONE


def _passes(stage: Stage, *, name: str | None, as_json: bool, verbose: int) -> int:
    stage("import")
    from onnxopt import recipes
    from onnxopt.recipes import catalogue

    if name is None:
        found: Any = {"passes": catalogue.entries(), "recipes": catalogue.recipe_entries()}
    elif name in recipes.names():
        found = catalogue.recipe_entry(name)
    else:
        found = catalogue.entry(recipes.find(name))
    stage.reporting()
    if as_json:
        print_json(found)
    else:
        from onnxopt.terminal import show_catalogue

        print_shown(show_catalogue, found)
    return DONE


def _auto(stage: Stage, **options: Any) -> int:
    from onnxopt.search.commands import auto

    return auto(stage, **options)


def _advise(stage: Stage, **options: Any) -> int:
    from onnxopt.search.commands import advise

    return advise(stage, **options)


def _pick(stage: Stage, **options: Any) -> int:
    from onnxopt.search.commands import pick

    return pick(stage, **options)


_COMMANDS: dict[str, Callable[..., int]] = {
    "optimize": _optimize, "distill": _distill, "inspect": _inspect, "compare": _compare, "sensitivity": _sensitivity,
    "passes": _passes, "auto": _auto, "advise": _advise, "pick": _pick,
}  # fmt: skip


def print_shown(show: Any, *arguments: Any) -> None:
    """Show a result. Raises ``OutputError`` if standard output takes no more."""
    try:
        show(*arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write to standard output: {error.strerror or error}") from error


def print_json(document: Any) -> None:
    """Print a result as JSON. Raises ``OutputError`` if standard output takes no more."""
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
    print_shown(print, text)
