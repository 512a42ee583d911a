"""Train each block of a compressed model to give what that block gave before.

Behind passes that prune, factorize or quantize, in one pipeline with them, or with any ``teacher`` whose values have
the same names. Blocks are cut where blocks of the teacher end in a value that both compute, under one name and of one
shape; the last one ends in the outputs. One after the other is trained alone, without labels: on what reaches it in the
compressed model as it has become by then, or in the teacher (``inputs``), to come near what the teacher gives there, by
the mean square in units of its variance. So gradients need not pass the whole depth, and memory is that of a block. Its
new weights are kept if the error falls on samples that it was not trained on. Integer weights behind DequantizeLinear
are trained as in ``qat``. Weights that other blocks read too stay.

``reconstruct`` fits single layers in closed form, which takes less time; ``distill`` behind either trains what is left,
all blocks together.

Sources: Li, Gong, Tan, Yang, Hu, Zhang, Yu, Wang and Gu, "BRECQ: Pushing the Limit of Post-Training Quantization by
Block Reconstruction", ICLR 2021; Wang, Zhao, Li and Tan, "Progressive Blockwise Knowledge Distillation for Neural
Network Acceleration", IJCAI 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxopt.data import Dataset, load_data
from onnxopt.errors import GradientError, ModelError, OptionError, TrainingError
from onnxopt.graph import Editor
from onnxopt.model import load
from onnxopt.pass_base import Context, Log, Refuse
from onnxopt.passes.distill._blocks import block_ends, observed
from onnxopt.passes.distill._cut import Block, blocks_between
from onnxopt.passes.distill._training import Array, Arrays, Lesson, TrainingPass
from onnxopt.passes.distill.qat import put_rounded, round_on_the_way
from onnxopt.train import MeanSquaredError, WeightedSum

_MAX_BYTES = 1 << 30
"""So much of what goes into a block and comes out is in memory; where it is more, fewer samples are used."""
_EXACT = 1e-9
"""Errors below this are those of rounding."""


@dataclass(frozen=True, kw_only=True)
class DistillBlocks(TrainingPass):
    """Train each block of a compressed model to give what it gave before."""

    name: ClassVar[str] = "distill-blocks"
    exact: ClassVar[bool] = False

    teacher: str = ""
    """A file with the teacher; by default the model before the pipeline changed what it computes."""
    inputs: Literal["student", "teacher"] = "student"
    """What goes into a block that is trained: what reaches it in the model itself, or in the teacher."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inputs not in ("student", "teacher"):
            raise OptionError(f"{self.name}.inputs is student or teacher, got {self.inputs!r}")

    def prepared(self, model: ir.Model, context: Context) -> ir.Model:
        """``model`` with floats in place of integer weights, rounded on their way."""
        round_on_the_way(model, context.original)
        return model

    def put(self, name: str, array: Array, editor: Editor) -> bool:
        """Put a weight into the model, in integers again if it was."""
        found = put_rounded(name, array, editor)
        return super().put(name, array, editor) if found is None else found

    def lesson(self, model: ir.Model, context: Context) -> Lesson:
        raise NotImplementedError("each block has its own")

    def _train(self, context: Context, data: Dataset, log: Log) -> None:
        teacher = self._teacher(context)
        model = self.copied(context)
        if not data.stackable:
            raise Refuse("its samples cannot be put together in other ways, as blocks need: give rows of one shape")
        parts = self.parts(data)
        cuts = _cuts(model, teacher, data)
        blocks = blocks_between(model, cuts)
        if not blocks:
            raise Refuse("no value that both compute under one name and of one shape ends a block with weights")
        for at, block in enumerate(blocks):
            if not context.gate.allows(self.name, block.target):
                continue
            if context.on_progress is not None:
                context.on_progress(f"block {at + 1} of {len(blocks)}, up to {block.target}")
            try:
                self._train_block(block, at, model, teacher, parts, context, log)
            except (GradientError, TrainingError, OptionError) as why:
                log.refused(block.target, str(why))

    def _train_block(
        self, block: Block, at: int, model: ir.Model, teacher: ir.Model, parts: Sequence[Dataset], context: Context,
        log: Log,
    ) -> None:  # fmt: skip
        source = model if self.inputs == "student" else teacher
        small = block.extracted(model)
        data: list[Dataset] = []
        spread = 1.0
        for part in parts:
            arrays, labels = _collected(block, source, teacher, part)
            spread = spread if data else float(np.var(labels, dtype=np.float64)) or 1.0
            data.append(load_data({**arrays, "labels": labels}, small))
        loss = WeightedSum(((1 / spread, MeanSquaredError(block.target, None)),))
        kept_file = f"{self.checkpoint}.{at + 1}" if self.checkpoint else ""
        lesson = Lesson(loss=loss, fixed=block.shared)
        training = self.training(small, lesson, (data[0], data[1]), context, kept_file)
        for _ in training:
            if training.start is not None and -training.start < _EXACT:
                log.refused(block.target, "it gives what it gives in the teacher")
                return
        assert training.start is not None
        assert training.metric is not None
        before, after = -training.start, -training.metric
        log.measured(block=block.target, error_before=before, error_after=after, kept=after < before)
        text = f"error of its output {before:.2g} → {after:.2g}, in units of the variance"
        trained = training.result()
        if not after < before or not (moved := self.give_back(trained, training.names, context)):
            log.refused(block.target, f"its weights are best as they are: {text}")
            return
        for name in training.names:
            model.graph.initializers[name].const_value = trained.graph.initializers[name].const_value
        log.changed(block.target, f"{moved} trained: {text}")

    def _teacher(self, context: Context) -> ir.Model:
        if not self.teacher:
            if context.original is None:
                raise Refuse("the model is as it was, so there is nothing to win back: change it first")
            return context.original
        try:
            return load(self.teacher)
        except ModelError as error:
            raise OptionError(f"{self.name}.teacher: {error}") from error


def _cuts(model: ir.Model, teacher: ir.Model, data: Dataset) -> list[str]:
    """Where blocks of both end, in order: values of floats of one name and shape, a row a sample."""
    made = {str(value.name): value for node in model.graph for value in node.outputs}
    ends = [str(value.name) for value in (*block_ends(Editor(teacher)), *teacher.graph.outputs)]
    known = {str(value.name) for node in teacher.graph for value in node.outputs}
    common = [name for name in dict.fromkeys(ends) if name in made and name in known]
    batch = next(iter(data.take(2).batches()))
    x, y = next(observed(model, common, [batch])), next(observed(teacher, common, [batch]))
    return [
        name for name in common
        if x[name].shape == y[name].shape and x[name].shape[:1] == (batch.samples,) and x[name].dtype.kind == "f"
    ]  # fmt: skip


def _collected(block: Block, source: ir.Model, teacher: ir.Model, data: Dataset) -> tuple[Arrays, Array]:
    """What goes into a block, and what is to come out, of as many samples as fit into memory."""
    made = {str(value.name) for node in source.graph for value in node.outputs}
    inner = [name for name in block.inputs if name in made]
    rows: list[Arrays] = []
    wanted: list[Array] = []
    size = 0
    asked = observed(source, inner, data.batches()), observed(teacher, [block.target], data.batches())
    for batch, found, given in zip(data.batches(), *asked, strict=True):
        rows.append({name: found[name] if name in found else batch.feeds[name] for name in block.inputs})
        wanted.append(given[block.target].astype(np.float32, copy=False))
        size += wanted[-1].nbytes + sum(array.nbytes for array in rows[-1].values())
        if size > _MAX_BYTES:
            break
    return {name: np.concatenate([row[name] for row in rows]) for name in block.inputs}, np.concatenate(wanted)
