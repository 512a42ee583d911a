"""Draw the weights anew: the same network, untrained.

What is known of the network is its graph, so a student of the teacher's form, or of a smaller one that other passes
made of it, starts as if it had never been trained: ``reinitialize,distill{epochs=50}``. How a weight is drawn follows
from what reads it: see ``_drawing``. Whatever else the model holds stays.

Sources: He, Zhang, Ren and Sun, "Delving Deep into Rectifiers", ICCV 2015; Glorot and Bengio, "Understanding the
Difficulty of Training Deep Feedforward Neural Networks", AISTATS 2010; Saxe, McClelland and Ganguli, "Exact Solutions
to the Nonlinear Dynamics of Learning in Deep Linear Neural Networks", ICLR 2014 (orthogonal).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.errors import OptionError
from onnxopt.graph import Editor, label
from onnxopt.model import copy
from onnxopt.pass_base import Context, Log, Pass, Report
from onnxopt.passes.cleanup.inline_functions import InlineFunctions
from onnxopt.passes.distill._drawing import drawn


@dataclass(frozen=True, kw_only=True)
class Reinitialize(Pass):
    """Draw the weights anew, as what reads them wants them."""

    name: ClassVar[str] = "reinitialize"
    exact: ClassVar[bool] = False

    seed: int = 0
    """What is drawn follows from it, and from the name of the weight."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise OptionError(f"{self.name}.seed is a number from 0 on, got {self.seed}")

    def run(self, context: Context) -> Report:
        """Put new numbers into the initializers; filters are for their names, and for what reads them."""
        log = Log(self, context)
        inlined = Context(Editor(copy(context.editor.model)))
        InlineFunctions().run(inlined)
        try:
            found = list(drawn(inlined.editor.model, self.seed))
        except OptionError as why:
            log.refused("model", str(why))
            return log.report()
        for each in found:
            names = [each.name, *map(label, each.readers), *(node.op_type for node in each.readers)]
            value = context.editor.model.graph.initializers.get(each.name)
            if value is None or value.const_value is None or not self.selects_name(*names):
                continue
            if not context.gate.allows(self.name, each.name):
                continue
            if np.array_equal(value.const_value.numpy(), each.array):
                continue
            value.const_value = ir.Tensor(each.array, name=each.name)
            log.changed(each.name, f"{each.how}, {list(each.array.shape)}")
        return log.report()
