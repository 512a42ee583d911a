"""Networks as the comparison takes them: shape arithmetic folded, weights untouched and under their names."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import onnxopt

PASSES = (
    "drop-initializer-inputs,lift-constants,remove-no-ops,fold-shapes,"
    'fold-constants{exclude=["Transpose","Unsqueeze"]},fuse-split,remove-dead'
)
"""What only moves the elements of a weight stays, so that weights are called as in PyTorch."""


def prepared(path: Path) -> ir.Model:
    model: ir.Model = onnxopt.optimize(path, passes=PASSES, verify="off").model
    return model
