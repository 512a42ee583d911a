"""Decide which nodes compute in half precision; what ``convert-fp16`` and ``convert-bf16`` share.

A node stays in float32, with Casts where the types meet, if

* its operator takes no half precision at the opset of the model (schema of ONNX), or has a fixed float32 type,
* a constant of it leaves the range of the type, or is so near to zero that its digits are lost, unless it is
  a limit of ``Clip``, ``Min`` or ``Max``, or a mask that is added to scores before a ``Softmax``: those are cut,
* it counts positions or sizes: a float made of integers holds them exactly only up to 2048 (float16),
* ONNX Runtime runs it in integers, between ``DequantizeLinear`` and ``QuantizeLinear``,
* with calibration data: a tensor that it reads or makes leaves the range, or half of it, since calibration sees
  no extremes; or lies wholly below the smallest number with all its digits,
* without data: its results grow without bound, as those of ``Exp`` do.

Bodies of If, Loop and Scan are converted like the main graph; the values at their border change type together.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, bodies, constant_tensor, label
from onnxopt.pass_base import Context, Log, Pass, Report
from onnxopt.passes.cleanup._operands import input_at
from onnxopt.passes.quantize._half_casts import Recast, walk
from onnxopt.passes.quantize._half_types import (
    CONTROL_FLOW,
    LARGEST,
    ONES,
    SMALLEST,
    Slots,
    boundary_values,
    slots,
    what_is_lost,
)
from onnxopt.stats import Range

_FLOAT = ir.DataType.FLOAT

MOVES = frozenset({
    "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Expand", "Tile", "Split",
    "DepthToSpace", "SpaceToDepth",
})  # fmt: skip
"""Operators that only move what their first input holds."""

_ELEMENTWISE = MOVES | {
    "Add", "Sub", "Mul", "Div", "Neg", "Abs", "Floor", "Ceil", "Round", "Sqrt", "Reciprocal", "Min", "Max", "Clip",
    "Where", "Concat", "Gather", "Cast", "Mod", "Range", "Pow", "ReduceMax", "ReduceProd", "Exp", "Log",
}  # fmt: skip

_TURNS = frozenset({"Sin", "Cos", "Concat", "Transpose", "Reshape", "Unsqueeze"})
"""What reads a product of positions and frequencies: a rotary or sinusoidal embedding."""

_MASKING = MOVES | {"Add", "Sub", "Mul", "Where", "Concat", "Trilu", "Min", "Max", "Gather", "ScatterND"}
_MASKED = frozenset({"Softmax", "LogSoftmax", "Attention"})
_LIMITS = frozenset({"Clip", "Min", "Max"})

_GROWING = frozenset({"Exp", "Pow", "ReduceSum", "ReduceSumSquare", "ReduceProd", "ReduceL2"})

_STAYING = {
    "CumSum": "sums of many numbers need more digits",
    "RoiAlign": "coordinates need more digits",
    "NonMaxSuppression": "coordinates need more digits",
    "Sin": "angles need more digits",
    "Cos": "angles need more digits",
    "RandomNormal": "it makes float32 numbers",
    "RandomUniform": "it makes float32 numbers",
    "RandomNormalLike": "it makes float32 numbers",
    "RandomUniformLike": "it makes float32 numbers",
    "EyeLike": "it makes float32 numbers",
}

_WIDE_INTEGERS = frozenset({
    ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT32, ir.DataType.UINT64, ir.DataType.UINT16, ir.DataType.INT16,
})  # fmt: skip

_WORTH_CASTING = 4096
"""A constant of so many bytes is worth the Casts around a node that stands alone."""


def convert(pass_: Pass, context: Context, half: ir.DataType) -> Report:
    """Let all nodes compute in ``half`` that can, as ``pass_``, and say why the others do not."""
    log = Log(pass_, context)
    plan = Plan(context, half, pass_)
    chosen: dict[ir.Node, Slots] = {}
    for node, found in plan.chosen.items():
        if context.gate.allows(pass_.name, label(node)):
            chosen[node] = found
            log.changed(label(node), f"computes in {half.name.lower()}")
    for node, reason in plan.reasons.items():
        log.refused(label(node), f"stays float32: {reason}")
    if chosen:
        Recast(context.editor, half, chosen, plan.masks).run(plan.followers)
        context.editor.outdate_facts()
    return log.report()


class Plan:
    """What is to be converted, and why the rest is not."""

    def __init__(self, context: Context, half: ir.DataType, filters: Pass) -> None:
        self._editor: Editor = context.editor
        self._half = half
        self._nodes = list(walk(self._editor.model.graph))
        self.masks = frozenset(_masks(self._nodes, self._editor, half))
        self._counting = _counting(self._nodes, self._editor)
        self._integer = _integer_region(self._nodes)
        self._ranges = self._measured(context)
        self.chosen: dict[ir.Node, Slots] = {}
        self.followers: dict[ir.Node, Slots] = {}
        self.reasons: dict[ir.Node, str] = {}
        for node in self._nodes:
            if filters.selects(node):
                self._judge(node)
        self._drop_lonely()

    def _measured(self, context: Context) -> dict[str, Range] | None:
        """The ranges over the calibration data, ``None`` without data or where the type has no narrower range."""
        if context.data is None or self._half != ir.DataType.FLOAT16:
            return None
        names = [
            value.name
            for node in self._editor.model.graph
            for value in (*node.inputs, *node.outputs)
            if value is not None and value.name and value.graph is self._editor.model.graph
            and constant_tensor(value) is None and self._editor.dtype(value) == _FLOAT
        ]  # fmt: skip
        return context.statistics().ranges(sorted(set(names)))

    def _judge(self, node: ir.Node) -> None:
        makes_floats = any(self._editor.dtype(out) == _FLOAT for out in node.outputs)
        if node.domain or node.op_type == "Constant":
            if makes_floats:
                called = node.op_identifier() in self._editor.model.functions
                self.reasons[node] = (
                    "it calls a local function; run inline-functions first"
                    if called
                    else f"{node.domain}.{node.op_type} is not an operator of the standard"
                )
                if node.op_type == "Constant" and not node.domain:
                    del self.reasons[node]
            return
        found = slots(node, self._editor.opset(node), self._half, self._editor.dtype)
        if isinstance(found, str):
            if makes_floats:
                self.reasons[node] = found
            return
        if not found.outputs and not (node.op_type in CONTROL_FLOW and _has_floats(node, self._editor)):
            if makes_floats:
                version = self._editor.opset(node)
                self.reasons[node] = f"{node.op_type} of opset {version} takes no {self._half.name.lower()}"
            elif found.inputs and self._reason(node, found) is None:
                self.followers[node] = found
            return
        reason = self._reason(node, found)
        if reason is not None:
            self.reasons[node] = reason
        elif not self._follows_float(node):
            self.chosen[node] = found

    def _follows_float(self, node: ir.Node) -> bool:
        """Whether ``node`` only moves what is float32 and stays so."""
        source = node.inputs[0] if node.inputs else None
        if node.op_type not in MOVES or source is None or constant_tensor(source) is not None:
            return False
        producer = source.producer()
        return producer is not None and producer not in self.chosen and producer not in self.reasons

    def _reason(self, node: ir.Node, found: Slots) -> str | None:
        """Why ``node`` should stay in float32."""
        if node in self._integer:
            return "ONNX Runtime runs the quantized region that it is part of in integers"
        if node.op_type in _STAYING:
            return _STAYING[node.op_type]
        if node in self._counting:
            most = ONES[self._half]
            return f"it counts, and {self._half.name.lower()} holds integers up to {most} only"
        for at in sorted(found.inputs):
            value = node.inputs[at]
            array = self._editor.constant(value)
            if array is None or value is None or (node.op_type in _LIMITS):
                continue
            if node.op_type == "BatchNormalization" and at == 4 and float(np.min(array)) < SMALLEST[self._half]:
                return f"the variances {value.name!r} are too small for {self._half.name.lower()}"
            text = what_is_lost(array, self._half)
            is_mask = any(out in self.masks for out in node.outputs)
            if text is not None and not (is_mask and text.startswith("reaches")):
                return f"{value.name!r} {text}"
        if node.op_type == "ConstantOfShape" and node.outputs[0] not in self.masks:
            fill = node.attributes.get("value")
            text = what_is_lost(fill.as_tensor().numpy(), self._half) if fill is not None else None
            if text is not None:
                return f"its value {text}"
        return self._range_reason(node, found)

    def _range_reason(self, node: ir.Node, found: Slots) -> str | None:
        if self._ranges is None:
            grows = node.op_type in _GROWING and self._half == ir.DataType.FLOAT16
            return "its results may leave the range of float16; give data to know" if grows else None
        values = [node.inputs[at] for at in found.inputs] + [node.outputs[at] for at in found.outputs]
        for value in sorted((v for v in values if v is not None), key=lambda v: v.name or ""):
            known = self._ranges.get(value.name or "")
            if known is None or value in self.masks:
                continue
            if not known.finite:
                return f"{value.name!r} holds NaN or infinity"
            largest = max(abs(known.low), abs(known.high))
            if largest > LARGEST[self._half] / 2:
                return f"{value.name!r} reaches {largest:.3g}, and float16 ends at {LARGEST[self._half]:.5g}"
            if 0 < largest < SMALLEST[self._half]:
                return f"{value.name!r} is at most {largest:.2g}, where float16 has few digits or none"
        return None

    def _drop_lonely(self) -> None:
        """Leave nodes alone that would only be put between two Casts."""
        changed = True
        while changed:
            changed = False
            for node in list(self.chosen):
                if not self._is_worth_it(node):
                    del self.chosen[node]
                    self.reasons.setdefault(node, "its neighbours stay float32 too, and it would cost two Casts")
                    changed = True

    def _is_worth_it(self, node: ir.Node) -> bool:
        found = self.chosen[node]
        if node.op_type in CONTROL_FLOW:
            return True
        for at in found.inputs:
            value = node.inputs[at]
            tensor = constant_tensor(value)
            if tensor is not None and tensor.nbytes >= _WORTH_CASTING:
                return True
            if value is not None and tensor is None and self._is_half(value):
                return True
        return any(use.node in self.chosen for at in found.outputs for use in node.outputs[at].uses())

    def _is_half(self, value: ir.Value) -> bool:
        producer = value.producer()
        return producer is not None and producer in self.chosen


def _has_floats(node: ir.Node, editor: Editor) -> bool:
    return any(editor.dtype(value) == _FLOAT for value in boundary_values(node))


def _masks(nodes: list[ir.Node], editor: Editor, half: ir.DataType) -> Iterator[ir.Value]:
    """The values between a huge constant and the Softmax that it masks something in, if it does nothing else."""
    for node in nodes:
        if node.op_type not in _MASKING | {"ConstantOfShape"} or node.domain:
            continue
        arrays = [editor.constant(value) for value in node.inputs if editor.dtype(value) == _FLOAT]
        if node.op_type == "ConstantOfShape" and "value" in node.attributes:
            arrays = [node.attributes["value"].as_tensor().numpy()]
        huge = [a for a in arrays if a is not None and a.size and _exceeds(a, LARGEST[half])]
        found: set[ir.Value] = set()
        if huge and all(_only_masks(out, found, editor) for out in node.outputs):
            yield from found


def _exceeds(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], limit: float) -> bool:
    return array.dtype.kind == "f" and bool(np.any(np.isfinite(array) & (np.abs(array) >= limit)))


def _only_masks(value: ir.Value, found: set[ir.Value], editor: Editor) -> bool:
    """Whether all that is made of ``value`` ends in a Softmax; notes the values on the way in ``found``."""
    if value in found:
        return True
    if value.is_graph_output() or not value.uses():
        return False
    found.add(value)
    for use in value.uses():
        reader = use.node
        if reader.op_type in _MASKED or (reader.op_type == "Shape" and not reader.domain):
            continue
        if reader.domain or reader.op_type not in _MASKING:
            return False
        if not all(_only_masks(out, found, editor) for out in reader.outputs):
            return False
    return True


def _counting(nodes: list[ir.Node], editor: Editor) -> set[ir.Node]:
    """The nodes that compute floats of nothing but integers, and those that scale the sums of integer kernels."""
    counted: set[ir.Value] = set()
    sums: set[ir.Value] = set()
    found: set[ir.Node] = set()
    for node in nodes:
        if node.domain or any(True for _ in bodies(node)):
            continue
        source = input_at(node, 0)
        if node.op_type in ("MatMulInteger", "ConvInteger"):
            sums.update(node.outputs)
        elif node.op_type == "Cast" and source is not None and editor.dtype(source) in _WIDE_INTEGERS:
            if editor.dtype(node.outputs[0]) == _FLOAT:
                found.add(node)
                counted.update(node.outputs)
                if source in sums:
                    sums.update(node.outputs)
        elif node.op_type in ("MatMul", "Einsum"):
            read_by = {use.node.op_type for use in node.outputs[0].uses()}
            if read_by and read_by <= _TURNS and any(v in counted for v in node.inputs):
                found.add(node)
                counted.update(node.outputs)
        elif node.op_type in _ELEMENTWISE:
            floats = [v for v in node.inputs if editor.dtype(v) == _FLOAT and constant_tensor(v) is None]
            if floats and (all(v in counted for v in floats) or any(v in sums for v in floats)):
                found.add(node)
                counted.update(node.outputs)
    # A Cast that is read by real numbers alone may as well make the type that they have.
    for node in list(found):
        readers = [use.node for use in node.outputs[0].uses()]
        if node.op_type == "Cast" and node.inputs[0] not in sums and readers and not found.intersection(readers):
            if not node.outputs[0].is_graph_output():
                found.discard(node)
    return found


def _integer_region(nodes: list[ir.Node]) -> set[ir.Node]:
    """Q and DQ of activations, what stands between them, and the DQ of the weights and biases there."""
    dequantized: set[ir.Value] = set()
    found: set[ir.Node] = set()
    for node in nodes:
        if node.domain:
            continue
        if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear"):
            found.add(node)
        elif node.op_type == "DequantizeLinear" and constant_tensor(node.inputs[0]) is None:
            found.add(node)
            dequantized.update(node.outputs)
    for node in nodes:
        if any(value in dequantized for value in node.inputs):
            found.add(node)
            producers = (value.producer() for value in node.inputs if value is not None)
            found.update(p for p in producers if p is not None and p.op_type == "DequantizeLinear")
    return found
