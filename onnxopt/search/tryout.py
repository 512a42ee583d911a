"""A pipeline tried on a model: what it brings, what it costs, and what its passes refused."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxopt.errors import OnnxoptError
from onnxopt.graph import constant_tensor
from onnxopt.macs import Macs, count_macs, dynamic_dims
from onnxopt.model import to_proto
from onnxopt.passes.quantize._targets import Device, Form
from onnxopt.pipeline import PassManager
from onnxopt.probes import interface_inputs
from onnxopt.run_report import RunReport
from onnxopt.runtime import Feeds, Snapshot, one_thread_ratio
from onnxopt.search.bench import Bench, file_size
from onnxopt.search.jobs import Evaluations
from onnxopt.search.metric import Loss, Yardstick
from onnxopt.search.ways import Way, within
from onnxopt.sparsity import pruned

_SECONDS = 0.8
_FORMAT = 1
"""To be raised when models are tried in another way."""
_MOST_BYTES = 64 << 20
"""Larger models are not compressed to see how small they get."""
_REASONS = 2
"""So many reasons are told of why nothing was changed: those that most nodes have."""


@dataclass(frozen=True)
class Trial:
    """What became of a model."""

    problem: str = ""
    """Why there is nothing to measure, if there is not."""
    late: bool = False
    """Whether that is because the time was over."""
    latency: float | None = None
    """On one thread of this machine, in units of the original's; ``None`` if it was not measured."""
    size: float = 1.0
    """Of the model as a file, in units of the original's;"""
    macs: float | None = None
    """so its arithmetic, if it is known;"""
    forms: dict[Form, float] = field(default_factory=dict)
    """and how much of that is computed in which form, where it is not floats."""
    compressed: float | None = None
    """Of the model as a compressed file, in units of the original's."""
    loss: Loss | None = None
    """``None`` where there are no samples."""


class _Late(BaseException):
    """The time is over. No ``Exception``, for passes that raise one are only left out."""


@dataclass
class Tries:
    """Tries ways on one model, as long as there is time."""

    bench: Bench
    yardstick: Yardstick | None
    """``None`` where samples are made up, or no score fits the model."""
    sampled: bool
    """Whether the samples are the user's: made-up ones are given only to ways that cannot do without."""
    device: Device
    measured: bool
    """Whether times are measured, for the device is this machine."""
    max_drop: float | None
    """The budget of passes that keep one."""
    evaluations: Evaluations

    def __post_init__(self) -> None:
        self._size = file_size(self.bench.model)
        self._dims = _sizes(self.bench.model, self.bench.feeds)
        self._macs = self._counted(self.bench.model).total

    def run(self, way: Way) -> Trial:
        """Try one, or recall what came of it before; a pass that fails is a problem that the trial tells."""
        what = "advice", _FORMAT, way.pipeline, self.device, self.measured, self.max_drop, self.sampled
        try:
            return self.evaluations.remembered(repr(what), Trial, lambda: self._run(way))
        except OnnxoptError as error:
            return Trial(str(error))
        except _Late:
            return Trial("the time was over", late=True)

    def _run(self, way: Way) -> Trial:
        self._go_on(way.name)
        data = self.bench.data if way.fitted or self.sampled else None
        made_up = way.fitted and not self.sampled  # by which nothing can be judged
        manager = PassManager(
            within(way.passes(), 1.0 if made_up else self.max_drop), verify="off", data=data,
            on_stage=lambda stage: self._go_on(f"{way.name}: {stage}"),
        )  # fmt: skip
        model, report = manager.run(self.bench.model)
        if problem := _problem(way, report):
            return Trial(problem)
        self._go_on(f"{way.name}: what it brings")
        snapshot = Snapshot.of(model)
        latency = None
        if self.measured:
            latency = one_thread_ratio(self.bench.original, snapshot, self.bench.feeds, seconds=_SECONDS).median
        counted = self._counted(model)
        forms = form_macs(model, counted.by_output, self.device.sparsity)
        return Trial(
            latency=latency,
            size=file_size(model) / self._size,
            macs=counted.total / self._macs if self._macs and not counted.unknown else None,
            forms={form: macs / self._macs for form, macs in forms.items()} if self._macs else {},
            compressed=self._compressed(model) if "prune-weights" in way.own else None,
            loss=None if self.yardstick is None else self.yardstick.loss(snapshot),
        )

    def _counted(self, model: ir.Model) -> Macs:
        """The arithmetic of one run, as times are of it."""
        return count_macs(model, {name: self._dims[name] for name in dynamic_dims(model) if name in self._dims})

    def _compressed(self, model: ir.Model) -> float | None:
        if self._size > _MOST_BYTES:
            return None
        before, after = (len(zlib.compress(to_proto(m).SerializeToString())) for m in (self.bench.model, model))
        return after / before

    def _go_on(self, stage: str) -> None:
        """Raises ``_Late`` if there is no time."""
        if time.monotonic() > self.evaluations.end:
            raise _Late
        self.evaluations.on_progress(stage)


def _sizes(model: ir.Model, feeds: Feeds) -> dict[str, int]:
    """The size of each dim of the inputs, under all names that ``dynamic_dims`` may have for it."""
    found: dict[str, int] = {}
    for value in interface_inputs(model):
        name = value.name or ""
        shape = feeds[name].shape if name in feeds else ()
        for axis, (dim, size) in enumerate(zip(value.shape or (), shape, strict=False)):
            names = [f"{name}[{axis}]", *([dim.value] if isinstance(dim, ir.SymbolicDim) and dim.value else [])]
            found |= dict.fromkeys(names, int(size))
    return found


def _problem(way: Way, report: RunReport) -> str:
    """Why nothing was changed, if nothing was."""
    own = [each for each in report.passes if each.name in way.own]
    if any(each.changed for each in own or report.passes):
        return ""
    refused: dict[str, list[str]] = {}
    for note in (note for each in own for note in each.refusals):
        refused.setdefault(note.text, []).append(note.node)
    for text, nodes in refused.items():
        if "model" in nodes:
            return text
    most = sorted(refused, key=lambda text: -len(refused[text]))[:_REASONS]
    reasons = [f"{_places(refused[text])}{text}" for text in most] + list(report.problems[:1])
    if own and not reasons:
        reasons = ["the model has no operator that it is for"]
    return ": ".join([way.nothing, "; ".join(reasons)]) if reasons else way.nothing


def _places(nodes: Sequence[str]) -> str:
    return f"{nodes[0]} and {len(nodes) - 1} more: " if len(nodes) > 1 else f"{nodes[0]}: "


def form_macs(model: ir.Model, macs: dict[str, int], sparsity: str) -> dict[Form, int]:
    """How many multiply–accumulates are computed in each form; ``macs``: those of each node, by its first output;
    ``sparsity``: the pattern of zeros that is skipped, if one is."""
    skipped = {name for name, pattern in pruned(model).items() if sparsity and pattern == sparsity}
    found: dict[Form, int] = {}
    for node in model.graph:
        own = macs.get(node.outputs[0].name or "", 0) if node.outputs else 0
        form = _form(node, skipped) if own else None
        if form is not None:
            found[form] = found.get(form, 0) + own
    return found


def _form(node: ir.Node, skipped: set[str]) -> Form | None:
    if node.op_type == "MatMulNBits":
        return "weights4" if node.attributes["bits"].as_int() == 4 else "weights8"
    if node.op_type.startswith(("QLinear", "DynamicQuantize")) or node.op_type.endswith(("Integer", "IntegerToFloat")):
        return "int8"
    inputs = [value for value in node.inputs if value is not None]
    if any(value.name in skipped for value in inputs):
        return "sparse"
    if any(value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) for value in inputs):
        return "fp16"
    makers = [value.producer() for value in inputs[:2]]
    stored = [maker.inputs[0] for maker in makers if maker is not None and maker.op_type == "DequantizeLinear"]
    if any(constant_tensor(value) is None for value in stored):
        return "int8"
    weights = [tensor for value in stored if (tensor := constant_tensor(value)) is not None]
    if not weights:
        return None
    return "weights4" if weights[0].dtype.bitwidth == 4 else "weights8"


def estimated(trial: Trial, device: Device) -> float | None:
    """The latency that arithmetic makes expect, in units of the original's: each multiply–accumulate at the peak rate
    of the form that it is computed in, and nothing else. ``None`` if rates or arithmetic are not known."""
    if device.times is None or trial.macs is None:
        return None
    return trial.macs + sum((device.times.get(form, 1.0) - 1) * macs for form, macs in trial.forms.items())


