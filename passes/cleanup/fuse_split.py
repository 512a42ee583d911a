"""Replace a sequence that is taken apart again by one ``Split``.

The dynamo exporter writes ``torch.chunk`` and ``torch.split`` as a sequence of tensors whose items are then picked
one by one. Where every reader picks an item at a constant place, no sequence is needed::

    s = SplitToSequence(x, [2, 3]); a = SequenceAt(s, 0); b = SequenceAt(s, 1)   →   a, b = Split(x, [2, 3])

Exact. Needs the sizes of the parts as constants, or a size that divides an axis of known length; ``Split`` takes
them as an input from opset 13 on and as an attribute before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, label
from onnxopt.pass_base import NodePass, Refuse

_SIZES_AS_INPUT = 13
_MAX_PARTS = 1000


@dataclass(frozen=True, kw_only=True)
class FuseSplit(NodePass):
    """Replace a sequence that is taken apart again by one ``Split``."""

    name: ClassVar[str] = "fuse-split"
    exact: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = frozenset({"SplitToSequence"})

    def rewrite(self, node: ir.Node, editor: Editor) -> str | None:
        source, sequence = node.inputs[0], node.outputs[0]
        if source is None or sequence.is_graph_output() or not sequence.uses():
            return None
        picks: list[tuple[ir.Node, int]] = []
        for reader, at in sequence.uses():
            index = editor.constant(reader.inputs[1]) if reader.op_type == "SequenceAt" and at == 0 else None
            if index is None or reader.graph is not node.graph:
                return None
            picks.append((reader, int(index.reshape(()))))
        sizes = _sizes(node, source, editor)
        if any(not -len(sizes) <= place < len(sizes) for _, place in picks):
            raise Refuse(f"an item beyond the {len(sizes)} parts is picked")
        places = [place % len(sizes) for _, place in picks]
        if len(set(places)) < len(places):
            raise Refuse("one item is picked twice; merge-duplicates has to come first")
        outputs = _split(node, source, sizes, editor)
        for (reader, _), place in zip(picks, places, strict=True):
            editor.take_over(reader.outputs[0], outputs[place])
            editor.remove(reader)
        editor.remove(node)
        editor.outdate_facts(source)  # onnx infers the dims of a Split, but not those of a sequence's items
        return f"became Split with {len(picks)} of {len(sizes)} parts in use"


def _sizes(node: ir.Node, source: ir.Value, editor: Editor) -> list[int]:
    """The lengths of the parts. Raises ``Refuse`` where they are not known or the parts lose the axis."""
    axis = attribute(node, "axis", 0)
    shape = editor.shape(source)
    length = shape[axis] if shape is not None and axis is not None and -len(shape) <= axis < len(shape) else None
    given = node.inputs[1] if len(node.inputs) > 1 else None
    if given is None:
        if attribute(node, "keepdims", 1) != 1:
            raise Refuse("its parts lose the axis that is split")
        if not isinstance(length, int):
            raise Refuse("the length of the axis that is split is unknown")
        sizes = [1] * length
    else:
        split = editor.constant(given)
        if split is None:
            raise Refuse("the sizes of the parts are computed")
        if split.ndim == 1:
            sizes = [int(size) for size in split]
        else:
            size = int(split)
            if not isinstance(length, int) or size <= 0:
                raise Refuse("the length of the axis that is split is unknown")
            sizes = [min(size, length - start) for start in range(0, length, size)]
    if not 0 < len(sizes) <= _MAX_PARTS:
        raise Refuse(f"it makes {len(sizes)} parts")
    return sizes


def _split(node: ir.Node, source: ir.Value, sizes: Sequence[int], editor: Editor) -> Sequence[ir.Value]:
    """A ``Split`` in front of ``node``, under its name."""
    attributes: dict[str, int | Sequence[int]] = {"axis": attribute(node, "axis", 0)}
    inputs = [source]
    if editor.opset(node) >= _SIZES_AS_INPUT:
        inputs.append(editor.add_constant(node, np.array(sizes, dtype=np.int64), f"{label(node)}_sizes"))
    else:
        attributes["split"] = sizes
    return editor.insert_many(node, "Split", inputs, attributes, outputs=len(sizes))
