"""What each input of a node is to an integer kernel: an activation, a weight with its channels, or a bias.

A MatMul whose product only an Add of a constant vector reads is one layer with it, if the runtime will make a
Gemm of both (matrices, or shapes known in full): the Add is its bias, and unless that is an integer, the Gemm
is computed in float. A Relu or Clip behind a layer belongs to it where the kernel takes it in.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, sole_reader
from onnxopt.pass_base import Refuse
from onnxopt.passes.cleanup._reductions import keeps_dims, reduced_axes
from onnxopt.passes.quantize._hard import knee
from onnxopt.passes.quantize._targets import Operator

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators with a weight and the multiplications that integers make faster."""

DATA_INPUTS = {"Where": (1, 2)}
"""Which inputs are data, where it is not the first (operators that move elements) or all."""


@dataclass(frozen=True)
class Weight:
    """A constant operand with one scale an output channel."""

    value: ir.Value
    at: int
    """Which input of the node it is."""
    axis: int | None
    """The axis of the output channels, ``None`` for one scale in all."""


@dataclass(frozen=True)
class Bias:
    """A constant that is added to each output channel."""

    value: ir.Value
    node: ir.Node
    """Who reads it: the layer itself, or the Add behind it."""
    at: int


@dataclass
class Roles:
    """A node as an integer kernel sees it."""

    node: ir.Node
    operator: Operator
    inputs: list[int] = field(default_factory=list)
    """The inputs that are activations."""
    constants: list[int] = field(default_factory=list)
    """The inputs that are constants, on the grid of activations."""
    weight: Weight | None = None
    bias: Bias | None = None
    taken: list[ir.Node] = field(default_factory=list)
    """The nodes behind it that belong to it, in order: an Add of the bias, a Relu or Clip."""
    limits: tuple[float, float] = (-np.inf, np.inf)
    """The limits of the Relu or Clip that it takes in."""

    knee: float | None = None
    """Where a HardSigmoid leaves 0, as a distance from 0, if it is to be a Clip of integers."""

    @property
    def output(self) -> ir.Value:
        """What the kernel computes."""
        return (self.taken[-1] if self.taken else self.node).outputs[0]

    @property
    def moves(self) -> bool:
        """Whether it only moves or selects elements."""
        return self.operator.output == "same"

    def give_back(self) -> None:
        """Leave the Relu or Clip behind it to itself."""
        self.taken = [node for node in self.taken if node.op_type == "Add"]
        self.limits = (-np.inf, np.inf)


def roles(node: ir.Node, operator: Operator, editor: Editor, per_channel: bool) -> Roles:
    """The roles of the inputs of ``node``. Raises ``Refuse`` if no integer kernel can take them."""
    found = Roles(node, operator)
    per_channel = per_channel and operator.per_channel
    if node.op_type in ("Conv", "ConvTranspose"):
        _convolution(found, editor, per_channel)
    elif node.op_type == "Gemm":
        _gemm(found, editor, per_channel)
    elif node.op_type == "MatMul":
        _matmul(found, editor, per_channel)
    elif operator.by_clip:
        found.inputs, found.knee = [0], knee(node, operator)
    elif operator.as_pool:
        rank, axes = editor.rank(node.inputs[0]), reduced_axes(node, editor)
        if rank is None or rank < 3 or axes != tuple(range(2 - rank, 0)) or not keeps_dims(node):
            raise Refuse("it does not reduce just the spatial axes, and keep them, as the integer kernel does")
        found.inputs = [0]
    elif operator.output == "same" and node.op_type != "Concat":
        found.inputs = [0]
        if any(extra.uses() or extra.is_graph_output() for extra in node.outputs[1:]) and node.op_type != "Split":
            raise Refuse("its second output is read")
    else:
        data = DATA_INPUTS.get(node.op_type, range(len(node.inputs)))
        _operands(found, data, editor)
    _take(found, editor)
    return found


def _convolution(found: Roles, editor: Editor, per_channel: bool) -> None:
    node = found.node
    transposed = node.op_type == "ConvTranspose"
    if transposed and attribute(node, "group", 1) != 1:
        per_channel = False  # the groups would share their scales
    found.inputs = [0]
    found.weight = _weight(node, 1, (1 if transposed else 0) if per_channel else None, editor)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        found.bias = _bias(node, 2, editor)


def _gemm(found: Roles, editor: Editor, per_channel: bool) -> None:
    node = found.node
    if editor.constant(node.inputs[0]) is not None:
        raise Refuse("its first operand is a constant")
    found.inputs = [0]
    if editor.constant(node.inputs[1]) is None:
        found.inputs.append(1)
    else:
        axis = 0 if attribute(node, "transB", 0) else 1
        found.weight = _weight(node, 1, axis if per_channel else None, editor)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        if found.weight is None:
            raise Refuse("it adds to a product of two activations")
        found.bias = _bias(node, 2, editor)


def _matmul(found: Roles, editor: Editor, per_channel: bool) -> None:
    node = found.node
    if min(editor.rank(value) or 2 for value in node.inputs) < 2:
        raise Refuse("it multiplies by a vector, for which there is no integer kernel")
    if editor.constant(node.inputs[1]) is None:
        _operands(found, range(2), editor)
        return
    if editor.constant(node.inputs[0]) is not None:
        raise Refuse("both operands are constants: fold-constants computes it once")
    found.inputs = [0]
    rank = editor.rank(node.inputs[1])
    found.weight = _weight(node, 1, 1 if per_channel and rank == 2 else None, editor)
    if editor.rank(node.inputs[0]) != 2 and editor.static_shape(node.inputs[0]) is None:
        return
    add = sole_reader(node.outputs[0])
    if add is not None and rank == 2 and add.op_type == "Add" and add.domain == "" and add.graph is node.graph:
        at = 1 if add.inputs[0] is node.outputs[0] else 0
        added = editor.constant(add.inputs[at])
        shape = editor.shape(node.inputs[1])
        if added is not None and shape is not None and added.shape == (shape[1],) and np.isfinite(added).all():
            value = add.inputs[at]
            assert value is not None
            found.bias = Bias(value, add, at)
            found.taken.append(add)


def _operands(found: Roles, data: range | tuple[int, ...], editor: Editor) -> None:
    for at in data:
        value = found.node.inputs[at]
        if value is None:
            continue
        if (array := editor.constant(value)) is None:
            found.inputs.append(at)
        elif not np.isfinite(array).all():
            raise Refuse(f"the constant {value.name} holds NaN or infinity")
        else:
            found.constants.append(at)
    if not found.inputs:
        raise Refuse("its operands are constants: fold-constants computes it once")
    if found.constants and not found.operator.constants:
        raise Refuse("an operand is a constant")


def _weight(node: ir.Node, at: int, axis: int | None, editor: Editor) -> Weight:
    value = node.inputs[at]
    array = editor.constant(value)
    assert value is not None
    if array is None:
        producer = value.producer()
        if producer is not None and producer.op_type == "DequantizeLinear":
            raise Refuse(f"its weight {value.name} is quantized already")
        raise Refuse(f"its weight {value.name} is computed at run time")
    if array.dtype != np.float32:
        raise Refuse(f"its weight {value.name} is {array.dtype}, not float32")
    if not np.isfinite(array).all():
        raise Refuse(f"its weight {value.name} holds NaN or infinity")
    return Weight(value, at, axis)


def _bias(node: ir.Node, at: int, editor: Editor) -> Bias:
    value = node.inputs[at]
    array = editor.constant(value)
    assert value is not None
    if array is None:
        raise Refuse(f"its bias {value.name} is computed at run time")
    if array.ndim == 0 or array.size != array.shape[-1]:
        raise Refuse(f"its bias {value.name} of shape {list(array.shape)} is not one number an output channel")
    if not np.isfinite(array).all():
        raise Refuse(f"its bias {value.name} holds NaN or infinity")
    return Bias(value, node, at)


def _take(found: Roles, editor: Editor) -> None:
    """Add the Relu or Clip right behind, if the kernel takes it in."""
    reader = sole_reader(found.output)
    if reader is None or reader.graph is not found.node.graph or reader.domain != "":
        return
    if reader.op_type not in found.operator.takes or reader.inputs[0] is not found.output:
        return
    if (limits := _clip_limits(reader, editor)) is not None:
        found.taken.append(reader)
        found.limits = limits


def _clip_limits(node: ir.Node, editor: Editor) -> tuple[float, float] | None:
    """The limits of a Relu or Clip if they are constant and 0 lies between them."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    limits = [-np.inf, np.inf]
    for at in (1, 2):
        if len(node.inputs) > at and node.inputs[at] is not None:
            array = editor.constant(node.inputs[at])
            if array is None or array.size != 1:
                return None
            limits[at - 1] = float(array.reshape(-1)[0])
    if editor.opset(node) < 11:
        limits = [float(attribute(node, "min", -np.inf)), float(attribute(node, "max", np.inf))]
    return (limits[0], limits[1]) if limits[0] <= 0.0 <= limits[1] else None
