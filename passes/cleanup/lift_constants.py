"""Turn Constant nodes into initializers.

An initializer is a constant without a node: tools and runtimes look for weights there, it can be mapped from
a file, and equal ones are found by ``merge-initializers``::

    w = Constant<value = float[2] {1, 2}>()      →      initializer w = {1, 2}
    y = Mul(x, w)                                       y = Mul(x, w)

The value is the same tensor, so this is exact. ``value_int``, ``value_ints``, ``value_float``,
``value_floats``, ``value_string`` and ``value_strings`` become tensors of int64, float32 and strings, as the
operator defines. Left alone are sparse values, references to an attribute of a function, and nodes that stand
directly in a local function, which has no initializers; a constant that is an output stays a node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxopt.graph import Editor, constant_tensor
from onnxopt.pass_base import NodePass, Refuse
from onnxopt.passes.cleanup._splice import renamed


@dataclass(frozen=True, kw_only=True)
class LiftConstants(NodePass):
    """Turn Constant nodes into initializers of their graph."""

    name: ClassVar[str] = "lift-constants"
    exact: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = frozenset({"Constant"})

    def rewrite(self, node: ir.Node, editor: Editor) -> str | None:
        old = node.outputs[0]
        if editor.in_function(node) or old.is_graph_output():
            return None
        tensor = constant_tensor(old)
        if tensor is None:
            tensor = _strings(node)
        if tensor is None:
            raise Refuse("its value is sparse, or given by the caller of a function")
        if editor.model.ir_version < 4:
            raise Refuse(
                f"in IR version {editor.model.ir_version} each initializer is an input too; "
                "run drop-initializer-inputs first"
            )
        graph = node.graph
        assert graph is not None
        name = old.name or editor.fresh("constant")
        tensor = renamed(tensor, name)
        tensor.doc_string = tensor.doc_string or node.doc_string
        tensor.metadata_props.update({k: v for k, v in node.metadata_props.items() if k not in tensor.metadata_props})
        new = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor,
            doc_string=old.doc_string, metadata_props=dict(old.metadata_props),
        )  # fmt: skip
        new.meta.update(old.meta)
        old.replace_all_uses_with(new)
        graph.remove(node, safe=True)
        graph.register_initializer(new)
        return "became an initializer"


def _strings(node: ir.Node) -> ir.TensorProtocol | None:
    """The tensor of a constant that is given as text."""
    for key, attribute in node.attributes.items():
        if attribute.is_ref():
            continue
        if key == "value_string" and attribute.type == ir.AttributeType.STRING:
            return ir.StringTensor([attribute.as_string().encode()], shape=ir.Shape(()))
        if key == "value_strings" and attribute.type == ir.AttributeType.STRINGS:
            texts = [text.encode() for text in attribute.as_strings()]
            return ir.StringTensor(texts, shape=ir.Shape((len(texts),)))
    return None
