"""Compute with 8-bit integers, on grids that calibration data give.

A product of quantized numbers is a product of integers, scaled: with ``x ≈ s_x (q_x − z_x)`` and
``w ≈ s_w q_w``, ``Σ x w + b ≈ s_x s_w (Σ (q_x − z_x) q_w + q_b)``, where the bias is an integer of 32 bits on the
grid ``s_x s_w``. Written with QuantizeLinear and DequantizeLinear, which a runtime fuses into integer kernels;
the target profile says where it wants them.

Which nodes: every layer that the target has an integer kernel for, and operators that stand between integers
(residual additions, pools, Concat, …). What only moves elements in between shares the grid of its input.
Everything else stays float, and the report says why.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", CVPR 2018.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import ml_dtypes
import numpy as np

from onnxopt import choices
from onnxopt.errors import OptionError
from onnxopt.graph import Editor
from onnxopt.pass_base import Context, Log, Pass, Report
from onnxopt.passes.cleanup.convert_opset import ConvertOpset
from onnxopt.passes.quantize._budget import Budget
from onnxopt.passes.quantize._calibrate import Calibrated, Calibration, ranges_of
from onnxopt.passes.quantize._candidates import Settings, candidates, default_nodes
from onnxopt.passes.quantize._grid import integer_limits
from onnxopt.passes.quantize._placement import Choice, Placement
from onnxopt.passes.quantize._plan import Plan, plan
from onnxopt.passes.quantize._qdq import Weights, activation_grids, apply
from onnxopt.passes.quantize._ranges import METHODS, Method
from onnxopt.passes.quantize._roles import LAYERS, Roles
from onnxopt.passes.quantize._targets import IntegerType, detect, target

_TYPES: dict[str, np.dtype[Any]] = {
    **{name: np.dtype(name) for name in ("uint8", "int8", "uint16", "int16")},
    "int4": np.dtype(ml_dtypes.int4),
}


@dataclass(frozen=True, kw_only=True)
class QuantizeStatic(Pass):
    """Compute with 8-bit integers, on grids that calibration data give."""

    name: ClassVar[str] = "quantize-static"
    exact: ClassVar[bool] = False
    needs: ClassVar[Literal["none", "inputs", "labels"]] = "inputs"

    target: str = "auto"
    """The runtime: ort-cpu-vnni, ort-cpu-avx2, ort-cpu-arm, mobile, tensorrt, openvino, generic; auto: ONNX Runtime
    on the CPU of this machine."""
    method: Method = "auto"
    """How ranges are found: minmax, average, percentile, mse, entropy, or auto, the best of them for each tensor."""
    percentile: float = 99.99
    """The share of the values that the method percentile covers, in %."""
    activation_type: IntegerType | Literal["auto"] = "auto"
    """The type of activations: uint8, int8, uint16, int16; auto: the target's best."""
    weight_type: IntegerType | Literal["auto"] = "auto"
    """The type of weights: int8, uint8, int16, int4; auto: the target's best."""
    per_channel: bool = True
    """One scale for each output channel of a weight, where the target allows it."""
    symmetric: bool | Literal["auto"] = "auto"
    """Whether activations have the zero point in the middle of the type; auto: where the target needs it."""
    reduce_range: bool | Literal["auto"] = "auto"
    """Weights of 7 bits; auto: where sums saturate at 16 bits on the target."""

    placement: Literal["measured", "all", "layers"] = "measured"
    """Which nodes: those that make the model faster here, within the budget; all that the target has integer kernels
    for; or the layers alone."""
    min_sqnr: float | None = None
    """The budget of a measured placement: the least SQNR of an output in dB,"""
    max_drop: float | None = None
    """and the largest loss of accuracy (without labels: of agreement) as a share. Neither given: 22 dB or 1 %."""
    threads: int = 1
    """How many threads the placement is measured with."""

    def __post_init__(self) -> None:
        profile = target(detect() if self.target == "auto" else self.target)
        if self.placement not in ("measured", "all", "layers"):
            raise OptionError(f"{self.name}.placement is one of measured, all, layers; got {self.placement!r}")
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise OptionError(f"{self.name}.max_drop is a share in [0, 1], got {self.max_drop}")
        if self.threads < 1:
            raise OptionError(f"{self.name}.threads is a positive number, got {self.threads}")
        if self.method not in METHODS:
            raise OptionError(f"{self.name}.method is one of {', '.join(METHODS)}; got {self.method!r}")
        if not 50 < self.percentile <= 100:
            raise OptionError(f"{self.name}.percentile is a share in % in (50, 100], got {self.percentile}")
        for option, given, allowed in (
            ("activation_type", self.activation_type, profile.activations),
            ("weight_type", self.weight_type, profile.weights),
        ):
            if given != "auto" and given not in allowed:
                raise OptionError(f"{self.name}.{option} is one of auto, {', '.join(allowed)} there; got {given!r}")
        if profile.symmetric and self.symmetric is False:
            raise OptionError(f"{self.name}.symmetric must be true on the target {self.target}")
        if self.settings.reduce_range and self.settings.weight.itemsize * 8 != 8:
            raise OptionError(f"{self.name}.reduce_range is for weights of 8 bits, not {self.weight_type}")

    @property
    def settings(self) -> Settings:
        """What the options come to on the target."""
        profile = target(detect() if self.target == "auto" else self.target)
        activation = profile.activations[0] if self.activation_type == "auto" else self.activation_type
        weight = profile.weights[0] if self.weight_type == "auto" else self.weight_type
        eight_bits = weight in ("int8", "uint8")
        return Settings(
            target=profile,
            activation=_TYPES[activation],
            weight=_TYPES[weight],
            per_channel=self.per_channel,
            symmetric=profile.symmetric if self.symmetric == "auto" else self.symmetric,
            reduce_range=profile.saturates and eight_bits if self.reduce_range == "auto" else self.reduce_range,
        )

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        if context.editor.model.opset_imports.get("", 1) < self.settings.opset:
            found, _ = candidates(context.editor, self.settings)
            if self._allowed(found, context) and not self._upgrade(context, log):
                return log.report()
        work = _Work(self, context)
        chosen = work.choose() if self.placement == "measured" else None
        nodes = work.default if chosen is None else chosen.nodes
        if (limit := context.gate.limit) is not None:
            in_order = [key for key in work.found if key in nodes]
            nodes = frozenset(in_order[: max(0, limit - len(context.gate.log))])
        made = work.plan(nodes)
        for node, reason in (made.float_nodes | work.left(nodes, chosen)).items():
            log.refused(node, reason)
        if not work.everything.nodes and not made.float_nodes:
            log.refused("model", "it has no node that the target computes with integers")
        if made.nodes:
            work.build(context.editor, nodes)
        for key, node in made.nodes.items():
            log.changed(node, self._text(made, key))
        for row in work.rows(made, chosen):
            log.measured(**row)
        return log.report()

    def survey(self, context: Context) -> list[tuple[str, str, float, float, float | None]]:
        """Each node that could be quantized: label, operator, µs as float, µs with integers, and the least SQNR of
        an output in dB when it alone is quantized (``None``: exact). Nothing is changed."""
        work = _Work(self, context)
        if not work.everything.nodes:
            return []
        found = work.placement().survey(work.everything, work.found)
        rows = []
        for key, name in work.everything.nodes.items():
            times, harm = found.times[key], found.harm[key]
            noise = -10 * math.log10(harm) if harm > 0 else None
            op = work.found[key].node.op_type
            rows.append((name, op, times.as_float * 1e6, times.as_integer * 1e6, noise))
        return rows

    def _allowed(self, found: Mapping[str, Roles], context: Context) -> dict[str, Roles]:
        """What filters and gate leave to be quantized."""
        return {key: e for key, e in found.items() if not e.moves and self.may_change(e.node, context)}

    def _calibration(self, context: Context) -> Calibration:
        """Where ranges come from; for ``auto`` half of the samples are kept to choose by."""
        whole, fitted, held_out = context.statistics(), context.statistics(), None
        if self.method == "auto" and context.data is not None and context.data.units > 1:
            fitted, held_out = (whole.over(half) for half in context.data.split(0.5))
        return Calibration(fitted, held_out, self.method, self.percentile)

    def _upgrade(self, context: Context, log: Log) -> bool:
        """Bring the model to an opset that has the quantizers; ``False``, with the reason said, if that cannot be."""
        needed, opset = self.settings.opset, context.editor.model.opset_imports.get("", 1)
        report = ConvertOpset(version=needed).run(context)
        for note in report.refusals:
            log.refused(note.node, f"quantizers need opset {needed}, it has {opset}: {note.text}")
        for note in report.changes:
            log.changed(note.node, note.text)
        return bool(report.changes)

    @staticmethod
    def _text(made: Plan, key: str) -> str:
        settings, layer = made.settings, made.layers.get(key)
        if layer is None:
            return f"computed with {settings.activation.name}"
        width = "7 bits of " if settings.reduce_range else ""
        spread = "one scale a channel" if layer.axis is not None else "one scale"
        return f"computed with {settings.activation.name} × {width}{settings.weight.name}, {spread} for the weight"


class _Work:
    """One run of the pass: the grids of all that may be quantized, and models with some of it."""

    def __init__(self, pass_: QuantizeStatic, context: Context) -> None:
        self._pass, self._context = pass_, context
        self._weights: Weights = {}
        self._bad: dict[str, str] = {}
        self._calibration = pass_._calibration(context)
        self._calibrated: dict[str, Calibrated] = {}
        while True:
            self._known = candidates(context.editor, pass_.settings, self._bad)
            self.found = self._known[0]
            allowed = pass_._allowed(self.found, context)
            if pass_.placement == "layers":
                self.default = frozenset(key for key, entry in allowed.items() if entry.node.op_type in LAYERS)
            else:
                moving = {key: entry for key, entry in self.found.items() if entry.moves}
                self.default = frozenset(default_nodes(allowed | moving))
            self.everything = self.plan(frozenset(allowed) if pass_.placement == "measured" else self.default)
            sources = self._sources()
            unknown = self._calibration.unusable(sources)
            if unknown.keys() <= self._bad.keys():
                break
            self._bad |= unknown
        self._calibrate(sources)

    def _sources(self) -> set[str]:
        """The tensors that need a range in the plan of any choice of nodes: one run tells them all."""
        found = set(self.everything.sources)
        if self._pass.placement == "measured":
            found.update(name for key in self.everything.nodes for name in self.plan({key}).sources)
        return found

    def plan(self, nodes: Collection[str]) -> Plan:
        """The plan for these nodes, in any copy of the model."""
        return plan(*self._known, self._pass.settings, nodes, self._bad)

    def build(self, editor: Editor, nodes: Collection[str]) -> None:
        """Quantize these nodes."""
        if not nodes:
            return
        made = self.plan(nodes)
        self._calibrate(made.sources)
        apply(editor, made, activation_grids(made, ranges_of(self._calibrated)), self._weights)

    def _calibrate(self, names: Iterable[str]) -> None:
        missing = [name for name in names if name not in self._calibrated and name not in self._bad]
        if missing:
            settings = self._pass.settings
            low, high = integer_limits(settings.activation)
            self._calibrated |= self._calibration.ranges(missing, high - low + 1, settings.symmetric)

    def choose(self) -> Choice:
        """The nodes that are worth it, by measurement."""
        if not self.everything.nodes:
            return Choice()
        name = choices.key(self._pass, self._context, *sorted(self.everything.nodes))
        found = choices.recall(name, Choice)
        if found is None:
            if self._context.on_progress is not None:
                self._context.on_progress("measuring where integers pay")
            found = self.placement().choose(self.everything, self.found, self.default)
            choices.remember(name, found)
        return found

    def placement(self) -> Placement:
        """What measures models with some nodes quantized."""
        context = self._context
        assert context.data is not None
        feeds = context.data.one().feeds
        budget = Budget(self._pass.min_sqnr, self._pass.max_drop)
        return Placement(context.editor, self.build, feeds, context.judge(), budget, self._pass.threads)

    def left(self, nodes: Collection[str], chosen: Choice | None) -> dict[str, str]:
        """Why each node that could be quantized is not, by its label."""
        found = {}
        for key, name in self.everything.nodes.items():
            if key in nodes or chosen is None:
                continue
            times, harm = chosen.times.get(key), chosen.harm.get(key)
            if chosen.reason:
                found[name] = chosen.reason
            elif harm is not None and times is not None and times.as_integer < times.as_float:
                found[name] = f"kept float for the budget: alone it leaves {-10 * math.log10(max(harm, 1e-30)):.1f} dB"
            elif times is not None:
                found[name] = (
                    f"kept float: {times.as_float * 1e6:.0f} µs, against {times.as_integer * 1e6:.0f} µs with integers "
                    "and the quantizers that these would need"
                )
            else:
                found[name] = "kept float: with it the model was slower"
        return found

    def rows(self, made: Plan, chosen: Choice | None) -> Iterator[dict[str, object]]:
        """What was measured: of each node where it was placed and why, of each tensor how its range was found."""
        if chosen is not None:
            if chosen.ratio is not None:
                sqnr = {} if chosen.sqnr is None else {"sqnr": chosen.sqnr}
                yield {"node": "model", "latency_ratio": chosen.ratio.median, **sqnr}
            for key, name in self.everything.nodes.items():
                row: dict[str, object] = {"node": name, "integer": key in made.nodes}
                if (times := chosen.times.get(key)) is not None:
                    row |= {"float_us": times.as_float * 1e6, "integer_us": times.as_integer * 1e6}
                if (harm := chosen.harm.get(key)) is not None and harm > 0:
                    row["alone_db"] = -10 * math.log10(harm)
                yield row
        for name in made.sources:
            each = self._calibrated[name]
            yield {
                "tensor": name, "range": each.method, "low": each.range[0], "high": each.range[1], "sqnr": each.sqnr
            }  # fmt: skip
