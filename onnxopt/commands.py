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
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxopt.errors import OnnxoptError, OptionError, OutputError, PassError
from onnxopt.supervise import CHECK_FAILED, DONE, ENGINE_FAILED, READER_GONE, USER_ERROR, Stage, one_line

if TYPE_CHECKING:
    from onnxopt.pass_base import Pass

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


def _optimize(
    stage: Stage, *, model: str, output: str, recipe: str | None, passes: str | None, verify: Any, strict: bool,
    force: bool, probes: str | None, data: str | None, eval_data: str | None, min_sqnr: float | None,
    max_drop: float | None, external_data: bool | None,
    as_json: bool, quiet: bool, verbose: int,
) -> int:  # fmt: skip
    from onnxopt.writing import DATA_SUFFIX, writable

    target = writable(output, force)
    if target.exists() and os.path.exists(model) and target.samefile(model):
        raise OutputError(f"{target} is the input, which is never changed; give another output")
    data_file = target.with_name(target.name + DATA_SUFFIX)
    if external_data:
        writable(data_file, force)
    if recipe is not None and passes is not None:
        raise OptionError("give --recipe or --passes, not both; --passes may name recipes: 'cleanup,…'")

    stage("import")
    began = time.perf_counter()
    from functools import partial

    from onnxopt import inspection, recipes
    from onnxopt.model import load, save, source_of
    from onnxopt.pipeline import PassManager

    chosen = recipes.parse_pipeline(passes) if passes is not None else recipes.recipe(recipe or "cleanup")
    chosen = _within_budget(chosen, min_sqnr, max_drop)
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
    manager = PassManager(
        chosen, verify=verify, strict=strict, probes=feeds,
        data=_data(stage, data, loaded), evaluation=_data(stage, eval_data, loaded), on_stage=stage,
    )  # fmt: skip
    optimized, report = manager.run(loaded, reload=partial(load, Path(model)))
    stage("inspect")
    after = inspection.costs(optimized)
    stage("save")
    files = save(optimized, target, force=force, external_data=external_data)
    after.file_bytes = sum(file.stat().st_size for file in files)
    seconds = time.perf_counter() - began

    stage.reporting()
    if as_json:
        import onnxopt

        document = {
            "onnxopt": onnxopt.__version__, "input": model, "output": [str(file) for file in files],
            "seconds": round(seconds, 3), "changed": report.changed, "verified": report.verified,
            "verification": report.verification, "problems": report.problems, "before": before, "after": after,
            "passes": report.passes, "fidelity": report.fidelity, "quality": report.quality,
            "overall": report.overall, "warnings": report.warnings,
        }  # fmt: skip
        _print_json(document)
    elif not quiet:
        from onnxopt.terminal import show_optimized

        _print(show_optimized, before, after, report, files, seconds, verbose > 0)
    for problem in report.problems:
        say(f"problem: {problem}")
    for warning in report.warnings:
        say(f"warning: {warning}")
    if verify != "off" and not report.verified:
        say(f"warning: {model}: {report.verification}")
    return DONE


def _within_budget(passes: list[Pass], min_sqnr: float | None, max_drop: float | None) -> list[Pass]:
    """The passes, those that keep a budget with this one."""
    given = {k: v for k, v in (("min_sqnr", min_sqnr), ("max_drop", max_drop)) if v is not None}
    if not given:
        return passes
    keepers = [p for p in passes if given.keys() <= {option.name for option in dataclasses.fields(p)}]
    if not keepers:
        raise OptionError("no pass here keeps a budget, so --min-sqnr and --max-drop say nothing; try --recipe int8")
    options: dict[str, Any] = given
    return [dataclasses.replace(p, **options) if p in keepers else p for p in passes]


def _data(stage: Stage, source: str | None, model: Any) -> Any:
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
        _print_json(found)
    else:
        from onnxopt.terminal import show_inspection

        _print(show_inspection, found, verbose > 0)
    return DONE


def _compare(
    stage: Stage, *, model: str, other: str, probes: str | None, as_json: bool, threads: int, seconds: float,
    verbose: int,
) -> int:  # fmt: skip
    stage("import")
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
    stage.reporting()
    if as_json:
        _print_json({"same": found.same, **{name: getattr(found, name) for name in found.__dataclass_fields__}})
    else:
        from onnxopt.terminal import show_comparison

        _print(show_comparison, found)
    return DONE if found.same else CHECK_FAILED


def _sensitivity(
    stage: Stage, *, model: str, data: str, method: str, output: str | None, threads: int, as_json: bool, verbose: int
) -> int:
    from onnxopt.writing import replace_file, writable

    target = writable(output, False) if output is not None else None
    stage("import")
    import msgspec

    from onnxopt.model import load
    from onnxopt.search import sensitivity

    stage("load")
    loaded = load(model)
    samples = _data(stage, data, loaded)
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
    stage.reporting()
    if as_json:
        _print_json(found)
    else:
        from onnxopt import terminal

        shown = {"prune": terminal.show_pruning_sensitivity, "low-rank": terminal.show_low_rank_sensitivity}
        _print(shown.get(method, terminal.show_sensitivity), found)
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
        _print_json(found)
    else:
        from onnxopt.terminal import show_catalogue

        _print(show_catalogue, found)
    return DONE


_COMMANDS: dict[str, Callable[..., int]] = {
    "optimize": _optimize, "inspect": _inspect, "compare": _compare, "sensitivity": _sensitivity, "passes": _passes
}  # fmt: skip


def _print(show: Any, *arguments: Any) -> None:
    try:
        show(*arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write to standard output: {error.strerror or error}") from error


def _print_json(document: Any) -> None:
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
    _print(print, text)
