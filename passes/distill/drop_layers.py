"""Drop blocks of a deep network that repeats them: a student of fewer layers, with the weights of its teacher.

The residual branches of the main graph are read as a row, and where stretches of it repeat, with the same operators and
shapes of weights, each stretch is a block: attention and feed-forward part of a transformer, or the convolutions of a
residual block. Of each run of equal blocks every second is kept (``alternate``), or the ``first`` or ``last`` ones. A
block is dropped by leaving out its branches, which needs no data: ``drop-layers,distill`` is the recipe of DistilBERT.
Where a sum that is left is normalized or activated just as the stream was before it, that is done once.

``prune-blocks`` measures which branches do the least harm; take it where the result is not trained.

Source: Sanh, Debut, Chaumond and Wolf, "DistilBERT, a Distilled Version of BERT", 2019.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from onnxopt.errors import OptionError
from onnxopt.graph import Editor, constant_tensor, sole_reader
from onnxopt.pass_base import Context, Log, Pass, Report
from onnxopt.passes.cleanup._operands import discard
from onnxopt.passes.distill._blocks import NORMALIZATIONS
from onnxopt.passes.prune._branches import Branch, Branches, remove

_KEPT = ("alternate", "first", "last")
_LONGEST = 8
"""A block has no more branches."""
_TWICE = NORMALIZATIONS | {"Clip", "Relu"}
"""What is left out where it comes twice."""


@dataclass(frozen=True, kw_only=True)
class DropLayers(Pass):
    """Drop blocks of a deep network that repeats them."""

    name: ClassVar[str] = "drop-layers"
    exact: ClassVar[bool] = False
    ops: ClassVar[frozenset[str]] = frozenset({"Add", "Sum"})

    keep: Literal["alternate", "first", "last"] = "alternate"
    """Which blocks of a run of equal ones are kept: spread evenly over it, or those at an end."""
    layers: int = 0
    """How many blocks of each run are kept; 0: half of them."""

    def __post_init__(self) -> None:
        if self.keep not in _KEPT:
            raise OptionError(f"{self.name}.keep is one of {', '.join(_KEPT)}; got {self.keep!r}")
        if self.layers < 0:
            raise OptionError(f"{self.name}.layers is a number from 0 on, got {self.layers}")

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        editor = context.editor
        runs = list(_runs([branch for branch in Branches(editor).found if self.selects(branch.add)]))
        if not runs:
            log.refused("model", "no residual blocks of it are alike, so there are no layers to drop")
        for blocks in runs:
            kept = self._kept(len(blocks))
            if len(kept) == len(blocks):
                log.refused(blocks[0][0].name, f"its run has {len(blocks)} blocks, and {self.layers} are kept")
            for at, block in enumerate(blocks):
                for branch in block if at not in kept else ():
                    if context.gate.allows(self.name, branch.name):
                        name = branch.name
                        _drop(branch, editor)
                        log.changed(name, f"left out with block {at + 1} of {len(blocks)} alike")
        return log.report()

    def _kept(self, count: int) -> set[int]:
        """Which of ``count`` blocks stay: at least one."""
        number = min(self.layers or -(-count // 2), count)
        if self.keep == "first":
            return set(range(number))
        if self.keep == "last":
            return set(range(count - number, count))
        return {at * count // number for at in range(number)}


def _runs(branches: Sequence[Branch]) -> Iterator[list[Sequence[Branch]]]:
    """Stretches of branches that repeat, each as its blocks: as many branches as possible, in the shortest blocks."""
    forms = [_form(branch) for branch in branches]
    at = 0
    while at < len(branches):
        found = {width: _repeats(forms, at, width) for width in range(1, _LONGEST + 1)}
        width = max(found, key=lambda each: (each * found[each] if found[each] > 1 else 0, -each))
        count = found[width]
        if count < 2:
            at += 1
            continue
        yield [branches[at + k * width : at + (k + 1) * width] for k in range(count)]
        at += count * width


def _repeats(forms: Sequence[object], at: int, width: int) -> int:
    """How often the ``width`` forms from ``at`` on come one after the other."""
    first, count = forms[at : at + width], 1
    while forms[at + count * width : at + (count + 1) * width] == first:
        count += 1
    return count if len(first) == width else 1


def _form(branch: Branch) -> object:
    """What is alike in branches of equal layers: operators, and the shapes of floats that they read."""
    found: Counter[object] = Counter()
    for node in branch.nodes:
        tensors = [tensor for value in node.inputs if (tensor := constant_tensor(value)) is not None]
        shapes = [tuple(tensor.shape.numpy()) for tensor in tensors if tensor.dtype.is_floating_point()]
        found[node.op_type, tuple(shapes)] += 1
    return found


def _drop(branch: Branch, editor: Editor) -> None:
    """Leave out a branch, and what is done to the stream a second time then."""
    stream, reader = branch.stream, sole_reader(branch.add.outputs[0])
    remove(branch, editor)
    before = stream.producer()
    is_again = (
        reader is not None and before is not None and reader.inputs[0] is stream and stream is before.outputs[0]
        and reader.op_type in _TWICE and (reader.op_type, reader.domain) == (before.op_type, before.domain)
    )  # fmt: skip
    if is_again and reader is not None and editor.redirect(reader.outputs[0], stream):
        read = [value for value in reader.inputs if value is not None]
        editor.remove(reader)
        discard(*read)
