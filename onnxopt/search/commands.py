"""What the commands ``auto``, ``advise`` and ``pick`` do, once they are in a process where they may fail."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from onnxopt.errors import OptionError, OutputError
from onnxopt.report.files import ReportFile
from onnxopt.supervise import CHECK_FAILED, DONE, Stage

NEAREST = ".nearest"
"""What the name of a model ends in, before its suffix, that does not hold the budget."""


def auto(
    stage: Stage, *, model: str, output: str, data: str, eval_data: str | None, max_drop: float, target: Any,
    max_latency: float | None, max_size: float | None, max_macs: float | None, metric: str,
    methods: tuple[Any, ...], train: bool, time_budget: float, workers: int, worker_memory: float | None,
    dask: str | None, pareto: str | None, report: ReportFile | None, force: bool, as_json: bool, quiet: bool,
    verbose: int,
) -> int:  # fmt: skip
    """Search, write what was found, and tell of it."""
    from onnxopt.commands import load_source, print_json, print_shown, say
    from onnxopt.writing import replace_file, writable

    written = writable(output, force)
    if written.exists() and Path(model).exists() and written.samefile(model):
        raise OutputError(f"{written} is the input, which is never changed; give another output")
    folder = Path(pareto) if pareto else written.with_suffix(".pareto")
    text = writable(written.with_suffix(".toml"), force)
    if folder.exists() and not force:
        raise OutputError(f"{folder} exists; give --force to replace it")
    if report is not None:
        report.check(force, written)
    stage("import")
    from onnxopt.model import load, save
    from onnxopt.search import pareto as sets
    from onnxopt.search.auto import auto as search
    from onnxopt.search.budget import Budget
    from onnxopt.search.cluster import DaskExecutor

    budget = Budget(max_drop, target, max_latency, max_size, max_macs)
    stage("load")
    loaded = load(model)
    given, other = load_source(stage, data, loaded), load_source(stage, eval_data, loaded)
    with nullcontext() if dask is None else DaskExecutor(dask) as executor:
        result = search(
            loaded, data=given, evaluation=other, budget=budget, metric=metric, methods=methods, train=train,
            time_budget=time_budget, workers=workers, worker_memory=worker_memory, executor=executor, on_progress=stage,
        )  # fmt: skip
    stage("save")
    if not result.holds:  # under its own name nobody takes it for what was asked for
        written = written.with_name(written.stem + NEAREST + written.suffix)
        text = written.with_suffix(".toml")
    save(result.model, written, force=True)
    with replace_file(text) as file:
        file.write(result.recipe.encode())
    sets.write(result, folder, force=True)
    if report is not None:
        from onnxopt.report.command import report_result

        samples = {"data": given, "eval_data": other}
        report_result(report, result, (model,), data=samples, seconds=result.seconds, force=force)
    stage.reporting()
    if as_json:
        final = result.chosen.final
        print_json(
            {
                "model": str(written), "recipe": str(text), "pareto": str(folder), "holds": result.holds,
                "problem": result.problem, "plan": str(result.chosen.measured.plan), "metric": result.metric,
                "before": final and final.before, "after": final and final.after, "drop": final and final.drop,
                "drop_at_most": final and final.high, "samples": final and final.samples,
                "latency": result.chosen.latency, "size": result.chosen.size, "macs": result.chosen.macs,
                "models": sets.entries(result).models, "evaluations": result.evaluations, "reused": result.reused,
                "seconds": round(result.seconds, 1),
            }
        )  # fmt: skip
    elif not quiet:
        from onnxopt.terminal import show_found

        print_shown(show_found, result, sets.entries(result), written, text, folder)
    if result.problem:
        say(f"problem: {result.problem}" + ("" if result.holds else f"; the nearest model is {written}"))
    return DONE if result.holds else CHECK_FAILED


def advise(
    stage: Stage, *, model: str, data: str | None, device: str, goal: Any, max_drop: float | None, metric: str,
    time_budget: float, report: ReportFile | None, force: bool, as_json: bool, verbose: int,
) -> int:  # fmt: skip
    """Try what may be done, and tell of it."""
    from onnxopt.commands import load_source, print_json, print_shown
    from onnxopt.passes.quantize._targets import target

    if device != "auto":
        target(device)
    if report is not None:
        report.check(force)
    stage("import")
    from onnxopt.model import load
    from onnxopt.search.advise import advise as search

    stage("load")
    loaded = load(model)
    samples = load_source(stage, data, loaded)
    found = search(
        loaded, data=samples, device=device, goal=goal, max_drop=max_drop, metric=metric, time_budget=time_budget,
        path=model, source="SOURCE" if data in (None, "random") else str(data), on_progress=stage,
    )  # fmt: skip
    if report is not None:
        from onnxopt.report.command import report_result

        report_result(report, found, (model,), data={"data": samples}, seconds=found.seconds, force=force)
    stage.reporting()
    if as_json:
        print_json(found)
    else:
        from onnxopt.terminal import show_advice

        print_shown(show_advice, found)
    return DONE


def pick(
    stage: Stage, *, model: str, output: str | None, max_drop: float | None, max_latency: float | None,
    max_size: float | None, max_macs: float | None, number: int | None, force: bool, as_json: bool, verbose: int,
) -> int:  # fmt: skip
    """Take one model out of a Pareto set; without an output, list it."""
    from onnxopt.commands import print_json, print_shown
    from onnxopt.model import save
    from onnxopt.search import pareto as sets
    from onnxopt.terminal import show_pareto

    folder = Path(model)
    found = sets.read(folder)
    given = {"latency": max_latency, "size": max_size, "macs": max_macs}
    limits: list[Any] = [(name, most) for name, most in given.items() if most is not None]
    if output is None:
        if limits or max_drop is not None or number is not None:
            raise OptionError("where is the model to be written? give -o OUT; without any option the set is listed")
        stage.reporting()
        if as_json:
            print_json(found)
        else:
            print_shown(show_pareto, found)
        return DONE
    entry = sets.pick(found, max_drop, limits, number)
    stage("save")
    save(sets.model_of(folder, entry), Path(output), force=force)
    stage.reporting()
    if as_json:
        print_json(entry)
    else:
        print_shown(show_pareto, sets.ParetoSet(found.metric, found.target, [entry]))
    return DONE
