"""Store weights in 4 or 8 bits, in blocks that have a scale each; compute with activations as they are.

::

    y = MatMul(x, w)      →      y = com.microsoft.MatMulNBits(x, q, scale, zero_point)
    y = Gather(w, i)      →      y = com.microsoft.GatherBlockQuantized(q, i, scale, zero_point)

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

Sources: see the modules ``_blockwise``, ``_gptq`` and ``_awq``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import onnx_ir as ir

from onnxopt.errors import OptionError
from onnxopt.graph import Editor, attribute, constant_tensor, label
from onnxopt.pass_base import Context, Log, Pass, Refuse, Report
from onnxopt.passes.quantize._blockwise import Form
from onnxopt.passes.quantize._contrib import other_reader, remove_unread, upgrade
from onnxopt.passes.quantize._linear_node import check_weight, linear_node
from onnxopt.passes.quantize._rounding import Method, Rounded, Task, round_weights
from onnxopt.passes.quantize._weight_forms import Writer

_OPERATORS = ("MatMul", "Gemm", "Conv", "Gather")
_SHORT = 256
"""Rows of fewer elements make the kernel slower than float: 1.2 times at 128."""


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
    """``dequantize-linear``: standard operators only, which takes opset 21 for blocks and for 4 bits."""
    accuracy_level: int = 4
    """Of MatMulNBits: 4 computes with 8-bit activations, which is the fast kernel; 0 with float ones."""
    operators: tuple[str, ...] = ("MatMul", "Gemm")
    """Of these; also ``Gather``, for embeddings, and ``Conv``, which gets smaller, and 1.05 to 1.4 times slower."""
    min_elements: int = 1 << 17
    """Smaller weights, and those with short rows, stay in float, which is faster; 0: quantize all."""

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

    def run(self, context: Context) -> Report:
        if self.method in ("gptq", "awq") and context.data is None:
            raise OptionError(
                f"{self.name}.method {self.method} needs calibration data: give data= (--data), or take method=hqq"
            )
        log = Log(self, context)
        tasks, refusals = self._plan(context)
        if upgraded := self._upgrade(tasks, context.editor, log):
            tasks, refusals = self._plan(context)
        elif upgraded is None:
            tasks = []
        for node, reason in refusals:
            log.refused(node, reason)
        if not tasks and not refusals and not log.report().refusals:
            log.refused("model", self._nothing(context.editor))
        rounded = round_weights(tasks, self.method, context)
        writer = Writer(context.editor)
        for task in tasks:
            if context.gate.closed:
                break
            name = label(task.node)
            found = rounded[task.key]
            text = self._describe(task, found, context)
            self._write(task, found, writer)
            remove_unread(task.weight, context.editor)
            log.changed(name, text)
            log.measured(
                node=name, bits=self.bits, block=task.form.block_size, method=found.method,
                weight_error=found.weight_error, output_error=found.output_error,
            )  # fmt: skip
        return log.report()

    def _plan(self, context: Context) -> tuple[list[Task], list[tuple[str, str]]]:
        """What can be quantized, in the order of the graph, and why the rest cannot."""
        editor = context.editor
        tasks, refusals = [], []
        for graph in editor.graphs():
            for node in graph:
                if node.op_type not in self.operators or node.domain != "" or not self.may_change(node, context):
                    continue
                try:
                    tasks.append(self._task(node, editor))
                except Refuse as refusal:
                    refusals.append((label(node), str(refusal)))
        mine = {(task.node, _WEIGHT_AT[task.node.op_type]) for task in tasks}
        kept = []
        for task in tasks:
            other = other_reader(task.weight, mine)
            if other is None:
                kept.append(task)
            else:
                refusals.append((label(task.node), f"its weight is also read by {other}, which needs it in float"))
        return kept, refusals

    def _task(self, node: ir.Node, editor: Editor) -> Task:
        """Raises ``Refuse`` if the weight of ``node`` is to stay as it is."""
        form = Form(self.bits, self.block_size, self.symmetric)
        if node.op_type in ("MatMul", "Gemm"):
            linear = linear_node(node, editor)
            task = Task(node, linear.weight, form, linear)
        else:
            weight = node.inputs[_WEIGHT_AT[node.op_type]]
            tensor = constant_tensor(weight)
            if weight is None or tensor is None:
                raise Refuse("its weight is no constant")
            check_weight(weight, tensor, None if node.op_type == "Conv" else 2, editor)
            task = Task(node, weight, form if node.op_type == "Gather" else replace(form, block_size=0))
        tensor = constant_tensor(task.weight)
        assert tensor is not None
        if self.min_elements and tensor.size < self.min_elements:
            raise Refuse(f"its weight has {tensor.size} elements, fewer than {self.min_elements} (min_elements)")
        if node.op_type == "Gather":
            self._check_table(node, tensor)
        if self.min_elements and task.linear is not None and self.form == "matmulnbits":
            inputs = tensor.shape.numpy()[1 if task.linear.by_rows else 0]
            if inputs < _SHORT:
                raise Refuse(f"with {inputs} inputs, fewer than {_SHORT}, it would be slower (min_elements=0 insists)")
        return task

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
        if not any(task.node.op_type == "Conv" or self.form == "dequantize-linear" for task in tasks):
            return False
        blocks = any(task.form.block_size and task.linear is not None for task in tasks)
        wanted = 21 if self.bits == 4 or blocks else 13
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
                writer.filters(task.node, task.weight, tuple(tensor.shape.numpy()), found.blocks)
            return
        x = task.linear.x if found.scales is None else writer.scaled_input(task.linear, found.scales)
        if self.form == "matmulnbits":
            writer.matmul_nbits(task.linear, x, found.blocks, self.accuracy_level)
        else:
            writer.dequantized(task.linear, x, found.blocks)

    def _describe(self, task: Task, found: Rounded, context: Context) -> str:
        cut = f"blocks of {task.form.block_size}" if task.form.block_size else "one scale a row"
        text = f"weight in {self.bits} bits, {cut}, by {found.method}: weight error {found.weight_error:.1%}"
        if found.output_error is not None:
            return f"{text}, output error {found.output_error:.1%}"
        if context.data is not None and task.linear is not None:
            return f"{text}; no statistics of its input {task.linear.x.name}, so its data were not used"
        return text

    def _nothing(self, editor: Editor) -> str:
        quantized = sorted(_QUANTIZED & set(editor.op_types()))
        if quantized:
            return f"it is quantized already ({', '.join(quantized)}); run dequantize first"
        return f"it has no {' or '.join(self.operators)} that may be changed"


_WEIGHT_AT = {"MatMul": 1, "Gemm": 1, "Conv": 1, "Gather": 0}
_QUANTIZED = {
    "MatMulNBits", "MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul", "QGemm", "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat", "DequantizeLinear", "QAttention", "GatherBlockQuantized",
}  # fmt: skip
