"""Merge neighbouring scales and shifts by constants into at most one ``Mul`` and one ``Add``.

A chain of ``Mul``, ``Div``, ``Add``, ``Sub`` by constants and ``Neg`` is ``s · x + t``; it is replaced where that takes
fewer nodes and no more bytes. Not merged are chains whose steps leave the range in which floats are precise,
for these may round on purpose: ``(x + 12582912) − 12582912`` is ``Round(x)`` in float32.

``Div(Sub(Mul(x, 1/255), 0.5), 0.25)``  →  ``Add(Mul(x, 4/255), -2)``
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, constant_tensor, sole_reader
from onnxopt.pass_base import NodePass, Refuse
from onnxopt.passes.cleanup._affine import AFFINE, PRECISION, Affine, Array, affine, ends_a_fusion
from onnxopt.passes.cleanup._linear import NODE_BYTES, spare_bytes
from onnxopt.passes.cleanup._operands import discard


@dataclass(frozen=True, kw_only=True)
class MergeAffine(NodePass):
    """Merge neighbouring scales and shifts by constants."""

    name: ClassVar[str] = "merge-affine"
    exact: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = AFFINE

    def rewrite(self, node: ir.Node, editor: Editor) -> str | None:
        if not any(v is not None and (p := v.producer()) is not None and p.op_type in AFFINE for v in node.inputs):
            return None  # nothing to merge with
        following = sole_reader(node.outputs[0])
        if following is not None and following.graph is node.graph and affine(following, editor) is not None:
            return None  # not the last of its chain
        steps: list[tuple[ir.Node, Affine]] = []
        at: ir.Node | None = node
        while at is not None and at.graph is node.graph:
            step = affine(at, editor)
            if step is None or (steps and sole_reader(at.outputs[0]) is not steps[-1][0]):
                break
            steps.append((at, step))
            at = step.source.producer()
        known = (constant_tensor(value) for _, step in steps for value in step.constants)
        dtype = next((tensor.dtype for tensor in known if tensor is not None), editor.dtype(node.outputs[0]))
        if len(steps) < 2 or dtype is None or dtype not in PRECISION:
            return None
        scale, shift = np.ones(()), np.zeros(())
        scales, shifts = [scale], [shift]
        for _, step in reversed(steps):
            scale = np.asarray(scale * step.scale)
            shift = np.asarray(shift * step.scale + step.shift)
            scales.append(scale)
            shifts.append(shift)
        parts = _parts(scale, shift)
        if len(parts) >= len(steps):
            return None
        if ends_a_fusion(steps[-1][1].source):
            raise Refuse("they end a normalization or a GELU, which ONNX Runtime runs as one")
        _check_precision(scales, shifts, dtype)
        new = [(op, array.astype(dtype.numpy())) for op, array in parts]
        old = [value for _, step in steps for value in step.constants]
        spare = spare_bytes(old) + NODE_BYTES * (len(steps) - len(new))
        if sum(array.nbytes for _, array in new) > spare:
            raise Refuse("the merged constants would be larger than what they replace")
        value = steps[-1][1].source
        name = (old[0].name if old else None) or "merged"
        for op, array in new[:-1]:
            value = editor.insert(node, op, [value, editor.add_constant(node, array, name)], name="")
        op, array = new[-1]
        editor.replace_node(node, op, [value, editor.add_constant(node, array, name)])
        for inner, _ in steps[1:]:
            editor.remove(inner)
        discard(*old)
        return f"made {len(new)} of {len(steps)} nodes"


def _parts(scale: Array, shift: Array) -> list[tuple[str, Array]]:
    """The nodes that ``scale · x + shift`` takes; what is left out must not have enlarged the shape."""
    whole = np.broadcast_shapes(scale.shape, shift.shape)
    if not shift.any() and scale.shape == whole:
        return [("Mul", scale)]
    if (scale == 1).all() and shift.shape == whole:
        return [("Add", shift)]
    return [("Mul", scale), ("Add", shift)]


def _check_precision(scales: list[Array], shifts: list[Array], dtype: ir.DataType) -> None:
    """Refuse chains whose steps are so large or small that their rounding matters."""
    places, exponent = PRECISION[dtype]
    for array in scales:
        sizes = np.abs(array[array != 0])
        if sizes.size and not (2.0 ** (-exponent / 2) <= sizes.min() and sizes.max() <= 2.0 ** (exponent / 2)):
            raise Refuse("its steps leave the range in which floats are precise")
    if max(map(_size, shifts)) > max(1.0, _size(shifts[-1])) * 2.0**places / 64:
        raise Refuse("its steps cancel, so that it may round on purpose")


def _size(array: Array) -> float:
    return float(np.max(np.abs(array), initial=0.0))
