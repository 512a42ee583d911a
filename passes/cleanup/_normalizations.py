"""What the fusions of normalizations share: the forms that exporters write, and their parameters.

All normalise as ``(x − mean) / √(variance + ε) · scale + bias``, or without the mean, over some axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.graph import constant_tensor
from onnxopt.pass_base import Refuse
from onnxopt.passes.cleanup._reductions import keeps_dims, reduced_axes
from onnxopt.patterns import Op, Pattern
from onnxopt.rewrite import Match

Array = np.ndarray[Any, Any]

_FLOAT = ir.DataType.FLOAT.value


def mean(op: Op, x: Pattern) -> Pattern:
    """A mean over axes that the rule is to check, see ``normalized_axes``."""
    return op.ReduceMean(x, ...)


def inverse_root(op: Op, variance: Pattern) -> Pattern:
    """``1 / √(variance + ε)``."""
    shifted = op.Add(variance, op.number("epsilon"))
    root = op.any(op.Sqrt(shifted), op.Pow(shifted, 0.5))
    return op.any(op.Reciprocal(root), op.Div(1.0, root), op.Pow(shifted, -0.5))


def over_root(op: Op, x: Pattern, variance: Pattern) -> Pattern:
    """``x / √(variance + ε)``."""
    shifted = op.Add(variance, op.number("epsilon"))
    return op.any(
        op.Div(x, op.any(op.Sqrt(shifted), op.Pow(shifted, 0.5))), op.Mul(x, inverse_root(op, variance))
    )


def standardized(op: Op, x: Pattern) -> Pattern:
    """``(x − mean) / √(variance + ε)``; some exporters compute ``x − mean`` twice."""
    return over_root(op, op.Sub(x, mean(op, x)), mean(op, op.square(op.Sub(x, mean(op, x)))))


def folded_affine(op: Op, x: Pattern, scale: Pattern, bias: Pattern) -> Pattern:
    """``x·i + (bias − mean·i)`` with ``i = scale / √(variance + ε)``, as TensorFlow writes it."""
    m = mean(op, x)
    variance = mean(op, op.square(op.any(op.Sub(x, m), op.Sub(x, mean(op, x)))))
    factor = op.Mul(inverse_root(op, variance), scale)
    return op.any(
        op.Add(op.Mul(x, factor), op.Sub(bias, op.Mul(m, factor))),
        op.Add(op.Sub(op.Mul(x, factor), op.Mul(m, factor)), bias),
    )


def in_float(op: Op, x: Pattern) -> Pattern:
    """``x`` taken to float, as models in half do around a normalization."""
    return op.Cast(x, to=_FLOAT)


def normalized_axes(match: Match) -> tuple[int, ...]:
    """The axes, from the end, that all the means of a match go over. Refuses if they differ or are unknown."""
    means = match.of("ReduceMean")
    found = {reduced_axes(node, match.editor) for node in means}
    axes = found.pop()
    if found or axes is None:
        raise Refuse("its means go over axes that differ or are not constant")
    if not all(keeps_dims(node) for node in means):
        raise Refuse("its means drop the axes that they go over")
    return axes


def trailing_dims(match: Match, op: str) -> tuple[int, ...]:
    """The static dims of the last axes, if these are what is normalised."""
    axes = normalized_axes(match)
    if axes != tuple(range(-len(axes), 0)) or not axes:
        raise Refuse(f"it normalises axes {list(axes)}, {op} takes the last ones")
    shape = match.editor.shape(match["x"])
    if shape is None or len(shape) < len(axes):
        raise Refuse(f"the rank of {match['x'].name} is unknown")
    dims = tuple(d for d in shape[-len(axes) :] if isinstance(d, int) and d > 0)
    if len(dims) != len(axes):
        raise Refuse(f"the dims {list(shape[-len(axes) :])} that it normalises are not all known")
    return dims


def parameter(match: Match, name: str, dims: tuple[int, ...], op: str) -> ir.Value | Array:
    """The scale or bias in the shape ``dims``: the value that is there, or an array to make a constant of."""
    if match.editor.static_shape(match[name]) == dims:
        return match[name]
    return own_constant(match, name, dims, op)


def own_constant(match: Match, name: str, dims: tuple[int, ...], op: str) -> Array:
    """The scale or bias as an array, if its shape is ``dims`` but for leading ones.

    Only a constant that nothing but the match reads, so that another in its place does not make the file grow.
    """
    value = match[name]
    shape, rank = match.editor.static_shape(value), match.editor.rank(match["x"])
    if shape is None or rank is None or len(shape) > rank or shape != (1,) * (len(shape) - len(dims)) + dims:
        got = match.editor.shape(value)
        raise Refuse(f"the {name} {value.name} has shape {got and list(got)}, {op} takes {list(dims)}")
    tensor = constant_tensor(value)
    if tensor is None or value.is_graph_output() or any(use.node not in match.nodes for use in value.uses()):
        raise Refuse(f"the {name} {value.name} of shape {list(shape)} is no constant of its own, to be reshaped")
    return tensor.numpy().reshape(dims)


def placed(match: Match, found: ir.Value | Array, name: str) -> ir.Value:
    """``found`` as a value, see ``parameter``."""
    if isinstance(found, ir.Value):
        return found
    return match.constant(found, match[name].name or name)


def identity_scale(match: Match, dims: Sequence[int], op: str) -> Array:
    """Ones for a normalization without scale, if they are no larger than the nodes that they replace."""
    dtype = match.editor.dtype(match["x"])
    assert dtype is not None
    ones = np.ones(dims, dtype.numpy())
    saved = sum(len(ir.serde.serialize_node(node).SerializeToString()) for node in match.nodes)
    if ones.nbytes + 128 > saved:  # 128: about what a node and the names of its inputs take
        raise Refuse(f"{op} needs a scale, and {ones.size} ones would make the file larger")
    return ones
