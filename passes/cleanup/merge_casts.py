"""Let a ``Cast`` read from before another ``Cast`` that lost nothing.

``cast(cast(x, wide), y) = cast(x, y)`` wherever every value of the type of ``x`` is a value of ``wide`` too, for
then the second cast sees the very numbers of ``x``. If ``y`` is the type of ``x``, both go. A cast that narrows
stays: float32 → float16 → float32 rounds.

``Cast(Cast(x, float32), float16)``, where ``x`` is float16  →  ``x``
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxopt.graph import Editor, attribute
from onnxopt.pass_base import NodePass
from onnxopt.passes.cleanup._operands import is_read

_D = ir.DataType

_INTEGER_BITS = {  # magnitude bits, signed
    _D.BOOL: (1, False), _D.UINT8: (8, False), _D.UINT16: (16, False), _D.UINT32: (32, False), _D.UINT64: (64, False),
    _D.INT8: (7, True), _D.INT16: (15, True), _D.INT32: (31, True), _D.INT64: (63, True),
}  # fmt: skip

_FLOAT_BITS = {  # significand bits with the hidden one, exponent bits
    _D.FLOAT16: (11, 5), _D.BFLOAT16: (8, 8), _D.FLOAT: (24, 8), _D.DOUBLE: (53, 11)
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MergeCasts(NodePass):
    """Let a ``Cast`` read from before another ``Cast`` that lost nothing."""

    name: ClassVar[str] = "merge-casts"
    exact: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = frozenset({"Cast"})

    def rewrite(self, node: ir.Node, editor: Editor) -> str | None:
        middle = node.inputs[0]
        first = middle.producer() if middle is not None else None
        if middle is None or first is None or first.op_type != "Cast" or first.domain:
            return None
        source = first.inputs[0]
        have, wide, want = editor.dtype(source), attribute(first, "to"), attribute(node, "to")
        if source is None or have is None or not isinstance(wide, int) or not isinstance(want, int):
            return None
        if not _holds(_D(wide), have) or _D(want) not in _INTEGER_BITS | _FLOAT_BITS:
            return None
        if want == have and editor.redirect(node.outputs[0], source):
            editor.remove(node)
            text = "cast back to what it was"
        else:
            node.replace_input_with(0, source)
            text = f"casts {have.name} to {_D(want).name} at once"
        if not is_read(middle):
            editor.remove(first)
        return text


def _holds(wide: ir.DataType, narrow: ir.DataType) -> bool:
    """Whether every value of ``narrow`` is a value of ``wide``."""
    if narrow == wide:
        return narrow in _INTEGER_BITS or narrow in _FLOAT_BITS
    if narrow in _INTEGER_BITS:
        bits, signed = _INTEGER_BITS[narrow]
        if wide in _INTEGER_BITS:
            return _INTEGER_BITS[wide][0] >= bits and (_INTEGER_BITS[wide][1] or not signed)
        return wide in _FLOAT_BITS and _FLOAT_BITS[wide][0] >= bits
    if narrow in _FLOAT_BITS and wide in _FLOAT_BITS:
        return all(w >= n for w, n in zip(_FLOAT_BITS[wide], _FLOAT_BITS[narrow], strict=True))
    return False
