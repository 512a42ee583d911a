"""Take the weights of old models off their list of inputs.

Below IR version 4 every initializer had to be listed as an input too. ONNX Runtime treats such weights as
constants; only the list says otherwise. Since IR version 4 the two are apart: a weight is an initializer
alone, and one that is an input as well is a default that the caller may override, part of the interface::

    ir_version 3:  g(x, w) with initializer w      →      ir_version 4:  g(x) with initializer w

So for models below version 4 this changes nothing that can be computed, and lets every other pass see that
the weights are constants. From version 4 on, nothing is touched. The inputs of the bodies of Loop and Scan
are matched by position, where initializers do not count in either version.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxopt.pass_base import Context, Log, Pass, Report

_SEPARATE = 4
"""The IR version from which on initializers need not be inputs."""


@dataclass(frozen=True, kw_only=True)
class DropInitializerInputs(Pass):
    """Raise IR versions below 4 to 4 and take initializers off the inputs."""

    name: ClassVar[str] = "drop-initializer-inputs"
    exact: ClassVar[bool] = True

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        model = context.editor.model
        version = model.ir_version
        if version < _SEPARATE and self.may_change_name("model", context):
            dropped = context.editor.separate_initializers()
            log.changed("model", f"took {dropped} initializers off the inputs, IR version {version} became {_SEPARATE}")
        return log.report()
