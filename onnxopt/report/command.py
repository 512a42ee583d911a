"""Reports that commands write: with the command line, and what of the data and the seeds they know."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from onnxopt.data import Dataset
from onnxopt.inspection import Costs
from onnxopt.model import load
from onnxopt.pass_base import Pass
from onnxopt.report.beside import beside
from onnxopt.report.files import ReportFile
from onnxopt.report.optimized import Optimized
from onnxopt.report.origin import Origin
from onnxopt.report.write import write_report
from onnxopt.run_report import RunReport
from onnxopt.runtime import Feeds

_SEEDS = {"split of samples": 0, "bootstrap": 0}


def report_result(
    file: ReportFile,
    result: Any,
    models: Sequence[str],
    *,
    data: Mapping[str, Dataset | None] = {},
    seeds: Mapping[str, int] = {},
    seconds: float,
    force: bool,
) -> None:
    """Write the report of a result that a command has got from ``models``, paths."""
    samples = {name: each.fingerprint for name, each in data.items() if each is not None}
    title = " and ".join(map(os.path.basename, models))
    origin = Origin(title, file.command, samples, _SEEDS | dict(seeds) if samples else {}, seconds)
    write_report(result, file.path, force=force, origin=origin)


def report_run(
    file: ReportFile,
    kind: str,
    model: str,
    optimized: ir.Model,
    done: RunReport,
    before: Costs,
    after: Costs,
    *,
    passes: Sequence[Pass],
    budget: Mapping[str, float],
    probes: Sequence[Feeds] | None,
    data: Mapping[str, Dataset | None],
    seconds: float,
    force: bool,
) -> None:
    """Write the report of a run of ``passes`` on ``model``, a path; what learnt from a teacher is scored against it."""
    teacher = next((path for each in passes if (path := getattr(each, "teacher", ""))), "")
    measured = beside(load(model), optimized, done.held_out, probes=probes, teacher=load(teacher) if teacher else None)
    seeds = {each.name: each.seed for each in passes if hasattr(each, "seed")}
    result = Optimized(done, before, after, measured, kind, budget)
    report_result(file, result, (model,), data=data, seeds=seeds, seconds=seconds, force=force)
