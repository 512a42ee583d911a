"""Train the weights on labels.

Scores of classes are trained by their cross-entropy with the labels, numbers by the mean square of what they are off.
Most useful behind a pass that took something away: ``prune-channels{ratio=0.5},reconstruct,finetune``. Weights that
were pruned one by one stay zero.

Source for the smoothing of labels: Szegedy, Vanhoucke, Ioffe, Shlens and Wojna, "Rethinking the Inception Architecture
for Computer Vision", CVPR 2016.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxopt.errors import OptionError
from onnxopt.pass_base import Context, Needs, Refuse
from onnxopt.passes.distill._training import Lesson, TrainingPass, label_kind, scored
from onnxopt.train import CrossEntropy, MeanSquaredError


@dataclass(frozen=True, kw_only=True)
class Finetune(TrainingPass):
    """Train the weights on labels."""

    name: ClassVar[str] = "finetune"
    exact: ClassVar[bool] = False
    needs: ClassVar[Needs] = "labels"

    smoothing: float = 0.0
    """The share of each label that is spread over all classes, in [0, 1)."""
    output: str = ""
    """The output that the labels are for; by default the first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.smoothing < 1:
            raise OptionError(f"{self.name}.smoothing is a share in [0, 1), got {self.smoothing}")

    def lesson(self, model: ir.Model, context: Context) -> Lesson:
        assert context.data is not None
        match label_kind(context.data):
            case "i" | "u":
                return Lesson(loss=CrossEntropy(self.output, self.smoothing), metric=scored(context.data, self.output))
            case "f":
                return Lesson(loss=MeanSquaredError(self.output, teacher=None))
            case None:
                raise Refuse("the samples have no labels; give them, or use distill, which needs none")
        raise Refuse("the labels are neither numbers of classes nor floats")
