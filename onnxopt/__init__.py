"""onnxopt makes ONNX models smaller and faster inside a loss budget, working on the graph alone.

::

    import onnxopt
    result = onnxopt.optimize("model.onnx")      # path, ModelProto, onnx_ir.Model or gs.Graph
    print(result.report.verification)
    result.save("out.onnx")

Names are imported when they are first used, so that ``import onnxopt`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from onnxopt._imports import defer
from onnxopt._version import VERSION

if TYPE_CHECKING:
    from onnxopt.api import Result as Result
    from onnxopt.api import advise as advise
    from onnxopt.api import auto as auto
    from onnxopt.api import optimize as optimize
    from onnxopt.errors import OnnxoptError as OnnxoptError
    from onnxopt.interop import GraphSurgeonPass as GraphSurgeonPass
    from onnxopt.interop import from_graphsurgeon as from_graphsurgeon
    from onnxopt.interop import to_graphsurgeon as to_graphsurgeon
    from onnxopt.model import load as load
    from onnxopt.model import save as save
    from onnxopt.pass_base import IrPass as IrPass
    from onnxopt.pass_base import Pass as Pass
    from onnxopt.pipeline import PassManager as PassManager
    from onnxopt.recipes import parse_pipeline as parse_pipeline
    from onnxopt.recipes import recipe as recipe
    from onnxopt.report import write_report as write_report

__version__ = VERSION

_HOMES = {
    "GraphSurgeonPass": "interop",
    "IrPass": "pass_base",
    "OnnxoptError": "errors",
    "Pass": "pass_base",
    "PassManager": "pipeline",
    "Result": "api",
    "advise": "api",
    "auto": "api",
    "from_graphsurgeon": "interop",
    "load": "model",
    "optimize": "api",
    "parse_pipeline": "recipes",
    "recipe": "recipes",
    "save": "model",
    "to_graphsurgeon": "interop",
    "write_report": "report",
}

__all__ = [*sorted(_HOMES)]

defer("sympy", "onnx_ir._symbolic_shapes")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxopt' has no attribute {name!r}")
    return getattr(importlib.import_module(f"onnxopt.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
