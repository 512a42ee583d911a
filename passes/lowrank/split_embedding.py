"""Split embeddings: a table of many rows into one of short rows and a matrix that makes them long again.

An embedding is a table ``E`` (V × d) that a ``Gather`` takes rows of, one for each word. With ``A`` (V × r) and ``B``
(r × d)

    Gather(E, ids)   becomes   MatMul(Gather(A, ids), B),

which takes r · (V + d) numbers instead of V · d. ``B`` has the directions in which the rows, each with a weight, vary
most, and ``A`` the places of the rows along them, so that ``Σ_v w_v ‖E_v − A_v B‖²`` is least for the rank: a truncated
singular value decomposition of the weighted table.

With calibration samples half of the weight goes to rows by how often the samples read them, and half to all rows alike;
without samples all of it does. Words are read very unevenly (Zipf's law), so that a few thousand rows are nearly all
that is read; but most words of a vocabulary are in no sample, and some of them will be read one day. Measured on a
trained sentence encoder (MiniLM-L6, 30,522 words, a table of 70 % of its size), the share of its squares that is lost
of what held-out texts read, and of those of its words that no calibration text has: 0.24 and 0.089 with all rows alike,
0.036 and 0.120 by counts alone, 0.041 and 0.101 by half of each.

It makes the file smaller, not the model faster. A table that others read too stays whole: where a language model makes
its scores of it, an error counts by what the table is multiplied with, not by how often a row is read.

Sources: Eckart and Young, "The approximation of one matrix by another of lower rank", Psychometrika 1936; Lan, Chen,
Goodman, Gimpel, Sharma and Soricut, "ALBERT", ICLR 2020 (embeddings in two factors); Chen, Si, Li, Chelba and Hsieh,
"GroupReduce: Block-Wise Low-Rank Approximation for Neural Language Model Shrinking", NeurIPS 2018 (rows weighted by
how often words occur).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.errors import OptionError
from onnxopt.graph import Editor, attribute, constant_tensor, label
from onnxopt.metrics import parameters
from onnxopt.pass_base import Context, Log, Pass, Refuse, Report
from onnxopt.passes.cleanup._affine import FLOATS
from onnxopt.passes.cleanup._operands import write_constant
from onnxopt.passes.lowrank._svd import Array, Problem, balanced
from onnxopt.passes.prune._cross_grams import reading
from onnxopt.passes.prune.reconstruct import halves
from onnxopt.stats import Statistics

_MULTIPLE = 8
_SMALL = 0.01
"""A table with less than this share of the weights of the model is not worth a product more."""
_BLOCK = 1 << 12
"""So many rows are taken at once."""
_EXACT = 1e-9
"""A share of errors that is rounding."""


@dataclass(frozen=True, kw_only=True)
class SplitEmbedding(Pass):
    """Split embeddings into a narrower table and a matrix behind it."""

    name: ClassVar[str] = "split-embedding"
    exact: ClassVar[bool] = False
    ops: ClassVar[frozenset[str]] = frozenset({"Gather"})

    ratio: float = 0.3
    """The share of the numbers of each table to save, in (0, 1)."""
    energy: float | None = None
    """Instead of ``ratio``: the share of the squared table, rows by their weight, to keep, in (0, 1];"""
    rank: float | None = None
    """or the rank, as a share of the full one, in (0, 1)."""
    round_to: int = 0
    """Ranks are multiples of this; 0: of 8, 1: any number."""

    def __post_init__(self) -> None:
        for option in ("ratio", "energy", "rank"):
            share = getattr(self, option)
            if share is not None and not (0 < share < 1 or (option == "energy" and share == 1)):
                end = "]" if option == "energy" else ")"
                raise OptionError(f"{self.name}.{option} is a share in (0, 1{end}, got {share}")
        if self.energy is not None and self.rank is not None:
            raise OptionError(f"{self.name}: give one of energy and rank")
        if self.round_to < 0:
            raise OptionError(f"{self.name}.round_to is a number from 0 on, got {self.round_to}")

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        tables: dict[ir.Value, list[ir.Node]] = {}
        for node in context.editor.nodes(self.ops):
            table = node.inputs[0]
            if table is not None and _is_lookup(node, context.editor):
                tables.setdefault(table, []).append(node)
        weights = parameters(context.editor.model)
        for table, lookups in tables.items():
            if context.gate.closed:
                break
            if not all(self.may_change(node, context) for node in lookups):
                continue
            try:
                _check(table, lookups, weights)
                self._split(table, lookups, context, log)
            except Refuse as refusal:
                log.refused(label(lookups[0]), str(refusal))
        if not tables:
            log.refused(
                "model", "there is no embedding: no Gather takes rows of a matrix by ids known at run time only"
            )
        return log.report()

    def _split(self, table: ir.Value, lookups: Sequence[ir.Node], context: Context, log: Log) -> None:
        tensor = constant_tensor(table)
        assert tensor is not None
        array = tensor.numpy()
        v, d = array.shape
        plain = _problem(array, np.ones(v))
        if not np.isfinite(plain.energy):
            raise Refuse(f"{table.name!r} has numbers that are not finite")
        counts, why = _counts(lookups, v, context)
        weighted = plain if counts is None else _problem(array, counts[0] / counts[0].sum() + 1 / v)
        rank = self._rank(v, d, weighted)
        numbers = rank * (v + d * len({node.graph for node in lookups}))
        if rank >= min(v, d) or numbers >= v * d:
            raise Refuse(f"rank {rank} of {min(v, d)} saves nothing")
        name, (to, back) = label(lookups[0]), weighted.factors(rank)
        first, second = balanced(np.concatenate([rows @ to for _, rows in _blocks(array)]), back)
        _put(table, lookups, first.astype(array.dtype), second.astype(array.dtype), context.editor)
        error = _share_lost(plain, to @ back)
        text = (
            f"rank {rank} of {min(v, d)}: {numbers / (v * d):.0%} of the numbers of {table.name!r}, error {error:.2g}"
        )
        fact: dict[str, object] = {"node": name, "rank": rank, "saved": v * d - numbers, "error": error}
        if counts is None:
            text += f" with all rows alike, for {why}"
        else:
            fact["error_as_read"] = read = _share_lost(_problem(array, counts[1]), to @ back)
            text += f", of what held-out samples read {read:.2g}"
        log.changed(name, text)
        log.measured(**fact)

    def _rank(self, v: int, d: int, weighted: Problem) -> int:
        multiple = self.round_to or _MULTIPLE
        if self.energy is not None:
            errors = weighted.errors()
            wanted = int(np.argmax(errors <= (1 - self.energy + _EXACT) * errors[0]))
        elif self.rank is not None:
            wanted = round(self.rank * min(v, d))
        else:
            most = int((1 - self.ratio) * v * d / (v + d) / multiple) * multiple
            if not most:
                raise Refuse(f"no rank that is a multiple of {multiple} saves {self.ratio:.0%} of its numbers")
            return most
        return max(1, math.ceil(wanted / multiple)) * multiple


def _is_lookup(node: ir.Node, editor: Editor) -> bool:
    """Whether ``node`` takes rows of a matrix by ids known at run time only."""
    if node.domain or attribute(node, "axis", 0) not in (0, -2) or constant_tensor(node.inputs[1]) is not None:
        return False
    return editor.rank(node.inputs[0]) == 2


def _check(table: ir.Value, lookups: Sequence[ir.Node], weights: int) -> None:
    """Raise ``Refuse`` if ``table`` cannot be split, or is small beside all ``weights`` of the model."""
    tensor, maker = constant_tensor(table), table.producer()
    if maker is not None and maker.op_type == "DequantizeLinear" and constant_tensor(maker.inputs[0]) is not None:
        raise Refuse(f"{table.name!r} is quantized: split it before")
    if tensor is None:
        raise Refuse(f"{table.name!r} is no constant")
    if any(use.node.op_type == "DequantizeLinear" for node in lookups for use in node.outputs[0].uses()):
        raise Refuse(f"{table.name!r} is quantized: split it before")
    if tensor.dtype not in FLOATS:
        raise Refuse(f"{table.name!r} is of {tensor.dtype.name}, not of floats")
    if other := next((use.node for use in table.uses() if use.node not in lookups), None):
        raise Refuse(f"{other.op_type} {label(other)!r} reads all of {table.name!r} too, as for the scores of words")
    if table.is_graph_output():
        raise Refuse(f"{table.name!r} is an output too")
    if tensor.size < _SMALL * weights:
        raise Refuse(f"{table.name!r} has {tensor.size / weights:.2%} of the weights of the model, too few to matter")


def _put(table: ir.Value, lookups: Sequence[ir.Node], first: Array, second: Array, editor: Editor) -> None:
    """Let ``table`` be ``first``, and multiply what is taken of it by ``second``."""
    write_constant(table, first, editor)
    matrices: dict[ir.Graph | ir.Function | None, ir.Value] = {}
    for node in lookups:
        if node.graph not in matrices:
            matrices[node.graph] = editor.add_constant(node, second, f"{table.name}_1")
        row = editor.insert(node, "Gather", [table, node.inputs[1]])
        name = f"{node.name}_1" if node.name else ""
        editor.take_over(node.outputs[0], editor.insert(node, "MatMul", [row, matrices[node.graph]], name=name))
        editor.remove(node)


# -- the numbers -----------------------------------------------------------------------------------------------------


def _blocks(array: Array) -> Iterator[tuple[slice, Array]]:
    """Some rows at a time in float64, with their places."""
    for start in range(0, len(array), _BLOCK):
        places = slice(start, start + _BLOCK)
        yield places, array[places].astype(np.float64)


def _problem(array: Array, weights: Array) -> Problem:
    """To find ``E`` (V × d) again from few numbers a row, where rows have ``weights`` (V)."""
    gram = np.zeros((array.shape[1],) * 2)
    for places, rows in _blocks(array):
        gram += (rows * weights[places, None]).T @ rows
    return Problem.dense(gram, np.eye(len(gram)))


def _share_lost(problem: Problem, product: Array) -> float:
    """The share of ``Σ_v w_v ‖E_v‖²`` that is lost by rows times ``product`` (d × d)."""
    return problem.error(product) / (problem.energy or 1.0)


def _counts(lookups: Sequence[ir.Node], rows: int, context: Context) -> tuple[tuple[Array, Array] | None, str]:
    """How often each row is read on samples to fit to, and on others to judge by; or the reason why that is unknown."""
    if context.data is None:
        return None, "there are no samples"
    if context.data.random:
        return None, "random data do not tell what is read"
    samples = halves(context)
    if samples is None:
        return None, "one sample is too few"
    editor = context.editor.copy()
    names = {node.outputs[0].name for node in lookups}
    copied = [node for node in editor.nodes({"Gather"}) if node.outputs[0].name in names]
    # statistics are of floats
    ids = [editor.insert(n, "Cast", [n.inputs[1]], {"to": int(ir.DataType.DOUBLE)}, name="").name or "" for n in copied]
    statistics = reading(editor.model, samples[0])
    if unreadable := next(filter(None, map(statistics.reachable, ids)), None):
        return None, f"its ids cannot be read: {unreadable}"
    found = _count(statistics, ids, rows), _count(statistics.over(samples[1]), ids, rows)
    return (found, "") if all(each.any() for each in found) else (None, "they are not read on these data")


def _count(statistics: Statistics, ids: Sequence[str], rows: int) -> Array:
    """How often these tensors of ids have each of so many numbers, of which negative ones count from the end."""
    found = np.zeros(rows)
    for arrays in statistics.arrays(ids):
        for array in arrays.values():
            found += np.bincount(array.reshape(-1).astype(np.int64) % rows, minlength=rows)
    return found
