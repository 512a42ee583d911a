"""Reports: what was done and why, as one page of HTML and as JSON.

Each kind of result fills a ``document``; one renderer (``page``) makes a page of any.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxopt.report.optimized import Optimized as Optimized
    from onnxopt.report.origin import Origin as Origin
    from onnxopt.report.write import write_report as write_report

_HOMES = {"Optimized": "optimized", "Origin": "origin", "write_report": "write"}

__all__ = [*sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxopt.report' has no attribute {name!r}")
    return getattr(importlib.import_module(f"onnxopt.report.{_HOMES[name]}"), name)
