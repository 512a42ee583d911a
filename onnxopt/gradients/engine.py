"""The walk back from the loss.

Nodes are visited in reverse order. A node takes part if a gradient reaches one of its outputs and something that is
differentiated stands before one of its inputs. Its rule writes the gradients of its inputs; those that reach a value
from several readers are added up when the walk comes to what produces it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.errors import GradientError
from onnxopt.gradients import rules as _rules
from onnxopt.gradients.emit import Emitter
from onnxopt.gradients.node import Backward
from onnxopt.gradients.recompute import recompute as write_recomputed
from onnxopt.gradients.registry import is_constant, rule_of
from onnxopt.graph import Editor, bodies, label
from onnxopt.shape_values import ShapeValues

__all__ = ["OLDEST_OPSET", "GradientGraph", "gradient_graph"]

assert _rules  # importing them declares them
OLDEST_OPSET = 18
"""Rules write operators as they are since this version of the standard operators."""
_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_ROUND = ("QuantizeLinear", "DynamicQuantizeLinear")
"""Their first output moves with what is rounded; the range that the second finds counts as a constant."""
_OF_INTEGERS = {"DequantizeLinear", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"}
"""What may read rounded values that move: the rules are the same, whatever the type."""


@dataclass(frozen=True)
class GradientGraph:
    """A model that computes a loss and its gradients."""

    model: ir.Model
    """Its outputs are the loss, what was to be kept, and the gradients in the order asked for; each value once."""
    loss: str
    gradients: dict[str, str]
    """The name of the output that holds the gradient in each value, of the shape and type of that value."""


def gradient_graph(
    model: ir.Model, loss: str, wrt: Sequence[str], *, keep: Sequence[str] = (), recompute: bool = False
) -> GradientGraph:
    """A copy of ``model`` that computes the gradients of ``loss`` in the values named ``wrt``.

    ``loss`` names a float value of one element; ``wrt`` names initializers, inputs or outputs of nodes of the main
    graph; ``keep`` names further values to compute; ``recompute`` keeps fewer values in memory, and computes the others
    twice. The model is of opset 18 or later, without local functions, and
    its inputs have sizes in numbers. Raises ``GradientError`` if it is not, if an operator between has no rule, or if
    the loss does not depend on one of ``wrt``.
    """
    editor = Editor(model).copy()
    graph = editor.model.graph
    _check(editor, graph)
    if not wrt:
        raise GradientError("no value is named that the loss is to be differentiated in")
    values = _named(graph)
    target, sources = _lookup(values, [loss])[0], _lookup(values, wrt)
    kept = _lookup(values, keep)
    for value in (target, *sources, *kept):
        _declare(editor, value)
    for source in sources:
        if editor.dtype(source) not in _FLOATS:
            raise GradientError(f"{source.name!r} is of {editor.dtype(source)}, and only floats have gradients")
    known = ShapeValues(editor)
    _check_loss(editor, target)
    forward, emitter = list(graph), Emitter(editor)
    found = _walk(emitter, known, forward, target, sources)
    outputs = [found[source] for source in sources]
    for source, output in zip(sources, outputs, strict=True):
        output.type, output.shape = source.type, source.shape and source.shape.copy()
    graph.outputs[:] = dict.fromkeys([target, *kept, *outputs])
    _remove_unread(graph)
    if recompute:
        write_recomputed(editor, emitter, [node for node in forward if node.graph is graph])
    return GradientGraph(editor.model, loss, {name: str(v.name) for name, v in zip(wrt, outputs, strict=True)})


def _walk(
    emitter: Emitter, known: ShapeValues, nodes: Sequence[ir.Node], loss: ir.Value, sources: Sequence[ir.Value]
) -> dict[ir.Value, ir.Value]:
    """The gradient of ``loss``, which ``nodes`` compute, in each source."""
    editor = emitter.editor
    moving = _moving(editor, nodes, sources)
    if loss not in moving:
        raise GradientError(f"the loss {loss.name!r} does not depend on {sources[0].name!r} in a differentiable way")
    one = emitter.op("Expand", emitter.number(1, loss), emitter.ints(*(editor.static_shape(loss) or ())))
    pending: dict[ir.Value, list[ir.Value]] = {loss: [one]}
    wanted = set(sources)
    found: dict[ir.Value, ir.Value] = {}
    for node in reversed(nodes):
        emitter.owner = node
        for output in node.outputs:
            if output in pending:
                found[output] = _total(emitter, output, pending.pop(output), keep=output in wanted)
        gradients = tuple(found.get(output) for output in node.outputs)
        if any(gradients) and _reads_within(node, moving):
            raise GradientError(
                f"{node.op_type} {label(node)!r} has bodies that read what is to be differentiated, which has no "
                "rule; an If whose condition is constant can be inlined by inline-if"
            )
        asked = frozenset(i for i, value in enumerate(node.inputs) if value in moving)
        if asked and any(gradients) and not is_constant(node):
            emitter.scope = f"grad/{node.outputs[0].name}"
            for value, gradient in _differentiated(editor, Backward(node, gradients, asked, emitter, known)):
                pending.setdefault(value, []).append(gradient)
    emitter.owner = None
    for source in sources:
        if source in pending:
            found[source] = _total(emitter, source, pending.pop(source), keep=True)
        if source not in found:
            raise GradientError(f"the loss {loss.name!r} does not depend on {source.name!r} in a differentiable way")
    return found


def _differentiated(editor: Editor, at: Backward) -> Iterable[tuple[ir.Value, ir.Value]]:
    """Each input that wants a gradient, and that gradient."""
    rule = rule_of(at.node)
    if rule is None:
        domain = f" of domain {at.node.domain!r}" if at.node.domain else ""
        raise GradientError(
            f"{at.node.op_type} {label(at.node)!r}{domain} has no gradient rule; freeze what stands before it, or "
            "rewrite the model without it"
        )
    if at.node.op_type not in _OF_INTEGERS and any(
        at.wants(i) and _is_rounded(editor, v) for i, v in enumerate(at.inputs)
    ):
        raise at.error("it computes with what QuantizeLinear has rounded to integers; run dequantize first")
    for index, gradient in enumerate(rule(at)):
        if gradient is not None and at.wants(index):
            yield at.inputs[index], gradient


def _total(emitter: Emitter, value: ir.Value, parts: Sequence[ir.Value], *, keep: bool) -> ir.Value:
    """The gradient in ``value`` from what its readers gave; under a name of its own if it is to be kept."""
    emitter.scope = f"grad/{value.name}"
    total = parts[0] if len(parts) == 1 else emitter.op("Sum", *parts)
    return emitter.op("Identity", total) if keep else total


def _moving(editor: Editor, nodes: Sequence[ir.Node], sources: Iterable[ir.Value]) -> set[ir.Value]:
    """The values that move with ``sources``."""
    moving = set(sources)
    for node in nodes:
        if (_reads_within(node, moving) or not moving.isdisjoint(node.inputs)) and not is_constant(node):
            rounds = node.op_type in _ROUND or any(
                value in moving and _is_rounded(editor, value) for value in node.inputs
            )
            outputs = node.outputs[:1] if node.op_type in _ROUND else node.outputs
            found = [output for output in outputs if rounds or not _is_rounded(editor, output)]
            moving.update(found)
    return moving


def _is_rounded(editor: Editor, value: ir.Value | None) -> bool:
    """Whether ``value`` is known to hold no floats. Where it moves nevertheless, gradients go straight through."""
    return value is not None and editor.dtype(value) not in (None, *_FLOATS)


def _reads_within(node: ir.Node, moving: Set[ir.Value]) -> bool:
    """Whether a body of ``node`` reads a value that moves."""
    return any(value in moving for body in bodies(node) for value in _read_outside(body))


def _read_outside(body: ir.Graph) -> Iterable[ir.Value]:
    for node in body:
        yield from (value for value in node.inputs if value is not None and value.graph is not body)
        for inner in bodies(node):
            yield from _read_outside(inner)
    yield from (value for value in body.outputs if value.graph is not body)


def _check(editor: Editor, graph: ir.Graph) -> None:
    if editor.model.functions:
        raise GradientError("the model has local functions; run inline-functions first")
    opset = editor.model.opset_imports.get("", 1)
    if opset < OLDEST_OPSET:
        raise GradientError(f"the model is of opset {opset}, gradients want {OLDEST_OPSET} or later; run convert-opset")
    for value in graph.inputs:
        if editor.dtype(value) is not None and editor.static_shape(value) is None:
            raise GradientError(f"the input {value.name!r} has dims that are not numbers; fix the sizes of the inputs")


def _check_loss(editor: Editor, loss: ir.Value) -> None:
    shape = editor.static_shape(loss)
    if editor.dtype(loss) not in _FLOATS or shape is None or any(d != 1 for d in shape):
        raise GradientError(f"the loss {loss.name!r} is not one float number: {editor.dtype(loss)}, shape {shape}")


def _named(graph: ir.Graph) -> dict[str, ir.Value]:
    found = {str(value.name): value for value in (*graph.inputs, *graph.initializers.values())}
    found.update((str(value.name), value) for node in graph for value in node.outputs if value.name)
    return found


def _declare(editor: Editor, value: ir.Value) -> None:
    """Give a value that becomes an output the type and shape that are known of it."""
    if value.type is None and (dtype := editor.dtype(value)) is not None:
        value.type = ir.TensorType(dtype)
    if value.shape is None and (shape := editor.shape(value)) is not None:
        value.shape = ir.Shape(shape)


def _lookup(values: dict[str, ir.Value], names: Sequence[str]) -> list[ir.Value]:
    if missing := [name for name in names if name not in values]:
        raise GradientError(f"the main graph has no value {missing[0]!r}")
    return [values[name] for name in names]


def _remove_unread(graph: ir.Graph) -> None:
    """Take out the nodes and constants that no output needs."""
    for node in reversed(list(graph)):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[name]
