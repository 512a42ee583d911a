"""Operators that work on each slice by itself, and those that take something over all of them."""

from __future__ import annotations

import onnx_ir as ir

from onnxopt.channels._axes import SINGLE, Axes, Axis, Fixed, Unfollowed, aligned, ints, positive, said
from onnxopt.channels._sizes import pin
from onnxopt.graph import attribute

ELEMENTWISE = frozenset(
    """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast
    CastLike Ceil Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid
    HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow
    Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh
    ThresholdedRelu Where Xor BiasGelu FastGelu QuickGelu
    """.split()  # noqa: SIM905
)
POOLS = frozenset(
    """
    AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool
    """.split()  # noqa: SIM905
)
REDUCTIONS = frozenset(
    """
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare
    """.split()  # noqa: SIM905
)
OVER_AXIS = frozenset(
    """
    ArgMax ArgMin CumSum Hardmax LogSoftmax LpNormalization Softmax TopK
    """.split()  # noqa: SIM905
)


def elementwise(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """All operands have the slices that the output has."""
    if attribute(node, "broadcast", 0):
        raise Unfollowed("it broadcasts as up to opset 6")
    operands = [axes.of(value) for value in node.inputs if value is not None]
    if node.op_type == "CastLike":  # which takes no more than the type of the other
        return operands[:1]
    return [[axes.tie(*parts) for parts in zip(*aligned(operands), strict=True)]]


def dropout(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """Data and mask have the slices of the input."""
    if len(node.inputs) > 2 and axes.editor.scalar(node.inputs[2]) != 0:
        raise Unfollowed("it drops at random")
    return [axes.of(node.inputs[0])] * len(node.outputs)


def pool(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """Samples and channels stay, and the rest is space."""
    x = axes.of(node.inputs[0])
    if len(node.outputs) > 1:
        axes.freeze(x[1], said(node, "it counts places over all channels"))
    return [[*x[:2], *spatial(node, x[2:], axes)]] * len(node.outputs)


def spatial(node: ir.Node, found: list[Axis], axes: Axes) -> list[Axis]:
    """The axes that a window slides along: nothing can be removed from them."""
    why = said(node, "a window slides along this axis")
    for axis in found:
        axes.freeze(axis, why)
    return [Fixed(why)] * len(found)


def reduction(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """Slices of an axis that is reduced go into one."""
    x = axes.of(node.inputs[0])
    given = attribute(node, "axes")
    over = ints(axes, node, 1) if given is None else [int(axis) for axis in given]
    if not over:
        over = [] if attribute(node, "noop_with_empty_axes", 0) else list(range(len(x)))
    reduced = {positive(axis, len(x)) for axis in over}
    for axis in reduced:
        axes.blur(x[axis])
    if attribute(node, "keepdims", 1):
        return [[SINGLE if at in reduced else axis for at, axis in enumerate(x)]]
    return [[axis for at, axis in enumerate(x) if at not in reduced]]


def over_axis(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """What each slice becomes depends on all others, so that none can be removed."""
    x = list(axes.of(node.inputs[0]))
    opset = axes.editor.opset(node)
    if node.op_type == "CumSum":
        found = ints(axes, node, 1)
        over = [found[0]] if found else [0]
    else:
        flattens = opset < 13 and node.op_type in ("Softmax", "LogSoftmax", "Hardmax")
        first = attribute(node, "axis", 0 if node.op_type.startswith("Arg") else 1 if flattens else -1)
        over = list(range(positive(first, len(x)), len(x))) if flattens else [first]
    why = said(node, "it compares all slices of this axis")
    for at in over:
        axes.freeze(x[at], why)
        x[at] = SINGLE if node.op_type.startswith("Arg") else Fixed(why)
    if node.op_type.startswith("Arg") and not attribute(node, "keepdims", 1):
        del x[over[0]]
    return [x] * len(node.outputs)


def local_response(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """Neighbouring channels have a part in each other."""
    x = axes.of(node.inputs[0])
    axes.blur(x[1])
    return [x]


def shape(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """Sizes are read, not slices. What is computed of them at run time goes on with those of before."""
    first, last = attribute(node, "start", 0), attribute(node, "end")
    x = dict(enumerate(axes.of(node.inputs[0])[first:last]))
    pin(node, x, axes)
    return [[Fixed("it counts axes")]]


def size(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """The number of all elements changes with each slice."""
    for axis in axes.of(node.inputs[0]):
        axes.freeze(axis, said(node, "it counts the elements"))
    return [[]]


def dequantize(node: ir.Node, axes: Axes) -> list[list[Axis]]:
    """QuantizeLinear and DequantizeLinear: scales go along one axis, if there are several."""
    x = axes.of(node.inputs[0])
    if attribute(node, "block_size", 0):
        raise Unfollowed("its scales belong to blocks")
    for parameter in node.inputs[1:]:
        if parameter is None:
            continue
        scale = axes.of(parameter)
        if len(scale) == 1 and scale[0] is not SINGLE:
            axes.tie(x[attribute(node, "axis", 1)], scale[0])
    return [x]
