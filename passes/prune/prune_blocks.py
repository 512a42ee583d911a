"""Remove residual branches: ``y = x + f(x)`` becomes ``y = x``.

Deep residual networks change their stream a little in each branch, and in some hardly at all; without these all else
still fits, for the stream keeps its shape. A branch is an attention, a feed-forward part, or the convolutions of a
residual block; what normalizes or activates the sum reads the stream afterwards.

What a branch is worth is measured: the noise in the outputs of the model, on samples, without it. The branch that
does the least harm goes first, then the next with the first one gone, until the ratio is reached. How little a branch
turns its stream is cheaper to tell, but leaves more noise. Of half the branches, as a share of the signal, on samples
held out:

=================================  ==================  ========
model (branches)                   least turning       measured
=================================  ==================  ========
sentence encoder, 6 layers (12)    0.54                0.48
classifier of text angles (7)      0.15                0.05
recognizer of text lines (4)       0.05                0.04
MLP-Mixer (6)                      1.37                0.71
=================================  ==================  ========

Branches stay whose shortcut has layers of its own, or whose result is read elsewhere too.

Sources: Veit, Wilber and Belongie, "Residual Networks Behave Like Ensembles of Relatively Shallow Networks", NIPS 2016;
Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", 2024 (similarity).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from onnxopt.errors import OptionError
from onnxopt.graph import Editor, label
from onnxopt.pass_base import Context, Log, Needs, Pass, Report
from onnxopt.passes.prune._branches import Branch, Branches, remove
from onnxopt.passes.prune._gates import Gates
from onnxopt.passes.prune._greedy import Measure, greedy

_SAMPLES = 64
"""How many samples a branch is judged on."""
_KNOWN = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True, kw_only=True)
class PruneBlocks(Pass):
    """Remove the residual branches that the outputs need least."""

    name: ClassVar[str] = "prune-blocks"
    exact: ClassVar[bool] = False
    needs: ClassVar[Needs] = "inputs"

    ratio: float = 0.25
    """The share to remove, in (0, 1)."""
    of: Literal["branches", "macs"] = "branches"
    """What ``ratio`` is a share of: the ``branches`` that may be removed, or the ``macs`` of the model."""

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise OptionError(f"{self.name}.ratio is a share in (0, 1), got {self.ratio}")
        if self.of not in ("branches", "macs"):
            raise OptionError(f"{self.name}.of is one of branches, macs; got {self.of!r}")

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        editor, data = context.editor, context.data
        assert data is not None
        found = Branches(editor)
        for node, why in found.refused:
            if self.may_change(node, context):
                log.refused(label(node), why)
        branches = [each for each in found.found if self.may_change(each.add, context) and _has_gate(each, editor, log)]
        gates = Gates(editor, branches, data.take(_SAMPLES)) if branches else None
        if gates is None or not gates.fits.any():
            if not log.report().refusals:
                log.refused("model", "there is no residual branch that may be removed, no x + f(x) with layers in f")
            return log.report()
        fitting = gates.fits.nonzero()[0].tolist()  # others are no residual sums, as of scores and a mask
        branches = [branches[at] for at in fitting]

        def harm(shut: frozenset[int]) -> float:
            return gates.harm({fitting[at] for at in shut})

        alone = [harm(frozenset({at})) for at in range(len(branches))]
        gain, target = self._gain(branches, found)
        order = [branches[at] for at, _ in greedy(alone, harm, gain, target)]
        for branch, noise in zip(branches, alone, strict=True):
            macs = None if found.uncounted(branch.nodes) else found.macs(branch.nodes) / found.total
            log.measured(
                node=branch.name, macs=macs, parameters=branch.parameters, noise=noise, removed=branch in order
            )
        for branch in order:
            if context.gate.closed:
                break
            name = branch.name
            remove(branch, editor)
            log.changed(name, f"its branch is removed: {len(branch.nodes)} nodes, {_costs(branch, found)}")
        return log.report()

    def _gain(self, branches: Sequence[Branch], found: Branches) -> tuple[Measure, float]:
        """What is gained by removing a set of these branches, and how much of it is wanted.

        Raises ``OptionError`` if it cannot be told, or not be reached.
        """

        def nodes(chosen: frozenset[int]) -> frozenset[ir.Node]:
            return frozenset().union(*(branches[at].nodes | {branches[at].add} for at in chosen))

        if self.of == "branches":

            def count(chosen: frozenset[int]) -> float:
                gone = nodes(chosen)
                return sum(branch.add in gone for branch in branches)

            return count, len(branches) - int(len(branches) * (1 - self.ratio) + 1e-9)

        def macs(chosen: frozenset[int]) -> float:
            return found.macs(nodes(chosen))

        everything = frozenset(range(len(branches)))
        if unknown := found.uncounted(nodes(everything)):
            raise OptionError(
                f"{self.name}.of macs: those of {unknown[0]!r} are not known, for its shapes are not; take branches"
            )
        if macs(everything) < self.ratio * found.total:
            raise OptionError(
                f"{self.name}.ratio {self.ratio} of macs cannot be reached: all branches that may be removed have "
                f"{macs(everything) / found.total:.1%} of them"
            )
        return macs, self.ratio * found.total


def _has_gate(branch: Branch, editor: Editor, log: Log) -> bool:
    """Whether the branch can be shut in a trial; if not, that is logged."""
    dtype = editor.dtype(branch.add.inputs[branch.side])
    why = ""
    if dtype not in _KNOWN:
        why = f"its type is {'not known' if dtype is None else dtype.name}, and trials are made in float32, 16 and 64"
    elif editor.opset(branch.add) < 7:
        why = f"trials need opset 7 or more, the model has {editor.opset(branch.add)}: convert-opset raises it"
    if why:
        log.refused(branch.name, f"its branch stays: {why}")
    return not why


def _costs(branch: Branch, found: Branches) -> str:
    text = f"{branch.parameters} parameters"
    if found.uncounted(branch.nodes):
        return text
    return f"{text}, {found.macs(branch.nodes) / found.total:.1%} of the multiply–accumulates"
