"""How much each layer gains and harms when it alone is computed with integers, loses channels, or is split."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.channels import ChannelGraph
from onnxopt.data import Dataset
from onnxopt.evaluation import evaluate
from onnxopt.graph import Editor
from onnxopt.pass_base import Context
from onnxopt.passes.lowrank.split_conv import SplitConv
from onnxopt.passes.lowrank.split_matmul import SplitMatmul
from onnxopt.passes.prune._plan import costs
from onnxopt.passes.prune._structured import trial
from onnxopt.passes.prune.prune_channels import ranking
from onnxopt.passes.quantize.quantize_static import QuantizeStatic
from onnxopt.pipeline import PassManager
from onnxopt.recipes import recipe
from onnxopt.runtime import Snapshot


@dataclass(frozen=True)
class Sensitivity:
    """One node."""

    node: str
    op: str
    float_us: float
    """Its time as float, in microseconds."""
    integer_us: float
    """The same with integers, without quantizers before it."""
    sqnr_db: float | None
    """The least SQNR of an output when this node alone is quantized; ``None`` where not a bit differs."""


def sensitivity(model: ir.Model, data: Dataset, *, threads: int = 1) -> list[Sensitivity]:
    """Measure each node of ``model``, as the recipe ``cleanup`` leaves it, that could be quantized; those that do
    most harm come first.

    Raises ``DataError`` for data that do not fit.
    """
    cleaned, _ = PassManager(recipe("cleanup"), verify="off").run(model)
    rows = QuantizeStatic(threads=threads).survey(Context(Editor(cleaned), data=data))
    return sorted((Sensitivity(*row) for row in rows), key=lambda row: (row.sqnr_db is None, row.sqnr_db, row.node))


RATIOS = (0.25, 0.5, 0.75)
"""The shares of channels that are removed from one layer at a time."""


@dataclass(frozen=True)
class PruningSensitivity:
    """One layer without some of its channels."""

    node: str
    channels: int
    kept: int
    macs: float
    """The share of the model's multiply-accumulates that goes with them."""
    parameters: float
    """The share of its parameters."""
    sqnr_db: float | None
    """The least SQNR of an output; ``None`` where not a bit differs."""


def pruning_sensitivity(model: ir.Model, data: Dataset) -> list[PruningSensitivity]:
    """Remove a quarter, a half and three quarters of the channels of each layer of ``model``, as the recipe
    ``cleanup`` leaves it, one layer at a time: those of the least ``activation``, measured on one half of the data;
    outputs are compared on the other.

    Raises ``DataError`` for data that do not fit.
    """
    cleaned, _ = PassManager(recipe("cleanup"), verify="off").run(model)
    calibration, held_out = data.split(0.5)
    editor = Editor(cleaned)
    groups = [group for group in ChannelGraph(editor).groups if group.makers and not group.frozen]
    order = ranking(groups, Context(editor, data=calibration))
    cost = costs(editor, groups)
    whole = Snapshot.of(cleaned)
    found = []
    for group in groups:
        for ratio in RATIOS:
            kept = max(1, round(group.size * (1 - ratio)))
            chosen = {group.number: order[group.number][: group.size - kept].tolist()}
            quality = evaluate(whole, Snapshot.of(trial(cleaned, "channel", chosen)), held_out)
            left = {group.number: kept}
            found.append(
                PruningSensitivity(
                    group.name,
                    group.size,
                    kept,
                    1 - cost.macs(left) / (cost.macs({}) or 1),
                    1 - cost.parameters(left) / (cost.parameters({}) or 1),
                    quality.least_sqnr_db,
                )
            )
    return found


RANKS = (0.25, 0.5)
"""The shares of the full rank that one layer at a time is split at."""


@dataclass(frozen=True)
class LowRankSensitivity:
    """One layer in two factors."""

    node: str
    rank: int
    macs: float
    """What is left of the layer's multiply-accumulates, as a share."""
    lost: float
    """The share of the variance of its output that is lost, on samples that it was not fitted to."""
    whole_us: float
    """Its time as it is, in microseconds,"""
    split_us: float
    """and split."""
    sqnr_db: float | None
    """The least SQNR of an output; ``None`` where not a bit differs."""


def low_rank_sensitivity(model: ir.Model, data: Dataset) -> list[LowRankSensitivity]:
    """Split each convolution and matrix product of ``model``, as the recipe ``cleanup`` leaves it, at a quarter and at
    half of its rank, one layer at a time, fitted to one half of the data; outputs are compared on the other.

    Raises ``DataError`` for data that do not fit.
    """
    cleaned, _ = PassManager(recipe("cleanup"), verify="off").run(model)
    calibration, held_out = data.split(0.5)
    context = Context(Editor(cleaned), data=calibration, evaluation=held_out)
    return [LowRankSensitivity(*row) for pass_ in (SplitConv(), SplitMatmul()) for row in pass_.survey(context, RANKS)]
