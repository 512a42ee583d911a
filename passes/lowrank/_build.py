"""Write a layer as several: the stages before the last go in front of it, and it keeps its name and gets the last."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, constant_tensor
from onnxopt.pass_base import Refuse
from onnxopt.passes.cleanup._linear import Layer
from onnxopt.passes.cleanup._operands import discard, numbers, put_numbers
from onnxopt.passes.lowrank._forms import carriers
from onnxopt.passes.lowrank._stages import Stage
from onnxopt.passes.lowrank._svd import Array

Setting = int | tuple[int, ...] | str


def put_stages(layer: Layer, stages: Sequence[Stage], bias: Array | None, editor: Editor) -> list[ir.Node]:
    """Let ``layer`` be computed by ``stages``; returns the nodes of all, in order. ``bias`` is one to put in.

    Raises ``Refuse`` where numbers leave the range of the weight's type.
    """
    node, tensor = layer.node, constant_tensor(layer.weight)
    assert tensor is not None
    conv = node.op_type == "Conv"
    as_it_is = [conv] * (len(stages) - 1) + [conv or bool(attribute(node, "transB", 0))]
    weights = [stage.kernel if kept else stage.kernel.T for stage, kept in zip(stages, as_it_is, strict=True)]
    with np.errstate(over="ignore"):
        typed = [np.ascontiguousarray(weight).astype(tensor.dtype.numpy()) for weight in weights]
    if not all(np.isfinite(each.astype(np.float64)).all() for each in typed):
        raise Refuse(f"its factors would leave the range of {tensor.dtype.name}")
    settings = _settings(node, stages) if conv else [{} for _ in stages]
    value, made = node.inputs[0], []
    for at, (weight, stage) in enumerate(zip(typed[:-1], settings[:-1], strict=True)):
        kernel = editor.add_constant(node, weight, f"{layer.weight.name}_{at}")
        name = f"{node.name}_{at}" if node.name else ""
        value = editor.insert(node, "Conv" if conv else "MatMul", [value, kernel], stage, name=name)
        producer = value.producer()
        assert producer is not None
        made.append(producer)
    node.replace_input_with(0, value)
    node.replace_input_with(1, editor.add_constant(node, typed[-1], f"{layer.weight.name}_{len(stages) - 1}"))
    for key, setting in settings[-1].items():
        if not isinstance(setting, str):
            put_numbers(node, key, setting)
    discard(layer.weight)
    if bias is not None:
        layer.put_bias(bias.astype(tensor.dtype.numpy()), editor)
    return [*made, node]


def _settings(node: ir.Node, stages: Sequence[Stage]) -> list[dict[str, Setting]]:
    """The attributes of each stage of a Conv: what the Conv does along an axis, one stage does."""
    shapes = [stage.kernel.shape for stage in stages]
    axes = len(shapes[0]) - 2
    auto = str(attribute(node, "auto_pad", "NOTSET"))
    strides, dilations = (numbers(node, name) or (1,) * axes for name in ("strides", "dilations"))
    pads = numbers(node, "pads") or (0,) * 2 * axes
    by, groups = carriers(shapes), int(attribute(node, "group", 1))
    found: list[dict[str, Setting]] = []
    for at, stage in enumerate(stages):
        own = [each == at for each in by]
        setting: dict[str, Setting] = {
            "kernel_shape": shapes[at][2:],
            "strides": tuple(s if mine else 1 for s, mine in zip(strides, own, strict=True)),
            "dilations": tuple(d if mine else 1 for d, mine in zip(dilations, own, strict=True)),
            "group": groups * stage.group,
        }
        if auto in ("NOTSET", ""):
            setting["pads"] = tuple(p if mine else 0 for p, mine in zip(pads, own * 2, strict=True))
        else:
            setting["auto_pad"] = auto
        found.append(setting)
    return found
