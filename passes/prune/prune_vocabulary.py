"""Remove rows of embeddings: of words that do not occur.

An embedding is a table that a ``Gather`` takes rows of, by the ids that the model is given. Rows of ids that are in
no calibration sample, or not in ``keep``, are removed, and a table of the new ids, one for each old one, stands before
the ``Gather``::

    Gather(table, ids)   becomes   Gather(smaller, Gather(new ids, ids))

Outputs are the same, to the bit, for ids that are kept. The ids of removed rows get the row of ``unknown``.

The new ids take 4 bytes for each old one, so the file gets smaller only if the rows removed take more, and else the
embedding stays. It makes the file smaller, not the model faster. An output embedding that shares the table keeps all
rows, for its rows make the scores of the words.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.errors import OptionError
from onnxopt.graph import Editor, attribute, constant_tensor, label
from onnxopt.pass_base import Context, Log, Pass, Refuse, Report
from onnxopt.passes.cleanup._operands import NODE_BYTES, write_constant

Array = np.ndarray[Any, Any]

_MOVES = frozenset({"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice"})
"""Operators that leave ids as they are."""


@dataclass(frozen=True, kw_only=True)
class PruneVocabulary(Pass):
    """Remove the rows of embeddings whose ids do not occur."""

    name: ClassVar[str] = "prune-vocabulary"
    exact: ClassVar[bool] = False
    ops: ClassVar[frozenset[str]] = frozenset({"Gather"})

    unknown: int
    """The id whose row stands for those that are removed: that of unknown words."""
    keep: tuple[int, ...] = ()
    """The ids to keep; without them, those that the calibration samples have."""

    def __post_init__(self) -> None:
        for option, given in (("unknown", (self.unknown,)), ("keep", self.keep)):
            if low := [each for each in given if each < 0]:
                raise OptionError(f"{self.name}.{option}: an id is a number from 0 on, got {low[0]}")

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        if not self.keep and context.data is not None and context.data.random:
            log.refused("model", "random data do not tell which ids occur: give samples, or list them in keep")
            return log.report()
        tables = list(dict.fromkeys(node.inputs[0] for node in context.editor.nodes(self.ops) if _is_lookup(node)))
        for table in tables:
            assert table is not None
            readers = list(dict.fromkeys(use.node for use in table.uses()))
            if context.gate.closed or not all(self.may_change(node, context) for node in readers):
                continue
            try:
                rows, kept, saved = self._prune(table, readers, context)
            except Refuse as refusal:
                log.refused(label(readers[0]), str(refusal))
                continue
            log.changed(label(readers[0]), f"keeps {kept} of {rows} rows of {table.name!r}: {saved} bytes less")
            log.measured(node=label(readers[0]), rows=rows, kept=kept, bytes=saved)
        if not tables:
            log.refused("model", "there is no embedding: no Gather takes rows of a constant by ids of an input")
        return log.report()

    def _prune(self, table: ir.Value, readers: list[ir.Node], context: Context) -> tuple[int, int, int]:
        """Cut a table; returns how many rows there were, how many there are, and the bytes saved."""
        editor = context.editor
        tensor = constant_tensor(table)
        assert tensor is not None
        rows = int(tensor.shape.numpy()[0])
        if other := next((node for node in readers if not _is_lookup(node)), None):
            raise Refuse(
                f"{other.op_type} {label(other)!r} reads all rows of {table.name!r}, as for the scores of words"
            )
        if table.is_graph_output():
            raise Refuse(f"{table.name!r} is an output too")
        inputs = [_source(node, editor) for node in readers]
        for option, given in (("unknown", (self.unknown,)), ("keep", self.keep)):
            if high := [each for each in given if each >= rows]:
                raise Refuse(f"{option}: {table.name!r} has the ids 0 to {rows - 1}, not {high[0]}")
        stays = np.zeros(rows, dtype=bool)
        stays[[self.unknown, *(self.keep or _occurring(inputs, rows, context))]] = True
        kept = int(stays.sum())
        if kept == rows:
            raise Refuse(f"all ids of {table.name!r} occur")
        freed = tensor.nbytes // rows * (rows - kept)
        graphs = list(dict.fromkeys(node.graph for node in readers))
        needed = (4 * rows + NODE_BYTES) * len(graphs) + NODE_BYTES * len(readers)
        if freed <= needed:
            raise Refuse(
                f"the {rows - kept} rows of {table.name!r} whose ids do not occur take {freed} bytes, and the table of "
                f"new ids would take {needed}"
            )
        write_constant(table, tensor.numpy()[stays], editor)
        places = np.cumsum(stays) - 1
        new = np.where(stays, places, places[self.unknown]).astype(np.int32)
        for graph in graphs:
            own = [node for node in readers if node.graph is graph]
            ids = editor.add_constant(own[0], new, f"{table.name}_ids")
            for node in own:
                node.replace_input_with(1, editor.insert(node, "Gather", [ids, node.inputs[1]], name=""))
        return rows, kept, freed - needed


def _is_lookup(node: ir.Node) -> bool:
    """Whether ``node`` takes rows of a constant by ids that are known at run time only."""
    if node.op_type != "Gather" or node.domain != "" or attribute(node, "axis", 0) != 0:
        return False
    tensor = constant_tensor(node.inputs[0])
    numeric = tensor is not None and tensor.dtype != ir.DataType.STRING and len(tensor.shape) > 1 and tensor.size > 0
    return numeric and constant_tensor(node.inputs[1]) is None


def _source(node: ir.Node, editor: Editor) -> str:
    """The name of the input that the ids of an embedding are. Raises ``Refuse`` if they are computed."""
    value = node.inputs[1]
    while value is not None and (maker := value.producer()) is not None:
        if maker.op_type not in _MOVES or maker.domain != "":
            raise Refuse(f"its ids are computed by {maker.op_type} {label(maker)!r}, and not given as an input")
        value = maker.inputs[0]
    if value is None or value not in editor.model.graph.inputs:
        raise Refuse("its ids are not an input of the model")
    return value.name or ""


def _occurring(inputs: Iterable[str], rows: int, context: Context) -> list[int]:
    """The ids that these inputs have in the calibration samples."""
    if context.data is None:
        raise Refuse("which ids occur is not known: give samples as data (--data), or list them in keep")
    found = np.zeros(rows, dtype=bool)
    for batch in context.data.batches():
        for name in inputs:
            found[np.asarray(batch.feeds[name], dtype=np.int64).reshape(-1)] = True  # from the end if negative
    return np.flatnonzero(found).tolist()
