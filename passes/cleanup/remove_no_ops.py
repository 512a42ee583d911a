"""Remove nodes that hand their input on unchanged.

Which these are is decided per operator from the opset's definition: ``Identity``; ``Dropout`` at inference;
``Cast`` to the type that is there; ``Transpose`` that moves no element; ``Reshape``, ``Flatten``, ``Squeeze``,
``Unsqueeze``, ``Expand``, ``Tile``, ``Pad``, ``Slice``, ``Resize`` and reductions that keep every dim; pooling
over single elements; ``Concat``, ``Sum``, ``Max``, ``Min`` and ``Mean`` of one input; ``Split`` into one part;
``x·1``, ``x/1``, ``x+0``, ``x−0``, ``x¹``, ``x∧true``, ``x∨false``, ``Where`` that always takes the same side,
``Clip`` of integers without bounds. A constant operand must not enlarge the shape. ``Concat`` also loses its
empty inputs.

``y = Relu(Reshape(x, [0, -1, 8]))``, where ``x`` is (N, 5, 8)  →  ``y = Relu(x)``
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, constant_tensor
from onnxopt.pass_base import NodePass
from onnxopt.passes.cleanup._operands import (
    END,
    broadcasts_into,
    clip_range,
    cuts,
    input_at,
    integers,
    is_read,
    keeps_order,
    numbers,
    padding,
    permutation,
    same_dims,
)
from onnxopt.shapes import Dims

_ADDRESSES = 2**47
"""So many bytes a process can have on the processors of today."""


@dataclass(frozen=True, kw_only=True)
class RemoveNoOps(NodePass):
    """Remove nodes that hand their input on unchanged."""

    name: ClassVar[str] = "remove-no-ops"
    exact: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = frozenset({
        "Identity", "Dropout", "Cast", "CastLike", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand",
        "Tile", "Pad", "Slice", "Resize", "Upsample", "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin",
        "ReduceProd", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Concat", "Sum", "Max", "Min",
        "Mean", "Split", "Mul", "Div", "Add", "Sub", "Pow", "And", "Or", "Where", "Clip",
    })  # fmt: skip

    def rewrite(self, node: ir.Node, editor: Editor) -> str | None:
        if editor.opset(node) < 7 and node.op_type not in ("Identity", "Dropout"):
            return None  # operands were still broadcast by attributes
        at = _RULES[node.op_type](node, editor)
        if at is None:
            return _drop_empty(node, editor) if node.op_type == "Concat" else None
        source = node.inputs[at]
        if source is None or any(is_read(other) for other in node.outputs[1:]):
            return None
        if not editor.redirect(node.outputs[0], source):
            return None
        editor.remove(node)
        return "handed its input on"


_Rule = Callable[[ir.Node, Editor], int | None]
"""Which input a node hands on, if it does."""


def _if(condition: Callable[[ir.Node, Editor], bool]) -> _Rule:
    return lambda node, editor: 0 if condition(node, editor) else None


def _always(node: ir.Node, editor: Editor) -> bool:
    return True


def _same_shape(node: ir.Node, editor: Editor) -> bool:
    return same_dims(editor.shape(node.inputs[0]), editor.shape(node.outputs[0]))


def _dropout(node: ir.Node, editor: Editor) -> bool:
    training = input_at(node, 2)
    if editor.opset(node) < 7:
        return bool(attribute(node, "is_test", 0) == 1)
    if editor.opset(node) < 12 or training is None:
        return True
    constant = editor.constant(training)
    return constant is not None and not constant.any()


def _cast(node: ir.Node, editor: Editor) -> bool:
    have = editor.dtype(node.inputs[0])
    want = attribute(node, "to") if node.op_type == "Cast" else editor.dtype(node.inputs[1])
    return have is not None and want is not None and int(have) == int(want)


def _transpose(node: ir.Node, editor: Editor) -> bool:
    perm = permutation(node, editor)
    if perm is None:
        return False
    return perm == tuple(range(len(perm))) or (
        keeps_order(perm, editor.shape(node.inputs[0])) and _same_shape(node, editor)
    )


def _reshape(node: ir.Node, editor: Editor) -> bool:
    if _same_shape(node, editor):
        return True
    target, dims = integers(node.inputs[1]), editor.shape(node.inputs[0])
    if target is None or dims is None or len(target) != len(dims):
        return False
    copies = attribute(node, "allowzero", 0) == 0
    # what -1 stands for is then the one dim that is left
    return all((t == 0 and copies) or t in (d, -1) for t, d in zip(target, dims, strict=True))


def _tile(node: ir.Node, editor: Editor) -> bool:
    repeats = integers(node.inputs[1])
    return _same_shape(node, editor) or (repeats is not None and set(repeats) <= {1})


def _pad(node: ir.Node, editor: Editor) -> bool:
    pads = padding(node, editor)
    return pads is not None and not any(pads.before) and not any(pads.after)


def _slice(node: ir.Node, editor: Editor) -> bool:
    found = cuts(node, editor)
    if found is None or any(cut.step < 1 for cut in found.values()):
        return False
    dims, dtype = editor.shape(node.inputs[0]), editor.dtype(node.inputs[0])
    return _same_shape(node, editor) or all(
        cut.start == 0 and cut.step == 1 and cut.end >= _longest(axis, dims, dtype) for axis, cut in found.items()
    )


def _longest(axis: int, dims: Dims | None, dtype: ir.DataType | None) -> float:
    """How long an axis can be: its size, or what fits into memory with axes of these sizes beside it."""
    if dims is None or dtype in (None, ir.DataType.STRING) or not -len(dims) <= axis < len(dims):
        return END
    if isinstance(size := dims[axis], int):
        return size
    others = math.prod(dim for dim in dims if isinstance(dim, int) and dim > 0)
    return min(END, _ADDRESSES / (others * dtype.itemsize))


def _resize(node: ir.Node, editor: Editor) -> bool:
    if attribute(node, "coordinate_transformation_mode", "half_pixel") not in (
        "half_pixel", "pytorch_half_pixel", "half_pixel_symmetric", "asymmetric", "align_corners"
    ):  # fmt: skip
        return False
    opset = editor.opset(node)
    if node.op_type == "Upsample" and opset < 9:
        scales = attribute(node, "scales")
        return scales is not None and all(s == 1 for s in scales)
    if input_at(node, 3) is not None:
        plain = attribute(node, "keep_aspect_ratio_policy", "stretch") == "stretch"
        return plain and _same_shape(node, editor)
    given = editor.constant(input_at(node, 1 if node.op_type == "Upsample" or opset < 11 else 2))
    return given is not None and given.size > 0 and bool((given == 1).all())


def _pool(node: ir.Node, editor: Editor) -> bool:
    settings = [numbers(node, name) for name in ("kernel_shape", "strides", "pads")]
    if None in settings or attribute(node, "auto_pad", "NOTSET") is None:
        return False
    kernel, strides, pads = (s or () for s in settings)
    return len(kernel) > 0 and set(kernel) == {1} and set(strides) <= {1} and not any(pads)


def _one_input(node: ir.Node, editor: Editor) -> bool:
    return len(node.inputs) == 1


def _is_filled(value: ir.Value | None, number: float) -> bool:
    """Whether ``value`` is a constant that holds nothing but ``number``."""
    tensor = constant_tensor(value)
    if tensor is None or tensor.size == 0 or tensor.dtype == ir.DataType.STRING:
        return False
    array = tensor.numpy()
    return bool(array.reshape(-1)[0] == number) and bool(np.all(array == number))


def _neutral(number: float, sides: tuple[int, ...]) -> _Rule:
    """A binary operator that hands one operand on if the other, on one of ``sides``, is ``number``."""

    def rule(node: ir.Node, editor: Editor) -> int | None:
        for side in sides:
            kept = 1 - side
            if _is_filled(node.inputs[side], number) and broadcasts_into(
                editor.shape(node.inputs[side]), editor.shape(node.inputs[kept])
            ):
                return kept
        return None

    return rule


def _where(node: ir.Node, editor: Editor) -> int | None:
    condition = editor.constant(node.inputs[0])
    if condition is None or condition.size == 0 or condition.all() != condition.any():
        return None
    kept = 1 if condition.all() else 2
    into = editor.shape(node.inputs[kept])
    others = (node.inputs[0], node.inputs[3 - kept])
    return kept if all(broadcasts_into(editor.shape(other), into) for other in others) else None


def _clip(node: ir.Node, editor: Editor) -> bool:
    found = clip_range(node, editor)
    dtype = editor.dtype(node.inputs[0])
    if found is None or dtype is None or not dtype.is_integer():
        return False  # without limits a float is still held within the finite ones
    limits = np.iinfo(dtype.numpy())
    return found.low <= int(limits.min) and int(limits.max) <= found.high


def _drop_empty(node: ir.Node, editor: Editor) -> str | None:
    """Take the inputs out of a ``Concat`` that hold nothing."""
    axis = attribute(node, "axis")
    if axis is None:
        return None

    def is_empty(value: ir.Value | None) -> bool:
        dims = editor.shape(value)
        return dims is not None and -len(dims) <= axis < len(dims) and dims[axis] == 0

    kept = [value for value in node.inputs if not is_empty(value)] or list(node.inputs[:1])
    dropped = len(node.inputs) - len(kept)
    if dropped == 0:
        return None
    for at, value in enumerate(kept):
        node.replace_input_with(at, value)
    node.resize_inputs(len(kept))
    return f"dropped {dropped} empty input{'s' if dropped > 1 else ''}"


_RULES: dict[str, _Rule] = {
    "Identity": _if(_always),
    "Dropout": _if(_dropout),
    "Cast": _if(_cast),
    "CastLike": _if(_cast),
    "Transpose": _if(_transpose),
    "Reshape": _if(_reshape),
    "Tile": _if(_tile),
    "Pad": _if(_pad),
    "Slice": _if(_slice),
    "Resize": _if(_resize),
    "Upsample": _if(_resize),
    "MaxPool": _if(_pool),
    "AveragePool": _if(_pool),
    "Split": _if(lambda node, _: len(node.outputs) == 1),
    "Mul": _neutral(1, (0, 1)),
    "Div": _neutral(1, (1,)),
    "Add": _neutral(0, (0, 1)),
    "Sub": _neutral(0, (1,)),
    "Pow": _neutral(1, (1,)),
    "And": _neutral(1, (0, 1)),
    "Or": _neutral(0, (0, 1)),
    "Where": _where,
    "Clip": _if(_clip),
    # nothing but the shape can change, or what is combined is one element
    **dict.fromkeys(("Flatten", "Squeeze", "Unsqueeze", "Expand"), _if(_same_shape)),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"), _if(_same_shape)),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _if(_same_shape)),
    **dict.fromkeys(("Concat", "Sum", "Max", "Min", "Mean"), _if(_one_input)),
}
