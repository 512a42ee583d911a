"""Quantization-aware training: weights learn to be rounded.

Behind ``quantize-static``, in one pipeline with it. A weight that is stored in integers ``q`` is trained as floats
``W`` that are rounded on the way into the layer, by the scale and zero point that it has,

    y = layer(x, DequantizeLinear(QuantizeLinear(W)))        in place of        layer(x, DequantizeLinear(q)),

with gradients straight through the rounding. It starts from the weights of the model before, where these round to
``q``, else from what ``q`` stands for. Biases are trained as floats. ``scales=learned`` trains the scales of weights
too, as ``s · exp(t)``, so that a step moves them by a share (LSQ); those of activations stay as they were calibrated.
In the end all is rounded and stored as it was, so that the model has the same nodes, and ONNX Runtime runs the same
integer kernels.

Sources: Jacob, Kligys, Chen, Zhu, Tang, Howard, Adam and Kalenichenko, "Quantization and Training of Neural Networks
for Efficient Integer-Arithmetic-Only Inference", CVPR 2018; Esser, McKinstry, Bablani, Appuswamy and Modha, "Learned
Step Size Quantization", ICLR 2020. The loss is that of ``distill``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxopt.errors import OptionError
from onnxopt.graph import Editor, attribute, constant_tensor
from onnxopt.pass_base import Context, Refuse
from onnxopt.passes.distill._scales import learn_scales, put_scales
from onnxopt.passes.distill._training import Array, Lesson
from onnxopt.passes.distill.distill import Distill

_ROUNDED = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT16)
_NARROW = 64
"""Integers in this range leave a bit free, so that sums of pairs do not saturate on older CPUs; they stay in it."""
_HALF = 0.5001
"""A weight is what ``q`` was rounded from if it is no further from it, in steps."""


@dataclass(frozen=True, kw_only=True)
class Qat(Distill):
    """Train the weights of a quantized model so that they round well."""

    name: ClassVar[str] = "qat"
    exact: ClassVar[bool] = False
    ops: ClassVar[frozenset[str]] = frozenset({"DequantizeLinear"})

    lr: float = 1e-4
    """The largest learning rate."""
    scales: Literal["fixed", "learned"] = "fixed"
    """Whether the scales of weights are trained too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scales not in ("fixed", "learned"):
            raise OptionError(f"{self.name}.scales is fixed or learned, got {self.scales!r}")

    def prepared(self, model: ir.Model, context: Context) -> ir.Model:
        """``model`` with floats in place of integer weights, rounded on their way where they are weights."""
        if not round_on_the_way(model, context.original):
            raise Refuse("it has no weights in integers behind a DequantizeLinear: run quantize-static first")
        return model

    def lesson(self, model: ir.Model, context: Context) -> Lesson:
        found = super().lesson(model, context)
        return replace(found, added=(*found.added, *learn_scales(model))) if self.scales == "learned" else found

    def give_back(self, trained: ir.Model, names: Collection[str], context: Context) -> str:
        """Scales first, since weights are rounded by them."""
        moved = put_scales(trained, context.editor)
        tensors = super().give_back(trained, names, context)
        return ", ".join(text for text in (tensors, f"{moved} scales" if moved else "") if text)

    def put(self, name: str, array: Array, editor: Editor) -> bool:
        """Put a weight into the model, in integers again if it was."""
        found = put_rounded(name, array, editor)
        return super().put(name, array, editor) if found is None else found


def round_on_the_way(model: ir.Model, original: ir.Model | None) -> bool:
    """Put floats in place of integers, rounded on their way where they are weights; those of ``original`` where these
    round to them. Says whether there are such weights; if not, nothing is changed."""
    editor = Editor(model)
    found = list(_stored(editor))
    if not any(_is_rounded(node) for node in found):
        return False
    before = {} if original is None else _weights(original)
    for node in found:
        _make_floats(node, editor, before)
    return True


def put_rounded(name: str, array: Array, editor: Editor) -> bool | None:
    """Put a weight into the model in integers, and say whether that changed it; ``None`` if it is not of integers."""
    value = editor.model.graph.initializers[name]
    node = next((use.node for use in value.uses() if use.node.op_type == "DequantizeLinear"), None)
    tensor = constant_tensor(value)
    if node is None or tensor is None or tensor.dtype == ir.DataType.FLOAT:
        return None
    rounded = _rounded(array, node, tensor)
    if np.array_equal(rounded, tensor.numpy()):
        return False
    value.const_value = ir.Tensor(rounded, tensor.dtype, name=name)
    return True


def _stored(editor: Editor) -> Iterator[ir.Node]:
    """The nodes that make floats of constants, by constant scales that are one, or one for each slice of an axis."""
    for node in editor.model.graph:
        constants = [constant_tensor(value) for value in node.inputs if value is not None]
        if node.op_type != "DequantizeLinear" or node.domain != "" or not all(t is not None for t in constants):
            continue
        value = node.inputs[0]
        if (
            value is not None
            and value.is_initializer()
            and len(value.uses()) == 1
            and not attribute(node, "block_size", 0)
        ):
            yield node


def _is_rounded(node: ir.Node) -> bool:
    return node.inputs[0] is not None and node.inputs[0].dtype in _ROUNDED


def _make_floats(node: ir.Node, editor: Editor, before: dict[tuple[int, ...], list[Array]]) -> None:
    """Let ``node`` read floats that are trained: a weight rounded on its way, a bias in place of its output."""
    value = node.inputs[0]
    assert value is not None
    tensor = constant_tensor(value)
    assert tensor is not None
    steps, zero = _parameters(node, tensor.numpy().ndim)
    known = ((tensor.numpy().astype(np.float64) - zero) * steps).astype(np.float32)
    if not _is_rounded(node):
        _put_floats(value, known)
        node.outputs[0].replace_all_uses_with(value)
        editor.remove(node)
        return
    exact = (w for w in before.get(known.shape, ()) if np.all(np.abs(w - known) <= _HALF * steps))
    _put_floats(value, next(exact, known))
    axis = attribute(node, "axis", 1)
    quantized = editor.insert(node, "QuantizeLinear", [value, *node.inputs[1:]], {"axis": axis}, name="")
    quantized.type, quantized.shape = ir.TensorType(tensor.dtype), ir.Shape(known.shape)
    if len(node.inputs) < 3 and tensor.dtype != ir.DataType.UINT8:
        zeros = editor.add_constant(node, np.zeros(steps.size if steps.size > 1 else (), tensor.dtype.numpy()), "zero")
        producer = quantized.producer()
        assert producer is not None
        producer.resize_inputs(3)
        producer.replace_input_with(2, zeros)
    node.replace_input_with(0, quantized)


def _put_floats(value: ir.Value, array: Array) -> None:
    value.type, value.const_value = ir.TensorType(ir.DataType.FLOAT), ir.Tensor(array, name=value.name)


def _weights(model: ir.Model) -> dict[tuple[int, ...], list[Array]]:
    """The float constants of a model, by shape."""
    found: dict[tuple[int, ...], list[Array]] = {}
    for value in model.graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT and value.const_value is not None and value.const_value.size > 1:
            array = value.const_value.numpy()
            found.setdefault(array.shape, []).append(array)
    return found


def _parameters(node: ir.Node, rank: int) -> tuple[Array, Array]:
    """Scale and zero point in float64, as they are broadcast to the constant."""
    arrays = []
    for value in node.inputs[1:3]:
        tensor = constant_tensor(value)
        assert tensor is not None
        array = tensor.numpy().astype(np.float64)
        if array.size > 1:
            axis = attribute(node, "axis", 1) % rank
            array = array.reshape([-1 if i == axis else 1 for i in range(rank)])
        else:
            array = array.reshape(())
        arrays.append(array)
    return arrays[0], arrays[1] if len(arrays) > 1 else np.zeros(())


def _limits(dtype: ir.DataType) -> tuple[int, int]:
    """The least and the largest integer of a type."""
    if dtype in (ir.DataType.INT4, ir.DataType.UINT4):
        return (-8, 7) if dtype == ir.DataType.INT4 else (0, 15)
    found = np.iinfo(dtype.numpy())
    return int(found.min), int(found.max)


def _rounded(array: Array, node: ir.Node, like: ir.TensorProtocol) -> Array:
    steps, zero = _parameters(node, array.ndim)
    limits = _limits(like.dtype)
    if like.dtype == ir.DataType.INT8 and np.abs(like.numpy().astype(np.int64)).max(initial=0) <= _NARROW:
        limits = (-_NARROW, _NARROW)
    found: Array = np.clip(np.round(array / steps) + zero, *limits).astype(like.dtype.numpy())
    return found
