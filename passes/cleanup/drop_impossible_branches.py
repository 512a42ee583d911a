"""Take the branch of an ``If`` whose alternative could never have run to the end.

Scripted PyTorch modules ask for the rank of a tensor at run time and squeeze or unsqueeze it accordingly. One
of the two branches then leads to a tensor of a rank that an operator behind it refuses::

    If(size == 1) then Squeeze(x): rank 2 else x: rank 3   →   Unsqueeze   →   LSTM, which takes rank 3

Here the ``else`` can only lead to an error, so the ``then`` is what every successful run takes. The allowed
ranks of a value follow from its readers backwards: ``LSTM`` takes rank 3, ``Gemm`` 2, ``Conv`` that of its
weights; ``Unsqueeze`` and ``Squeeze`` shift them, elementwise operators hand them on, and an ``If`` allows
what either of its branches allows. The condition becomes a constant; ``inline-if`` does the rest.

Exact for every input on which the original model runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Editor, attribute, bodies, constant_tensor
from onnxopt.pass_base import NodePass

_FIXED = {"LSTM": 3, "GRU": 3, "RNN": 3, "Gemm": 2}
_SAME = frozenset({
    "Identity", "Relu", "Sigmoid", "Tanh", "Cast", "Dropout", "LeakyRelu", "Clip", "Neg", "Exp", "Sqrt", "Abs",
    "Elu", "Gelu", "Softmax", "LogSoftmax", "Erf", "HardSigmoid", "HardSwish", "BatchNormalization",
})  # fmt: skip
_MAX_RANK = 8
_MAX_DEPTH = 20
_ANY = frozenset(range(_MAX_RANK + 1))

Ranks = frozenset[int]


@dataclass(frozen=True, kw_only=True)
class DropImpossibleBranches(NodePass):
    """Take the branch of an ``If`` whose alternative could never have run to the end."""

    name: ClassVar[str] = "drop-impossible-branches"
    exact: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = frozenset({"If"})

    def rewrite(self, node: ir.Node, editor: Editor) -> str | None:
        if constant_tensor(node.inputs[0]) is not None:
            return None
        branches = {name: attribute(node, name) for name in ("then_branch", "else_branch")}
        if any(branch is None for branch in branches.values()):
            return None
        for at, output in enumerate(node.outputs):
            ranks = {name: editor.rank(branch.outputs[at]) for name, branch in branches.items()}
            if None in ranks.values() or len(set(ranks.values())) == 1:
                continue
            allowed = _Readers(editor).allowed(output, _MAX_DEPTH)
            possible = [name for name, rank in ranks.items() if rank in allowed]
            if len(possible) == 1:
                taken = possible[0]
                condition = np.array(taken == "then_branch")
                node.replace_input_with(0, editor.add_constant(node, condition, f"{output.name}_{taken}"))
                other = next(name for name in ranks if name != taken)
                return f"takes its {taken}: rank {ranks[other]} of the other is refused by what reads {output.name!r}"
        return None


class _Readers:
    """Works out which ranks the readers of a value can take."""

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self._ifs = {body: node for node in editor.nodes({"If"}) for body in bodies(node)}

    def allowed(self, value: ir.Value, depth: int) -> Ranks:
        """The ranks of ``value`` with which all of its readers can run."""
        allowed = _ANY
        if depth == 0:
            return allowed
        asked: dict[ir.Node, None] = {}
        for node, at in value.uses():
            if node.graph is value.graph:
                allowed &= self._allowed_by(node, at, depth)
            elif node.graph in self._ifs and self._ifs[node.graph].graph is value.graph:
                asked[self._ifs[node.graph]] = None  # a reader in a body may never run, but its If does
        for reader in asked:
            allowed &= self._allowed_by_if(reader, value, depth)
        return allowed

    def _allowed_by(self, node: ir.Node, at: int, depth: int) -> Ranks:
        if node.domain != "" or at != 0:
            return _ANY
        if node.op_type in _FIXED:
            return frozenset({_FIXED[node.op_type]})
        if node.op_type in ("Conv", "ConvTranspose"):
            rank = self._editor.rank(node.inputs[1])
            return _ANY if rank is None else frozenset({rank})
        shift = _shift(node, self._editor)
        if shift is None:
            return _ANY
        after = self.allowed(node.outputs[0], depth - 1)
        return frozenset(rank for rank in _ANY if rank + shift in after)

    def _allowed_by_if(self, node: ir.Node, value: ir.Value, depth: int) -> Ranks:
        """What at least one branch allows: in it, ``value`` leads to an output whose readers are content."""
        allowed: Ranks = frozenset()
        for body in bodies(node):
            in_body = _ANY
            for user, at in value.uses():
                if user.graph is not body or user.domain != "" or at != 0:
                    continue
                shift = _shift(user, self._editor)
                places = [i for i, output in enumerate(body.outputs) if output is user.outputs[0]]
                if shift is not None and places:
                    after = self.allowed(node.outputs[places[0]], depth - 1)
                    in_body &= frozenset(rank for rank in _ANY if rank + shift in after)
            allowed |= in_body
        return allowed


def _shift(node: ir.Node, editor: Editor) -> int | None:
    """By how much the output's rank exceeds the input's; ``None`` if that is not known."""
    if node.op_type in _SAME:
        return 0
    if node.op_type not in ("Squeeze", "Unsqueeze"):
        return None
    axes = attribute(node, "axes")
    if axes is None and len(node.inputs) > 1:
        axes = editor.constant(node.inputs[1])
    if axes is None:
        return None
    return len(axes) if node.op_type == "Unsqueeze" else -len(axes)
