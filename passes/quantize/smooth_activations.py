"""Move outliers of activations into the weights of the layers that read them.

A few channels of a transformer's activations are often a hundred times larger than the others, and one scale for the
whole tensor then leaves the others a few steps. Channel ``j`` is divided by ``s[j]`` where it is made (in the
parameters of a LayerNormalization or a product, or in the weights of a linear layer), and the weights that read it
are multiplied by it:

    x w = (x S⁻¹) (S w),    s[j] = max|x_j|^α / max|w_j|^(1−α).

``α`` is chosen for each tensor by the error of the quantized product on a sample of its values, and a tensor is left
alone unless that error falls. Every reader has to be a linear layer, and no operator is added: where nothing that
makes the tensor can take the scale, it is refused. Outputs are kept up to rounding.

Source: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
ICML 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxopt.errors import OptionError
from onnxopt.graph import Editor, attribute, label
from onnxopt.pass_base import Context, Log, Needs, Pass, Refuse, Report
from onnxopt.passes.cleanup._linear import Layer, layer_of
from onnxopt.passes.quantize._grid import Array
from onnxopt.passes.quantize._scaling import Group, group_behind
from onnxopt.passes.quantize._smoothing import ALPHAS, error, smoothing_scales
from onnxopt.stats import Channels

_ROWS = 512
"""How many rows of a tensor the error is measured on."""

_GAIN = 0.95
"""What the error has to fall to, as a share, for a change to be worth it."""


@dataclass(frozen=True)
class _Candidate:
    """A tensor whose channels may be scaled."""

    value: ir.Value
    group: Group
    weights: list[Array]
    """The weights that read it, as matrices inputs × outputs."""


@dataclass(frozen=True, kw_only=True)
class SmoothActivations(Pass):
    """Move outliers of activations into the weights of the layers that read them."""

    name: ClassVar[str] = "smooth-activations"
    exact: ClassVar[bool] = False
    keeps_function: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = frozenset({"MatMul", "Gemm"})
    needs: ClassVar[Needs] = "inputs"

    alpha: float | Literal["auto"] = "auto"
    """How much goes into the weights, from 0 to 1, or ``auto`` to choose it for each tensor."""

    def __post_init__(self) -> None:
        if self.alpha != "auto" and not (isinstance(self.alpha, int | float) and 0 <= self.alpha <= 1):
            raise OptionError(f"{self.name}.alpha is auto or a number from 0 to 1, got {self.alpha!r}")

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        found = self._candidates(context.editor, log)
        statistics = context.statistics() if found else None
        if statistics is None:
            return log.report()
        # All is measured before anything is changed: the scale of one tensor does not move another.
        names = [each.value.name or "" for each in found]
        channels, rows = statistics.channels(dict.fromkeys(names, -1)), statistics.rows(names, _ROWS)
        plans = [(each, self._plan(each, channels, rows, log)) for each in found]
        for each, plan in plans:
            name = _name(each.value)
            if plan is not None and context.gate.allows(self.name, name):
                scales, text = plan
                each.group.scale(1 / scales, context.editor)
                log.changed(name, text)
        return log.report()

    def _candidates(self, editor: Editor, log: Log) -> list[_Candidate]:
        found: list[_Candidate] = []
        seen: set[ir.Value] = set()
        taken: set[ir.Node] = set()
        for node in editor.model.graph:
            layer = layer_of(node, editor) if node.op_type in self.ops and not node.domain else None
            value = node.inputs[0] if layer is not None else None
            if layer is None or value is None or value in seen or not self.selects(node):
                continue
            seen.add(value)
            try:
                group = _group_of(value, layer, editor)
            except Refuse as refusal:
                log.refused(_name(value), str(refusal))
                continue
            if all(self.selects(other) for other in group.nodes()) and taken.isdisjoint(group.affine):
                taken.update(group.affine)
                found.append(_Candidate(value, group, [_matrix(r.layer) for r in group.readers]))
        return found

    def _plan(
        self, candidate: _Candidate, channels: Mapping[str, Channels], rows: Mapping[str, Array], log: Log
    ) -> tuple[Array, str] | None:
        """The scales to divide by, and what that does; ``None``, with the reason in the log, if it does no good."""
        name = candidate.value.name or ""
        known = channels.get(name)
        if known is None or not (np.isfinite(known.low).all() and np.isfinite(known.high).all()):
            log.refused(_name(candidate.value), "nothing is known of its values, or they are not finite")
            return None
        x = rows[name]
        low, high = known.low.astype(np.float64), known.high.astype(np.float64)
        largest = np.maximum(np.abs(low), np.abs(high))
        before = error(x, low, high, candidate.weights, np.ones(len(low)))
        tried = ALPHAS if isinstance(self.alpha, str) else (float(self.alpha),)
        options = [(smoothing_scales(largest, candidate.weights, alpha), alpha) for alpha in tried]
        after, best = min((error(x, low, high, candidate.weights, s), at) for at, (s, _) in enumerate(options))
        scales, alpha = options[best]
        log.measured(tensor=name, error_before=before, error_after=after, alpha=alpha)
        if after > _GAIN * before:
            log.refused(_name(candidate.value), f"scaling would not help: error {before:.2g}, then {after:.2g}")
            return None
        return scales, f"{name!r} is smoothed with alpha {alpha}: error of the products {before:.2g} → {after:.2g}"


def _group_of(value: ir.Value, layer: Layer, editor: Editor) -> Group:
    """The group of ``value``. Raises ``Refuse`` unless just linear layers read it."""
    rank = editor.rank(value)
    if rank is None:
        raise Refuse(f"the rank of {value.name!r} is unknown")
    group = group_behind(value, layer.channels_in, rank - 1, editor)
    for reader in group.readers:
        if reader.layer.node.inputs[0] is not value or reader.layer.node.op_type not in ("MatMul", "Gemm"):
            raise Refuse(f"{label(reader.layer.node)!r} reads its channels in another form")
    return group


def _name(value: ir.Value) -> str:
    producer = value.producer()
    return label(producer) if producer is not None else value.name or ""


def _matrix(layer: Layer) -> Array:
    weight, _ = layer.weights()
    return weight.T if layer.node.op_type == "Gemm" and attribute(layer.node, "transB", 0) else weight
