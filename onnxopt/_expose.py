"""Make inner tensors of a model readable: extra outputs on a copy, also out of the branches of If.

What lies in a branch leaves it through an additional output of the If, flat, beside its shape; the other branch
gives two empty tensors there. Bodies of Loop and Scan run many times and local functions may be called many times,
so nothing is read out of these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

_BRANCHES = {"then_branch": "else_branch", "else_branch": "then_branch"}
_PREFIX = "onnxopt/read"


@dataclass(frozen=True)
class _Place:
    """Where a tensor is computed: the Ifs around it, from the outside, with the branch taken in each."""

    path: tuple[tuple[onnx.NodeProto, str], ...]
    obstacle: str | None


@dataclass(frozen=True)
class Readout:
    """The outputs through which a tensor can be read."""

    value: str
    shape: str | None
    """If given, ``value`` is flat, and both are empty where the tensor was not computed."""


class Tensors:
    """The inner tensors of a model by name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self.inputs = {value.name for value in model.graph.input}
        self._constants = {tensor.name for tensor in model.graph.initializer}
        self._places: dict[str, _Place] = {}
        for name, place in _places(model.graph, _Place((), None)):
            twice = name in self._places
            self._places[name] = _Place((), "several tensors in branches are called so") if twice else place
        for function in model.functions:
            for node in function.node:
                for name in node.output:
                    obstacle = f"it is in the local function {function.name!r}; run inline-functions first"
                    self._places.setdefault(name, _Place((), obstacle))

    def obstacle(self, name: str) -> str | None:
        """Why the tensor ``name`` cannot be read, or ``None``."""
        if name in self._places:
            return self._places[name].obstacle
        if name in self._constants:
            return "it is a constant"
        return None if name in self.inputs else "no tensor is called so"

    def in_branch(self, name: str) -> bool:
        """Whether the tensor is computed in a branch of an If."""
        return bool(self._places[name].path)

    def exposed(self, dtypes: dict[str, int], *, shapes: bool) -> tuple[onnx.ModelProto, dict[str, Readout]]:
        """A model with these tensors as outputs, and by name where to read them; ``shapes``: only their shapes.

        ``dtypes`` gives the element type of each tensor in a branch; what is bfloat16 is read as float32.
        """
        copied = onnx.ModelProto()
        copied.CopyFrom(self._model)
        del copied.graph.output[:]
        where = Tensors(copied)._places
        found: dict[str, Readout] = {}
        for at, (name, given) in enumerate(dtypes.items()):
            path, read, dtype = where[name].path, name, given
            graph = _body(*path[-1]) if path else copied.graph
            if dtype == TensorProto.BFLOAT16:
                read, dtype = f"{_PREFIX}{at}/float", TensorProto.FLOAT
                graph.node.append(helper.make_node("Cast", [name], [read], to=dtype))
            shape = None
            if path or shapes:
                graph.node.append(helper.make_node("Shape", [read], [f"{_PREFIX}{at}/shape"]))
                shape = _lift(path, f"{_PREFIX}{at}/shape", TensorProto.INT64)
            if shapes:
                read = shape or read
            elif path:
                flat = f"{_PREFIX}{at}/flat"
                graph.node.append(_constant(f"{flat}/dims", TensorProto.INT64, [-1]))
                graph.node.append(helper.make_node("Reshape", [read, f"{flat}/dims"], [flat]))
                read = _lift(path, flat, dtype)
            found[name] = Readout(read, None if shapes else shape)
        for name in {n: None for r in found.values() for n in (r.value, r.shape) if n is not None}:
            copied.graph.output.add(name=name)
        return copied, found


def _lift(path: tuple[tuple[onnx.NodeProto, str], ...], name: str, dtype: int) -> str:
    """Let the tensor ``name`` of rank 1 leave all branches of ``path``; returns its name outside."""
    for depth, (node, branch) in reversed(list(enumerate(path))):
        outer = f"{name}/{depth}"
        body, other, empty = _body(node, branch), _body(node, _BRANCHES[branch]), f"{outer}/empty"
        other.node.append(_constant(empty, dtype, []))
        body.output.append(helper.make_tensor_value_info(name, dtype, [None]))
        other.output.append(helper.make_tensor_value_info(empty, dtype, [None]))
        node.output.append(outer)
        name = outer
    return name


def _constant(name: str, dtype: int, values: list[int]) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=helper.make_tensor("value", dtype, [len(values)], values))


def _body(node: onnx.NodeProto, branch: str) -> onnx.GraphProto:
    found: onnx.GraphProto = next(attribute.g for attribute in node.attribute if attribute.name == branch)
    return found


def _places(graph: onnx.GraphProto, here: _Place) -> Iterator[tuple[str, _Place]]:
    for node in graph.node:
        for name in node.output:
            if name:
                yield name, here
        for attribute in node.attribute:
            for body in _bodies(attribute):
                obstacle = here.obstacle
                if node.op_type != "If" or node.domain:
                    obstacle = obstacle or f"it is in the body of the {node.op_type} {node.name or node.output[0]!r}"
                yield from _places(body, _Place((*here.path, (node, attribute.name)), obstacle))


def _bodies(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    """The bodies in an attribute."""
    if attribute.type == onnx.AttributeProto.GRAPH:
        yield attribute.g
    yield from attribute.graphs
