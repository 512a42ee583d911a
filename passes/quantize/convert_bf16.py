"""Compute in bfloat16 wherever the operators allow it; store weights in bfloat16.

bfloat16 has the range of float32, so nothing overflows, but 8 significant bits only: each tensor is rounded to
about one part in 250. It is for accelerators that compute in it. ONNX Runtime has hardly any bfloat16 kernel for
CPUs (1.32: not for MatMul, Conv, Add, Relu), so the result cannot be loaded there, let alone verified. The pass
therefore refuses, unless it is told with ``unverified`` that this is known; verification has to be off then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxopt.graph import label
from onnxopt.pass_base import Context, Log, Pass, Report
from onnxopt.passes.quantize._half import Plan, convert


@dataclass(frozen=True, kw_only=True)
class ConvertBf16(Pass):
    """Compute in bfloat16 wherever the operators allow it; store weights in bfloat16."""

    name: ClassVar[str] = "convert-bf16"
    exact: ClassVar[bool] = False

    unverified: bool = False
    """Convert, though ONNX Runtime cannot run the result on a CPU and nothing can be verified."""

    def run(self, context: Context) -> Report:
        if self.unverified:
            return convert(self, context, ir.DataType.BFLOAT16)
        log = Log(self, context)
        for node in Plan(context, ir.DataType.BFLOAT16, self).chosen:
            log.refused(
                label(node),
                "stays float32: ONNX Runtime has no bfloat16 kernels for CPUs, so that nothing could be verified; "
                "unverified=true converts it nevertheless, with verification off",
            )
        return log.report()
