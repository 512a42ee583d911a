"""What the tests of structured pruning share."""

from __future__ import annotations

from typing import Any

import onnx.checker
import onnx_ir as ir

from onnxopt.data import load_data
from onnxopt.graph import Editor
from onnxopt.model import copy, to_proto
from onnxopt.pass_base import Context, Gate, Pass, Report
from onnxopt.pipeline import interface


def prune(pass_: Pass, before: ir.Model, data: Any = None) -> tuple[ir.Model, Report]:
    """Run one pass on a copy, with ``data`` to calibrate on and to judge by; the result is valid, has the interface
    of before, and differs exactly if a change is reported."""
    result = copy(before)
    given = None if data is None else load_data(data, before)
    report = pass_.run(Context(Editor(result), Gate(), given, given, before))
    onnx.checker.check_model(to_proto(result), full_check=True)
    assert interface(result) == interface(before)
    assert (to_proto(result) == to_proto(before)) == (report.changed == 0)
    return result, report


def refusals(report: Report) -> str:
    return " | ".join(map(str, report.refusals))
