"""Move ``Transpose`` nodes through others so that they cancel.

Exporters put a ``Transpose`` on either side of each layer whose layout is not theirs. Most operators between them
work as well on the other order (``layout.py``). For each permutation, the pass takes the region of nodes that can
be reached from its transpositions through such operators, and asks what it would take to let the region work in
the order before them: a transposition at its entry or exit disappears, one must be added where other data come
in, or where other nodes read what the region makes. Nodes at the exits that are not worth it leave the region
again. What is left is changed only if that leaves strictly fewer transpositions, none of them of more data than the
largest that goes.

``Transpose(Relu(Transpose(x, [0, 2, 3, 1])), [0, 3, 1, 2])``  →  ``Relu(x)``
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from onnxopt.graph import Editor, label
from onnxopt.pass_base import Context, Log, Pass, Report
from onnxopt.passes.cleanup._layout import Move, Perm, compose, inverse, is_identity, moved
from onnxopt.passes.cleanup._operands import discard, is_read, permutation, put_numbers
from onnxopt.shapes import Dims


@dataclass(frozen=True, kw_only=True)
class PushTransposes(Pass):
    """Move ``Transpose`` nodes through others so that they cancel."""

    name: ClassVar[str] = "push-transposes"
    exact: ClassVar[bool] = True
    ops: ClassVar[frozenset[str] | None] = frozenset({"Transpose"})

    def run(self, context: Context) -> Report:
        editor, log = context.editor, Log(self, context)
        seeds: dict[tuple[ir.Graph, Perm], list[ir.Node]] = {}
        for node in editor.nodes(("Transpose",)):
            perm = permutation(node, editor)
            if perm is not None and node.graph is not None and not is_identity(perm):
                seeds.setdefault((node.graph, perm), []).append(node)
        orders: dict[ir.Graph, dict[ir.Node, int]] = {}
        for (graph, perm), nodes in seeds.items():
            standing = [n for n in nodes if n.graph is graph and permutation(n, editor) == perm]
            standing = [n for n in standing if self.may_change(n, context)]
            if graph not in orders:
                orders[graph] = {node: at for at, node in enumerate(graph)}
            region = _Region(editor, perm, orders[graph])
            region.grow(standing)
            region.peel()
            for part in region.parts():
                if not self.may_change(part.seeds[0], context):
                    continue
                name = label(part.seeds[0])
                gain = part.gain()
                if gain > 0 and part.keeps_sizes():
                    part.apply()
                    orders.pop(graph, None)
                    log.changed(name, f"let {len(part.moves)} nodes work in the other order, {gain} fewer remain")
        return log.report()


@dataclass
class _Region:
    """Nodes that could work in the order before the transpositions ``seeds``."""

    editor: Editor
    perm: Perm
    order: dict[ir.Node, int]
    seeds: list[ir.Node] = field(default_factory=list)
    moves: dict[ir.Node, Move] = field(default_factory=dict)
    """The nodes of the region, in order."""
    perms: dict[ir.Value, Perm] = field(default_factory=dict)
    """How each value of the region comes from its counterpart in the other order."""

    # -- planning ------------------------------------------------------------------------------------

    def grow(self, seeds: Iterable[ir.Node]) -> None:
        """Take in every node that can be reached from ``seeds``."""
        wanted = set(seeds)
        heap = [(self.order[node], id(node), node) for node in wanted]
        heapq.heapify(heap)
        seen: set[ir.Node] = set()
        while heap:
            _, _, node = heapq.heappop(heap)
            if node in seen:
                continue
            seen.add(node)
            flipped = {at: self.perms[v] for at, v in enumerate(node.inputs) if v is not None and v in self.perms}
            if node in wanted:
                if flipped:  # it stands behind another one, and is an exit of the region
                    continue
                self.seeds.append(node)
                self.perms[node.outputs[0]] = self.perm
            elif (move := moved(node, flipped, self.editor)) is not None:
                self.moves[node] = move
                if is_identity(move.perm_out):
                    continue
                for value in node.outputs:
                    self.perms[value] = move.perm_out
            for value in node.outputs:
                for reader, _ in value.uses():
                    if reader in self.order and value in self.perms:
                        heapq.heappush(heap, (self.order[reader], id(reader), reader))

    def peel(self) -> None:
        """Let nodes at the exits go that are not worth it."""
        for node in reversed(list(self.moves)):
            if any(reader in self.moves for value in node.outputs for reader, _ in value.uses()):
                continue
            touched = self._touched([node])
            before = sum(self._cost(value) for value in touched)
            move = self.moves.pop(node)
            perms = {value: self.perms.pop(value) for value in node.outputs if value in self.perms}
            if sum(self._cost(value) for value in touched) > before:
                self.moves[node] = move
                self.perms.update(perms)
        self.moves = dict(sorted(self.moves.items(), key=lambda item: self.order[item[0]]))

    def parts(self) -> Iterator[_Region]:
        """The parts of the region that hang together."""
        root: dict[ir.Node, ir.Node] = {node: node for node in (*self.seeds, *self.moves)}

        def find(node: ir.Node) -> ir.Node:
            while root[node] is not node:
                root[node] = root[root[node]]
                node = root[node]
            return node

        for node in self.moves:
            for value in node.inputs:
                if value is not None and value in self.perms and (producer := value.producer()) in root:
                    root[find(producer)] = find(node)
        found: dict[ir.Node, _Region] = {}
        for node in (*self.seeds, *self.moves):
            part = found.setdefault(find(node), _Region(self.editor, self.perm, self.order, perms=self.perms))
            if node in self.moves:
                part.moves[node] = self.moves[node]
            else:
                part.seeds.append(node)
        yield from (part for part in found.values() if part.moves and part.seeds)

    def gain(self) -> int:
        """How many transpositions fewer there are after the change."""
        return -sum(self._cost(value) for value in self._touched((*self.seeds, *self.moves)))

    def _touched(self, nodes: Iterable[ir.Node]) -> list[ir.Value]:
        """The values that stand in the other order, or have to, around ``nodes``."""
        found: dict[ir.Value, None] = {}
        for node in nodes:
            found.update(dict.fromkeys(node.outputs))
            if node in self.moves:
                found.update((v, None) for at in self.moves[node].data if (v := node.inputs[at]) is not None)
        return list(found)

    def _cost(self, value: ir.Value) -> int:
        """How many more transpositions ``value`` takes, or fewer, if the region is changed."""
        producer = value.producer()
        perm = self.perms.get(value)
        if producer in self.moves:
            if perm is None:
                return 0
            return int(self._has_other_readers(value)) - len(self._cancelled(value, perm))
        if perm is not None:  # made by a seed, which goes if only the region reads it
            inside = all(reader in self.moves for reader, _ in value.uses())
            return -int(inside and bool(value.uses()) and not value.is_graph_output())
        return int(any(node in self.moves and at in self.moves[node].data for node, at in value.uses()))

    def _exits(self, value: ir.Value) -> Iterator[tuple[ir.Node, Perm]]:
        """The transpositions that read ``value`` from outside, and what is left of each."""
        for reader, _ in value.uses():
            if reader in self.order and reader not in self.moves and reader.op_type == "Transpose":
                outer = permutation(reader, self.editor)
                if outer is not None and not reader.domain:
                    yield reader, compose(self.perms[value], outer)

    def _cancelled(self, value: ir.Value, perm: Perm) -> list[ir.Node]:
        return [node for node, left in self._exits(value) if is_identity(left)]

    def _has_other_readers(self, value: ir.Value) -> bool:
        exits = {node for node, _ in self._exits(value)}
        return value.is_graph_output() or any(
            reader not in self.moves and reader not in exits for reader, _ in value.uses()
        )

    def keeps_sizes(self) -> bool:
        """Whether no transposition that is added is of more data than one that goes."""
        gone: list[Dims | None] = []
        added: list[Dims | None] = []
        for value in self._touched((*self.seeds, *self.moves)):
            cost = self._cost(value)
            if cost < 0:
                gone.append(self.editor.shape(value))
            elif cost > 0:
                added.append(self.editor.shape(value))
        return all(any(_at_most(a, g) for g in gone) for a in added)

    # -- changing ------------------------------------------------------------------------------------

    def apply(self) -> None:
        """Let the region work in the other order."""
        sources = {seed.outputs[0]: seed.inputs[0] for seed in self.seeds}
        new: dict[ir.Value, ir.Value | None] = dict(sources)
        old: list[ir.Value | None] = []
        for node, move in self.moves.items():
            old.extend(node.inputs)
            made = self._make(node, move, new)
            for value, other in zip(node.outputs, made, strict=True):
                new[value] = other
        for node in self.moves:
            for value in node.outputs:
                self._leave(node, value, new[value])
        for node in reversed(self.moves):
            self.editor.remove(node)
        for seed in self.seeds:
            if not is_read(seed.outputs[0]):
                self.editor.remove(seed)
        discard(*old)

    def _make(self, node: ir.Node, move: Move, new: dict[ir.Value, ir.Value | None]) -> list[ir.Value]:
        """The node that takes the place of ``node``; returns its outputs."""
        editor = self.editor
        inputs: list[ir.Value | None] = list(node.inputs)
        inputs += [None] * (max(move.constants, default=-1) + 1 - len(inputs))
        for at in move.data:
            value = inputs[at]
            if value is None:
                continue
            if value not in new:
                new[value] = editor.insert(node, "Transpose", [value], {"perm": inverse(self._own(node))}, name="")
                self._learn(new[value], value, inverse(self._own(node)))
            inputs[at] = new[value]
        for at, array in move.constants.items():
            given = inputs[at]
            name = given.name if given is not None and given.name else "axes"
            inputs[at] = editor.add_constant(node, array, name)
        first = editor.insert(node, node.op_type, inputs)
        made = first.producer()
        assert made is not None
        made.attributes.update(node.attributes)
        for key, number in move.attributes.items():
            put_numbers(made, key, number)
        made.resize_outputs(len(node.outputs))
        for at, (value, other) in enumerate(zip(node.outputs, made.outputs, strict=True)):
            if at > 0:
                other.name = editor.fresh(f"{value.name}_{made.op_type}") if value.name else ""
            self._learn(other, value, inverse(move.perm_out))
        return list(made.outputs)

    def _own(self, node: ir.Node) -> Perm:
        """The permutation that ``node`` works through."""
        return next(self.perms[v] for v in node.inputs if v is not None and v in self.perms)

    def _learn(self, new: ir.Value | None, old: ir.Value, perm: Perm) -> None:
        dims = self.editor.shape(old)
        if new is not None:
            self.editor.facts.learn(
                new, self.editor.dtype(old), None if dims is None else tuple(dims[axis] for axis in perm)
            )

    def _leave(self, node: ir.Node, value: ir.Value, new: ir.Value | None) -> None:
        """Let what reads ``value`` from outside read what it is made of now."""
        assert new is not None
        editor = self.editor
        perm = self.perms.get(value)
        if perm is None:
            if is_read(value):
                editor.take_over(value, new)
            return
        for reader, left in list(self._exits(value)):
            if not is_identity(left):
                reader.replace_input_with(0, new)
                put_numbers(reader, "perm", left)
            elif editor.redirect(reader.outputs[0], new):
                editor.remove(reader)
            else:
                editor.replace_node(reader, "Identity", [new])
        if self._has_other_readers(value):
            editor.take_over(value, editor.insert(node, "Transpose", [new], {"perm": perm}, name=""))


def _at_most(a: Dims | None, b: Dims | None) -> bool:
    """Whether ``a`` has at most as many elements as ``b``, for certain."""
    if a is None or b is None or None in a or None in b:
        return False
    less, more = (math.prod(d for d in dims if isinstance(d, int)) for dims in (a, b))
    few, many = (Counter(d for d in dims if isinstance(d, str)) for dims in (a, b))
    return few <= many and less <= more
