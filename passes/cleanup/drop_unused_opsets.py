"""Drop the imports of operator sets that no node uses.

An import ``("ai.onnx.ml", 3)`` only says by which version the operators of that domain are to be read; where
there are none it says nothing, yet runtimes that do not know the domain refuse the model::

    opset_import: ["" : 17, "ai.onnx.ml" : 3, "com.microsoft" : 1]      →      opset_import: ["" : 17]

The model's imports cover its main graph with all bodies, and whatever its local functions use or are called;
a function's imports cover its own nodes. The default domain is always kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxopt.pass_base import Context, Log, Pass, Report


@dataclass(frozen=True, kw_only=True)
class DropUnusedOpsets(Pass):
    """Drop imports of domains that no node and no function uses."""

    name: ClassVar[str] = "drop-unused-opsets"
    exact: ClassVar[bool] = True

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        model = context.editor.model
        if model.opset_imports.keys() == {""} and not model.functions:
            return log.report()
        needed = _domains(model.graph.all_nodes())
        for function in model.functions.values():
            used = _domains(function.all_nodes())
            needed |= used | {function.domain}
            self._drop(function.opset_imports, used, f"{function.domain}.{function.name}: ", context, log)
        self._drop(model.opset_imports, needed, "", context, log)
        return log.report()

    def _drop(self, imports: dict[str, int], used: set[str], where: str, context: Context, log: Log) -> None:
        for domain in sorted(imports.keys() - used - {""}):
            if self.may_change_name(where + domain, context):
                log.changed(where + domain, f"no node uses version {imports.pop(domain)} of it")


def _domains(nodes: Iterable[ir.Node]) -> set[str]:
    return {node.domain for node in nodes}
