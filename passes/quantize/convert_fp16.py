"""Compute in float16 wherever that is safe; store weights in float16.

float16 has 11 significant bits and ends at 65504, so each tensor is rounded to about one part in 2,000, and
what is larger becomes infinite. With calibration data every tensor that leaves the range is found; without, only
constants and operators are looked at. A node that has to stay in float32 says why. Masks (−1e9 or −3.4e38, added
to scores before a ``Softmax``) are cut to −32752, which is half of the largest float16, so that scores and other
masks can be added to it; ``exp`` of it is 0 all the same.

The file gets half as large. On GPUs and NPUs it is faster; **not on CPUs**: ONNX Runtime puts Casts around
each operator there and computes in float32. Inputs and outputs of the model stay float32.

Source: Micikevicius et al., "Mixed Precision Training", ICLR 2018, of which this is the half about inference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxopt.pass_base import Context, Pass, Report
from onnxopt.passes.quantize._half import convert


@dataclass(frozen=True, kw_only=True)
class ConvertFp16(Pass):
    """Compute in float16 wherever that is safe; store weights in float16."""

    name: ClassVar[str] = "convert-fp16"
    exact: ClassVar[bool] = False

    def run(self, context: Context) -> Report:
        return convert(self, context, ir.DataType.FLOAT16)
