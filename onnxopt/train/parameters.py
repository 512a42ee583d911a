"""Which constants of a model are trained.

A float32 initializer is a parameter if a node reads it as a weight: where a convolution, a product, a look-up, a
normalization or a recurrent layer has one, and, of sums and products element by element, a vector that meets what
depends on other parameters, as biases and scales do. Single numbers, masks, and what is done to inputs stay as they
are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import onnx_ir as ir

from onnxopt.errors import OptionError
from onnxopt.gradients.registry import is_constant
from onnxopt.graph import Editor, label

_ALL = range(64)
_WEIGHTS: dict[str, Sequence[int]] = {
    "Attention": (1, 2), "BatchNormalization": (1, 2), "Conv": (1, 2), "ConvTranspose": (1, 2), "DeformConv": (1, 3),
    "Einsum": _ALL, "EmbedLayerNormalization": (2, 3, 4, 5, 6), "FusedConv": (1, 2), "FusedGemm": _ALL,
    "FusedMatMul": (0, 1), "Gather": (0,), "Gemm": (0, 1, 2), "GroupNormalization": (1, 2), "GRU": (1, 2, 3),
    "InstanceNormalization": (1, 2), "LayerNormalization": (1, 2), "LSTM": (1, 2, 3, 7), "MatMul": (0, 1),
    "PRelu": (1,), "RMSNormalization": (1,), "RNN": (1, 2, 3), "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3, 4), "SkipSimplifiedLayerNormalization": (2, 3),
}  # fmt: skip
"""The places of the weights among the inputs of an operator."""
_ELEMENTWISE = ("Add", "Sub", "Mul", "Div")
_PASS_ON = (
    "Cast", "Concat", "DequantizeLinear", "Expand", "Flatten", "Identity", "Pad", "QuantizeLinear", "Reshape", "Slice",
    "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
"""Between a weight and its reader may stand these."""


def find_parameters(model: ir.Model, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> list[str]:
    """The names of the parameters of the main graph, in the order of the nodes that read them.

    ``include`` and ``exclude`` are globs over names of initializers and of the nodes that read them; an initializer
    that ``include`` names in full is a parameter whatever reads it. Raises ``OptionError`` if there are none.
    """
    graph = model.graph
    chosen = {str(value.name): value for value in _weights(Editor(model))}
    readers = {name: [label(use.node) for use in value.uses()] for name, value in graph.initializers.items()}
    if include:
        named = {name: value for name, value in graph.initializers.items() if name in include and _is_float(value)}
        chosen = {n: value for n, value in chosen.items() if _matches([n, *readers[n]], include)} | named
    found = [name for name in chosen if not _matches([name, *readers[name]], exclude)]
    if not found:
        raise OptionError(_why_none(graph, chosen, include, exclude))
    return found


def moving(graph: ir.Graph, names: Sequence[str], target: ir.Value) -> list[str]:
    """Those of the initializers or inputs ``names`` that ``target`` depends on in a differentiable way."""
    needed = {target}
    for node in reversed(list(graph)):
        if not is_constant(node) and not needed.isdisjoint(node.outputs):
            needed.update(value for value in node.inputs if value is not None)
    wanted = {str(value.name) for value in needed}
    return [name for name in names if name in wanted]


def untie(model: ir.Model, values: Iterable[ir.Value]) -> None:
    """Give each reader of these initializers one of its own: exporters merge those that start out equal."""
    editor = Editor(model)
    for value in values:
        for use in list(value.uses())[1:]:
            if use.node.graph is model.graph and value.const_value is not None:
                tensor = ir.Tensor(value.const_value.numpy(), name=value.name)
                use.node.replace_input_with(use.idx, editor.add_constant(use.node, tensor, str(value.name)))


def _weights(editor: Editor) -> list[ir.Value]:
    graph = editor.model.graph
    origins: dict[ir.Value, list[ir.Value]] = {
        value: [value] for value in graph.initializers.values() if _is_float(value)
    }
    found: dict[ir.Value, None] = {}
    learned: set[ir.Value] = set()
    for node in graph:
        for index, value in enumerate(node.inputs):
            if value in origins and _is_weight(editor, node, index, value, learned):
                found.update(dict.fromkeys(origins[value]))
                learned.add(value)
        passed = node.inputs if node.op_type == "Concat" else node.inputs[:1]  # not scales, nor what is padded with
        carried = [origin for value in passed if value in origins for origin in origins[value]]
        if carried and node.op_type in _PASS_ON and node.domain == "":
            origins.update((output, carried) for output in node.outputs)
        elif not learned.isdisjoint(value for value in node.inputs if value is not None):
            learned.update(node.outputs)
    return list(found)


def _is_weight(editor: Editor, node: ir.Node, index: int, value: ir.Value, learned: set[ir.Value]) -> bool:
    if index in _WEIGHTS.get(node.op_type, ()):
        return True
    if node.op_type not in _ELEMENTWISE or node.domain != "" or len(node.inputs) != 2:
        return False
    other, shape = node.inputs[1 - index], editor.static_shape(value)
    if other is None or other not in learned or shape is None:
        return False
    after, axes = other.producer(), sum(dim > 1 for dim in shape)
    is_bias = node.op_type == "Add" and after is not None and after.op_type in _WEIGHTS
    return axes == 1 or (axes == 0 and is_bias)


def _is_float(value: ir.Value) -> bool:
    """Whether it is a float32 constant that nobody can override and that no body reads."""
    return (
        value.const_value is not None
        and value.dtype == ir.DataType.FLOAT
        and not value.is_graph_input()
        and not value.is_graph_output()
        and all(use.node.graph is value.graph for use in value.uses())
    )


def _matches(names: Iterable[str], globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for name in names for glob in globs)


def _why_none(graph: ir.Graph, chosen: dict[str, ir.Value], include: Sequence[str], exclude: Sequence[str]) -> str:
    if chosen or include:
        return f"no parameter is left to train by include {list(include)} and exclude {list(exclude)}"
    types = sorted({value.dtype.name for value in graph.initializers.values() if value.dtype is not None})
    return f"the model has nothing to train: no float32 initializer is read as a weight (types: {', '.join(types)})"
