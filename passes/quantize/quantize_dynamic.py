"""Multiply integers, with activations rounded to 8 bits by their range at run time: no calibration.

::

    y = MatMul(x, w) + b   →   q, s, z = DynamicQuantizeLinear(x)
                               y = Cast(MatMulInteger(q, w8, z)) · (s · s_w) + b

with ``w8`` in INT8, symmetric, and a scale ``s_w`` for each output. ONNX Runtime makes one kernel of it, or two
where several nodes read ``x``, which is then rounded once for all. ``LSTM`` becomes ``DynamicQuantizeLSTM`` of
``com.microsoft``. There is no such kernel for ``GRU``.

Rounding the activations costs a pass over them, so small products get slower. Time of INT8 / time of FP32 (ONNX
Runtime 1.32, one thread of a CPU with AVX512-VNNI) for a weight of inputs × outputs, at rows of ``x``:

===========  ======  ======  ======  ======  =======
rows         1       4       16      64      256
===========  ======  ======  ======  ======  =======
32 × 32      1.11    1.11    1.09    1.04    0.92
64 × 64      1.11    1.10    1.01    0.83    0.64
128 × 128    1.09    1.03    0.79    0.55    0.44
128 × 10     1.10    1.11    1.10    1.07    1.00
64 × 1024    1.24    1.04    0.64    0.47    0.40
256 × 256    0.96    0.82    0.54    0.39    0.34
768 × 768    0.53    0.45    0.33    0.29    0.13
===========  ======  ======  ======  ======  =======

``LSTM`` of 64 inputs and 64 units: 1.02 for one step, 0.72 for 32; of 128: 0.89 and 0.53. Hence the rule: an
operator of at least 32 outputs is quantized if it has 2¹⁶ weights (2¹⁷ in an ``LSTM``) and 256 inputs, or if
rows × weights is at least 2¹⁹; a dynamic dim counts as 1. Convolutions get 2 to 12 times slower this way, and
are only quantized if you name them.

Given samples, the pass does not go by that rule alone: it times every operator on one of them, in both forms, and
keeps float what is slower; and it judges the outputs, and keeps float what harms most until the budget holds (see
``_sparing``). Without samples nothing is judged, which it says.

A CPU without VNNI adds two products in 16 bits, which may overflow: there, weights get 7 bits (``reduce_range``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxopt.data import Dataset
from onnxopt.errors import OptionError
from onnxopt.graph import Editor, attribute, constant_tensor, label
from onnxopt.pass_base import Context, Log, Pass, Refuse, Report
from onnxopt.passes.quantize._budget import UNJUDGED, Budget, judges
from onnxopt.passes.quantize._contrib import other_reader, remove_unread, upgrade
from onnxopt.passes.quantize._dynamic_forms import WEIGHTS_AT, Arrays, Writer
from onnxopt.passes.quantize._linear_node import check_weight, linear_node
from onnxopt.passes.quantize._sparing import Spared, Sparing, Unit, key_of
from onnxopt.passes.quantize._targets import detect, target

Array = np.ndarray[Any, Any]

_OPERATORS = ("MatMul", "Gemm", "LSTM", "Conv")
_OPSET = 11
_FEWEST_OUTPUTS, _FEWEST_INPUTS = 32, 256
_FEWEST_WEIGHTS = {"MatMul": 1 << 16, "Gemm": 1 << 16, "LSTM": 1 << 17}
_FEWEST_PRODUCTS = 1 << 19


@dataclass(frozen=True, kw_only=True)
class QuantizeDynamic(Pass):
    """Multiply integers, with activations rounded to 8 bits by their range at run time."""

    name: ClassVar[str] = "quantize-dynamic"
    exact: ClassVar[bool] = False
    ops: ClassVar[frozenset[str] | None] = None

    operators: tuple[str, ...] = ("MatMul", "Gemm", "LSTM")
    """Of these; ``Conv`` too, which gets smaller and slower."""
    where: Literal["pays", "everywhere"] = "pays"
    """``pays``: only operators that are faster, as measured on samples; without these, as the rule above says."""
    reduce_range: bool | Literal["auto"] = "auto"
    """Whether weights have 7 bits, so that no CPU overflows; auto: where the CPU of this machine would."""
    min_sqnr: float | None = None
    """The budget, which takes samples: the least SQNR of an output in dB,"""
    max_drop: float | None = None
    """and the largest loss of accuracy (without labels: of agreement) as a share. Neither given: 22 dB or 1 %."""

    def __post_init__(self) -> None:
        if not self.operators or not set(self.operators) <= set(_OPERATORS):
            raise OptionError(
                f"{self.name}.operators are some of {', '.join(_OPERATORS)}; got {', '.join(self.operators) or 'none'}"
            )
        if self.reduce_range not in (True, False, "auto"):
            raise OptionError(f"{self.name}.reduce_range is true, false or auto, got {self.reduce_range!r}")
        if self.where not in ("pays", "everywhere"):
            raise OptionError(f"{self.name}.where is pays or everywhere, got {self.where!r}")
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise OptionError(f"{self.name}.max_drop is a share in [0, 1], got {self.max_drop}")

    @property
    def _seven_bits(self) -> bool:
        return target(detect()).saturates if self.reduce_range == "auto" else self.reduce_range

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        editor = context.editor
        budget = Budget(self.min_sqnr, self.max_drop)
        samples = judges(context, budget, self.name)
        by_rule = self.where == "pays" and samples is None
        nodes, refusals = self._plan(context, by_rule)
        if nodes and min(editor.opset(node) for node in nodes) < _OPSET:
            done = upgrade(editor, _OPSET, [label(node) for node in nodes], log)
            nodes, refusals = self._plan(context, by_rule) if done else ([], refusals)
        for name, reason in refusals:
            log.refused(name, reason)
        if not log.report().refusals and not nodes:
            log.refused("model", _nothing(editor, self.operators))
        chosen = None
        if nodes and samples is None:
            log.refused("model", UNJUDGED)
        elif nodes and samples is not None:
            chosen = self._judged(nodes, samples, budget, context)
            nodes = _kept(nodes, chosen, log)
        writer = Writer(editor, self._seven_bits)
        keys = {node: key_of(node) for node in nodes}  # for what they make is renamed when it is replaced
        for node in nodes:
            if context.gate.closed:
                break
            name, op = label(node), node.op_type
            weights = [node.inputs[at] for at in WEIGHTS_AT[op]]
            error = writer.write(node)
            for weight in weights:
                if weight is not None:
                    remove_unread(weight, editor)
            bits = 7 if self._seven_bits else 8
            log.changed(name, f"{op} in INT8, weights of {bits} bits by output: weight error {error:.1%}")
            known = chosen.facts(keys[node]) if chosen is not None else {}
            log.measured(node=name, bits=bits, weight_error=error, **known)
        return log.report()

    def _judged(self, nodes: Sequence[ir.Node], samples: Dataset, budget: Budget, context: Context) -> Spared:
        """Which of ``nodes`` are faster as integers, and harm outputs no more than the budget allows."""
        likely = None
        if self.where == "pays":
            likely = {key_of(node) for node in nodes if self._slow(node, context.editor) is None}
        cache: Arrays = {}

        def build(editor: Editor, items: Collection[str]) -> None:
            keys = {item.split(":", 1)[1] for item in items}
            writer = Writer(editor, self._seven_bits, cache)
            for node in [n for graph in editor.graphs() for n in graph if key_of(n) in keys]:
                writer.write(node)

        if context.on_progress is not None:
            context.on_progress("measuring what integers gain and harm")
        sparing = Sparing(context, build, ("INT8",), samples, budget)
        return sparing.spare([Unit.of(node) for node in nodes], likely)

    def _plan(self, context: Context, by_rule: bool) -> tuple[list[ir.Node], list[tuple[str, str]]]:
        editor = context.editor
        nodes, refusals = [], []
        for graph in editor.graphs():
            for node in graph:
                if node.domain != "" or not self.may_change(node, context):
                    continue
                if node.op_type == "GRU" and "LSTM" in self.operators:
                    refusals.append((label(node), "ONNX Runtime has no dynamically quantized GRU"))
                if node.op_type not in self.operators:
                    continue
                try:
                    _check(node, editor)
                    if by_rule and (reason := self._slow(node, editor)) is not None:
                        raise Refuse(f"{reason} (where=everywhere insists)")
                except Refuse as refusal:
                    refusals.append((label(node), str(refusal)))
                else:
                    nodes.append(node)
        mine = {(node, at) for node in nodes for at in WEIGHTS_AT[node.op_type]}
        kept = []
        for node in nodes:
            weights = (node.inputs[at] for at in WEIGHTS_AT[node.op_type])
            other = next((o for w in weights if w is not None and (o := other_reader(w, mine)) is not None), None)
            if other is None:
                kept.append(node)
            else:
                refusals.append((label(node), f"its weight is also read by {other}, which needs it in float"))
        return kept, refusals

    @staticmethod
    def _slow(node: ir.Node, editor: Editor) -> str | None:
        """Why the node would not be faster by the rule above, or ``None``."""
        op = node.op_type
        if op == "Conv":
            return None  # it never is, and was named all the same
        tensor = constant_tensor(node.inputs[1])
        assert tensor is not None
        dims = tensor.shape.numpy()
        weights, rows = tensor.size, rows_of(node.inputs[0], editor)
        if op == "LSTM":
            recurrent = constant_tensor(node.inputs[2])
            assert recurrent is not None
            weights, inputs, outputs = weights + recurrent.size, _FEWEST_INPUTS, dims[1]
        else:
            inputs, outputs = dims[::-1] if attribute(node, "transB", 0) else dims
        if outputs < _FEWEST_OUTPUTS:
            return f"with {outputs} outputs, fewer than {_FEWEST_OUTPUTS}, it would not be faster"
        if rows * weights < _FEWEST_PRODUCTS and (weights < _FEWEST_WEIGHTS[op] or inputs < _FEWEST_INPUTS):
            return f"with {weights} weights and {rows} rows that are certain, it would not be faster"
        return None


def _kept(nodes: Sequence[ir.Node], chosen: Spared, log: Log) -> list[ir.Node]:
    """The nodes to be quantized; why the others are not is logged."""
    log.measured(node="model", **chosen.overall())
    kept = []
    for node in nodes:
        key, name = key_of(node), label(node)
        if chosen.form[key] == 0:
            kept.append(node)
        else:
            log.refused(name, chosen.reasons[key])
            log.measured(node=name, **chosen.facts(key))
    return kept


def _check(node: ir.Node, editor: Editor) -> None:
    """Raises ``Refuse`` if the node cannot be quantized."""
    if node.op_type in ("MatMul", "Gemm"):
        linear_node(node, editor)
    else:
        _check_weights(node, editor)


def rows_of(x: ir.Value | None, editor: Editor) -> int:
    """How many vectors ``x`` holds at least: the product of its dims but for the last; dynamic ones count as 1."""
    return int(np.prod([d if isinstance(d, int) else 1 for d in (editor.shape(x) or ())[:-1]], dtype=np.int64))


def _check_weights(node: ir.Node, editor: Editor) -> None:
    for at in WEIGHTS_AT[node.op_type]:
        weight = node.inputs[at]
        tensor = constant_tensor(weight)
        if weight is None or tensor is None:
            raise Refuse("its weight is no constant, or it is quantized already")
        check_weight(weight, tensor, 3 if node.op_type == "LSTM" else None, editor)
    if node.op_type == "LSTM" and attribute(node, "layout", 0) != 0:
        raise Refuse("its batch comes first (layout=1), which DynamicQuantizeLSTM has not")


def _nothing(editor: Editor, operators: tuple[str, ...]) -> str:
    integer = {"MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "DynamicQuantizeLSTM", "MatMulNBits"}
    if found := sorted(integer & set(editor.op_types())):
        return f"it is quantized already ({', '.join(found)}); run dequantize first"
    return f"it has no {' or '.join(operators)} that may be changed"
