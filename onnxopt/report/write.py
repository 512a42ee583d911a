"""Reports of whatever a command returns, written as a page and as JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from onnxopt import inspection
from onnxopt.api import Result
from onnxopt.errors import OptionError
from onnxopt.inspection import Comparison
from onnxopt.report import advised, compared, optimized, searched, sensitivities
from onnxopt.report.beside import beside
from onnxopt.report.document import Document
from onnxopt.report.files import report_files
from onnxopt.report.optimized import Optimized
from onnxopt.report.origin import Origin
from onnxopt.report.page import page
from onnxopt.search.advise import Advice
from onnxopt.search.auto import AutoResult
from onnxopt.writing import replace_file


def write_report(
    result: Any, path: str | os.PathLike[str], *, force: bool = False, origin: Origin | None = None
) -> tuple[Path, Path]:
    """Write what ``optimize``, ``auto``, ``advise``, ``compare`` or ``sensitivity`` returned as one page of HTML,
    ``path``, which needs nothing else, and beside it as JSON with the same content; returns both paths. ``force``:
    replace them.

    Of a result of ``optimize``, latency and score are measured here.

    Raises ``OptionError`` if ``path`` does not end in ``.html``, plotly is not installed or there is no report of such
    a result, ``OutputError`` if a file cannot be written.
    """
    target, beside_it = report_files(path, force=force)
    document = document_of(result, origin or Origin())
    text, data = page(document), msgspec.json.format(msgspec.json.encode(document.json), indent=2)
    with replace_file(beside_it) as file:
        file.write(data + b"\n")
    with replace_file(target) as file:
        file.write(text.encode())
    return target, beside_it


def document_of(result: Any, origin: Origin) -> Document:
    """The report of a result. Raises ``OptionError`` if there is none of its kind."""
    match result:
        case Optimized():
            return optimized.document(result, origin)
        case Result():
            return optimized.document(_optimized(result), origin)
        case AutoResult():
            return searched.document(result, origin)
        case Advice():
            return advised.document(result, origin)
        case Comparison():
            return compared.document(result, origin)
        case Sequence() if not isinstance(result, str) and all(isinstance(row, sensitivities.Row) for row in result):
            return sensitivities.document(result, origin)
    raise OptionError(f"there is no report of {type(result).__name__}")


def _optimized(result: Result[Any]) -> Optimized:
    before, after = result.sides()
    measured = beside(before, after, result.report.held_out)
    return Optimized(result.report, inspection.costs(before), inspection.costs(after), measured)
