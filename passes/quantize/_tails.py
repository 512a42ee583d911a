"""Where a detector makes boxes and scores of what its last layers give: better not in 8 bits.

A *tail* is what stands behind the last layer with a weight. It decodes boxes or scores where it

- picks among them (NonMaxSuppression, TopK, …),
- has an Exp, which makes the size of a box of a number, or
- puts tensors side by side that came about in different ways: positions through a product with the stride and a sum
  with the anchors, scores through a Sigmoid alone. One grid for both has steps as wide as boxes are large, in which
  scores vanish; and a measure of all together, such as SQNR, does not see it.

A Conv with a single filter of one element in space is no layer here: detectors with a distribution for each side of a
box take its mean by one.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.graph import Editor, bodies, constant_tensor

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"})
_PICKS = frozenset({"NonMaxSuppression", "TopK", "RoiAlign"})
_COMPUTES = frozenset({
    "Add", "Sub", "Mul", "Div", "Pow", "Exp", "Sigmoid", "HardSigmoid", "Softmax", "Tanh", "Clip", "Relu", "Conv",
    "Softplus", "Min", "Max",
})  # fmt: skip
"""What changes numbers, and does not just move or pick them."""


def decoders(editor: Editor) -> dict[ir.Node, ir.Node]:
    """The nodes of tails that decode boxes or scores, each with one that shows it."""
    tails = _tails(editor)
    shown = _shows(tails)
    found: dict[ir.Node, ir.Node] = {}
    for first in shown:
        if first in found:
            continue
        found[first] = first
        todo = [first]
        while todo:
            node = todo.pop()
            for other in (*_makers(node), *_readers(node)):
                if other in tails and other not in found:
                    found[other] = first
                    todo.append(other)
    return found


def _tails(editor: Editor) -> dict[ir.Node, None]:
    """The nodes of floats that no layer stands behind, and those that pick among them; in the order of the graph."""
    before_layer: set[ir.Node] = set()

    def visit(graph: ir.Graph, base: bool) -> None:
        results = set(graph.outputs)
        for node in reversed(graph):
            found = any(each in before_layer or _is_layer(each) for each in _readers(node))
            found = found or (base and not results.isdisjoint(node.outputs))
            for body in bodies(node):
                visit(body, found)
                found = found or any(each in before_layer or _is_layer(each) for each in body)
            if found:
                before_layer.add(node)

    visit(editor.model.graph, False)
    return {
        node: None
        for node in editor.model.graph.all_nodes()
        if node not in before_layer
        and not _is_layer(node)
        and (node.op_type in _PICKS or editor.dtype(node.outputs[0]) == ir.DataType.FLOAT)
        and node.inputs
    }


def _shows(tails: dict[ir.Node, None]) -> list[ir.Node]:
    """What shows that boxes or scores are decoded."""
    ways: dict[ir.Node, frozenset[str]] = {}
    found = []
    for node in tails:
        each = [ways.get(maker, frozenset()) for maker in _makers(node) if maker.op_type != "Constant"]
        ways[node] = frozenset().union(*each, {node.op_type} & _COMPUTES)
        mixed = node.op_type == "Concat" and len(set(each)) > 1
        if node.op_type in _PICKS or node.op_type == "Exp" or mixed:
            found.append(node)
    return found


def _is_layer(node: ir.Node) -> bool:
    """Whether ``node`` has a weight, and is no mean over a distribution."""
    if node.op_type not in _WEIGHTED or node.domain != "" or node.inputs[1] is None:
        return False
    weight, maker = constant_tensor(node.inputs[1]), node.inputs[1].producer()
    if weight is None:
        return maker is not None and maker.op_type == "DequantizeLinear"
    shape = weight.shape.numpy()
    return node.op_type != "Conv" or shape[0] > 1 or any(d > 1 for d in shape[2:])


def _readers(node: ir.Node) -> Iterator[ir.Node]:
    return (use.node for output in node.outputs for use in output.uses())


def _makers(node: ir.Node) -> Iterator[ir.Node]:
    makers = (value.producer() for value in node.inputs if value is not None)
    return (maker for maker in makers if maker is not None)
