"""Store weights in 4 or 8 bits, in blocks that have a scale each; compute with activations as they are.

::

    y = MatMul(x, w)      →      y = com.microsoft.MatMulNBits(x, q, scale, zero_point)
    y = Gather(w, i)      →      y = com.microsoft.GatherBlockQuantized(q, i, scale, zero_point)

    y = Conv(x, w)        →      y = Conv(x, (Cast(q) − zero_point) · scale)         also LSTM, GRU and RNN

A matrix of ``k`` inputs takes ``bits + 32 / block_size + …`` bits an element: 5.1 for 4 bits in blocks of 32, with zero
points. How it is rounded is the method:

=========  ===================================================  ===========================  ==================
method     idea                                                 output error of a layer      of the model
=========  ===================================================  ===========================  ==================
rtn        each element to the nearest                          1                            1
hqq        grids that let few large errors be                   0.97                         0.95
awq        columns that meet large inputs are enlarged          0.86                         0.79
gptq       columns to come make up for each error               0.59                         0.55
=========  ===================================================  ===========================  ==================

(relative to rtn: a trained sentence encoder, MiniLM-L6, 36 matrices, 4 bits in blocks of 32, held-out texts.) ``gptq``
and ``awq`` need calibration data. Calibrating
each layer on a model whose earlier layers are quantized already did not pay there: 1 % worse, 24 runs over the data.

``accuracy_level`` 4 is the fast kernel, which rounds activations to 8 bits block by block: time of float / of 4
bits / of 8 bits, ONNX Runtime 1.32, one thread of a CPU with AVX512-VNNI, 768 × 768: 1 / 0.57 / 0.54 at one row, 1 /
0.88 / 0.78 at 128. Level 0 is slower than float: 1.06 to 1.5 for 4 bits, and up to 20 for 8. Weights of fewer than
2¹⁷ elements, or fewer than 256 inputs, are not faster in this form (1.0 to 1.9) and stay in float.

Convolutions and recurrent nets have no such kernel: their weights, with one scale a filter or gate, are only stored in
few bits, and ONNX Runtime makes floats of them once, when it loads the model, so that its speed stays the same
(measured: 1.00). It does so for Cast and Mul; a DequantizeLinear it computes anew in every run, which costs a Conv 1.3
times the time and an LSTM, GRU or RNN 1.06 (32 steps) to 1.9 (one step). Recurrent weights have 8 bits at least.

Given samples, the outputs are judged, and the layers that harm most get 8 bits instead of 4, or stay in float, until
the budget holds (see ``_sparing``). Without samples nothing is judged, which the pass says.

Sources: see the modules ``_blockwise``, ``_gptq`` and ``_awq``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar, Literal

import onnx_ir as ir

from onnxopt.data import Dataset
from onnxopt.errors import OptionError
from onnxopt.graph import Editor, attribute, constant_tensor, label
from onnxopt.pass_base import Context, Log, Pass, Refuse, Report
from onnxopt.passes.quantize._blockwise import Form
from onnxopt.passes.quantize._budget import UNJUDGED, Budget, judges
from onnxopt.passes.quantize._contrib import other_reader, remove_unread, upgrade
from onnxopt.passes.quantize._linear_node import check_weight, linear_node
from onnxopt.passes.quantize._rounding import RECURRENT, Method, Rounded, Task, round_weights
from onnxopt.passes.quantize._sparing import Spared, Sparing, Unit, key_of
from onnxopt.passes.quantize._weight_forms import Writer

_OPERATORS = ("MatMul", "Gemm", "Conv", "Gather", *RECURRENT)
_SHORT = 256
"""Rows of fewer elements make the kernel slower than float: 1.2 times at 128."""
_FEW = 1 << 12
"""Fewer elements are not worth storing otherwise, where that is all that is gained."""


@dataclass(frozen=True, kw_only=True)
class QuantizeWeights(Pass):
    """Store weights in 4 or 8 bits, in blocks that have a scale each."""

    name: ClassVar[str] = "quantize-weights"
    exact: ClassVar[bool] = False
    ops: ClassVar[frozenset[str] | None] = None

    bits: int = 4
    """4 or 8."""
    block_size: int = 32
    """How many elements share a scale: 16, 32, 64, 128 or 256; or 0, a whole row, with form ``dequantize-linear``."""
    symmetric: bool = False
    """Whether the zero point is in the middle; zero points cost 1 / (8 · block_size) of a weight and no time."""
    method: Method = "auto"
    """``rtn``, ``hqq``, ``awq``, ``gptq``; ``auto``: ``gptq`` where there are data, else ``hqq`` (8 bits: ``rtn``)."""
    form: Literal["matmulnbits", "dequantize-linear"] = "matmulnbits"
    """``dequantize-linear``: standard operators only, which takes opset 21 for blocks and for 4 bits, and makes Conv,
    LSTM, GRU and RNN slower (see above)."""
    accuracy_level: int = 4
    """Of MatMulNBits: 4 computes with 8-bit activations, which is the fast kernel; 0 with float ones."""
    operators: tuple[str, ...] = ("MatMul", "Gemm", "LSTM", "GRU", "RNN")
    """Of these; also ``Gather``, for embeddings, and ``Conv``."""
    min_elements: int = 1 << 17
    """Smaller matrices, and those with short rows, stay in float, which is faster; 0: quantize all."""
    min_sqnr: float | None = None
    """The budget, which takes samples: the least SQNR of an output in dB,"""
    max_drop: float | None = None
    """and the largest loss of accuracy (without labels: of agreement) as a share. Neither given: 22 dB or 1 %."""

    def __post_init__(self) -> None:
        def check(option: str, allowed: tuple[object, ...]) -> None:
            value = getattr(self, option)
            if value not in allowed:
                wanted = ", ".join(map(str, allowed))
                raise OptionError(f"{self.name}.{option} is one of {wanted}; got {value!r}")

        check("bits", (4, 8))
        check("block_size", (0, 16, 32, 64, 128, 256))
        check("method", ("auto", "rtn", "hqq", "awq", "gptq"))
        check("form", ("matmulnbits", "dequantize-linear"))
        check("accuracy_level", (0, 4))
        if self.block_size == 0 and self.form == "matmulnbits":
            raise OptionError(f"{self.name}.block_size 0 takes form=dequantize-linear; MatMulNBits has blocks of 16 up")
        if not self.operators or not set(self.operators) <= set(_OPERATORS):
            raise OptionError(
                f"{self.name}.operators are some of {', '.join(_OPERATORS)}; got {', '.join(self.operators) or 'none'}"
            )
        if self.min_elements < 0:
            raise OptionError(f"{self.name}.min_elements is a number of elements, got {self.min_elements}")
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise OptionError(f"{self.name}.max_drop is a share in [0, 1], got {self.max_drop}")

    def run(self, context: Context) -> Report:
        if self.method in ("gptq", "awq") and context.data is None:
            raise OptionError(
                f"{self.name}.method {self.method} needs calibration data: give data= (--data), or take method=hqq"
            )
        log = Log(self, context)
        budget = Budget(self.min_sqnr, self.max_drop)
        samples = judges(context, budget, self.name)
        tasks, refusals = self._plan(context)
        if upgraded := self._upgrade(tasks, context.editor, log):
            tasks, refusals = self._plan(context)
        elif upgraded is None:
            tasks = []
        for node, reason in refusals:
            log.refused(node, reason)
        if not tasks and not refusals and not log.report().refusals:
            log.refused("model", self._nothing(context.editor))

        @cache
        def rounded(bits: int) -> dict[tuple[str, int], Rounded]:
            wide = bits > self.bits  # where rounding to the nearest is good enough
            these = [replace(task, form=replace(task.form, bits=max(bits, task.form.bits))) for task in tasks]
            made = round_weights(these, "rtn" if wide else self.method, Context(context.editor) if wide else context)
            return {(key_of(task.node), task.at): made[task.key] for task in these}

        chosen = None
        if tasks and samples is None:
            log.refused("model", UNJUDGED)
        elif tasks and samples is not None:
            chosen = self._judged(tasks, rounded, samples, budget, context)
            log.measured(node="model", **chosen.overall())
        self._write_all(tasks, rounded, chosen, context, log)
        return log.report()

    def _write_all(
        self, tasks: Sequence[Task], rounded: Callable[[int], dict[tuple[str, int], Rounded]], chosen: Spared | None,
        context: Context, log: Log,
    ) -> None:  # fmt: skip
        writer = Writer(context.editor)
        keys = {task.node: key_of(task.node) for task in tasks}  # for what they make is renamed when it is replaced
        for task in tasks:
            if context.gate.closed:
                break
            name = label(task.node)
            bits, why, facts = self.bits, "", {}
            if chosen is not None:
                unit = next(unit for unit in chosen.units if task.node in unit.nodes)
                facts, why = chosen.facts(unit.key), chosen.reasons.get(unit.key, "")
                if chosen.form[unit.key] == len(chosen.forms):
                    log.refused(name, why)
                    log.measured(node=name, **facts)
                    continue
                bits = _bits(chosen.forms[chosen.form[unit.key]])
            found = rounded(bits)[keys[task.node], task.at]
            text = self._describe(task, found, context)
            self._write(task, found, writer)
            remove_unread(task.weight, context.editor)
            log.changed(name, f"{text}; {why}" if why else text)
            log.measured(
                node=name, bits=found.blocks.form.bits, block=task.form.block_size, method=found.method,
                weight_error=found.weight_error, output_error=found.output_error, **facts,
            )  # fmt: skip

    def _judged(
        self, tasks: Sequence[Task], rounded: Callable[[int], dict[tuple[str, int], Rounded]], samples: Dataset,
        budget: Budget, context: Context,
    ) -> Spared:  # fmt: skip
        """In how many bits each weight may be, so that the budget holds."""

        units = _units(tasks)
        members = {unit.key: [key_of(node) for node in unit.nodes] for unit in units}

        def build(editor: Editor, items: Collection[str]) -> None:
            forms = [item.split(":", 1) for item in items]
            bits = {member: _bits(form) for form, key in forms for member in members[key]}
            writer = Writer(editor)
            for node in [n for graph in editor.graphs() for n in graph if key_of(n) in bits]:
                found = rounded(bits[key_of(node)])
                for task in self._tasks(node, editor):
                    if (key_of(node), task.at) in found:
                        self._write(task, found[key_of(node), task.at], writer)

        if context.on_progress is not None:
            context.on_progress("measuring what rounding harms")
        forms = ("4 bits", "8 bits") if self.bits == 4 else ("8 bits",)
        sparing = Sparing(context, build, forms, samples, budget)
        return sparing.spare(units)

    def _plan(self, context: Context) -> tuple[list[Task], list[tuple[str, str]]]:
        """What can be quantized, in the order of the graph, and why the rest cannot."""
        editor = context.editor
        tasks, refusals = [], []
        for graph in editor.graphs():
            for node in graph:
                if node.op_type not in self.operators or node.domain != "" or not self.may_change(node, context):
                    continue
                try:
                    tasks += self._tasks(node, editor)
                except Refuse as refusal:
                    refusals.append((label(node), str(refusal)))
        mine = {(task.node, task.at) for task in tasks}
        kept = []
        for task in tasks:
            other = other_reader(task.weight, mine)
            if other is None:
                kept.append(task)
            else:
                refusals.append((label(task.node), f"its weight is also read by {other}, which needs it in float"))
        return kept, refusals

    def _tasks(self, node: ir.Node, editor: Editor) -> list[Task]:
        """Raises ``Refuse`` if the weights of ``node`` are to stay as they are."""
        form = Form(self.bits, self.block_size, self.symmetric)
        if node.op_type in ("MatMul", "Gemm"):
            return [self._product(node, form, editor)]
        found = []
        for at in _WEIGHTS_AT.get(node.op_type, (1,)):
            weight = node.inputs[at]
            tensor = constant_tensor(weight)
            if weight is None or tensor is None:
                raise Refuse("its weight is no constant")
            check_weight(weight, tensor, {"Conv": None, "Gather": 2}.get(node.op_type, 3), editor)
            if self.min_elements and tensor.size < (self.min_elements if node.op_type == "Gather" else _FEW):
                raise Refuse(f"its weight {weight.name} has {tensor.size} elements, too few to pay (min_elements)")
            if node.op_type == "Gather":
                self._check_table(node, tensor)
                own = form
            else:
                own = Form(8 if node.op_type in RECURRENT else self.bits, 0, self.symmetric)
            found.append(Task(node, weight, own, at=at))
        return found

    def _product(self, node: ir.Node, form: Form, editor: Editor) -> Task:
        linear = linear_node(node, editor)
        tensor = constant_tensor(linear.weight)
        assert tensor is not None
        if self.min_elements and tensor.size < self.min_elements:
            raise Refuse(f"its weight has {tensor.size} elements, fewer than {self.min_elements} (min_elements)")
        if self.min_elements and self.form == "matmulnbits":
            inputs = tensor.shape.numpy()[1 if linear.by_rows else 0]
            if inputs < _SHORT:
                raise Refuse(f"with {inputs} inputs, fewer than {_SHORT}, it would be slower (min_elements=0 insists)")
        return Task(node, linear.weight, form, linear)

    def _check_table(self, node: ir.Node, tensor: ir.TensorProtocol) -> None:
        if self.form != "matmulnbits" or not self.block_size:
            raise Refuse("ONNX Runtime would dequantize the whole table at every run; take form=matmulnbits")
        if attribute(node, "axis", 0) != 0:
            raise Refuse("it gathers along another axis than the first")
        width = tensor.shape.numpy()[1]
        if width % self.block_size:
            raise Refuse(f"its rows of {width} cannot be cut into blocks of {self.block_size}")

    def _upgrade(self, tasks: list[Task], editor: Editor, log: Log) -> bool | None:
        """Convert the model to the opset that the form takes; ``None``, with refusals, if that fails."""
        by_cast = self.form == "matmulnbits"
        stored = [task for task in tasks if task.linear is None and task.node.op_type != "Gather"]
        waiting = [task for task in stored if task.form.bits == 4] if by_cast else tasks
        if not waiting:
            return False
        blocks = any(task.form.block_size and task.linear is not None for task in waiting)
        wanted = 21 if blocks or any(task.form.bits == 4 for task in waiting) else 13
        if min(editor.opset(task.node) for task in tasks) >= wanted:
            return False
        return upgrade(editor, wanted, [label(task.node) for task in tasks], log)

    def _write(self, task: Task, found: Rounded, writer: Writer) -> None:
        if task.linear is None:
            if task.node.op_type == "Gather":
                writer.rows(task.node, task.weight, found.blocks)
            else:
                tensor = constant_tensor(task.weight)
                assert tensor is not None
                shape = tuple(tensor.shape.numpy())
                writer.stored(task.node, task.at, shape, found.blocks, by_cast=self.form == "matmulnbits")
            return
        x = task.linear.x if found.scales is None else writer.scaled_input(task.linear, found.scales)
        if self.form == "matmulnbits":
            writer.matmul_nbits(task.linear, x, found.blocks, self.accuracy_level)
        else:
            writer.dequantized(task.linear, x, found.blocks)

    def _describe(self, task: Task, found: Rounded, context: Context) -> str:
        cut = f"blocks of {task.form.block_size}" if task.form.block_size else "one scale a row"
        bits = found.blocks.form.bits
        text = (
            f"weight {task.weight.name} in {bits} bits, {cut}, by {found.method}: weight error {found.weight_error:.1%}"
        )
        if found.output_error is not None:
            return f"{text}, output error {found.output_error:.1%}"
        if context.data is not None and task.linear is not None and bits == self.bits:
            return f"{text}; no statistics of its input {task.linear.x.name}, so its data were not used"
        return text

    def _nothing(self, editor: Editor) -> str:
        quantized = sorted(_QUANTIZED & set(editor.op_types()))
        if quantized:
            return f"it is quantized already ({', '.join(quantized)}); run dequantize first"
        return f"it has no {' or '.join(self.operators)} that may be changed"


def _bits(form: str) -> int:
    return int(form[0])


def _units(tasks: Sequence[Task]) -> list[Unit]:
    """Nodes that share a weight must be rounded alike, lest it be stored twice."""
    found: list[list[Task]] = []
    for task in tasks:
        mine = [each for each in found if any(t.node is task.node or t.weight is task.weight for t in each)]
        found = [each for each in found if each not in mine]
        found.append([*(t for each in mine for t in each), task])
    return [Unit.of(*dict.fromkeys(task.node for task in each)) for each in found]


_WEIGHTS_AT = {"Gather": (0,), **dict.fromkeys(RECURRENT, (1, 2))}
_QUANTIZED = {
    "MatMulNBits", "MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul", "QGemm", "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat", "DequantizeLinear", "QAttention", "GatherBlockQuantized",
}  # fmt: skip
